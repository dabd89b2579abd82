//! What the server counts of its own work, under upstream's names and labels, for `/metrics`.
//!
//! Requests are counted once it is known what they ask for: who is refused at the door is counted there, and what
//! nobody serves nowhere, so that clients cannot invent rows. The rows of a sort of requests are found once, by one
//! look into a table; from then on counting is an addition.

mod families;
mod features;
mod requests;
mod resources;

use std::collections::HashMap;
use std::hash::RandomState;
use std::sync::Arc;
use std::time::Duration;

use krate_api::Kind;
use parking_lot::RwLock;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Encoder as _, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
    TextEncoder,
};

pub(crate) use families::Gathered;
pub(crate) use krate_metrics::Families;
pub(crate) use krate_metrics::Stability::{Alpha, Beta, Stable};
use krate_metrics::powers;
pub use requests::Asked;
use requests::{Sort, VALIDATIONS};

use crate::auth::{self, Decision};
use crate::features::Features;
use crate::registry::certificates;
use crate::request::RequestInfo;
use crate::server::Server;
use crate::{aggregation, apiextensions, cel, node_authorizer, proxy, reach};

pub use prometheus::TEXT_FORMAT as FORMAT;

/// Upper bounds of a request's duration, in seconds.
const SECONDS: &[f64] = &[
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0,
    20.0, 30.0, 45.0, 60.0,
];
/// Those of what a request took of this server alone.
const OWN_SECONDS: &[f64] = &[
    0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0,
    45.0, 60.0,
];
/// Those of what is done for every request before it is served.
const FILTER_SECONDS: &[f64] =
    &[0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 5.0, 10.0, 15.0, 30.0];
/// Those of the beginning of a watch that is told what there is.
const WATCH_LIST_SECONDS: &[f64] =
    &[0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0];
/// Upper bounds of an answer's size, in bytes.
const BYTES: &[f64] = &[1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];
/// Those of how long client certificates last, in seconds.
const LASTS: &[f64] = &[
    0.0,
    1_800.0,
    3_600.0,
    7_200.0,
    21_600.0,
    43_200.0,
    86_400.0,
    172_800.0,
    345_600.0,
    604_800.0,
    2_592_000.0,
    7_776_000.0,
    15_552_000.0,
    31_104_000.0,
];

/// Where a request goes; the labels of finished requests begin with these too.
const PLACE: &[&str] = &["component", "group", "resource", "scope", "subresource", "verb", "version"];
const TIMED: &[&str] =
    &["component", "group", "resource", "scope", "subresource", "verb", "version", "dry_run"];
const COUNTED: &[&str] =
    &["component", "group", "resource", "scope", "subresource", "verb", "version", "dry_run", "code"];
const TERMINATED: &[&str] =
    &["component", "group", "resource", "scope", "subresource", "verb", "version", "code"];

/// A filter that every request goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    Authentication,
    Fairness,
    Authorization,
}

/// All that one server counts.
pub struct Instruments {
    /// What parts of the server count in registries of their own.
    registries: Vec<Registry>,
    sorts: RwLock<HashMap<u64, Arc<Sort>>>,
    hashes: RandomState,
    requests: IntCounterVec,
    durations: HistogramVec,
    own_durations: HistogramVec,
    sizes: HistogramVec,
    bodies: HistogramVec,
    terminated: IntCounterVec,
    own: IntCounterVec,
    long_running: IntGaugeVec,
    reading: IntGauge,
    mutating: IntGauge,
    deprecated: IntGaugeVec,
    filters: [Histogram; 3],
    /// Of those who are known, and of those who are not.
    authentications: [(IntCounter, Histogram); 2],
    users: [(&'static str, IntCounter); 7],
    certificates: Histogram,
    authorizations: [(IntCounter, Histogram); 4],
    handshake_errors: IntCounter,
    watch_events: IntCounterVec,
    watch_sizes: HistogramVec,
    watch_lists: HistogramVec,
    /// By [`VALIDATIONS`].
    validations: [Histogram; 5],
}

/// What one watch tells.
#[derive(Clone)]
pub struct Told {
    events: IntCounter,
    sizes: Histogram,
}

impl Told {
    pub fn event(&self, bytes: usize) {
        self.events.inc();
        self.sizes.observe(bytes as f64);
    }
}

impl Instruments {
    pub fn new(set: &Features, others: impl IntoIterator<Item = Registry>) -> Self {
        let families = Families::default();
        families.0.register(Box::new(ProcessCollector::for_self())).expect("the names are free");
        tell_version(&families);
        features::tell(&families, set);
        let in_flight = families.gauges(
            Stable,
            "apiserver_current_inflight_requests",
            "Requests under way, those apart that run for long.",
            &["request_kind"],
        );
        let filters = families.histograms(
            Alpha,
            "apiserver_request_filter_duration_seconds",
            "What each filter takes of a request.",
            &["filter"],
            FILTER_SECONDS,
        );
        let attempts = families.counters(
            Beta,
            "authentication_attempts",
            "Requests by whether it is known who asks.",
            &["result"],
        );
        let authentication = families.histograms(
            Beta,
            "authentication_duration_seconds",
            "What it takes to know who asks.",
            &["result"],
            &powers(0.001, 2.0, 15),
        );
        let users = families.counters(
            Beta,
            "authenticated_user_requests",
            "Requests of known users, by what they are rather than by name.",
            &["username"],
        );
        let decisions = families.counters(
            Alpha,
            "authorization_attempts_total",
            "Requests by whether they are allowed.",
            &["result"],
        );
        let authorization = families.histograms(
            Alpha,
            "authorization_duration_seconds",
            "What it takes to decide whether a request is allowed.",
            &["result"],
            &powers(0.001, 2.0, 15),
        );
        let result = |(counters, histograms): (&IntCounterVec, &HistogramVec), label: &str| {
            (counters.with_label_values(&[label]), histograms.with_label_values(&[label]))
        };
        let validations = families.histograms(
            Alpha,
            "field_validation_request_duration_seconds",
            "From request to answer, by what is asked of unknown fields.",
            &["field_validation"],
            OWN_SECONDS,
        );
        Instruments {
            sorts: RwLock::default(),
            hashes: RandomState::new(),
            requests: families.counters(Stable, "apiserver_request_total", "Answered requests.", COUNTED),
            durations: families.histograms(
                Stable,
                "apiserver_request_duration_seconds",
                "From request to answer.",
                TIMED,
                SECONDS,
            ),
            own_durations: families.histograms(
                Alpha,
                "apiserver_request_sli_duration_seconds",
                "From request to answer, less what was spent waiting for a turn and for webhooks.",
                PLACE,
                OWN_SECONDS,
            ),
            sizes: families.histograms(
                Stable,
                "apiserver_response_sizes",
                "Bytes in the answers to reads.",
                PLACE,
                BYTES,
            ),
            bodies: families.histograms(
                Alpha,
                "apiserver_request_body_size_bytes",
                "Bytes in the bodies of requests.",
                &["group", "resource", "verb"],
                &prometheus::linear_buckets(50_000.0, 100_000.0, 31).unwrap_or_default(),
            ),
            terminated: families.counters(
                Alpha,
                "apiserver_request_terminations_total",
                "Requests that the server ended to protect itself.",
                TERMINATED,
            ),
            own: families.counters(
                Alpha,
                "apiserver_selfrequest_total",
                "Requests of the server to itself.",
                &["verb", "group", "resource", "subresource"],
            ),
            long_running: families.gauges(
                Stable,
                "apiserver_longrunning_requests",
                "Requests under way that run for long: watches, followed logs, connections to pods.",
                PLACE,
            ),
            reading: in_flight.with_label_values(&["readOnly"]),
            mutating: in_flight.with_label_values(&["mutating"]),
            deprecated: families.gauges(
                Stable,
                "apiserver_requested_deprecated_apis",
                "Deprecated kinds that somebody has asked for; always 1.",
                &["group", "version", "resource", "subresource", "removed_release"],
            ),
            filters: ["authentication", "priorityandfairness", "authorization"]
                .map(|filter| filters.with_label_values(&[filter])),
            authentications: ["success", "error"].map(|label| result((&attempts, &authentication), label)),
            users: USERS.map(|user| (user, users.with_label_values(&[user]))),
            certificates: families
                .histograms(
                    Beta,
                    "apiserver_client_certificate_expiration_seconds",
                    "How long the certificates last that clients prove themselves by.",
                    &[],
                    LASTS,
                )
                .with_label_values::<&str>(&[]),
            authorizations: ["allowed", "denied", "no-opinion", "error"]
                .map(|label| result((&decisions, &authorization), label)),
            handshake_errors: families.counter(
                Alpha,
                "apiserver_tls_handshake_errors_total",
                "Connections that ended before TLS stood.",
            ),
            watch_events: families.counters(
                Alpha,
                "apiserver_watch_events_total",
                "Events that watches were told.",
                &["group", "version", "resource"],
            ),
            watch_sizes: families.histograms(
                Alpha,
                "apiserver_watch_events_sizes",
                "Bytes of the events that watches were told.",
                &["group", "version", "resource"],
                &powers(1024.0, 2.0, 8),
            ),
            watch_lists: families.histograms(
                Alpha,
                "apiserver_watch_list_duration_seconds",
                "From a watch's request until it was told all that there is.",
                &["group", "version", "resource", "scope"],
                WATCH_LIST_SECONDS,
            ),
            validations: VALIDATIONS.map(|value| validations.with_label_values(&[value])),
            registries: std::iter::once(families.0).chain(of_parts()).chain(others).collect(),
        }
    }

    /// Notes what a filter took of a request.
    pub fn filtered(&self, filter: Filter, took: Duration) {
        self.filters[filter as usize].observe(took.as_secs_f64());
    }

    /// Counts whether it could be told who asks, and what that took.
    pub fn authenticated(&self, user: Option<&str>, took: Duration) {
        let (attempts, durations) = &self.authentications[usize::from(user.is_none())];
        attempts.inc();
        durations.observe(took.as_secs_f64());
        self.filtered(Filter::Authentication, took);
        if let Some(name) = user {
            let word = word_for(name);
            if let Some((_, count)) = self.users.iter().find(|(user, _)| *user == word) {
                count.inc();
            }
        }
    }

    /// Notes for how long a certificate still lasts that has proved who asks.
    pub fn certificate(&self, lasts: Duration) {
        self.certificates.observe(lasts.as_secs_f64());
    }

    /// Counts whether the request was allowed, and what it took to decide that.
    pub fn authorized(&self, decision: &Decision, took: Duration) {
        let (attempts, durations) = &self.authorizations[match decision {
            Decision::Allow(_) => 0,
            Decision::Deny(_) => 1,
            Decision::NoOpinion(_) => 2,
            Decision::Failed { .. } => 3,
        }];
        attempts.inc();
        durations.observe(took.as_secs_f64());
        self.filtered(Filter::Authorization, took);
    }

    /// Counts a connection that came to nothing.
    pub fn handshake_failed(&self) {
        self.handshake_errors.inc();
    }

    /// Notes that somebody asks for a kind that has a better successor.
    pub fn deprecated(&self, kind: &Kind, subresource: &str) {
        self.deprecated.with_label_values(&[kind.group, kind.version, kind.plural, subresource, ""]).set(1);
    }

    /// What a watch of a kind tells is counted by what this gives.
    pub fn watched(&self, kind: &Kind) -> Told {
        let labels = [kind.group, kind.version, kind.plural];
        Told {
            events: self.watch_events.with_label_values(&labels),
            sizes: self.watch_sizes.with_label_values(&labels),
        }
    }

    /// Notes how long a watch took to be told all that there is.
    pub fn watch_listed(&self, kind: &Kind, info: &RequestInfo, took: Duration) {
        let labels = [kind.group, kind.version, kind.plural, scope(info)];
        self.watch_lists.with_label_values(&labels).observe(took.as_secs_f64());
    }

    /// Everything counted, in Prometheus' text format.
    pub fn text(&self, server: &Server) -> Vec<u8> {
        let mut gathered = resources::gather(&server.kinds);
        gathered.extend(server.admission.gather());
        gathered.extend(cel::metrics::gather());
        if let Some(bytes) = server.backend.size() {
            let mut size = Gathered::gauge(
                Stable,
                "apiserver_storage_size_bytes",
                "Bytes of the store's file.",
                &["storage_cluster_id"],
            );
            size.put(&["embedded-0"], bytes as f64);
            gathered.extend(size.family());
        }
        gathered.extend(server.aggregation.gather());
        let mut text = Vec::new();
        let of_parts = self.registries.iter().map(Registry::gather);
        for families in of_parts.chain([gathered]) {
            if let Err(error) = TextEncoder::new().encode(&families, &mut text) {
                tracing::warn!(%error, "some metrics cannot be written");
            }
        }
        text
    }
}

/// What parts of the server count for all servers of the process.
fn of_parts() -> [Registry; 8] {
    [
        krate_metrics::registered(),
        aggregation::metrics::METRICS.registry(),
        apiextensions::metrics::METRICS.registry(),
        auth::metrics::METRICS.registry(),
        node_authorizer::metrics::METRICS.registry(),
        proxy::metrics::METRICS.registry(),
        reach::outdated::METRICS.registry(),
        certificates::metrics::METRICS.registry(),
    ]
}

fn scope(info: &RequestInfo) -> &'static str {
    match () {
        () if !info.is_resource => "",
        () if !info.name.is_empty() || info.verb == "create" => "resource",
        () if !info.namespace.is_empty() => "namespace",
        () => "cluster",
    }
}

fn tell_version(families: &Families) {
    let platform = format!("linux/{}", if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" });
    let labels = [
        ("build_date", "1970-01-01T00:00:00Z"),
        ("compiler", "rustc"),
        ("git_commit", ""),
        ("git_tree_state", "clean"),
        ("git_version", "v1.36.2"),
        ("go_version", ""),
        ("major", "1"),
        ("minor", "36"),
        ("platform", platform.as_str()),
    ];
    let names = labels.map(|(name, _)| name);
    let build = families.gauges(Alpha, "kubernetes_build_info", "Which version this is; always 1.", &names);
    build.with_label_values(&labels.map(|(_, value)| value)).set(1);
    let version = families.gauges(
        Alpha,
        "version_info",
        "Which version this is, and which it behaves as; always 1.",
        &["binary", "component", "emulation", "min_compat"],
    );
    version.with_label_values(&["1.36", "kube", "1.36", "1.35"]).set(1);
}

/// The users that are told by name, and what all others are called.
const USERS: [&str; 7] = [
    "admin",
    "client",
    "kube_proxy",
    "kubelet",
    "system:serviceaccount:kube-system:default",
    "email_id",
    "other",
];

fn word_for(user: &str) -> &'static str {
    match USERS[..5].iter().find(|known| **known == user) {
        Some(known) => known,
        None if user.contains('@') => "email_id",
        None => "other",
    }
}

#[cfg(test)]
mod tests;
