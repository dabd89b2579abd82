//! The server's side of the talk with shims.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde::Serialize;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::Mutex;

use super::protocol::{Incoming, Init, Reply, Request, Spawn, encode, send_some};
use super::sandbox::SOCKET;
use crate::mount;

/// The internal command that the zygote, and so every shim, is started by.
pub const COMMAND: &str = "__shim";

/// What this process runs, wherever that lies by now.
const THIS: &str = "/proc/self/exe";

/// One connection to a shim.
#[derive(Debug)]
pub struct Connection {
    socket: UnixStream,
    incoming: Incoming,
}

impl Connection {
    fn new(socket: std::os::unix::net::UnixStream) -> io::Result<Self> {
        Ok(Self { socket: UnixStream::from_std(socket)?, incoming: Incoming::default() })
    }

    /// Connects to the shim whose state lies in `state_dir`.
    pub async fn open(state_dir: &Path) -> io::Result<Self> {
        // Through a descriptor, since a socket's address holds no long path.
        let directory = std::fs::File::open(state_dir)?;
        let path = format!("/proc/self/fd/{}/{SOCKET}", std::os::fd::AsRawFd::as_raw_fd(&directory));
        let socket = UnixStream::connect(path).await?;
        Ok(Self { socket, incoming: Incoming::default() })
    }

    async fn send<T: Serialize>(&self, request: &T, fds: &[OwnedFd]) -> io::Result<()> {
        let frame = encode(request)?;
        let riders: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let mut sent = 0;
        while sent < frame.len() {
            self.socket.writable().await?;
            let with = if sent == 0 { riders.as_slice() } else { &[] };
            let write = || send_some(self.socket.as_fd(), &frame[sent..], with);
            match self.socket.try_io(Interest::WRITABLE, write) {
                Ok(n) => sent += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The next reply; none when the shim is gone.
    pub async fn receive(&mut self) -> io::Result<Option<(Reply, Vec<OwnedFd>)>> {
        loop {
            if let Some(whole) = self.incoming.next()? {
                return Ok(Some(whole));
            }
            self.socket.readable().await?;
            let socket = &self.socket;
            let incoming = &mut self.incoming;
            match socket.try_io(Interest::READABLE, || incoming.fill(socket.as_fd())) {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends a request and waits for its answer. What the shim refuses becomes an error.
    pub async fn ask(&mut self, request: &Request, fds: &[OwnedFd]) -> io::Result<(Reply, Vec<OwnedFd>)> {
        self.send(request, fds).await?;
        match self.receive().await? {
            Some((Reply::Error(why), _)) => Err(io::Error::other(why)),
            Some(answer) => Ok(answer),
            None => Err(io::Error::new(io::ErrorKind::ConnectionReset, "the pod's shim is gone")),
        }
    }
}

/// A shim that was just started. Its connection is subscribed.
#[derive(Debug)]
pub struct Spawned {
    pub pid: i32,
    pub pause: Option<i32>,
    /// The namespace of the pod's users, when they are not the host's.
    pub users: Option<OwnedFd>,
    pub connection: Connection,
}

/// The process that shims are forked from; started when first needed, and again should it die.
#[derive(Debug)]
pub struct Zygote {
    connection: Mutex<Option<Connection>>,
    /// Named in its arguments, so that a list of processes tells whose shims are whose.
    state: PathBuf,
}

impl Zygote {
    pub fn new(state: PathBuf) -> Self {
        Self { connection: Mutex::default(), state }
    }

    /// Starts a shim and waits until its sandbox stands.
    pub async fn spawn(&self, init: &Init, log: &Path) -> io::Result<Spawned> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let log = std::fs::File::options().append(true).create(true).open(log)?;
        self.fork(&init.sandbox_id, &[theirs.into(), log.into()]).await?;
        let mut connection = Connection::new(ours)?;
        match connection.ask(&Request::Init(init.clone()), &[]).await? {
            (Reply::Ready { pid, pause }, fds) => {
                Ok(Spawned { pid, pause, users: fds.into_iter().next(), connection })
            }
            (other, _) => Err(io::Error::other(format!("unexpected answer of the shim: {other:?}"))),
        }
    }

    async fn fork(&self, sandbox: &str, fds: &[OwnedFd; 2]) -> io::Result<()> {
        let spawn = Spawn { sandbox_id: sandbox.to_owned() };
        let mut zygote = self.connection.lock().await;
        if let Some(running) = zygote.as_ref()
            && running.send(&spawn, fds).await.is_ok()
        {
            return Ok(());
        }
        let fresh = start(&self.state)?;
        fresh.send(&spawn, fds).await?;
        *zygote = Some(fresh);
        Ok(())
    }

    /// Has it ready before the first pod comes.
    pub async fn warm_up(&self) -> io::Result<()> {
        self.connection.lock().await.get_or_insert(start(&self.state)?);
        Ok(())
    }
}

/// This executable through a mount that is read only. A container whose program is told to be `/proc/self/exe` runs it, and
/// whoever finds it there must not be able to write the host's.
fn unwritable() -> io::Result<OwnedFd> {
    let this = std::fs::metadata(THIS)?;
    let executable = mount::copy(&std::env::current_exe()?, false)?;
    let copied = std::fs::File::from(executable.try_clone()?).metadata()?;
    if (copied.dev(), copied.ino()) != (this.dev(), this.ino()) {
        return Err(io::Error::other("another executable has taken its place"));
    }
    mount::change(&executable, libc::MOUNT_ATTR_RDONLY, None)?;
    Ok(executable)
}

fn start(state: &Path) -> io::Result<Connection> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let executable = unwritable().inspect_err(|error| {
        tracing::warn!(%error, "containers that run as root could change the executable of this process");
    });
    let program = executable.as_ref().map(|executable| format!("/proc/self/fd/{}", executable.as_raw_fd()));
    let mut child = tokio::process::Command::new(program.unwrap_or_else(|_| THIS.to_owned()))
        .arg0("krate")
        .arg(COMMAND)
        .arg(state)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    // Whenever it ends, somebody must fetch it.
    tokio::spawn(async move { child.wait().await });
    Connection::new(ours)
}

/// One request on a connection of its own.
pub async fn ask(state_dir: &Path, request: &Request) -> io::Result<Reply> {
    Ok(Connection::open(state_dir).await?.ask(request, &[]).await?.0)
}

/// Ends a pod, and waits until its shim is gone.
pub async fn shutdown(state_dir: &Path) -> io::Result<()> {
    let mut connection = Connection::open(state_dir).await?;
    connection.ask(&Request::Shutdown, &[]).await?;
    while connection.receive().await?.is_some() {}
    Ok(())
}
