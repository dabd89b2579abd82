//! What audit counts, under upstream's names.

use prometheus::{IntCounter, IntCounterVec, Registry};

use super::event::Record;
use crate::instruments::{Alpha, Families};

/// All that audit counts; there also where nothing is audited, as upstream's are.
pub struct Metrics {
    registry: Registry,
    pub events: IntCounter,
    pub levels: IntCounterVec,
    pub rejected: IntCounter,
    errors: IntCounterVec,
}

impl Default for Metrics {
    fn default() -> Self {
        let families = Families::default();
        let name = |end: &str| format!("apiserver_audit_{end}");
        Metrics {
            events: families.counter(Alpha, &name("event_total"), "Events that were told."),
            levels: families.counters(
                Alpha,
                &name("level_total"),
                "Requests by how much of them the policy wants told.",
                &["level"],
            ),
            rejected: families.counter(
                Alpha,
                &name("requests_rejected_total"),
                "Requests that were refused because they could not be told of.",
            ),
            errors: families.counters(
                Alpha,
                &name("error_total"),
                "Events that could not be told as they should, by who failed.",
                &["plugin"],
            ),
            registry: families.0,
        }
    }
}

impl Metrics {
    /// All of them, to be shown with the server's own.
    pub fn collector(&self) -> Registry {
        self.registry.clone()
    }

    /// Notes that events are lost. The server's own log is the last place to tell of them.
    pub fn lost<'a>(&self, plugin: &str, error: &str, records: impl ExactSizeIterator<Item = &'a Record>) {
        let count = records.len();
        self.errors.with_label_values(&[plugin]).inc_by(count as u64);
        let lines: Vec<String> = records.map(|record| record.event.line()).collect();
        tracing::error!(
            "Error in audit plugin '{plugin}' affecting {count} audit events: {error}\nImpacted events:\n{}",
            lines.join("\n")
        );
    }
}
