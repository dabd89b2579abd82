//! A network namespace held by a file descriptor.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use futures::TryStreamExt;
use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::{Handle, LinkUnspec};

/// A network namespace of its own with only its loopback up. It lives as long as this value, a process in it, or
/// an interface's peer that was moved there.
#[derive(Debug)]
pub struct Namespace {
    fd: OwnedFd,
}

impl Namespace {
    /// Makes a namespace and brings up its loopback.
    pub fn new() -> io::Result<Self> {
        // A thread of its own: it alone changes namespace, and ends there.
        let fd = std::thread::scope(|scope| {
            let made = scope.spawn(|| -> io::Result<OwnedFd> {
                unshare(CloneFlags::CLONE_NEWNET)?;
                Ok(std::fs::File::open("/proc/thread-self/ns/net")?.into())
            });
            made.join().expect("the thread only makes system calls")
        })?;
        let namespace = Self { fd };
        namespace.netlink(async |handle| {
            let lo = index_of(&handle, "lo").await?;
            handle
                .link()
                .set(LinkUnspec::new_with_index(lo).up().build())
                .execute()
                .await
                .map_err(io::Error::other)
        })?;
        Ok(namespace)
    }

    /// A path by which other processes and functions of this process can open the namespace while this value
    /// lives.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd()))
    }

    /// Moves the calling thread into the namespace, for good.
    pub fn enter(&self) -> io::Result<()> {
        Ok(setns(&self.fd, CloneFlags::CLONE_NEWNET)?)
    }

    /// Runs `work` in a thread inside the namespace and returns what it returns; a panic in it goes on in the
    /// caller.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter().expect("a network namespace that this process holds can be entered");
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a future inside the namespace, on a runtime of its own whose every thread is there too.
    pub fn block_on<T: Send, F: Future<Output = T>>(&self, work: impl FnOnce() -> F + Send) -> T {
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime can be built where threads can");
            runtime.block_on(async { work().await })
        })
    }

    /// Runs `work` with an rtnetlink handle of the namespace.
    pub(crate) fn netlink<T: Send>(
        &self,
        work: impl AsyncFnOnce(Handle) -> io::Result<T> + Send,
    ) -> io::Result<T> {
        self.block_on(async || {
            let (connection, handle, _) = rtnetlink::new_connection()?;
            let connection = tokio::spawn(connection);
            let result = work(handle).await;
            connection.abort();
            result
        })
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

pub(crate) async fn index_of(handle: &Handle, name: &str) -> io::Result<u32> {
    let mut links = handle.link().get().match_name(name).execute();
    let link = links.try_next().await.map_err(io::Error::other)?;
    link.map(|link| link.header.index).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, name.to_owned()))
}
