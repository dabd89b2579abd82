//! Whole objects inside of a custom one (`x-kubernetes-embedded-resource`): what they say of their type and their metadata
//! is what every object says.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use krate_api::names::{NameRule, is_dns1035_label};
use krate_api::schema::{built_in, check as check_type, complete};
use krate_api::{FieldErrors, FieldPath, Scope, meta};
use serde_json::{Map, Value};

use super::prune::{EMBEDDED, additional, says};

/// The schema of what an object holds under a name, and whether it lists that name.
fn inner_schema<'s>(schema: &'s Value, name: &str) -> Option<(&'s Value, bool)> {
    let named = schema.get("properties").and_then(|fields| fields.get(name));
    named.map(|inner| (inner, true)).or_else(|| additional(schema).map(|inner| (inner, false)))
}

fn place(at: &FieldPath, name: &str, named: bool) -> FieldPath {
    if named { at.child(name) } else { at.key(name) }
}

/// The metadata of an embedded object; why it is none, in the words of Go's decoder.
fn metadata_of(said: &Value) -> Result<ObjectMeta, String> {
    if said.is_null() {
        return Ok(ObjectMeta::default());
    }
    let mut said = said.clone();
    if let Some(kind) = built_in().named("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta") {
        let checked = check_type(said.to_string().as_bytes(), kind).map_err(|error| error.to_string())?;
        if let Some(why) = checked.type_error {
            return Err(why);
        }
        complete(&mut said, kind);
    }
    serde_json::from_value(said).map_err(|error| error.to_string())
}

/// Brings the metadata of embedded objects into its form: fields that no metadata has go. What is no metadata stays, for
/// what is stored must be readable; in a request it is refused by [`check`].
pub fn coerce(fields: &mut Map<String, Value>, schema: &Value) {
    if says(schema, EMBEDDED)
        && let Some(said) = fields.get_mut("metadata")
        && let Ok(read) = metadata_of(said)
    {
        *said = serde_json::to_value(read).unwrap_or_default();
    }
    for (name, value) in fields.iter_mut() {
        if let Some((inner, _)) = inner_schema(schema, name) {
            coerce_value(value, inner);
        }
    }
}

fn coerce_value(value: &mut Value, schema: &Value) {
    match value {
        Value::Object(fields) => coerce(fields, schema),
        Value::Array(items) => {
            let Some(inner) = schema.get("items") else { return };
            for item in items {
                coerce_value(item, inner);
            }
        }
        _ => {}
    }
}

/// Whether a schema has embedded objects at all.
pub fn has_any(schema: &Value) -> bool {
    let below = |inner: &Value| match inner {
        Value::Object(fields) => fields.values().any(has_any),
        inner => has_any(inner),
    };
    says(schema, EMBEDDED)
        || schema.get("properties").is_some_and(below)
        || schema.get("items").is_some_and(has_any)
        || additional(schema).is_some_and(has_any)
}

/// Checks what embedded objects say of their type and their metadata.
pub fn check(value: &Value, schema: &Value, at: &FieldPath, errors: &mut FieldErrors) {
    match value {
        Value::Object(fields) => {
            if says(schema, EMBEDDED) {
                one(fields, at, errors);
            }
            for (name, value) in fields {
                if let Some((inner, named)) = inner_schema(schema, name) {
                    check(value, inner, &place(at, name, named), errors);
                }
            }
        }
        Value::Array(items) => {
            let Some(inner) = schema.get("items") else { return };
            for (i, item) in items.iter().enumerate() {
                check(item, inner, &at.index(i), errors);
            }
        }
        _ => {}
    }
}

fn one(fields: &Map<String, Value>, at: &FieldPath, errors: &mut FieldErrors) {
    for name in ["apiVersion", "kind"] {
        let at = at.child(name);
        match fields.get(name) {
            None => errors.required(&at, ""),
            Some(Value::String(said)) if said.is_empty() => errors.invalid(&at, said, "must not be empty"),
            Some(Value::String(said)) if name == "kind" => {
                let wrong = is_dns1035_label(&said.to_lowercase());
                if !wrong.is_empty() {
                    let detail =
                        format!("may have mixed case, but should otherwise match: {}", wrong.join(","));
                    errors.invalid(&at, said, detail);
                }
            }
            Some(Value::String(said)) => {
                if said.matches('/').count() > 1 {
                    errors.invalid(&at, said, format!("unexpected GroupVersion string: {said}"));
                }
            }
            Some(other) => errors.invalid(&at, other, "must be a string"),
        }
    }
    let Some(said) = fields.get("metadata") else { return };
    let at = at.child("metadata");
    match metadata_of(said) {
        Err(why) => errors.invalid(&at, said, why),
        Ok(mut read) => {
            if read.name.as_deref().is_none_or(str::is_empty) {
                // It may be without a name.
                read.name = Some("fakename".to_owned());
            }
            let namespaced = read.namespace.as_deref().is_some_and(|namespace| !namespace.is_empty());
            let scope = if namespaced { Scope::Namespaced } else { Scope::Cluster };
            meta::validate_new(&read, scope, NameRule::PathSegment, &at, errors);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema() -> Value {
        json!({"properties": {"templates": {"type": "object", "additionalProperties": {
            "type": "object", EMBEDDED: true, "x-kubernetes-preserve-unknown-fields": true,
        }}}})
    }

    fn faults(template: Value) -> Vec<String> {
        let mut errors = FieldErrors::new();
        check(&json!({"templates": {"a": template}}), &schema(), &FieldPath::new(""), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_embedded_object_says_what_it_is() {
        assert_eq!(
            faults(json!({"spec": 1})),
            ["templates[a].apiVersion: Required value", "templates[a].kind: Required value"]
        );
        let good = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"labels": {"a": "b"}}});
        assert_eq!(faults(good), [""; 0]);
        let told = faults(json!({"apiVersion": "a/b/c", "kind": "", "metadata": {"name": "a/b"}}));
        assert_eq!(
            told,
            [
                r#"templates[a].apiVersion: Invalid value: "a/b/c": unexpected GroupVersion string: a/b/c"#,
                r#"templates[a].kind: Invalid value: "": must not be empty"#,
                r#"templates[a].metadata.name: Invalid value: "a/b": may not contain '/'"#,
            ]
        );
    }

    #[test]
    fn embedded_metadata_has_the_fields_of_metadata_alone() {
        let coerced = |metadata: Value| {
            let mut object = json!({"templates": {"a": {"metadata": metadata, "spec": {"x": 1}}}});
            coerce(object.as_object_mut().expect("an object"), &schema());
            object["templates"]["a"]["metadata"].take()
        };
        let said = json!({"name": "n", "odd": 1, "creationTimestamp": null});
        assert_eq!(coerced(said), json!({"name": "n"}));
        assert_eq!(coerced(json!({"labels": 1})), json!({"labels": 1}));
        let told = faults(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": 1}}));
        assert!(told[0].starts_with(r#"templates[a].metadata: Invalid value: {"labels":1}: "#), "{told:?}");
    }
}
