//! What the server takes on, for how long, and how it stops: slow clients, too much at a time, too large, too late.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use krate_apiserver::{Limits, Service};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::oneshot;
use tower::Service as _;

use crate::support::{Api, send};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_mins(1);

/// Asks with a body that comes when it is given; the code and the body of the answer, and its `Retry-After`.
async fn post(mut service: Service, path: &str, body: oneshot::Receiver<Value>) -> (u16, String, String) {
    let body = StreamBody::new(futures::stream::once(async move {
        let Ok(body) = body.await else { return std::future::pending().await };
        Ok::<_, Infallible>(Frame::data(Bytes::from(body.to_string())))
    }));
    let request =
        Request::builder().method(Method::POST).uri(path).header("content-type", "application/json");
    let reply = service.call(request.body(body).expect("a request")).await.expect("it answers");
    let after =
        reply.headers().get("retry-after").and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let code = reply.status().as_u16();
    let text = reply.into_body().collect().await.expect("a body").to_bytes();
    (code, String::from_utf8_lossy(&text).into_owned(), after)
}

fn config_map(name: &str) -> Value {
    json!({"metadata": {"name": name}})
}

#[tokio::test]
async fn a_request_has_its_time_and_not_more() {
    let api =
        Api::start_with(|config| config.limits = Limits { request_timeout: PATIENCE, ..Limits::default() })
            .await;
    let (_never, body) = oneshot::channel();
    let (code, text, _) =
        post(api.service_as("a", &["system:masters"]), &format!("{MAPS}?timeout=50ms"), body).await;
    let status: Value = serde_json::from_str(&text).expect("a Status");
    assert_eq!(code, 504, "{text}");
    assert_eq!(status["reason"], "Timeout");
    assert_eq!(status["message"], "Timeout: request did not complete within the allotted timeout");
    let (code, status) = api.get(&format!("{MAPS}?timeout=soon")).await;
    assert_eq!(code, 400);
    assert_eq!(
        status["message"],
        "invalid timeout specified in the request URL - time: invalid duration \"soon\""
    );
}

#[tokio::test]
async fn without_fairness_there_are_so_many_at_a_time() {
    let api = Api::start_with(|config| {
        config.limits = Limits { fairness: false, reading: 1, mutating: 1, ..Limits::default() }
    })
    .await;
    let binding = json!({"metadata": {"name": "crowd"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "crowd"}]});
    assert_eq!(api.post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding).await.0, 201);
    // The first holds the place from when it has been asked on; who comes meanwhile is turned away.
    let (give, body) = oneshot::channel();
    let mut first = Box::pin(post(api.service_as("jane", &["crowd"]), MAPS, body));
    let second = loop {
        tokio::select! {
            biased;
            (code, text, _) = &mut first => {
                // The binding was not known yet: again.
                assert_eq!(code, 403, "{text}");
                tokio::task::yield_now().await;
                let (_, body) = oneshot::channel();
                first = Box::pin(post(api.service_as("jane", &["crowd"]), MAPS, body));
            }
            () = std::future::ready(()) => {
                let (_, body) = oneshot::channel();
                break post(api.service_as("joe", &["crowd"]), MAPS, body).await;
            }
        }
    };
    let (code, text, after) = second;
    assert_eq!(
        (code, text.as_str(), after.as_str()),
        (429, "Too many requests, please try again later.\n", "1")
    );
    assert_eq!(api.post(MAPS, &config_map("of-a-master")).await.0, 201);
    let (head, _) = api.raw(Method::GET, MAPS.to_owned(), &[], "").await;
    assert!(!head.headers.contains_key("x-kubernetes-pf-flowschema-uid"));
    assert_eq!(api.get("/debug/api_priority_and_fairness/dump_queues").await.0, 404);
    drop((give, first));
}

#[tokio::test]
async fn slow_clients_are_not_waited_for() {
    let limits = Limits { read_header_timeout: Duration::from_secs(2), ..Limits::default() };
    let api = Api::start_with(|config| config.limits = limits).await;
    let served = api.listen().await;
    // One says nothing, one says its head bit by bit.
    let mut silent = served.connect().await;
    let mut slow = served.connect().await;
    send(&mut slow, "GET /version HTTP/1.1\r\nHost: a\r\n").await;
    let (mut reader, mut writer) = tokio::io::split(slow);
    let trickle = tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            if writer.write_all(b"X: y\r\n").await.is_err() || writer.flush().await.is_err() {
                return;
            }
        }
    });
    let mut said = Vec::new();
    let ends = async {
        let _ = silent.read_to_end(&mut Vec::new()).await;
        let _ = reader.read_to_end(&mut said).await;
    };
    tokio::time::timeout(PATIENCE, ends).await.expect("both are hung up on");
    trickle.abort();
    assert!(!String::from_utf8_lossy(&said).contains("200 OK"));
    // Others are served all the while.
    let mut other = served.connect().await;
    send(&mut other, "GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    let mut text = String::new();
    let _ = other.read_to_string(&mut text).await;
    assert!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
}

#[tokio::test]
async fn what_is_too_large_is_told_so() {
    let api = Api::start().await;
    let served = api.listen().await;
    let client = served.connect().await;
    let head =
        format!("GET /livez HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(1024 * 1024 + 64 * 1024));
    // It may hang up before it has read all of it.
    let (mut reader, mut writer) = tokio::io::split(client);
    let send = tokio::spawn(async move {
        let _ = writer.write_all(head.as_bytes()).await;
        writer
    });
    let mut text = vec![0; 64];
    let n =
        tokio::time::timeout(PATIENCE, reader.read(&mut text)).await.expect("in time").expect("an answer");
    assert!(text[..n].starts_with(b"HTTP/1.1 431 "), "{}", String::from_utf8_lossy(&text[..n]));
    send.abort();
    let large = json!({"metadata": {"name": "large"}, "data": {"a": "b".repeat(3 * 1024 * 1024)}});
    let (code, status) = api.post(MAPS, &large).await;
    assert_eq!((code, status["message"].as_str()), (413, Some("Request entity too large: limit is 3145728")));
}

#[tokio::test]
async fn a_server_that_stops_is_not_ready_and_serves_on_for_a_while() {
    let api = Api::start_with(|config| {
        config.limits = Limits { shutdown_delay: Duration::from_secs(3), ..Limits::default() }
    })
    .await;
    let served = api.listen().await;
    let (code, text) = api.get("/readyz?verbose").await;
    let text = text.as_str().unwrap_or_default();
    assert_eq!(code, 200);
    for line in [
        "[+]ping ok\n",
        "[+]etcd ok\n",
        "[+]poststarthook/rbac/bootstrap-roles ok\n",
        "[+]shutdown ok\nreadyz check passed\n",
    ] {
        assert!(text.contains(line), "{text}");
    }
    assert_eq!(api.get("/livez/poststarthook/rbac/bootstrap-roles").await.0, 200);

    // A watch, and a write that is under way. Here everybody may do everything.
    let binding = json!({"metadata": {"name": "all"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:unauthenticated"}]});
    assert_eq!(api.post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding).await.0, 201);
    while !served.ask("GET", MAPS, "").await.read().await.starts_with("HTTP/1.1 200 OK") {
        tokio::task::yield_now().await;
    }
    let watch = served.ask("GET", &format!("{MAPS}?watch=1&resourceVersion=0"), "").await;
    let mut writing = served.connect().await;
    let body = config_map("late").to_string();
    let head = format!(
        "POST {MAPS} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    send(&mut writing, head).await;
    api.until("/metrics", |_, text| {
        let text = text.as_str().unwrap_or_default();
        text.contains("apiserver_current_inflight_requests{request_kind=\"mutating\"} 1\n")
    })
    .await;
    api.stop();
    let (code, text) = api.get("/readyz").await;
    assert_eq!(code, 500);
    let text = text.as_str().unwrap_or_default();
    assert!(text.ends_with("[-]shutdown failed: reason withheld\nreadyz check failed\n"), "{text}");
    assert_eq!(api.get("/livez").await.0, 200);
    let (code, text) = api.get("/readyz/shutdown").await;
    assert_eq!((code, text.as_str()), (500, Some("internal server error: process is shutting down\n")));
    // New connections are taken until the delay is over.
    let answer = served.ask("GET", "/livez", "").await;
    assert!(answer.read().await.starts_with("HTTP/1.1 200 OK"));
    // Then the watch ends, and the write does not break off.
    let events = tokio::time::timeout(PATIENCE, watch.read()).await.expect("the watch ends");
    assert!(events.starts_with("HTTP/1.1 200 OK") && events.ends_with("0\r\n\r\n"), "{events}");
    send(&mut writing, body).await;
    let mut text = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, writing.read_to_end(&mut text)).await.expect("it is answered");
    assert!(text.starts_with(b"HTTP/1.1 201 Created"), "{}", String::from_utf8_lossy(&text));
    tokio::time::timeout(PATIENCE, served.ended()).await.expect("the server ends");
}
