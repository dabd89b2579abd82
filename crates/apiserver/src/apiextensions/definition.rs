//! What the schemas of a definition must be: structural (upstream's `structural schema` rules), with defaults that they
//! themselves allow.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use krate_api::{FieldErrors, FieldPath};
use serde_json::Value;

use super::prune::{PRESERVE, says};
use super::{rules, values};

/// What a part of a schema describes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Root,
    Field,
    Item,
    Other,
}

/// Checks the schemas of all versions. `at` is the definition's spec.
pub fn check(definition: &CustomResourceDefinition, at: &FieldPath, errors: &mut FieldErrors) {
    let schemas: Vec<Option<Value>> = definition
        .spec
        .versions
        .iter()
        .map(|v| v.schema.as_ref()?.open_api_v3_schema.as_ref().and_then(|s| serde_json::to_value(s).ok()))
        .collect();
    // Upstream names one schema that all versions share as it was named before there were versions.
    if let Some(Some(one)) = schemas.first()
        && schemas.iter().all(|s| s.as_ref() == Some(one))
    {
        check_part(one, Part::Root, &at.child("validation").child("openAPIV3Schema"), errors);
        return;
    }
    for (i, schema) in schemas.iter().enumerate() {
        if let Some(schema) = schema {
            let at = at.child("versions").index(i).child("schema").child("openAPIV3Schema");
            check_part(schema, Part::Root, &at, errors);
        }
    }
}

fn check_part(schema: &Value, part: Part, at: &FieldPath, errors: &mut FieldErrors) {
    let kind = schema.get("type").and_then(Value::as_str).unwrap_or_default();
    let typeless = says(schema, "x-kubernetes-int-or-string") || says(schema, PRESERVE);
    match (part, kind) {
        (Part::Root, "") => errors.required(&at.child("type"), "must not be empty at the root"),
        (Part::Root, kind) if kind != "object" => {
            errors.invalid(&at.child("type"), kind, "must be object at the root");
        }
        (Part::Field, "") if !typeless => {
            errors.required(&at.child("type"), "must not be empty for specified object fields");
        }
        (Part::Item, "") if !typeless => {
            errors.required(&at.child("type"), "must not be empty for specified array items");
        }
        _ => {}
    }
    if schema.get(PRESERVE) == Some(&Value::Bool(false)) {
        errors.invalid(&at.child(PRESERVE), false, "must be true or undefined");
    }
    let items = schema.get("items");
    if kind == "array" && items.is_none() {
        errors.required(&at.child("items"), "must be specified");
    }
    list_type(schema, kind, at, errors);
    rules::check_said(schema, at, errors);
    for (name, inner) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        check_part(inner, Part::Field, &at.child("properties").key(name), errors);
    }
    if let Some(inner) = items {
        check_part(inner, Part::Item, &at.child("items"), errors);
    }
    if let Some(inner) = schema.get("additionalProperties").filter(|a| a.is_object()) {
        check_part(inner, Part::Field, &at.child("additionalProperties"), errors);
    }
    if schema.get("additionalProperties").is_some() && schema.get("properties").is_some() {
        errors.forbidden(
            &at.child("additionalProperties"),
            "additionalProperties and properties are mutual exclusive",
        );
    }
    if let Some(default) = schema.get("default") {
        default_is_valid(default, schema, &at.child("default"), errors);
    }
    for (name, part) in [("allOf", Part::Other), ("anyOf", Part::Other), ("oneOf", Part::Other)] {
        for (i, inner) in schema.get(name).and_then(Value::as_array).into_iter().flatten().enumerate() {
            forbidden_inside(inner, &at.child(name).index(i), errors);
            check_part(inner, part, &at.child(name).index(i), errors);
        }
    }
    if let Some(inner) = schema.get("not") {
        forbidden_inside(inner, &at.child("not"), errors);
        check_part(inner, Part::Other, &at.child("not"), errors);
    }
}

/// What an alternative may not say.
fn forbidden_inside(schema: &Value, at: &FieldPath, errors: &mut FieldErrors) {
    for name in ["description", "default", "type"] {
        let is_type_of_pattern = name == "type" && says(schema, "x-kubernetes-int-or-string");
        if schema.get(name).is_some() && !is_type_of_pattern {
            // Upstream allows the two types that an int-or-string has.
            let simple = matches!(schema.get("type").and_then(Value::as_str), Some("integer" | "string"));
            if name == "type" && simple {
                continue;
            }
            errors.forbidden(&at.child(name), "must be empty to be structural");
        }
    }
}

fn list_type(schema: &Value, kind: &str, at: &FieldPath, errors: &mut FieldErrors) {
    let list = schema.get("x-kubernetes-list-type").and_then(Value::as_str);
    let keys = schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array);
    if let Some(list) = list {
        if kind != "array" {
            errors.invalid(&at.child("type"), kind, "must be array if x-kubernetes-list-type is specified");
        }
        if !matches!(list, "atomic" | "set" | "map") {
            errors.not_supported(&at.child("x-kubernetes-list-type"), list, &["atomic", "map", "set"]);
        }
    }
    match (list, keys) {
        (Some("map"), None) => {
            errors.required(
                &at.child("x-kubernetes-list-map-keys"),
                "must not be empty if x-kubernetes-list-type is map",
            );
        }
        (Some("map"), Some(keys)) => {
            for (i, key) in keys.iter().enumerate() {
                let name = key.as_str().unwrap_or_default();
                if schema.pointer(&format!("/items/properties/{name}")).is_none() {
                    errors.invalid(
                        &at.child("x-kubernetes-list-map-keys").index(i),
                        name,
                        "entries must all be names of item properties",
                    );
                }
            }
        }
        (_, Some(keys)) if !keys.is_empty() => {
            errors.forbidden(
                &at.child("x-kubernetes-list-map-keys"),
                "must be empty if x-kubernetes-list-type is not map",
            );
        }
        _ => {}
    }
}

/// Faults of a default are told where the default stands, as upstream words them: without a path of their own.
fn default_is_valid(default: &Value, schema: &Value, at: &FieldPath, errors: &mut FieldErrors) {
    let mut found = FieldErrors::new();
    values::check_at(default, schema, &FieldPath::new(""), &mut found);
    for mut error in found.iter().cloned() {
        let inside = error.field.as_str().to_owned();
        error.field = if inside.is_empty() { at.clone() } else { at.child(&inside) };
        errors.push(error);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn faults(schema: Value) -> Vec<String> {
        let definition: CustomResourceDefinition = serde_json::from_value(json!({
            "metadata": {}, "spec": {
                "group": "example.com", "scope": "Namespaced", "names": {"plural": "x", "kind": "X"},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}],
            },
        }))
        .expect("a definition");
        let mut errors = FieldErrors::new();
        check(&definition, &FieldPath::new("spec"), &mut errors);
        errors.iter().map(|e| e.to_string().replace("spec.validation.openAPIV3Schema", "S")).collect()
    }

    #[test]
    fn schemas_are_structural() {
        let of = |inner: Value| json!({"type": "object", "properties": {"a": inner}});
        for (schema, wanted) in [
            (of(json!({"type": "string"})), vec![]),
            (of(json!({"x-kubernetes-int-or-string": true})), vec![]),
            (
                of(json!({})),
                vec!["S.properties[a].type: Required value: must not be empty for specified object fields"],
            ),
            (
                of(json!({"type": "string", "default": 1})),
                vec![
                    r#"S.properties[a].default: Invalid value: "integer":  in body must be of type string: "integer""#,
                ],
            ),
            (
                json!({"type": "array"}),
                vec![
                    r#"S.type: Invalid value: "array": must be object at the root"#,
                    "S.items: Required value: must be specified",
                ],
            ),
            (
                json!({"type": "object", PRESERVE: false}),
                vec![
                    "S.x-kubernetes-preserve-unknown-fields: Invalid value: false: must be true or undefined",
                ],
            ),
        ] {
            assert_eq!(faults(schema.clone()), wanted, "{schema}");
        }
    }
}
