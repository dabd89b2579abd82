//! How often something took how long: counted without a lock, cheaply enough for every request.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// A histogram over bounds that do not change.
#[derive(Debug)]
pub struct Durations {
    /// Upper bounds in seconds, ascending.
    bounds: &'static [f64],
    /// Of each bound those above the one before it; behind the last those that are above all.
    counts: Box<[AtomicU64]>,
    nanos: AtomicU64,
}

impl Durations {
    pub fn new(bounds: &'static [f64]) -> Self {
        let counts = std::iter::repeat_with(AtomicU64::default).take(bounds.len() + 1).collect();
        Durations { bounds, counts, nanos: AtomicU64::new(0) }
    }

    pub fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let at = self.bounds.iter().position(|bound| seconds <= *bound).unwrap_or(self.bounds.len());
        self.counts[at].fetch_add(1, Relaxed);
        self.nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    /// Upper bounds with how many were at most so long, how many there were, and what they took together in seconds.
    pub fn seen(&self) -> (Vec<(f64, u64)>, u64, f64) {
        let mut all = 0;
        let mut below = Vec::with_capacity(self.bounds.len());
        for (bound, count) in self.bounds.iter().zip(&self.counts) {
            all += count.load(Relaxed);
            below.push((*bound, all));
        }
        all += self.counts[self.bounds.len()].load(Relaxed);
        (below, all, Duration::from_nanos(self.nanos.load(Relaxed)).as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_counted_below_the_first_bound_that_it_does_not_exceed() {
        let durations = Durations::new(&[0.1, 1.0]);
        for millis in [50, 100, 101, 5000] {
            durations.observe(Duration::from_millis(millis));
        }
        let (below, all, sum) = durations.seen();
        assert_eq!((below, all), (vec![(0.1, 2), (1.0, 3)], 4));
        assert!((sum - 5.251).abs() < 1e-9, "{sum}");
    }
}
