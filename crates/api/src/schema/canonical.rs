//! The one form of an object that upstream's server prints: what Go's decoder and encoder make of a body.
//!
//! Unknown fields go, empty fields go unless Go prints them, objects that Go holds by value are there even if empty,
//! quantities and times take their canonical forms.

use serde_json::{Map, Value};

use super::{Field, Node, TypeRef};
use crate::quantity;

/// Brings a value into the form in which upstream would print it. A value that is not of its type stays as it is:
/// [`super::check`] finds those.
pub fn canonicalize(value: &mut Value, t: TypeRef<'_>) {
    if value.is_null() {
        *value = zero(t);
        return;
    }
    match (t.node(), &mut *value) {
        (Node::Object(_), Value::Object(fields)) => object(fields, t),
        (Node::Map { value: inner, .. }, Value::Object(fields)) => {
            let inner = t.schema().get(*inner);
            fields.values_mut().for_each(|v| canonicalize(v, inner));
        }
        (Node::List { item, .. }, Value::Array(items)) => {
            let item = t.schema().get(*item);
            for value in items {
                canonicalize(value, item);
            }
        }
        (Node::Quantity, Value::String(text)) => {
            if let Ok(canonical) = quantity::canonical(text) {
                *text = canonical;
            }
        }
        (Node::Quantity, Value::Number(number)) => {
            if let Ok(canonical) = quantity::canonical(&number.to_string()) {
                *value = Value::String(canonical);
            }
        }
        (Node::Time, Value::String(text)) => time(text, "%Y-%m-%dT%H:%M:%SZ"),
        (Node::MicroTime, Value::String(text)) => time(text, "%Y-%m-%dT%H:%M:%S.%6fZ"),
        _ => {}
    }
}

fn time(text: &mut String, format: &str) {
    if let Ok(at) = text.parse::<jiff::Timestamp>() {
        *text = at.strftime(format).to_string();
    }
}

/// What Go prints of a value of a type that was never set.
pub(super) fn zero(t: TypeRef<'_>) -> Value {
    match t.node() {
        Node::String => Value::from(""),
        Node::Bool => Value::from(false),
        Node::Int32 | Node::Int64 | Node::Double | Node::IntOrString => Value::from(0),
        Node::Quantity => Value::from("0"),
        Node::Object(_) => {
            let mut fields = Map::new();
            object(&mut fields, t);
            Value::Object(fields)
        }
        _ => Value::Null,
    }
}

fn object(fields: &mut Map<String, Value>, t: TypeRef<'_>) {
    let Some(object) = t.object() else { return };
    if let Some(additional) = object.additional {
        let additional = t.schema().get(additional);
        for (name, value) in fields.iter_mut().filter(|(name, _)| t.field(name).is_none()) {
            if !name.is_empty() {
                canonicalize(value, additional);
            }
        }
    } else {
        fields.retain(|name, _| t.field(name).is_some());
    }
    for field in &object.fields {
        let inner = t.of_field(field);
        let found = fields.get_mut(field.name.as_ref()).filter(|v| !v.is_null());
        let Some(value) = found else {
            match unset(field, inner) {
                Some(value) => fields.insert(field.name.to_string(), value),
                None => fields.remove(field.name.as_ref()),
            };
            continue;
        };
        canonicalize(value, inner);
        if !field.pointer && !field.always && is_empty(value, inner) {
            fields.remove(field.name.as_ref());
        }
    }
}

/// What is printed for a field that is not set, if anything is.
fn unset(field: &Field, t: TypeRef<'_>) -> Option<Value> {
    if field.pointer {
        return field.always.then_some(Value::Null);
    }
    match t.node() {
        Node::Object(_) | Node::Time | Node::MicroTime | Node::IntOrString | Node::Quantity | Node::Raw => {
            (!field.omit_zero).then(|| zero(t))
        }
        _ => field.always.then(|| zero(t)),
    }
}

/// Whether `omitempty` leaves a value out.
fn is_empty(value: &Value, t: TypeRef<'_>) -> bool {
    match (t.node(), value) {
        (Node::Object(_) | Node::IntOrString | Node::Quantity | Node::Raw, _) => false,
        (_, Value::String(s)) => s.is_empty(),
        (_, Value::Bool(b)) => !b,
        (_, Value::Number(n)) => n.as_f64() == Some(0.0),
        (_, Value::Array(items)) => items.is_empty(),
        (_, Value::Object(fields)) => fields.is_empty(),
        (_, Value::Null) => true,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::kind::Gvk;
    use proptest::prelude::*;
    use serde_json::json;

    fn canonical(gvk: (&str, &str), mut value: Value) -> Value {
        let t = super::super::of(Gvk { group: gvk.0, version: "v1", kind: gvk.1 }).expect("a kind");
        canonicalize(&mut value, t);
        value
    }

    #[test]
    fn objects_are_printed_as_upstream_prints_them() {
        assert_eq!(
            canonical(
                ("", "Pod"),
                json!({"spec": {"odd": 1, "hostNetwork": false, "priority": 0, "nodeSelector": {}, "containers": [
                    {"name": "a", "resources": {"limits": {"memory": "1024Mi", "cpu": 2}}, "ports": null}]},
                    "metadata": {"creationTimestamp": null, "deletionTimestamp": "2026-01-02T03:04:05.678+01:00"}})
            ),
            json!({"metadata": {"deletionTimestamp": "2026-01-02T02:04:05Z"}, "spec": {"priority": 0, "containers": [
                {"name": "a", "resources": {"limits": {"memory": "1Gi", "cpu": "2"}}}]}, "status": {}})
        );
        assert_eq!(
            canonical(("apps", "Deployment"), json!({})),
            json!({"metadata": {}, "spec": {"selector": null, "strategy": {}, "template": {"metadata": {},
                "spec": {"containers": null}}}, "status": {}})
        );
        assert_eq!(
            canonical(
                ("coordination.k8s.io", "Lease"),
                json!({"spec": {"renewTime": "2026-01-02T03:04:05Z"}})
            ),
            json!({"metadata": {}, "spec": {"renewTime": "2026-01-02T03:04:05.000000Z"}})
        );
    }

    /// What a server answered in the recorded conversations is in canonical form already.
    #[test]
    fn recorded_answers_are_in_canonical_form() {
        let folder = std::path::Path::new("/work/shared/oracle/cases");
        let Ok(files) = std::fs::read_dir(folder) else {
            eprintln!("skipped: {} is not there", folder.display());
            return;
        };
        let (mut same, mut other) = (0, std::collections::BTreeSet::new());
        for file in files.flatten() {
            let text = std::fs::read(file.path()).expect("a file");
            let conversations: Value = serde_json::from_slice(&text).expect("JSON");
            let steps = conversations.as_array().into_iter().flatten();
            for step in steps.flat_map(|c| c["steps"].as_array().into_iter().flatten()) {
                let body = &step["want"]["body"];
                let api_version = body["apiVersion"].as_str().unwrap_or_default();
                let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
                let kind = body["kind"].as_str().unwrap_or_default();
                // What the recording leaves out of an answer is no fault of the form.
                if step.get("drop").is_some() || kind == "Status" {
                    continue;
                }
                let Some(t) = super::super::of(Gvk { group, version, kind }) else { continue };
                let mut again = body.clone();
                canonicalize(&mut again, t);
                if again == *body {
                    same += 1;
                } else {
                    differences(body, &again, kind, &mut other);
                }
            }
        }
        assert!(other.is_empty(), "{same} are the same, these are not: {other:#?}");
        assert!(same > 100, "only {same} answers were found");
    }

    pub(crate) fn differences(
        a: &Value,
        b: &Value,
        path: &str,
        found: &mut std::collections::BTreeSet<String>,
    ) {
        match (a, b) {
            (Value::Object(x), Value::Object(y)) => {
                for key in x.keys().chain(y.keys()) {
                    match (x.get(key), y.get(key)) {
                        (Some(a), Some(b)) => differences(a, b, &format!("{path}.{key}"), found),
                        // The recordings leave statuses out, since controllers write them.
                        (None, Some(_)) if key == "status" => {}
                        (a, b) => drop(found.insert(format!("{path}.{key}: {a:?} became {b:?}"))),
                    }
                }
            }
            (Value::Array(x), Value::Array(y)) if x.len() == y.len() => {
                x.iter().zip(y).for_each(|(a, b)| differences(a, b, path, found));
            }
            _ if a == b => {}
            _ => drop(found.insert(format!("{path}: {a} became {b}"))),
        }
    }

    proptest! {
        #[test]
        fn the_canonical_form_stays(value in crate::patch::tests::any_value()) {
            let once = canonical(("", "Pod"), json!({"spec": value, "metadata": {"labels": value}}));
            prop_assert_eq!(canonical(("", "Pod"), once.clone()), once);
        }
    }
}
