//! `POST serviceaccounts/x/token` (KEP-1205): a token by which an account is known, for as long as what it is bound to is there.

use bytes::Bytes;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestStatus};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use krate_api::{FieldErrors, FieldPath, Gvk, StatusError};
use serde_json::Value;

use super::call::{Call, no_such_resource};
use super::ownership;
use super::subresource::{created, place, read_json};
use super::write::now;
use crate::admission::{Attributes, Body, Operation};
use crate::auth::Bound;
use crate::auth::TokenBinding;
use crate::auth::token::{EXTENDED_LIFE, REPLACED_LIFE};
use crate::http::{self as wire, Reply};
use crate::registry::erased::Unstored;

const TOKEN_REQUEST: Gvk<'static> =
    Gvk { group: "authentication.k8s.io", version: "v1", kind: "TokenRequest" };
const BODY: Body = Body { kind: TOKEN_REQUEST, decode: Unstored::<TokenRequest>::decode };
/// The life of a token that asks for none, and the shortest that may be asked for, in seconds.
const TOKEN_LIFE: i64 = 3600;
const SHORTEST_LIFE: i64 = 600;
const LONGEST_LIFE: i64 = 1 << 32;

/// # Errors
/// There is no such account, or it may have no such token.
pub async fn token(mut call: Call, body: Bytes) -> Result<Reply, StatusError> {
    call.read_options("CreateOptions")?;
    let sent = wire::to_json(&call.headers, body)?;
    let mut request: TokenRequest = read_json(&mut call, &sent, TOKEN_REQUEST)?;
    place(&call, &mut request.metadata)?;
    let managed = ownership::of_answer(&sent, TOKEN_REQUEST, &call.manager(), "token")?;
    request.metadata.managed_fields = serde_json::from_value(managed).map_err(StatusError::internal)?;
    request.spec.get_or_insert_default().expiration_seconds.get_or_insert(TOKEN_LIFE);
    let request = admit(&mut call, Unstored(request)).await?;
    let value = issue(&mut call, request).await?;
    Ok(created(&call, &value))
}

/// Asks whether there may be such a token, and what it is to be.
async fn admit(call: &mut Call, mut request: Unstored<TokenRequest>) -> Result<TokenRequest, StatusError> {
    let attributes = Attributes::of_body(call, Operation::Create, &request, BODY);
    call.server.admission.mutate(&attributes, &mut request, None).await?;
    let current = call.storage.current(&call.info.namespace, &call.info.name).await;
    check_names(&request.0.metadata, &call.info.namespace, &call.info.name)?;
    settle(&mut request.0, current?.object.meta(), &call.server.signer.audiences)?;
    call.server.admission.validate(&attributes, Some(&request), None).await?;
    call.warnings.extend(attributes.take_warnings());
    Ok(request.0)
}

fn check_names(meta: &ObjectMeta, namespace: &str, name: &str) -> Result<(), StatusError> {
    let asked = [
        ("name", &meta.name, name, "must match the service account name if specified"),
        ("namespace", &meta.namespace, namespace, "must match the service account namespace if specified"),
    ];
    for (field, said, there, why) in asked {
        if let Some(said) = said.as_deref().filter(|said| !said.is_empty() && *said != there) {
            let mut errors = FieldErrors::new();
            errors.invalid(&FieldPath::new("metadata").child(field), said, why);
            return Err(StatusError::invalid(TOKEN_REQUEST, name, &errors));
        }
    }
    Ok(())
}

/// Fills in what a request leaves to the server, by the account that it is made for, and checks it.
fn settle(request: &mut TokenRequest, account: &ObjectMeta, audiences: &[String]) -> Result<(), StatusError> {
    let meta = &mut request.metadata;
    let there = account.uid.as_deref().unwrap_or_default();
    if let Some(asked) = meta.uid.as_deref().filter(|uid| !uid.is_empty() && *uid != there) {
        let why = format!(
            "the UID in the token request ({asked}) does not match the UID of the service account ({there})"
        );
        let name = account.name.as_deref().unwrap_or_default();
        return Err(StatusError::conflict(TOKEN_REQUEST.group, TOKEN_REQUEST.kind, name, why));
    }
    meta.name.clone_from(&account.name);
    meta.namespace.clone_from(&account.namespace);
    meta.uid.clone_from(&account.uid);
    meta.creation_timestamp = Some(now());
    request.status = None;
    let spec = request.spec.get_or_insert_default();
    let asked = spec.audiences.get_or_insert_default();
    if asked.is_empty() {
        audiences.clone_into(asked);
    }
    let seconds = spec.expiration_seconds.unwrap_or(0);
    let mut errors = FieldErrors::new();
    let at = FieldPath::new("spec").child("expirationSeconds");
    if seconds < SHORTEST_LIFE {
        errors.invalid(&at, seconds, "may not specify a duration less than 10 minutes");
    } else if seconds > LONGEST_LIFE {
        errors.invalid(&at, seconds, "may not specify a duration larger than 2^32 seconds");
    }
    if errors.is_empty() { Ok(()) } else { Err(StatusError::invalid(TOKEN_REQUEST, "", &errors)) }
}

fn bound(meta: &ObjectMeta) -> Bound {
    Bound { name: meta.name.clone().unwrap_or_default(), uid: meta.uid.clone().unwrap_or_default() }
}

/// Issues a token as it was admitted.
async fn issue(call: &mut Call, mut request: TokenRequest) -> Result<Value, StatusError> {
    let current = call.storage.current(&call.info.namespace, &call.info.name).await?;
    let Some(account) = current.object.is::<ServiceAccount>() else { return Err(no_such_resource()) };
    let mut binding = TokenBinding {
        namespace: call.info.namespace.clone(),
        serviceaccount: bound(&account.metadata),
        ..TokenBinding::default()
    };
    let spec = request.spec.get_or_insert_default();
    if let Some(reference) = &spec.bound_object_ref {
        bind(call, reference, &mut binding).await?;
    }
    let seconds = spec.expiration_seconds.unwrap_or(TOKEN_LIFE);
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
    let mut value = serde_json::to_value(&request).map_err(StatusError::internal)?;
    // Said even where there is none.
    if value["spec"]["boundObjectRef"].is_null() {
        value["spec"]["boundObjectRef"] = Value::Null;
    }
    Ok(value)
}

/// The resource that a token can be bound to, of a reference's kind.
///
/// # Errors
/// It can be bound to none such.
fn resource_of(reference: &BoundObjectReference) -> Result<&'static str, StatusError> {
    let said = reference.api_version.as_deref().unwrap_or_default();
    let kind = reference.kind.as_deref().unwrap_or_default();
    let (group, version) = said.split_once('/').unwrap_or(("", said));
    match (group, kind) {
        ("", "Pod") => Ok("pods"),
        ("", "Secret") => Ok("secrets"),
        ("", "Node") => Ok("nodes"),
        _ => Err(StatusError::bad_request(format!(
            "cannot bind token to object of type {group}/{version}, Kind={kind}"
        ))),
    }
}

/// Binds a token to an object, and one of a pod to its node too.
async fn bind(
    call: &Call,
    reference: &BoundObjectReference,
    binding: &mut TokenBinding,
) -> Result<(), StatusError> {
    let plural = resource_of(reference)?;
    let name = reference.name.as_deref().unwrap_or_default();
    let namespace = if plural == "nodes" { "" } else { &*call.info.namespace };
    let storage = call.server.kinds.of("", plural).ok_or_else(no_such_resource)?;
    let there = storage.current(namespace, name).await?.object;
    if let Some(pod) = there.is::<Pod>() {
        check_account(pod, &call.info.name)?;
    }
    let to = bound(there.meta());
    if let Some(asked) = reference.uid.as_ref().filter(|uid| !uid.is_empty() && **uid != to.uid) {
        let why = format!(
            "the UID in the bound object reference ({asked}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(StatusError::conflict("", reference.kind.as_deref().unwrap_or_default(), name, why));
    }
    if let Some(pod) = there.is::<Pod>() {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).filter(|node| !node.is_empty());
        if let (Some(node), Some(nodes)) = (node, call.server.kinds.of("", "nodes")) {
            binding.node = Some(match nodes.current("", &node).await {
                Ok(found) => bound(found.object.meta()),
                // Its name is worth saying alone.
                Err(error) if error.code() == 404 => Bound { name: node, uid: String::new() },
                Err(error) => return Err(StatusError::internal(error)),
            });
        }
        binding.pod = Some(to);
    } else if plural == "secrets" {
        binding.secret = Some(to);
    } else {
        binding.node = Some(to);
    }
    Ok(())
}

fn check_account(pod: &Pod, account: &str) -> Result<(), StatusError> {
    let runs_as = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref()).unwrap_or_default();
    if runs_as == account {
        return Ok(());
    }
    Err(StatusError::bad_request(format!(
        "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
    )))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn request(json: Value) -> TokenRequest {
        serde_json::from_value(json).expect("a request")
    }

    fn account() -> ObjectMeta {
        serde_json::from_value(json!({"name": "a", "namespace": "ns", "uid": "u"})).expect("metadata")
    }

    #[test]
    fn a_request_is_filled_in_by_its_account() {
        let mut asked = request(json!({"spec": {"expirationSeconds": 600}, "status": {"token": "forged"}}));
        settle(&mut asked, &account(), &["api".to_owned()]).expect("a request");
        assert_eq!(asked.metadata.uid.as_deref(), Some("u"));
        assert_eq!(asked.spec.and_then(|spec| spec.audiences), Some(vec!["api".to_owned()]));
        assert_eq!(asked.status, None);
    }

    #[test]
    fn a_request_means_its_account_and_no_other() {
        let mut other = request(json!({"metadata": {"uid": "v"}, "spec": {"expirationSeconds": 600}}));
        let refused = settle(&mut other, &account(), &[]).expect_err("another");
        let told = "Operation cannot be fulfilled on TokenRequest.authentication.k8s.io \"a\": the UID in the token request \
                    (v) does not match the UID of the service account (u)";
        assert_eq!((refused.code(), refused.to_string().as_str()), (409, told));
        let meta = ObjectMeta { name: Some("b".to_owned()), ..ObjectMeta::default() };
        let told = "TokenRequest.authentication.k8s.io \"a\" is invalid: metadata.name: Invalid value: \"b\": must match \
                    the service account name if specified";
        assert_eq!(check_names(&meta, "ns", "a").expect_err("another").to_string(), told);
        assert!(check_names(&ObjectMeta::default(), "ns", "a").is_ok());
    }

    #[test]
    fn a_token_is_bound_to_what_goes() {
        let of = |api_version: &str, kind: &str| {
            resource_of(&BoundObjectReference {
                api_version: Some(api_version.to_owned()),
                kind: Some(kind.to_owned()),
                ..BoundObjectReference::default()
            })
        };
        assert_eq!(of("v1", "Pod").expect("a pod"), "pods");
        for (version, kind, told) in
            [("v1", "ConfigMap", "/v1, Kind=ConfigMap"), ("apps/v1", "Pod", "apps/v1, Kind=Pod")]
        {
            let refused = of(version, kind).expect_err(kind).to_string();
            assert_eq!(refused, format!("cannot bind token to object of type {told}"));
        }
    }

    #[test]
    fn a_pods_token_is_one_of_its_account() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [], "serviceAccountName": "a"}}))
            .expect("a pod");
        assert!(check_account(&pod, "a").is_ok());
        let told =
            "cannot bind token for serviceaccount \"b\" to pod running with different serviceaccount name.";
        assert_eq!(check_account(&pod, "b").expect_err("another").to_string(), told);
    }
}
