//! Rules that are kept in memory: for tests and for simulated nodes.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::backend::{Changes, Error, Rules};
use crate::tracker::ServiceMap;

/// What a [`Memory`] was last told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Synced {
    pub services: ServiceMap,
    /// What changed with the last call.
    pub changed: Changes,
    /// How many calls there were.
    pub count: usize,
}

/// A backend without a kernel. Clones share what they were told.
#[derive(Clone, Debug)]
pub struct Memory {
    state: watch::Sender<Synced>,
    failures: Arc<Mutex<Vec<Error>>>,
}

impl Default for Memory {
    fn default() -> Self {
        Self { state: watch::Sender::new(Synced::default()), failures: Arc::default() }
    }
}

impl Memory {
    /// What it was told, now and from now on.
    pub fn subscribe(&self) -> watch::Receiver<Synced> {
        self.state.subscribe()
    }

    /// Lets the next call fail.
    pub fn fail_once(&self, error: Error) {
        self.failures.lock().push(error);
    }
}

impl Rules for Memory {
    fn sync(&mut self, desired: &ServiceMap, changed: &Changes) -> Result<(), Error> {
        if let Some(error) = self.failures.lock().pop() {
            return Err(error);
        }
        self.state.send_modify(|state| {
            state.services.clone_from(desired);
            state.changed.clone_from(changed);
            state.count += 1;
        });
        Ok(())
    }

    fn clean_up(&mut self) -> Result<(), Error> {
        self.state.send_modify(|state| state.services = ServiceMap::default());
        Ok(())
    }
}
