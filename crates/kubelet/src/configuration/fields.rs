//! The names of all of upstream's fields. Those that are maps, such as `evictionHard`, have keys of their users' own.

use serde_json::Value;

const FIELDS: &str = include_str!("fields.txt");

fn is_known(path: &str) -> bool {
    FIELDS.lines().any(|known| known == path)
}

/// Whether the names below this field are upstream's.
fn is_object(path: &str) -> bool {
    FIELDS.lines().any(|known| known.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}

/// The fields of a configuration that upstream does not have, as paths.
pub fn unknown(configuration: &Value) -> Vec<String> {
    let mut found = Vec::new();
    collect(configuration, "", "", &mut found);
    found
}

/// `name` is the path without, `shown` with the places in lists.
fn collect(value: &Value, name: &str, shown: &str, found: &mut Vec<String>) {
    let below = |parent: &str, key: &str| {
        if parent.is_empty() { key.to_owned() } else { format!("{parent}.{key}") }
    };
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let (name, shown) = (below(name, key), below(shown, key));
                if !is_known(&name) {
                    found.push(shown);
                } else if is_object(&name) {
                    collect(value, &name, &shown, found);
                }
            }
        }
        Value::Array(items) => {
            for (place, item) in items.iter().enumerate() {
                collect(item, name, &format!("{shown}[{place}]"), found);
            }
        }
        _ => {}
    }
}
