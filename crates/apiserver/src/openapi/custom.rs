//! The types of custom resources, as their definitions describe them.
//!
//! Version 3 publishes a schema as it was given. Version 2 has no words for some of it, and clients of that version
//! refuse what they do not find there: it is told less, so that they let more pass.

use krate_api::docs::Docs;
use krate_api::{Gvk, Kind};
use serde_json::{Map, Value, json};

use super::types::{self, Form};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const PRESERVE: &str = "x-kubernetes-preserve-unknown-fields";
const EMBEDDED: &str = "x-kubernetes-embedded-resource";
const INT_OR_STRING: &str = "x-kubernetes-int-or-string";

/// A served version of a custom kind, with the schema of its definition.
#[derive(Clone, Debug)]
pub(crate) struct Custom {
    pub kind: &'static Kind,
    pub schema: Value,
}

/// Whether a kind is of the vocabulary, or of a definition.
pub(super) fn is_custom(kind: Gvk<'_>) -> bool {
    krate_api::kinds::ALL.iter().all(|known| known.group != kind.group)
}

/// `com.example.stable.v1.CronTab`: the group's name from behind, as packages are named.
pub(super) fn name(kind: Gvk<'_>) -> String {
    let mut parts: Vec<&str> = kind.group.split('.').rev().collect();
    parts.extend([kind.version, kind.kind]);
    parts.join(".")
}

/// The types of built-in kinds that those of custom kinds refer to.
pub(super) fn refers_to() -> [String; 2] {
    ["ObjectMeta", "ListMeta"].map(|name| format!("{META}.{name}"))
}

/// The definitions of an object and of a list of them.
pub(super) fn definitions(custom: &Custom, form: Form, docs: &Docs) -> [(String, String); 2] {
    let (object, list) = (object(custom, form, docs), list(custom, form, docs));
    let list_kind = format!("{}List", custom.kind.kind);
    [
        (name(custom.kind.gvk()), object.to_string()),
        (name(Gvk { kind: &list_kind, ..custom.kind.gvk() }), list.to_string()),
    ]
}

fn object(custom: &Custom, form: Form, docs: &Docs) -> Value {
    let root = custom.schema.as_object().filter(|schema| !schema.is_empty());
    let hides = |schema: &Map<String, Value>| form == Form::V2 && says(schema, PRESERVE);
    let mut out = match root {
        // What says nothing of fields must name none: clients would refuse all others.
        None => Map::from_iter([("type".to_owned(), json!("object"))]),
        Some(schema) if hides(schema) => Map::from_iter([("type".to_owned(), json!("object"))]),
        Some(schema) => {
            let mut schema = schema.clone();
            publish(&mut schema, form, docs);
            add_type_meta(&mut schema, form, docs);
            schema
        }
    };
    out.insert("x-kubernetes-group-version-kind".to_owned(), json!([gvk(custom.kind, custom.kind.kind)]));
    Value::Object(out)
}

fn list(custom: &Custom, form: Form, docs: &Docs) -> Value {
    let kind = format!("{}List", custom.kind.kind);
    let items = reference(form, &name(custom.kind.gvk()), None);
    json!({
        "description": format!("{kind} is a list of {}", custom.kind.kind),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": text(types::described("", "apiVersion", docs)),
            "kind": text(types::described("", "kind", docs)),
            "metadata": reference(form, &format!("{META}.ListMeta"), docs.of("io.k8s.api.core.v1.PodList.metadata")),
            "items": {"description": format!("List of {}.", custom.kind.plural), "type": "array", "items": items},
        },
        "x-kubernetes-group-version-kind": [gvk(custom.kind, &kind)],
    })
}

fn gvk(row: &Kind, kind: &str) -> Value {
    json!({"group": row.group, "kind": kind, "version": row.version})
}

fn text(described: Option<&str>) -> Value {
    json!({"type": "string", "description": described.unwrap_or_default()})
}

/// In version 3 nothing may stand beside a reference.
fn reference(form: Form, name: &str, described: Option<&str>) -> Value {
    let to = json!({"$ref": format!("{}{name}", form.place())});
    match (form, described) {
        (_, None) => to,
        (Form::V2, Some(text)) => json!({"$ref": to["$ref"], "description": text}),
        (Form::V3, Some(text)) => json!({"allOf": [to], "description": text}),
    }
}

/// Gives a schema the fields that every object has.
fn add_type_meta(schema: &mut Map<String, Value>, form: Form, docs: &Docs) {
    let properties = schema.entry("properties").or_insert_with(|| json!({}));
    let Some(properties) = properties.as_object_mut() else { return };
    for field in ["apiVersion", "kind"] {
        properties.insert(field.to_owned(), text(types::described("", field, docs)));
    }
    let described = docs.of("io.k8s.api.core.v1.Pod.metadata");
    properties.insert("metadata".to_owned(), reference(form, &format!("{META}.ObjectMeta"), described));
}

fn says(schema: &Map<String, Value>, what: &str) -> bool {
    schema.get(what) == Some(&Value::Bool(true))
}

fn is_nullable(schema: &Value) -> bool {
    schema.get("nullable") == Some(&Value::Bool(true))
}

/// Turns a schema into what is published of it, and those within it.
fn publish(schema: &mut Map<String, Value>, form: Form, docs: &Docs) {
    for word in ["example", "externalDocs", "id", "$schema", "definitions", "dependencies"] {
        schema.remove(word);
    }
    match form {
        Form::V2 => lessen(schema),
        Form::V3 if says(schema, INT_OR_STRING) && !schema.contains_key("anyOf") => {
            schema.insert("anyOf".to_owned(), json!([{"type": "integer"}, {"type": "string"}]));
        }
        Form::V3 => {}
    }
    let properties = schema.get_mut("properties").and_then(Value::as_object_mut);
    let inner = properties.into_iter().flat_map(|all| all.values_mut());
    inner.filter_map(Value::as_object_mut).for_each(|inner| publish(inner, form, docs));
    for within in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get_mut(within).and_then(Value::as_object_mut) {
            publish(inner, form, docs);
        }
    }
    if says(schema, EMBEDDED) && !(form == Form::V2 && says(schema, PRESERVE)) {
        add_type_meta(schema, form, docs);
        let required = schema.entry("required").or_insert_with(|| json!([]));
        if let Some(required) = required.as_array_mut() {
            for field in ["kind", "apiVersion"].map(Value::from) {
                if !required.contains(&field) {
                    required.push(field);
                }
            }
        }
    }
}

/// Takes out of a schema what version 2 does not have, and what its clients would misread.
fn lessen(schema: &mut Map<String, Value>) {
    for word in ["allOf", "oneOf", "anyOf", "not"] {
        schema.remove(word);
    }
    let nullable = schema.remove("nullable") == Some(Value::Bool(true));
    let preserves = says(schema, PRESERVE);
    if nullable || preserves {
        schema.remove("items");
        schema.remove("properties");
    }
    let kind = schema.get("type").and_then(Value::as_str).unwrap_or_default();
    let is_list_of_anything = kind == "array" && !schema.contains_key("items");
    if nullable || is_list_of_anything || (preserves && kind == "object") {
        schema.remove("type");
    }
    let may_be_null: Vec<Value> = match schema.get("properties").and_then(Value::as_object) {
        Some(all) => {
            all.iter().filter(|(_, s)| is_nullable(s)).map(|(name, _)| name.clone().into()).collect()
        }
        None => Vec::new(),
    };
    let all_may_be = schema.get("additionalProperties").is_some_and(is_nullable);
    if let Some(required) = schema.get_mut("required").and_then(Value::as_array_mut) {
        required.retain(|field| !all_may_be && !may_be_null.contains(field));
        if required.is_empty() {
            schema.remove("required");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published(schema: &Value, form: Form) -> Value {
        let mut schema = schema.as_object().cloned().expect("an object");
        publish(&mut schema, form, &Docs::shared());
        Value::Object(schema)
    }

    #[test]
    fn packages_are_named_from_behind() {
        let kind = Gvk { group: "stable.example.com", version: "v1", kind: "CronTab" };
        assert_eq!(name(kind), "com.example.stable.v1.CronTab");
        assert!(is_custom(kind));
        assert!(!is_custom(Gvk { group: "apps", version: "v1", kind: "Deployment" }));
    }

    #[test]
    fn version_3_says_what_the_definition_says() {
        let given = json!({"type": "object", "example": {}, "properties": {
            "size": {"type": "integer", "nullable": true, "default": 1},
            "port": {"x-kubernetes-int-or-string": true},
            "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}});
        let wanted = json!({"type": "object", "properties": {
            "size": {"type": "integer", "nullable": true, "default": 1},
            "port": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
            "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}});
        assert_eq!(published(&given, Form::V3), wanted);
    }

    #[test]
    fn version_2_lets_pass_what_it_cannot_say() {
        let given = json!({"type": "object", "required": ["size", "name"], "oneOf": [{}], "properties": {
            "name": {"type": "string", "pattern": "a"},
            "size": {"type": "integer", "nullable": true},
            "list": {"type": "array", "nullable": true, "items": {"type": "string"}},
            "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
                "properties": {"a": {"type": "string"}}}}});
        let wanted = json!({"type": "object", "required": ["name"], "properties": {
            "name": {"type": "string", "pattern": "a"},
            "size": {},
            "list": {},
            "any": {"x-kubernetes-preserve-unknown-fields": true}}});
        assert_eq!(published(&given, Form::V2), wanted);
    }
}
