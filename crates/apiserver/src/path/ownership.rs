//! Whose fields are whose: `metadata.managedFields` of what is written, and server-side apply (KEP-555).

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use krate_api::managed::{self, Request, Versions};
use krate_api::schema::TypeRef;
use krate_api::{FieldErrors, FieldPath, Gvk, Kind, Reason, StatusError};
use serde_json::Value;

use super::call::{Call, no_such_resource};
use super::patch::value_of;
use super::versions::Converted;
use super::write::{change, create_object};
use crate::http::Reply;
use crate::registry::erased::Object;
use crate::storage::Current;
use crate::yaml;

/// How it is found out who comes to own what by a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// Whoever changes a field owns it.
    Changes,
    /// The object says it already, or nobody is to own what changes.
    Settled,
}

/// What a status endpoint resets besides the spec, so that nobody comes to own it there.
const STATUS_RESETS: &[(&str, &str, &[&[&str]])] = &[
    ("", "pods", &[&["spec"], &["metadata", "deletionTimestamp"], &["metadata", "ownerReferences"]]),
    ("apps", "deployments", &[&["spec"], &["metadata", "labels"]]),
    ("admissionregistration.k8s.io", "validatingadmissionpolicies", ALL_BUT_STATUS),
    ("flowcontrol.apiserver.k8s.io", "flowschemas", ALL_BUT_STATUS),
    ("flowcontrol.apiserver.k8s.io", "prioritylevelconfigurations", ALL_BUT_STATUS),
    ("networking.k8s.io", "servicecidrs", ALL_BUT_STATUS),
    ("resource.k8s.io", "resourceclaims", ALL_BUT_STATUS),
    ("storage.k8s.io", "volumeattachments", ALL_BUT_STATUS),
];
const ALL_BUT_STATUS: &[&[&str]] = &[&["metadata"], &["spec"]];

fn resets(kind: &Kind, subresource: &str) -> &'static [&'static [&'static str]] {
    match subresource {
        "" if kind.subresource("status").is_some() => &[&["status"]],
        "status" => STATUS_RESETS
            .iter()
            .find(|(group, plural, _)| *group == kind.group && *plural == kind.plural)
            .map_or(&[&["spec"]], |(_, _, fields)| *fields),
        _ => &[],
    }
}

fn request<'a>(call: &'a Call, manager: &'a str, api_version: &'a str, schema: TypeRef<'a>) -> Request<'a> {
    let subresource = call.info.subresource.as_str();
    Request {
        manager,
        api_version,
        subresource,
        now: Timestamp::now(),
        schema,
        reset: resets(call.kind(), subresource),
        versions: None,
    }
}

/// Gives an object the managed fields that it is to be stored with. `live` is what is stored now.
pub async fn track(call: &Call, object: &mut dyn Object, live: Option<&Current>) -> Result<(), StatusError> {
    let registry = Arc::clone(&call.storage.registry);
    let Some(schema) = registry.schema() else { return Ok(()) };
    let meta = object.meta_mut();
    meta.resource_version = None;
    meta.self_link = None;
    let given = meta.managed_fields.take();
    let new = object.to_json();
    let (manager, api_version) = (call.manager(), call.kind().api_version());
    let request = request(call, &manager, &api_version, schema);
    let there = live.and_then(|live| live.object.meta().managed_fields.as_ref());
    let others = there.into_iter().flatten().any(|e| e.api_version.as_deref() != Some(&*api_version));
    if let (Some(live), true) = (live, others)
        && let Some(converted) = Converted::of(call)
    {
        let managed = across(live, &new, given, request, converted).await?;
        object.meta_mut().managed_fields = managed;
        return Ok(());
    }
    let live = live.map(|live| &live.json[..]);
    let managed = managed::on_write(live, there, &new, given, request).map_err(StatusError::internal)?;
    object.meta_mut().managed_fields = managed;
    Ok(())
}

/// What [`track`] gives an object of which some know another version.
async fn across(
    live: &Current,
    new: &[u8],
    given: Option<Vec<ManagedFieldsEntry>>,
    request: Request<'_>,
    converted: Converted,
) -> Result<Option<Vec<ManagedFieldsEntry>>, StatusError> {
    let live = parse(&live.json)?;
    let mut new = parse(new)?;
    if let Some(given) = given {
        new["metadata"]["managedFields"] = serde_json::to_value(given).map_err(StatusError::internal)?;
    }
    let mut converted = Some(converted);
    let told = Converted::until_known(&mut converted, |versions| {
        let mut new = new.clone();
        managed::on_update(Some(&live), &mut new, Request { versions, ..request })?;
        Ok(new)
    });
    let managed = managed::take(&mut told.await?);
    managed.map(serde_json::from_value).transpose().map_err(StatusError::internal)
}

/// The managed fields of what is answered and not stored, such as a review: who asked owns what he sent.
pub fn of_answer(sent: &[u8], kind: Gvk<'_>, manager: &str, subresource: &str) -> Result<Value, StatusError> {
    let Some(schema) = krate_api::schema::of(kind) else { return Ok(Value::Null) };
    let mut sent = parse(sent)?;
    let api_version = kind.api_version();
    let request = Request {
        manager,
        api_version: &api_version,
        subresource,
        now: Timestamp::now(),
        schema,
        reset: &[],
        versions: None,
    };
    managed::on_update(None, &mut sent, request).map_err(|error| error.status())?;
    Ok(managed::take(&mut sent).unwrap_or_default())
}

/// Says in the managed fields of an object that this server itself made of it what it is now. `reset`: what the
/// subresource through which it is changed leaves alone.
///
/// # Errors
/// The objects cannot be read.
pub fn owned_by_server(
    kind: &Kind,
    before: &dyn Object,
    after: &mut dyn Object,
    subresource: &str,
    reset: &[&[&str]],
) -> Result<(), StatusError> {
    let Some(schema) = krate_api::schema::of(kind.gvk()) else { return Ok(()) };
    let api_version = kind.api_version();
    let request = Request {
        manager: "kube-apiserver",
        api_version: &api_version,
        subresource,
        now: Timestamp::now(),
        schema,
        reset,
        versions: None,
    };
    let (old, new) = (before.to_json(), after.to_json());
    let there = before.meta().managed_fields.as_ref();
    let managed = managed::on_write(Some(&old), there, &new, None, request).map_err(StatusError::internal)?;
    after.meta_mut().managed_fields = managed;
    Ok(())
}

fn parse(json: &[u8]) -> Result<Value, StatusError> {
    serde_json::from_slice(json).map_err(StatusError::internal)
}

/// `PATCH` with `application/apply-patch+yaml`: what a manager wants of an object, which is made if it is not there.
pub async fn apply(mut call: Call, body: Bytes) -> Result<Reply, StatusError> {
    let yaml::Document { value: applied, repeated } = yaml::read(&body)
        .map_err(|error| StatusError::bad_request(format!("error decoding YAML: {error}")))?;
    check_applied(&call, &applied)?;
    if let Some(error) = repeated {
        call.complain(error)
            .map_err(|error| StatusError::bad_request(format!("error strict decoding YAML: {error}")))?;
    }
    let force = call.query.flag("force");
    let (namespace, name) = (call.info.namespace.clone(), call.info.name.clone());
    let mut converted = Converted::of(&call);
    loop {
        let current = match call.storage.current(&namespace, &name).await {
            Ok(current) => current,
            Err(error) if error.is(Reason::NotFound) && call.info.subresource.is_empty() => {
                return create(call, &applied, force).await;
            }
            Err(error) => return Err(error),
        };
        let written = change(&mut call, current, true, Ownership::Settled, |call, current| {
            let asked = applied.pointer("/metadata/resourceVersion").and_then(Value::as_str);
            if asked.is_some_and(|asked| !asked.is_empty() && asked != current.revision.to_string()) {
                return Err(None);
            }
            merged(call, Some(current), &applied, force, converted.as_ref()).map_err(Some)
        })
        .await;
        // What others know it as has to be asked for; meanwhile it may have changed.
        match (&mut converted, written) {
            (Some(converted), Err(_)) if converted.wants() => converted.ask().await,
            (_, written) => return call.written(StatusCode::OK, &written?).await,
        }
    }
}

/// Makes what is applied, which is not there yet.
async fn create(mut call: Call, applied: &Value, force: bool) -> Result<Reply, StatusError> {
    if let Some(uid) = applied["metadata"]["uid"].as_str().filter(|uid| !uid.is_empty()) {
        let why = "and no existing object was found";
        return Err(call.conflict(
            &call.info.name,
            format!("uid mismatch: the provided object specified uid {uid}, {why}"),
        ));
    }
    let mut object = merged(&mut call, None, applied, force, None)?;
    // What is not there yet has no version to be held against.
    object.meta_mut().resource_version = None;
    let written = create_object(&mut call, object, Ownership::Settled).await?;
    call.written(StatusCode::CREATED, &written).await
}

fn check_applied(call: &Call, applied: &Value) -> Result<(), StatusError> {
    let kind = call.kind();
    let text = |field: &str| applied[field].as_str().unwrap_or_default();
    let (group, version) = text("apiVersion").split_once('/').unwrap_or(("", text("apiVersion")));
    if version.is_empty() || text("kind").is_empty() || text("kind") != kind.kind || group != kind.group {
        let said = format!("{group}/{version}, Kind={}", text("kind"));
        return Err(StatusError::bad_request(format!("invalid object type: {said}")));
    }
    Ok(())
}

/// What an object becomes once a manager has what he wants of it.
///
/// # Errors
/// Others own what he would change, or it is not what the kind has.
pub fn merged(
    call: &mut Call,
    current: Option<&Current>,
    applied: &Value,
    force: bool,
    converted: Option<&Converted>,
) -> Result<Box<dyn Object>, StatusError> {
    let registry = Arc::clone(&call.storage.registry);
    let schema = registry.schema().ok_or_else(no_such_resource)?;
    let (manager, api_version) = (call.manager(), call.kind().api_version());
    let live = current.map(|current| value_of(&current.json, current.revision)).transpose()?;
    let versions = converted.map(|converted| converted as &dyn Versions);
    let request = Request { versions, ..request(call, &manager, &api_version, schema) };
    let out = managed::apply(live.as_ref(), applied, request, force).map_err(|error| error.status())?;
    let bytes = serde_json::to_vec(&out).map_err(StatusError::internal)?;
    let mut object = call.decode_checked(&bytes)?;
    call.place(&mut *object)?;
    Ok(object)
}

/// What only a patch of one kind may, or must, say.
pub fn check_options(call: &Call, is_apply: bool) -> Result<(), StatusError> {
    let mut errors = FieldErrors::new();
    if is_apply && call.query.get("fieldManager").is_none_or(str::is_empty) {
        errors.required(&FieldPath::new("fieldManager"), "is required for apply patch");
    }
    if !is_apply && call.query.get("force").is_some() {
        errors.forbidden(&FieldPath::new("force"), "may not be specified for non-apply patch");
    }
    if errors.is_empty() {
        return Ok(());
    }
    let kind = Gvk { group: "meta.k8s.io", version: "v1", kind: "PatchOptions" };
    Err(StatusError::invalid(kind, "", &errors))
}
