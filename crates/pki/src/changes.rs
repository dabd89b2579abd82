//! When files that are followed are to be looked at.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// Tells that something was written or replaced in the directories of some files. A file may be replaced there, or be a
/// link to what is replaced.
struct Changes(pipe::Receiver);

impl Changes {
    /// # Errors
    /// A directory is not there, or the kernel watches no more.
    fn of<'a>(files: impl IntoIterator<Item = &'a Path>) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        // What is only made by now is not written yet.
        let flags = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO;
        for file in files {
            let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty());
            inotify.add_watch(directory.unwrap_or(Path::new(".")), flags)?;
        }
        // It is read as a pipe is; what it says does not matter.
        pipe::Receiver::from_owned_fd_unchecked(OwnedFd::from(inotify)).map(Changes)
    }

    /// Returns when something has happened.
    ///
    /// # Errors
    /// Nothing is told any more.
    async fn next(&mut self) -> io::Result<()> {
        self.0.read(&mut [0; 4096]).await.map(drop)
    }
}

/// The times to look at some files: when something happened in their directories, and every now and then whatever is heard.
pub struct Looks {
    changes: Option<Changes>,
    every: Interval,
}

impl Looks {
    /// In the directories of `files`, and each `every` at least.
    pub fn at<'a>(files: impl IntoIterator<Item = &'a Path>, every: Duration) -> Self {
        let mut every = interval(every);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let changes = Changes::of(files)
            .inspect_err(|error| tracing::warn!(%error, "changes of files are noticed late"))
            .ok();
        Looks { changes, every }
    }

    /// Returns when it is time for another look; the first is at once.
    pub async fn next(&mut self) {
        let heard = async {
            match &mut self.changes {
                Some(changes) => changes.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.every.tick() => {}
            heard = heard => if heard.is_err() {
                self.changes = None;
            },
        }
    }
}
