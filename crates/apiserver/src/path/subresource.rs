//! What comes after an object's name: its status, its scale, a binding, an eviction, a token, and what is passed on to
//! its node.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::StatusCode;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestStatus};
use k8s_openapi::api::core::v1::{Binding, Namespace, Pod, PodCondition, ServiceAccount};
use k8s_openapi::api::policy::v1::Eviction;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{DeleteOptions, Time};
use krate_api::{FieldErrors, FieldPath, Gvk, Reason, StatusError};
use serde_json::{Value, json};

use super::call::{Call, no_such_resource, unclassified};
use super::delete::delete_object;
use super::ownership::{self, Ownership};
use super::write::{change, now};
use super::{Answer, patch, read, refused, write};
use crate::admission::{node_restriction, pod_topology};
use crate::apiextensions::{plain, set_plain};
use crate::auth::Bound;
use crate::auth::TokenBinding;
use crate::auth::token::{EXTENDED_LIFE, REPLACED_LIFE};
use crate::http::{self as wire, Reply};
use crate::proxy;
use crate::registry::erased::Registry;

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
        ("scale", "get") => Box::pin(get_scale(call)),
        ("scale", "update") => Box::pin(update_scale(call, body)),
        ("scale", "patch") => Box::pin(patch_scale(call, body)),
        ("binding", "create") => Box::pin(bind(call, body)),
        ("eviction", "create") => Box::pin(evict(call, body)),
        ("token", "create") => Box::pin(token(call, body)),
        ("log" | "exec" | "attach" | "portforward" | "proxy", _) => Box::pin(proxy::answer(call, body)),
        _ => refused(no_such_resource()),
    }
}

fn read_as<T: serde::de::DeserializeOwned>(call: &Call, body: Bytes, kind: &str) -> Result<T, StatusError> {
    let json = wire::to_json(&call.headers, body)?;
    serde_json::from_slice(&json).map_err(|error| {
        StatusError::bad_request(format!(
            "the object provided is unrecognized (must be of type {kind}): {error}"
        ))
    })
}

fn created(call: &Call, value: &Value) -> Reply {
    let mut reply = wire::json(StatusCode::CREATED, call.wanted, value.to_string().into());
    wire::warn(&mut reply, &call.warnings);
    reply
}

fn success() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})
}

/// `PUT namespaces/x/finalize`: only the finalizers of the spec change, and with the last of them the namespace is gone.
async fn finalize(mut call: Call, body: Bytes) -> Result<Reply, StatusError> {
    let wanted: Namespace = read_as(&call, body, "Namespace")?;
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

/// A Scale of an object that has replicas.
fn scale_of(object: &Value, registry: &dyn Registry) -> Value {
    let kind = registry.kind();
    let selector = object.pointer("/spec/selector").cloned().unwrap_or_default();
    let paths = registry.scale_paths();
    let text = if let Some(paths) = paths {
        let selector = paths.selector.as_deref().and_then(|path| plain(object, path));
        selector.and_then(Value::as_str).unwrap_or_default().to_owned()
    } else if kind.plural == "replicationcontrollers" {
        let pairs = selector.as_object().into_iter().flatten();
        pairs.map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect::<Vec<_>>().join(",")
    } else {
        serde_json::from_value(selector)
            .map(|s| crate::registry::column::selector_text(&s))
            .unwrap_or_default()
    };
    let meta = &object["metadata"];
    let mut metadata = json!({
        "name": meta["name"], "namespace": meta["namespace"], "uid": meta["uid"],
        "resourceVersion": meta["resourceVersion"], "creationTimestamp": meta["creationTimestamp"],
    });
    if let Some(fields) = metadata.as_object_mut() {
        fields.retain(|_, v| !v.is_null());
    }
    let replicas = |at: &str| plain(object, at).cloned().filter(|v| !v.is_null());
    let mut spec = json!({});
    if let Some(n) = replicas(paths.map_or(".spec.replicas", |p| &p.spec)).filter(|n| *n != 0) {
        spec["replicas"] = n;
    }
    let running = replicas(paths.map_or(".status.replicas", |p| &p.status));
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec,
        "status": {"replicas": running.unwrap_or_else(|| 0.into()), "selector": text},
    })
}

async fn scale_now(call: &Call) -> Result<Value, StatusError> {
    let current = call.storage.current(&call.info.namespace, &call.info.name).await?;
    let bytes = crate::storage::with_revision(&current.json, current.revision);
    let object = serde_json::from_slice(&bytes).map_err(StatusError::internal)?;
    Ok(scale_of(&object, &*call.storage.registry))
}

async fn get_scale(call: Call) -> Result<Reply, StatusError> {
    let scale = scale_now(&call).await?;
    Ok(wire::json(StatusCode::OK, call.wanted, scale.to_string().into()))
}

async fn update_scale(mut call: Call, body: Bytes) -> Result<Reply, StatusError> {
    call.read_options("UpdateOptions")?;
    let scale: Value = read_as(&call, body, "Scale")?;
    set_scale(call, &scale).await
}

async fn patch_scale(mut call: Call, body: Bytes) -> Result<Reply, StatusError> {
    call.read_options("PatchOptions")?;
    let mut scale = scale_now(&call).await?;
    patch::apply_body(
        &mut scale,
        &call.headers,
        &body,
        Gvk { group: "autoscaling", version: "v1", kind: "Scale" },
    )?;
    // Who patches does not say what he has seen.
    if let Some(meta) = scale["metadata"].as_object_mut() {
        meta.remove("resourceVersion");
    }
    set_scale(call, &scale).await
}

async fn set_scale(mut call: Call, scale: &Value) -> Result<Reply, StatusError> {
    let replicas = scale.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(0);
    if replicas < 0 {
        let mut errors = FieldErrors::new();
        errors.invalid(
            &FieldPath::new("spec").child("replicas"),
            replicas,
            "must be greater than or equal to 0",
        );
        let kind = Gvk { group: "autoscaling", version: "v1", kind: "Scale" };
        return Err(StatusError::invalid(kind, &call.info.name, &errors));
    }
    let asked = scale.pointer("/metadata/resourceVersion").and_then(Value::as_str).map(str::to_owned);
    let current = call.storage.current(&call.info.namespace, &call.info.name).await?;
    let written = change(&mut call, current, asked.is_none(), Ownership::Changes, |call, current| {
        if asked.as_ref().is_some_and(|asked| *asked != current.revision.to_string()) {
            return Err(None);
        }
        let internal = |error: serde_json::Error| Some(StatusError::internal(error));
        let mut object: Value = serde_json::from_slice(&current.json).map_err(internal)?;
        let at = call.storage.registry.scale_paths().map_or(".spec.replicas", |paths| &paths.spec);
        set_plain(&mut object, at, replicas.into());
        let bytes = serde_json::to_vec(&object).map_err(internal)?;
        call.storage.registry.decode(&bytes).map_err(|error| Some(StatusError::internal(error)))
    })
    .await?;
    let sent = call.storage.sent(&written.bytes).await?;
    let object = serde_json::from_slice(&sent).map_err(StatusError::internal)?;
    let scale = scale_of(&object, &*call.storage.registry);
    Ok(wire::json(StatusCode::OK, call.wanted, scale.to_string().into()))
}

/// `POST pods/x/binding`: the scheduler's word that a pod is to run on a node.
async fn bind(mut call: Call, body: Bytes) -> Result<Reply, StatusError> {
    call.read_options("CreateOptions")?;
    let binding: Binding = read_as(&call, body, "Binding")?;
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
    let uid = binding.metadata.uid.filter(|uid| !uid.is_empty());
    let annotations = binding.metadata.annotations.unwrap_or_default();
    let name = call.info.name.clone();
    let current = call.storage.current(&call.info.namespace, &name).await?;
    let topology = if call.server.admission.has("PodTopologyLabels") {
        pod_topology::of_node(&call.server.kinds, &node).await?
    } else {
        BTreeMap::new()
    };
    // Upstream binds outside of what tracks fields.
    change(call, current, true, Ownership::Settled, |_, current| {
        let refuse = |why: String| Some(StatusError::conflict("", "pods/binding", &name, why));
        let mut object = current.object.boxed_clone();
        let Some(pod) = object.is_mut::<Pod>() else { return Err(Some(no_such_resource())) };
        if let Some(asked) = uid.as_ref().filter(|asked| pod.metadata.uid.as_ref() != Some(*asked)) {
            return Err(refuse(format!(
                "Precondition failed: UID in precondition: {asked}, UID in object meta: {}",
                pod.metadata.uid.clone().unwrap_or_default()
            )));
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
        pod_topology::give(pod, &topology);
        let conditions = pod.status.get_or_insert_default().conditions.get_or_insert_default();
        set_scheduled(conditions, now());
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

/// `POST pods/x/eviction`: a deletion that minds disruption budgets (KEP-85).
async fn evict(mut call: Call, body: Bytes) -> Result<Reply, StatusError> {
    call.read_options("CreateOptions")?;
    let eviction: Eviction = read_as(&call, body, "Eviction")?;
    let name = call.info.name.clone();
    if eviction.metadata.name.as_deref().is_some_and(|n| !n.is_empty() && n != name) {
        return Err(StatusError::bad_request("name in URL does not match name in Eviction object"));
    }
    let current = call.storage.current(&call.info.namespace, &name).await?;
    if let Some(pod) = current.object.is::<Pod>() {
        budgets(&call, pod).await?;
    }
    let options: DeleteOptions = eviction.delete_options.unwrap_or_default();
    delete_object(&mut call, &name, &options).await?;
    Ok(created(&call, &success()))
}

/// Whether the disruption budgets of a pod let it go.
async fn budgets(call: &Call, pod: &Pod) -> Result<(), StatusError> {
    use k8s_openapi::api::policy::v1::PodDisruptionBudget;
    use krate_store::cache::{Freshness, ListQuery, Scope};
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
    // What has ended, or has not begun, disrupts nobody.
    if matches!(phase, "Succeeded" | "Failed" | "Pending") || pod.metadata.deletion_timestamp.is_some() {
        return Ok(());
    }
    let Some(storage) = call.server.kinds.of("policy", "poddisruptionbudgets") else { return Ok(()) };
    let query = ListQuery::new(Scope::namespace(&call.info.namespace), Freshness::Latest);
    let list = storage.cache.list(&query).await.map_err(crate::storage::refused)?;
    for cached in &list.items {
        let object = storage.decode(&cached.value, cached.revision)?.object;
        let Some(budget) = object.is::<PodDisruptionBudget>() else { continue };
        let selector = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
        let selects = selector.is_some()
            && krate_api::LabelSelector::from_meta(selector)
                .is_ok_and(|s| s.matches_opt(pod.metadata.labels.as_ref()));
        let allowed = budget.status.as_ref().and_then(|s| s.disruptions_allowed).unwrap_or(0);
        if selects && allowed <= 0 {
            let mut refused = StatusError::new(
                Reason::TooManyRequests,
                "Cannot evict pod as it would violate the pod's disruption budget.",
            );
            refused.0.details = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::StatusDetails {
                causes: Some(vec![k8s_openapi::apimachinery::pkg::apis::meta::v1::StatusCause {
                    reason: Some("DisruptionBudget".to_owned()),
                    message: Some(format!(
                        "The disruption budget {} needs {} healthy pods and has {} currently",
                        cached.head.name,
                        budget.status.as_ref().and_then(|s| s.desired_healthy).unwrap_or(0),
                        budget.status.as_ref().and_then(|s| s.current_healthy).unwrap_or(0),
                    )),
                    field: None,
                }]),
                ..Default::default()
            });
            return Err(refused);
        }
    }
    Ok(())
}

/// The life of a token that asks for none, and the shortest that may be asked for, in seconds.
const TOKEN_LIFE: i64 = 3600;
const SHORTEST_LIFE: i64 = 600;
const LONGEST_LIFE: i64 = 1 << 32;

/// `POST serviceaccounts/x/token` (KEP-1205).
async fn token(mut call: Call, body: Bytes) -> Result<Reply, StatusError> {
    call.read_options("CreateOptions")?;
    let sent = wire::to_json(&call.headers, body.clone())?;
    let mut request: TokenRequest = read_as(&call, body, "TokenRequest")?;
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
        let kind = Gvk { group: "authentication.k8s.io", version: "v1", kind: "TokenRequest" };
        return Err(StatusError::invalid(kind, "", &errors));
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
    let kind = Gvk { group: "authentication.k8s.io", version: "v1", kind: "TokenRequest" };
    let managed = ownership::of_answer(&sent, kind, &call.manager(), "token")?;
    if !managed.is_null() {
        value["metadata"]["managedFields"] = managed;
    }
    // Said even where there is none.
    if value["spec"]["boundObjectRef"].is_null() {
        value["spec"]["boundObjectRef"] = Value::Null;
    }
    Ok(created(&call, &value))
}
