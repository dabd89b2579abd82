//! What controllers count, under upstream's names, for whoever serves `/metrics` in this process. Each keeps its families
//! beside itself; here is the registry that all of them are put into, and what is told of all controllers.

use std::sync::LazyLock;

use krate_metrics::Families;
use krate_metrics::Stability::Beta;
use prometheus::{IntGauge, IntGaugeVec, Registry};

/// As whose parts upstream tells controllers.
const MANAGER: &str = "kube-controller-manager";

pub(crate) static FAMILIES: LazyLock<Families> = LazyLock::new(Families::default);

static RUNNING: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    FAMILIES.gauges(
        Beta,
        "running_managed_controllers",
        "Controllers that run here are 1, those that have ended 0.",
        &["name", "manager"],
    )
});

/// All of it; clones share it.
pub fn registry() -> Registry {
    FAMILIES.0.clone()
}

/// A controller is told to run for as long as this is there.
pub(crate) struct Running(IntGauge);

impl Running {
    pub fn new(name: &str) -> Self {
        let gauge = RUNNING.with_label_values(&[name, MANAGER]);
        gauge.set(1);
        Running(gauge)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.set(0);
    }
}
