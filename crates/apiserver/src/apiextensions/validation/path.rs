//! Paths to a field of a schema: `.spec.size`, `.spec['a.b']`.

use serde_json::Value;

/// The tokens of a path: dots, brackets and what stands between them; a quoted name is one.
fn tokens(path: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let mut rest = path;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '.' | '[' | ']' => 1,
            '\'' => {
                let end = rest
                    .bytes()
                    .enumerate()
                    .skip(1)
                    .find(|(i, b)| *b == b'\'' && rest.as_bytes()[i - 1] != b'\\');
                end.map_or(rest.len(), |(i, _)| i + 1)
            }
            _ => rest.find(['.', '[', ']']).unwrap_or(rest.len()),
        };
        let (token, after) = rest.split_at(length);
        out.push(token);
        rest = after;
    }
    out
}

fn unescaped(text: &str) -> Result<String, String> {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('n') => out.push('\n'),
                Some('r') => out.push('\r'),
                Some('t') => out.push('\t'),
                Some(c @ ('\\' | '\'' | '"')) => out.push(c),
                _ => return Err("invalid string literal: invalid syntax".to_owned()),
            },
            c => out.push(c),
        }
    }
    Ok(out)
}

/// Where a path leads in a schema: its name, and the schema there.
///
/// # Errors
/// It leads nowhere, or is none.
pub fn within<'s>(path: &str, schema: &'s Value, brackets: bool) -> Result<(String, &'s Value), String> {
    let nowhere = || "does not refer to a valid field".to_owned();
    let ends = || "unexpected end of JSON path".to_owned();
    let (mut named, mut at) = (String::new(), schema);
    let mut tokens = tokens(path).into_iter();
    while let Some(token) = tokens.next() {
        let name = match token {
            "[" if !brackets => return Err("array notation is not allowed".to_owned()),
            "[" => {
                let quoted = tokens.next().ok_or_else(ends)?;
                let inside = quoted.strip_prefix('\'').and_then(|q| q.strip_suffix('\''));
                let inside = inside.filter(|_| quoted.len() > 1);
                let inside =
                    inside.ok_or_else(|| format!("expected single quoted string but got {quoted}"))?;
                let name = unescaped(inside)?;
                match tokens.next() {
                    Some("]") => name,
                    Some(other) => return Err(format!("expected ] but got {other}")),
                    None => return Err(ends()),
                }
            }
            "." => tokens.next().ok_or_else(ends)?.to_owned(),
            other => return Err(format!("expected [ or . but got: {other}")),
        };
        if let Some(fields) = at.get("properties").and_then(Value::as_object) {
            at = fields.get(&name).ok_or_else(nowhere)?;
            if !named.is_empty() {
                named.push('.');
            }
            named.push_str(&name);
        } else {
            at = at.get("additionalProperties").filter(|a| a.is_object()).ok_or_else(nowhere)?;
            named = format!("{named}[{name}]");
        }
    }
    Ok((named, at))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_path_leads_to_a_field_of_the_schema() {
        let schema = json!({"properties": {"spec": {"properties": {
            "size": {"type": "integer"}, "a.b": {"type": "string"},
            "map": {"additionalProperties": {"type": "boolean"}},
        }}}});
        for (path, wanted) in [
            (".spec.size", Ok("spec.size")),
            (".spec['a.b']", Ok("spec.a.b")),
            (".spec.map.x", Ok("spec.map[x]")),
            (".spec.other", Err("does not refer to a valid field")),
            ("spec", Err("expected [ or . but got: spec")),
            (".spec[0]", Err("expected single quoted string but got 0")),
            (".spec.", Err("unexpected end of JSON path")),
        ] {
            let found = within(path, &schema, true).map(|(name, _)| name);
            assert_eq!(found.as_deref().map_err(String::as_str), wanted, "{path}");
        }
        assert_eq!(
            within(".spec['a']", &schema, false).err().as_deref(),
            Some("array notation is not allowed")
        );
    }
}
