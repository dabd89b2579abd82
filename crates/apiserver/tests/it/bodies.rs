//! What is said of a body, and where a path leads that is not quite one.

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::asking::pod;
use crate::hook::Webhook;
use crate::support::Api;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn started() -> Api {
    let api = Api::start().await;
    api.post("/api/v1/namespaces", &json!({"metadata": {"name": "default"}})).await;
    api.post("/api/v1/namespaces/default/serviceaccounts", &json!({"metadata": {"name": "default"}})).await;
    api
}

#[tokio::test]
async fn a_key_that_a_yaml_document_says_twice_is_told() {
    let api = started().await;
    let body = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: twice\ndata:\n  a: b\n  a: c\nodd: 1\n";
    let headers = [("content-type", "application/yaml")];
    let twice = "yaml: unmarshal errors:\n  line 7: key \"a\" already set in map";
    let (head, bytes) = api.raw(Method::POST, format!("{MAPS}?fieldValidation=Strict"), &headers, body).await;
    let refused: Value = serde_json::from_slice(&bytes).expect("a status");
    let told = format!(
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: {twice}, unknown field \"odd\""
    );
    assert_eq!((head.status, &refused["message"]), (StatusCode::BAD_REQUEST, &json!(told)));
    let (head, _) = api.raw(Method::POST, format!("{MAPS}?fieldValidation=Warn"), &headers, body).await;
    assert_eq!(head.status, StatusCode::CREATED);
    let warnings: Vec<&str> =
        head.headers.get_all("warning").iter().filter_map(|w| w.to_str().ok()).collect();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert_eq!(warnings[0], r#"299 - "line 7: key \"a\" already set in map""#);
}

#[tokio::test]
async fn a_proxy_without_a_path_leads_to_its_root() {
    let api = started().await;
    let place = format!("{}/p", there(&api).await);
    let (head, _) = api.raw(Method::GET, format!("{place}/proxy?a=b"), &[], "").await;
    assert_eq!(head.status, StatusCode::MOVED_PERMANENTLY);
    assert_eq!(head.headers["location"], "/api/v1/namespaces/default/pods/p/proxy/?a=b");
    let (head, _) = api.raw(Method::POST, format!("{place}/proxy"), &[], "").await;
    assert_ne!(head.status, StatusCode::MOVED_PERMANENTLY, "only who reads is sent elsewhere");
}

/// A pod on loopback, as its status says.
async fn there(api: &Api) -> &'static str {
    let (code, made) = api.post("/api/v1/namespaces/default/pods", &pod("p", json!({}))).await;
    assert_eq!(code, 201, "{made:#}");
    let status =
        json!({"status": {"phase": "Running", "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}});
    let (code, told) = api.patch("/api/v1/namespaces/default/pods/p/status", &status).await;
    assert_eq!(code, 200, "{told:#}");
    // What is passed on goes by what the server has seen.
    api.get("/api/v1/namespaces/default/pods/p").await;
    "/api/v1/namespaces/default/pods"
}

#[tokio::test]
async fn a_proxy_takes_any_certificate_and_any_method() {
    let api = started().await;
    let pods = there(&api).await;
    let hook = Webhook::start(|path, _| Some(json!({ "path": path }))).await;
    let place = format!("{pods}/https:p:{}/proxy/a/b?c=d", hook.address.port());
    for method in [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS] {
        let (head, body) = api.raw(method.clone(), place.clone(), &[], "").await;
        let said = String::from_utf8_lossy(&body);
        assert_eq!((head.status, &*said), (StatusCode::OK, r#"{"path":"/a/b"}"#), "{method}");
    }
    let (head, _) = api.raw(Method::OPTIONS, format!("{pods}/p/log"), &[], "").await;
    assert_eq!(head.status, StatusCode::METHOD_NOT_ALLOWED, "only of a proxy");
}

#[tokio::test]
async fn links_of_a_page_behind_a_proxy_lead_through_it() {
    let api = started().await;
    let pods = there(&api).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut asked = Vec::new();
        while !asked.ends_with(b"\r\n\r\n") {
            asked.push(stream.read_u8().await.expect("a request"));
        }
        let page = "<a href='/other'>other</a>";
        let length = page.len();
        let said =
            format!("HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {length}\r\n\r\n{page}");
        stream.write_all(said.as_bytes()).await.expect("it is told");
        String::from_utf8(asked).expect("a request")
    });
    let (head, body) = api.raw(Method::GET, format!("{pods}/p:{port}/proxy/a/page"), &[], "").await;
    assert_eq!(head.status, StatusCode::OK);
    let wanted = format!("<a href=\"{pods}/p:{port}/proxy/other\">other</a>");
    assert_eq!(String::from_utf8_lossy(&body), wanted);
    let asked = serving.await.expect("it was asked");
    let forwarded = format!("x-forwarded-uri: {pods}/p:{port}/proxy/a/page\r\n");
    assert!(asked.starts_with("GET /a/page ") && asked.contains(&forwarded), "{asked}");
}

/// Takes one request, answers it with nothing, and tells what it was.
async fn overheard(listener: TcpListener) -> String {
    let (mut stream, _) = listener.accept().await.expect("a connection");
    let mut asked = Vec::new();
    while !asked.ends_with(b"\r\n\r\n") {
        asked.push(stream.read_u8().await.expect("a request"));
    }
    stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.expect("it is told");
    String::from_utf8(asked).expect("a request")
}

#[tokio::test]
async fn who_is_behind_a_proxy_hears_of_the_host_and_of_who_asks() {
    let api = started().await;
    let pods = there(&api).await;
    let binding = json!({"metadata": {"name": "all"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:anonymous"}]});
    let place = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    assert_eq!(api.post(place, &binding).await.0, 201);
    // The authorizer hears of it as everybody does.
    let served = api.listen().await;
    let end = tokio::time::Instant::now() + std::time::Duration::from_mins(1);
    loop {
        let said = served.ask("GET", &format!("{pods}/p"), "").await.read().await;
        if said.starts_with("HTTP/1.1 200") {
            break;
        }
        assert!(said.starts_with("HTTP/1.1 403") && tokio::time::Instant::now() < end, "{said}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let overheard = tokio::spawn(overheard(listener));
    let said = served.ask("GET", &format!("{pods}/p:{port}/proxy/x"), "").await.read().await;
    assert!(said.starts_with("HTTP/1.1 204"), "{said}");
    let asked = overheard.await.expect("it was asked");
    assert!(asked.contains("\r\nhost: a\r\n"), "{asked}");
    assert!(asked.contains("\r\nx-forwarded-for: 127.0.0.1\r\n"), "{asked}");
    assert!(!asked.contains("\r\nconnection: "), "{asked}");
}

#[tokio::test]
async fn what_a_body_leaves_open_has_its_zero_value() {
    let api = started().await;
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
        "spec": {"ports": [{"port": 80}]}});
    let (code, mut made) = api.post("/api/v1/namespaces/default/services", &service).await;
    assert_eq!(code, 201, "{made:#}");
    made["status"]["conditions"] = json!([
        {"type": "A", "status": "True", "reason": "R", "message": null, "lastTransitionTime": null},
        {"type": "B", "status": "True", "reason": "R", "message": ""},
    ]);
    let place = "/api/v1/namespaces/default/services/s/status";
    let (code, told) = api.ask(Method::PUT, place, "application/json", &made).await;
    assert_eq!(code, 200, "{told:#}");
    for condition in told["status"]["conditions"].as_array().expect("conditions") {
        assert!(condition["lastTransitionTime"].is_null(), "Go's time that was never set");
        assert_eq!(condition["message"], "");
    }
    // What cannot be read either way is refused as before.
    made["status"]["conditions"] = json!([{"type": "A", "lastTransitionTime": "soon"}]);
    let (code, told) = api.ask(Method::PUT, place, "application/json", &made).await;
    assert_eq!(code, 400, "{told:#}");
}
