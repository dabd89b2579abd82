//! Making a user namespace, and doing things inside one. Only a process of one thread may enter one, and it cannot leave
//! again, so each of these happens in a fork.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Gid, Pid, Uid, fork, setgroups, setresgid, setresuid};

use super::protocol::{Incoming, Reply, send};
use crate::userns::{Ids, Range};

/// Makes a namespace with these users and groups, and with it those `beside` it, which this process enters. The namespace of
/// the users is held by what is returned, and needs no process.
///
/// # Errors
/// The host makes no more user namespaces, or has no such ids.
pub fn make(ids: &Ids, beside: CloneFlags) -> io::Result<OwnedFd> {
    let holder = fork_into(|life| {
        unshare(CloneFlags::CLONE_NEWUSER | beside)?;
        send(life.as_fd(), &Reply::Ok, &[])?;
        // Until the other side has all that it wants of this process.
        Incoming::default().fill(life.as_fd()).map(drop)
    })?;
    let outcome = holder.answer().and_then(|()| {
        let of = |file: &str| format!("/proc/{}/{file}", holder.pid);
        let users = File::open(of("ns/user"))?;
        std::fs::write(of("uid_map"), lines(&ids.users))?;
        std::fs::write(of("gid_map"), lines(&ids.groups))?;
        for (flag, file) in [
            (CloneFlags::CLONE_NEWNET, "ns/net"),
            (CloneFlags::CLONE_NEWIPC, "ns/ipc"),
            (CloneFlags::CLONE_NEWUTS, "ns/uts"),
        ] {
            if beside.contains(flag) {
                setns(File::open(of(file))?, flag)?;
            }
        }
        Ok(users.into())
    });
    holder.end();
    outcome
}

/// In the form that the kernel reads: the first id inside, the first one outside, and how many there are.
fn lines(ranges: &[Range]) -> String {
    let line = |range: &Range| format!("{} {} {}", range.container, range.host, range.length);
    ranges.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Enters a user namespace as its root, for the rest of this process's life.
pub fn enter(users: BorrowedFd<'_>) -> nix::Result<()> {
    setns(users, CloneFlags::CLONE_NEWUSER)?;
    become_root()
}

/// Gives up the host's ids for those of the root of the user namespace that this process has entered.
pub fn become_root() -> nix::Result<()> {
    let (user, group) = (Uid::from_raw(0), Gid::from_raw(0));
    setgroups(&[])?;
    setresgid(group, group, group)?;
    setresuid(user, user, user)
}

/// Does `work` as the root of a user namespace.
pub fn inside(users: BorrowedFd<'_>, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let worker = fork_into(|life| {
        enter(users)?;
        work()?;
        send(life.as_fd(), &Reply::Ok, &[])
    })?;
    let outcome = worker.answer();
    worker.end();
    outcome
}

/// A fork that does one thing.
struct Fork {
    pid: Pid,
    life: UnixStream,
}

impl Fork {
    fn answer(&self) -> io::Result<()> {
        let mut incoming = Incoming::default();
        loop {
            match incoming.next::<Reply>()? {
                Some((Reply::Ok, _)) => return Ok(()),
                Some((Reply::Error(why), _)) => return Err(io::Error::other(why)),
                Some((other, _)) => return Err(io::Error::other(format!("unexpected {other:?}"))),
                None if incoming.fill(self.life.as_fd())? == 0 => {
                    return Err(io::Error::other("the process that was to do it ended early"));
                }
                None => {}
            }
        }
    }

    fn end(self) {
        drop(self.life);
        let _ = waitpid(self.pid, None);
    }
}

#[allow(unsafe_code)]
fn fork_into(child: impl FnOnce(&UnixStream) -> io::Result<()>) -> io::Result<Fork> {
    let (ours, theirs) = UnixStream::pair()?;
    // SAFETY: the shim, and whatever is forked from it, has one thread, so the child finds every lock free.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(Fork { pid: child, life: ours }),
        ForkResult::Child => {
            drop(ours);
            let run = std::panic::AssertUnwindSafe(|| child(&theirs));
            if let Ok(Err(error)) = std::panic::catch_unwind(run) {
                let _ = send(theirs.as_fd(), &Reply::Error(error.to_string()), &[]);
            }
            // SAFETY: nothing of the parent's may be flushed or dropped twice.
            unsafe { libc::_exit(0) }
        }
    }
}
