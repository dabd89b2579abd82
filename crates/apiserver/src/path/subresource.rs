//! What comes after an object's name: its status, its scale, a binding, an eviction, a token, and what is passed on to
//! its node.

use bytes::Bytes;
use http::StatusCode;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use krate_api::{Gvk, StatusError};
use serde_json::{Value, json};

use super::binding::bind;
use super::call::{Call, no_such_resource, odd};
use super::eviction::evict;
use super::ownership::Ownership;
use super::token::token;
use super::write::change;
use super::{Answer, patch, read, refused, scale, write};
use crate::http::{self as wire, Reply};
use crate::proxy;

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

/// The same of a body that is JSON by now.
///
/// # Errors
/// See [`read_as`].
pub fn read_json<T: serde::de::DeserializeOwned>(
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

/// Puts what is not stored into the namespace of its parent.
///
/// # Errors
/// It names another.
pub fn place(call: &Call, meta: &mut ObjectMeta) -> Result<(), StatusError> {
    call.check_place(meta.namespace.as_deref().unwrap_or_default(), "")?;
    meta.namespace = Some(call.info.namespace.clone());
    Ok(())
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
