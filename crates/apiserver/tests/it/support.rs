//! An API server in this process, on a store of its own, asked as its callers ask.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use krate_apiserver::{Server, User};
use krate_store::Embedded;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tower::Service as _;

pub struct Api {
    server: Arc<Server>,
    shutdown: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Drop for Api {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Api {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// A server whose configuration is changed before it starts.
    pub async fn start_with(change: impl FnOnce(&mut krate_apiserver::Config)) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Embedded::open(dir.path().join("state")).expect("a store");
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("names");
        let certificate = params.self_signed(&key).expect("a certificate").pem();
        let mut config = krate_apiserver::Config {
            authentication: krate_apiserver::auth::Settings::signing_with(key.serialize_pem()),
            ca: certificate.clone(),
            node_client_certificate: certificate,
            node_client_key: key.serialize_pem(),
            ..krate_apiserver::Config::default()
        };
        change(&mut config);
        let shutdown = CancellationToken::new();
        let server = Server::start(config, Arc::new(store), shutdown.clone()).await.expect("it starts");
        Api { server, shutdown, _dir: dir }
    }

    /// The server itself, to be put on a socket.
    pub fn server(&self) -> Arc<Server> {
        Arc::clone(&self.server)
    }

    /// The server as this user reaches it.
    pub fn service_as(&self, user: &str, groups: &[&str]) -> krate_apiserver::Service {
        self.server.service_as(User::authenticated(user, groups))
    }

    /// The answer's code and body, as an administrator gets it.
    pub async fn ask(&self, method: Method, path: &str, media: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (head, bytes) = self.raw(method, path.to_owned(), &[("content-type", media)], &body).await;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        (head.status.as_u16(), serde_json::from_slice(&bytes).unwrap_or(Value::String(text)))
    }

    /// The answer's head and bytes, as an administrator gets them.
    pub async fn raw(
        &self,
        method: Method,
        path: String,
        headers: &[(&str, &str)],
        body: &str,
    ) -> (http::response::Parts, Bytes) {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::from(body.to_owned()))).expect("a request");
        let mut service = self.server.service_as(User::authenticated("admin", &["system:masters"]));
        let (head, body) = service.call(request).await.expect("it answers").into_parts();
        (head, body.collect().await.expect("a body").to_bytes())
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        self.ask(Method::GET, path, "application/json", &Value::Null).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.ask(Method::POST, path, "application/json", body).await
    }

    pub async fn patch(&self, path: &str, body: &Value) -> (u16, Value) {
        self.ask(Method::PATCH, path, "application/merge-patch+json", body).await
    }

    pub async fn delete(&self, path: &str) -> (u16, Value) {
        self.ask(Method::DELETE, path, "application/json", &Value::Null).await
    }

    /// Asks until the answer is as it is wanted: for what the server does after it has answered.
    pub async fn until(&self, path: &str, wanted: impl Fn(u16, &Value) -> bool) -> Value {
        let end = tokio::time::Instant::now() + Duration::from_mins(1);
        loop {
            let (code, body) = self.get(path).await;
            if wanted(code, &body) {
                return body;
            }
            assert!(tokio::time::Instant::now() < end, "{path}: {code} {body:#}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
