//! A map for few entries: a vector in the order of its keys. Sets of fields are tries of such maps, most of which have one
//! entry or two, and a write makes a dozen of them. Lists come from whoever may write, though, and their items in any
//! order: a map of many entries is a tree.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, btree_map};
use std::slice;

/// So many entries are few: up to here moving the ones behind a new one costs less than a tree.
const FEW: usize = 64;

/// A map whose entries are in the order of their keys.
#[derive(Clone, Debug)]
pub enum Sorted<K, V> {
    Few(Vec<(K, V)>),
    Many(BTreeMap<K, V>),
}

impl<K, V> Default for Sorted<K, V> {
    fn default() -> Self {
        Sorted::Few(Vec::new())
    }
}

impl<K: Ord, V: PartialEq> PartialEq for Sorted<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl<K: Ord, V: Eq> Eq for Sorted<K, V> {}

/// Where a key is, or belongs, in a vector of entries.
fn find<K, V, Q: Ord + ?Sized>(entries: &[(K, V)], key: &Q) -> Result<usize, usize>
where
    K: Borrow<Q>,
{
    // Most come in their order.
    match entries.last() {
        Some((last, _)) if last.borrow() < key => Err(entries.len()),
        _ => entries.binary_search_by(|(k, _)| k.borrow().cmp(key)),
    }
}

impl<K: Ord, V> Sorted<K, V> {
    pub fn is_empty(&self) -> bool {
        match self {
            Sorted::Few(entries) => entries.is_empty(),
            Sorted::Many(entries) => entries.is_empty(),
        }
    }

    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        match self {
            Sorted::Few(entries) => find(entries, key).ok().and_then(|at| entries.get(at)).map(|(_, v)| v),
            Sorted::Many(entries) => entries.get(key),
        }
    }

    pub fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        match self {
            Sorted::Few(entries) => {
                let at = find(entries, key).ok()?;
                entries.get_mut(at).map(|(_, value)| value)
            }
            Sorted::Many(entries) => entries.get_mut(key),
        }
    }

    /// Makes a tree of a vector that is full.
    fn make_room(&mut self) {
        if let Sorted::Few(entries) = self
            && entries.len() >= FEW
        {
            *self = Sorted::Many(std::mem::take(entries).into_iter().collect());
        }
    }

    /// The value of a key, made if it is not there.
    pub fn entry<Q: Ord + ?Sized>(&mut self, key: &Q) -> &mut V
    where
        K: Borrow<Q> + for<'q> From<&'q Q>,
        V: Default,
    {
        self.make_room();
        match self {
            Sorted::Few(entries) => {
                let at = find(entries, key).unwrap_or_else(|at| {
                    entries.insert(at, (K::from(key), V::default()));
                    at
                });
                &mut entries[at].1
            }
            Sorted::Many(entries) => entries.entry(K::from(key)).or_default(),
        }
    }

    /// Puts a value in the place of what was there.
    pub fn insert(&mut self, key: K, value: V) {
        self.make_room();
        match self {
            Sorted::Few(entries) => match find(entries, &key) {
                Ok(at) => entries[at].1 = value,
                Err(at) => entries.insert(at, (key, value)),
            },
            Sorted::Many(entries) => {
                entries.insert(key, value);
            }
        }
    }

    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
    {
        match self {
            Sorted::Few(entries) => {
                if let Ok(at) = find(entries, key) {
                    entries.remove(at);
                }
            }
            Sorted::Many(entries) => {
                entries.remove(key);
            }
        }
    }

    /// Changes the value that `order` leads to, which says how a key stands to the one that is looked for. It stays if
    /// `change` says so.
    pub fn change_by(&mut self, mut order: impl FnMut(&K) -> Ordering, change: impl FnOnce(&mut V) -> bool) {
        match self {
            Sorted::Few(entries) => {
                if let Ok(at) = entries.binary_search_by(|(key, _)| order(key))
                    && let Some((_, value)) = entries.get_mut(at)
                    && !change(value)
                {
                    entries.remove(at);
                }
            }
            Sorted::Many(entries) => {
                let mut change = Some(change);
                entries.retain(|key, value| match change.take_if(|_| order(key).is_eq()) {
                    Some(change) => change(value),
                    None => true,
                });
            }
        }
    }

    pub fn iter(&self) -> Iter<'_, K, V> {
        match self {
            Sorted::Few(entries) => Iter::Few(entries.iter()),
            Sorted::Many(entries) => Iter::Many(entries.iter()),
        }
    }
}

/// The entries in their order.
pub enum Iter<'a, K, V> {
    Few(slice::Iter<'a, (K, V)>),
    Many(btree_map::Iter<'a, K, V>),
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Iter::Few(entries) => entries.next().map(|(key, value)| (key, value)),
            Iter::Many(entries) => entries.next(),
        }
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

    #[test]
    fn few_become_many_and_stay_the_same() {
        let many: Sorted<String, usize> = (0..200).rev().map(|i| (format!("{i:03}"), i)).collect();
        assert!(matches!(many, Sorted::Many(_)) && many.iter().map(|(_, i)| *i).eq(0..200));
        let few = |n: usize| -> Sorted<String, usize> { (0..n).map(|i| (format!("{i:03}"), i)).collect() };
        let mut left = many;
        (2..200).for_each(|i| left.remove(&format!("{i:03}")));
        assert_eq!(left, few(2));
        assert_ne!(left, few(3));
    }

    proptest! {
        #[test]
        fn it_is_a_map(steps in prop::collection::vec((any::<bool>(), "[a-d]{1,2}", any::<u8>()), 0..40), many: bool) {
            let mut ours = if many { Sorted::Many(BTreeMap::new()) } else { Sorted::<String, u8>::default() };
            let mut model = BTreeMap::new();
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
