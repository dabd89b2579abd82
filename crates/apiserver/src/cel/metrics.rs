//! What expressions take, under upstream's names. All servers of a process count together.

use std::sync::LazyLock;

use krate_store::Durations;
use prometheus::proto::MetricFamily;

use crate::instruments::{Beta, Gathered};

/// Upper bounds in seconds.
const SECONDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Reading and checking of expressions.
pub static COMPILED: LazyLock<Durations> = LazyLock::new(|| Durations::new(SECONDS));
/// Expressions of policies that were evaluated.
pub static EVALUATED: LazyLock<Durations> = LazyLock::new(|| Durations::new(SECONDS));

pub fn gather() -> impl Iterator<Item = MetricFamily> {
    let families = [
        ("apiserver_cel_compilation_duration_seconds", "What it takes to compile expressions.", &COMPILED),
        ("apiserver_cel_evaluation_duration_seconds", "What it takes to evaluate expressions.", &EVALUATED),
    ];
    families.into_iter().filter_map(|(name, help, durations)| {
        let mut family = Gathered::histogram(Beta, name, help, &[]);
        family.put_durations(&[], durations);
        family.family()
    })
}
