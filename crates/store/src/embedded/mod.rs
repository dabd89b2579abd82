//! The store of one machine: state in memory, made durable in groups by one thread.
//!
//! Readers take a snapshot and never wait for a write. History reaches back to the last compaction and survives a
//! restart. When the disk is full or fails, writes are refused and reads go on; the writer tries the disk again
//! with later writes, and an operation that was refused has not happened.

mod directory;
mod engine;
mod queue;
mod state;
mod storage;
mod writer;

pub use directory::FORMAT;
pub use storage::Opener;

use crate::{
    backend::{Backend, Progress, ProgressHandle, WatchBatch, WatchStream},
    types::{Committed, CompareAndSet, Error, KeyRange, Limit, Page, Result, Revision},
};
use async_trait::async_trait;
use engine::Engine;
use futures::stream;
use parking_lot::RwLock;
use queue::Queue;
use state::{Loader, State};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
};
use tokio::sync::{Notify, oneshot, watch};
use writer::{Request, Writer};

/// What the writer and the readers share.
struct Shared {
    state: RwLock<State>,
    /// The newest revision; `None` when the store is closed.
    newest: watch::Sender<Option<Revision>>,
}

impl Shared {
    fn tell(&self, newest: Revision) {
        self.newest.send_replace(Some(newest));
    }

    /// Has every watch look again though there is nothing new: it may have been overtaken by compaction.
    fn wake(&self) {
        self.newest.send_modify(|_| {});
    }

    fn close(&self) {
        self.newest.send_replace(None);
    }
}

/// What may be chosen when a store is opened.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bytes of memory that history may take beyond what lives. When it takes more, the oldest half is compacted
    /// before its time.
    pub history_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options { history_bytes: 256 << 20 }
    }
}

/// A store in a directory of this machine.
pub struct Embedded {
    shared: Arc<Shared>,
    requests: Arc<Queue>,
    writer: Option<JoinHandle<()>>,
    /// Where it is kept, if in a file of its own.
    file: Option<PathBuf>,
    _lock: Option<directory::Lock>,
}

impl Embedded {
    /// Opens the data directory, or makes it. Blocks while it reads everything into memory.
    ///
    /// Fails with `Locked` when another process has it, `Format` when another version wrote it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path, Options::default())
    }

    /// The same, with options.
    pub fn open_with(path: impl AsRef<Path>, options: Options) -> Result<Self> {
        let (lock, file) = directory::prepare(path.as_ref())?;
        let mut store = Self::start(Box::new(storage::InFile(file.clone())), Some(lock), options)?;
        store.file = Some(file);
        Ok(store)
    }

    /// Opens a store on a storage of the caller's making, such as one in memory or one that fails on purpose.
    pub fn open_on(opener: impl Opener) -> Result<Self> {
        Self::start(Box::new(opener), None, Options::default())
    }

    fn start(opener: Box<dyn Opener>, lock: Option<directory::Lock>, options: Options) -> Result<Self> {
        let engine = Engine::open(&*opener, false).map_err(|failure| failure.error)?;
        let mut loader = Loader::new();
        let compacted = engine.load(|record| loader.take(record)).map_err(|failure| failure.error)?;
        let (state, mut forget) = loader.finish(compacted)?;
        forget.sort_unstable_by(|a, b| b.cmp(a));
        let live = state.live.clone();
        let newest = watch::Sender::new(Some(state.newest));
        let shared = Arc::new(Shared { state: RwLock::new(state), newest });
        let requests = Arc::new(Queue::default());
        let queue = requests.clone();
        let writer = Writer {
            shared: shared.clone(),
            opener,
            engine: Some(engine),
            live,
            forget,
            broken: None,
            history_bytes: options.history_bytes,
        };
        let writer = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || writer.run(&queue))
            .map_err(|e| Error::Io(e.to_string()))?;
        Ok(Embedded { shared, requests, writer: Some(writer), file: None, _lock: lock })
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<Result<T>>) -> Request) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        self.requests.push(request(answer))?;
        answered.await.map_err(|_| Error::Closed)?
    }
}

impl Drop for Embedded {
    /// Waits for the group being written, closes the file and ends all watches.
    fn drop(&mut self) {
        let _ = self.requests.push(Request::Close);
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

#[async_trait]
impl Backend for Embedded {
    async fn range(&self, range: KeyRange, at: Option<Revision>, limit: Limit) -> Result<Page> {
        let view = self.shared.state.read().view(&range, at)?;
        Ok(view.page(&range, limit))
    }

    async fn commit(&self, op: CompareAndSet) -> Result<Committed> {
        self.ask(|answer| Request::Commit(op, answer)).await
    }

    fn watch(&self, range: KeyRange, after: Revision) -> WatchStream {
        let asked = Arc::new(Notify::new());
        let follow = Follow {
            shared: self.shared.clone(),
            newest: self.shared.newest.subscribe(),
            asked: asked.clone(),
            range,
            cursor: after,
            ended: false,
        };
        WatchStream::new(stream::unfold(follow, Follow::next), ProgressHandle::new(Asked(asked)))
    }

    async fn compact(&self, to: Revision) -> Result<()> {
        self.ask(|answer| Request::Compact(to, answer)).await
    }

    fn size(&self) -> Option<u64> {
        self.file.as_ref().and_then(|file| file.metadata().ok()).map(|data| data.len())
    }

    async fn revision(&self) -> Result<Revision> {
        Ok(self.shared.state.read().newest)
    }
}

struct Asked(Arc<Notify>);

impl Progress for Asked {
    fn request(&self) {
        self.0.notify_one();
    }
}

/// A watch is a place in the log: a slow one costs nothing until compaction overtakes it.
struct Follow {
    shared: Arc<Shared>,
    newest: watch::Receiver<Option<Revision>>,
    asked: Arc<Notify>,
    range: KeyRange,
    cursor: Revision,
    ended: bool,
}

impl Follow {
    async fn next(mut self) -> Option<(Result<WatchBatch>, Self)> {
        if self.ended {
            return None;
        }
        let mut asked = false;
        loop {
            let open = self.newest.borrow_and_update().is_some();
            let (looked, newest) = {
                let state = self.shared.state.read();
                (state.events(&self.range, self.cursor), state.newest)
            };
            let result = match looked {
                Err(error) => Err(error),
                Ok((events, progress)) => {
                    self.cursor = progress;
                    if !events.is_empty() || (asked && progress >= newest) {
                        Ok(WatchBatch { events, progress })
                    } else if progress < newest {
                        continue;
                    } else if open {
                        let notified = self.asked.clone();
                        tokio::select! {
                            _ = self.newest.changed() => {}
                            () = notified.notified() => asked = true,
                        }
                        continue;
                    } else {
                        Err(Error::Closed)
                    }
                }
            };
            self.ended = result.is_err();
            return Some((result, self));
        }
    }
}
