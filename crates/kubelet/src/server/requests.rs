//! Requests, as they are counted: how many there have been, how many are being served, and how long each took.

use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, header};
use http_body_util::combinators::BoxBody;
use hyper::body::{Frame, SizeHint};
use krate_metrics::Stability::Alpha;
use prometheus::{DEFAULT_BUCKETS, HistogramVec, IntCounterVec, IntGaugeVec};

use super::{Answer, Body};
use crate::instruments::FAMILIES;

const LABELS: &[&str] = &["method", "path", "server_type", "long_running"];

static REQUESTS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let help = "Number of the http requests received since the server started";
    FAMILIES.counters(Alpha, "kubelet_http_requests_total", help, LABELS)
});

static UNDERWAY: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    FAMILIES.gauges(Alpha, "kubelet_http_inflight_requests", "Number of the inflight http requests", LABELS)
});

static SECONDS: LazyLock<HistogramVec> = LazyLock::new(|| {
    let help = "Duration in seconds to serve http requests";
    FAMILIES.histograms(Alpha, "kubelet_http_requests_duration_seconds", help, LABELS, DEFAULT_BUCKETS)
});

static WEBSOCKETS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    FAMILIES.counters(
        Alpha,
        "kubelet_websocket_streaming_requests_total",
        "Total number of WebSocket streaming requests (exec/attach/portforward) received by the kubelet.",
        &["subresource"],
    )
});

/// The paths that are told by name: their first parts, of figures the first two.
const PATHS: [&str; 17] = [
    "attach",
    "checkpoint",
    "configz",
    "containerLogs",
    "debug",
    "exec",
    "healthz",
    "logs",
    "metrics",
    "metrics/cadvisor",
    "metrics/probes",
    "metrics/resource",
    "pods",
    "portForward",
    "run",
    "runningpods",
    "stats",
];

const METHODS: [&str; 8] = ["OPTIONS", "GET", "HEAD", "POST", "PUT", "DELETE", "TRACE", "CONNECT"];

/// Whatever is not told by name: nobody fills the memory by asking for what is not there.
const OTHER: &str = "other";

/// What counts as long-running. Upstream writes `portforward` so, and its path `portForward`: that never does.
const LONG: [&str; 4] = ["exec", "attach", "portforward", "debug"];

fn labels(method: &Method, path: &str) -> [&'static str; 4] {
    let path = path.strip_prefix('/').unwrap_or(path);
    let mut parts = path.splitn(3, '/');
    let first = parts.next().unwrap_or_default();
    let root = match parts.next() {
        Some(second) if first == "metrics" => &path[..=first.len() + second.len()],
        _ => first,
    };
    let path = PATHS.into_iter().find(|known| *known == root).unwrap_or(OTHER);
    let method = METHODS.into_iter().find(|known| *known == method.as_str()).unwrap_or(OTHER);
    [method, path, "readwrite", if LONG.contains(&path) { "true" } else { "false" }]
}

/// A request that is being served: until nobody holds this any more.
#[derive(Debug)]
pub struct Underway {
    labels: [&'static str; 4],
    began: Instant,
}

impl Underway {
    pub fn begin(method: &Method, path: &str) -> Arc<Self> {
        let labels = labels(method, path);
        REQUESTS.with_label_values(&labels).inc();
        UNDERWAY.with_label_values(&labels).inc();
        Arc::new(Underway { labels, began: Instant::now() })
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        UNDERWAY.with_label_values(&self.labels).dec();
        SECONDS.with_label_values(&self.labels).observe(self.began.elapsed().as_secs_f64());
    }
}

/// The answer to a request that is being served until all of the answer has been sent.
pub fn until_sent(answer: Answer, underway: Arc<Underway>) -> Answer {
    answer.map(|body| BoxBody::new(Sent { body, _underway: underway }))
}

struct Sent {
    body: Body,
    _underway: Arc<Underway>,
}

impl hyper::body::Body for Sent {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Counts a stream into a container that comes over a WebSocket, in the protocols that reach as far as the kubelet
/// (KEP-4006).
pub fn count_websocket(headers: &HeaderMap, subresource: &str) {
    let is = |name: HeaderName, word: &str| {
        let all = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
        all.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(word))
    };
    let protocols = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).into_iter();
    let mut protocols = protocols.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    let is_known = protocols.any(|protocol| match subresource {
        "portforward" => protocol.trim().starts_with("SPDY/3.1+"),
        _ => protocol.trim() == "v5.channel.k8s.io",
    });
    if is_known && is(header::UPGRADE, "websocket") && is(header::CONNECTION, "upgrade") {
        WEBSOCKETS.with_label_values(&[subresource]).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_by_the_root_of_their_path() {
        for (method, path, expected) in [
            (Method::GET, "/pods", ["GET", "pods"]),
            (Method::GET, "/pods/", ["GET", "pods"]),
            (Method::GET, "/stats/summary", ["GET", "stats"]),
            (Method::GET, "/metrics", ["GET", "metrics"]),
            (Method::GET, "/metrics/cadvisor", ["GET", "metrics/cadvisor"]),
            (Method::GET, "/metrics/resource/x", ["GET", "metrics/resource"]),
            (Method::GET, "/metrics/", ["GET", "other"]),
            (Method::GET, "/metrics/slis", ["GET", "other"]),
            (Method::PATCH, "/", ["other", "other"]),
            (Method::POST, "/portForward/n/p", ["POST", "portForward"]),
        ] {
            let [method, found, server, long] = labels(&method, path);
            assert_eq!(([method, found], server, long), (expected, "readwrite", "false"), "{path}");
        }
        assert_eq!(labels(&Method::POST, "/exec/n/p/c"), ["POST", "exec", "readwrite", "true"]);
    }

    #[test]
    fn a_request_is_under_way_until_its_answer_is_sent() {
        let labels = labels(&Method::DELETE, "/run");
        let there = || UNDERWAY.with_label_values(&labels).get();
        let underway = Underway::begin(&Method::DELETE, "/run");
        let answer = until_sent(super::super::text(http::StatusCode::OK, "five!"), underway);
        assert_eq!(hyper::body::Body::size_hint(answer.body()).exact(), Some(5));
        assert_eq!(there(), 1);
        drop(answer);
        assert_eq!((there(), SECONDS.with_label_values(&labels).get_sample_count()), (0, 1));
    }

    #[test]
    fn websockets_are_counted_by_what_they_speak() {
        let count = |subresource: &str, protocol: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::UPGRADE, "WebSocket".parse().unwrap());
            headers.insert(header::CONNECTION, "keep-alive, Upgrade".parse().unwrap());
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol.parse().unwrap());
            let before = WEBSOCKETS.with_label_values(&[subresource]).get();
            count_websocket(&headers, subresource);
            WEBSOCKETS.with_label_values(&[subresource]).get() - before
        };
        assert_eq!(count("exec", "v4.channel.k8s.io, v5.channel.k8s.io"), 1);
        assert_eq!(count("exec", "v4.channel.k8s.io"), 0);
        assert_eq!(count("portforward", "SPDY/3.1+portforward.k8s.io"), 1);
    }
}
