//! Checks values against an OpenAPI v3 schema, with upstream's messages: what an object of a custom kind may be.

use krate_api::field::{Fault, FieldError};
use krate_api::{FieldErrors, FieldPath};
use regex::Regex;
use serde_json::Value;

use super::prune::says;
use super::rules::counterpart;
use crate::formats;

/// What upstream says of rules that it did not come to, beside other faults.
pub const UNCHECKED: &str = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";

/// Whether faults leave rules in CEL nothing to go by: the object may not be what its schema says.
pub fn blocks_rules(errors: &FieldErrors) -> bool {
    let blocking = [Fault::NotSupported, Fault::Required, Fault::TooLong, Fault::TooMany, Fault::TypeInvalid];
    errors.iter().any(|error| blocking.contains(&error.fault))
}

/// Checks an object. What was wrong in `old` already, and is the same, is let through (KEP-4008).
pub fn check(value: &Value, old: Option<&Value>, schema: &Value, errors: &mut FieldErrors) {
    check_at(value, old, schema, &FieldPath::new(""), errors);
}

/// Checks that lists which are sets or maps have no item twice, unless one had already.
pub fn check_all_lists(value: &Value, old: Option<&Value>, schema: &Value, errors: &mut FieldErrors) {
    let faults = |value: &Value| {
        let mut found = FieldErrors::new();
        check_lists(value, schema, &FieldPath::new(""), &mut found);
        found
    };
    if old.is_none_or(|old| faults(old).is_empty()) {
        errors.extend(faults(value));
    }
}

/// Checks one value, wherever it stands, unless it is what it was.
pub fn check_at(
    value: &Value,
    old: Option<&Value>,
    schema: &Value,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    if old == Some(value) {
        return;
    }
    if value.is_null() && says(schema, "nullable") {
        return;
    }
    if !is_of_type(value, schema, at, errors) {
        return;
    }
    let invalid = |detail: String, errors: &mut FieldErrors| errors.invalid(at, value, detail);
    match value {
        Value::Number(_) => number(value, schema, at, errors),
        Value::String(text) => string(text, schema, at, errors),
        Value::Array(items) => {
            array(items, schema, at, errors);
            if let Some(inner) = schema.get("items") {
                for (i, item) in items.iter().enumerate() {
                    let before = old.and_then(|old| counterpart(item, old, schema));
                    check_at(item, before, inner, &at.index(i), errors);
                }
            }
        }
        Value::Object(_) => object(value, old, schema, at, errors),
        Value::Bool(_) | Value::Null => {}
    }
    if let Some(allowed) = schema.get("enum").and_then(Value::as_array)
        && !allowed.contains(value)
    {
        let words: Vec<String> = allowed.iter().map(super::jsonpath::shown).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        errors.not_supported(at, value, &words);
    }
    let passes = |schema: &Value| {
        let mut inner = FieldErrors::new();
        check_at(value, None, schema, at, &mut inner);
        inner.is_empty()
    };
    let named = if at.as_str().is_empty() { "<nil>" } else { at.as_str() };
    let alternatives = |name: &str| schema.get(name).and_then(Value::as_array);
    if let Some(all) = alternatives("anyOf")
        && !all.iter().any(passes)
    {
        invalid(format!("{named:?} must validate at least one schema (anyOf)"), errors);
    }
    if let Some(all) = alternatives("oneOf") {
        match all.iter().filter(|inner| passes(inner)).count() {
            1 => {}
            0 => invalid(
                format!("{named:?} must validate one and only one schema (oneOf). Found none valid"),
                errors,
            ),
            n => invalid(
                format!(
                    "{named:?} must validate one and only one schema (oneOf). Found {n} valid alternatives"
                ),
                errors,
            ),
        }
    }
    if let Some(all) = alternatives("allOf") {
        for inner in all {
            check_at(value, None, inner, at, errors);
        }
    }
    if let Some(inner) = schema.get("not")
        && passes(inner)
    {
        invalid(format!("{named:?} must not validate the schema (not)"), errors);
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() && n.as_f64().is_some_and(|n| n.fract() != 0.0) => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn is_of_type(value: &Value, schema: &Value, at: &FieldPath, errors: &mut FieldErrors) -> bool {
    let found = type_of(value);
    let wanted = match schema.get("type").and_then(Value::as_str) {
        _ if says(schema, "x-kubernetes-int-or-string") => {
            if matches!(found, "integer" | "string") {
                return true;
            }
            "integer,string"
        }
        None | Some("") => return true,
        Some("number") if found == "integer" => return true,
        Some(wanted) if wanted == found => return true,
        Some(wanted) => wanted,
    };
    let shown = format!("{found:?}");
    errors.push(FieldError {
        fault: Fault::TypeInvalid,
        field: at.clone(),
        detail: format!("{at} in body must be of type {wanted}: {shown}"),
        value: Some(shown),
    });
    false
}

/// A number as Go shows it: a whole one without a fraction.
fn told(number: &Value) -> String {
    number.as_f64().map_or_else(|| number.to_string(), |n| n.to_string())
}

fn number(value: &Value, schema: &Value, at: &FieldPath, errors: &mut FieldErrors) {
    let (Some(n), limit) = (value.as_f64(), |name: &str| schema.get(name).filter(|l| l.is_number())) else {
        return;
    };
    let of = |limit: &Value| limit.as_f64().unwrap_or_default();
    if let Some(max) = limit("maximum") {
        if says(schema, "exclusiveMaximum") && n >= of(max) {
            errors.invalid(at, value, format!("{at} in body should be less than {}", told(max)));
        } else if n > of(max) {
            errors.invalid(at, value, format!("{at} in body should be less than or equal to {}", told(max)));
        }
    }
    if let Some(min) = limit("minimum") {
        if says(schema, "exclusiveMinimum") && n <= of(min) {
            errors.invalid(at, value, format!("{at} in body should be greater than {}", told(min)));
        } else if n < of(min) {
            errors.invalid(
                at,
                value,
                format!("{at} in body should be greater than or equal to {}", told(min)),
            );
        }
    }
    if let Some(step) = limit("multipleOf") {
        let times = n / of(step);
        if (times - times.round()).abs() > 1e-9 {
            errors.invalid(at, value, format!("{at} in body should be a multiple of {}", told(step)));
        }
    }
}

fn count(schema: &Value, name: &str) -> Option<usize> {
    schema.get(name).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok())
}

fn string(text: &str, schema: &Value, at: &FieldPath, errors: &mut FieldErrors) {
    let length = text.chars().count();
    if let Some(max) = count(schema, "maxLength").filter(|max| length > *max) {
        errors.too_long(at, max);
    }
    if let Some(min) = count(schema, "minLength").filter(|min| length < *min) {
        errors.invalid(at, text, format!("{at} in body should be at least {min} chars long"));
    }
    if let Some(pattern) = schema.get("pattern").and_then(Value::as_str)
        && Regex::new(pattern).is_ok_and(|pattern| !pattern.is_match(text))
    {
        errors.invalid(at, text, format!("{at} in body should match '{pattern}'"));
    }
    let kind = schema.get("type").and_then(Value::as_str).unwrap_or_default();
    if let Some(format) = schema.get("format").and_then(Value::as_str)
        && matches!(kind, "" | "string")
        && !formats::is_of(text, format)
    {
        let shown = format!("{text:?}");
        errors.push(FieldError {
            fault: Fault::TypeInvalid,
            field: at.clone(),
            detail: format!("{at} in body must be of type {format}: {shown}"),
            value: Some(shown),
        });
    }
}

fn array(items: &[Value], schema: &Value, at: &FieldPath, errors: &mut FieldErrors) {
    if let Some(max) = count(schema, "maxItems").filter(|max| items.len() > *max) {
        errors.too_many(at, items.len(), max);
    }
    if let Some(min) = count(schema, "minItems").filter(|min| items.len() < *min) {
        errors.invalid(at, items.len(), format!("{at} in body should have at least {min} items"));
    }
}

fn object(value: &Value, old: Option<&Value>, schema: &Value, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(fields) = value.as_object() else { return };
    if let Some(max) = count(schema, "maxProperties").filter(|max| fields.len() > *max) {
        errors.too_many(at, fields.len(), max);
    }
    if let Some(min) = count(schema, "minProperties").filter(|min| fields.len() < *min) {
        errors.invalid(at, fields.len(), format!("{at} in body should have at least {min} properties"));
    }
    for name in
        schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
    {
        if !fields.contains_key(name) {
            errors.required(&at.child(name), "");
        }
    }
    let properties = schema.get("properties").and_then(Value::as_object);
    let additional = super::prune::additional(schema);
    for (name, value) in fields {
        if let Some(inner) = properties.and_then(|p| p.get(name)).or(additional) {
            let before = old.and_then(|old| old.get(name));
            check_at(value, before, inner, &at.child(name), errors);
        }
    }
}

/// Lists that are sets or maps have no item twice.
pub fn check_lists(value: &Value, schema: &Value, at: &FieldPath, errors: &mut FieldErrors) {
    match value {
        Value::Array(items) => {
            let none = Value::Null;
            let inner = schema.get("items").unwrap_or(&none);
            let kind = schema.get("x-kubernetes-list-type").and_then(Value::as_str).unwrap_or_default();
            let keys: Vec<&str> = schema
                .get("x-kubernetes-list-map-keys")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            let key = |item: &Value| match kind {
                "map" => keys.iter().filter_map(|k| Some(((*k).to_owned(), item.get(k)?.clone()))).collect(),
                _ => item.clone(),
            };
            if matches!(kind, "set" | "map") {
                let mut seen: Vec<Value> = Vec::new();
                for (i, item) in items.iter().enumerate() {
                    let key = key(item);
                    if seen.contains(&key) {
                        errors.duplicate(&at.index(i), &key);
                    } else {
                        seen.push(key);
                    }
                }
            }
            for (i, item) in items.iter().enumerate() {
                check_lists(item, inner, &at.index(i), errors);
            }
        }
        Value::Object(fields) => {
            let properties = schema.get("properties").and_then(Value::as_object);
            let additional = super::prune::additional(schema);
            for (name, value) in fields {
                if let Some(inner) = properties.and_then(|p| p.get(name)).or(additional) {
                    check_lists(value, inner, &at.child(name), errors);
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn faults(value: Value, schema: Value) -> Vec<String> {
        let mut errors = FieldErrors::new();
        check(&value, None, &schema, &mut errors);
        check_all_lists(&value, None, &schema, &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn values_are_refused_in_upstreams_words() {
        let schema = json!({"properties": {"spec": {"type": "object", "required": ["size"], "properties": {
            "size": {"type": "integer", "minimum": 1, "maximum": 10},
            "color": {"type": "string", "enum": ["red", "blue"]},
            "at": {"type": "string", "format": "date-time"},
            "name": {"type": "string", "pattern": "^a", "minLength": 2, "maxLength": 3},
            "tags": {"type": "array", "x-kubernetes-list-type": "set", "maxItems": 2, "items": {"type": "string"}},
            "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["n"],
                "items": {"type": "object", "properties": {"n": {"type": "integer"}}}},
            "ios": {"x-kubernetes-int-or-string": true},
            "one": {"oneOf": [{"type": "string"}, {"type": "integer"}]},
        }}}});
        let cases = [
            (json!({}), vec!["spec.size: Required value"]),
            (
                json!({"size": 0}),
                vec!["spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1"],
            ),
            (
                json!({"size": "2"}),
                vec![
                    r#"spec.size: Invalid value: "string": spec.size in body must be of type integer: "string""#,
                ],
            ),
            (
                json!({"size": 1, "color": "green"}),
                vec![r#"spec.color: Unsupported value: "green": supported values: "red", "blue""#],
            ),
            (
                json!({"size": 1, "at": "x"}),
                vec![r#"spec.at: Invalid value: "x": spec.at in body must be of type date-time: "x""#],
            ),
            (
                json!({"size": 1, "name": "bbbb"}),
                vec![
                    "spec.name: Too long: may not be more than 3 bytes",
                    r#"spec.name: Invalid value: "bbbb": spec.name in body should match '^a'"#,
                ],
            ),
            (json!({"size": 1, "tags": ["a", "a"]}), vec![r#"spec.tags[1]: Duplicate value: "a""#]),
            (
                json!({"size": 1, "ports": [{"n": 1}, {"n": 1}]}),
                vec![r#"spec.ports[1]: Duplicate value: {"n":1}"#],
            ),
            (json!({"size": 1, "ios": "5%", "one": "x"}), vec![]),
            (
                json!({"size": 1, "one": true}),
                vec![
                    r#"spec.one: Invalid value: true: "spec.one" must validate one and only one schema (oneOf). Found none valid"#,
                ],
            ),
        ];
        for (spec, wanted) in cases {
            assert_eq!(faults(json!({"spec": spec}), schema.clone()), wanted, "{spec}");
        }
    }

    #[test]
    fn what_was_wrong_before_and_is_the_same_is_let_through() {
        let schema = json!({"type": "object", "properties": {
            "n": {"type": "integer", "maximum": 5}, "s": {"type": "string"},
            "list": {"type": "array", "items": {"type": "integer", "maximum": 5}},
            "map": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                "items": {"type": "object", "properties": {"k": {"type": "string"}, "n": {"type": "integer", "maximum": 5}}}},
        }});
        let told = |new: Value, old: Value| -> Vec<String> {
            let mut errors = FieldErrors::new();
            check(&new, Some(&old), &schema, &mut errors);
            check_all_lists(&new, Some(&old), &schema, &mut errors);
            errors.iter().map(|e| e.field.as_str().to_owned()).collect()
        };
        let none = [""; 0];
        assert_eq!(told(json!({"n": 9, "s": "b"}), json!({"n": 9, "s": "a"})), none);
        assert_eq!(told(json!({"n": 8}), json!({"n": 9})), ["n"]);
        // Items of a plain list are told apart by nothing.
        assert_eq!(told(json!({"list": [9], "s": "b"}), json!({"list": [9]})), none);
        assert_eq!(told(json!({"list": [9, 1]}), json!({"list": [9]})), ["list[0]"]);
        let item = |k: &str, n: i64| json!({"k": k, "n": n});
        let old = json!({"map": [item("a", 9), item("b", 1)]});
        assert_eq!(told(json!({"map": [item("b", 2), item("a", 9)]}), old.clone()), none);
        assert_eq!(told(json!({"map": [item("a", 8)]}), old), ["map[0].n"]);
        let twice = json!({"map": [item("a", 1), item("a", 2)]});
        assert_eq!(told(json!({"map": [item("a", 1), item("a", 3)]}), twice), none);
    }
}
