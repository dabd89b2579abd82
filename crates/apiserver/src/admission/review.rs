//! A request as policies and webhooks are told of it: `admission.k8s.io/v1`'s AdmissionRequest, without the objects.

use serde_json::{Value, json};

use super::matching::operation_name;
use super::{Attributes, Operation};
use crate::registry::erased::Object;

/// The object as a client would see it.
pub fn object_json(object: Option<&dyn Object>) -> Value {
    object.and_then(|object| serde_json::from_slice(&object.to_json()).ok()).unwrap_or(Value::Null)
}

/// What is asked about: the object, or what a connection is asked to be.
pub fn subject(attributes: &Attributes, object: Option<&dyn Object>) -> Value {
    attributes.options.clone().unwrap_or_else(|| object_json(object))
}

pub fn request(attributes: &Attributes) -> Value {
    let kind = attributes.kind;
    let asked = attributes.options.as_ref().and_then(|options| options["kind"].as_str());
    let gvk = json!({"group": kind.group, "version": kind.version, "kind": asked.unwrap_or(kind.kind)});
    let gvr = json!({"group": kind.group, "version": kind.version, "resource": kind.plural});
    let user = serde_json::to_value(attributes.user.info()).unwrap_or_default();
    let options = match attributes.operation {
        Operation::Create => json!({"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"}),
        Operation::Update => json!({"kind": "UpdateOptions", "apiVersion": "meta.k8s.io/v1"}),
        Operation::Delete => json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1"}),
        Operation::Connect => Value::Null,
    };
    let mut request = json!({
        "kind": gvk, "resource": gvr, "requestKind": gvk, "requestResource": gvr,
        "operation": operation_name(attributes.operation), "userInfo": user, "dryRun": attributes.dry_run,
        "options": options,
    });
    let mut say = |key: &str, text: &str| {
        if !text.is_empty() {
            request[key] = text.into();
        }
    };
    say("name", &attributes.name);
    say("namespace", &attributes.namespace);
    say("subResource", &attributes.subresource);
    say("requestSubResource", &attributes.subresource);
    request
}
