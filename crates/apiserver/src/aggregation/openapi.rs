//! The OpenAPI documents of other servers: that of version 2 is merged into this server's, that of version 3 is named
//! in its index and asked for where it is.

use std::collections::BTreeSet;
use std::sync::Arc;

use http::StatusCode;
use serde_json::{Map, Value};

use super::remote::Remote;
use crate::kinds::Kinds;

const REFERENCE: &str = "#/definitions/";

/// Asks a server anew, and tells whether it says something else than before. One that has no documents is served
/// nevertheless.
pub async fn refresh(kinds: &Kinds, remote: &Remote) -> bool {
    let (index, whole) = tokio::join!(
        remote.ask(kinds, "/openapi/v3", "application/json", false),
        remote.ask(kinds, "/openapi/v2", "application/json", false),
    );
    let document = |asked: Result<(StatusCode, _, bytes::Bytes), String>| -> Option<Value> {
        let (_, _, body) = asked.ok().filter(|(code, ..)| *code == StatusCode::OK)?;
        serde_json::from_slice(&body).ok()
    };
    let place = remote.path();
    let place = place.trim_start_matches('/');
    let v3 = document(index)
        .and_then(|index| index["paths"][place]["serverRelativeURL"].as_str().map(str::to_owned));
    let v2 = document(whole).map(|whole| filtered(whole, &remote.path()));
    let mut said = remote.said.lock();
    let is_same = said.openapi_v3 == v3 && said.openapi_v2.as_deref() == v2.as_ref();
    if !is_same {
        said.openapi_v3 = v3;
        said.openapi_v2 = v2.map(Arc::new);
    }
    !is_same
}

/// Of a document what is below a path, with the definitions that it needs.
fn filtered(mut document: Value, path: &str) -> Value {
    let below =
        |other: &str| other.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let Value::Object(all) = document["paths"].take() else { return Value::Null };
    let paths: Map<String, Value> = all.into_iter().filter(|(other, _)| below(other)).collect();
    let mut used = BTreeSet::new();
    let mut open = Vec::new();
    paths.values().for_each(|value| references(value, &mut open));
    while let Some(name) = open.pop() {
        if let Some(definition) = document["definitions"].get(&name)
            && used.insert(name)
        {
            references(definition, &mut open);
        }
    }
    let Value::Object(all) = document["definitions"].take() else {
        return Value::Object(Map::from_iter([("paths".to_owned(), Value::Object(paths))]));
    };
    let definitions = all.into_iter().filter(|(name, _)| used.contains(name)).collect();
    Value::Object(Map::from_iter([
        ("paths".to_owned(), Value::Object(paths)),
        ("definitions".to_owned(), Value::Object(definitions)),
    ]))
}

fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            let to = fields.get("$ref").and_then(Value::as_str).and_then(|to| to.strip_prefix(REFERENCE));
            found.extend(to.map(str::to_owned));
            fields.values().for_each(|value| references(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

/// Adds a document to another. What both define differently gets another name for the one that is added.
pub fn merge(into: &mut Value, document: &Value) {
    let mut document = document.clone();
    let Value::Object(definitions) = document["definitions"].take() else {
        return merge_paths(into, document["paths"].take(), &[]);
    };
    let Some(there) = into["definitions"].as_object_mut() else { return };
    let mut renamed: Vec<(String, String)> = Vec::new();
    for (name, definition) in &definitions {
        if there.get(name).is_some_and(|other| other != definition) {
            let free = (2..).map(|n| format!("{name}_v{n}"));
            let mut free = free.filter(|new| !there.contains_key(new) && !definitions.contains_key(new));
            renamed.extend(free.next().map(|new| (name.clone(), new)));
        }
    }
    for (name, mut definition) in definitions {
        let new = renamed.iter().find(|(old, _)| *old == name).map_or(name, |(_, new)| new.clone());
        rename(&mut definition, &renamed);
        there.entry(new).or_insert(definition);
    }
    merge_paths(into, document["paths"].take(), &renamed);
}

fn merge_paths(into: &mut Value, paths: Value, renamed: &[(String, String)]) {
    let (Some(there), Value::Object(paths)) = (into["paths"].as_object_mut(), paths) else { return };
    for (path, mut value) in paths {
        rename(&mut value, renamed);
        there.entry(path).or_insert(value);
    }
}

fn rename(value: &mut Value, renamed: &[(String, String)]) {
    match value {
        Value::Object(fields) => {
            let to = fields.get("$ref").and_then(Value::as_str).and_then(|to| to.strip_prefix(REFERENCE));
            let new = to.and_then(|to| renamed.iter().find(|(old, _)| old == to));
            if let Some((_, new)) = new {
                fields.insert("$ref".to_owned(), format!("{REFERENCE}{new}").into());
            }
            fields.values_mut().for_each(|value| rename(value, renamed));
        }
        Value::Array(items) => items.iter_mut().for_each(|value| rename(value, renamed)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn documents_are_merged_without_their_names_meeting() {
        let to = |name: &str| json!({"$ref": format!("{REFERENCE}{name}")});
        let other = json!({
            "paths": {"/apis/g/v1/": {"a": to("A")}, "/apis/g/v10/": {"a": to("C")}, "/apis/h/v1/": {}},
            "definitions": {"A": {"b": to("B")}, "B": {"type": "string"}, "C": {}, "Same": {}},
        });
        let other = filtered(other, "/apis/g/v1");
        assert_eq!(other["paths"].as_object().map(Map::len), Some(1));
        assert_eq!(other["definitions"], json!({"A": {"b": to("B")}, "B": {"type": "string"}}));
        let mut own = json!({"paths": {"/api/": {}}, "definitions": {"B": {"type": "integer"}}});
        merge(&mut own, &other);
        assert_eq!(
            own,
            json!({
                "paths": {"/api/": {}, "/apis/g/v1/": {"a": to("A")}},
                "definitions": {"A": {"b": to("B_v2")}, "B": {"type": "integer"}, "B_v2": {"type": "string"}},
            })
        );
    }
}
