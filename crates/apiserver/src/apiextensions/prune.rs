//! What a schema makes of an object before it is looked at: fields that it does not have go, fields that are not there
//! get their defaults (upstream's structural `pruning` and `defaulting`).

use serde_json::{Map, Value};

pub const PRESERVE: &str = "x-kubernetes-preserve-unknown-fields";
pub const EMBEDDED: &str = "x-kubernetes-embedded-resource";

pub fn says(schema: &Value, what: &str) -> bool {
    schema.get(what) == Some(&Value::Bool(true))
}

/// The schema of what an object holds under a name that it does not list.
pub fn additional(schema: &Value) -> Option<&Value> {
    schema.get("additionalProperties").filter(|a| a.is_object() || **a == Value::Bool(true))
}

/// Takes away the fields that the schema does not have. `top`: the fields that every object has are there without being
/// named.
pub fn prune(fields: &mut Map<String, Value>, schema: &Value, top: bool) {
    let properties = schema.get("properties").and_then(Value::as_object);
    let (preserve, additional) = (says(schema, PRESERVE), additional(schema));
    fields.retain(|name, value| {
        if top && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
            return true;
        }
        if let Some(inner) = properties.and_then(|p| p.get(name)) {
            prune_value(value, inner);
        } else if let Some(inner) = additional {
            prune_value(value, inner);
        } else {
            return preserve;
        }
        true
    });
}

fn prune_value(value: &mut Value, schema: &Value) {
    match value {
        Value::Object(fields) => prune(fields, schema, says(schema, EMBEDDED)),
        Value::Array(items) if says(schema, PRESERVE) => {
            let Some(inner) = schema.get("items") else { return };
            for item in items {
                kept(item, inner);
            }
        }
        Value::Array(items) => {
            let none = Value::Null;
            let inner = schema.get("items").unwrap_or(&none);
            for item in items {
                prune_value(item, inner);
            }
        }
        _ => {}
    }
}

/// An item of a list that keeps what it does not know: only what its own schema names is looked at closer.
fn kept(value: &mut Value, schema: &Value) {
    match value {
        Value::Object(fields) => {
            let properties = schema.get("properties").and_then(Value::as_object);
            let additional = additional(schema);
            for (name, value) in fields.iter_mut() {
                if says(schema, EMBEDDED) && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
                    continue;
                }
                if let Some(inner) = properties.and_then(|p| p.get(name)).or(additional) {
                    prune_value(value, inner);
                }
            }
        }
        Value::Array(items) => {
            let Some(inner) = schema.get("items") else { return };
            for item in items {
                kept(item, inner);
            }
        }
        _ => {}
    }
}

/// Takes away the fields that are null, may not be and have no default: to say nothing of a field is the same.
pub fn prune_nulls(fields: &mut Map<String, Value>, schema: &Value) {
    let properties = schema.get("properties").and_then(Value::as_object);
    let additional = additional(schema).filter(|a| a.is_object());
    fields.retain(|name, value| {
        let Some(inner) = properties.and_then(|p| p.get(name)).or(additional) else { return true };
        prune_nulls_in(value, inner);
        !value.is_null() || says(inner, "nullable") || inner.get("default").is_some()
    });
}

fn prune_nulls_in(value: &mut Value, schema: &Value) {
    match value {
        Value::Object(fields) => prune_nulls(fields, schema),
        Value::Array(items) => {
            let Some(inner) = schema.get("items") else { return };
            for item in items {
                prune_nulls_in(item, inner);
            }
        }
        _ => {}
    }
}

/// Fills what is not there, and what is null and may not be, by the schema's defaults.
pub fn default(fields: &mut Map<String, Value>, schema: &Value) {
    let properties = schema.get("properties").and_then(Value::as_object);
    for (name, inner) in properties.into_iter().flatten() {
        if let Some(wanted) = inner.get("default")
            && !fields.contains_key(name)
        {
            fields.insert(name.clone(), wanted.clone());
        }
    }
    let additional = additional(schema);
    for (name, value) in fields.iter_mut() {
        if let Some(inner) = properties.and_then(|p| p.get(name)).or(additional) {
            default_value(value, inner);
        }
    }
}

fn default_value(value: &mut Value, schema: &Value) {
    if value.is_null()
        && !says(schema, "nullable")
        && let Some(wanted) = schema.get("default")
    {
        *value = wanted.clone();
    }
    match value {
        Value::Object(fields) => default(fields, schema),
        Value::Array(items) => {
            let Some(inner) = schema.get("items") else { return };
            for item in items {
                default_value(item, inner);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().cloned().expect("an object")
    }

    #[test]
    fn fields_without_a_schema_go_and_those_that_are_to_be_kept_stay() {
        let schema = json!({"properties": {
            "spec": {"properties": {
                "any": {"type": "object", PRESERVE: true, "properties": {"known": {"type": "object"}}},
                "map": {"additionalProperties": {"properties": {"a": {}}}},
                "list": {"items": {"properties": {"n": {}}}},
                "pod": {EMBEDDED: true, "properties": {"spec": {PRESERVE: true}}},
            }},
        }});
        let mut fields = object(json!({
            "kind": "K", "other": 1,
            "spec": {
                "x": 1, "any": {"y": {"z": 1}, "known": {"gone": 1}}, "map": {"k": {"a": 1, "b": 2}},
                "list": [{"n": 1, "m": 2}], "pod": {"kind": "Pod", "metadata": {"name": "p"}, "spec": {"q": 1}, "r": 1},
            },
        }));
        prune(&mut fields, &schema, true);
        assert_eq!(
            Value::Object(fields),
            json!({
                "kind": "K",
                "spec": {
                    "any": {"y": {"z": 1}, "known": {}}, "map": {"k": {"a": 1}}, "list": [{"n": 1}],
                    "pod": {"kind": "Pod", "metadata": {"name": "p"}, "spec": {"q": 1}},
                },
            })
        );
    }

    #[test]
    fn what_is_kept_unknown_may_be_a_list() {
        let schema = json!({"properties": {
            "any": {PRESERVE: true},
            "list": {"type": "array", PRESERVE: true, "items": {"type": "object", "properties": {
                "known": {"type": "object", "properties": {"a": {}}},
            }}},
        }});
        let said =
            json!({"any": [{"a": 1}, [{"b": {"c": 2}}]], "list": [{"x": 1, "known": {"a": 1, "b": 2}}]});
        let mut fields = object(said);
        prune(&mut fields, &schema, true);
        assert_eq!(
            Value::Object(fields),
            json!({"any": [{"a": 1}, [{"b": {"c": 2}}]], "list": [{"x": 1, "known": {"a": 1}}]})
        );
    }

    #[test]
    fn a_null_that_may_not_be_is_as_good_as_nothing() {
        let schema = json!({"properties": {
            "s": {"type": "string"}, "may": {"type": "string", "nullable": true},
            "filled": {"type": "string", "default": "d"}, "free": {"type": "object", PRESERVE: true},
            "map": {"additionalProperties": {"type": "string"}},
            "list": {"items": {"type": "object", "properties": {"n": {"type": "integer"}}}},
        }});
        let said = json!({"s": null, "may": null, "filled": null, "free": {"x": null}, "map": {"a": null, "b": "c"},
            "list": [null, {"n": null}]});
        let mut fields = object(said);
        prune_nulls(&mut fields, &schema);
        assert_eq!(
            Value::Object(fields),
            json!({"may": null, "filled": null, "free": {"x": null}, "map": {"b": "c"}, "list": [null, {}]})
        );
    }

    #[test]
    fn defaults_fill_what_is_missing_and_go_into_what_they_fill() {
        let schema = json!({"properties": {
            "a": {"default": {}, "properties": {"b": {"default": 1}, "n": {"default": 2, "nullable": true}}},
            "list": {"items": {"properties": {"p": {"default": "TCP"}}}},
        }});
        let mut fields = object(json!({"list": [{}, {"p": "UDP"}]}));
        default(&mut fields, &schema);
        assert_eq!(
            Value::Object(fields),
            json!({"a": {"b": 1, "n": 2}, "list": [{"p": "TCP"}, {"p": "UDP"}]})
        );
        let schema = json!({
            "properties": {"list": {"items": {"type": "string", "default": "d"}}},
            "additionalProperties": {"type": "object", "default": {}, "properties": {"x": {"default": 1}}},
        });
        let mut fields = object(json!({"list": [null, "a"], "other": null}));
        default(&mut fields, &schema);
        assert_eq!(Value::Object(fields), json!({"list": ["d", "a"], "other": {"x": 1}}));
    }

    #[test]
    fn what_may_be_null_stays_so() {
        let schema = json!({"properties": {
            "a": {"properties": {"b": {"default": 1}, "n": {"default": 2, "nullable": true}}},
        }});
        let mut fields = object(json!({"a": {"b": null, "n": null}}));
        default(&mut fields, &schema);
        assert_eq!(Value::Object(fields), json!({"a": {"b": 1, "n": null}}));
    }
}
