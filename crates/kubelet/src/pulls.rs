//! How long images were pulled for a pod that is starting: what its start is not blamed for.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The pulls of one pod.
#[derive(Debug, Default)]
struct OfPod {
    begun: VecDeque<Instant>,
    /// Beginning and end, in the order of their ends.
    done: Vec<(Instant, Instant)>,
}

impl OfPod {
    /// How long there was any; what overlaps counts once.
    fn took(&self) -> Duration {
        let mut until: Option<Instant> = None;
        let mut sum = Duration::ZERO;
        for (began, ended) in &self.done {
            let from = until.map_or(*began, |until| until.max(*began));
            sum += ended.saturating_duration_since(from);
            until = until.max(Some(*ended));
        }
        sum
    }
}

/// The pulls of pods that are followed, by UID.
#[derive(Debug, Default)]
pub struct Pulls(Mutex<HashMap<String, OfPod>>);

impl Pulls {
    /// From now on a pod's pulls are noted.
    pub fn follow(&self, uid: &str) {
        self.0.lock().insert(uid.to_owned(), OfPod::default());
    }

    /// A pull begins. One that fails goes on, for what is told of it, until there is one that does not.
    pub fn begun(&self, uid: &str) {
        if let Some(of_pod) = self.0.lock().get_mut(uid) {
            of_pod.begun.push_back(Instant::now());
        }
    }

    /// The first of those that have begun is done.
    pub fn done(&self, uid: &str) {
        if let Some(of_pod) = self.0.lock().get_mut(uid)
            && let Some(began) = of_pod.begun.pop_front()
        {
            of_pod.done.push((began, Instant::now()));
        }
    }

    /// Follows a pod no more. Returns how long its pulls took until now.
    pub fn take(&self, uid: &str) -> Duration {
        self.0.lock().remove(uid).map_or(Duration::ZERO, |of_pod| of_pod.took())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_overlaps_counts_once() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        for (done, expected) in [
            (&[][..], 0),
            (&[(10, 16), (11, 18), (14, 20)], 10),
            (&[(0, 4), (1, 2), (10, 11)], 5),
            (&[(0, 2), (3, 4)], 3),
        ] {
            let done = done.iter().map(|(began, ended)| (at(*began), at(*ended))).collect();
            let of_pod = OfPod { done, ..OfPod::default() };
            assert_eq!(of_pod.took(), Duration::from_secs(expected));
        }
    }

    #[test]
    fn only_pods_that_are_followed_are_noted() {
        let pulls = Pulls::default();
        pulls.begun("a");
        pulls.done("a");
        assert!(pulls.0.lock().is_empty());
        pulls.follow("a");
        pulls.begun("a");
        std::thread::sleep(Duration::from_millis(2));
        pulls.done("a");
        assert!(pulls.take("a") >= Duration::from_millis(2));
        assert!(pulls.0.lock().is_empty());
    }
}
