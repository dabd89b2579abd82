//! What happens in directories whose files are followed.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;

/// Tells that something was written or replaced in the directories of some files. A file may be replaced there, or be a
/// link to what is replaced.
pub struct Changes(pipe::Receiver);

impl Changes {
    /// # Errors
    /// A directory is not there, or the kernel watches no more.
    pub fn of<'a>(files: impl IntoIterator<Item = &'a Path>) -> io::Result<Self> {
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
    pub async fn next(&mut self) -> io::Result<()> {
        self.0.read(&mut [0; 4096]).await.map(drop)
    }
}
