//! Traces arrive at a collector, with the spans of what a request is made of.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use krate_api::protobuf::wire::{Wire, fields};
use krate_apiserver::{Tracing, User};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::support::Api;

const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
const PATIENCE: Duration = Duration::from_mins(1);
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";

/// A span as the collector reads it.
#[derive(Clone, Debug, Default)]
struct Span {
    trace: String,
    id: String,
    parent: String,
    name: String,
    kind: u64,
    took: u64,
    attributes: Vec<(String, String)>,
    links: Vec<String>,
}

fn each(bytes: &[u8]) -> impl Iterator<Item = (u64, Wire<'_>)> {
    fields(bytes).map(|field| field.expect("a field"))
}

/// The messages that a field of a message holds.
fn within(bytes: &[u8], number: u64) -> impl Iterator<Item = &[u8]> {
    each(bytes).filter(move |(n, _)| *n == number).map(|(n, wire)| wire.bytes(n).expect("bytes"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// A key and its value, by the numbers of `opentelemetry.proto.common.v1`.
fn attribute(bytes: &[u8]) -> (String, String) {
    let key = within(bytes, 1).next().map(text).expect("a key");
    let value = within(bytes, 2).next().expect("a value");
    let value = match each(value).next() {
        Some((1, wire)) => text(wire.bytes(1).expect("text")),
        Some((3, wire)) => wire.varint(3).expect("a number").to_string(),
        other => panic!("{other:?}"),
    };
    (key, value)
}

/// By the numbers of `opentelemetry.proto.trace.v1`.
fn span(bytes: &[u8]) -> Span {
    let mut out = Span::default();
    let (mut start, mut end) = (0, 0);
    for (number, wire) in each(bytes) {
        match (number, wire) {
            (1, wire) => out.trace = hex::encode(wire.bytes(1).expect("bytes")),
            (2, wire) => out.id = hex::encode(wire.bytes(2).expect("bytes")),
            (4, wire) => out.parent = hex::encode(wire.bytes(4).expect("bytes")),
            (5, wire) => out.name = text(wire.bytes(5).expect("bytes")),
            (6, wire) => out.kind = wire.varint(6).expect("a number"),
            (7, Wire::Fixed64(nanos)) => start = nanos,
            (8, Wire::Fixed64(nanos)) => end = nanos,
            (9, wire) => out.attributes.push(attribute(wire.bytes(9).expect("bytes"))),
            (13, wire) => out.links.extend(within(wire.bytes(13).expect("bytes"), 1).map(hex::encode)),
            other => panic!("{other:?} is not expected in a span"),
        }
    }
    out.took = end.checked_sub(start).expect("it ends after it begins");
    out
}

/// A collector on loopback; what it is told comes out of the channel.
async fn collector() -> (String, mpsc::UnboundedReceiver<Span>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let (told, spans) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let told = told.clone();
            let serve = service_fn(move |request: Request<Incoming>| {
                let told = told.clone();
                async move {
                    assert_eq!(request.uri().path(), EXPORT);
                    let body = request.into_body().collect().await.expect("a body").to_bytes();
                    // Before a message of gRPC there is whether it is compressed, and its length.
                    for resource in within(&body[5..], 1) {
                        let about = within(resource, 1).next().expect("a resource");
                        let names: Vec<(String, String)> = within(about, 1).map(attribute).collect();
                        assert!(
                            names.contains(&("service.name".to_owned(), "apiserver".to_owned())),
                            "{names:?}"
                        );
                        for scope in within(resource, 2) {
                            within(scope, 2).for_each(|one| drop(told.send(span(one))));
                        }
                    }
                    let trailers = HeaderMap::from_iter([(
                        http::HeaderName::from_static("grpc-status"),
                        HeaderValue::from_static("0"),
                    )]);
                    let frames = [Frame::data(Bytes::from_static(&[0; 5])), Frame::trailers(trailers)];
                    let frames = futures::stream::iter(frames.map(Ok::<_, Infallible>));
                    let reply = Response::builder().header("content-type", "application/grpc");
                    Ok::<_, Infallible>(reply.body(StreamBody::new(frames)).expect("a reply"))
                }
            });
            tokio::spawn(
                http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), serve),
            );
        }
    });
    (address, spans)
}

/// All spans of a trace, once the first one of the request is there.
async fn spans_of(spans: &mut mpsc::UnboundedReceiver<Span>, is_it: impl Fn(&Span) -> bool) -> Vec<Span> {
    let mut all: Vec<Span> = Vec::new();
    let found = tokio::time::timeout(PATIENCE, async {
        loop {
            all.push(spans.recv().await.expect("the collector lives"));
            if let Some(root) = all.iter().find(|span| span.kind == 2 && is_it(span)) {
                return root.clone();
            }
        }
    });
    let root = found.await.expect("the request's span comes");
    all.into_iter().filter(|span| span.trace == root.trace).collect()
}

async fn start(per_million: u64) -> (Arc<Api>, mpsc::UnboundedReceiver<Span>) {
    let (endpoint, spans) = collector().await;
    let api = Api::start_with(|config| config.tracing = Some(Tracing { endpoint, per_million })).await;
    (Arc::new(api), spans)
}

#[tokio::test]
async fn a_request_is_told_with_what_it_is_made_of() {
    let (api, mut spans) = start(0).await;
    // Nothing is traced but what who asks traces himself.
    let parent = format!("00-{TRACE}-{SPAN}-01");
    let path = "/api/v1/namespaces/default/configmaps";
    let headers =
        [("traceparent", parent.as_str()), ("content-type", "application/json"), ("user-agent", "me")];
    let body = json!({"metadata": {"name": "a"}}).to_string();
    let (head, _) = api.raw(Method::POST, format!("{path}?pretty=true"), &headers, &body).await;
    assert_eq!(head.status, 201);
    api.stop();
    let all =
        spans_of(&mut spans, |span| span.name == "POST /api/v1/namespaces/{:namespace}/configmaps").await;
    let by_name =
        |name: &str| all.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("{name}: {all:#?}"));
    let root = by_name("POST /api/v1/namespaces/{:namespace}/configmaps");
    assert_eq!((root.trace.as_str(), root.parent.as_str(), root.kind), (TRACE, SPAN, 2));
    let has = |span: &Span, key: &str, value: &str| {
        assert!(span.attributes.contains(&(key.to_owned(), value.to_owned())), "{key}={value}: {span:#?}");
    };
    has(root, "http.response.status_code", "201");
    has(root, "user_agent.original", "me");
    has(root, "http.target", &format!("{path}?pretty=true"));
    let create = by_name("Create");
    assert_eq!((create.parent.as_str(), create.kind), (root.id.as_str(), 1));
    has(create, "resource", "configmaps");
    let store = by_name("Create etcd3");
    assert_eq!(store.parent, create.id);
    has(store, "key", "/registry/configmaps/default/a");
    assert!(store.took > 0 && store.took <= create.took && create.took <= root.took, "{all:#?}");
    assert_eq!(all.len(), 3, "{all:#?}");
}

#[tokio::test]
async fn a_strangers_trace_is_noted_and_not_gone_on_with() {
    let (api, mut spans) = start(1_000_000).await;
    let parent = format!("00-{TRACE}-{SPAN}-00");
    let jane = User::authenticated("jane", &[]);
    let (head, _) =
        api.raw_as(jane, Method::GET, "/api/v1/nodes".to_owned(), &[("traceparent", &parent)], "").await;
    assert_eq!(head.status, 403);
    api.stop();
    let all = spans_of(&mut spans, |span| !span.links.is_empty()).await;
    let root = all.iter().find(|span| span.kind == 2).expect("the request's");
    assert_ne!(root.trace, TRACE);
    assert_eq!((root.parent.as_str(), root.links.as_slice()), ("", &[TRACE.to_owned()][..]));
    assert_eq!(root.name, "GET /api/v1/nodes");
}
