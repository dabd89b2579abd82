//! The shim: one small process a pod, with one thread. It lives in the pod's namespaces and so keeps them, is the
//! parent of the pod's containers, writes their logs and records how they ended. It outlives the server, which
//! finds it again through its socket.

pub mod client;
mod container;
mod exec;
pub mod executor;
mod launch;
pub mod log;
pub mod protocol;
mod sandbox;
mod serve;
mod stage;
mod users;
pub mod zygote;

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use protocol::{Incoming, Reply, Request, send};

/// Runs a pod's shim until the pod ends. `server` is the connection that its first request comes through.
fn run(server: &UnixStream) -> io::Result<()> {
    let mut incoming = Incoming::default();
    let request = loop {
        if let Some((request, _)) = incoming.next::<Request>()? {
            break request;
        }
        if incoming.fill(server.as_fd())? == 0 {
            return Ok(());
        }
    };
    let Request::Init(init) = request else {
        return send(server.as_fd(), &Reply::Error("a shim must be initialised first".into()), &[]);
    };
    match sandbox::enter(&init) {
        Ok(sandbox) => {
            let ready = Reply::Ready {
                pid: std::process::id().cast_signed(),
                pause: sandbox.pause.as_ref().map(|(pid, _)| pid.as_raw()),
            };
            let riders: Vec<_> = sandbox.users.iter().map(AsFd::as_fd).collect();
            send(server.as_fd(), &ready, &riders)?;
            serve::Shim::new(sandbox, server.try_clone()?)?.serve()
        }
        Err(error) => send(server.as_fd(), &Reply::Error(error.to_string()), &[]),
    }
}
