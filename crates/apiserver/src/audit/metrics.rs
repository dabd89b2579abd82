//! What audit counts, under upstream's names.

use prometheus::core::Collector;
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

use super::event::Record;

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
        let registry = Registry::new();
        let put = |name: &str, help: &str| Opts::new(format!("apiserver_audit_{name}"), help);
        Metrics {
            events: registered(
                &registry,
                IntCounter::with_opts(put("event_total", "Events that were told.")),
            ),
            levels: registered(
                &registry,
                IntCounterVec::new(
                    put("level_total", "Requests by how much of them the policy wants told."),
                    &["level"],
                ),
            ),
            rejected: registered(
                &registry,
                IntCounter::with_opts(put(
                    "requests_rejected_total",
                    "Requests that were refused because they could not be told of.",
                )),
            ),
            errors: registered(
                &registry,
                IntCounterVec::new(
                    put("error_total", "Events that could not be told as they should, by who failed."),
                    &["plugin"],
                ),
            ),
            registry,
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

fn registered<C: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> C {
    let collector = made.expect("the name is good");
    registry.register(Box::new(collector.clone())).expect("the name is free");
    collector
}
