//! What is no stored resource: discovery, health, the version, OpenAPI, and the kinds that are answered and not stored.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use k8s_openapi::api::core::v1::Binding;
use krate_api::{Kind, StatusError, kinds};
use serde_json::{Value, json};

use crate::auth::User;
use crate::discovery::Other;
use crate::http::{self as wire, Reply, Wanted};
use crate::instruments::FORMAT;
use crate::path::{self, Call, bind_pod};
use crate::request::{Query, RequestInfo};
use crate::server::Server;
use crate::{discovery, health, metrics, openapi, reviews};

const PLAIN: &str = "text/plain; charset=utf-8";

/// What a server of a path that it does not know says.
pub fn not_found() -> Reply {
    wire::reply(StatusCode::NOT_FOUND, PLAIN, "404 page not found\n")
}

/// Whether anything of a group is served; its versions are a matter of its resources.
pub fn serves(server: &Server, group: &str, _version: &str) -> bool {
    server.kinds.rows().iter().any(|kind| kind.group == group)
}

/// Whether requests to something are counted: to what is served as a resource or a part of one, and to the checks of
/// health.
pub fn is_counted(server: &Server, info: &RequestInfo) -> bool {
    if !info.is_resource {
        return matches!(info.path.as_str(), "/healthz" | "/livez" | "/readyz");
    }
    let is_it = |kind: &Kind| {
        kind.plural == info.resource && kind.group == info.group && kind.version == info.version
    };
    let has_part = |kind: &Kind| {
        let part = info.subresource.as_str();
        part.is_empty() || kind.subresources.iter().any(|subresource| subresource.name == part)
    };
    // Most are stored, and those are found by name.
    match server.kinds.at(&info.group, &info.version, &info.resource) {
        Some(storage) => has_part(storage.kind()),
        None => server.kinds.rows().iter().any(|kind| is_it(kind) && has_part(kind)),
    }
}

/// Answers a request to a path that is no resource's.
pub async fn answer(
    server: &Arc<Server>,
    method: &Method,
    info: &RequestInfo,
    query: &Query,
    headers: &HeaderMap,
    _user: &User,
) -> Result<Reply, StatusError> {
    match *method {
        Method::GET => get(server, info, query, headers).await,
        Method::HEAD if is_document(&info.path) => {
            Ok(path::head_not_allowed(Wanted::of(headers, false).unwrap_or(Wanted::JSON)))
        }
        Method::HEAD => get(server, info, query, headers).await.map(wire::without_body),
        _ => Err(path::method_not_allowed()),
    }
}

/// Whether a path is one of those whose documents are asked for by `GET` and by nothing else.
fn is_document(path: &str) -> bool {
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    matches!(first, "api" | "apis" | "version" | ".well-known" | "openid")
}

async fn get(
    server: &Arc<Server>,
    info: &RequestInfo,
    query: &Query,
    headers: &HeaderMap,
) -> Result<Reply, StatusError> {
    let others = &server.aggregation.listed();
    let mut rows = [&*server.kinds.rows(), metrics::rows(server).await].concat();
    rows.retain(|kind| !discovery::is_elsewhere(kind, others));
    let rows = &*rows;
    let parts: Vec<&str> = info.path.trim_matches('/').split('/').collect();
    let document = match parts.as_slice() {
        ["api"] => match aggregated(headers) {
            Some(version) => return Ok(aggregate(rows, others, true, version)),
            None => discovery::api_versions(&server.advertise.to_string()),
        },
        ["apis"] => match aggregated(headers) {
            Some(version) => return Ok(aggregate(rows, others, false, version)),
            None => discovery::api_group_list(rows, others),
        },
        ["api", version] => {
            discovery::api_resource_list(rows, "", version).ok_or_else(path::no_such_resource)?
        }
        ["apis", group] => match discovery::api_group(rows, others, group) {
            Some(document) => document,
            None => return Ok(not_found()),
        },
        ["apis", group, version] => match discovery::api_resource_list(rows, group, version) {
            Some(document) => document,
            None if serves(server, group, version) => return Err(path::no_such_resource()),
            None => return Ok(not_found()),
        },
        ["version"] => version(),
        ["openapi", document @ ..] => {
            let found =
                openapi::answer(&server.openapi, &described(server), document, query.get("hash"), headers);
            return Ok(found.unwrap_or_else(not_found));
        }
        ["healthz" | "livez" | "readyz", check @ ..] => {
            return Ok(health::answer(server, parts[0], check, query).await);
        }
        ["metrics"] => {
            let mut text = server.instruments.text(server);
            if let Some(fairness) = &server.fairness {
                text.extend_from_slice(fairness.text().as_bytes());
            }
            return Ok(wire::reply(StatusCode::OK, FORMAT, text));
        }
        ["metrics", "slis"] => {
            return Ok(wire::reply(StatusCode::OK, FORMAT, health::indicators(server).await));
        }
        [".well-known", "openid-configuration"] => {
            return Ok(published(
                "application/json",
                &server.signer.discovery(&server.advertise.to_string()),
            ));
        }
        ["openid", "v1", "jwks"] => return Ok(published("application/jwk-set+json", &server.signer.jwks())),
        ["debug", "api_priority_and_fairness", dump] => {
            let with_details = query.get("includeRequestDetails").is_some();
            let text = server.fairness.as_ref().and_then(|fairness| fairness.dump(dump, with_details));
            return Ok(text.map_or_else(not_found, |text| wire::reply(StatusCode::OK, PLAIN, text)));
        }
        [""] => json!({"paths": paths(rows, others)}),
        _ => return Ok(not_found()),
    };
    let wanted = Wanted::of(headers, query.flag("pretty")).unwrap_or(Wanted::JSON);
    Ok(wire::json(StatusCode::OK, wanted, document.to_string().into()))
}

/// What the OpenAPI documents describe: the kinds of the vocabulary, and those whose definitions say what they are.
pub(crate) fn described(server: &Server) -> openapi::Served {
    let generation = server.openapi.generation();
    let mut served = openapi::Served {
        generation,
        rows: Vec::new(),
        off: kinds::every().filter(|kind| !server.kinds.serves(kind)).collect(),
        custom: Vec::new(),
        others: Vec::new(),
        elsewhere: Vec::new(),
    };
    let others = server.aggregation.all();
    for remote in others.values() {
        let said = remote.said.lock();
        served.others.extend(said.openapi_v2.clone());
        let place = remote.path().trim_start_matches('/').to_owned();
        served.elsewhere.extend(said.openapi_v3.clone().map(|url| (place, url)));
    }
    for kind in server.kinds.rows().iter().copied() {
        if others.contains_key(&format!("{}.{}", kind.version, kind.group)) {
            continue;
        }
        if kind.custom {
            let Some(storage) = server.kinds.at(kind.group, kind.version, kind.plural) else { continue };
            let Some(schema) = storage.registry.open_api().cloned() else { continue };
            served.custom.push(openapi::Custom { kind, schema });
        }
        served.rows.push(kind);
    }
    served
}

/// The version of aggregated discovery that a client wants, if it wants it.
fn aggregated(headers: &HeaderMap) -> Option<&'static str> {
    let accept = headers.get(ACCEPT)?.to_str().ok()?;
    accept.split(',').find_map(|form| {
        let wants = form.contains("as=APIGroupDiscoveryList") && form.trim().starts_with("application/json");
        match wants {
            true if form.contains("v=v2beta1") => Some("v2beta1"),
            true if form.contains("v=v2") => Some("v2"),
            _ => None,
        }
    })
}

/// What those who verify ServiceAccount tokens ask for, and may keep for an hour.
fn published(media: &'static str, document: &Value) -> Reply {
    let mut reply = wire::reply(StatusCode::OK, media, document.to_string());
    reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600"));
    reply
}

fn aggregate(rows: &[&Kind], others: &[Other], core: bool, version: &'static str) -> Reply {
    let document = discovery::aggregated(rows, others, core, version);
    let mut reply = wire::reply(StatusCode::OK, "application/json", document.to_string());
    let media = format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
    if let Ok(value) = HeaderValue::from_str(&media) {
        reply.headers_mut().insert(CONTENT_TYPE, value);
    }
    reply
}

fn version() -> Value {
    json!({
        "major": "1",
        "minor": "36",
        "emulationMajor": "1",
        "emulationMinor": "36",
        "minCompatibilityMajor": "1",
        "minCompatibilityMinor": "35",
        "gitVersion": "v1.36.2",
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("linux/{}", if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }),
    })
}

fn paths(rows: &[&Kind], others: &[Other]) -> Vec<String> {
    let mut paths: Vec<String> = [
        "/.well-known/openid-configuration",
        "/api",
        "/api/v1",
        "/apis",
        "/healthz",
        "/livez",
        "/metrics",
        "/metrics/slis",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ]
    .map(str::to_owned)
    .to_vec();
    for kind in rows.iter().filter(|kind| !kind.group.is_empty()) {
        paths.push(format!("/apis/{}", kind.group));
        paths.push(format!("/apis/{}", kind.api_version()));
    }
    for other in others {
        paths.push(format!("/apis/{}", other.group));
        paths.push(format!("/apis/{}/{}", other.group, other.version));
    }
    paths.sort();
    paths.dedup();
    paths
}

/// Answers a request to a kind that is not stored: a review, or a binding.
pub async fn unstored(
    server: &Arc<Server>,
    info: &RequestInfo,
    query: &Query,
    headers: &HeaderMap,
    user: &User,
    body: Bytes,
) -> Result<Reply, StatusError> {
    let rows = server.kinds.rows();
    let Some(kind) =
        rows.iter().find(|k| k.group == info.group && k.version == info.version && k.plural == info.resource)
    else {
        return Err(path::no_such_resource());
    };
    if info.verb != "create" {
        return Err(path::method_not_allowed());
    }
    let wanted = Wanted::of(headers, false)?.without_table()?;
    let dry_run = path::write_options(query, "CreateOptions")?;
    let json = wire::to_json(headers, body)?;
    let warnings = path::odd(kind.gvk(), query, &json)?;
    let (who, judge) = (user.info(), &server.authorizer);
    let value = match (kind.group, kind.plural) {
        ("", "bindings") => return binding(server, info, headers, user, &json, dry_run).await,
        ("authentication.k8s.io", "selfsubjectreviews") => {
            to_value(&reviews::self_subject(read(&json, kind)?, &who))
        }
        ("authentication.k8s.io", "tokenreviews") => {
            to_value(&token_review(server, read(&json, kind)?).await?)
        }
        ("authorization.k8s.io", "subjectaccessreviews") => {
            to_value(&reviews::subject_access(read(&json, kind)?, judge).await?)
        }
        ("authorization.k8s.io", "localsubjectaccessreviews") => {
            to_value(&reviews::local_subject_access(read(&json, kind)?, &info.namespace, judge).await?)
        }
        ("authorization.k8s.io", "selfsubjectaccessreviews") => {
            to_value(&reviews::self_subject_access(read(&json, kind)?, &who, judge).await?)
        }
        ("authorization.k8s.io", "selfsubjectrulesreviews") => {
            to_value(&reviews::self_subject_rules(read(&json, kind)?, &who, judge)?)
        }
        _ => return Err(path::no_such_resource()),
    }?;
    let mut value: Value = value;
    let manager = path::manager(query, headers, user);
    let managed = path::of_answer(&json, kind.gvk(), &manager, "")?;
    // The rules are told in a review of their own, not in the one that was asked.
    if !managed.is_null() && kind.plural != "selfsubjectrulesreviews" {
        value["metadata"]["managedFields"] = managed;
    }
    let mut reply = wire::json(StatusCode::CREATED, wanted, value.to_string().into());
    wire::warn(&mut reply, &warnings);
    Ok(reply)
}

fn to_value(object: &impl serde::Serialize) -> Result<Value, StatusError> {
    serde_json::to_value(object).map_err(StatusError::internal)
}

fn read<T: serde::de::DeserializeOwned>(json: &[u8], kind: &Kind) -> Result<T, StatusError> {
    serde_json::from_slice(json).map_err(|error| {
        StatusError::bad_request(format!(
            "{} in version \"{}\" cannot be handled as a {}: {error}",
            kind.kind, kind.version, kind.kind
        ))
    })
}

async fn token_review(
    server: &Server,
    review: k8s_openapi::api::authentication::v1::TokenReview,
) -> Result<k8s_openapi::api::authentication::v1::TokenReview, StatusError> {
    let audiences = review.spec.audiences.clone().unwrap_or_default();
    let found = server.authenticator.by_token(&review.spec.token, &audiences).await;
    reviews::token(review, found.map(|(user, good)| (user.info(), good)))
}

/// `POST bindings`: the old way to bind a pod, which names it in the body.
async fn binding(
    server: &Arc<Server>,
    info: &RequestInfo,
    headers: &HeaderMap,
    user: &User,
    json: &[u8],
    dry_run: bool,
) -> Result<Reply, StatusError> {
    let binding: Binding = read(json, &kinds::BINDING)?;
    let storage = server.kinds.of("", "pods").ok_or_else(path::no_such_resource)?;
    let mut info = info.clone();
    info.name = binding.metadata.name.clone().unwrap_or_default();
    "pods".clone_into(&mut info.resource);
    "binding".clone_into(&mut info.subresource);
    let wanted = Wanted::JSON;
    let mut call = Call {
        server: Arc::clone(server),
        storage,
        info,
        query: Query::default(),
        raw_query: String::new(),
        method: Method::POST,
        headers: headers.clone(),
        user: Arc::new(user.clone()),
        wanted,
        dry_run,
        warnings: Vec::new(),
        upgrade: None,
    };
    bind_pod(&mut call, binding).await?;
    let status =
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(wire::json(StatusCode::CREATED, wanted, status.to_string().into()))
}
