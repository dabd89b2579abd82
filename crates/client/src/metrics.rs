//! What work queues and clients of this process count, under upstream's names and labels (`workqueue_*`,
//! `rest_client_*`), for whoever serves `/metrics` here.

use std::sync::{Arc, LazyLock, Weak};
use std::time::Duration;

use krate_metrics::Families;
use krate_metrics::Stability::{Alpha, Beta};
use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{
    GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder,
};

/// Upper bounds of how long a key waits, and is worked on, in seconds.
const WORK_SECONDS: &[f64] = &[1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0];
/// Those of a request.
const REQUEST_SECONDS: &[f64] = &[0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];
/// Those of what is sent and received, in bytes.
const BYTES: &[f64] = &[
    64.0,
    256.0,
    512.0,
    1_024.0,
    4_096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
];

/// All of it; clones share it.
pub fn registry() -> Registry {
    METRICS.families.0.clone()
}

/// All of it, in Prometheus' text format.
pub fn text() -> String {
    let mut text = String::new();
    if let Err(error) = TextEncoder::new().encode_utf8(&METRICS.families.0.gather(), &mut text) {
        tracing::warn!(%error, "some metrics cannot be written");
    }
    text
}

static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

struct Metrics {
    families: Families,
    adds: IntCounterVec,
    retries: IntCounterVec,
    waited: HistogramVec,
    worked: HistogramVec,
    queues: Queues,
    requests: IntCounterVec,
    durations: HistogramVec,
    sent: HistogramVec,
    received: HistogramVec,
}

impl Metrics {
    fn new() -> Self {
        let families = Families::default();
        let name = &["name"];
        let call = &["verb", "host"];
        Metrics {
            adds: families.counters(Beta, "workqueue_adds_total", "Keys that were added to a queue", name),
            retries: families.counters(
                Beta,
                "workqueue_retries_total",
                "Keys that were put back into a queue for later",
                name,
            ),
            waited: families.histograms(
                Beta,
                "workqueue_queue_duration_seconds",
                "How long a key waits in a queue until it is worked on",
                name,
                WORK_SECONDS,
            ),
            worked: families.histograms(
                Beta,
                "workqueue_work_duration_seconds",
                "How long a key is worked on",
                name,
                WORK_SECONDS,
            ),
            queues: families.put(Ok(Queues::new())),
            requests: families.counters(
                Alpha,
                "rest_client_requests_total",
                "Requests by their answer's code, method and host",
                &["code", "method", "host"],
            ),
            durations: families.histograms(
                Alpha,
                "rest_client_request_duration_seconds",
                "How long a request took until its answer began",
                call,
                REQUEST_SECONDS,
            ),
            sent: families.histograms(
                Alpha,
                "rest_client_request_size_bytes",
                "How large what is sent is",
                call,
                BYTES,
            ),
            received: families.histograms(
                Alpha,
                "rest_client_response_size_bytes",
                "How large answers are whose size is known when they begin",
                call,
                BYTES,
            ),
            families,
        }
    }
}

/// What is counted of one queue as it goes.
#[derive(Clone)]
pub(crate) struct Queue {
    pub adds: IntCounter,
    pub retries: IntCounter,
    pub waited: Histogram,
    pub worked: Histogram,
}

impl Queue {
    pub fn named(name: &str) -> Self {
        let m = &*METRICS;
        Queue {
            adds: m.adds.with_label_values(&[name]),
            retries: m.retries.with_label_values(&[name]),
            waited: m.waited.with_label_values(&[name]),
            worked: m.worked.with_label_values(&[name]),
        }
    }
}

/// A queue, as it is at the moment.
pub(crate) trait Measured: Send + Sync {
    /// How many keys wait, and for how long each that is worked on has been.
    fn now(&self) -> (usize, Vec<Duration>);
}

/// Tells of a queue for as long as it is there.
pub(crate) fn tell_of(name: &'static str, queue: Weak<dyn Measured>) {
    METRICS.queues.known.lock().push((name, queue));
}

/// A queue by its name, for as long as it is there.
type Known = (&'static str, Weak<dyn Measured>);

/// What is only known when it is asked for.
#[derive(Clone)]
struct Queues {
    known: Arc<Mutex<Vec<Known>>>,
    depth: IntGaugeVec,
    unfinished: GaugeVec,
    longest: GaugeVec,
}

impl Queues {
    fn new() -> Self {
        let name = &["name"];
        let gauges = |family: &str, help: &str| {
            GaugeVec::new(Opts::new(family, Beta.help(help)), name).expect("the name is good")
        };
        Queues {
            known: Arc::default(),
            depth: IntGaugeVec::new(
                Opts::new("workqueue_depth", Beta.help("Keys that wait in a queue")),
                name,
            )
            .expect("the name is good"),
            unfinished: gauges(
                "workqueue_unfinished_work_seconds",
                "How long keys that are worked on now have been, together: large where workers are stuck",
            ),
            longest: gauges(
                "workqueue_longest_running_processor_seconds",
                "How long the key has been worked on that has been for the longest",
            ),
        }
    }
}

impl Collector for Queues {
    fn desc(&self) -> Vec<&Desc> {
        [self.depth.desc(), self.unfinished.desc(), self.longest.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.depth.reset();
        self.unfinished.reset();
        self.longest.reset();
        self.known.lock().retain(|(name, queue)| {
            let Some(queue) = queue.upgrade() else { return false };
            let (depth, working) = queue.now();
            let name = &[*name];
            self.depth.with_label_values(name).add(i64::try_from(depth).unwrap_or(i64::MAX));
            let seconds = working.iter().map(Duration::as_secs_f64);
            self.unfinished.with_label_values(name).add(seconds.clone().sum());
            let longest = self.longest.with_label_values(name);
            longest.set(seconds.fold(longest.get(), f64::max));
            true
        });
        [self.depth.collect(), self.unfinished.collect(), self.longest.collect()].concat()
    }
}

/// What is known of a request before it is sent.
pub(crate) struct Call {
    pub method: http::Method,
    pub host: Arc<str>,
}

impl Call {
    /// Notes what was sent, if its size is known.
    pub fn sends(&self, bytes: Option<u64>) {
        if let Some(bytes) = bytes {
            METRICS.sent.with_label_values(&[self.method.as_str(), &*self.host]).observe(bytes as f64);
        }
    }

    /// Notes the answer by its code, or that there is none.
    pub fn ended(&self, code: &str, took: Duration, bytes: Option<u64>) {
        let call = [self.method.as_str(), &*self.host];
        METRICS.requests.with_label_values(&[code, call[0], call[1]]).inc();
        METRICS.durations.with_label_values(&call).observe(took.as_secs_f64());
        if let Some(bytes) = bytes {
            METRICS.received.with_label_values(&call).observe(bytes as f64);
        }
    }
}
