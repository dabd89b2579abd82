//! Lists that are sets or maps (`x-kubernetes-list-type`): no item is there twice.

use std::collections::HashMap;

use krate_api::{FieldErrors, FieldPath};
use serde_json::{Map, Value};

use super::prune::additional;

/// Checks all lists of a value, unless one was wrong already in what it was.
pub fn check(value: &Value, old: Option<&Value>, schema: &Value, errors: &mut FieldErrors) {
    let faults = |value: &Value| {
        let mut found = FieldErrors::new();
        check_at(value, schema, &FieldPath::new(""), &mut found);
        found
    };
    let found = faults(value);
    if !found.is_empty() && old.is_none_or(|old| faults(old).is_empty()) {
        errors.extend(found);
    }
}

/// Checks one value, wherever it stands.
pub fn check_at(value: &Value, schema: &Value, at: &FieldPath, errors: &mut FieldErrors) {
    match value {
        Value::Array(items) => {
            match schema.get("x-kubernetes-list-type").and_then(Value::as_str) {
                Some("set") => twice(items, at, errors),
                Some("map") => map(items, schema, at, errors),
                _ => {}
            }
            let Some(inner) = schema.get("items") else { return };
            for (i, item) in items.iter().enumerate() {
                check_at(item, inner, &at.index(i), errors);
            }
        }
        Value::Object(fields) => {
            let properties = schema.get("properties").and_then(Value::as_object);
            let additional = additional(schema);
            for (name, value) in fields {
                if let Some(inner) = additional {
                    check_at(value, inner, &at.key(name), errors);
                }
                if let Some(inner) = properties.and_then(|p| p.get(name)) {
                    check_at(value, inner, &at.child(name), errors);
                }
            }
        }
        _ => {}
    }
}

/// Tells of what is there more than once: of its second place, once.
fn twice(items: &[Value], at: &FieldPath, errors: &mut FieldErrors) {
    let mut times: HashMap<String, usize> = HashMap::with_capacity(items.len());
    for (i, item) in items.iter().enumerate() {
        let times = times.entry(item.to_string()).or_default();
        *times += 1;
        if *times == 2 {
            errors.duplicate(&at.index(i), item);
        }
    }
}

fn map(items: &[Value], schema: &Value, at: &FieldPath, errors: &mut FieldErrors) {
    if let Some(i) = items.iter().position(|item| !item.is_object() && !item.is_null()) {
        let detail = "must be an object for an array of list-type map";
        return errors.invalid(&at.index(i), &items[i], detail);
    }
    let keys = schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array);
    let names: Vec<&str> = keys.into_iter().flatten().filter_map(Value::as_str).collect();
    let key = |item: &Value| -> Value {
        let of = |name: &&str| Some(((*name).to_owned(), item.get(*name)?.clone()));
        Value::Object(names.iter().filter_map(of).collect::<Map<String, Value>>())
    };
    twice(&items.iter().map(key).collect::<Vec<_>>(), at, errors);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn faults(value: Value, old: Option<Value>) -> Vec<String> {
        let set = json!({"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}});
        let ports = json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["n", "p"],
            "items": {"type": "object", "properties": {"n": {"type": "integer"}}}});
        let schema = json!({"properties": {"set": set, "ports": ports,
            "sets": {"type": "object", "additionalProperties": set}}});
        let mut errors = FieldErrors::new();
        check(&value, old.as_ref(), &schema, &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_item_that_is_there_again_is_told_once() {
        assert_eq!(faults(json!({"set": ["a", "b", "a", "a"]}), None), [r#"set[2]: Duplicate value: "a""#]);
        assert_eq!(faults(json!({"sets": {"k": ["a", "a"]}}), None), [r#"sets[k][1]: Duplicate value: "a""#]);
        assert_eq!(
            faults(json!({"ports": [{"n": 1, "x": 1}, {"n": 2}, {"n": 1}, {}, null]}), None),
            [r#"ports[2]: Duplicate value: {"n":1}"#, "ports[4]: Duplicate value: {}"]
        );
        assert_eq!(
            faults(json!({"ports": [1]}), None),
            ["ports[0]: Invalid value: 1: must be an object for an array of list-type map"]
        );
        let old = json!({"set": ["a", "a"]});
        assert_eq!(faults(json!({"set": ["a", "a", "b"]}), Some(old)), [""; 0]);
    }
}
