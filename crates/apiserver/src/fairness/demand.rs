//! How many seats a level could have used: measured over time, and smoothed for the sharing of seats.

use std::time::Instant;

/// How slowly what a level once needed is forgotten: in five minutes by half.
const SMOOTHING: f64 = 0.977;

/// A quantity's mean, deviation and maximum over the time since it was last reset.
#[derive(Debug)]
pub struct Integrator {
    value: f64,
    since: Instant,
    seconds: f64,
    sum: f64,
    squares: f64,
    most: f64,
}

/// What an integrator has seen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    pub seconds: f64,
    pub average: f64,
    pub deviation: f64,
    pub most: f64,
}

impl Integrator {
    pub fn new(now: Instant) -> Self {
        Integrator { value: 0.0, since: now, seconds: 0.0, sum: 0.0, squares: 0.0, most: 0.0 }
    }

    pub fn set(&mut self, now: Instant, value: f64) {
        self.settle(now);
        self.value = value;
        self.most = self.most.max(value);
    }

    fn settle(&mut self, now: Instant) {
        let seconds = now.saturating_duration_since(self.since).as_secs_f64();
        self.since = now;
        self.seconds += seconds;
        self.sum += self.value * seconds;
        self.squares += self.value * self.value * seconds;
    }

    /// What it has seen; it begins anew.
    pub fn reset(&mut self, now: Instant) -> Seen {
        self.settle(now);
        let average = if self.seconds > 0.0 { self.sum / self.seconds } else { 0.0 };
        let variance = if self.seconds > 0.0 { self.squares / self.seconds - average * average } else { 0.0 };
        let seen =
            Seen { seconds: self.seconds, average, deviation: variance.max(0.0).sqrt(), most: self.most };
        *self = Integrator { most: self.value, value: self.value, ..Integrator::new(now) };
        seen
    }
}

/// A level's demand as the sharing of seats looks at it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Demand {
    pub high_watermark: usize,
    pub average: f64,
    pub deviation: f64,
    pub smoothed: f64,
}

impl Demand {
    pub fn update(&mut self, seen: Seen) {
        self.high_watermark = seen.most.round() as usize;
        if seen.seconds <= 0.0 {
            return;
        }
        self.average = seen.average;
        self.deviation = seen.deviation;
        let envelope = seen.average + seen.deviation;
        self.smoothed = envelope.max(SMOOTHING * self.smoothed + (1.0 - SMOOTHING) * envelope);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn demand_rises_at_once_and_falls_slowly() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut integrator = Integrator::new(start);
        integrator.set(at(0), 20.0);
        integrator.set(at(5), 0.0);
        let seen = integrator.reset(at(10));
        assert!((seen.average - 10.0).abs() < 1e-9 && (seen.deviation - 10.0).abs() < 1e-9, "{seen:?}");
        assert!((seen.most - 20.0).abs() < 1e-9);
        let mut demand = Demand::default();
        demand.update(seen);
        assert_eq!((demand.high_watermark, demand.smoothed.round() as u32), (20, 20));
        let idle = integrator.reset(at(20));
        assert!(idle.most.abs() < 1e-9 && idle.average.abs() < 1e-9);
        for _ in 0..30 {
            demand.update(idle);
        }
        assert_eq!((demand.high_watermark, demand.smoothed.round() as u32), (0, 10));
    }
}
