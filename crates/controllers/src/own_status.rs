//! What a controller writes into a status comes back to it as an event, which asks for nothing. A status that somebody
//! else wrote has to be set right, as upstream does, which looks at every event.

use std::collections::HashMap;

use krate_client::{Event, ObjectKey};
use parking_lot::Mutex;

/// The statuses that were written and have not come back yet.
pub struct OwnStatus<S>(Mutex<HashMap<ObjectKey, S>>);

impl<S> Default for OwnStatus<S> {
    fn default() -> Self {
        OwnStatus(Mutex::default())
    }
}

impl<S: PartialEq> OwnStatus<S> {
    /// To be said before a status is written: the event may be faster than the answer.
    pub fn writes(&self, key: ObjectKey, status: S) {
        self.0.lock().insert(key, status);
    }

    /// A status was not written after all.
    pub fn failed(&self, key: &ObjectKey) {
        self.0.lock().remove(key);
    }

    /// Nothing comes back of what is gone.
    pub fn forget_if_gone<K>(&self, key: &ObjectKey, event: &Event<K>) {
        if let Event::Deleted(_) = event {
            self.failed(key);
        }
    }

    /// Whether a status that an event tells of is the one that was written.
    pub fn is_back(&self, key: &ObjectKey, status: Option<&S>) -> bool {
        let mut written = self.0.lock();
        let is_back = status.is_some() && written.get(key) == status;
        if is_back {
            written.remove(key);
        }
        is_back
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_comes_back_once() {
        let (own, key) = (OwnStatus::default(), ObjectKey::new("n", "a"));
        own.writes(key.clone(), 1);
        assert!(!own.is_back(&key, None));
        assert!(!own.is_back(&key, Some(&2)), "somebody else's");
        assert!(!own.is_back(&ObjectKey::new("n", "b"), Some(&1)), "another's");
        assert!(own.is_back(&key, Some(&1)));
        assert!(!own.is_back(&key, Some(&1)), "somebody wrote it again");
        own.writes(key.clone(), 1);
        own.failed(&key);
        assert!(!own.is_back(&key, Some(&1)));
    }
}
