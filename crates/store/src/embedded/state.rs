//! The store's content in memory: what lives now, and every change since the last compaction.

use super::engine::Record;
use crate::types::{Error, KeyRange, KeyValue, Limit, Page, Result, Revision, WatchEvent};
use bytes::Bytes;
use imbl::OrdMap;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

/// All live keys. Cloning it is cheap and gives a snapshot.
pub type Live = OrdMap<Bytes, Arc<KeyValue>>;

/// One change, with what was there before: enough to tell it to a watcher, and to take it back for a read of the
/// past.
#[derive(Clone, Debug)]
pub enum Change {
    Put { kv: Arc<KeyValue>, prev: Option<Arc<KeyValue>> },
    Delete { prev: Arc<KeyValue> },
}

impl Change {
    pub fn key(&self) -> &Bytes {
        match self {
            Change::Put { kv, .. } => &kv.key,
            Change::Delete { prev } => &prev.key,
        }
    }

    fn prev(&self) -> Option<&Arc<KeyValue>> {
        match self {
            Change::Put { prev, .. } => prev.as_ref(),
            Change::Delete { prev } => Some(prev),
        }
    }

    /// Bytes that are in memory only because this change is remembered.
    fn held(&self) -> u64 {
        self.prev().map_or(0, |kv| (kv.value.len() + OVERHEAD) as u64)
    }

    pub fn apply(&self, live: &mut Live) {
        match self {
            Change::Put { kv, .. } => live.insert(kv.key.clone(), kv.clone()),
            Change::Delete { prev } => live.remove(&prev.key[..]),
        };
    }

    pub fn record(&self, revision: Revision) -> Record {
        match self {
            Change::Put { kv, .. } => Record::Put(kv.clone()),
            Change::Delete { prev } => Record::Delete { key: prev.key.clone(), revision },
        }
    }

    fn event(&self, revision: Revision) -> WatchEvent {
        match self {
            Change::Put { kv, prev } => {
                WatchEvent::Put { kv: KeyValue::clone(kv), prev: prev.as_deref().cloned() }
            }
            Change::Delete { prev } => {
                WatchEvent::Delete { key: prev.key.clone(), prev: KeyValue::clone(prev), revision }
            }
        }
    }

    /// The revisions whose records nobody needs once this change, at `revision`, is compacted.
    fn forgotten(&self, revision: Revision) -> impl Iterator<Item = u64> {
        let superseded = self.prev().map(|kv| kv.mod_revision.0);
        let tombstone = matches!(self, Change::Delete { .. }).then_some(revision.0);
        superseded.into_iter().chain(tombstone)
    }
}

pub struct State {
    pub live: Live,
    /// The change of revision `first + i` is at place `i`: every revision is exactly one change.
    log: VecDeque<Change>,
    /// Bytes that the log holds beyond what lives.
    held: u64,
    first: Revision,
    pub newest: Revision,
    compacted: Revision,
}

/// About what a value costs in memory besides its bytes.
const OVERHEAD: usize = 200;

/// How many events one look at the log takes at most, so that the lock is held shortly.
const EVENTS_AT_ONCE: u64 = 1024;

impl State {
    /// Takes in changes that are durable; `live` is the content after them.
    pub fn publish(&mut self, changes: Vec<Change>, live: Live) {
        self.newest.0 += changes.len() as u64;
        self.held += changes.iter().map(Change::held).sum::<u64>();
        self.log.extend(changes);
        self.live = live;
    }

    fn at(&self, revision: Revision) -> Option<&Change> {
        self.log.get(revision.0.checked_sub(self.first.0)? as usize)
    }

    pub fn check_compaction(&self, to: Revision) -> Result<()> {
        if to <= self.compacted {
            return Err(Error::Compacted { at: self.compacted });
        }
        if to > self.newest {
            return Err(Error::FutureRevision { asked: to, newest: self.newest });
        }
        Ok(())
    }

    /// Forgets history up to `to`. Hands out the revisions whose records are of no more use, and the changes
    /// themselves, to be dropped when no lock is held.
    pub fn compact(&mut self, to: Revision) -> (Vec<u64>, Vec<Change>) {
        self.compacted = self.compacted.max(to);
        let n = ((to.0 + 1).saturating_sub(self.first.0) as usize).min(self.log.len());
        let first = self.first.0;
        let gone: Vec<Change> = self.log.drain(..n).collect();
        self.held -= gone.iter().map(Change::held).sum::<u64>();
        self.first.0 += n as u64;
        let mut forget: Vec<u64> = gone
            .iter()
            .enumerate()
            .flat_map(|(i, change)| change.forgotten(Revision(first + i as u64)))
            .collect();
        forget.sort_unstable();
        (forget, gone)
    }

    /// Where to compact to when history holds more than `limit` bytes: so far that half of that is left.
    pub fn overfull(&self, limit: u64) -> Option<Revision> {
        if self.held <= limit {
            return None;
        }
        let mut held = self.held;
        let enough = self.log.iter().position(|change| {
            held -= change.held();
            held <= limit / 2
        });
        Some(Revision(self.first.0 + enough? as u64))
    }

    /// What a range read needs, taken under the lock: a snapshot, and for the past the keys that were otherwise.
    pub fn view(&self, range: &KeyRange, at: Option<Revision>) -> Result<View> {
        let revision = at.unwrap_or(self.newest);
        if revision > self.newest {
            return Err(Error::FutureRevision { asked: revision, newest: self.newest });
        }
        if revision < self.compacted {
            return Err(Error::Compacted { at: self.compacted });
        }
        let mut then = BTreeMap::new();
        let mut later = self.newest;
        while later > revision {
            match self.at(later) {
                Some(change) if range.contains(change.key()) => {
                    then.insert(change.key().clone(), change.prev().cloned());
                }
                Some(_) => {}
                None => return Err(Error::Compacted { at: self.compacted }),
            }
            later.0 -= 1;
        }
        Ok(View { live: self.live.clone(), then, revision })
    }

    /// The events after `cursor` and how far they reach.
    pub fn events(&self, range: &KeyRange, cursor: Revision) -> Result<(Vec<WatchEvent>, Revision)> {
        if cursor < self.compacted {
            return Err(Error::Compacted { at: self.compacted });
        }
        let to = Revision(self.newest.0.min(cursor.0 + EVENTS_AT_ONCE)).max(cursor);
        let mut events = Vec::new();
        let mut revision = cursor.next();
        while revision <= to {
            // Revision 1 is the empty store's and has no change.
            if let Some(change) = self.at(revision)
                && range.contains(change.key())
            {
                events.push(change.event(revision));
            }
            revision = revision.next();
        }
        Ok((events, to))
    }
}

/// One revision of the store, seen whole.
pub struct View {
    live: Live,
    then: BTreeMap<Bytes, Option<Arc<KeyValue>>>,
    revision: Revision,
}

impl View {
    pub fn page(&self, range: &KeyRange, limit: Limit) -> Page {
        let mut page = Page { revision: self.revision, ..Page::default() };
        if range.is_empty() {
            return page;
        }
        let max = match limit {
            Limit::NONE => usize::MAX,
            Limit::COUNT_ONLY => 0,
            Limit(n) => n,
        };
        let mut take = |kv: Option<&Arc<KeyValue>>| {
            let Some(kv) = kv else { return };
            page.count += 1;
            if page.items.len() < max {
                page.items.push(KeyValue::clone(kv));
            }
        };
        let mut then = self.then.iter().peekable();
        for (key, kv) in self.live.range(range.bounds()) {
            while let Some((_, was)) = then.next_if(|(k, _)| *k < key) {
                take(was.as_ref());
            }
            match then.next_if(|(k, _)| *k == key) {
                Some((_, was)) => take(was.as_ref()),
                None => take(Some(kv)),
            }
        }
        for (_, was) in then {
            take(was.as_ref());
        }
        page.more = page.count > page.items.len();
        page
    }
}

/// Builds the state from records in the order of revisions.
pub struct Loader {
    live: Live,
    changes: VecDeque<(Revision, Change)>,
    strays: Vec<u64>,
}

impl Loader {
    pub fn new() -> Self {
        Loader { live: Live::new(), changes: VecDeque::new(), strays: Vec::new() }
    }

    /// Takes the next record. A delete of a key that is not there is a leftover of an unfinished compaction.
    pub fn take(&mut self, record: Record) {
        let (revision, change) = match record {
            Record::Put(kv) => {
                let prev = self.live.get(&kv.key).cloned();
                (kv.mod_revision, Some(Change::Put { kv, prev }))
            }
            Record::Delete { key, revision } => {
                (revision, self.live.get(&key).cloned().map(|prev| Change::Delete { prev }))
            }
        };
        match change {
            Some(change) => {
                change.apply(&mut self.live);
                self.changes.push_back((revision, change));
            }
            None => self.strays.push(revision.0),
        }
    }

    /// The state, and the revisions whose records a compaction was still to remove.
    pub fn finish(mut self, compacted: Revision) -> Result<(State, Vec<u64>)> {
        let mut forget = std::mem::take(&mut self.strays);
        while let Some((revision, change)) = self.changes.pop_front_if(|(revision, _)| *revision <= compacted)
        {
            forget.extend(change.forgotten(revision));
        }
        let first = Revision(compacted.0.max(1) + 1);
        let newest = self.changes.back().map_or(first.0 - 1, |(revision, _)| revision.0);
        // Above the compaction nothing may be missing.
        if newest + 1 - first.0 != self.changes.len() as u64 {
            let found = self.changes.len();
            return Err(Error::Corrupt(format!("{found} records from revision {first} to {newest}")));
        }
        let log: VecDeque<Change> = self.changes.into_iter().map(|(_, change)| change).collect();
        let held = log.iter().map(Change::held).sum();
        Ok((State { live: self.live, log, held, first, newest: Revision(newest), compacted }, forget))
    }
}
