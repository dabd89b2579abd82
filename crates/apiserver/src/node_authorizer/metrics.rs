//! What it takes to keep the graph true, under upstream's name. All servers of a process count together.

use std::sync::LazyLock;

use prometheus::{HistogramTimer, HistogramVec, Registry};

use crate::instruments::{Alpha, Families};

pub static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

pub struct Metrics {
    families: Families,
    actions: HistogramVec,
}

impl Metrics {
    fn new() -> Self {
        let families = Families::default();
        let actions = families.histograms(
            Alpha,
            "node_authorizer_graph_actions_duration_seconds",
            "What it takes to note what belongs to which node.",
            &["operation"],
            &prometheus::exponential_buckets(0.0001, 2.0, 12).unwrap_or_default(),
        );
        Metrics { families, actions }
    }

    pub fn registry(&self) -> Registry {
        self.families.0.clone()
    }

    /// Notes what an operation takes, from now until the timer is dropped.
    pub fn timed(&self, operation: &str) -> HistogramTimer {
        self.actions.with_label_values(&[operation]).start_timer()
    }
}
