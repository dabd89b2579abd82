//! The door: what a place to keep data must be able to do.

use crate::types::{Committed, CompareAndSet, KeyRange, Limit, Page, Result, Revision, WatchEvent};
use async_trait::async_trait;
use futures::{Stream, StreamExt, stream::BoxStream};
use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

/// etcd's contract, as far as an API server needs it.
///
/// Every commit takes the next revision of one counter. Reads show one revision whole. What is acknowledged is
/// durable, and is seen by every read that begins afterwards.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Reads a range at a revision, or the newest state when `at` is `None`.
    ///
    /// Fails with `Compacted` for a revision before the last compaction and `FutureRevision` for one not reached.
    async fn range(&self, range: KeyRange, at: Option<Revision>, limit: Limit) -> Result<Page>;

    /// Does one write if its expectation holds; `Conflict` carries the current value. When this returns `Ok` the
    /// write is durable. An error other than `Conflict` from a backend behind a network leaves it open whether
    /// the write was done; the embedded backend has not done it.
    async fn commit(&self, op: CompareAndSet) -> Result<Committed>;

    /// Every change in `range` with a revision above `after`, in order, each revision whole.
    ///
    /// A watch from before the last compaction, or one that compaction overtakes, ends with `Compacted`.
    fn watch(&self, range: KeyRange, after: Revision) -> WatchStream;

    /// Forgets all history before `to`: reads at `to` and watches after `to` still work. A revision already
    /// compacted answers `Compacted`, one not reached `FutureRevision`.
    async fn compact(&self, to: Revision) -> Result<()>;

    /// The newest revision, read as a consistent read is: not older than any write acknowledged before the call.
    async fn revision(&self) -> Result<Revision>;

    /// How many bytes the store takes where it is kept, if it can tell.
    fn size(&self) -> Option<u64> {
        None
    }

    /// Whether what the store keeps of a key is not what it would keep of it today, so that it is worth writing the
    /// same value again. Only a store that transforms values knows any.
    async fn is_stale(&self, _key: &[u8]) -> Result<bool> {
        Ok(false)
    }
}

/// Some changes, and how far they reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchBatch {
    /// In the order of their revisions; empty for an answer to [`ProgressHandle::request`].
    pub events: Vec<WatchEvent>,
    /// All of the watch's events up to and including this revision have now been delivered.
    pub progress: Revision,
}

/// Asks a watch to say how far it has come, which a quiet watch does not do by itself.
pub trait Progress: Send + Sync {
    fn request(&self);
}

/// A handle to ask for progress, usable while the stream itself is being waited on.
#[derive(Clone)]
pub struct ProgressHandle(Arc<dyn Progress>);

impl ProgressHandle {
    pub fn new(progress: impl Progress + 'static) -> Self {
        ProgressHandle(Arc::new(progress))
    }

    /// Makes the stream yield a batch soon, though it be empty, whose `progress` is not below the newest revision
    /// at the time of this call.
    pub fn request(&self) {
        self.0.request();
    }
}

/// The changes of a range as they are committed. Ends after its first error.
pub struct WatchStream {
    inner: BoxStream<'static, Result<WatchBatch>>,
    progress: ProgressHandle,
}

impl WatchStream {
    pub fn new(
        stream: impl Stream<Item = Result<WatchBatch>> + Send + 'static,
        progress: ProgressHandle,
    ) -> Self {
        WatchStream { inner: stream.boxed(), progress }
    }

    pub fn progress(&self) -> ProgressHandle {
        self.progress.clone()
    }
}

impl Stream for WatchStream {
    type Item = Result<WatchBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.inner.as_mut().poll_next(cx)
    }
}

impl fmt::Debug for WatchStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WatchStream")
    }
}
