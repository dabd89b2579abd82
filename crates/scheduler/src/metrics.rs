//! What the scheduler counts, under upstream's names (`scheduler_*`), for whoever serves `/metrics` in this process.

use std::sync::LazyLock;
use std::time::Duration;

use krate_metrics::Stability::{Alpha, Beta, Stable};
use krate_metrics::{Families, powers};
use prometheus::{Histogram, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Registry};

/// From so many attempts on they are told as many.
const ATTEMPTS_MOST: u32 = 15;

/// There before anything is counted, so that who has no scheduler tells of none.
static FAMILIES: LazyLock<Families> = LazyLock::new(Families::default);

pub(crate) static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

/// All of it; clones share it.
pub fn registry() -> Registry {
    FAMILIES.0.clone()
}

/// What an attempt came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    Scheduled,
    Unschedulable,
    Error,
}

impl Attempt {
    fn name(self) -> &'static str {
        match self {
            Attempt::Scheduled => "scheduled",
            Attempt::Unschedulable => "unschedulable",
            Attempt::Error => "error",
        }
    }

    /// In the words of extension points.
    fn status(self) -> &'static str {
        match self {
            Attempt::Scheduled => "Success",
            Attempt::Unschedulable => "Unschedulable",
            Attempt::Error => "Error",
        }
    }
}

/// A part of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Point {
    PreFilter,
    Filter,
    Score,
    Bind,
}

impl Point {
    fn name(self) -> &'static str {
        match self {
            Point::PreFilter => "PreFilter",
            Point::Filter => "Filter",
            Point::Score => "Score",
            Point::Bind => "Bind",
        }
    }
}

/// Where pods wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    Active,
    BackOff,
    Unschedulable,
    Gated,
}

impl Line {
    const ALL: [&str; 4] = ["active", "backoff", "unschedulable", "gated"];
}

pub(crate) struct Metrics {
    attempts: IntCounterVec,
    durations: HistogramVec,
    algorithm: Histogram,
    points: HistogramVec,
    evaluations: IntCounterVec,
    executions: HistogramVec,
    scheduled_after: HistogramVec,
    attempts_needed: Histogram,
    pending: [IntGauge; 4],
    incoming: IntCounterVec,
    refused: IntGaugeVec,
    cached: [IntGauge; 3],
}

impl Metrics {
    fn new() -> Self {
        const ATTEMPT: &[&str] = &["result", "profile"];
        let families = &*FAMILIES;
        let name = |end: &str| format!("scheduler_{end}");
        let seconds = powers(0.001, 2.0, 15);
        let pending = families.gauges(Stable, &name("pending_pods"), "Pods that wait, by where.", &["queue"]);
        let cached = families.gauges(
            Alpha,
            &name("cache_size"),
            "Nodes and pods that are known, and those of them that are decided on and not bound yet.",
            &["type"],
        );
        let only = |vec: HistogramVec| vec.with_label_values::<&str>(&[]);
        Metrics {
            attempts: families.counters(
                Stable,
                &name("schedule_attempts_total"),
                "Attempts to find a node for a pod, by what they came to.",
                ATTEMPT,
            ),
            durations: families.histograms(
                Stable,
                &name("scheduling_attempt_duration_seconds"),
                "What an attempt takes, with its writing.",
                ATTEMPT,
                &seconds,
            ),
            algorithm: only(families.histograms(
                Alpha,
                &name("scheduling_algorithm_duration_seconds"),
                "What it takes to choose a node.",
                &[],
                &seconds,
            )),
            points: families.histograms(
                Stable,
                &name("framework_extension_point_duration_seconds"),
                "What all plugins take at a point.",
                &["extension_point", "status", "profile"],
                &powers(0.0001, 2.0, 12),
            ),
            evaluations: families.counters(
                Alpha,
                &name("plugin_evaluation_total"),
                "Nodes that a plugin was asked about, by what it was asked.",
                &["plugin", "extension_point", "profile"],
            ),
            executions: families.histograms(
                Alpha,
                &name("plugin_execution_duration_seconds"),
                "What a plugin takes for a node, of some that are timed.",
                &["plugin", "extension_point", "status"],
                &powers(0.00001, 1.5, 20),
            ),
            scheduled_after: families.histograms(
                Beta,
                &name("pod_scheduling_sli_duration_seconds"),
                "From a pod's first attempt until it is bound.",
                &["attempts"],
                &powers(0.01, 2.0, 20),
            ),
            attempts_needed: only(families.histograms(
                Stable,
                &name("pod_scheduling_attempts"),
                "Attempts until a pod is bound.",
                &[],
                &powers(1.0, 2.0, 5),
            )),
            pending: Line::ALL.map(|line| pending.with_label_values(&[line])),
            incoming: families.counters(
                Stable,
                &name("queue_incoming_pods_total"),
                "Pods that came to wait somewhere, by where and why.",
                &["queue", "event"],
            ),
            refused: families.gauges(
                Alpha,
                &name("unschedulable_pods"),
                "Pods that have no node, by whom of the plugins that is for.",
                &["plugin", "profile"],
            ),
            cached: ["nodes", "pods", "assumed_pods"].map(|of| cached.with_label_values(&[of])),
        }
    }

    /// Counts an attempt for a pod of this scheduler's name.
    pub fn tried(&self, profile: &str, attempt: Attempt, took: Duration) {
        let labels = [attempt.name(), profile];
        self.attempts.with_label_values(&labels).inc();
        self.durations.with_label_values(&labels).observe(took.as_secs_f64());
    }

    /// Notes what it took to choose a node, or to find that there is none.
    pub fn chose(&self, took: Duration) {
        self.algorithm.observe(took.as_secs_f64());
    }

    pub fn point(&self, point: Point, attempt: Attempt, profile: &str, took: Duration) {
        let labels = [point.name(), attempt.status(), profile];
        self.points.with_label_values(&labels).observe(took.as_secs_f64());
    }

    /// Counts the nodes that a plugin was asked about.
    pub fn evaluated(&self, plugin: &str, point: Point, profile: &str, nodes: usize) {
        self.evaluations.with_label_values(&[plugin, point.name(), profile]).inc_by(nodes as u64);
    }

    /// Where it is noted what a plugin takes for a node that comes to this.
    pub fn timer(&self, plugin: &str, point: Point, attempt: Attempt) -> Histogram {
        self.executions.with_label_values(&[plugin, point.name(), attempt.status()])
    }

    /// Notes that a pod is bound, after so many attempts and so long after the first.
    pub fn bound(&self, attempts: u32, after: Duration) {
        self.attempts_needed.observe(f64::from(attempts));
        let label =
            if attempts >= ATTEMPTS_MOST { format!("{ATTEMPTS_MOST}+") } else { attempts.to_string() };
        self.scheduled_after.with_label_values(&[label]).observe(after.as_secs_f64());
    }

    /// Counts a pod that comes to wait, and why.
    pub fn comes(&self, line: Line, event: &str) {
        if line != Line::Gated {
            self.incoming.with_label_values(&[Line::ALL[line as usize], event]).inc();
        }
    }

    /// Notes that one pod more waits, or one less.
    pub fn waits(&self, line: Line, more: i64) {
        self.pending[line as usize].add(more);
    }

    /// Notes that a plugin keeps one pod more from every node, or one less.
    pub fn refuses(&self, plugin: &str, profile: &str, more: i64) {
        self.refused.with_label_values(&[plugin, profile]).add(more);
    }

    /// Notes how many nodes, pods, and pods that are not bound yet are known.
    pub fn knows(&self, counts: [usize; 3]) {
        for (gauge, count) in self.cached.iter().zip(counts) {
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }
}
