//! A server of `wardle.example.com/v1alpha1`, made to stand behind an APIService. It asks the cluster everything that such
//! a server asks: who may speak for others (the ConfigMap `extension-apiserver-authentication`), whose a token is
//! (TokenReview), and whether he may (SubjectAccessReview). It keeps flunders, and tells of them as they change.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio_rustls::TlsAcceptor;

pub const GROUP: &str = "wardle.example.com";
pub const VERSION: &str = "v1alpha1";
const API_VERSION: &str = "wardle.example.com/v1alpha1";
const ROOT: &str = "/apis/wardle.example.com/v1alpha1";

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Who asks.
#[derive(Clone, Debug)]
struct User {
    name: String,
    groups: Vec<String>,
}

/// Who may speak for others, as the cluster tells it.
struct FrontProxy {
    ca: String,
    names: Vec<String>,
    user: Vec<String>,
    group: Vec<String>,
}

/// A change: its type, and the flunder that it is of.
type Change = (&'static str, Value);

#[derive(Default)]
struct Kept {
    revision: u64,
    /// By namespace and name.
    flunders: BTreeMap<(String, String), Value>,
}

pub struct Server {
    client: Client,
    front: FrontProxy,
    kept: Mutex<Kept>,
    changes: broadcast::Sender<Change>,
}

/// What a path names.
struct Place {
    namespace: String,
    name: String,
}

fn place(path: &str) -> Option<Place> {
    let parts: Vec<&str> = path.strip_prefix(ROOT)?.trim_matches('/').split('/').collect();
    let (namespace, name) = match parts.as_slice() {
        ["flunders"] => ("", ""),
        ["namespaces", namespace, "flunders"] => (*namespace, ""),
        ["namespaces", namespace, "flunders", name] => (*namespace, *name),
        _ => return None,
    };
    Some(Place { namespace: namespace.to_owned(), name: name.to_owned() })
}

fn verb(method: &Method, place: &Place, watches: bool) -> &'static str {
    match (method.as_str(), place.name.is_empty()) {
        ("GET", true) if watches => "watch",
        ("GET", true) => "list",
        ("GET", false) => "get",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("DELETE", true) => "deletecollection",
        ("DELETE", false) => "delete",
        _ => "patch",
    }
}

fn reply(code: u16, media: &str, body: impl Into<Bytes>) -> Response<Body> {
    let reply = Response::builder().status(code).header(CONTENT_TYPE, media);
    reply.body(Full::new(body.into()).boxed_unsync()).expect("a reply")
}

fn answer(code: u16, value: &Value) -> Response<Body> {
    reply(code, "application/json", value.to_string())
}

fn refused(code: u16, reason: &str, message: &str) -> Response<Body> {
    answer(
        code,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": reason,
            "message": message, "code": code}),
    )
}

impl Server {
    /// One that asks the cluster as this client.
    pub async fn new(client: Client) -> Server {
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
        let map = maps.get("extension-apiserver-authentication").await.expect("who may speak for others");
        let data = map.data.expect("data");
        let list = |key: &str| -> Vec<String> { serde_json::from_str(&data[key]).expect("a list") };
        let front = FrontProxy {
            ca: data["requestheader-client-ca-file"].clone(),
            names: list("requestheader-allowed-names"),
            user: list("requestheader-username-headers"),
            group: list("requestheader-group-headers"),
        };
        let (changes, _) = broadcast::channel(64);
        Server { client, front, kept: Mutex::default(), changes }
    }

    /// Serves until it is dropped, by a certificate and its key (PEM).
    pub async fn serve(self, listener: TcpListener, certificate: &str, key: &str) {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(self.front.ca.as_bytes()) {
            roots.add(authority.expect("PEM")).expect("an authority");
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let chain = CertificateDer::pem_slice_iter(certificate.as_bytes());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_client_cert_verifier(verifier.allow_unauthenticated().build().expect("a verifier"))
            .with_single_cert(
                chain.map(|certificate| certificate.expect("PEM")).collect(),
                PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key"),
            )
            .expect("a certificate");
        let (acceptor, server) = (TlsAcceptor::from(Arc::new(config)), Arc::new(self));
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, server) = (acceptor.clone(), Arc::clone(&server));
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let peer =
                    stream.get_ref().1.peer_certificates().and_then(|chain| common_name(chain.first()?));
                let service = service_fn(|request| {
                    let (server, peer) = (Arc::clone(&server), peer.clone());
                    async move { Ok::<_, Infallible>(server.handle(request, peer.as_deref()).await) }
                });
                drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
            });
        }
    }

    async fn handle(&self, request: Request<Incoming>, peer: Option<&str>) -> Response<Body> {
        let Some(user) = self.who(request.headers(), peer).await else {
            return refused(401, "Unauthorized", "Unauthorized");
        };
        let (path, method) = (request.uri().path().to_owned(), request.method().clone());
        let query: BTreeMap<String, String> = request
            .uri()
            .query()
            .into_iter()
            .flat_map(|query| query.split('&'))
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let watches = query.get("watch").is_some_and(|watch| watch == "true" || watch == "1");
        let place = place(&path);
        if !self.may(&user, &method, &path, place.as_ref(), watches).await {
            let message = format!("User {:?} cannot {method} {path}", user.name);
            return refused(403, "Forbidden", &message);
        }
        match place {
            None => described(&path, request.headers()),
            Some(place) if watches => self.watch(place, &query),
            Some(place) => {
                let body = request
                    .into_body()
                    .collect()
                    .await
                    .map(http_body_util::Collected::to_bytes)
                    .unwrap_or_default();
                self.tend(&method, &place, &body)
            }
        }
    }

    /// Who asks; None where he proves nothing by what he brings.
    async fn who(&self, headers: &HeaderMap, peer: Option<&str>) -> Option<User> {
        let all = |names: &[String]| -> Vec<String> {
            let values = names.iter().flat_map(|name| headers.get_all(name.as_str()));
            values.filter_map(|value| value.to_str().ok()).map(str::to_owned).collect()
        };
        if let Some(peer) = peer
            && (self.front.names.is_empty() || self.front.names.iter().any(|name| name == peer))
        {
            let name = all(&self.front.user).into_iter().next()?;
            return Some(User { name, groups: all(&self.front.group) });
        }
        let Some(token) = headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok()) else {
            let groups = vec!["system:unauthenticated".to_owned()];
            return Some(User { name: "system:anonymous".to_owned(), groups });
        };
        let token = token.strip_prefix("Bearer ")?.to_owned();
        let spec = TokenReviewSpec { token, ..TokenReviewSpec::default() };
        let review = TokenReview { spec, ..TokenReview::default() };
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        let status = reviews.create(&PostParams::default(), &review).await.ok()?.status?;
        let user = status.user.filter(|_| status.authenticated == Some(true))?;
        Some(User { name: user.username?, groups: user.groups.unwrap_or_default() })
    }

    async fn may(
        &self,
        user: &User,
        method: &Method,
        path: &str,
        place: Option<&Place>,
        watches: bool,
    ) -> bool {
        if user.groups.iter().any(|group| group == "system:masters") {
            return true;
        }
        let of_resource = place.map(|place| ResourceAttributes {
            group: Some(GROUP.to_owned()),
            version: Some(VERSION.to_owned()),
            resource: Some("flunders".to_owned()),
            namespace: Some(place.namespace.clone()),
            name: Some(place.name.clone()),
            verb: Some(verb(method, place, watches).to_owned()),
            ..ResourceAttributes::default()
        });
        let of_path =
            NonResourceAttributes { path: Some(path.to_owned()), verb: Some(method.as_str().to_lowercase()) };
        let spec = SubjectAccessReviewSpec {
            user: Some(user.name.clone()),
            groups: Some(user.groups.clone()),
            non_resource_attributes: of_resource.is_none().then_some(of_path),
            resource_attributes: of_resource,
            ..SubjectAccessReviewSpec::default()
        };
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let reviews: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let reviewed = reviews.create(&PostParams::default(), &review).await.expect("a review");
        reviewed.status.is_some_and(|status| status.allowed)
    }

    /// Reads and writes flunders.
    fn tend(&self, method: &Method, place: &Place, body: &[u8]) -> Response<Body> {
        let mut kept = self.kept.lock();
        let key = (place.namespace.clone(), place.name.clone());
        let there = kept.flunders.get(&key).cloned();
        let missing = || refused(404, "NotFound", &format!("flunders.{GROUP} {:?} not found", place.name));
        match verb(method, place, false) {
            "list" => {
                let items: Vec<&Value> = kept.within(&place.namespace).collect();
                let meta = json!({"resourceVersion": kept.revision.to_string()});
                answer(
                    200,
                    &json!({"kind": "FlunderList", "apiVersion": API_VERSION, "metadata": meta, "items": items}),
                )
            }
            "get" => there.map_or_else(missing, |flunder| answer(200, &flunder)),
            verb @ ("create" | "update") => {
                let Ok(mut flunder) = serde_json::from_slice::<Value>(body) else {
                    return refused(400, "BadRequest", "the body is no JSON");
                };
                let name = flunder["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                let known = kept.flunders.contains_key(&(place.namespace.clone(), name.clone()));
                if verb == "create" && known {
                    return refused(
                        409,
                        "AlreadyExists",
                        &format!("flunders.{GROUP} {name:?} already exists"),
                    );
                }
                if verb == "update" && !known {
                    return missing();
                }
                let version = kept.next();
                flunder["metadata"]["namespace"] = place.namespace.as_str().into();
                flunder["metadata"]["resourceVersion"] = version.to_string().into();
                if verb == "create" {
                    flunder["metadata"]["uid"] = format!("00000000-0000-0000-0000-{version:012}").into();
                    flunder["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
                }
                kept.flunders.insert((place.namespace.clone(), name), flunder.clone());
                let (change, code) = if verb == "create" { ("ADDED", 201) } else { ("MODIFIED", 200) };
                drop(self.changes.send((change, flunder.clone())));
                answer(code, &flunder)
            }
            "delete" => {
                let Some(flunder) = kept.flunders.remove(&key) else { return missing() };
                kept.next();
                drop(self.changes.send(("DELETED", flunder)));
                answer(
                    200,
                    &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}),
                )
            }
            _ => refused(
                405,
                "MethodNotAllowed",
                "the server does not allow this method on the requested resource",
            ),
        }
    }

    /// Tells of what there is and of what changes, for as long as it is asked to.
    fn watch(&self, place: Place, query: &BTreeMap<String, String>) -> Response<Body> {
        let changes = self.changes.subscribe();
        let seconds = query.get("timeoutSeconds").and_then(|seconds| seconds.parse().ok()).unwrap_or(60);
        let there: Vec<Change> = {
            let kept = self.kept.lock();
            kept.within(&place.namespace).map(|flunder| ("ADDED", flunder.clone())).collect()
        };
        let later =
            stream::unfold(changes, |mut changes| async { Some((changes.recv().await.ok()?, changes)) });
        let concerns = move |(_, flunder): &Change| {
            let of = flunder["metadata"]["namespace"].as_str().unwrap_or_default();
            std::future::ready(place.namespace.is_empty() || place.namespace == of)
        };
        let events = stream::iter(there).chain(later).filter(concerns);
        let until = tokio::time::sleep(Duration::from_secs(seconds));
        let lines = events.take_until(until).map(|(change, flunder)| {
            let line = format!("{}\n", json!({"type": change, "object": flunder}));
            Ok::<_, Infallible>(Frame::data(Bytes::from(line)))
        });
        let reply = Response::builder().header(CONTENT_TYPE, "application/json");
        reply.body(StreamBody::new(Box::pin(lines)).boxed_unsync()).expect("a reply")
    }
}

impl Kept {
    fn next(&mut self) -> u64 {
        self.revision += 1;
        self.revision
    }

    /// The flunders of a namespace, or all of them.
    fn within(&self, namespace: &str) -> impl Iterator<Item = &Value> {
        let all = self.flunders.iter();
        all.filter(move |((of, _), _)| namespace.is_empty() || of == namespace).map(|(_, flunder)| flunder)
    }
}

fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    parsed.subject().iter_common_name().next()?.as_str().ok().map(str::to_owned)
}

/// What the server says of itself.
fn described(path: &str, headers: &HeaderMap) -> Response<Body> {
    let accept = headers.get(ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    match path {
        "/apis" if accept.contains("as=APIGroupDiscoveryList") => reply(
            200,
            "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
            discovery().to_string(),
        ),
        "/apis/wardle.example.com/v1alpha1" => answer(200, &resources()),
        "/openapi/v2" => answer(200, &openapi()),
        "/openapi/v3" => {
            let place = format!("/openapi/v3{ROOT}");
            answer(200, &json!({"paths": {"apis/wardle.example.com/v1alpha1": {"serverRelativeURL": place}}}))
        }
        "/openapi/v3/apis/wardle.example.com/v1alpha1" => answer(200, &openapi_v3()),
        "/healthz" | "/livez" | "/readyz" => reply(200, "text/plain", "ok"),
        _ => refused(404, "NotFound", "the server could not find the requested resource"),
    }
}

const VERBS: [&str; 6] = ["create", "delete", "get", "list", "update", "watch"];

fn discovery() -> Value {
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": [{
            "metadata": {"name": GROUP}, "versions": [{
                "version": VERSION, "freshness": "Current", "resources": [{
                    "resource": "flunders", "scope": "Namespaced", "singularResource": "flunder", "verbs": VERBS,
                    "responseKind": {"group": GROUP, "version": VERSION, "kind": "Flunder"},
                }],
            }],
        }],
    })
}

fn resources() -> Value {
    json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": API_VERSION, "resources": [{
            "name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder", "verbs": VERBS,
        }],
    })
}

fn flunder() -> Value {
    let text = |what: &str| json!({"type": "string", "description": what});
    json!({
        "type": "object", "description": "A flunder is what is kept here.",
        "x-kubernetes-group-version-kind": [{"group": GROUP, "version": VERSION, "kind": "Flunder"}],
        "properties": {
            "apiVersion": text("The version."), "kind": text("The kind."), "metadata": {"type": "object"},
            "spec": {"type": "object", "properties": {"reference": text("What it refers to.")}},
        },
    })
}

/// By the kind that a path is of, clients find its schema.
fn openapi_v3() -> Value {
    let path = format!("{ROOT}/namespaces/{{namespace}}/flunders");
    json!({
        "openapi": "3.0.0", "info": {"title": "wardle", "version": "0"},
        "paths": {path: {"get": {"x-kubernetes-action": "list",
            "x-kubernetes-group-version-kind": {"group": GROUP, "version": VERSION, "kind": "Flunder"},
            "responses": {"200": {"description": "OK"}}}}},
        "components": {"schemas": {"com.example.wardle.v1alpha1.Flunder": flunder()}},
    })
}

fn openapi() -> Value {
    let path = format!("{ROOT}/namespaces/{{namespace}}/flunders");
    json!({
        "swagger": "2.0", "info": {"title": "wardle", "version": "0"},
        "paths": {path: {"get": {"responses": {"200": {"description": "OK",
            "schema": {"$ref": "#/definitions/com.example.wardle.v1alpha1.Flunder"}}}}}},
        "definitions": {"com.example.wardle.v1alpha1.Flunder": flunder()},
    })
}
