//! A map for few entries: a vector in the order of its keys. Sets of fields are tries of such maps, most of which have one
//! entry or two, and a write makes a dozen of them.

use std::borrow::Borrow;
use std::cmp::Ordering;

/// A map whose entries are in the order of their keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sorted<K, V>(Vec<(K, V)>);

impl<K, V> Default for Sorted<K, V> {
    fn default() -> Self {
        Sorted(Vec::new())
    }
}

impl<K: Ord, V> Sorted<K, V> {
    fn find<Q: Ord + ?Sized>(&self, key: &Q) -> Result<usize, usize>
    where
        K: Borrow<Q>,
    {
        // Most come in their order.
        match self.0.last() {
            Some((last, _)) if last.borrow() < key => Err(self.0.len()),
            _ => self.0.binary_search_by(|(k, _)| k.borrow().cmp(key)),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.find(key).ok().and_then(|at| self.0.get(at)).map(|(_, value)| value)
    }

    pub fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        let at = self.find(key).ok()?;
        self.0.get_mut(at).map(|(_, value)| value)
    }

    /// The value of a key, made if it is not there.
    pub fn entry<Q: Ord + ?Sized>(&mut self, key: &Q) -> &mut V
    where
        K: Borrow<Q> + for<'q> From<&'q Q>,
        V: Default,
    {
        let at = match self.find(key) {
            Ok(at) => at,
            Err(at) => {
                self.0.insert(at, (K::from(key), V::default()));
                at
            }
        };
        &mut self.0[at].1
    }

    /// Puts a value in the place of what was there.
    pub fn insert(&mut self, key: K, value: V) {
        match self.find(&key) {
            Ok(at) => self.0[at].1 = value,
            Err(at) => self.0.insert(at, (key, value)),
        }
    }

    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
    {
        if let Ok(at) = self.find(key) {
            self.0.remove(at);
        }
    }

    /// Changes the value that `order` leads to, which says how a key stands to the one that is looked for. It stays if
    /// `change` says so.
    pub fn change_by(&mut self, mut order: impl FnMut(&K) -> Ordering, change: impl FnOnce(&mut V) -> bool) {
        if let Ok(at) = self.0.binary_search_by(|(key, _)| order(key))
            && let Some((_, value)) = self.0.get_mut(at)
            && !change(value)
        {
            self.0.remove(at);
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.0.iter().map(|(key, value)| (key, value))
    }
}

impl<K: Ord, V> FromIterator<(K, V)> for Sorted<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut out = Sorted::default();
        for (key, value) in entries {
            out.insert(key, value);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn it_is_a_map(steps in prop::collection::vec((any::<bool>(), "[a-d]{1,2}", any::<u8>()), 0..40)) {
            let (mut ours, mut model) = (Sorted::<String, u8>::default(), BTreeMap::new());
            for (add, key, value) in steps {
                if add {
                    ours.insert(key.clone(), value);
                    model.insert(key, value);
                } else {
                    *ours.entry(key.as_str()) = value;
                    *model.entry(key.clone()).or_default() = value;
                    if value % 2 == 0 {
                        ours.remove(key.as_str());
                        model.remove(&key);
                    } else {
                        let kept = value % 3 == 0;
                        ours.change_by(|k| k.cmp(&key), |v| { *v = 7; kept });
                        model.insert(key.clone(), 7);
                        if !kept {
                            model.remove(&key);
                        }
                    }
                }
                prop_assert_eq!(ours.iter().collect::<Vec<_>>(), model.iter().collect::<Vec<_>>());
                prop_assert!(model.iter().all(|(k, v)| ours.get(k.as_str()) == Some(v)));
            }
        }
    }
}
