//! What is counted of servers of other groups, under upstream's names. All servers of a process count together.

use std::sync::LazyLock;

use prometheus::{IntCounter, IntCounterVec, Registry};

use crate::instruments::{Alpha, Families};

pub static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

pub struct Metrics {
    families: Families,
    unavailable: IntCounterVec,
    /// How often all that is served, here and elsewhere, was put into one document.
    pub aggregated: IntCounter,
}

impl Metrics {
    fn new() -> Self {
        let families = Families::default();
        Metrics {
            unavailable: families.counters(
                Alpha,
                "aggregator_unavailable_apiservice_total",
                "APIServices whose server no longer answers, by what is wrong.",
                &["name", "reason"],
            ),
            aggregated: families.counter(
                Alpha,
                "aggregator_discovery_aggregation_count_total",
                "Times that all that is served was put into one document of discovery.",
            ),
            families,
        }
    }

    pub fn registry(&self) -> Registry {
        self.families.0.clone()
    }

    /// Counts that the server of an APIService was found not to answer any more.
    pub fn unavailable(&self, name: &str, reason: &str) {
        self.unavailable.with_label_values(&[name, reason]).inc();
    }
}
