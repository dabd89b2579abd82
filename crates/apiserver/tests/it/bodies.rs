//! What is said of a body, and where a path leads that is not quite one.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

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
async fn a_watch_is_told_in_a_form_that_has_streams_and_in_rows_that_are_known() {
    let api = started().await;
    let yaml = [("accept", "application/yaml")];
    let (head, _) = api.raw(Method::GET, format!("{MAPS}?watch=1"), &yaml, "").await;
    assert_eq!(head.status, StatusCode::NOT_ACCEPTABLE);
    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let (head, _) = api.raw(Method::GET, format!("{MAPS}?watch=1&includeObject=odd"), &table, "").await;
    assert_eq!(head.status, StatusCode::BAD_REQUEST);
    let path = format!("{MAPS}?watch=1&timeoutSeconds=1&allowWatchBookmarks=true");
    let (_, body) = api.raw(Method::GET, path, &table, "").await;
    let events = String::from_utf8_lossy(&body);
    let bookmark =
        events.lines().find(|event| event.contains("BOOKMARK")).expect("what was there has an end");
    let bookmark: Value = serde_json::from_str(bookmark).expect("an event");
    let annotations = &bookmark["object"]["rows"][0]["object"]["metadata"]["annotations"];
    assert_eq!(annotations["k8s.io/initial-events-end"], "true", "{bookmark:#}");
}

#[tokio::test]
async fn a_proxy_without_a_path_leads_to_its_root() {
    let Some(own) = own_address() else { return };
    let api = started().await;
    let place = format!("{}/p", there(&api, own).await);
    let (head, _) = api.raw(Method::GET, format!("{place}/proxy?a=b"), &[], "").await;
    assert_eq!(head.status, StatusCode::MOVED_PERMANENTLY);
    assert_eq!(head.headers["location"], "/api/v1/namespaces/default/pods/p/proxy/?a=b");
    let (head, _) = api.raw(Method::POST, format!("{place}/proxy"), &[], "").await;
    assert_ne!(head.status, StatusCode::MOVED_PERMANENTLY, "only who reads is sent elsewhere");
}

/// An address of this machine that is not loopback, to which no proxy leads. What is sent to it does not leave the machine.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    let found = Some(address).filter(|ip| !ip.is_loopback() && !ip.is_unspecified());
    if found.is_none() {
        eprintln!("SKIPPED: this machine has no address but loopback");
    }
    found
}

/// Listens at an address on behalf of somebody who listens elsewhere.
async fn relayed(own: IpAddr, to: std::net::SocketAddr) -> u16 {
    let listener = TcpListener::bind((own, 0)).await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((mut one, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut other = TcpStream::connect(to).await.expect("a connection");
                let _ = tokio::io::copy_bidirectional(&mut one, &mut other).await;
            });
        }
    });
    port
}

/// A pod that is at an address, as its status says.
async fn there(api: &Api, ip: IpAddr) -> &'static str {
    let (code, made) = api.post("/api/v1/namespaces/default/pods", &pod("p", json!({}))).await;
    assert_eq!(code, 201, "{made:#}");
    let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}});
    let (code, told) = api.patch("/api/v1/namespaces/default/pods/p/status", &status).await;
    assert_eq!(code, 200, "{told:#}");
    // What is passed on goes by what the server has seen.
    api.get("/api/v1/namespaces/default/pods/p").await;
    "/api/v1/namespaces/default/pods"
}

#[tokio::test]
async fn a_proxy_does_not_lead_to_what_listens_on_loopback() {
    let api = started().await;
    let pods = there(&api, Ipv4Addr::LOCALHOST.into()).await;
    let (head, body) = api.raw(Method::GET, format!("{pods}/p:1/proxy/"), &[], "").await;
    let told: Value = serde_json::from_slice(&body).expect("a status");
    assert_eq!((head.status, &told["message"]), (StatusCode::BAD_REQUEST, &json!("address not allowed")));
}

#[tokio::test]
async fn a_proxy_takes_any_certificate_and_any_method() {
    let Some(own) = own_address() else { return };
    let api = started().await;
    let pods = there(&api, own).await;
    let hook = Webhook::start(|path, _| Some(json!({ "path": path }))).await;
    let place = format!("{pods}/https:p:{}/proxy/a/b?c=d", relayed(own, hook.address).await);
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
    let Some(own) = own_address() else { return };
    let api = started().await;
    let pods = there(&api, own).await;
    let listener = TcpListener::bind((own, 0)).await.expect("a port");
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
    let Some(own) = own_address() else { return };
    let api = started().await;
    let pods = there(&api, own).await;
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
    let listener = TcpListener::bind((own, 0)).await.expect("a port");
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
