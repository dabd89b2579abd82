//! What a mutation makes of an object: by a JSON patch, or by the fields that an apply configuration names.

use krate_api::managed;
use krate_api::patch::{JsonPatch, PatchError, merge};
use krate_api::schema::{ListKind, Node, TypeRef};
use serde_json::Value as Json;

use crate::cel::Value;

/// What an object becomes by a JSON patch; `None` if a test in it says that it is not for this object.
///
/// # Errors
/// It is no patch, or does not fit the object.
pub fn patched(object: &Json, made: &Value) -> Result<Option<Json>, String> {
    let operations = made.to_json().ok_or(
        "JSONPath valueExpression evaluated to a type that could not marshal to JSON: it has no JSON",
    )?;
    let told = |error: PatchError| format!("JSON Patch: {error}");
    let patch = JsonPatch::decode(operations.to_string().as_bytes()).map_err(told)?;
    let mut object = object.clone();
    match patch.apply(&mut object) {
        Ok(()) => Ok(Some(object)),
        Err(PatchError::DoesNotApply(why)) if why.starts_with("test ") => Ok(None),
        Err(error) => Err(told(error)),
    }
}

/// What an object becomes by an apply configuration. Lists are merged by their keys, where their schema has some.
///
/// # Errors
/// It names what an object of this type does not have, or a part of what is one whole.
pub fn applied(object: &Json, made: &Value, t: Option<TypeRef<'_>>) -> Result<Json, String> {
    let root = match made {
        Value::Map(map) => map.type_name.as_deref(),
        _ => None,
    };
    if root != Some("Object") {
        let kind = made.type_name();
        return Err(format!("unsupported return type from ApplyConfiguration expression: {kind}"));
    }
    if let Some(wrong) = misnamed(made, "Object") {
        return Err(format!("type mismatch: {wrong}"));
    }
    let mut configuration = made.to_json().ok_or("invalid return type: it has no JSON")?;
    for field in ["apiVersion", "kind"] {
        configuration[field] = object[field].clone();
    }
    if ["name", "namespace", "uid"].iter().any(|f| configuration.pointer(&format!("/metadata/{f}")).is_some())
    {
        return Err("metadata.name, metadata.namespace and metadata.uid must not be changed".to_owned());
    }
    let Some(t) = t else {
        let mut object = object.clone();
        merge(&mut object, configuration);
        return Ok(object);
    };
    let mut look = Look::default();
    look.at(&configuration, t, "");
    if let Some(path) = look.undeclared.first() {
        return Err(format!(
            "error applying patch: failed to convert patch object to typed object: {path}: field not declared in schema"
        ));
    }
    if !look.wholes.is_empty() {
        return Err(format!(
            "error applying patch: invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {}",
            look.wholes.join(", ")
        ));
    }
    Ok(managed::merge(object, &configuration, t))
}

/// The first object of an expression that is not called after the place where it stands.
fn misnamed(made: &Value, place: &str) -> Option<String> {
    match made {
        Value::List(items) => items.iter().find_map(|item| misnamed(item, place)),
        Value::Map(map) => match map.type_name.as_deref() {
            None => map.entries.values().find_map(|value| misnamed(value, place)),
            Some(name) if name != place => Some(format!(
                "unexpected type name {name:?}, expected {place:?}, which matches field name path from root Object type"
            )),
            Some(_) => {
                map.entries.iter().find_map(|(name, value)| misnamed(value, &format!("{place}.{name}")))
            }
        },
        Value::Optional(Some(inner)) => misnamed(inner, place),
        _ => None,
    }
}

/// What is found of an apply configuration along its type: fields that there are none of, and parts of wholes.
#[derive(Default)]
struct Look {
    undeclared: Vec<String>,
    wholes: Vec<String>,
}

impl Look {
    fn at(&mut self, value: &Json, t: TypeRef<'_>, path: &str) {
        let is_whole = match t.node() {
            Node::Object(object) => object.atomic,
            Node::Map { atomic, .. } => *atomic,
            Node::List { kind, .. } => *kind == ListKind::Atomic,
            Node::Any => value.is_array(),
            Node::Raw | Node::Json | Node::FieldsV1 => true,
            _ => false,
        };
        if is_whole && (value.is_object() || value.is_array()) {
            self.wholes.push(path.to_owned());
        }
        for (name, value) in value.as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            match t.member(name) {
                Some(t) => self.at(value, t, &path),
                None if matches!(t.node(), Node::Object(_)) => self.undeclared.push(path),
                None => {}
            }
        }
        let items = value.as_array().into_iter().flatten().enumerate();
        for ((i, value), t) in items.filter_map(|item| Some((item, t.item()?))) {
            self.at(value, t, &format!("{path}[{i}]"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use krate_api::{kinds, schema};
    use serde_json::json;

    use super::*;
    use crate::cel::Map;

    /// A value whose objects have the names of types that their field `""` says.
    fn made(json: &Json) -> Value {
        match json {
            Json::Object(fields) => {
                let Value::Map(plain) = Value::map(fields.iter().map(|(k, v)| (k.clone(), made(v)))) else {
                    return Value::Null;
                };
                let mut map = Map::clone(&plain);
                map.entries.retain(|name, _| !name.to_string().is_empty());
                map.type_name = fields.get("").and_then(Json::as_str).map(Arc::from);
                Value::Map(Arc::new(map))
            }
            Json::Array(items) => Value::list(items.iter().map(made).collect()),
            other => Value::from_json(other),
        }
    }

    fn pod() -> Json {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "a", "image": "i"}]}})
    }

    fn apply(configuration: &Json) -> Result<Json, String> {
        applied(&pod(), &made(configuration), schema::of(kinds::POD.gvk()))
    }

    #[test]
    fn what_is_named_is_merged_by_its_keys() {
        let container = json!({"": "Object.spec.containers", "name": "a", "workingDir": "/w"});
        let merged = apply(&json!({"": "Object", "spec": {"": "Object.spec", "containers": [container]}}));
        let merged = merged.expect("an object");
        assert_eq!(merged["spec"]["containers"], json!([{"name": "a", "image": "i", "workingDir": "/w"}]));
    }

    #[test]
    fn parts_of_wholes_fields_that_are_none_and_wrong_names_are_refused() {
        for (spec, told) in [
            (
                json!({"": "Object.spec", "nodeSelector": {"a": "b"}}),
                "error applying patch: invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: \
                 .spec.nodeSelector",
            ),
            (
                json!({"": "Object.spec", "bogus": 1}),
                "error applying patch: failed to convert patch object to typed object: .spec.bogus: field not declared \
                 in schema",
            ),
            (
                json!({"": "Object.other"}),
                "type mismatch: unexpected type name \"Object.other\", expected \"Object.spec\", which matches field \
                 name path from root Object type",
            ),
        ] {
            assert_eq!(apply(&json!({"": "Object", "spec": spec})), Err(told.to_owned()));
        }
        let told = "unsupported return type from ApplyConfiguration expression: map";
        assert_eq!(apply(&json!({})), Err(told.to_owned()));
    }

    #[test]
    fn a_patch_whose_test_fails_changes_nothing() {
        let test = |wanted: &str| {
            made(&json!([{"op": "test", "path": "/metadata/name", "value": wanted},
                {"op": "add", "path": "/metadata/labels", "value": {"a": "b"}}]))
        };
        let changed = patched(&pod(), &test("p")).expect("it applies").expect("it changes it");
        assert_eq!(changed["metadata"]["labels"], json!({"a": "b"}));
        assert_eq!(patched(&pod(), &test("q")), Ok(None));
        let missing = made(&json!([{"op": "remove", "path": "/spec/none"}]));
        assert!(patched(&pod(), &missing).expect_err("it does not").starts_with("JSON Patch: "));
    }
}
