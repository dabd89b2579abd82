//! Counts that are kept under a level's lock, so that they cost an addition each, and are read when they are asked for.

use std::time::{Duration, Instant};

/// Upper bounds of durations, in seconds.
pub const SECONDS: &[f64] = &[0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0];
pub const LENGTHS: &[f64] = &[0.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0];
pub const SEATS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 100.0];
pub const WATCHES: &[f64] = &[0.0, 1.0, 10.0, 100.0, 1000.0, 10000.0];
/// Upper bounds of fractions of a limit.
pub const OF_REQUESTS: &[f64] = &[0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.25, 0.5, 0.75, 1.0];
pub const OF_SEATS: &[f64] = &[0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0];
pub const OF_DEMAND: &[f64] = &[0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.7, 2.0, 2.8, 4.0, 6.0];

/// A histogram: how many values are at most each bound, and beyond all.
#[derive(Clone, Debug)]
pub struct Histogram {
    pub bounds: &'static [f64],
    pub counts: [u64; 16],
    pub sum: f64,
}

impl Histogram {
    pub fn new(bounds: &'static [f64]) -> Self {
        debug_assert!(bounds.len() < 16, "the last count is of what is beyond all bounds");
        Histogram { bounds, counts: [0; 16], sum: 0.0 }
    }

    pub fn observe(&mut self, value: f64) {
        self.observe_times(value, 1);
    }

    pub fn observe_times(&mut self, value: f64, times: u64) {
        let at = self.bounds.iter().position(|bound| value <= *bound).unwrap_or(self.bounds.len());
        self.counts[at] += times;
        self.sum += value * times as f64;
    }

    pub fn is_empty(&self) -> bool {
        self.counts.iter().all(|count| *count == 0)
    }
}

/// A quantity as a fraction of its limit, looked at at the end of every nanosecond.
#[derive(Debug)]
pub struct OverTime {
    value: f64,
    limit: f64,
    since: Instant,
    seen: Histogram,
}

impl OverTime {
    pub fn new(bounds: &'static [f64], now: Instant) -> Self {
        OverTime { value: 0.0, limit: 1.0, since: now, seen: Histogram::new(bounds) }
    }

    pub fn set(&mut self, now: Instant, value: usize) {
        self.settle(now);
        self.value = value as f64;
    }

    pub fn set_limit(&mut self, now: Instant, limit: usize) {
        self.settle(now);
        self.limit = limit.max(1) as f64;
    }

    fn settle(&mut self, now: Instant) {
        let nanos = now.saturating_duration_since(self.since).as_nanos() as u64;
        self.since = now;
        self.seen.observe_times(self.value / self.limit, nanos);
    }

    pub fn seen(&mut self, now: Instant) -> Histogram {
        self.settle(now);
        self.seen.clone()
    }
}

/// What is counted of the requests of one flow schema at one level.
#[derive(Clone, Debug)]
pub struct OfFlow {
    pub dispatched: u64,
    pub executing: usize,
    pub executing_seats: usize,
    pub waiting: usize,
    pub waiting_seats: usize,
    /// By reason: `concurrency-limit`, `queue-full`, `time-out`, `cancelled`.
    pub rejected: [u64; 4],
    pub not_accommodated: u64,
    /// Of those that were executed, and of those that were not.
    pub waited: [Histogram; 2],
    /// Of others than watches, and of watches until they have begun.
    pub executed: [Histogram; 2],
    pub lengths: Histogram,
    pub seats: Histogram,
    pub watches: Histogram,
}

/// Why a request is turned away, as the metrics name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    ConcurrencyLimit,
    QueueFull,
    TimeOut,
    Cancelled,
}

impl Reason {
    pub const ALL: [(Reason, &'static str); 4] = [
        (Reason::ConcurrencyLimit, "concurrency-limit"),
        (Reason::QueueFull, "queue-full"),
        (Reason::TimeOut, "time-out"),
        (Reason::Cancelled, "cancelled"),
    ];
}

impl OfFlow {
    pub fn new() -> Self {
        let [waited, executed] = [(); 2].map(|()| [(); 2].map(|()| Histogram::new(SECONDS)));
        OfFlow {
            dispatched: 0,
            executing: 0,
            executing_seats: 0,
            waiting: 0,
            waiting_seats: 0,
            rejected: [0; 4],
            not_accommodated: 0,
            waited,
            executed,
            lengths: Histogram::new(LENGTHS),
            seats: Histogram::new(SEATS),
            watches: Histogram::new(WATCHES),
        }
    }

    pub fn reject(&mut self, reason: Reason) {
        self.rejected[reason as usize] += 1;
    }

    pub fn waited(&mut self, executed: bool, time: Duration) {
        self.waited[usize::from(!executed)].observe(time.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_are_weighed_by_time() {
        let start = Instant::now();
        let mut seats = OverTime::new(OF_SEATS, start);
        seats.set_limit(start, 10);
        seats.set(start, 5);
        seats.set(start + Duration::from_nanos(30), 0);
        let seen = seats.seen(start + Duration::from_nanos(100));
        assert_eq!((seen.counts[0], seen.counts[5]), (70, 30));
        assert!((seen.sum - 15.0).abs() < 1e-9);
    }
}
