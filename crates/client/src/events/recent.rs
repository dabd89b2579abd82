//! A map that remembers so many entries and no more: those that nobody asked for the longest are forgotten.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

pub struct Recent<K, V> {
    most: usize,
    entries: HashMap<K, (u64, V)>,
    /// By when they were last asked for.
    order: BTreeMap<u64, K>,
    next: u64,
}

impl<K: Clone + Eq + Hash, V> Recent<K, V> {
    pub fn new(most: usize) -> Self {
        Recent { most, entries: HashMap::new(), order: BTreeMap::new(), next: 0 }
    }

    /// What is remembered of a key; what `fresh` makes, if nothing is.
    pub fn get_or(&mut self, key: &K, fresh: impl FnOnce() -> V) -> &mut V {
        let now = self.next;
        self.next += 1;
        if let Some((at, _)) = self.entries.get(key) {
            self.order.remove(at);
        } else if self.entries.len() >= self.most
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.entries.remove(&oldest);
        }
        self.order.insert(now, key.clone());
        let entry = self.entries.entry(key.clone()).or_insert_with(|| (now, fresh()));
        entry.0 = now;
        &mut entry.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_asks_for_is_forgotten_first() {
        let mut recent = Recent::new(2);
        for key in ["a", "b", "a", "c"] {
            *recent.get_or(&key, || 0) += 1;
        }
        assert_eq!((*recent.get_or(&"a", || 0), *recent.get_or(&"c", || 0)), (2, 1));
        assert_eq!(*recent.get_or(&"b", || 7), 7, "forgotten, as it is the oldest");
        assert_eq!(recent.order.len(), 2);
    }
}
