//! Running a command, or joining a container, for somebody at the far end of a stream; whichever protocol the
//! stream speaks.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use k8s_cri::v1::{AttachRequest, ExecRequest};
use serde_json::{Value, json};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::server::exec;
use crate::server::node::Node;
use crate::shim::client::{self, Connection};
use crate::shim::protocol::Request;

/// Pieces that wait between a process and the stream.
pub const DEPTH: usize = 16;

/// The far end.
#[derive(Debug, Default)]
pub struct Remote {
    pub stdin: Option<mpsc::Receiver<Bytes>>,
    pub stdout: Option<mpsc::Sender<Bytes>>,
    pub stderr: Option<mpsc::Sender<Bytes>>,
    pub resize: Option<mpsc::Receiver<Size>>,
}

/// A terminal's, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Size {
    pub width: u16,
    pub height: u16,
}

/// How it went.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Success,
    /// The command's exit code, not zero.
    Code(i32),
    Failed(String),
}

impl Outcome {
    /// As a `metav1.Status`, the way kubectl reads it.
    pub fn status(&self) -> Value {
        match self {
            Self::Success => json!({ "metadata": {}, "status": "Success" }),
            Self::Code(code) => json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("command terminated with non-zero exit code: exit status {code}"),
                "reason": "NonZeroExitCode",
                "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
            }),
            Self::Failed(why) => json!({
                "metadata": {},
                "status": "Failure",
                "message": why,
                "reason": "InternalError",
                "details": { "causes": [{ "message": why }] },
                "code": 500,
            }),
        }
    }

    /// What the first versions of the protocol say instead.
    pub fn text(&self) -> Option<String> {
        match self {
            Self::Success => None,
            Self::Code(code) => {
                Some(format!("command terminated with non-zero exit code: exit status {code}"))
            }
            Self::Failed(why) => Some(why.clone()),
        }
    }
}

pub async fn exec(node: &Arc<Node>, ask: &ExecRequest, remote: Remote) -> Outcome {
    match try_exec(node, ask, remote).await {
        Ok(0) => Outcome::Success,
        Ok(code) => Outcome::Code(code),
        Err(why) => Outcome::Failed(format!("error executing command in container: {why}")),
    }
}

async fn try_exec(node: &Arc<Node>, ask: &ExecRequest, remote: Remote) -> Result<i32, String> {
    let container = node.running(&ask.container_id).map_err(|e| e.message().to_owned())?;
    let told = |error: io::Error| error.to_string();
    let mut copies = JoinSet::new();
    let ended = CancellationToken::new();
    let mut stdio = Vec::new();
    let mut input = None;
    if !ask.tty {
        let null = std::fs::File::options().read(true).write(true).open("/dev/null").map_err(told)?;
        let null = OwnedFd::from(null);
        if let Some(stdin) = remote.stdin {
            let (ours, theirs) = pipe().map_err(told)?.swap();
            stdio.push(theirs);
            input = Some((stdin, ours));
        } else {
            stdio.push(null.try_clone().map_err(told)?);
        }
        for sink in [remote.stdout, remote.stderr] {
            let Some(sink) = sink else {
                stdio.push(null.try_clone().map_err(told)?);
                continue;
            };
            let Ends { read, write } = pipe().map_err(told)?;
            stdio.push(write);
            copies.spawn(copy_out(source(read).map_err(told)?, sink, ended.clone()));
        }
        let (mut running, _) = exec::start(node, &container, &ask.cmd, false, &stdio)
            .await
            .map_err(|e| e.message().to_owned())?;
        drop(stdio);
        let _input = input.map(|(from, to)| Aborting(tokio::spawn(copy_in(from, to))));
        let code = running.wait().await.map_err(told)?;
        ended.cancel();
        while copies.join_next().await.is_some() {}
        return Ok(code);
    }
    let (mut running, master) =
        exec::start(node, &container, &ask.cmd, true, &[]).await.map_err(|e| e.message().to_owned())?;
    let master = master.ok_or("no terminal came")?;
    let _resize = remote.resize.map(|sizes| {
        let master = master.try_clone();
        Aborting(tokio::spawn(async move {
            if let Ok(master) = master {
                follow(sizes, &master).await;
            }
        }))
    });
    let _input = match remote.stdin {
        Some(stdin) => {
            let to = master.try_clone().map_err(told)?;
            Some(Aborting(tokio::spawn(copy_in(stdin, to))))
        }
        None => None,
    };
    if let Some(sink) = remote.stdout {
        copies.spawn(copy_out(source(master).map_err(told)?, sink, ended.clone()));
    }
    let code = running.wait().await.map_err(told)?;
    ended.cancel();
    while copies.join_next().await.is_some() {}
    Ok(code)
}

pub async fn attach(node: &Arc<Node>, ask: &AttachRequest, remote: Remote) -> Outcome {
    match try_attach(node, ask, remote).await {
        Ok(()) => Outcome::Success,
        Err(why) => Outcome::Failed(format!("error attaching to container: {why}")),
    }
}

async fn try_attach(node: &Arc<Node>, ask: &AttachRequest, remote: Remote) -> Result<(), String> {
    let container = node.running(&ask.container_id).map_err(|e| e.message().to_owned())?;
    let (id, sandbox, stdin_once) = {
        let record = container.record.read();
        (record.id.clone(), record.sandbox.clone(), record.config.stdin_once)
    };
    let told = |error: io::Error| error.to_string();
    let shim = node.shim(&sandbox);
    let (stdout, stderr) = (pipe().map_err(told)?, pipe().map_err(told)?);
    let mut connection = Connection::open(&shim).await.map_err(told)?;
    let sinks = [stdout.write, stderr.write];
    let (_, fds) = connection.ask(&Request::Attach { id: id.clone() }, &sinks).await.map_err(told)?;
    drop(sinks);
    let input = fds.into_iter().next();
    let mut copies = JoinSet::new();
    let never = CancellationToken::new();
    for (from, sink) in [(stdout.read, remote.stdout), (stderr.read, remote.stderr)] {
        if let Some(sink) = sink {
            copies.spawn(copy_out(source(from).map_err(told)?, sink, never.clone()));
        }
    }
    let _resize = match (&input, remote.resize) {
        (Some(terminal), Some(sizes)) => {
            let terminal = terminal.try_clone().map_err(told)?;
            Some(Aborting(tokio::spawn(async move { follow(sizes, &terminal).await })))
        }
        _ => None,
    };
    let _input = match (input, remote.stdin) {
        (Some(to), Some(stdin)) => Some(Aborting(tokio::spawn(async move {
            copy_in(stdin, to).await;
            if stdin_once {
                let _ = client::ask(&shim, &Request::CloseStdin { id }).await;
            }
        }))),
        _ => None,
    };
    let mut exit = container.exit.subscribe();
    if copies.is_empty() {
        // Only to write: until the container ends.
        let _ = exit.wait_for(Option::is_some).await;
    }
    while copies.join_next().await.is_some() {}
    Ok(())
}

/// A task that is of no use any more once its owner has gone.
struct Aborting(tokio::task::JoinHandle<()>);

impl Drop for Aborting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Ends {
    read: OwnedFd,
    write: OwnedFd,
}

impl Ends {
    /// Ours to write, theirs to read.
    fn swap(self) -> (OwnedFd, OwnedFd) {
        (self.write, self.read)
    }
}

fn pipe() -> io::Result<Ends> {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    Ok(Ends { read, write })
}

fn source(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    watched(fd, Interest::READABLE)
}

#[allow(unsafe_code)]
fn watched(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    nonblocking(&fd)?;
    // SAFETY: an `OwnedFd` is the same descriptor for as long as it lives, and closes it at its end only.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

fn nonblocking(fd: &OwnedFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Copies until the end; or, once the process has ended, for as long as there is something at once: its own
/// children may hold the other end open for ever.
async fn copy_out(from: AsyncFd<OwnedFd>, sink: mpsc::Sender<Bytes>, ended: CancellationToken) {
    let mut buffer = BytesMut::zeroed(16 << 10);
    loop {
        let read = tokio::select! {
            biased;
            guard = from.readable() => {
                let Ok(mut guard) = guard else { return };
                match guard.try_io(|fd| Ok(nix::unistd::read(fd.as_fd(), &mut buffer)?)) {
                    Ok(read) => read,
                    Err(_would_block) => continue,
                }
            }
            () = ended.cancelled() => Ok(nix::unistd::read(from.as_fd(), &mut buffer).unwrap_or(0)),
        };
        match read {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A terminal without users answers with an error.
            Ok(0) | Err(_) => return,
            Ok(read) => {
                if sink.send(Bytes::copy_from_slice(&buffer[..read])).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn copy_in(mut from: mpsc::Receiver<Bytes>, to: OwnedFd) {
    let Ok(to) = watched(to, Interest::WRITABLE) else { return };
    while let Some(mut data) = from.recv().await {
        while !data.is_empty() {
            let Ok(mut guard) = to.writable().await else { return };
            match guard.try_io(|fd| Ok(nix::unistd::write(fd, &data)?)) {
                Ok(Ok(written)) => drop(data.split_to(written)),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(_)) => return,
                Err(_would_block) => {}
            }
        }
    }
}

async fn follow(mut sizes: mpsc::Receiver<Size>, terminal: &OwnedFd) {
    while let Some(size) = sizes.recv().await {
        resize(terminal, size);
    }
}

#[allow(unsafe_code)]
fn resize(terminal: &OwnedFd, size: Size) {
    let size = libc::winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the call reads one `winsize` and nothing else.
    unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_code_is_told_as_kubectl_reads_it() {
        let status = Outcome::Code(3).status();
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(status["details"]["causes"][0], json!({ "reason": "ExitCode", "message": "3" }));
        assert_eq!(Outcome::Success.status()["status"], "Success");
    }

    #[test]
    fn a_size_is_read() {
        let size: Size = serde_json::from_str(r#"{"Width":80,"Height":24}"#).unwrap();
        assert_eq!(size, Size { width: 80, height: 24 });
    }
}
