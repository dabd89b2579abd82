//! What comes after an object's name: its status, its scale, a binding, an eviction, a token, and what is passed on to
//! its node.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::StatusCode;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestStatus};
use k8s_openapi::api::core::v1::{Binding, Namespace, Pod, PodCondition, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use krate_api::{FieldErrors, FieldPath, Gvk, StatusError, kinds};
use serde_json::{Value, json};

use super::call::{Call, no_such_resource, odd, unclassified};
use super::eviction::evict;
use super::ownership::{self, Ownership};
use super::write::{change, newest, now};
use super::{Answer, patch, read, refused, scale, write};
use crate::admission::{node_restriction, pod_topology};
use crate::auth::Bound;
use crate::auth::TokenBinding;
use crate::auth::token::{EXTENDED_LIFE, REPLACED_LIFE};
use crate::http::{self as wire, Reply};
use crate::proxy;

const TOKEN_REQUEST: Gvk<'static> =
    Gvk { group: "authentication.k8s.io", version: "v1", kind: "TokenRequest" };

pub fn answer(call: Call, body: Bytes) -> Answer {
    match (call.info.subresource.as_str(), call.info.verb) {
        ("status" | "ephemeralcontainers" | "resize" | "approval", "get") => Box::pin(read::get(call)),
        ("status" | "ephemeralcontainers" | "resize" | "approval", "update") => {
            Box::pin(write::update(call, body))
        }
        ("status" | "ephemeralcontainers" | "resize" | "approval", "patch") => {
            Box::pin(patch::patch(call, body))
        }
        ("finalize", "update") => Box::pin(finalize(call, body)),
        ("scale", "get") => Box::pin(scale::get(call)),
        ("scale", "update") => Box::pin(scale::update(call, body)),
        ("scale", "patch") => Box::pin(scale::patch(call, body)),
        ("binding", "create") => Box::pin(bind(call, body)),
        ("eviction", "create") => Box::pin(evict(call, body)),
        ("token", "create") => Box::pin(token(call, body)),
        ("log" | "exec" | "attach" | "portforward" | "proxy", _) => Box::pin(proxy::answer(call, body)),
        _ => refused(no_such_resource()),
    }
}

/// Reads a body that says what is not stored, and warns of what is odd in it.
///
/// # Errors
/// It cannot be read, or is odd where the client wants strictness.
pub fn read_as<T: serde::de::DeserializeOwned>(
    call: &mut Call,
    body: Bytes,
    kind: Gvk<'_>,
) -> Result<T, StatusError> {
    let json = wire::to_json(&call.headers, body)?;
    read_json(call, &json, kind)
}

fn read_json<T: serde::de::DeserializeOwned>(
    call: &mut Call,
    json: &[u8],
    kind: Gvk<'_>,
) -> Result<T, StatusError> {
    call.warnings.extend(odd(kind, &call.query, json)?);
    serde_json::from_slice(json).map_err(|error| {
        StatusError::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): {error}",
            kind.kind
        ))
    })
}

pub fn created(call: &Call, value: &Value) -> Reply {
    let mut reply = wire::json(StatusCode::CREATED, call.wanted, value.to_string().into());
    wire::warn(&mut reply, &call.warnings);
    reply
}

pub fn success() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})
}

/// `PUT namespaces/x/finalize`: only the finalizers of the spec change, and with the last of them the namespace is gone.
async fn finalize(mut call: Call, body: Bytes) -> Result<Reply, StatusError> {
    call.read_options("UpdateOptions")?;
    let wanted: Namespace = read_as(&mut call, body, Gvk { group: "", version: "v1", kind: "Namespace" })?;
    let finalizers = wanted.spec.and_then(|spec| spec.finalizers).filter(|f| !f.is_empty());
    let asked = wanted.metadata.resource_version.filter(|v| !v.is_empty());
    // A namespace has no namespace, though its path has.
    let current = call.storage.current("", &call.info.name).await?;
    let written = change(&mut call, current, true, Ownership::Changes, |_, current| {
        if asked.as_ref().is_some_and(|asked| *asked != current.revision.to_string()) {
            return Err(None);
        }
        let mut object = current.object.boxed_clone();
        if let Some(namespace) = object.is_mut::<Namespace>() {
            namespace.spec.get_or_insert_default().finalizers.clone_from(&finalizers);
        }
        Ok(object)
    })
    .await?;
    call.written(StatusCode::OK, &written).await
}

/// `POST pods/x/binding`: the scheduler's word that a pod is to run on a node.
async fn bind(mut call: Call, body: Bytes) -> Result<Reply, StatusError> {
    call.read_options("CreateOptions")?;
    let binding: Binding = read_as(&mut call, body, kinds::BINDING.gvk())?;
    if binding.metadata.name.as_deref().unwrap_or_default() != call.info.name {
        return Err(StatusError::bad_request("name in URL does not match name in Binding object"));
    }
    bind_pod(&mut call, binding).await?;
    Ok(created(&call, &success()))
}

/// Binds the pod that the call names.
pub async fn bind_pod(call: &mut Call, binding: Binding) -> Result<(), StatusError> {
    let mut errors = FieldErrors::new();
    let target = binding.target;
    if target.kind.as_deref().is_some_and(|kind| !kind.is_empty() && kind != "Node") {
        errors.not_supported(&FieldPath::new("target").child("kind"), &target.kind, &["Node", "<empty>"]);
    }
    let node = target.name.unwrap_or_default();
    if node.is_empty() {
        errors.required(&FieldPath::new("target").child("name"), "");
    }
    if !errors.is_empty() {
        return Err(unclassified(errors.aggregate()));
    }
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
    let topology = if call.server.admission.has("PodTopologyLabels") {
        pod_topology::of_node(&call.server.kinds, &node).await?
    } else {
        BTreeMap::new()
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
        pod_topology::give(pod, &labels);
        pod_topology::give(pod, &topology);
        let status = pod.status.get_or_insert_default();
        // It has come to where it was to come, or elsewhere.
        status.nominated_node_name = None;
        set_scheduled(status.conditions.get_or_insert_default(), now());
        Ok(object)
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

/// The life of a token that asks for none, and the shortest that may be asked for, in seconds.
const TOKEN_LIFE: i64 = 3600;
const SHORTEST_LIFE: i64 = 600;
const LONGEST_LIFE: i64 = 1 << 32;

/// `POST serviceaccounts/x/token` (KEP-1205).
async fn token(mut call: Call, body: Bytes) -> Result<Reply, StatusError> {
    call.read_options("CreateOptions")?;
    let sent = wire::to_json(&call.headers, body)?;
    let mut request: TokenRequest = read_json(&mut call, &sent, TOKEN_REQUEST)?;
    let current = call.storage.current(&call.info.namespace, &call.info.name).await?;
    let Some(account) = current.object.is::<ServiceAccount>() else { return Err(no_such_resource()) };
    let spec = request.spec.get_or_insert_default();
    if call.server.admission.has("NodeRestriction") {
        let (kinds, bound) = (&call.server.kinds, spec.bound_object_ref.as_ref());
        node_restriction::token(kinds, &call.user, &call.info.namespace, &call.info.name, bound).await?;
    }
    let seconds = spec.expiration_seconds.unwrap_or(TOKEN_LIFE);
    let mut errors = FieldErrors::new();
    if seconds < SHORTEST_LIFE {
        let at = FieldPath::new("spec").child("expirationSeconds");
        errors.invalid(&at, seconds, "may not specify a duration less than 10 minutes");
    } else if seconds > LONGEST_LIFE {
        let at = FieldPath::new("spec").child("expirationSeconds");
        errors.invalid(&at, seconds, "may not specify a duration larger than 2^32 seconds");
    }
    if !errors.is_empty() {
        return Err(StatusError::invalid(TOKEN_REQUEST, "", &errors));
    }
    let bound = |meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| Bound {
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
    };
    let mut binding = TokenBinding {
        namespace: call.info.namespace.clone(),
        serviceaccount: bound(&account.metadata),
        ..TokenBinding::default()
    };
    if let Some(reference) = &spec.bound_object_ref {
        let plural = match reference.kind.as_deref() {
            Some("Pod") => "pods",
            Some("Secret") => "secrets",
            Some("Node") => "nodes",
            other => {
                return Err(StatusError::bad_request(format!(
                    "cannot bind token to object of type {}",
                    other.unwrap_or_default()
                )));
            }
        };
        let name = reference.name.as_deref().unwrap_or_default();
        let namespace = if plural == "nodes" { "" } else { &call.info.namespace };
        let storage = call.server.kinds.of("", plural).ok_or_else(no_such_resource)?;
        let there = storage.current(namespace, name).await?.object;
        let to = bound(there.meta());
        if let Some(asked) = reference.uid.as_ref().filter(|uid| !uid.is_empty() && **uid != to.uid) {
            return Err(call.conflict(
                name,
                format!("the UID in the bound object reference ({asked}) does not match the UID in record. The object might have been deleted and then recreated"),
            ));
        }
        if let Some(pod) = there.is::<Pod>() {
            let node = pod.spec.as_ref().and_then(|s| s.node_name.clone()).filter(|n| !n.is_empty());
            if let (Some(node), Some(nodes)) = (node, call.server.kinds.of("", "nodes")) {
                binding.node = nodes.current("", &node).await.ok().map(|n| bound(n.object.meta()));
            }
            binding.pod = Some(to);
        } else if plural == "secrets" {
            binding.secret = Some(to);
        } else {
            binding.node = Some(to);
        }
    }
    let signer = &call.server.signer;
    let audiences = spec.audiences.clone().unwrap_or_default();
    let seconds = match signer.longest.filter(|longest| seconds > *longest) {
        Some(longest) => {
            call.warnings
                .push(format!("requested expiration of {seconds} seconds shortened to {longest} seconds"));
            longest
        }
        None => seconds,
    };
    let mut life = seconds;
    // Who asks for this life will replace the token; should he fail to, it lives on for a while.
    let own = audiences.iter().all(|audience| signer.audiences.contains(audience));
    if signer.extend && own && binding.pod.is_some() && seconds == REPLACED_LIFE {
        binding.warnafter = Some(jiff::Timestamp::now().as_second() + seconds);
        life = EXTENDED_LIFE.min(signer.longest.unwrap_or(EXTENDED_LIFE));
    }
    let (token, claims) = signer.sign(&audiences, life, binding).map_err(StatusError::internal)?;
    spec.audiences = Some(claims.aud);
    spec.expiration_seconds = Some(seconds);
    let expiration = jiff::Timestamp::from_second(claims.iat + seconds).map_err(StatusError::internal)?;
    request.status =
        Some(TokenRequestStatus { token: Some(token), expiration_timestamp: Some(Time(expiration)) });
    request.metadata.name = Some(call.info.name.clone());
    request.metadata.namespace = Some(call.info.namespace.clone());
    request.metadata.creation_timestamp = Some(now());
    request.metadata.uid = Some(uuid::Uuid::new_v4().to_string());
    let mut value = serde_json::to_value(&request).map_err(StatusError::internal)?;
    let managed = ownership::of_answer(&sent, TOKEN_REQUEST, &call.manager(), "token")?;
    if !managed.is_null() {
        value["metadata"]["managedFields"] = managed;
    }
    // Said even where there is none.
    if value["spec"]["boundObjectRef"].is_null() {
        value["spec"]["boundObjectRef"] = Value::Null;
    }
    Ok(created(&call, &value))
}
