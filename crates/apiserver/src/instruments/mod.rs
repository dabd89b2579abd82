//! What the server counts of its own work, under upstream's names and labels, for `/metrics`.
//!
//! Requests are counted once it is known what they ask for: who is refused at the door is counted there, and what
//! nobody serves nowhere, so that clients cannot invent rows.

use std::time::Instant;

use http::{HeaderMap, Method};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Encoder as _, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use crate::http::Reply;
use crate::kinds::Kinds;
use crate::request::{Query, RequestInfo};

pub use prometheus::TEXT_FORMAT as FORMAT;

/// Upper bounds of a request's duration, in seconds.
const SECONDS: [f64; 23] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0,
    20.0, 30.0, 45.0, 60.0,
];
/// Upper bounds of an answer's size, in bytes.
const BYTES: [f64; 7] = [1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];

/// The labels of what is long-running; those of finished requests begin with them too.
const PLACE: [&str; 7] = ["component", "group", "resource", "scope", "subresource", "verb", "version"];
const TIMED: [&str; 8] =
    ["component", "group", "resource", "scope", "subresource", "verb", "version", "dry_run"];
const COUNTED: [&str; 9] =
    ["component", "group", "resource", "scope", "subresource", "verb", "version", "dry_run", "code"];

/// All that one server counts.
pub struct Instruments {
    registry: Registry,
    /// What parts of the server count in registries of their own.
    others: Vec<Registry>,
    requests: IntCounterVec,
    durations: HistogramVec,
    sizes: HistogramVec,
    long_running: IntGaugeVec,
    reading: IntGauge,
    mutating: IntGauge,
    objects: IntGaugeVec,
    authentications: IntCounterVec,
    authorizations: IntCounterVec,
    handshake_errors: IntCounter,
}

/// Counts one up while it is there.
struct Held(IntGauge);

impl Held {
    fn new(gauge: IntGauge) -> Self {
        gauge.inc();
        Held(gauge)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// What a request asks for, in the words of the labels.
pub struct Asked {
    place: [String; 7],
    dry_run: &'static str,
    is_long: bool,
    /// Held until the request is answered, or given up.
    _held: Held,
}

impl Asked {
    fn labels(&self) -> [&str; 7] {
        self.place.each_ref().map(String::as_str)
    }

    fn verb(&self) -> &str {
        &self.place[5]
    }
}

impl Instruments {
    pub fn new(others: impl IntoIterator<Item = Registry>) -> Self {
        let registry = Registry::new();
        registry.register(Box::new(ProcessCollector::for_self())).expect("the names are free");
        let build = registered(
            &registry,
            IntGaugeVec::new(
                Opts::new("kubernetes_build_info", "Which version this is; always 1."),
                &["git_version", "major", "minor", "platform"],
            ),
        );
        let platform = format!("linux/{}", if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" });
        build.with_label_values(&["v1.36.2", "1", "36", &platform]).set(1);
        let in_flight = registered(
            &registry,
            IntGaugeVec::new(
                Opts::new(
                    "apiserver_current_inflight_requests",
                    "Requests under way, those apart that run for long.",
                ),
                &["request_kind"],
            ),
        );
        Instruments {
            requests: registered(
                &registry,
                IntCounterVec::new(Opts::new("apiserver_request_total", "Answered requests."), &COUNTED),
            ),
            durations: registered(
                &registry,
                HistogramVec::new(
                    HistogramOpts::new("apiserver_request_duration_seconds", "From request to answer.")
                        .buckets(SECONDS.to_vec()),
                    &TIMED,
                ),
            ),
            sizes: registered(
                &registry,
                HistogramVec::new(
                    HistogramOpts::new("apiserver_response_sizes", "Bytes in the answers to reads.")
                        .buckets(BYTES.to_vec()),
                    &PLACE,
                ),
            ),
            long_running: registered(
                &registry,
                IntGaugeVec::new(
                    Opts::new("apiserver_longrunning_requests", "Watches and followed logs under way."),
                    &PLACE,
                ),
            ),
            reading: in_flight.with_label_values(&["readOnly"]),
            mutating: in_flight.with_label_values(&["mutating"]),
            objects: registered(
                &registry,
                IntGaugeVec::new(
                    Opts::new("apiserver_resource_objects", "Stored objects."),
                    &["group", "resource"],
                ),
            ),
            authentications: registered(
                &registry,
                IntCounterVec::new(
                    Opts::new("authentication_attempts", "Requests by whether it is known who asks."),
                    &["result"],
                ),
            ),
            authorizations: registered(
                &registry,
                IntCounterVec::new(
                    Opts::new("authorization_attempts_total", "Requests by whether they are allowed."),
                    &["result"],
                ),
            ),
            handshake_errors: registered(
                &registry,
                IntCounter::new(
                    "apiserver_tls_handshake_errors_total",
                    "Connections that ended before TLS stood.",
                ),
            ),
            registry,
            others: others.into_iter().collect(),
        }
    }

    /// Counts whether it could be told who asks.
    pub fn authenticated<T, E>(&self, found: &Result<T, E>) {
        let result = if found.is_ok() { "success" } else { "error" };
        self.authentications.with_label_values(&[result]).inc();
    }

    /// Counts whether the request was allowed.
    pub fn authorized<T, E>(&self, found: &Result<T, E>) {
        let result = if found.is_ok() { "allowed" } else { "denied" };
        self.authorizations.with_label_values(&[result]).inc();
    }

    /// Counts a connection that came to nothing.
    pub fn handshake_failed(&self) {
        self.handshake_errors.inc();
    }

    /// Begins to count a request for something that is served.
    pub fn asked(&self, method: &Method, info: &RequestInfo, query: &Query, headers: &HeaderMap) -> Asked {
        let subresource = info.subresource.as_str();
        let connects = matches!(subresource, "exec" | "attach" | "portforward" | "proxy");
        let is_long = info.is_long_running();
        let applies = || {
            let media = headers.get(http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
            media.is_some_and(|media| media.starts_with("application/apply-patch"))
        };
        let verb = match info.verb {
            _ if connects => "CONNECT",
            "create" => "POST",
            "update" => "PUT",
            "patch" if applies() => "APPLY",
            "deletecollection" => "DELETECOLLECTION",
            "list" => "LIST",
            "watch" => "WATCH",
            _ => method.as_str(),
        };
        let scope = match () {
            () if !info.is_resource => "",
            () if !info.name.is_empty() || info.verb == "create" => "resource",
            () if !info.namespace.is_empty() => "namespace",
            () => "cluster",
        };
        let component = if info.is_resource { "apiserver" } else { "" };
        // A path that is no resource's stands where subresources stand.
        let part = if info.is_resource { subresource } else { info.path.as_str() };
        let place =
            [component, &info.group, &info.resource, scope, part, verb, &info.version].map(str::to_owned);
        let held = if is_long {
            self.long_running.with_label_values(&place)
        } else if matches!(info.verb, "get" | "list") {
            self.reading.clone()
        } else {
            self.mutating.clone()
        };
        let dry_run = if query.get("dryRun").is_some_and(|run| !run.is_empty()) { "All" } else { "" };
        Asked { place, dry_run, is_long, _held: Held::new(held) }
    }

    /// Counts the answer: now, or, of what is sent for as long as it lasts, at its end.
    pub fn answered(&self, asked: Asked, since: Instant, reply: Reply) -> Reply {
        let place = asked.labels();
        let timed: Vec<&str> = place.iter().copied().chain([asked.dry_run]).collect();
        let code = reply.status();
        let counted: Vec<&str> = timed.iter().copied().chain([code.as_str()]).collect();
        self.requests.with_label_values(&counted).inc();
        let duration = self.durations.with_label_values(&timed);
        if matches!(asked.verb(), "GET" | "LIST")
            && let Some(bytes) = reply.body().size_hint().exact()
        {
            self.sizes.with_label_values(&place).observe(bytes as f64);
        }
        if !asked.is_long || reply.body().is_end_stream() {
            duration.observe(since.elapsed().as_secs_f64());
            return reply;
        }
        let end = Ended { since, duration, _asked: asked };
        reply.map(|body| {
            let watched = body.map_frame(move |frame| {
                let _until_the_body_is_gone = &end;
                frame
            });
            watched.boxed_unsync()
        })
    }

    /// Everything counted, in Prometheus' text format.
    pub fn text(&self, kinds: &Kinds) -> Vec<u8> {
        self.objects.reset();
        for kind in kinds.rows().iter() {
            if let Some(storage) = kinds.of(kind.group, kind.plural) {
                let stored = i64::try_from(storage.cache.len()).unwrap_or(i64::MAX);
                self.objects.with_label_values(&[kind.group, kind.plural]).set(stored);
            }
        }
        let mut text = Vec::new();
        for registry in std::iter::once(&self.registry).chain(&self.others) {
            if let Err(error) = TextEncoder::new().encode(&registry.gather(), &mut text) {
                tracing::warn!(%error, "some metrics cannot be written");
            }
        }
        text
    }
}

/// Notes how long a streamed answer took once its body is gone.
struct Ended {
    since: Instant,
    duration: prometheus::Histogram,
    _asked: Asked,
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.duration.observe(self.since.elapsed().as_secs_f64());
    }
}

/// Puts a collector into a registry. Names are this file's, so that a wrong one is found by the first test.
fn registered<C: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> C {
    let collector = made.expect("the name is good");
    registry.register(Box::new(collector.clone())).expect("the name is free");
    collector
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::http as wire;

    fn asked(instruments: &Instruments, method: &Method, path: &str, query: &str) -> Asked {
        let query = Query::parse(Some(query));
        instruments.asked(method, &RequestInfo::parse(method, path, &query), &query, &HeaderMap::new())
    }

    fn gathered(instruments: &Instruments) -> String {
        let mut text = Vec::new();
        TextEncoder::new().encode(&instruments.registry.gather(), &mut text).expect("text");
        String::from_utf8(text).expect("text")
    }

    #[test]
    fn a_request_is_in_flight_and_then_counted() {
        let instruments = Instruments::new(None);
        let create = asked(&instruments, &Method::POST, "/api/v1/namespaces/a/pods", "dryRun=All");
        let in_flight =
            |n: u8| format!("apiserver_current_inflight_requests{{request_kind=\"mutating\"}} {n}\n");
        assert!(gathered(&instruments).contains(&in_flight(1)));
        let reply = wire::reply(StatusCode::CREATED, "application/json", "{}");
        drop(instruments.answered(create, Instant::now(), reply));
        let text = gathered(&instruments);
        assert!(text.contains(&in_flight(0)), "{text}");
        let row = "apiserver_request_total{code=\"201\",component=\"apiserver\",dry_run=\"All\",group=\"\",\
                   resource=\"pods\",scope=\"resource\",subresource=\"\",verb=\"POST\",version=\"v1\"} 1\n";
        assert!(text.contains(row), "{text}");
    }

    #[test]
    fn a_watch_runs_until_its_body_is_gone() {
        let instruments = Instruments::new(None);
        let watch = asked(&instruments, &Method::GET, "/apis/apps/v1/deployments", "watch=1");
        let body = wire::stream(futures::stream::pending());
        let reply = instruments.answered(watch, Instant::now(), http::Response::new(body));
        let labels = "component=\"apiserver\",group=\"apps\",resource=\"deployments\",scope=\"cluster\",\
                      subresource=\"\",verb=\"WATCH\",version=\"v1\"";
        let running = |n: u8| format!("apiserver_longrunning_requests{{{labels}}} {n}\n");
        let text = gathered(&instruments);
        assert!(text.contains(&running(1)), "{text}");
        assert!(text.contains("apiserver_request_total{code=\"200\""), "counted as soon as it is answered");
        drop(reply);
        let text = gathered(&instruments);
        assert!(text.contains(&running(0)), "{text}");
        assert!(
            text.contains("apiserver_request_duration_seconds_count{component=\"apiserver\",dry_run=\"\"")
        );
    }
}
