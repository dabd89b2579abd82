//! Lists. Of one that a schema declares to be a set or a map (`x-kubernetes-list-type`) the order does not count when it
//! is held against another, and what is added to it takes the place of what is the same.

use std::collections::{HashMap, HashSet};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use super::value::Value;

#[derive(Clone, Debug, Default)]
pub struct List {
    items: Vec<Value>,
    kind: Kind,
}

#[derive(Clone, Debug, Default)]
enum Kind {
    #[default]
    Atomic,
    Set,
    /// By these fields.
    Map(Arc<[String]>),
}

impl List {
    pub fn set(items: Vec<Value>) -> Self {
        List { items, kind: Kind::Set }
    }

    pub fn map(items: Vec<Value>, keys: impl IntoIterator<Item = String>) -> Self {
        List { items, kind: Kind::Map(keys.into_iter().collect()) }
    }

    /// By what an item is told from the others; they are told apart by nothing in a plain list.
    fn key(&self, item: &Value) -> Option<String> {
        let shown = |value: &Value| value.to_json().map(|json| json.to_string()).unwrap_or_default();
        match (&self.kind, item) {
            (Kind::Atomic, _) => None,
            (Kind::Map(keys), Value::Map(map)) => {
                let parts: Vec<String> =
                    keys.iter().map(|k| map.get(k).map(shown).unwrap_or_default()).collect();
                Some(parts.join("\0"))
            }
            _ => Some(shown(item)),
        }
    }

    /// This list and the items of another.
    #[must_use]
    pub fn plus(&self, other: &List) -> List {
        let mut sum = self.clone();
        let mut places: HashMap<String, usize> =
            self.iter().enumerate().filter_map(|(i, item)| Some((self.key(item)?, i))).collect();
        for item in other.iter() {
            let key = self.key(item);
            match (&self.kind, key.as_ref().and_then(|key| places.get(key).copied())) {
                (Kind::Map(_), Some(place)) => {
                    if let Some(there) = sum.items.get_mut(place) {
                        *there = item.clone();
                    }
                }
                (_, Some(_)) => {}
                (_, None) => {
                    // What a map is given twice is in it twice; a set has everything once.
                    if let (Kind::Set, Some(key)) = (&self.kind, key) {
                        places.insert(key, sum.items.len());
                    }
                    sum.items.push(item.clone());
                }
            }
        }
        sum
    }
}

impl From<Vec<Value>> for List {
    fn from(items: Vec<Value>) -> Self {
        List { items, kind: Kind::Atomic }
    }
}

impl Deref for List {
    type Target = Vec<Value>;
    fn deref(&self) -> &Vec<Value> {
        &self.items
    }
}

impl DerefMut for List {
    fn deref_mut(&mut self) -> &mut Vec<Value> {
        &mut self.items
    }
}

/// It is the first of two lists that says whether the order counts.
impl PartialEq for List {
    fn eq(&self, other: &Self) -> bool {
        if self.len() != other.len() {
            return false;
        }
        match &self.kind {
            Kind::Atomic => self.items == other.items,
            Kind::Set => {
                let there: HashSet<Option<String>> = self.iter().map(|item| self.key(item)).collect();
                other.iter().all(|item| there.contains(&self.key(item)))
            }
            Kind::Map(_) => {
                let there: HashMap<Option<String>, &Value> =
                    self.iter().map(|item| (self.key(item), item)).collect();
                other.iter().all(|item| there.get(&self.key(item)).is_some_and(|own| *own == item))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(texts: &[&str]) -> Vec<Value> {
        texts.iter().map(|text| Value::string(*text)).collect()
    }

    fn port(name: &str, number: i64) -> Value {
        Value::map([("n".to_owned(), Value::string(name)), ("p".to_owned(), Value::Int(number))])
    }

    #[test]
    fn the_order_of_sets_and_maps_does_not_count() {
        let (ab, ba) = (texts(&["a", "b"]), texts(&["b", "a"]));
        assert_eq!(List::set(ab.clone()), List::from(ba.clone()));
        assert_ne!(List::from(ab.clone()), List::from(ba));
        assert_ne!(List::set(ab.clone()), List::from(texts(&["a", "c"])));
        let ports = |ports: &[(&str, i64)]| {
            List::map(ports.iter().map(|(n, p)| port(n, *p)).collect(), ["n".to_owned()])
        };
        assert_eq!(ports(&[("a", 1), ("b", 2)]), ports(&[("b", 2), ("a", 1)]));
        assert_ne!(ports(&[("a", 1), ("b", 2)]), ports(&[("b", 2), ("a", 2)]));
    }

    #[test]
    fn what_is_added_joins_what_is_the_same() {
        let sum = List::set(texts(&["a", "b"])).plus(&List::from(texts(&["c", "a", "c"])));
        assert_eq!(*sum, texts(&["a", "b", "c"]));
        let ports = List::map(vec![port("a", 1), port("b", 2)], ["n".to_owned()]);
        let sum = ports.plus(&List::from(vec![port("c", 3), port("a", 4)]));
        assert_eq!(*sum, [port("a", 4), port("b", 2), port("c", 3)]);
        assert_eq!(*List::from(texts(&["a"])).plus(&List::from(texts(&["a"]))), texts(&["a", "a"]));
    }
}
