//! How fast processor time is used: the difference of two readings.
//!
//! Nothing is read in the background. Who asks often gets the rate since an earlier answer; who asks after a long
//! time, or for a container that has only just begun, waits for a second reading.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// An earlier reading is of use when it is not younger than this, and not older than the other.
const YOUNGEST: Duration = Duration::from_millis(500);
const OLDEST: Duration = Duration::from_secs(30);
/// After this long a newer reading takes the place of the one that rates are taken from.
const KEPT: Duration = Duration::from_secs(10);

/// Nanoseconds of processor time that each of several things has used, by its name.
#[derive(Clone, Debug)]
pub struct Reading {
    pub at: Instant,
    pub used: HashMap<String, u64>,
}

impl Reading {
    /// Billionths of a core that one thing used between this reading and a later one.
    pub fn rate(&self, later: &Reading, name: &str) -> Option<u64> {
        let elapsed = later.at.checked_duration_since(self.at).filter(|e| *e >= YOUNGEST)?.as_nanos();
        let used = later.used.get(name)?.checked_sub(*self.used.get(name)?)?;
        u64::try_from(u128::from(used) * 1_000_000_000 / elapsed).ok()
    }

    /// Whether rates of all that `later` has can be taken from this.
    fn serves(&self, later: &Reading) -> bool {
        let age = later.at.saturating_duration_since(self.at);
        (YOUNGEST..=OLDEST).contains(&age) && later.used.keys().all(|name| self.used.contains_key(name))
    }
}

#[derive(Debug, Default)]
pub struct Rates(Mutex<Option<Reading>>);

impl Rates {
    /// The earlier reading by which `now` can be judged, if there is one. `now` is kept for later when it is time.
    pub fn earlier(&self, now: &Reading) -> Option<Reading> {
        let mut kept = self.0.lock();
        let earlier = kept.as_ref().filter(|earlier| earlier.serves(now)).cloned();
        let is_stale = |old: &Reading| now.at.saturating_duration_since(old.at) >= KEPT;
        if earlier.is_none() || kept.as_ref().is_none_or(is_stale) {
            *kept = Some(now.clone());
        }
        earlier
    }
}

/// How long to wait for a second reading.
pub const WINDOW: Duration = YOUNGEST;

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(at: Instant, used: &[(&str, u64)]) -> Reading {
        Reading { at, used: used.iter().map(|(name, used)| ((*name).to_owned(), *used)).collect() }
    }

    #[test]
    fn a_rate_needs_an_earlier_reading_of_the_same_things() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let rates = Rates::default();
        assert!(rates.earlier(&reading(at(0), &[("a", 0)])).is_none());
        let now = reading(at(2), &[("a", 1_000_000_000)]);
        let earlier = rates.earlier(&now).unwrap();
        assert_eq!(earlier.rate(&now, "a"), Some(500_000_000));
        // The reading at 0 still serves.
        let now = reading(at(4), &[("a", 1_000_000_000)]);
        assert_eq!(rates.earlier(&now).unwrap().rate(&now, "a"), Some(250_000_000));
        // Something new, a long silence, and a counter that began anew.
        assert!(rates.earlier(&reading(at(5), &[("a", 1), ("b", 1)])).is_none());
        assert!(rates.earlier(&reading(at(60), &[("a", 9)])).is_none());
        let now = reading(at(62), &[("a", 3)]);
        assert_eq!(rates.earlier(&now).unwrap().rate(&now, "a"), None);
    }
}
