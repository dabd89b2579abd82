//! What is counted of webhooks that convert objects, under upstream's names.

use std::sync::LazyLock;
use std::time::Duration;

use prometheus::{HistogramVec, IntCounterVec, Registry};

use crate::instruments::{Alpha, Families};

/// Upper bounds of what a webhook takes to answer, in seconds.
const ANSWER_SECONDS: &[f64] =
    &[0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0];

/// What is wrong with a webhook's answer, or that there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    Call,
    Malformed,
    Partial,
    Invalid,
}

impl Failure {
    fn name(self) -> &'static str {
        match self {
            Failure::Call => "conversion_webhook_call_failure",
            Failure::Malformed => "conversion_webhook_malformed_response_failure",
            Failure::Partial => "conversion_webhook_partial_response_failure",
            Failure::Invalid => "conversion_webhook_invalid_converted_object_failure",
        }
    }
}

pub static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

pub struct Metrics {
    families: Families,
    requests: IntCounterVec,
    answers: HistogramVec,
    conversions: HistogramVec,
}

impl Metrics {
    fn new() -> Self {
        const OF: &[&str] = &["result", "failure_type"];
        let families = Families::default();
        let seconds = prometheus::exponential_buckets(0.001, 2.0, 15).unwrap_or_default();
        Metrics {
            requests: families.counters(
                Alpha,
                "apiserver_conversion_webhook_request_total",
                "Questions to webhooks that convert objects, by what came of them.",
                OF,
            ),
            answers: families.histograms(
                Alpha,
                "apiserver_conversion_webhook_duration_seconds",
                "What webhooks that convert objects take to answer.",
                OF,
                ANSWER_SECONDS,
            ),
            conversions: families.histograms(
                Alpha,
                "apiserver_crd_conversion_webhook_duration_seconds",
                "What it takes to convert objects of a definition.",
                &["crd_name", "from_version", "to_version", "succeeded"],
                &seconds,
            ),
            families,
        }
    }

    pub fn registry(&self) -> Registry {
        self.families.0.clone()
    }

    /// Counts a question by what came of it.
    pub fn asked(&self, failure: Option<Failure>, took: Duration) {
        let result = if failure.is_none() { "success" } else { "failure" };
        let labels = [result, failure.map_or("", Failure::name)];
        self.requests.with_label_values(&labels).inc();
        self.answers.with_label_values(&labels).observe(took.as_secs_f64());
    }

    /// Notes what it took to make objects of one version (`group/version`) into another.
    pub fn converted(&self, definition: &str, (from, to): (&str, &str), succeeded: bool, took: Duration) {
        fn version(of: &str) -> &str {
            of.rsplit('/').next().unwrap_or_default()
        }
        let labels = [definition, version(from), version(to), if succeeded { "true" } else { "false" }];
        self.conversions.with_label_values(&labels).observe(took.as_secs_f64());
    }
}
