//! Families of metrics, as everybody here makes them: each has upstream's name, labels and buckets, and says in its help
//! how stable it is there (KEP-1209).
//!
//! It serves nothing and counts nothing itself: who counts keeps its families in a registry, and who serves `/metrics` is
//! handed the registries of its process.

use std::sync::LazyLock;

use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

/// How stable upstream holds a family to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stability {
    /// For upstream's own use.
    Internal,
    Alpha,
    Beta,
    Stable,
}

impl Stability {
    /// The help of a family, with its stability before it.
    pub fn help(self, text: &str) -> String {
        let word = match self {
            Stability::Internal => "INTERNAL",
            Stability::Alpha => "ALPHA",
            Stability::Beta => "BETA",
            Stability::Stable => "STABLE",
        };
        format!("[{word}] {text}")
    }
}

/// A registry, and how families are put into it; clones share it. Names are the program's, so that the first test finds a
/// wrong one.
#[derive(Clone, Debug, Default)]
pub struct Families(pub Registry);

impl Families {
    /// Puts a collector into the registry.
    ///
    /// # Panics
    /// Its name is none, or is taken.
    pub fn put<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        let collector = made.expect("the name is good");
        for family in collector.desc() {
            REGISTERED.count(&family.help);
        }
        self.0.register(Box::new(collector.clone())).expect("the name is free");
        collector
    }

    pub fn counter(&self, stability: Stability, name: &str, help: &str) -> IntCounter {
        self.put(IntCounter::new(name, stability.help(help)))
    }

    pub fn counters(&self, stability: Stability, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.put(IntCounterVec::new(Opts::new(name, stability.help(help)), labels))
    }

    pub fn gauges(&self, stability: Stability, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.put(IntGaugeVec::new(Opts::new(name, stability.help(help)), labels))
    }

    /// A gauge of what has fractions, which says 0 from the beginning.
    pub fn fraction(&self, stability: Stability, name: &str, help: &str) -> Gauge {
        self.put(Gauge::new(name, stability.help(help)))
    }

    /// Gauges of what has fractions.
    pub fn fractions(&self, stability: Stability, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        self.put(GaugeVec::new(Opts::new(name, stability.help(help)), labels))
    }

    /// A histogram that is told from the beginning.
    pub fn histogram(&self, stability: Stability, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let opts = HistogramOpts::new(name, stability.help(help)).buckets(buckets.to_vec());
        self.put(Histogram::with_opts(opts))
    }

    pub fn histograms(
        &self,
        stability: Stability,
        name: &str,
        help: &str,
        labels: &[&str],
        buckets: &[f64],
    ) -> HistogramVec {
        let opts = HistogramOpts::new(name, stability.help(help)).buckets(buckets.to_vec());
        self.put(HistogramVec::new(opts, labels))
    }

    /// Appends all of it in Prometheus' text format, in the order of the names.
    ///
    /// # Panics
    /// Never: what a registry gathers has a name and is not empty, and a string takes all.
    pub fn write(&self, out: &mut String) {
        TextEncoder::new().encode_utf8(&self.0.gather(), out).expect("what is gathered can be written");
    }
}

/// How many families were put into the registries of this process.
struct Registered {
    families: Registry,
    by_stability: IntCounterVec,
}

static REGISTERED: LazyLock<Registered> = LazyLock::new(Registered::new);

impl Registered {
    fn new() -> Self {
        // Not by `Families`, which would have to be counted by what is being made here.
        let families = Registry::new();
        let help = |text: &str| Stability::Beta.help(text);
        let opts = Opts::new("registered_metrics_total", help("Families that are told, by stability."));
        let by_stability = IntCounterVec::new(opts, &["deprecated_version", "stability_level"]);
        let by_stability = by_stability.expect("the name is good");
        families.register(Box::new(by_stability.clone())).expect("the name is free");
        for name in ["disabled_metrics_total", "hidden_metrics_total"] {
            let none = IntCounter::new(name, help("Families that are not told though they are there: none."));
            families.register(Box::new(none.expect("the name is good"))).expect("the name is free");
        }
        Registered { families, by_stability }
    }

    /// Counts a family by its help, which begins with its stability.
    fn count(&self, help: &str) {
        let told = help.strip_prefix('[').and_then(|help| help.split_once(']'));
        self.by_stability.with_label_values(&["", told.map_or("", |(level, _)| level)]).inc();
    }
}

/// The families that tell how many families this process has.
pub fn registered() -> Registry {
    REGISTERED.families.clone()
}

/// `count` upper bounds, of which the first is `start` and each is `factor` times the one before. None where they would not
/// grow.
pub fn powers(start: f64, factor: f64, count: usize) -> Vec<f64> {
    prometheus::exponential_buckets(start, factor, count).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_says_how_stable_it_is() {
        let families = Families::default();
        families.counter(Stability::Beta, "a_total", "What is counted.").inc();
        let told = families.0.gather();
        assert_eq!((told[0].name(), told[0].help()), ("a_total", "[BETA] What is counted."));
        assert_eq!(powers(1.0, 2.0, 3), [1.0, 2.0, 4.0]);
    }

    #[test]
    fn what_is_put_somewhere_is_counted() {
        let count = |level: &str| REGISTERED.by_stability.with_label_values(&["", level]).get();
        let before = count("STABLE");
        Families::default().counter(Stability::Stable, "of_this_test_total", "Of this test.");
        assert!(count("STABLE") > before);
        let told = registered().gather();
        let names: Vec<&str> = told.iter().map(prometheus::proto::MetricFamily::name).collect();
        assert_eq!(names, ["disabled_metrics_total", "hidden_metrics_total", "registered_metrics_total"]);
    }

    #[test]
    fn what_has_no_labels_is_told_before_there_is_any() {
        let families = Families::default();
        families.counters(Stability::Alpha, "none_total", "None.", &["kind"]);
        families.histogram(Stability::Alpha, "b_seconds", "B.", &[0.5]);
        families.fraction(Stability::Internal, "a_seconds", "A.");
        let mut out = "before\n".to_owned();
        families.write(&mut out);
        assert_eq!(
            out,
            "before\n# HELP a_seconds [INTERNAL] A.\n# TYPE a_seconds gauge\na_seconds 0\n\
             # HELP b_seconds [ALPHA] B.\n# TYPE b_seconds histogram\n\
             b_seconds_bucket{le=\"0.5\"} 0\nb_seconds_bucket{le=\"+Inf\"} 0\nb_seconds_sum 0\nb_seconds_count 0\n"
        );
    }
}
