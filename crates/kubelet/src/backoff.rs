//! Back-off as upstream has it: ten seconds, doubled to five minutes, forgotten after ten quiet minutes.

use std::time::Duration;

use jiff::Timestamp;

const FIRST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_mins(5);
/// Twice the longest delay without a failure, and the next one is the first again.
const FORGOTTEN: Duration = Duration::from_mins(10);

/// The back-off of one thing that fails again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    delay: Option<(Duration, Timestamp)>,
    longest: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff::up_to(LONGEST)
    }
}

impl Backoff {
    /// One that waits no longer than this (KEP-4603).
    pub fn up_to(longest: Duration) -> Self {
        Backoff { delay: None, longest }
    }

    fn first(&self) -> Duration {
        FIRST.min(self.longest)
    }

    /// How long is still to wait after a failure at `failed`; `None` when it may be tried now.
    pub fn wait(&self, failed: Timestamp, now: Timestamp) -> Option<Duration> {
        let (delay, since) = self.delay?;
        if is_forgotten(since, failed) {
            return None;
        }
        let passed = Duration::try_from(now.duration_since(failed)).unwrap_or_default();
        delay.checked_sub(passed).filter(|left| !left.is_zero())
    }

    /// The delay that counts now.
    pub fn delay(&self) -> Duration {
        self.delay.map_or(self.first(), |(delay, _)| delay)
    }

    /// Notes that it is tried (again) after a failure at `failed`: the next failure waits longer.
    pub fn next(&mut self, failed: Timestamp, now: Timestamp) {
        let delay = match self.delay {
            Some((delay, since)) if !is_forgotten(since, failed) => (delay * 2).min(self.longest),
            _ => self.first(),
        };
        self.delay = Some((delay, now));
    }
}

fn is_forgotten(since: Timestamp, failed: Timestamp) -> bool {
    Duration::try_from(failed.duration_since(since)).is_ok_and(|quiet| quiet > FORGOTTEN)
}

/// A duration as Go writes it, to whole seconds: `10s`, `2m40s`, `5m0s`.
pub fn go_duration(duration: Duration) -> String {
    let (hours, minutes, seconds) =
        (duration.as_secs() / 3600, duration.as_secs() / 60 % 60, duration.as_secs() % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    #[test]
    fn the_first_restart_is_at_once_and_later_ones_wait_twice_as_long() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.wait(at(0), at(0)), None);
        backoff.next(at(0), at(0));
        let mut now = 1;
        for expected in [10, 20, 40, 80, 160, 300, 300] {
            assert_eq!(backoff.wait(at(now), at(now)), Some(Duration::from_secs(expected)));
            assert_eq!(backoff.wait(at(now), at(now + expected as i64)), None);
            now += expected as i64;
            backoff.next(at(now), at(now));
        }
    }

    #[test]
    fn ten_quiet_minutes_are_enough() {
        let mut backoff = Backoff::default();
        backoff.next(at(0), at(0));
        backoff.next(at(30), at(30));
        assert_eq!(backoff.wait(at(631), at(631)), None);
        backoff.next(at(631), at(631));
        assert_eq!(backoff.delay(), Duration::from_secs(10));
    }

    #[test]
    fn durations_read_as_in_go() {
        for (seconds, text) in [(10, "10s"), (160, "2m40s"), (300, "5m0s"), (3600, "1h0m0s")] {
            assert_eq!(go_duration(Duration::from_secs(seconds)), text);
        }
    }
}
