//! A request as policies and webhooks are told of it: `admission.k8s.io/v1`'s AdmissionRequest, without the objects.

use krate_api::Kind;
use serde_json::{Value, json};

use super::matching::operation_name;
use super::{Attributes, Operation};
use crate::registry::erased::Object;

/// The object as a client would see it.
pub fn object_json(object: Option<&dyn Object>) -> Value {
    object.and_then(|object| serde_json::from_slice(&object.to_json()).ok()).unwrap_or(Value::Null)
}

/// `kind` is that as which it is told: the request's own, or another of the same objects.
pub fn request(attributes: &Attributes, kind: &Kind) -> Value {
    let asked = attributes.options.as_ref().and_then(|options| options["kind"].as_str());
    let gvk = |kind: &Kind| {
        let told = attributes.body.map_or(kind.gvk(), |body| body.kind);
        json!({"group": told.group, "version": told.version, "kind": asked.unwrap_or(told.kind)})
    };
    let gvr = |kind: &Kind| json!({"group": kind.group, "version": kind.version, "resource": kind.plural});
    let user = serde_json::to_value(attributes.user.info()).unwrap_or_default();
    let own = attributes.kind;
    let mut request = json!({
        "kind": gvk(kind), "resource": gvr(kind), "requestKind": gvk(own), "requestResource": gvr(own),
        "operation": operation_name(attributes.operation), "userInfo": user, "dryRun": attributes.dry_run,
        "options": options(attributes),
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

/// The options of the request, as far as they are known here.
fn options(attributes: &Attributes) -> Value {
    let kind = match attributes.operation {
        Operation::Create => "CreateOptions",
        Operation::Update => "UpdateOptions",
        Operation::Delete => "DeleteOptions",
        Operation::Connect => return Value::Null,
    };
    let given = attributes.deletion.as_ref().and_then(|given| serde_json::to_value(given).ok());
    let mut options = given.unwrap_or_else(|| json!({}));
    options["kind"] = kind.into();
    options["apiVersion"] = "meta.k8s.io/v1".into();
    if attributes.dry_run {
        options["dryRun"] = json!(["All"]);
    }
    if attributes.operation == Operation::Delete {
        return options;
    }
    let asked =
        [("fieldManager", &attributes.field_manager), ("fieldValidation", &attributes.field_validation)];
    for (name, said) in asked {
        if let Some(said) = said.as_deref().filter(|said| !said.is_empty()) {
            options[name] = said.into();
        }
    }
    options
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{DeleteOptions, Preconditions};
    use krate_api::kinds;

    use super::*;

    #[test]
    fn a_request_is_told_as_another_kind_of_the_same_objects_and_as_its_own() {
        let (old, new) = (&kinds::HORIZONTAL_POD_AUTOSCALER_V1, &kinds::HORIZONTAL_POD_AUTOSCALER);
        let attributes = Attributes::for_test(Operation::Create, new, "", "ns", "h");
        let told = request(&attributes, old);
        assert_eq!((&told["kind"]["version"], &told["requestKind"]["version"]), (&json!("v1"), &json!("v2")));
        assert_eq!(told["resource"]["version"], "v1");
        assert_eq!(told["requestResource"]["version"], "v2");
    }

    #[test]
    fn a_request_is_told_with_its_options() {
        let mut attributes = Attributes::for_test(Operation::Create, &kinds::POD, "", "ns", "p");
        let plain = json!({"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"});
        assert_eq!(request(&attributes, &kinds::POD)["options"], plain);
        attributes.dry_run = true;
        attributes.field_manager = Some("kubectl-create".to_owned());
        attributes.field_validation = Some("Strict".to_owned());
        assert_eq!(
            request(&attributes, &kinds::POD)["options"],
            json!({"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1", "dryRun": ["All"],
                "fieldManager": "kubectl-create", "fieldValidation": "Strict"})
        );
    }

    #[test]
    fn a_deletion_is_told_with_how_it_is_asked_to_be() {
        let mut attributes = Attributes::for_test(Operation::Delete, &kinds::POD, "", "ns", "p");
        let plain = json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1"});
        assert_eq!(request(&attributes, &kinds::POD)["options"], plain);
        attributes.deletion = Some(DeleteOptions {
            api_version: Some("v1".to_owned()),
            grace_period_seconds: Some(5),
            propagation_policy: Some("Background".to_owned()),
            preconditions: Some(Preconditions { uid: Some("u".to_owned()), ..Preconditions::default() }),
            ..DeleteOptions::default()
        });
        assert_eq!(
            request(&attributes, &kinds::POD)["options"],
            json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1", "gracePeriodSeconds": 5,
                "propagationPolicy": "Background", "preconditions": {"uid": "u"}})
        );
    }
}
