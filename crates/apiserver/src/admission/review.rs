//! A request as policies and webhooks are told of it: `admission.k8s.io/v1`'s AdmissionRequest, without the objects.

use serde_json::{Value, json};

use super::Attributes;
use super::matching::operation_name;
use crate::registry::erased::Object;

/// The object as a client would see it.
pub fn object_json(object: Option<&dyn Object>) -> Value {
    object.and_then(|object| serde_json::from_slice(&object.to_json()).ok()).unwrap_or(Value::Null)
}

pub fn request(attributes: &Attributes) -> Value {
    let kind = attributes.kind;
    let gvk = json!({"group": kind.group, "version": kind.version, "kind": kind.kind});
    let gvr = json!({"group": kind.group, "version": kind.version, "resource": kind.plural});
    let user = serde_json::to_value(attributes.who.info()).unwrap_or_default();
    let options = match operation_name(attributes.operation) {
        "CREATE" => "CreateOptions",
        "UPDATE" => "UpdateOptions",
        _ => "DeleteOptions",
    };
    let mut request = json!({
        "kind": gvk, "resource": gvr, "requestKind": gvk, "requestResource": gvr,
        "operation": operation_name(attributes.operation), "userInfo": user, "dryRun": attributes.dry_run,
        "options": {"kind": options, "apiVersion": "meta.k8s.io/v1"},
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
