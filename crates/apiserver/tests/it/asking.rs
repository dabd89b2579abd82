//! A server in this process, asked as an administrator.

use http::Method;
use serde_json::{Value, json};

use crate::support::Api;

pub struct Cluster(Api);

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

impl Cluster {
    pub async fn start() -> Cluster {
        Cluster(Api::start().await)
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
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let content = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let method: Method = method.parse().expect("a method");
        let headers = [("content-type", content)];
        let (head, bytes) = self.0.raw(method, path.to_owned(), &headers, &text).await;
        let code = head.status.as_u16();
        let warnings = head.headers.get_all("warning").iter();
        let warnings = warnings.filter_map(|v| v.to_str().ok()).map(str::to_owned).collect();
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
