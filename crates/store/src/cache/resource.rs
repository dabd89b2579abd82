//! The objects of one resource, in memory.

use super::{
    counts::{Counts, Lists},
    object::{Decode, Event, Object},
    query::{CacheError, Freshness, List, ListQuery, Scope, Start, WatchQuery},
    watcher::{CacheEvent, Watcher, Watchers, next_bookmark},
};
use crate::{
    backend::{Backend, ProgressHandle},
    types::{Error, KeyRange, KeyValue, Limit, Revision, WatchEvent},
};
use bytes::Bytes;
use imbl::OrdMap;
use parking_lot::{Mutex, RwLock};
use std::{
    collections::VecDeque,
    ops::Bound,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// How long a read waits for the cache to reach its revision, as upstream.
const FRESH_TIMEOUT: Duration = Duration::from_secs(3);

/// Events are kept this long for watches that begin in the past (upstream's 75 s), within these counts.
const HISTORY: Duration = Duration::from_secs(75);
const HISTORY_LEAST: usize = 100;
const HISTORY_MOST: usize = 100_000;

/// What all resources of a cache share.
pub(super) struct Common {
    pub backend: Arc<dyn Backend>,
    /// Everything up to this revision is in the resources and in the watchers' queues.
    pub fresh: watch::Sender<Revision>,
    pub progress: Mutex<Option<ProgressHandle>>,
}

pub(super) struct State {
    objects: OrdMap<Bytes, Arc<Object>>,
    /// The objects' size as they are stored.
    bytes: usize,
    /// The last change's revision, or the list's that it began with.
    revision: Revision,
    history: VecDeque<Past>,
    /// The history is whole after this revision.
    oldest: Revision,
    open: bool,
}

/// A change that is remembered. What its watchers were sent is not: who comes late has it made again.
struct Past {
    at: Instant,
    revision: Revision,
    current: Option<Arc<Object>>,
    prev: Option<Arc<Object>>,
}

impl Past {
    fn of(event: &Event) -> Self {
        let Event { revision, current, prev, .. } = event;
        Past { at: Instant::now(), revision: *revision, current: current.clone(), prev: prev.clone() }
    }

    fn event(&self) -> Arc<Event> {
        Arc::new(Event::new(self.revision, self.current.clone(), self.prev.clone()))
    }
}

/// The objects of one resource, and their watchers.
pub struct Resource {
    common: Arc<Common>,
    /// Ends with a slash.
    prefix: Bytes,
    decode: Arc<dyn Decode>,
    state: RwLock<State>,
    /// Always taken before `state`, so that a watch begins between two events and not within one.
    watchers: Mutex<Watchers>,
    counts: Counts,
}

impl Resource {
    pub(super) fn new(
        common: Arc<Common>,
        prefix: Bytes,
        decode: Arc<dyn Decode>,
        index: Option<&'static str>,
    ) -> Self {
        let state = State {
            objects: OrdMap::new(),
            bytes: 0,
            revision: Revision::ZERO,
            history: VecDeque::new(),
            oldest: Revision::ZERO,
            open: true,
        };
        Resource {
            common,
            prefix,
            decode,
            state: RwLock::new(state),
            watchers: Mutex::new(Watchers::new(index)),
            counts: Counts::default(),
        }
    }

    /// What has been counted of this resource.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// How far the cache is.
    pub fn revision(&self) -> Revision {
        *self.common.fresh.borrow()
    }

    pub(super) fn range(&self) -> KeyRange {
        KeyRange::prefix(self.prefix.clone())
    }

    fn object(&self, kv: &KeyValue) -> Option<Arc<Object>> {
        let Some((text, head)) = self.decode.decode(&kv.key, &kv.value) else {
            tracing::error!(key = %kv.key.escape_ascii(), revision = %kv.mod_revision, "cannot read a stored object");
            self.counts.undecodable.add(1);
            return None;
        };
        let KeyValue { key, value, mod_revision, .. } = kv.clone();
        Some(Arc::new(Object { key, text, value, head, revision: mod_revision }))
    }

    /// Begins anew with all objects at a revision; who was watching must begin anew too.
    pub(super) fn replace(&self, items: &[KeyValue], revision: Revision) {
        let objects: OrdMap<Bytes, Arc<Object>> =
            items.iter().filter_map(|kv| Some((kv.key.clone(), self.object(kv)?))).collect();
        let bytes = objects.values().map(|object| object.text.stored().len()).sum();
        self.counts.initializations.add(1);
        let mut watchers = self.watchers.lock();
        watchers.clear();
        let mut state = self.state.write();
        state.objects = objects;
        state.bytes = bytes;
        state.revision = revision;
        state.oldest = revision;
        state.history.clear();
    }

    pub(super) fn close(&self) {
        let mut watchers = self.watchers.lock();
        self.state.write().open = false;
        watchers.clear();
    }

    /// Takes in a change and tells those whom it concerns.
    pub(super) fn apply(&self, change: &WatchEvent) {
        let revision = change.revision();
        let current = match change {
            WatchEvent::Put { kv, .. } => self.object(kv),
            WatchEvent::Delete { .. } => None,
        };
        let mut watchers = self.watchers.lock();
        let event = {
            let mut state = self.state.write();
            if revision <= state.revision {
                return;
            }
            state.revision = revision;
            let prev = match &current {
                Some(object) => state.objects.insert(change.key().clone(), object.clone()),
                None => state.objects.remove(&change.key()[..]),
            };
            let size =
                |object: &Option<Arc<Object>>| object.as_ref().map_or(0, |object| object.text.stored().len());
            state.bytes = state.bytes + size(&current) - size(&prev);
            if current.is_none() && prev.is_none() {
                return;
            }
            let event = Arc::new(Event::new(revision, current, prev));
            state.remember(&event);
            event
        };
        self.counts.events.add(1);
        self.counts.terminated.add(watchers.tell(&event));
    }

    /// How many watchers there are.
    pub fn watchers(&self) -> usize {
        self.watchers.lock().len()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.state.read().objects.len()
    }

    /// How many objects there are, and how many bytes they are as they are stored.
    pub fn size(&self) -> (usize, usize) {
        let state = self.state.read();
        (state.objects.len(), state.bytes)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits until the cache has everything up to `revision`.
    pub async fn wait_until_fresh(&self, revision: Revision) -> Result<(), CacheError> {
        let mut fresh = self.common.fresh.subscribe();
        if *fresh.borrow_and_update() >= revision {
            return Ok(());
        }
        if let Some(progress) = &*self.common.progress.lock() {
            progress.request();
        }
        match tokio::time::timeout(FRESH_TIMEOUT, fresh.wait_for(|at| *at >= revision)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(CacheError::Closed),
            Err(_) => Err(CacheError::TooLarge { asked: revision, current: *self.common.fresh.borrow() }),
        }
    }

    async fn wait(&self, freshness: Freshness) -> Result<(), CacheError> {
        let revision = match freshness {
            Freshness::Any => return Ok(()),
            Freshness::Latest => self.common.backend.revision().await?,
            Freshness::NotOlderThan(revision) | Freshness::Exact(revision) => revision,
        };
        // Most wait for nothing, and are spared the clock.
        let (waited, took) = if *self.common.fresh.borrow() >= revision {
            (Ok(()), Duration::ZERO)
        } else {
            let since = Instant::now();
            (self.wait_until_fresh(revision).await, since.elapsed())
        };
        self.counts.waited.observe(took);
        if freshness == Freshness::Latest {
            self.counts.consistent[usize::from(waited.is_err())].add(1);
        }
        waited
    }

    /// One object.
    pub async fn get(
        &self,
        namespace: &str,
        name: &str,
        freshness: Freshness,
    ) -> Result<Option<Arc<Object>>, CacheError> {
        self.wait(freshness).await?;
        let key = Scope::name(namespace, name).key(&self.prefix);
        let state = self.state.read();
        state.check_open()?;
        Ok(state.objects.get(&key[..]).cloned())
    }

    /// A page of objects. A revision that memory does not reach back to is read from the store; `TooOld` when the store
    /// has compacted it.
    pub async fn list(&self, query: &ListQuery) -> Result<List, CacheError> {
        self.wait(query.freshness).await?;
        let fresh = *self.common.fresh.borrow();
        let (objects, revision) = {
            let state = self.state.read();
            state.check_open()?;
            match query.freshness {
                Freshness::Exact(at) => (state.at(at), at),
                _ => (Some(state.objects.clone()), fresh.max(state.revision)),
            }
        };
        let Some(objects) = objects else { return self.page_of_store(query, revision).await };
        if matches!(query.freshness, Freshness::Exact(_)) {
            self.check_kept(revision).await?;
        }
        Ok(self.page(query, &objects, revision, &self.counts.lists))
    }

    /// Memory may reach back further than the store, whose compaction is the end of a revision all the same, so that a
    /// list's pages expire alike wherever they come from (KEP-4988).
    async fn check_kept(&self, revision: Revision) -> Result<(), CacheError> {
        // Nothing is stored under the prefix itself.
        let nothing = KeyRange::single(self.prefix.clone());
        match self.common.backend.range(nothing, Some(revision), Limit::NONE).await {
            Ok(_) => Ok(()),
            Err(Error::Compacted { at }) => Err(CacheError::TooOld { asked: revision, oldest: at }),
            Err(other) => Err(other.into()),
        }
    }

    fn page(
        &self,
        query: &ListQuery,
        objects: &OrdMap<Bytes, Arc<Object>>,
        revision: Revision,
        counts: &Lists,
    ) -> List {
        let mut list = List { revision, ..List::default() };
        let KeyRange { start, end } = self.scope_range(&query.scope);
        let start = match &query.after {
            Some(after) if *after >= start => Bound::Excluded(after.clone()),
            _ => Bound::Included(start),
        };
        let end = end.map_or(Bound::Unbounded, Bound::Excluded);
        let everything = query.selector.is_everything();
        let mut rest = objects.range::<_, Bytes>((start, end)).map(|(_, object)| object);
        let mut fetched = 0;
        for object in rest.by_ref() {
            fetched += 1;
            if !everything && !query.selector.selects(&object.head) {
                continue;
            }
            if query.limit != 0 && list.items.len() == query.limit {
                list.more = true;
                break;
            }
            list.items.push(object.clone());
        }
        if list.more && everything {
            list.remaining = Some(1 + rest.count());
        }
        counts.asked.add(1);
        counts.fetched.add(fetched);
        counts.returned.add(list.items.len());
        list
    }

    fn scope_range(&self, scope: &Scope) -> KeyRange {
        let key = scope.key(&self.prefix);
        if scope.name.is_some() { KeyRange::single(key) } else { KeyRange::prefix(key) }
    }

    async fn page_of_store(&self, query: &ListQuery, revision: Revision) -> Result<List, CacheError> {
        let page =
            self.common.backend.range(self.scope_range(&query.scope), Some(revision), Limit::NONE).await;
        let page = page.map_err(|error| match error {
            Error::Compacted { at } => CacheError::TooOld { asked: revision, oldest: at },
            other => other.into(),
        })?;
        let objects = page
            .items
            .iter()
            .filter_map(|kv| Some((kv.key.clone(), self.object(kv)?)))
            .collect::<OrdMap<_, _>>();
        Ok(self.page(query, &objects, revision, &self.counts.lists_of_store))
    }

    /// Begins a watch.
    pub async fn watch(&self, query: WatchQuery) -> Result<Watcher, CacheError> {
        if let Start::State(freshness) = query.start {
            self.wait(freshness).await?;
        }
        if query.start == Start::Now {
            self.wait(Freshness::Latest).await?;
        }
        let WatchQuery { scope, selector, start, bookmarks, bookmark_every, initial_events_end } = query;
        let fresh = *self.common.fresh.borrow();
        // Under the locks only what must be of one moment: where the watch stands, and what it has to be told first.
        let (events, after, now, first) = {
            let mut watchers = self.watchers.lock();
            let state = self.state.read();
            state.check_open()?;
            let now = fresh.max(state.revision);
            let (after, first) = match start {
                Start::After(revision) => (revision, First::Events(state.since(revision)?)),
                Start::State(_) => (now, First::Objects(state.objects.clone())),
                Start::Now => (now, First::Events(Vec::new())),
            };
            let events =
                watchers.add(&self.prefix, scope.clone(), selector.clone(), after.max(state.revision));
            (events, after, now, first)
        };
        let mut backlog: VecDeque<CacheEvent> = match first {
            First::Events(events) => {
                let range = self.scope_range(&scope);
                let concerned = events.into_iter().filter(|event| range.contains(event.key()));
                concerned
                    .filter_map(|event| Some(CacheEvent::Change(selector.classify(&event)?, event)))
                    .collect()
            }
            First::Objects(objects) => {
                let query = ListQuery { selector, ..ListQuery::new(scope, Freshness::Any) };
                let page = self.page(&query, &objects, now, &Lists::default());
                page.items.into_iter().map(CacheEvent::Initial).collect()
            }
        };
        self.counts.initial.add(backlog.len());
        if initial_events_end {
            backlog.push_back(CacheEvent::Bookmark { revision: now.max(after), initial_events_end: true });
        }
        Ok(Watcher {
            backlog,
            events,
            fresh: self.common.fresh.subscribe(),
            bookmark: bookmarks.then(|| next_bookmark(bookmark_every)),
            after,
        })
    }
}

/// What a new watch is told before it follows.
enum First {
    Objects(OrdMap<Bytes, Arc<Object>>),
    Events(Vec<Arc<Event>>),
}

impl State {
    fn check_open(&self) -> Result<(), CacheError> {
        if self.open { Ok(()) } else { Err(CacheError::Closed) }
    }

    fn remember(&mut self, event: &Event) {
        let past = Past::of(event);
        let now = past.at;
        self.history.push_back(past);
        while self.history.len() > HISTORY_LEAST {
            let Some(first) = self.history.front() else { break };
            if self.history.len() <= HISTORY_MOST && now.duration_since(first.at) < HISTORY {
                break;
            }
            self.oldest = first.revision;
            self.history.pop_front();
        }
    }

    /// The changes after a revision.
    fn since(&self, revision: Revision) -> Result<Vec<Arc<Event>>, CacheError> {
        if revision < self.oldest {
            return Err(CacheError::TooOld { asked: revision, oldest: self.oldest });
        }
        let from = self.history.partition_point(|past| past.revision <= revision);
        Ok(self.history.range(from..).map(Past::event).collect())
    }

    /// The objects as they were at a revision; `None` when history does not reach back.
    fn at(&self, revision: Revision) -> Option<OrdMap<Bytes, Arc<Object>>> {
        if revision < self.oldest {
            return None;
        }
        let mut objects = self.objects.clone();
        for past in self.history.iter().rev().take_while(|past| past.revision > revision) {
            match (&past.prev, &past.current) {
                (Some(prev), _) => objects.insert(prev.key.clone(), prev.clone()),
                (None, Some(current)) => objects.remove(&current.key[..]),
                (None, None) => None,
            };
        }
        Some(objects)
    }
}
