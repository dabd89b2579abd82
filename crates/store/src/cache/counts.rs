//! What a resource of the cache counts of its work.

use crate::durations::Durations;
use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// Upper bounds of what a read waits for the cache, in seconds: upstream's.
const WAIT: &[f64] = &[0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0];
/// Upper bounds of what the store takes for a write, in seconds: upstream's.
const WRITE: &[f64] = &[
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0,
    20.0, 30.0, 45.0, 60.0,
];

/// A count that only grows.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    pub fn add(&self, n: usize) {
        self.0.fetch_add(n as u64, Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What lists cost, from the cache or from the store.
#[derive(Debug, Default)]
pub struct Lists {
    pub asked: Count,
    pub fetched: Count,
    pub returned: Count,
}

/// A sort of write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    Create,
    Update,
    Delete,
}

/// All counts of a resource since it was first served.
#[derive(Debug)]
pub struct Counts {
    /// How often all objects were read.
    pub initializations: Count,
    /// Changes that came from the store and were told to those whom they concern.
    pub events: Count,
    /// What was stored and cannot be read.
    pub undecodable: Count,
    /// Objects that were there when a watch began, and which it was told of.
    pub initial: Count,
    /// Watchers that were given up because they were too slow.
    pub terminated: Count,
    pub lists: Lists,
    /// Lists of a state that is in memory no more.
    pub lists_of_store: Lists,
    /// Reads of the newest state, those that succeeded and those that did not.
    pub consistent: [Count; 2],
    /// What reads waited for the cache to be as new as they asked for.
    pub waited: Durations,
    /// Of each sort, what the store took, and how often it failed.
    writes: [(OnceLock<Durations>, Count); 3],
}

impl Counts {
    /// Notes a write and what the store took for it. That another was first is no failure of the store.
    pub fn wrote(&self, write: Write, took: Duration, failed: bool) {
        let (durations, failures) = &self.writes[write as usize];
        durations.get_or_init(|| Durations::new(WRITE)).observe(took);
        if failed {
            failures.add(1);
        }
    }

    /// What the store took for the writes of a sort, if there were any, and how many of them failed.
    pub fn written(&self, write: Write) -> (Option<&Durations>, u64) {
        let (durations, failures) = &self.writes[write as usize];
        (durations.get(), failures.get())
    }
}

impl Default for Counts {
    fn default() -> Self {
        Counts {
            initializations: Count::default(),
            events: Count::default(),
            undecodable: Count::default(),
            initial: Count::default(),
            terminated: Count::default(),
            lists: Lists::default(),
            lists_of_store: Lists::default(),
            consistent: Default::default(),
            waited: Durations::new(WAIT),
            writes: Default::default(),
        }
    }
}
