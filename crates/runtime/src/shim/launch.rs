//! Starting containers. libcontainer wants a process of its own, with one thread, that it may fork and change at will: so
//! each start happens in a fork of the shim, which reports back and ends.

use std::error::Error as _;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{ForkResult, Pid, fork};

use super::executor::Locking;
use super::protocol::{Incoming, Reply, Start, send};
use super::{stage, users};
use crate::starting::Starting;

/// What a new process reads from and writes to.
#[derive(Debug, Default)]
pub struct Stdio {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

/// Starts a container's first process; `own` is the namespace of the pod's users, when they are not the host's. The answer
/// comes through the socket: one [`Reply`], with the terminal's master when there is one.
pub fn start(start: &Start, own: Option<BorrowedFd<'_>>, stdio: Stdio) -> io::Result<(Pid, UnixStream)> {
    in_fork(&stdio, own.as_slice(), |channel| {
        let outcome = console(start.tty, &start.bundle, |console| {
            let _starting =
                Starting::begin(&start.bundle).map_err(|e| format!("beginning the start: {e}"))?;
            take_stdio(&stdio)?;
            if let Some(own) = own {
                stage::set(&start.bundle, own).map_err(|e| format!("preparing the mounts: {e}"))?;
            }
            let mut container = ContainerBuilder::new(start.id.clone(), SyscallType::Linux)
                .with_root_path(&start.runtime_root)
                .map_err(told)?
                .with_console_socket(console)
                .with_executor(locking(&start.bundle)?)
                .as_init(&start.bundle)
                .with_systemd(false)
                .with_detach(true)
                .build()
                .map_err(told)?;
            container.start().map_err(told)?;
            container.pid().map(nix_pid).ok_or_else(|| "the container has no process".to_owned())
        });
        report(channel, outcome, |pid| Reply::Started { pid });
    })
}

pub fn locking(bundle: &Path) -> Result<Locking, String> {
    Locking::of(bundle).map_err(|e| format!("reading how the container is locked in: {e}"))
}

/// libcontainer speaks of processes in an older nix's words.
fn nix_pid(pid: impl Into<i32>) -> i32 {
    pid.into()
}

pub type Outcome = Result<(i32, Option<OwnedFd>), String>;

/// Runs `launch` with a console socket when a terminal is wanted, and fetches the terminal's master from it.
fn console(
    tty: bool,
    directory: &Path,
    launch: impl FnOnce(Option<std::path::PathBuf>) -> Result<i32, String>,
) -> Outcome {
    if !tty {
        return Ok((launch(None)?, None));
    }
    // Bound by its short name: a socket's address holds no long path.
    let name = "tty.sock";
    std::env::set_current_dir(directory).map_err(|e| e.to_string())?;
    let _ = std::fs::remove_file(name);
    let listener = UnixListener::bind(name).map_err(|e| format!("binding the console socket: {e}"))?;
    let pid = launch(Some(directory.join(name)))?;
    let (connection, _) = listener.accept().map_err(|e| e.to_string())?;
    let _ = std::fs::remove_file(directory.join(name));
    Ok((pid, Some(receive_one(&connection).map_err(|e| format!("receiving the terminal: {e}"))?)))
}

pub fn receive_one(connection: &UnixStream) -> io::Result<OwnedFd> {
    let mut incoming = Incoming::default();
    incoming.fill(connection.as_fd())?;
    incoming.take_fds().into_iter().next().ok_or_else(|| io::Error::other("no descriptor came"))
}

pub fn take_stdio(stdio: &Stdio) -> Result<(), String> {
    let null = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(|e| format!("/dev/null: {e}"))?;
    let or_null = |fd: &Option<OwnedFd>| -> io::Result<OwnedFd> {
        fd.as_ref().map_or_else(|| null.as_fd(), AsFd::as_fd).try_clone_to_owned()
    };
    let place = || -> io::Result<()> {
        nix::unistd::dup2_stdin(or_null(&stdio.stdin)?)?;
        nix::unistd::dup2_stdout(or_null(&stdio.stdout)?)?;
        nix::unistd::dup2_stderr(or_null(&stdio.stderr)?)?;
        Ok(())
    };
    place().map_err(|e| format!("setting up the standard streams: {e}"))
}

fn told(error: libcontainer::error::LibcontainerError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}

pub fn report(channel: BorrowedFd<'_>, outcome: Outcome, started: impl FnOnce(i32) -> Reply) {
    let sent = match &outcome {
        Ok((pid, Some(master))) => send(channel, &started(*pid), &[master.as_fd()]),
        Ok((pid, None)) => send(channel, &started(*pid), &[]),
        Err(why) => send(channel, &Reply::Error(why.clone()), &[]),
    };
    // Nobody to tell: the shim sees the channel end without an answer.
    drop(sent);
}

/// Runs `child` in a fork, which is over when it returns. Of the shim's descriptors it has `stdio` and those that are `kept`.
#[allow(unsafe_code)]
pub fn in_fork(
    stdio: &Stdio,
    kept: &[BorrowedFd<'_>],
    child: impl FnOnce(BorrowedFd<'_>),
) -> io::Result<(Pid, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    let shim = Pid::this();
    // SAFETY: the shim has one thread, so the child finds every lock free.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok((child, ours)),
        ForkResult::Child => {
            drop(ours);
            let streams = [&stdio.stdin, &stdio.stdout, &stdio.stderr];
            let streams = streams.into_iter().flatten().map(AsFd::as_fd);
            close_all_but(streams.chain(kept.iter().copied()).chain([theirs.as_fd()]));
            // A start that nobody would hear of must not go on: neither when the shim dies now, nor when it did already.
            let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
            if Pid::parent() != shim {
                // SAFETY: nothing of the shim's may be flushed or dropped twice.
                unsafe { libc::_exit(1) }
            }
            // What must not be inherited of the shim. That SIGPIPE is ignored stays so until the container's own program: a
            // hook that does not read what it is told is no reason to die.
            let _ = SigSet::all().thread_unblock();
            let run = std::panic::AssertUnwindSafe(|| child(theirs.as_fd()));
            let code = i32::from(std::panic::catch_unwind(run).is_err());
            // SAFETY: nothing of the shim's may be flushed or dropped twice.
            unsafe { libc::_exit(code) }
        }
    }
}

/// Closes, in a fork, every descriptor but the standard ones and `kept`. Who waits for the end of the shim waits for the
/// last copy of its sockets, and a process that it started may live on.
#[allow(unsafe_code)]
fn close_all_but<'a>(kept: impl IntoIterator<Item = BorrowedFd<'a>>) {
    use std::os::fd::AsRawFd;
    let mut kept: Vec<u32> = kept.into_iter().map(|fd| fd.as_raw_fd().cast_unsigned()).collect();
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept.into_iter().chain([u32::MAX]) {
        if fd > first {
            // SAFETY: what owns these descriptors is in the parent; of the copy here nothing is used or dropped.
            unsafe { libc::syscall(libc::SYS_close_range, first, fd - 1, 0) };
        }
        first = first.max(fd.saturating_add(1));
    }
}

/// The first process of a process namespace that a pod's containers share; `own` is the namespace of the pod's users, when
/// they are not the host's. It reaps, and ends when the returned socket is closed, be it by the shim's death.
#[allow(unsafe_code)]
pub fn pause(own: Option<BorrowedFd<'_>>) -> io::Result<(Pid, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    // SAFETY: as in `in_fork`. Two forks, because the namespace holds only the children of who asked for it,
    // and the shim's other children belong elsewhere.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => {
            drop(theirs);
            let mut incoming = Incoming::default();
            let answer = loop {
                if let Some((reply, _)) = incoming.next::<Reply>()? {
                    break reply;
                }
                if incoming.fill(ours.as_fd())? == 0 {
                    break Reply::Error("the process namespace could not be made".into());
                }
            };
            let _ = nix::sys::wait::waitpid(child, None);
            match answer {
                Reply::Started { pid } => Ok((Pid::from_raw(pid), ours)),
                Reply::Error(why) => Err(io::Error::other(why)),
                other => Err(io::Error::other(format!("unexpected {other:?}"))),
            }
        }
        ForkResult::Child => {
            drop(ours);
            close_all_but(own.into_iter().chain([theirs.as_fd()]));
            let made = own
                .map_or(Ok(()), users::enter)
                .and_then(|()| nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWPID))
                // SAFETY: as above.
                .and_then(|()| unsafe { fork() });
            let answer = match made {
                Ok(ForkResult::Child) => reap_until_closed(&theirs),
                Ok(ForkResult::Parent { child }) => Reply::Started { pid: child.as_raw() },
                Err(error) => Reply::Error(error.to_string()),
            };
            let _ = send(theirs.as_fd(), &answer, &[]);
            // SAFETY: as in `in_fork`.
            unsafe { libc::_exit(0) }
        }
    }
}

#[allow(unsafe_code)]
fn reap_until_closed(life: &UnixStream) -> ! {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use nix::sys::signalfd::{SfdFlags, SignalFd};
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    let _ = nix::sys::prctl::set_name(c"krate-pause");
    let mut awaited = SigSet::empty();
    awaited.add(Signal::SIGCHLD);
    let _ = awaited.thread_block();
    let signals = SignalFd::with_flags(&awaited, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK);
    while let Ok(signals) = &signals {
        let mut ready =
            [PollFd::new(signals.as_fd(), PollFlags::POLLIN), PollFd::new(life.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut ready, PollTimeout::NONE);
        if ready[1].any().unwrap_or(true) {
            break;
        }
        while let Ok(Some(_)) = signals.read_signal() {}
        while let Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) =
            waitpid(None, Some(WaitPidFlag::WNOHANG))
        {}
    }
    // SAFETY: as in `in_fork`.
    unsafe { libc::_exit(0) }
}

/// The socket that the server handed over as our standard input.
#[allow(unsafe_code)]
pub fn first_connection() -> io::Result<UnixStream> {
    // SAFETY: descriptor 0 is the server's socket; it is duplicated, and the original then replaced.
    let borrowed = unsafe { BorrowedFd::borrow_raw(0) };
    let owned = borrowed.try_clone_to_owned()?;
    let null = std::fs::File::open("/dev/null")?;
    nix::unistd::dup2_stdin(null)?;
    Ok(UnixStream::from(owned))
}

/// Gives a pipe to a user of the host's, who may then open it again.
pub fn own(stream: impl AsFd, user: u32) -> io::Result<()> {
    use nix::sys::stat::{SFlag, fstat};
    if SFlag::from_bits_truncate(fstat(&stream)?.st_mode).contains(SFlag::S_IFIFO) {
        nix::unistd::fchown(stream, Some(user.into()), None)?;
    }
    Ok(())
}

/// A pipe's two ends, the second for a child.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    Ok((read, write))
}
