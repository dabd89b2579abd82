//! Sockets that come and go below a directory.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What tells one socket from another that takes its place: device, inode, and when it was made.
pub type Identity = (u64, u64, i64, i64);

struct Kernel(Inotify);

impl AsRawFd for Kernel {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// The sockets below one directory, at any depth. Names that begin with a dot are passed over.
pub struct Sockets {
    directory: PathBuf,
    kernel: AsyncFd<Kernel>,
}

impl Sockets {
    /// Makes the directory, and watches it.
    ///
    /// # Errors
    /// The directory cannot be made or watched.
    #[allow(unsafe_code)]
    pub fn below(directory: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&directory)?;
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        // SAFETY: what is registered owns its descriptor, and always names that one.
        let kernel = unsafe { AsyncFd::register_with_interest(Kernel(inotify), Interest::READABLE) }
            .map_err(|error| io::Error::other(error.to_string()))?;
        Ok(Sockets { directory, kernel })
    }

    /// Those that are there. What is watched is what has been looked at, so that nothing is missed.
    pub fn look(&self) -> BTreeMap<PathBuf, Identity> {
        let mut found = BTreeMap::new();
        self.walk(&self.directory, &mut found);
        found
    }

    fn walk(&self, directory: &Path, found: &mut BTreeMap<PathBuf, Identity>) {
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_ONLYDIR;
        // Before it is read: what comes meanwhile is told. To watch it again changes nothing.
        if let Err(error) = self.kernel.get_ref().0.add_watch(directory, flags) {
            tracing::debug!(directory = %directory.display(), %error, "a directory cannot be watched");
        }
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let (path, hidden) = (entry.path(), entry.file_name().to_string_lossy().starts_with('.'));
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            if hidden {
                continue;
            }
            if metadata.is_dir() {
                self.walk(&path, found);
            } else if metadata.file_type().is_socket() {
                let made = (metadata.ctime(), metadata.ctime_nsec());
                found.insert(path, (metadata.dev(), metadata.ino(), made.0, made.1));
            }
        }
    }

    /// Returns when something may have changed.
    pub async fn changed(&self) {
        loop {
            let Ok(mut ready) = self.kernel.readable().await else { return std::future::pending().await };
            let read = ready.try_io(|kernel| kernel.get_ref().0.read_events().map_err(io::Error::from));
            match read {
                Ok(Ok(_)) => return,
                Ok(Err(error)) => {
                    tracing::error!(%error, "sockets of plugins are watched no more");
                    return std::future::pending().await;
                }
                Err(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn sockets_are_seen_to_come_and_go() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let sockets = Sockets::below(directory.path().to_owned()).unwrap();
        assert!(sockets.look().is_empty());
        let told = || tokio::time::timeout(Duration::from_secs(10), sockets.changed());
        let first = UnixListener::bind(at("a.sock")).unwrap();
        UnixListener::bind(at(".hidden")).unwrap();
        std::fs::write(at("file"), "").unwrap();
        told().await.unwrap();
        let found = sockets.look();
        assert_eq!(found.keys().collect::<Vec<_>>(), [&at("a.sock")]);
        std::fs::create_dir(at("sub")).unwrap();
        told().await.unwrap();
        sockets.look();
        UnixListener::bind(at("sub/b.sock")).unwrap();
        told().await.unwrap();
        assert_eq!(sockets.look().len(), 2);
        // Another one in its place is another one.
        drop(first);
        std::fs::remove_file(at("a.sock")).unwrap();
        let _second = UnixListener::bind(at("a.sock")).unwrap();
        told().await.unwrap();
        assert_ne!(sockets.look()[&at("a.sock")], found[&at("a.sock")]);
    }
}
