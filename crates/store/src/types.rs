//! The words of the contract: revisions, ranges, values, operations, errors.

use bytes::Bytes;
use std::{fmt, ops::Bound};

/// A point in the history of the whole store. There is one counter for all keys; every committed operation takes
/// the next number. `Revision(0)` is before everything; an empty store stands at `Revision(1)`, as etcd's does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl Revision {
    pub const ZERO: Revision = Revision(0);

    #[must_use]
    pub fn next(self) -> Revision {
        Revision(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<u64> for Revision {
    fn from(n: u64) -> Self {
        Revision(n)
    }
}

/// A set of keys that lie side by side: `start <= key < end`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyRange {
    pub start: Bytes,
    /// `None`: to the end of all keys.
    pub end: Option<Bytes>,
}

impl KeyRange {
    pub fn all() -> Self {
        KeyRange { start: Bytes::new(), end: None }
    }

    /// Exactly this key.
    pub fn single(key: impl Into<Bytes>) -> Self {
        let start = key.into();
        let mut end = start.to_vec();
        end.push(0);
        KeyRange { start, end: Some(end.into()) }
    }

    /// All keys that begin with `prefix`.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start = prefix.into();
        let mut end = start.to_vec();
        while end.last() == Some(&0xff) {
            end.pop();
        }
        let end = match end.last_mut() {
            Some(last) => {
                *last += 1;
                Some(end.into())
            }
            None => None,
        };
        KeyRange { start, end }
    }

    /// `from <= key < to`.
    pub fn between(from: impl Into<Bytes>, to: impl Into<Bytes>) -> Self {
        KeyRange { start: from.into(), end: Some(to.into()) }
    }

    /// What is left of this range after `key`: where the page after the one that ended with `key` begins.
    #[must_use]
    pub fn after(&self, key: &[u8]) -> Self {
        let mut start = key.to_vec();
        start.push(0);
        KeyRange { start: start.into(), end: self.end.clone() }
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &self.start[..] && self.end.as_ref().is_none_or(|end| key < &end[..])
    }

    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| end <= &self.start)
    }

    pub(crate) fn bounds(&self) -> (Bound<Bytes>, Bound<Bytes>) {
        let end = match &self.end {
            Some(end) => Bound::Excluded(end.clone()),
            None => Bound::Unbounded,
        };
        (Bound::Included(self.start.clone()), end)
    }
}

/// A key with its value and what the store knows about them.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyValue {
    pub key: Bytes,
    pub value: Bytes,
    /// The revision that created the key, after its last deletion.
    pub create_revision: Revision,
    /// The revision that last wrote it.
    pub mod_revision: Revision,
    /// How often it was written since its creation; 1 for a new key.
    pub version: u64,
}

impl fmt::Debug for KeyValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyValue")
            .field("key", &self.key)
            .field("bytes", &self.value.len())
            .field("create_revision", &self.create_revision.0)
            .field("mod_revision", &self.mod_revision.0)
            .field("version", &self.version)
            .finish()
    }
}

/// How many items a page may have; 0 is no limit, as in etcd and in list options.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit(pub usize);

impl Limit {
    pub const NONE: Limit = Limit(0);
    /// No items, only the count and the revision.
    pub const COUNT_ONLY: Limit = Limit(usize::MAX);
}

/// The answer to a range read, in the order of the keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    pub items: Vec<KeyValue>,
    /// Whether the range has keys beyond the last item.
    pub more: bool,
    /// How many keys the range has in all, those of this page included.
    pub count: usize,
    /// The revision that the page shows: the one asked for, or the newest.
    pub revision: Revision,
}

impl Page {
    /// How many keys of the range are not in this page.
    pub fn remaining(&self) -> usize {
        self.count - self.items.len()
    }
}

/// What must be true of a key for an operation on it to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    Absent,
    ModRevision(Revision),
    Any,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Put(Bytes),
    /// Deleting an absent key with [`Expect::Any`] commits nothing and answers with the newest revision.
    Delete,
}

/// One write: done whole if the expectation holds, else not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompareAndSet {
    pub key: Bytes,
    pub expect: Expect,
    pub op: Op,
}

impl CompareAndSet {
    pub fn create(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        CompareAndSet { key: key.into(), expect: Expect::Absent, op: Op::Put(value.into()) }
    }

    pub fn update(key: impl Into<Bytes>, at: Revision, value: impl Into<Bytes>) -> Self {
        CompareAndSet { key: key.into(), expect: Expect::ModRevision(at), op: Op::Put(value.into()) }
    }

    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        CompareAndSet { key: key.into(), expect: Expect::Any, op: Op::Put(value.into()) }
    }

    pub fn delete(key: impl Into<Bytes>, at: Revision) -> Self {
        CompareAndSet { key: key.into(), expect: Expect::ModRevision(at), op: Op::Delete }
    }

    pub fn delete_any(key: impl Into<Bytes>) -> Self {
        CompareAndSet { key: key.into(), expect: Expect::Any, op: Op::Delete }
    }
}

/// A write that is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The operation's own revision (the newest one, when there was nothing to delete).
    pub revision: Revision,
    /// What was there before.
    pub previous: Option<KeyValue>,
    /// What is there now; `None` after a delete.
    pub current: Option<KeyValue>,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    Put { kv: KeyValue, prev: Option<KeyValue> },
    Delete { key: Bytes, prev: KeyValue, revision: Revision },
}

impl WatchEvent {
    pub fn revision(&self) -> Revision {
        match self {
            WatchEvent::Put { kv, .. } => kv.mod_revision,
            WatchEvent::Delete { revision, .. } => *revision,
        }
    }

    pub fn key(&self) -> &Bytes {
        match self {
            WatchEvent::Put { kv, .. } => &kv.key,
            WatchEvent::Delete { key, .. } => key,
        }
    }
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The expectation does not hold; nothing was done. What the key has now is handed back, so that the caller
    /// can try again without another read.
    #[error("the key is not as expected (current: {current:?})")]
    Conflict { current: Option<KeyValue> },
    /// History up to and including `at` is gone; reads and watches from before it are refused.
    #[error("required revision has been compacted (compacted at {at})")]
    Compacted { at: Revision },
    #[error("required revision {asked} is a future revision (newest is {newest})")]
    FutureRevision { asked: Revision, newest: Revision },
    /// The disk is full: nothing was written. Reads go on; writes succeed again when there is space.
    #[error("no space left for the store: {0}")]
    NoSpace(String),
    /// Nothing can be written for another reason than space.
    #[error("the store is read-only: {0}")]
    ReadOnly(String),
    /// The operation was not acknowledged and the store is as it was before.
    #[error("the store's input or output failed: {0}")]
    Io(String),
    /// A value cannot be brought into the form in which it is kept, or out of it: an encryption key is not at hand.
    #[error("{0}")]
    Unreadable(String),
    #[error("the store is closed")]
    Closed,
    #[error(
        "data directory {path} has format version {found:?}, this program reads {supported}: start the program's \
         version that wrote it, or move the directory away and restore from a backup"
    )]
    Format { path: String, found: String, supported: u32 },
    #[error(
        "data directory {path} is in use by another process: stop that process, or name another directory"
    )]
    Locked { path: String },
    #[error("the store's data is damaged ({0}): move the data directory away and restore from a backup")]
    Corrupt(String),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_what_they_name() {
        for (range, inside, outside) in [
            (KeyRange::single("a"), vec!["a"], vec!["", "a\0", "aa", "b"]),
            (KeyRange::prefix("/r/"), vec!["/r/", "/r/a", "/r/\u{10ffff}"], vec!["/r", "/r0", "/q/"]),
            (KeyRange::between("b", "d"), vec!["b", "c", "czzz"], vec!["a", "d"]),
            (KeyRange::prefix("/r/").after(b"/r/b"), vec!["/r/b0", "/r/c"], vec!["/r/b", "/r/a"]),
        ] {
            for key in inside {
                assert!(range.contains(key.as_bytes()), "{range:?} has {key}");
            }
            for key in outside {
                assert!(!range.contains(key.as_bytes()), "{range:?} has not {key}");
            }
        }
        assert_eq!(KeyRange::prefix(&b"\xff\xff"[..]).end, None);
        assert_eq!(KeyRange::prefix(&b"a\xff"[..]).end, Some(Bytes::from("b")));
    }
}
