//! What a controller has asked for and its informer does not show yet. Until it does, counting what the informer shows
//! would ask for it a second time.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use krate_client::ObjectKey;
use parking_lot::Mutex;

/// What was not seen for so long is not waited for any more.
const PATIENCE: Duration = Duration::from_mins(5);

#[derive(Debug)]
struct Expected {
    creations: usize,
    /// By uid: a deletion is seen twice, as a mark and as the end.
    deletions: HashSet<String>,
    since: Instant,
}

/// By the key of the owner.
#[derive(Default)]
pub struct Expectations(Mutex<HashMap<ObjectKey, Expected>>);

impl Expectations {
    pub fn expect_creations(&self, owner: &ObjectKey, count: usize) {
        let expected = Expected { creations: count, deletions: HashSet::new(), since: Instant::now() };
        self.0.lock().insert(owner.clone(), expected);
    }

    pub fn expect_deletions(&self, owner: &ObjectKey, uids: impl IntoIterator<Item = String>) {
        let deletions = uids.into_iter().collect();
        self.0.lock().insert(owner.clone(), Expected { creations: 0, deletions, since: Instant::now() });
    }

    /// One creation was seen, or has failed. Whether nothing more is expected.
    pub fn creation_observed(&self, owner: &ObjectKey, count: usize) -> bool {
        let mut all = self.0.lock();
        let Some(expected) = all.get_mut(owner) else { return true };
        expected.creations = expected.creations.saturating_sub(count);
        expected.creations == 0 && expected.deletions.is_empty()
    }

    /// One deletion was seen, or has failed. Whether nothing more is expected.
    pub fn deletion_observed(&self, owner: &ObjectKey, uid: &str) -> bool {
        let mut all = self.0.lock();
        let Some(expected) = all.get_mut(owner) else { return true };
        expected.deletions.remove(uid);
        expected.creations == 0 && expected.deletions.is_empty()
    }

    pub fn satisfied(&self, owner: &ObjectKey) -> bool {
        self.0
            .lock()
            .get(owner)
            .is_none_or(|e| (e.creations == 0 && e.deletions.is_empty()) || e.since.elapsed() > PATIENCE)
    }

    pub fn forget(&self, owner: &ObjectKey) {
        self.0.lock().remove(owner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_done_until_all_that_was_asked_for_is_seen() {
        let expectations = Expectations::default();
        let owner = ObjectKey::new("d", "rs");
        assert!(expectations.satisfied(&owner), "nothing was asked for");
        expectations.expect_creations(&owner, 3);
        assert!(!expectations.creation_observed(&owner, 1));
        assert!(!expectations.satisfied(&owner));
        assert!(expectations.creation_observed(&owner, 2));
        assert!(expectations.satisfied(&owner));
        expectations.expect_deletions(&owner, ["a".to_owned(), "b".to_owned()]);
        assert!(!expectations.deletion_observed(&owner, "a"));
        assert!(!expectations.deletion_observed(&owner, "a"), "the mark and the end are one deletion");
        assert!(expectations.deletion_observed(&owner, "b"));
    }
}
