//! A work queue: each key at most once in it, never worked on twice at the same time, put back later when that failed.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::metrics::{self, Measured};

/// The back-off of a key that fails: upstream's default of 5 ms, doubled each time up to 1,000 s.
const FIRST_DELAY: Duration = Duration::from_millis(5);
const LONGEST_DELAY: Duration = Duration::from_secs(1000);

/// The delay after a key has failed `failures` times before.
fn back_off(failures: u32) -> Duration {
    FIRST_DELAY.saturating_mul(1u32 << failures.min(18)).min(LONGEST_DELAY)
}

struct Delayed<T> {
    at: Instant,
    key: T,
}

impl<T> PartialEq for Delayed<T> {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}
impl<T> Eq for Delayed<T> {}
impl<T> PartialOrd for Delayed<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<T> Ord for Delayed<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        other.at.cmp(&self.at)
    }
}

struct State<T> {
    ready: VecDeque<T>,
    /// In `ready`, or to be put there once it is done; since when.
    dirty: HashMap<T, Instant>,
    /// What is worked on, and since when.
    processing: HashMap<T, Instant>,
    delayed: BinaryHeap<Delayed<T>>,
    failures: HashMap<T, u32>,
    closed: bool,
}

struct Inner<T> {
    state: Mutex<State<T>>,
    changed: Notify,
    /// What is counted of a queue that has a name.
    counted: Option<metrics::Queue>,
}

impl<T: Send> Measured for Inner<T> {
    fn now(&self) -> (usize, Vec<Duration>) {
        let state = self.state.lock();
        (state.ready.len(), state.processing.values().map(Instant::elapsed).collect())
    }
}

/// Clones share the queue.
pub struct WorkQueue<T> {
    inner: Arc<Inner<T>>,
}

impl<T> Clone for WorkQueue<T> {
    fn clone(&self) -> Self {
        WorkQueue { inner: Arc::clone(&self.inner) }
    }
}

impl<T: Hash + Eq + Clone> Default for WorkQueue<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Hash + Eq + Clone + Send + 'static> WorkQueue<T> {
    /// A queue of which is told in metrics, by upstream's name for it.
    pub fn named(name: &'static str) -> Self {
        let queue = Self::made(Some(metrics::Queue::named(name)));
        let known: Arc<dyn Measured> = queue.inner.clone();
        metrics::tell_of(name, Arc::downgrade(&known));
        queue
    }
}

impl<T: Hash + Eq + Clone> WorkQueue<T> {
    pub fn new() -> Self {
        Self::made(None)
    }

    fn made(counted: Option<metrics::Queue>) -> Self {
        WorkQueue {
            inner: Arc::new(Inner {
                state: Mutex::new(State {
                    ready: VecDeque::new(),
                    dirty: HashMap::new(),
                    processing: HashMap::new(),
                    delayed: BinaryHeap::new(),
                    failures: HashMap::new(),
                    closed: false,
                }),
                changed: Notify::new(),
                counted,
            }),
        }
    }

    /// Asks for `key` to be worked on; a key that is being worked on will be again.
    pub fn add(&self, key: T) {
        if self.inner.state.lock().add(key, self.inner.counted.as_ref()) {
            self.inner.changed.notify_one();
        }
    }

    /// The same, not before `delay` has passed.
    pub fn add_after(&self, key: T, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        if let Some(counted) = &self.inner.counted {
            counted.retries.inc();
        }
        self.inner.state.lock().delayed.push(Delayed { at: Instant::now() + delay, key });
        // Whoever waits must learn of the new, maybe earlier, time.
        self.inner.changed.notify_one();
    }

    /// The same, after a delay that grows with each failure since [`WorkQueue::forget`].
    pub fn add_rate_limited(&self, key: T) {
        let delay = {
            let mut state = self.inner.state.lock();
            let failures = state.failures.entry(key.clone()).or_insert(0);
            let delay = back_off(*failures);
            *failures += 1;
            delay
        };
        self.add_after(key, delay);
    }

    /// The work on `key` went well: its next failure counts as the first.
    pub fn forget(&self, key: &T) {
        self.inner.state.lock().failures.remove(key);
    }

    /// How often `key` has failed in a row.
    pub fn failures(&self, key: &T) -> u32 {
        self.inner.state.lock().failures.get(key).copied().unwrap_or(0)
    }

    /// The next key; [`WorkQueue::done`] must follow. `None` once the queue is shut down.
    pub async fn next(&self) -> Option<T> {
        loop {
            let wake = {
                let mut state = self.inner.state.lock();
                let now = Instant::now();
                state.promote(now, self.inner.counted.as_ref());
                if state.closed {
                    self.inner.changed.notify_one();
                    return None;
                }
                if let Some(key) = state.ready.pop_front() {
                    let since = state.dirty.remove(&key);
                    state.processing.insert(key.clone(), now);
                    if let (Some(counted), Some(since)) = (&self.inner.counted, since) {
                        counted.waited.observe((now - since).as_secs_f64());
                    }
                    // Another one sees to the rest, or to the time of what is delayed.
                    if !state.ready.is_empty() || !state.delayed.is_empty() {
                        self.inner.changed.notify_one();
                    }
                    return Some(key);
                }
                state.delayed.peek().map(|d| d.at)
            };
            match wake {
                None => self.inner.changed.notified().await,
                Some(at) => {
                    tokio::select! {
                        () = self.inner.changed.notified() => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
            }
        }
    }

    /// The work on `key` has ended; if it was added meanwhile it is due again.
    pub fn done(&self, key: &T) {
        let mut state = self.inner.state.lock();
        let since = state.processing.remove(key);
        if let (Some(counted), Some(since)) = (&self.inner.counted, since) {
            counted.worked.observe(since.elapsed().as_secs_f64());
        }
        if state.dirty.contains_key(key) {
            state.ready.push_back(key.clone());
            self.inner.changed.notify_one();
        }
    }

    /// Ends the queue: everyone who waits gets `None`.
    pub fn shut_down(&self) {
        self.inner.state.lock().closed = true;
        self.inner.changed.notify_one();
    }

    pub fn len(&self) -> usize {
        self.inner.state.lock().ready.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T: Hash + Eq + Clone> State<T> {
    fn add(&mut self, key: T, counted: Option<&metrics::Queue>) -> bool {
        if self.closed || self.dirty.contains_key(&key) {
            return false;
        }
        if let Some(counted) = counted {
            counted.adds.inc();
        }
        self.dirty.insert(key.clone(), Instant::now());
        if self.processing.contains_key(&key) {
            return false;
        }
        self.ready.push_back(key);
        true
    }

    fn promote(&mut self, now: Instant, counted: Option<&metrics::Queue>) {
        while self.delayed.peek().is_some_and(|d| d.at <= now) {
            if let Some(delayed) = self.delayed.pop() {
                self.add(delayed.key, counted);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_key_is_queued_once_and_again_if_it_came_while_worked_on() {
        let queue = WorkQueue::new();
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.next().await, Some("a"));
        queue.add("a");
        assert!(queue.is_empty(), "not while it is being worked on");
        queue.done(&"a");
        assert_eq!(queue.next().await, Some("a"));
        queue.done(&"a");
        assert!(queue.is_empty());
    }

    #[tokio::test]
    async fn a_queue_with_a_name_is_told_of_for_as_long_as_it_is_there() {
        let queue = WorkQueue::named("told_of");
        queue.add("a");
        queue.add("a");
        queue.add("b");
        let told = |line: &str| {
            let text = crate::metrics::text();
            assert!(text.lines().any(|there| there == line), "{line}: {text}");
        };
        told("workqueue_adds_total{name=\"told_of\"} 2");
        told("workqueue_depth{name=\"told_of\"} 2");
        assert_eq!(queue.next().await, Some("a"));
        told("workqueue_depth{name=\"told_of\"} 1");
        told("workqueue_queue_duration_seconds_count{name=\"told_of\"} 1");
        let unfinished = crate::metrics::text();
        let of_it = |line: &&str| line.starts_with("workqueue_unfinished_work_seconds{name=\"told_of\"}");
        let seconds = unfinished.lines().find(of_it).and_then(|line| line.rsplit(' ').next()?.parse().ok());
        assert!(seconds.is_some_and(|seconds: f64| seconds > 0.0), "{unfinished}");
        queue.add_rate_limited("a");
        queue.done(&"a");
        told("workqueue_retries_total{name=\"told_of\"} 1");
        told("workqueue_work_duration_seconds_count{name=\"told_of\"} 1");
        drop(queue);
        let text = crate::metrics::text();
        assert!(!text.contains("workqueue_depth{name=\"told_of\"}"), "{text}");
    }

    #[tokio::test]
    async fn failures_double_the_delay_until_forgotten() {
        assert_eq!([0, 1, 2].map(|n| back_off(n).as_millis()), [5, 10, 20]);
        assert_eq!(back_off(40), LONGEST_DELAY);
        let queue = WorkQueue::new();
        for failures in 1..3 {
            queue.add_rate_limited(1);
            assert_eq!(queue.next().await, Some(1));
            assert_eq!(queue.failures(&1), failures);
            queue.done(&1);
        }
        queue.forget(&1);
        assert_eq!(queue.failures(&1), 0);
    }

    #[tokio::test]
    async fn shutting_down_wakes_everyone() {
        let queue = WorkQueue::<u8>::new();
        let waiters: Vec<_> = (0..3)
            .map(|_| {
                let queue = queue.clone();
                tokio::spawn(async move { queue.next().await })
            })
            .collect();
        queue.shut_down();
        for waiter in waiters {
            assert_eq!(waiter.await.expect("no panic"), None);
        }
    }
}
