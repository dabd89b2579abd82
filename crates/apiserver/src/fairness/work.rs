//! Work: seats by the time for which they are taken.

use std::fmt;
use std::time::Duration;

/// What a request is guessed to take before it has run.
pub const GUESS: Duration = Duration::from_millis(3);

/// Work or virtual time, 10⁸ to the seat-second. At a thousand seats it ends after five years without a restart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SeatSeconds(pub u64);

impl SeatSeconds {
    const SCALE: f64 = 1e8;

    pub fn of(seats: f64, time: Duration) -> Self {
        SeatSeconds((seats * time.as_secs_f64() * Self::SCALE).round() as u64)
    }

    pub fn plus(self, other: Self) -> Self {
        SeatSeconds(self.0.saturating_add(other.0))
    }

    pub fn minus(self, other: Self) -> Self {
        SeatSeconds(self.0.saturating_sub(other.0))
    }

    pub fn as_f64(self) -> f64 {
        self.0 as f64 / Self::SCALE
    }
}

impl fmt::Display for SeatSeconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:08}ss", self.0 / 100_000_000, self.0 % 100_000_000)
    }
}

/// What a request is estimated to cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Seats while it runs.
    pub initial: usize,
    /// Seats afterwards, while watchers are told of what it wrote, and for how long.
    pub last: usize,
    pub linger: Duration,
}

impl Work {
    pub fn seats(initial: usize) -> Self {
        Work { initial, last: 0, linger: Duration::ZERO }
    }

    /// As much work on fewer seats, where there are not as many as it would have afterwards.
    pub fn within(self, limit: usize) -> Self {
        let limit = limit.max(1);
        if self.last <= limit {
            return self;
        }
        let linger = self.linger.mul_f64(self.last as f64 / limit as f64);
        Work { last: limit, linger, ..self }
    }

    /// The seats that are held for all of its time.
    pub fn most(self) -> usize {
        self.initial.max(self.last)
    }

    pub fn total(self) -> SeatSeconds {
        SeatSeconds::of(self.initial as f64, GUESS).plus(SeatSeconds::of(self.last as f64, self.linger))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_told_as_upstream_tells_it() {
        assert_eq!(SeatSeconds::of(2.0, GUESS).to_string(), "0.00600000ss");
        let wide = Work { initial: 1, last: 10, linger: Duration::from_millis(5) };
        assert_eq!(wide.within(5), Work { initial: 1, last: 5, linger: Duration::from_millis(10) });
    }
}
