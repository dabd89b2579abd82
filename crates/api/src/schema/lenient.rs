//! What Go's decoder makes of a body that says too little: a null sets nothing, and what was never set is its type's zero.

use serde_json::{Map, Value};

use super::canonical::zero;
use super::{Node, TypeRef};

/// How Go writes the time that was never set.
pub const NEVER: &str = "0001-01-01T00:00:00Z";

/// Brings a value into a form that a decoder reads which insists on its required fields: fields that are null go, and
/// times that must be there are. Objects of a type that is not known to the schema stay as they are.
pub fn complete(value: &mut Value, t: TypeRef<'_>) {
    match (t.node(), &mut *value) {
        (Node::Object(_), Value::Object(fields)) => object(fields, t),
        (Node::Map { value: inner, .. }, Value::Object(fields)) => {
            let inner = t.schema().get(*inner);
            for value in fields.values_mut() {
                item(value, inner);
            }
        }
        (Node::List { item: inner, .. }, Value::Array(items)) => {
            let inner = t.schema().get(*inner);
            for value in items {
                item(value, inner);
            }
        }
        _ => {}
    }
}

fn item(value: &mut Value, t: TypeRef<'_>) {
    if value.is_null() {
        *value = zero(t);
    }
    complete(value, t);
}

fn object(fields: &mut Map<String, Value>, t: TypeRef<'_>) {
    let Some(object) = t.object() else { return };
    for field in &object.fields {
        let inner = t.of_field(field);
        match fields.get_mut(field.name.as_ref()).filter(|value| !value.is_null()) {
            Some(value) => complete(value, inner),
            None if field.required
                && !field.pointer
                && matches!(inner.node(), Node::Time | Node::MicroTime) =>
            {
                fields.insert(field.name.to_string(), NEVER.into());
            }
            None => drop(fields.remove(field.name.as_ref())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Gvk;
    use serde_json::json;

    #[test]
    fn what_is_not_said_is_zero() {
        let t = super::super::of(Gvk { group: "", version: "v1", kind: "Service" }).expect("a kind");
        let mut service = json!({"metadata": {"name": null, "creationTimestamp": null, "labels": {"a": null}},
            "odd": null, "spec": {"ports": [null], "selector": null},
            "status": {"conditions": [{"type": "A", "lastTransitionTime": null}, {"type": "B"}]}});
        complete(&mut service, t);
        assert_eq!(
            service,
            json!({"metadata": {"labels": {"a": ""}}, "odd": null,
                "spec": {"ports": [{"port": 0, "targetPort": 0}]},
                "status": {"conditions": [{"type": "A", "lastTransitionTime": NEVER},
                    {"type": "B", "lastTransitionTime": NEVER}]}})
        );
    }
}
