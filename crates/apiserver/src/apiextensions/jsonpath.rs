//! The paths by which a definition names fields: those of columns and selectable fields (upstream's JSONPath, as far as
//! a path to values goes: names, indices, `[*]` and filters that compare a field with a text), and the plain ones of the
//! scale subresource.

use serde_json::Value;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Name(String),
    Index(i64),
    Each,
    /// Items in which what a path leads to is this text.
    Where(Vec<Step>, String),
}

/// A path that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path(Vec<Step>);

impl Path {
    /// Reads `.spec.size`, `.status.conditions[?(@.type=="Ready")].status`, `.metadata.labels['a\.b']`. None for what is
    /// no such path.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let text = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')).unwrap_or(text);
        let mut rest = text.strip_prefix('$').unwrap_or(text);
        let mut steps = Vec::new();
        while !rest.is_empty() {
            let (step, after) = if let Some(after) = rest.strip_prefix('[') {
                bracket(after)?
            } else {
                name(rest.strip_prefix('.').unwrap_or(rest))?
            };
            steps.push(step);
            rest = after;
        }
        Some(Path(steps))
    }

    /// All that the path leads to.
    pub fn find<'v>(&self, value: &'v Value) -> Vec<&'v Value> {
        walk(&self.0, value)
    }
}

fn walk<'v>(steps: &[Step], value: &'v Value) -> Vec<&'v Value> {
    let mut found = vec![value];
    for step in steps {
        found = found.into_iter().flat_map(|value| taken(step, value)).collect();
    }
    found
}

fn taken<'v>(step: &Step, value: &'v Value) -> Vec<&'v Value> {
    match (step, value) {
        (Step::Name(name), Value::Object(fields)) => fields.get(name).into_iter().collect(),
        (Step::Index(at), Value::Array(items)) => {
            let at = if *at < 0 { items.len() as i64 + at } else { *at };
            usize::try_from(at).ok().and_then(|at| items.get(at)).into_iter().collect()
        }
        (Step::Each, Value::Array(items)) => items.iter().collect(),
        (Step::Each, Value::Object(fields)) => fields.values().collect(),
        (Step::Where(path, wanted), Value::Array(items)) => {
            items.iter().filter(|item| walk(path, item).iter().any(|v| shown(v) == *wanted)).collect()
        }
        _ => Vec::new(),
    }
}

/// A value as text: strings without their quotes.
pub fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn name(text: &str) -> Option<(Step, &str)> {
    let mut out = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => out.push(chars.next()?.1),
            '.' | '[' => return (!out.is_empty()).then(|| (step_of(out), &text[at..])),
            c => out.push(c),
        }
    }
    (!out.is_empty()).then(|| (step_of(out), ""))
}

fn step_of(name: String) -> Step {
    if name == "*" { Step::Each } else { Step::Name(name) }
}

fn bracket(text: &str) -> Option<(Step, &str)> {
    if let Some(filter) = text.strip_prefix("?(") {
        let (inside, after) = filter.split_once(")]")?;
        let (left, right) = inside.split_once("==")?;
        let path = Path::parse(left.trim().strip_prefix('@')?)?;
        let wanted = right.trim().trim_matches(['"', '\'']).to_owned();
        return Some((Step::Where(path.0, wanted), after));
    }
    let (inside, after) = text.split_once(']')?;
    let quoted = inside.strip_prefix('\'').and_then(|t| t.strip_suffix('\''));
    let quoted = quoted.or_else(|| inside.strip_prefix('"').and_then(|t| t.strip_suffix('"')));
    let step = match quoted {
        Some(name) => Step::Name(name.replace('\\', "")),
        None if inside == "*" => Step::Each,
        None => Step::Index(inside.parse().ok()?),
    };
    Some((step, after))
}

/// What a path of plain names, such as that of the scale's replicas, leads to.
pub fn plain<'v>(value: &'v Value, path: &str) -> Option<&'v Value> {
    path.split('.').filter(|name| !name.is_empty()).try_fold(value, |value, name| value.get(name))
}

/// Puts a value where a path of plain names leads, making the objects on the way.
pub fn set_plain(value: &mut Value, path: &str, new: Value) {
    let mut at = value;
    for name in path.split('.').filter(|name| !name.is_empty()) {
        if !at.is_object() {
            *at = Value::Object(serde_json::Map::new());
        }
        at = &mut at[name];
    }
    *at = new;
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_lead_to_values() {
        let value = json!({
            "spec": {"size": 2, "list": [{"a": 1}, {"a": 2}], "a.b": "dotted"},
            "status": {"conditions": [{"type": "Other", "status": "x"}, {"type": "Ready", "status": "True"}]},
        });
        let texts = |path: &str| {
            let path = Path::parse(path).expect(path);
            path.find(&value).into_iter().map(shown).collect::<Vec<_>>()
        };
        assert_eq!(texts(".spec.size"), ["2"]);
        assert_eq!(texts("{.spec.list[1].a}"), ["2"]);
        assert_eq!(texts(".spec.list[-1].a"), ["2"]);
        assert_eq!(texts(".spec.list[*].a"), ["1", "2"]);
        assert_eq!(texts(r".spec.a\.b"), ["dotted"]);
        assert_eq!(texts(".spec['a.b']"), ["dotted"]);
        assert_eq!(texts(r#".status.conditions[?(@.type=="Ready")].status"#), ["True"]);
        assert_eq!(texts(".nothing.here"), Vec::<String>::new());
        assert_eq!(Path::parse(".spec.list["), None);
    }

    #[test]
    fn plain_paths_are_read_and_written() {
        let mut value = json!({"spec": {"n": 1}});
        set_plain(&mut value, ".spec.deep.er", 3.into());
        assert_eq!(plain(&value, ".spec.deep.er"), Some(&json!(3)));
        assert_eq!(plain(&value, ".spec.x"), None);
    }
}
