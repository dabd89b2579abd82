//! Where shims come from: one small process of the server's, which has done once what every start of this
//! executable has to do, and from then on forks. A shim so begins in a fraction of a millisecond, and shares with
//! its siblings all memory that it does not change. It ends with the server; the shims do not.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::{ForkResult, fork};

use super::launch;
use super::protocol::{Incoming, Spawn};

/// Forks shims until the server is gone.
pub fn run() -> io::Result<()> {
    let server = launch::first_connection()?;
    let _ = nix::sys::prctl::set_name(c"krate-zygote");
    // Nobody asks how a shim ended: the server hears of that through its socket.
    on_child(SigHandler::SigIgn)?;
    let mut incoming = Incoming::default();
    loop {
        while let Some((Spawn { .. }, fds)) = incoming.next::<Spawn>()? {
            if let Ok([connection, log]) = <[OwnedFd; 2]>::try_from(fds)
                && is_child()
            {
                // The server must see the end of the zygote, whoever of its children is left.
                drop((server, incoming));
                return shim(UnixStream::from(connection), &log);
            }
        }
        if incoming.fill(server.as_fd())? == 0 {
            return Ok(());
        }
    }
}

fn shim(connection: UnixStream, log: &OwnedFd) -> io::Result<()> {
    nix::unistd::dup2_stdout(log)?;
    nix::unistd::dup2_stderr(log)?;
    on_child(SigHandler::SigDfl)?;
    super::run(&connection)
}

/// Forks; whether this is the child. A fork that fails shows itself to the server by the end of the connection.
#[allow(unsafe_code)]
fn is_child() -> bool {
    // SAFETY: this process has one thread, so the child finds every lock free.
    matches!(unsafe { fork() }, Ok(ForkResult::Child))
}

#[allow(unsafe_code)]
fn on_child(handler: SigHandler) -> io::Result<()> {
    // SAFETY: neither handler runs code of ours.
    unsafe { sigaction(Signal::SIGCHLD, &SigAction::new(handler, SaFlags::empty(), SigSet::empty())) }?;
    Ok(())
}
