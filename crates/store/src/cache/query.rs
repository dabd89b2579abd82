//! What a reader or watcher asks of the cache.

use super::{
    object::{Event, Head, Kind, Object},
    watcher::BOOKMARK_EVERY,
};
use crate::types::Revision;
use bytes::Bytes;
use std::{fmt, sync::Arc, time::Duration};

/// Which part of a resource's objects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Scope {
    /// `None` for all namespaces, and for a resource of cluster scope.
    pub namespace: Option<Box<str>>,
    /// One object; with it `namespace` must be given for a namespaced resource.
    pub name: Option<Box<str>>,
}

impl Scope {
    pub fn all() -> Self {
        Scope::default()
    }

    pub fn namespace(namespace: &str) -> Self {
        Scope { namespace: Some(namespace.into()), name: None }
    }

    pub fn name(namespace: &str, name: &str) -> Self {
        let namespace = (!namespace.is_empty()).then(|| namespace.into());
        Scope { namespace, name: Some(name.into()) }
    }

    /// The key that the scope names, or that all of its keys begin with.
    pub(super) fn key(&self, prefix: &Bytes) -> Bytes {
        let mut key = prefix.to_vec();
        if let Some(namespace) = &self.namespace {
            key.extend_from_slice(namespace.as_bytes());
            key.push(b'/');
        }
        if let Some(name) = &self.name {
            key.extend_from_slice(name.as_bytes());
        }
        key.into()
    }
}

/// A condition on an object's head.
pub type Matches = Arc<dyn Fn(&Head) -> bool + Send + Sync>;

/// Whether an object is meant.
#[derive(Clone, Default)]
pub struct Selector {
    /// One field that must have exactly this value. When it is the resource's index field, a watch costs nothing
    /// for events of other values.
    pub field: Option<(String, String)>,
    /// All else that labels and fields must fulfil.
    pub matches: Option<Matches>,
}

impl Selector {
    pub fn everything() -> Self {
        Selector::default()
    }

    pub fn field(name: &str, value: &str) -> Self {
        Selector { field: Some((name.to_owned(), value.to_owned())), matches: None }
    }

    pub fn matching(matches: impl Fn(&Head) -> bool + Send + Sync + 'static) -> Self {
        Selector { field: None, matches: Some(Arc::new(matches)) }
    }

    #[must_use]
    pub fn and(mut self, matches: impl Fn(&Head) -> bool + Send + Sync + 'static) -> Self {
        self.matches = Some(match self.matches {
            Some(first) => Arc::new(move |head: &Head| first(head) && matches(head)),
            None => Arc::new(matches),
        });
        self
    }

    pub fn is_everything(&self) -> bool {
        self.field.is_none() && self.matches.is_none()
    }

    pub fn selects(&self, head: &Head) -> bool {
        self.field.as_ref().is_none_or(|(name, value)| head.field(name) == Some(value))
            && self.matches.as_ref().is_none_or(|matches| matches(head))
    }

    /// What an event is for one who sees only what this selects: an object that begins to match is added for him,
    /// one that ceases to is deleted.
    pub fn classify(&self, event: &Event) -> Option<Kind> {
        let is = event.current.as_ref().is_some_and(|o| self.selects(&o.head));
        let was = event.prev.as_ref().is_some_and(|o| self.selects(&o.head));
        match (was, is) {
            (false, true) => Some(Kind::Added),
            (true, true) => Some(Kind::Modified),
            (true, false) => Some(Kind::Deleted),
            (false, false) => None,
        }
    }
}

impl fmt::Debug for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Selector").field("field", &self.field).field("more", &self.matches.is_some()).finish()
    }
}

/// How new what is read must be: API convention's `resourceVersion` and `resourceVersionMatch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// `resourceVersion="0"`: what the cache has.
    Any,
    /// `resourceVersion=""`: nothing acknowledged before the request may be missing.
    Latest,
    /// `NotOlderThan`, and a watch or get with a resource version.
    NotOlderThan(Revision),
    /// `Exact`, and the further pages of a list.
    Exact(Revision),
}

#[derive(Clone, Debug)]
pub struct ListQuery {
    pub scope: Scope,
    pub selector: Selector,
    /// 0 for no limit.
    pub limit: usize,
    /// The key of the last object of the page before.
    pub after: Option<Bytes>,
    pub freshness: Freshness,
}

impl ListQuery {
    pub fn new(scope: Scope, freshness: Freshness) -> Self {
        ListQuery { scope, selector: Selector::everything(), limit: 0, after: None, freshness }
    }
}

/// A page of objects in the order of their keys.
#[derive(Clone, Debug, Default)]
pub struct List {
    pub items: Vec<Arc<Object>>,
    /// The revision that the list shows; further pages are asked for with `Freshness::Exact` of it.
    pub revision: Revision,
    /// Whether there is a further page, after the last item's key.
    pub more: bool,
    /// `metadata.remainingItemCount`: only known when nothing is filtered, as upstream.
    pub remaining: Option<usize>,
}

/// Where a watch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With the first change after this revision.
    After(Revision),
    /// With what there is, as ADDED events, then what changes.
    State(Freshness),
    /// With the first change after the newest revision.
    Now,
}

#[derive(Clone, Debug)]
pub struct WatchQuery {
    pub scope: Scope,
    pub selector: Selector,
    pub start: Start,
    /// `allowWatchBookmarks`: a bookmark about once a minute.
    pub bookmarks: bool,
    /// A quarter more or less is added by chance.
    pub bookmark_every: Duration,
    /// `sendInitialEvents` (KEP-3157): a bookmark after the initial events.
    pub initial_events_end: bool,
}

impl WatchQuery {
    pub fn new(scope: Scope, start: Start) -> Self {
        WatchQuery {
            scope,
            selector: Selector::everything(),
            start,
            bookmarks: false,
            bookmark_every: BOOKMARK_EVERY,
            initial_events_end: false,
        }
    }
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum CacheError {
    /// 410 Gone, reason Expired: history does not reach back so far.
    #[error("too old resource version: {asked} ({oldest})")]
    TooOld { asked: Revision, oldest: Revision },
    /// 504 Timeout with the cause ResourceVersionTooLarge: the store has not come so far in time.
    #[error("Too large resource version: {asked}, current: {current}")]
    TooLarge { asked: Revision, current: Revision },
    #[error("the resource is no longer served")]
    Closed,
    #[error(transparent)]
    Store(#[from] crate::types::Error),
}
