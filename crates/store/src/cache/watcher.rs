//! Who is told of what. Watchers are kept by what they can be concerned with, so that an event costs nothing for
//! those whom it does not concern.

use super::{
    object::{Event, Kind, Object, frame},
    query::{Scope, Selector},
};
use crate::types::Revision;
use bytes::Bytes;
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

/// Events that may wait for a watcher before it is given up; its client then watches again from where it was.
pub const QUEUE: usize = 8192;

/// About how often a watch that allows bookmarks gets one.
pub const BOOKMARK_EVERY: Duration = Duration::from_mins(1);

/// What a watcher is told.
#[derive(Clone, Debug)]
pub enum CacheEvent {
    /// An object that was there when the watch began.
    Initial(Arc<Object>),
    /// A change, and what it is for this watcher.
    Change(Kind, Arc<Event>),
    /// All changes up to this revision have been told.
    Bookmark { revision: Revision, initial_events_end: bool },
}

impl CacheEvent {
    pub fn revision(&self) -> Revision {
        match self {
            CacheEvent::Initial(object) => object.revision,
            CacheEvent::Change(_, event) => event.revision,
            CacheEvent::Bookmark { revision, .. } => *revision,
        }
    }

    /// The object that is told of, and whether it is gone; `None` for a bookmark.
    pub fn about(&self) -> Option<(&Arc<Object>, bool)> {
        match self {
            CacheEvent::Initial(object) => Some((object, false)),
            CacheEvent::Change(Kind::Deleted, change) => Some((change.prev.as_ref()?, true)),
            CacheEvent::Change(_, change) => Some((change.current.as_ref()?, false)),
            CacheEvent::Bookmark { .. } => None,
        }
    }

    /// `None` for a bookmark.
    pub fn kind(&self) -> Option<Kind> {
        match self {
            CacheEvent::Initial(_) => Some(Kind::Added),
            CacheEvent::Change(kind, _) => Some(*kind),
            CacheEvent::Bookmark { .. } => None,
        }
    }

    /// The object as it is sent; `None` for a bookmark, which the resource's owner frames.
    pub fn object(&self) -> Option<Bytes> {
        match self {
            CacheEvent::Initial(object) => Some(object.sent()),
            CacheEvent::Change(kind, event) => Some(event.object(*kind)),
            CacheEvent::Bookmark { .. } => None,
        }
    }

    /// The line of a JSON watch response; `None` for a bookmark.
    pub fn line(&self) -> Option<Bytes> {
        match self {
            CacheEvent::Initial(object) => Some(frame(Kind::Added, &object.text, object.revision)),
            CacheEvent::Change(kind, event) => Some(event.line(*kind)),
            CacheEvent::Bookmark { .. } => None,
        }
    }
}

/// The sending half of a watch.
struct Sink {
    queue: mpsc::Sender<(Kind, Arc<Event>)>,
    scope: Scope,
    selector: Selector,
    /// A watch from a revision that is not reached yet is told nothing before it.
    after: Revision,
}

impl Sink {
    /// Whether the watcher is to be kept.
    fn offer(&self, event: &Arc<Event>) -> bool {
        if event.revision <= self.after || !in_scope(&self.scope, event) {
            return true;
        }
        match self.selector.classify(event) {
            Some(kind) => self.queue.try_send((kind, event.clone())).is_ok(),
            None => true,
        }
    }
}

fn in_scope(scope: &Scope, event: &Event) -> bool {
    let Some(object) = event.current.as_ref().or(event.prev.as_ref()) else { return false };
    scope.namespace.as_ref().is_none_or(|namespace| *namespace == object.head.namespace)
        && scope.name.as_ref().is_none_or(|name| *name == object.head.name)
}

/// Under which heading a watcher is found.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Heading {
    All,
    Namespace(Box<str>),
    /// The object's whole key.
    Name(Bytes),
    /// A value of the index field.
    Field(String),
}

#[derive(Default)]
pub(super) struct Watchers {
    by_heading: HashMap<Heading, Vec<Sink>>,
    /// The field whose values have headings.
    index: Option<&'static str>,
    count: usize,
}

impl Watchers {
    pub fn new(index: Option<&'static str>) -> Self {
        Watchers { index, ..Watchers::default() }
    }

    pub fn add(
        &mut self,
        prefix: &Bytes,
        scope: Scope,
        selector: Selector,
        after: Revision,
    ) -> mpsc::Receiver<(Kind, Arc<Event>)> {
        let heading = match (&scope, &selector.field) {
            (Scope { name: Some(_), .. }, _) => Heading::Name(scope.key(prefix)),
            (_, Some((field, value))) if Some(field.as_str()) == self.index => Heading::Field(value.clone()),
            (Scope { namespace: Some(namespace), .. }, _) => Heading::Namespace(namespace.clone()),
            _ => Heading::All,
        };
        let (queue, events) = mpsc::channel(QUEUE);
        let sinks = self.by_heading.entry(heading).or_default();
        let before = sinks.len();
        // Those whose clients have gone make room.
        sinks.retain(|sink| !sink.queue.is_closed());
        self.count = self.count + 1 + sinks.len() - before;
        sinks.push(Sink { queue, scope, selector, after });
        events
    }

    pub fn len(&self) -> usize {
        self.count
    }

    pub fn clear(&mut self) {
        self.by_heading.clear();
        self.count = 0;
    }

    /// Tells those whom an event concerns, and says how many were given up because they were too slow.
    pub fn tell(&mut self, event: &Arc<Event>) -> usize {
        if self.count == 0 {
            return 0;
        }
        let Some(object) = event.current.as_ref().or(event.prev.as_ref()) else { return 0 };
        let mut slow = self.offer(&Heading::All, event);
        slow += self.offer(&Heading::Name(object.key.clone()), event);
        if !object.head.namespace.is_empty() {
            slow += self.offer(&Heading::Namespace(object.head.namespace.clone()), event);
        }
        if let Some(index) = self.index {
            let value = |object: &Option<Arc<Object>>| {
                object.as_ref().and_then(|o| o.head.field(index)).map(ToOwned::to_owned)
            };
            let (was, is) = (value(&event.prev), value(&event.current));
            if was != is
                && let Some(was) = was
            {
                slow += self.offer(&Heading::Field(was), event);
            }
            if let Some(is) = is {
                slow += self.offer(&Heading::Field(is), event);
            }
        }
        slow
    }

    fn offer(&mut self, heading: &Heading, event: &Arc<Event>) -> usize {
        let Some(sinks) = self.by_heading.get_mut(heading) else { return 0 };
        let before = sinks.len();
        let mut slow = 0;
        sinks.retain(|sink| {
            let stays = sink.offer(event);
            slow += usize::from(!stays && !sink.queue.is_closed());
            stays
        });
        self.count -= before - sinks.len();
        if sinks.is_empty() {
            self.by_heading.remove(heading);
        }
        slow
    }
}

/// The receiving half of a watch.
pub struct Watcher {
    pub(super) backlog: VecDeque<CacheEvent>,
    pub(super) events: mpsc::Receiver<(Kind, Arc<Event>)>,
    /// How far the cache is; everything up to it is in the queues.
    pub(super) fresh: watch::Receiver<Revision>,
    /// When the next bookmark is due, and how often one is.
    pub(super) bookmark: Option<(Instant, Duration)>,
    /// Bookmarks never go back before where the watch began.
    pub(super) after: Revision,
}

impl Watcher {
    /// The next event. `None`: the watcher was too slow, or the resource is no longer served; watch again from the
    /// last revision.
    pub async fn next(&mut self) -> Option<CacheEvent> {
        if let Some(event) = self.backlog.pop_front() {
            return Some(event);
        }
        loop {
            let Some((at, every)) = self.bookmark else {
                return self.events.recv().await.map(change);
            };
            tokio::select! {
                biased;
                event = self.events.recv() => return event.map(change),
                () = sleep_until(at) => {
                    let revision = *self.fresh.borrow();
                    self.bookmark = Some(next_bookmark(every));
                    // What was queued before that revision was published goes first.
                    match self.events.try_recv() {
                        Ok(event) => return Some(change(event)),
                        Err(mpsc::error::TryRecvError::Disconnected) => return None,
                        Err(mpsc::error::TryRecvError::Empty) if revision >= self.after => {
                            return Some(CacheEvent::Bookmark { revision, initial_events_end: false });
                        }
                        Err(mpsc::error::TryRecvError::Empty) => {}
                    }
                }
            }
        }
    }

    /// What can be had without waiting, for a caller that writes several events at once.
    pub fn try_next(&mut self) -> Option<CacheEvent> {
        self.backlog.pop_front().or_else(|| self.events.try_recv().ok().map(change))
    }
}

fn change((kind, event): (Kind, Arc<Event>)) -> CacheEvent {
    CacheEvent::Change(kind, event)
}

pub(super) fn next_bookmark(every: Duration) -> (Instant, Duration) {
    // Up to a quarter more or less, so that watches which began together do not stay together.
    (Instant::now() + every.mul_f64(rand::random_range(0.75..1.25)), every)
}
