//! Groups that another server serves: a real one, on loopback, that takes requests of nobody but this front proxy.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::StreamExt as _;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tower::Service as _;

use crate::support::{Api, send};

const SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
const NAME: &str = "v1.wardle.example.com";
const FLUNDERS: &str = "/apis/wardle.example.com/v1/namespaces/default/flunders";

type Body = BoxBody<Bytes, Infallible>;

/// A server behind a Service of the name `ext`.
struct Extension {
    address: SocketAddr,
    ca: String,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Extension {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn discovery() -> Value {
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": [{
            "metadata": {"name": "wardle.example.com"}, "versions": [{
                "version": "v1", "freshness": "Current", "resources": [{
                    "resource": "flunders", "scope": "Namespaced", "singularResource": "flunder", "verbs": ["get", "list"],
                    "responseKind": {"group": "", "version": "", "kind": "Flunder"},
                }],
            }],
        }],
    })
}

fn openapi() -> Value {
    let to = json!({"$ref": "#/definitions/com.example.wardle.v1.Flunder"});
    json!({
        "swagger": "2.0",
        "paths": {
            "/apis/wardle.example.com/v1/flunders": {"get": {"responses": {"200": {"schema": to}}}},
            "/apis/other.example.com/v1/flunders": {},
        },
        "definitions": {"com.example.wardle.v1.Flunder": {"type": "object"}},
    })
}

/// What the server was told of the caller.
fn told(headers: &HeaderMap) -> Value {
    let all = |name: &str| headers.get_all(name).iter().filter_map(|v| v.to_str().ok()).collect::<Vec<_>>();
    json!({
        "user": all("x-remote-user"), "groups": all("x-remote-group"), "scopes": all("x-remote-extra-scopes"),
        "authorization": all("authorization"), "id": all("audit-id"),
    })
}

fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).boxed()
}

async fn serve(mut request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let answer = |code: u16, media: &str, body: Body| {
        let head = Response::builder().status(code).header("content-type", media);
        Ok(head.body(body).expect("a reply"))
    };
    let json = |value: Value| answer(200, "application/json", full(value.to_string()));
    match path.as_str() {
        "/apis" => answer(
            200,
            "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
            full(discovery().to_string()),
        ),
        "/apis/wardle.example.com/v1" => json(json!({"kind": "APIResourceList", "resources": []})),
        "/openapi/v2" => json(openapi()),
        "/openapi/v3" => json(json!({"paths": {
            "apis/wardle.example.com/v1": {"serverRelativeURL": "/openapi/v3/apis/wardle.example.com/v1?hash=X"},
        }})),
        "/openapi/v3/apis/wardle.example.com/v1" => {
            json(json!({"openapi": "3.0.0", "info": {"title": "wardle"}}))
        }
        _ if path.ends_with("/connect") => {
            let client = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut client = TokioIo::new(client.await.expect("an upgrade"));
                let mut said = [0; 4];
                client.read_exact(&mut said).await.expect("four bytes");
                said.reverse();
                send(&mut client, said).await;
            });
            let head = Response::builder()
                .status(101)
                .header("connection", "Upgrade")
                .header("upgrade", "backwards");
            Ok(head.body(full("")).expect("a reply"))
        }
        _ if request.uri().query().is_some_and(|q| q.contains("watch=true")) => {
            let lines = futures::stream::iter(["{\"type\":\"ADDED\"}\n", "{\"type\":\"BOOKMARK\"}\n"]);
            // It goes on without an end: what comes must come at once.
            let lines = lines.chain(futures::stream::pending());
            let body = StreamBody::new(lines.map(|line| Ok(Frame::data(Bytes::from(line)))));
            answer(200, "application/json", BodyExt::boxed(body))
        }
        _ if request.method() == Method::POST => {
            let body = request.into_body().collect().await.expect("a body").to_bytes();
            answer(201, "application/json", full(body))
        }
        _ => json(told(request.headers())),
    }
}

impl Extension {
    async fn start(front_proxy_ca: &str) -> Extension {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec!["ext.default.svc".to_owned()]).expect("names");
        let certificate = params.self_signed(&key).expect("a certificate");
        let chain = vec![CertificateDer::from(certificate.der().to_vec())];
        let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(front_proxy_ca.as_bytes()).expect("PEM"))
            .expect("an authority");
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_client_cert_verifier(verifier.build().expect("a verifier"))
            .with_single_cert(chain, private)
            .expect("a certificate and its key");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ =
                        http.serve_connection(TokioIo::new(stream), service_fn(serve)).with_upgrades().await;
                });
            }
        });
        Extension { address, ca: STANDARD.encode(certificate.pem()), task }
    }

    fn service(&self) -> Value {
        json!({
            "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": NAME},
            "spec": {
                "group": "wardle.example.com", "version": "v1", "groupPriorityMinimum": 2000, "versionPriority": 10,
                "caBundle": self.ca,
                "service": {"name": "ext", "namespace": "default", "port": self.address.port()},
            },
        })
    }
}

/// The Service itself: a name of this machine, since slices have no addresses of loopback.
fn here() -> Value {
    json!({"metadata": {"name": "ext"}, "spec": {"type": "ExternalName", "externalName": "localhost"}})
}

fn has(reason: &'static str) -> impl Fn(u16, &Value) -> bool {
    move |_, body: &Value| body["status"]["conditions"][0]["reason"] == reason
}

async fn aggregated() -> (Api, Extension) {
    let api = Api::start().await;
    let extension = Extension::start(api.front_proxy_ca()).await;
    assert_eq!(api.post("/api/v1/namespaces/default/services", &here()).await.0, 201);
    let (code, made) = api.post(SERVICES, &extension.service()).await;
    assert_eq!(code, 201, "{made:#}");
    let passed = api.until(&format!("{SERVICES}/{NAME}"), has("Passed")).await;
    let condition = &passed["status"]["conditions"][0];
    assert_eq!((&condition["status"], &condition["message"]), (&json!("True"), &json!("all checks passed")));
    (api, extension)
}

#[tokio::test]
async fn requests_go_to_the_server_behind_an_api_service_in_the_callers_name() {
    let (api, extension) = aggregated().await;
    let headers = [
        ("x-remote-user", "root"),
        ("x-remote-extra-scopes", "all"),
        ("authorization", "Bearer x"),
        ("audit-id", "1"),
    ];
    let (head, body) = api.raw(Method::GET, format!("{FLUNDERS}/a"), &headers, "").await;
    assert_eq!(head.status, StatusCode::OK);
    let expected = json!({
        "user": ["admin"], "groups": ["system:masters", "system:authenticated"], "scopes": [], "authorization": [],
        "id": ["1"],
    });
    assert_eq!(serde_json::from_slice::<Value>(&body).expect("JSON"), expected);
    let flunder = json!({"metadata": {"name": "a"}});
    assert_eq!(api.post(FLUNDERS, &flunder).await, (201, flunder));
    // Who may not is refused here, and the other server is not asked.
    let request = Request::get(FLUNDERS).body(Full::<Bytes>::default()).expect("a request");
    let refused = api.service_as("jane", &[]).call(request).await.expect("it answers");
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    // A watch's events come as they are sent.
    let mut events = api.open(&format!("{FLUNDERS}?watch=true")).await.into_body();
    let mut said = Vec::new();
    while !String::from_utf8_lossy(&said).contains("BOOKMARK") {
        let frame = events.frame().await.expect("it goes on").expect("a frame");
        said.extend_from_slice(&frame.into_data().expect("data"));
    }
    drop(events);
    // Its certificate is another's.
    let other = Extension::start(api.front_proxy_ca()).await;
    let patch = json!({"spec": {"caBundle": other.ca}});
    api.patch(&format!("{SERVICES}/{NAME}"), &patch).await;
    let broken = api.until(FLUNDERS, |code, _| code == 503).await;
    assert!(
        broken.as_str().is_some_and(|why| why.starts_with("error trying to reach service: tls: ")),
        "{broken}"
    );
    let patch = json!({"spec": {"caBundle": null, "insecureSkipTLSVerify": true}});
    assert_eq!(api.patch(&format!("{SERVICES}/{NAME}"), &patch).await.0, 200);
    api.until(FLUNDERS, |code, _| code == 200).await;
    drop(extension);
}

#[tokio::test]
async fn a_connection_that_changes_its_protocol_is_carried_on() {
    let (api, _extension) = aggregated().await;
    let (client, server) = tokio::io::duplex(1024);
    let service = hyper_util::service::TowerToHyperService::new(api.service_as("admin", &["system:masters"]));
    tokio::spawn(async move {
        let http = hyper::server::conn::http1::Builder::new();
        let _ = http.serve_connection(TokioIo::new(server), service).with_upgrades().await;
    });
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(client)).await.expect("HTTP");
    tokio::spawn(connection.with_upgrades());
    let request = Request::post(format!("{FLUNDERS}/a/connect"))
        .header("host", "x")
        .header("connection", "Upgrade")
        .header("upgrade", "backwards")
        .body(Full::<Bytes>::default())
        .expect("a request");
    let mut reply = sender.send_request(request).await.expect("an answer");
    assert_eq!(reply.status(), StatusCode::SWITCHING_PROTOCOLS);
    let mut stream = TokioIo::new(hyper::upgrade::on(&mut reply).await.expect("an upgrade"));
    send(&mut stream, "abcd").await;
    let mut said = [0; 4];
    stream.read_exact(&mut said).await.expect("four bytes");
    assert_eq!(&said, b"dcba");
}

#[tokio::test]
async fn what_others_serve_is_told_with_what_this_server_serves() {
    let (api, extension) = aggregated().await;
    let (_, groups) = api.get("/apis").await;
    let names: Vec<&str> =
        groups["groups"].as_array().expect("groups").iter().filter_map(|g| g["name"].as_str()).collect();
    assert_eq!(names.last(), Some(&"wardle.example.com"));
    let (_, group) = api.get("/apis/wardle.example.com").await;
    assert_eq!(group["preferredVersion"]["groupVersion"], "wardle.example.com/v1");
    let listed = async || {
        let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
        let (_, body) = api.raw(Method::GET, "/apis".to_owned(), &[("accept", accept)], "").await;
        let list: Value = serde_json::from_slice(&body).expect("JSON");
        let groups = list["items"].as_array().expect("groups").iter();
        groups
            .filter(|g| g["metadata"]["name"] == "wardle.example.com")
            .map(|g| g["versions"][0].clone())
            .next()
    };
    let version = listed().await.expect("listed");
    assert_eq!(
        (&version["freshness"], &version["resources"][0]["resource"]),
        (&json!("Current"), &json!("flunders"))
    );
    let (_, whole) = api.get("/openapi/v2").await;
    assert!(whole["paths"]["/apis/wardle.example.com/v1/flunders"].is_object());
    assert!(whole["paths"]["/apis/other.example.com/v1/flunders"].is_null(), "that is not its group");
    assert!(whole["definitions"]["com.example.wardle.v1.Flunder"].is_object());
    let (_, index) = api.get("/openapi/v3").await;
    let url = &index["paths"]["apis/wardle.example.com/v1"]["serverRelativeURL"];
    assert_eq!(url, "/openapi/v3/apis/wardle.example.com/v1?hash=X");
    assert_eq!(api.get("/openapi/v3/apis/wardle.example.com/v1").await.1["info"]["title"], "wardle");
    // It is gone: what it said is kept, as stale, and it is not asked any more.
    drop(extension);
    api.patch("/api/v1/namespaces/default/services/ext", &json!({"metadata": {"labels": {"a": "b"}}})).await;
    let failed = api.until(&format!("{SERVICES}/{NAME}"), has("FailedDiscoveryCheck")).await;
    let message = failed["status"]["conditions"][0]["message"].as_str().unwrap_or_default();
    assert!(message.starts_with("failing or missing response from https://localhost:"), "{message}");
    assert_eq!(api.get(FLUNDERS).await, (503, json!("service unavailable\n")));
    let version = listed().await.expect("listed");
    assert_eq!(
        (&version["freshness"], &version["resources"][0]["resource"]),
        (&json!("Stale"), &json!("flunders"))
    );
    assert_eq!(api.delete(&format!("{SERVICES}/{NAME}")).await.0, 200);
    api.until("/apis/wardle.example.com", |code, _| code == 404).await;
    assert!(listed().await.is_none());
}

#[tokio::test]
async fn what_cannot_be_reached_is_told_as_upstream_tells_it() {
    let api = Api::start().await;
    let extension = Extension::start(api.front_proxy_ca()).await;
    let mut service = extension.service();
    service["spec"]["service"]["port"] = 443.into();
    assert_eq!(api.post(SERVICES, &service).await.0, 201);
    let place = format!("{SERVICES}/{NAME}");
    let message =
        |body: Value| body["status"]["conditions"][0]["message"].as_str().unwrap_or_default().to_owned();
    let found = api.until(&place, has("ServiceNotFound")).await;
    assert_eq!(message(found), "service/ext in \"default\" is not present");
    let services = "/api/v1/namespaces/default/services";
    let spec = json!({"metadata": {"name": "ext"}, "spec": {"ports": [{"name": "https", "port": 444}]}});
    assert_eq!(api.post(services, &spec).await.0, 201);
    let found = api.until(&place, has("ServicePortError")).await;
    assert_eq!(message(found), "service/ext in \"default\" is not listening on port 443");
    api.patch(&format!("{services}/ext"), &json!({"spec": {"ports": [{"name": "https", "port": 443}]}}))
        .await;
    let found = api.until(&place, has("EndpointsNotFound")).await;
    assert_eq!(message(found), "cannot find endpointslices for service/ext in \"default\"");
    let slice = json!({
        "metadata": {"name": "ext-1", "labels": {"kubernetes.io/service-name": "ext"}}, "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": false}}],
        "ports": [{"name": "https", "port": 443}],
    });
    assert_eq!(api.post("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", &slice).await.0, 201);
    let found = api.until(&place, has("MissingEndpoints")).await;
    let expected = "endpointslices for service/ext in \"default\" have no addresses with port name \"https\"";
    assert_eq!(message(found), expected);
    assert_eq!(api.get(FLUNDERS).await, (503, json!("service unavailable\n")));
    // What others check callers by.
    let (_, map) =
        api.get("/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication").await;
    assert_eq!(map["data"]["requestheader-client-ca-file"], api.front_proxy_ca());
    assert_eq!(map["data"]["requestheader-allowed-names"], "[\"front-proxy-client\"]");
}

#[tokio::test]
async fn custom_resources_have_api_services_for_as_long_as_they_are_served() {
    let api = Api::start().await;
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let version = |name: &str, served: bool, storage: bool| json!({"name": name, "served": served, "storage": storage, "schema": {"openAPIV3Schema": {"type": "object"}}});
    let definition = json!({
        "metadata": {"name": "things.example.com"},
        "spec": {
            "group": "example.com", "scope": "Cluster", "names": {"plural": "things", "kind": "Thing"},
            "versions": [version("v1", true, true), version("v2", false, false)],
        },
    });
    assert_eq!(api.post(definitions, &definition).await.0, 201);
    let place = format!("{SERVICES}/v1.example.com");
    let made = api.until(&place, has("Local")).await;
    assert_eq!(made["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"], "true");
    assert_eq!(
        (&made["spec"]["groupPriorityMinimum"], &made["spec"]["versionPriority"]),
        (&json!(1000), &json!(100))
    );
    let (_, all) = api.get(SERVICES).await;
    assert!(!all.to_string().contains("v2.example.com"), "what is not served has none");
    // Who changes or deletes it finds it as it was.
    api.patch(&place, &json!({"spec": {"versionPriority": 1}})).await;
    api.until(&place, |_, body| body["spec"]["versionPriority"] == 100).await;
    api.delete(&place).await;
    api.until(&place, has("Local")).await;
    assert_eq!(api.delete(&format!("{definitions}/things.example.com")).await.0, 200);
    api.until(&place, |code, _| code == 404).await;
}
