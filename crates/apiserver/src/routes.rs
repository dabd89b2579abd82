//! What is no stored resource: discovery, health, the version, OpenAPI, and the kinds that are answered and not stored.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use k8s_openapi::api::core::v1::Binding;
use krate_api::{Kind, StatusError, kinds};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha512};

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
    wire::plain(StatusCode::NOT_FOUND, "404 page not found\n")
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
    let found = get(server, info, query, headers).await?;
    match *method {
        Method::GET => Ok(found),
        _ if is_only_got(&info.path) && found.status() != StatusCode::NOT_FOUND => {
            Err(path::method_not_allowed())
        }
        Method::HEAD => Ok(wire::without_body(found)),
        _ => Ok(found),
    }
}

/// Whether a path is one of those that are asked by `GET` and by nothing else. At the others upstream does not look at the
/// method.
fn is_only_got(path: &str) -> bool {
    let mut parts = path.trim_matches('/').split('/');
    match parts.next() {
        Some("api" | "version" | ".well-known" | "openid") => true,
        Some("apis") => parts.count() > 1,
        _ => false,
    }
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
        ["api"] if wants_aggregated(headers) => return Ok(aggregate(rows, others, true, query, headers)),
        ["api"] => discovery::api_versions(&server.advertise.to_string()),
        ["apis"] if wants_aggregated(headers) => return Ok(aggregate(rows, others, false, query, headers)),
        ["apis"] => discovery::api_group_list(rows, others),
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
        ["version"] => return Ok(raw(&version())),
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
        ["" | "index.html"] => return Ok(raw(&json!({"paths": paths(rows, others)}))),
        _ => return Ok(not_found()),
    };
    let wanted = Wanted::of_whole(headers, query)?;
    Ok(wire::json(StatusCode::OK, wanted, document.to_string().into()))
}

/// What upstream tells in one form, whoever asks.
fn raw(document: &Value) -> Reply {
    wire::json(StatusCode::OK, Wanted::LAID_OUT, document.to_string().into())
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

/// Whether a client takes aggregated discovery, in the one version that there still is.
fn wants_aggregated(headers: &HeaderMap) -> bool {
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    accept.split(',').any(|form| {
        let mut parts = form.split(';').map(str::trim);
        let has = |wanted: &str| form.split(';').any(|part| part.trim() == wanted);
        parts.next() == Some("application/json")
            && ["g=apidiscovery.k8s.io", "v=v2", "as=APIGroupDiscoveryList"].into_iter().all(has)
    })
}

/// What those who verify ServiceAccount tokens ask for, and may keep for an hour.
fn published(media: &'static str, document: &Value) -> Reply {
    let mut reply = wire::reply(StatusCode::OK, media, document.to_string());
    reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600"));
    reply
}

fn aggregate(rows: &[&Kind], others: &[Other], core: bool, query: &Query, headers: &HeaderMap) -> Reply {
    let document = discovery::aggregated(rows, others, core).to_string();
    let wanted = Wanted { pretty: wire::is_pretty(headers, query), ..Wanted::JSON };
    tagged(document, wanted, headers)
}

/// Aggregated discovery for who may know it already: by its tag clients see that what they keep is still so.
fn tagged(document: String, wanted: Wanted, headers: &HeaderMap) -> Reply {
    const MEDIA: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let tag = HeaderValue::from_str(&format!("\"{}\"", hex::encode_upper(Sha512::digest(&document)))).ok();
    let mut reply = if tag.is_some() && headers.get(IF_NONE_MATCH) == tag.as_ref() {
        let mut known = Reply::default();
        *known.status_mut() = StatusCode::NOT_MODIFIED;
        known
    } else {
        let mut told = wire::json(StatusCode::OK, wanted, document.into());
        told.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA));
        told
    };
    let said = reply.headers_mut();
    said.extend(tag.map(|tag| (ETAG, tag)));
    said.insert(VARY, HeaderValue::from_static("Accept"));
    said.insert(CACHE_CONTROL, HeaderValue::from_static("public"));
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
    let wanted = Wanted::of(headers, query)?.without_table()?;
    let dry_run = path::write_options(query, "CreateOptions")?;
    let json = wire::to_json(headers, body)?;
    let warnings = path::odd(kind.gvk(), query, &json)?;
    let (who, judge) = (user.info(), &server.authorizer);
    let value = match (kind.group, kind.plural) {
        ("", "bindings") => {
            let call = Call {
                server: Arc::clone(server),
                storage: server.kinds.of("", "pods").ok_or_else(path::no_such_resource)?,
                info: info.clone(),
                query: query.clone(),
                raw_query: String::new(),
                method: Method::POST,
                headers: headers.clone(),
                user: Arc::new(user.clone()),
                wanted,
                dry_run,
                warnings,
                upgrade: None,
            };
            return binding(call, &json).await;
        }
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
async fn binding(mut call: Call, json: &[u8]) -> Result<Reply, StatusError> {
    let binding: Binding = read(json, &kinds::BINDING)?;
    call.info.name = binding.metadata.name.clone().unwrap_or_default();
    "pods".clone_into(&mut call.info.resource);
    "binding".clone_into(&mut call.info.subresource);
    bind_pod(&mut call, binding).await?;
    let status =
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    let mut reply = wire::json(StatusCode::CREATED, call.wanted, status.to_string().into());
    wire::warn(&mut reply, &call.warnings);
    Ok(reply)
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[test]
    fn documents_that_are_only_got_are_those_of_upstreams_web_services() {
        for (path, only) in [
            ("/api", true),
            ("/api/v1", true),
            ("/version/", true),
            ("/apis", false),
            ("/apis/apps", false),
            ("/apis/apps/v1", true),
            ("/healthz", false),
            ("/unknown", false),
        ] {
            assert_eq!(is_only_got(path), only, "{path}");
        }
    }

    #[test]
    fn aggregated_discovery_has_one_version() {
        for (accept, wants) in [
            ("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json", true),
            (
                "application/json, application/json; as=APIGroupDiscoveryList; v=v2; g=apidiscovery.k8s.io",
                true,
            ),
            ("application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList", false),
            ("application/json", false),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(accept))]);
            assert_eq!(wants_aggregated(&headers), wants, "{accept}");
        }
    }

    #[tokio::test]
    async fn who_knows_aggregated_discovery_already_is_told_so() {
        let ask = |headers: &HeaderMap| tagged("{}".to_owned(), Wanted::JSON, headers);
        let told = ask(&HeaderMap::new());
        assert_eq!(told.status(), StatusCode::OK);
        assert_eq!(told.headers()[VARY], "Accept");
        assert_eq!(told.headers()[CACHE_CONTROL], "public");
        let tag = told.headers()[ETAG].clone();
        assert_eq!(told.into_body().collect().await.expect("a body").to_bytes(), "{}\n");
        let again = ask(&HeaderMap::from_iter([(IF_NONE_MATCH, tag.clone())]));
        assert_eq!((again.status(), &again.headers()[ETAG]), (StatusCode::NOT_MODIFIED, &tag));
        assert!(again.into_body().collect().await.expect("a body").to_bytes().is_empty());
        let other = ask(&HeaderMap::from_iter([(IF_NONE_MATCH, HeaderValue::from_static("\"A\""))]));
        assert_eq!(other.status(), StatusCode::OK);
    }

    #[tokio::test]
    async fn what_has_one_form_is_laid_out() {
        let told = raw(&json!({"a": 1})).into_body().collect().await.expect("a body").to_bytes();
        assert_eq!(told, "{\n  \"a\": 1\n}");
    }
}
