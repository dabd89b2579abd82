//! The watch cache: every served object in memory as the bytes that are stored, fed by one watch of the store.
//!
//! A list joins bytes, a watch event is framed once for all watchers, and a watcher costs nothing for events that do
//! not concern it. What the bytes mean is told by each resource's [`Decode`].

mod counts;
mod object;
mod query;
mod resource;
mod text;
mod watcher;

pub use counts::{Count, Counts, Lists, Write};
pub use object::{Decode, Event, Head, Kind, Object, Owner};
pub use query::{CacheError, Freshness, List, ListQuery, Matches, Scope, Selector, Start, WatchQuery};
pub use resource::Resource;
pub use text::Text;
pub use watcher::{BOOKMARK_EVERY, CacheEvent, QUEUE, Watcher};

use crate::{
    backend::{Backend, WatchStream},
    types::{Error, KeyRange, Limit, Result, Revision},
};
use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use resource::Common;
use std::{collections::BTreeMap, ops::Bound, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

/// How long the feed waits before it asks a store that failed again.
const RETRY_AFTER: Duration = Duration::from_millis(200);

enum Command {
    Add(Bytes, Arc<dyn Decode>, Option<&'static str>, oneshot::Sender<Result<Arc<Resource>>>),
    Remove(Bytes, oneshot::Sender<()>),
}

/// All served resources.
pub struct Cache {
    common: Arc<Common>,
    commands: mpsc::UnboundedSender<Command>,
    feed: JoinHandle<()>,
}

impl Cache {
    /// Begins to follow the store below `root` (`/registry/`). Must be called within a tokio runtime.
    pub async fn start(backend: Arc<dyn Backend>, root: impl Into<Bytes>) -> Result<Self> {
        let revision = backend.revision().await?;
        let common =
            Arc::new(Common { backend, fresh: watch::Sender::new(revision), progress: Mutex::new(None) });
        let (commands, queue) = mpsc::unbounded_channel();
        let root = KeyRange::prefix(root);
        let feed = Feed { common: common.clone(), root, resources: BTreeMap::new(), at: revision };
        Ok(Cache { common, commands, feed: tokio::spawn(feed.run(queue)) })
    }

    /// Reads a resource's objects and serves them from now on. `prefix` is where they lie (`/registry/pods`);
    /// `index` the field that many watchers select by one value of (`spec.nodeName` for pods).
    ///
    /// A resource that is there already is replaced, and its watchers end.
    pub async fn add(
        &self,
        prefix: &str,
        decode: Arc<dyn Decode>,
        index: Option<&'static str>,
    ) -> Result<Arc<Resource>> {
        let (answer, answered) = oneshot::channel();
        self.commands
            .send(Command::Add(with_slash(prefix), decode, index, answer))
            .map_err(|_| Error::Closed)?;
        answered.await.map_err(|_| Error::Closed)?
    }

    /// Ceases to serve a resource: its watchers end. Its objects stay in the store.
    pub async fn remove(&self, prefix: &str) {
        let (answer, answered) = oneshot::channel();
        if self.commands.send(Command::Remove(with_slash(prefix), answer)).is_ok() {
            let _ = answered.await;
        }
    }

    /// How far the cache is.
    pub fn revision(&self) -> Revision {
        *self.common.fresh.borrow()
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        self.feed.abort();
    }
}

fn with_slash(prefix: &str) -> Bytes {
    format!("{}/", prefix.trim_end_matches('/')).into()
}

/// The task that brings changes from the store to the resources, and owns the list of resources.
struct Feed {
    common: Arc<Common>,
    root: KeyRange,
    resources: BTreeMap<Bytes, Arc<Resource>>,
    /// Everything up to here has been brought.
    at: Revision,
}

/// Ends whatever rests on the feed when it ends, however it ends.
impl Drop for Feed {
    fn drop(&mut self) {
        for resource in self.resources.values() {
            resource.close();
        }
    }
}

impl Feed {
    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        let mut stream = self.follow();
        loop {
            tokio::select! {
                biased;
                command = commands.recv() => match command {
                    Some(Command::Add(prefix, decode, index, answer)) => {
                        let _ = answer.send(self.add(prefix, decode, index).await);
                    }
                    Some(Command::Remove(prefix, answer)) => {
                        if let Some(resource) = self.resources.remove(&prefix) {
                            resource.close();
                        }
                        let _ = answer.send(());
                    }
                    None => return,
                },
                batch = stream.next() => match batch {
                    Some(Ok(batch)) => {
                        for event in &batch.events {
                            if let Some(resource) = self.resource_of(event.key()) {
                                resource.apply(event);
                            }
                        }
                        self.at = self.at.max(batch.progress);
                        self.common.fresh.send_replace(self.at);
                    }
                    Some(Err(Error::Closed)) | None => return,
                    Some(Err(error)) => {
                        tracing::warn!(%error, "the watch of the store broke; reading everything again");
                        while let Err(error) = self.begin_anew().await {
                            tracing::warn!(%error, "cannot read the store");
                            if matches!(error, Error::Closed) {
                                return;
                            }
                            tokio::time::sleep(RETRY_AFTER).await;
                        }
                        stream = self.follow();
                    }
                },
            }
        }
    }

    fn follow(&self) -> WatchStream {
        let stream = self.common.backend.watch(self.root.clone(), self.at);
        *self.common.progress.lock() = Some(stream.progress());
        stream
    }

    fn resource_of(&self, key: &Bytes) -> Option<&Arc<Resource>> {
        let below = (Bound::Unbounded, Bound::Included(key.clone()));
        let (prefix, resource) = self.resources.range::<Bytes, _>(below).next_back()?;
        key.starts_with(prefix).then_some(resource)
    }

    async fn add(
        &mut self,
        prefix: Bytes,
        decode: Arc<dyn Decode>,
        index: Option<&'static str>,
    ) -> Result<Arc<Resource>> {
        let resource = Arc::new(Resource::new(self.common.clone(), prefix.clone(), decode, index));
        // As of now, which may be ahead of the feed: changes that come twice are known by their revision.
        let page = self.common.backend.range(resource.range(), None, Limit::NONE).await?;
        resource.replace(&page.items, page.revision);
        if let Some(old) = self.resources.insert(prefix, resource.clone()) {
            old.close();
        }
        Ok(resource)
    }

    async fn begin_anew(&mut self) -> Result<()> {
        let revision = self.common.backend.revision().await?;
        for resource in self.resources.values() {
            let page = self.common.backend.range(resource.range(), None, Limit::NONE).await?;
            resource.replace(&page.items, page.revision);
        }
        self.at = revision;
        self.common.fresh.send_replace(revision);
        Ok(())
    }
}
