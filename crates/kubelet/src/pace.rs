//! So many of something in a second, and so many at once after a pause.

use parking_lot::Mutex;
use tokio::time::Instant;

#[derive(Debug)]
pub struct Pace {
    rate: f64,
    burst: f64,
    /// How many may begin now, and when that was so.
    left: Mutex<(f64, Instant)>,
}

impl Pace {
    /// `rate` in a second, `burst` at once.
    pub fn new(rate: f64, burst: f64) -> Self {
        Pace { rate, burst, left: Mutex::new((burst, Instant::now())) }
    }

    /// Whether one more may begin, which then counts.
    pub fn allows(&self) -> bool {
        self.allows_at(Instant::now())
    }

    fn allows_at(&self, now: Instant) -> bool {
        let mut left = self.left.lock();
        let since = now.saturating_duration_since(left.1).as_secs_f64();
        let there = since.mul_add(self.rate, left.0).min(self.burst);
        let is_one = there >= 1.0;
        *left = (if is_one { there - 1.0 } else { there }, now);
        is_one
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn some_at_once_and_then_in_time() {
        let pace = Pace::new(2.0, 3.0);
        let start = Instant::now();
        let allowed = |after: u64| {
            let now = start + Duration::from_millis(after);
            (0..5).filter(|_| pace.allows_at(now)).count()
        };
        assert_eq!([0, 100, 600, 60_000].map(allowed), [3, 0, 1, 3]);
    }
}
