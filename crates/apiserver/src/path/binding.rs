//! `POST pods/x/binding`, and `POST bindings` of old: the scheduler's word that a pod is to run on a node. Who is asked about
//! it sees a Binding; what it makes of the pod is asked of nobody.

use bytes::Bytes;
use k8s_openapi::api::core::v1::{Binding, ObjectReference, Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use krate_api::{FieldErrors, FieldPath, Gvk, StatusError, kinds};

use super::call::{Call, no_such_resource, unclassified};
use super::ownership::Ownership;
use super::subresource::{created, place, read_as, success};
use super::write::{Guise, Made, change, newest, now};
use crate::admission::{Attributes, Body, Operation};
use crate::http::Reply;
use crate::registry::erased::Unstored;

const BINDING: Gvk<'static> = Gvk { group: "", version: "v1", kind: "Binding" };
const BODY: Body = Body { kind: BINDING, decode: Unstored::<Binding>::decode };

/// # Errors
/// The pod is not there, or cannot be bound to this node.
pub async fn bind(mut call: Call, body: Bytes) -> Result<Reply, StatusError> {
    call.read_options("CreateOptions")?;
    let binding: Binding = read_as(&mut call, body, BINDING)?;
    let mut binding = Unstored(binding);
    place(&call, &mut binding.0.metadata)?;
    let attributes = Attributes::of_body(&call, Operation::Create, &binding, BODY);
    let binding = admit(&mut call, attributes, binding).await?;
    assign(&mut call, binding).await?;
    Ok(created(&call, &success()))
}

/// Binds a pod as it was done of old, where the binding alone names it. The call is one to that pod.
///
/// # Errors
/// As those of [`bind`].
pub async fn bind_pod(call: &mut Call, binding: Binding) -> Result<(), StatusError> {
    let mut binding = Unstored(binding);
    place(call, &mut binding.0.metadata)?;
    // It is read as a new object, which has none of its own yet.
    binding.0.metadata.uid = None;
    let mut attributes = Attributes::of_body(call, Operation::Create, &binding, BODY);
    attributes.kind = &kinds::BINDING;
    attributes.subresource.clear();
    let binding = admit(call, attributes, binding).await?;
    assign(call, binding).await
}

/// Asks whether it may be, and how.
async fn admit(
    call: &mut Call,
    attributes: Attributes,
    mut binding: Unstored<Binding>,
) -> Result<Binding, StatusError> {
    call.server.admission.mutate(&attributes, &mut binding, None).await?;
    if binding.0.metadata.name.as_deref().unwrap_or_default() != call.info.name {
        return Err(StatusError::bad_request("name in URL does not match name in Binding object"));
    }
    check_target(&binding.0.target)?;
    call.server.admission.validate(&attributes, Some(&binding), None).await?;
    call.warnings.extend(attributes.take_warnings());
    Ok(binding.0)
}

fn check_target(target: &ObjectReference) -> Result<(), StatusError> {
    let mut errors = FieldErrors::new();
    if target.kind.as_deref().is_some_and(|kind| !kind.is_empty() && kind != "Node") {
        errors.not_supported(&FieldPath::new("target").child("kind"), &target.kind, &["Node", "<empty>"]);
    }
    if target.name.as_deref().is_none_or(str::is_empty) {
        errors.required(&FieldPath::new("target").child("name"), "");
    }
    if errors.is_empty() { Ok(()) } else { Err(unclassified(errors.aggregate())) }
}

/// Gives the pod that the call names its node, and what the binding has for it.
async fn assign(call: &mut Call, binding: Binding) -> Result<(), StatusError> {
    let node = binding.target.name.unwrap_or_default();
    let meta = binding.metadata;
    let (uid, version) = (meta.uid.unwrap_or_default(), meta.resource_version.unwrap_or_default());
    let (annotations, labels) = (meta.annotations.unwrap_or_default(), meta.labels.unwrap_or_default());
    let name = call.info.name.clone();
    // Who has seen a state may have seen a newer one than the cache.
    let current = if version.is_empty() {
        call.storage.current(&call.info.namespace, &name).await?
    } else {
        newest(call, &name).await?
    };
    // Upstream binds outside of what tracks fields.
    change(call, current, true, Ownership::Settled, |call, current| {
        let refuse = |why: String| Some(StatusError::conflict("", "pods/binding", &name, why));
        let mut object = current.object.boxed_clone();
        let Some(pod) = object.is_mut::<Pod>() else { return Err(Some(no_such_resource())) };
        let there = pod.metadata.uid.as_deref().unwrap_or_default();
        if !uid.is_empty() && uid != there {
            return Err(Some(call.unmet(&name, "UID", &uid, there)));
        }
        let there = current.revision.to_string();
        if !version.is_empty() && version != there {
            return Err(Some(call.unmet(&name, "ResourceVersion", &version, &there)));
        }
        if pod.metadata.deletion_timestamp.is_some() {
            return Err(refuse(format!("pod {name} is being deleted, cannot be assigned to a host")));
        }
        let spec = pod.spec.get_or_insert_default();
        if let Some(there) = spec.node_name.as_ref().filter(|n| !n.is_empty()) {
            return Err(refuse(format!("pod {name} is already assigned to node \"{there}\"")));
        }
        if spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty()) {
            return Err(refuse(format!("pod {name} has non-empty .spec.schedulingGates")));
        }
        spec.node_name = Some(node.clone());
        if !annotations.is_empty() {
            pod.metadata.annotations.get_or_insert_default().extend(annotations.clone());
        }
        if !labels.is_empty() {
            pod.metadata.labels.get_or_insert_default().extend(labels.clone());
        }
        let status = pod.status.get_or_insert_default();
        // It has come to where it was to come, or elsewhere.
        status.nominated_node_name = None;
        set_scheduled(status.conditions.get_or_insert_default(), now());
        Ok(Made { object, guise: Guise::Admitted })
    })
    .await
    .map(drop)
}

fn set_scheduled(conditions: &mut Vec<PodCondition>, now: Time) {
    let scheduled = PodCondition {
        type_: "PodScheduled".to_owned(),
        status: "True".to_owned(),
        last_transition_time: Some(now),
        ..PodCondition::default()
    };
    match conditions.iter_mut().find(|c| c.type_ == "PodScheduled") {
        Some(there) => *there = scheduled,
        None => conditions.push(scheduled),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_bound_to_a_node() {
        let check = |kind: Option<&str>, name: &str| {
            check_target(&ObjectReference {
                kind: kind.map(str::to_owned),
                name: Some(name.to_owned()),
                ..ObjectReference::default()
            })
        };
        for kind in [None, Some(""), Some("Node")] {
            assert!(check(kind, "n").is_ok(), "{kind:?}");
        }
        let refused = check(Some("Pod"), "").expect_err("no node");
        let told = "[target.kind: Unsupported value: \"Pod\": supported values: \"Node\", \"<empty>\", target.name: \
                    Required value]";
        assert_eq!((refused.code(), refused.to_string().as_str()), (500, told));
    }
}
