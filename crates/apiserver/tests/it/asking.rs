//! A server in this process, asked as an administrator.

#![allow(dead_code)] // Each test file uses a part of it.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use krate_apiserver::{Server, Service, User};
use krate_store::Embedded;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

pub struct Cluster {
    service: Service,
    shutdown: CancellationToken,
    _directory: tempfile::TempDir,
}

/// What was answered.
pub struct Answer {
    pub code: u16,
    pub body: Value,
    pub warnings: Vec<String>,
}

impl Answer {
    pub fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }

    #[track_caller]
    pub fn created(self) -> Value {
        assert_eq!(self.code, 201, "{}", self.body);
        self.body
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Cluster {
    pub async fn start() -> Cluster {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Embedded::open(directory.path().join("state")).expect("a store");
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("names");
        let certificate = params.self_signed(&key).expect("a certificate").pem();
        let config = krate_apiserver::Config {
            advertise: "127.0.0.1:6443".parse().expect("an address"),
            service_cidr: "10.96.0.0/16".to_owned(),
            tokens: HashMap::new(),
            service_account_key: key.serialize_pem(),
            service_account_public_key: key.public_key_pem(),
            ca: certificate.clone(),
            node_client_certificate: certificate,
            node_client_key: key.serialize_pem(),
        };
        let shutdown = CancellationToken::new();
        let server = Server::start(config, Arc::new(store), shutdown.clone()).await.expect("it starts");
        let service = server.service_as(User::authenticated("admin", &["system:masters"]));
        Cluster { service, shutdown, _directory: directory }
    }

    /// Asks, and waits until the server itself sees what was written: what admission looks up may be behind.
    pub async fn ask(&self, method: &str, path: &str, body: Value) -> Answer {
        let answer = self.send(method, path, body).await;
        if method != "GET" {
            self.send("GET", "/api/v1/namespaces/default", Value::Null).await;
        }
        answer
    }

    async fn send(&self, method: &str, path: &str, body: Value) -> Answer {
        let bytes = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        let content = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", content)
            .body(Full::new(bytes))
            .expect("a request");
        let reply = self.service.clone().oneshot(request).await.expect("it never fails");
        let code = reply.status().as_u16();
        let warnings = reply.headers().get_all("warning").iter();
        let warnings = warnings.filter_map(|v| v.to_str().ok()).map(str::to_owned).collect();
        let bytes = reply.into_body().collect().await.expect("a body").to_bytes();
        Answer { code, body: serde_json::from_slice(&bytes).unwrap_or_default(), warnings }
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.ask("POST", path, body).await
    }

    pub async fn get(&self, path: &str) -> Value {
        self.ask("GET", path, Value::Null).await.body
    }

    /// A namespace in which pods can be made.
    pub async fn namespace(&self, name: &str, labels: Value) {
        let namespace = json!({"metadata": {"name": name, "labels": labels}});
        self.post("/api/v1/namespaces", namespace).await.created();
        let account = json!({"metadata": {"name": "default"}});
        self.post(&format!("/api/v1/namespaces/{name}/serviceaccounts"), account).await.created();
    }
}

pub fn pod(name: &str, container: Value) -> Value {
    let mut container = container;
    container["name"] = "c".into();
    container["image"] = "i".into();
    json!({"metadata": {"name": name}, "spec": {"containers": [container]}})
}

pub fn config_map(name: &str, data: Value) -> Value {
    json!({"metadata": {"name": name}, "data": data})
}
