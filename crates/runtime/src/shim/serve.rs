//! The shim's loop: it waits for children, output, and requests, and for nothing else.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use super::container::{Container, Tap, code, nonblocking, send_signal};
use super::launch::{self, Stdio};
use super::log::Stream;
use super::protocol::{Exec, Incoming, Reply, Request, Start, encode, send_some};
use super::sandbox::{SOCKET, Sandbox};

/// A connection to the server.
#[derive(Debug)]
struct Client {
    socket: UnixStream,
    incoming: Incoming,
    outgoing: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    subscribed: bool,
}

/// A start whose outcome is still to come.
#[derive(Debug)]
struct Launch {
    /// The fork that does it.
    pid: i32,
    channel: UnixStream,
    incoming: Incoming,
    client: u64,
    /// The container that is being started; none for a further process in one.
    container: Option<String>,
}

#[derive(Debug)]
pub struct Shim {
    sandbox: Sandbox,
    clients: BTreeMap<u64, Client>,
    containers: BTreeMap<String, Container>,
    launches: BTreeMap<u64, Launch>,
    /// Who wants to hear of the end of a further process.
    execs: HashMap<i32, u64>,
    /// Ends of processes that a launch has not told us of yet.
    orphans: HashMap<i32, WaitStatus>,
    serial: u64,
    ending: bool,
}

/// What a polled descriptor stands for.
#[derive(Clone, Debug)]
enum Source {
    Signals,
    Listener,
    Client(u64),
    Launch(u64),
    Output(String, Stream),
    Tap(String, Stream),
}

impl Shim {
    pub fn new(sandbox: Sandbox, server: UnixStream) -> io::Result<Self> {
        let mut shim = Self {
            sandbox,
            clients: BTreeMap::new(),
            containers: BTreeMap::new(),
            launches: BTreeMap::new(),
            execs: HashMap::new(),
            orphans: HashMap::new(),
            serial: 0,
            ending: false,
        };
        shim.connected(server)?;
        Ok(shim)
    }

    /// Serves until the pod is shut down.
    pub fn serve(mut self) -> io::Result<()> {
        let mut buffer = vec![0; 32 * 1024];
        while !self.is_over() {
            for (source, flags) in self.wait()? {
                self.handle(source, flags, &mut buffer);
            }
        }
        let _ = std::fs::remove_file(self.sandbox.state_dir.join(SOCKET));
        if let Some((pid, life)) = self.sandbox.pause.take() {
            drop(life);
            // The first process of a process namespace ends after all others in it, and of those some are ours to reap.
            loop {
                match waitpid(None, None) {
                    Ok(status) if status.pid() == Some(pid) => break,
                    Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                    Err(_) => break,
                }
            }
        }
        for client in self.clients.values_mut() {
            let _ = client.socket.set_nonblocking(false);
            client.reply(&Reply::Ok, Vec::new());
        }
        // Closed by the process's own end, by which the server knows that there is nothing left.
        std::mem::forget(self.clients);
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.ending && self.launches.is_empty() && !self.containers.values().any(Container::is_running)
    }

    fn wait(&self) -> io::Result<Vec<(Source, PollFlags)>> {
        let mut sources = vec![Source::Signals, Source::Listener];
        let mut fds = vec![
            PollFd::new(self.sandbox.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.sandbox.listener.as_fd(), PollFlags::POLLIN),
        ];
        let mut add = |source, fd, flags| {
            sources.push(source);
            fds.push(PollFd::new(fd, flags));
        };
        for (id, client) in &self.clients {
            let mut flags = PollFlags::POLLIN;
            flags.set(PollFlags::POLLOUT, !client.outgoing.is_empty());
            add(Source::Client(*id), client.socket.as_fd(), flags);
        }
        for (serial, launch) in &self.launches {
            add(Source::Launch(*serial), launch.channel.as_fd(), PollFlags::POLLIN);
        }
        for (id, container) in &self.containers {
            for (stream, output) in [(Stream::Stdout, &container.stdout), (Stream::Stderr, &container.stderr)]
            {
                if let Some(source) = &output.source
                    && container.record.pid != 0
                    && !output.is_stalled()
                {
                    add(Source::Output(id.clone(), stream), source.as_fd(), PollFlags::POLLIN);
                }
                for tap in &output.taps {
                    // Even with nothing to say: a reader that is gone shows itself as an error.
                    let mut flags = PollFlags::empty();
                    flags.set(PollFlags::POLLOUT, !tap.waiting.is_empty());
                    add(Source::Tap(id.clone(), stream), tap.sink.as_fd(), flags);
                }
            }
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<PollFlags> = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty())).collect();
        Ok(sources.into_iter().zip(ready).filter(|(_, flags)| !flags.is_empty()).collect())
    }

    fn handle(&mut self, source: Source, flags: PollFlags, buffer: &mut [u8]) {
        match source {
            Source::Signals => {
                while let Ok(Some(_)) = self.sandbox.signals.read_signal() {}
                self.reap(buffer);
            }
            Source::Listener => {
                while let Ok((socket, _)) = self.sandbox.listener.accept() {
                    let _ = self.connected(socket);
                }
            }
            Source::Client(id) => self.client(id, flags),
            Source::Launch(serial) => self.launched(serial, false, buffer),
            Source::Output(id, stream) => {
                if let Some(container) = self.containers.get_mut(&id) {
                    container.pump(stream, buffer);
                }
            }
            Source::Tap(id, stream) => {
                let Some(container) = self.containers.get_mut(&id) else { return };
                let ended = container.record.exit.is_some();
                let output = match stream {
                    Stream::Stdout => &mut container.stdout,
                    Stream::Stderr => &mut container.stderr,
                };
                output.taps.retain_mut(|tap| !reader_gone(&tap.sink) && tap.flush());
                if ended {
                    output.taps.retain(|tap| !tap.waiting.is_empty());
                }
            }
        }
    }

    fn connected(&mut self, socket: UnixStream) -> io::Result<()> {
        socket.set_nonblocking(true)?;
        self.serial += 1;
        let client = Client {
            socket,
            incoming: Incoming::default(),
            outgoing: VecDeque::new(),
            subscribed: self.serial == 1,
        };
        self.clients.insert(self.serial, client);
        Ok(())
    }

    fn client(&mut self, id: u64, flags: PollFlags) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let mut open = client.flush();
        let mut requests = Vec::new();
        if flags.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
            match client.incoming.fill(client.socket.as_fd()) {
                Ok(0) => open = false,
                Ok(_) => {}
                Err(error) => open &= error.kind() == io::ErrorKind::WouldBlock,
            }
            loop {
                match client.incoming.next::<Request>() {
                    Ok(Some(request)) => requests.push(request),
                    Ok(None) => break,
                    Err(_) => {
                        open = false;
                        break;
                    }
                }
            }
        }
        for (request, fds) in requests {
            if let Err(error) = self.request(id, request, fds) {
                self.reply(id, &Reply::Error(error.to_string()), Vec::new());
            }
        }
        if !open {
            self.clients.remove(&id);
        }
    }

    fn request(&mut self, client: u64, request: Request, fds: Vec<OwnedFd>) -> io::Result<()> {
        match request {
            Request::Init(_) => return Err(io::Error::other("the sandbox stands already")),
            Request::Start(start) => return self.start(client, start),
            Request::Exec(exec) => return self.exec(client, &exec, fds),
            Request::Signal { id, signal, all } => {
                let container = self.container(&id)?;
                // Our child: until we have reaped it, its number is nobody else's.
                if container.is_running() {
                    if all {
                        container.kill_rest(signal);
                    }
                    send_signal(container.record.pid, signal);
                }
            }
            Request::SignalExec { pid, signal } => {
                if self.execs.contains_key(&pid) {
                    send_signal(pid, signal);
                }
            }
            Request::Attach { id } => return self.attach(client, &id, fds),
            Request::CloseStdin { id } => {
                let container = self.container(&id)?;
                if !container.is_tty() {
                    container.stdin = None;
                }
            }
            Request::ReopenLog { id } => self.container(&id)?.reopen_log()?,
            Request::Subscribe => {
                if let Some(client) = self.clients.get_mut(&client) {
                    client.subscribed = true;
                }
                let containers = Reply::Containers {
                    pid: std::process::id().cast_signed(),
                    pause: self.sandbox.pause.as_ref().map(|(pid, _)| pid.as_raw()),
                    containers: self.containers.values().map(|c| c.record.clone()).collect(),
                };
                let users = self.sandbox.users.as_ref().map(OwnedFd::try_clone).transpose()?;
                self.reply(client, &containers, users.into_iter().collect());
                return Ok(());
            }
            Request::Forget { id } => {
                if self.containers.get(&id).is_some_and(Container::is_running) {
                    return Err(io::Error::other("the container is running"));
                }
                self.containers.remove(&id);
            }
            Request::Shutdown => {
                self.end_all();
                // Answered once all is over.
                return Ok(());
            }
        }
        self.reply(client, &Reply::Ok, Vec::new());
        Ok(())
    }

    /// Kills all containers; their ends are the pod's.
    fn end_all(&mut self) {
        self.ending = true;
        for container in self.containers.values().filter(|c| c.is_running()) {
            container.kill_rest(libc::SIGKILL);
            send_signal(container.record.pid, libc::SIGKILL);
        }
    }

    fn start(&mut self, client: u64, start: Start) -> io::Result<()> {
        if self.ending {
            return Err(io::Error::other("the pod is ending"));
        }
        if self.containers.contains_key(&start.id) {
            return Err(io::Error::other("the container was started before"));
        }
        let id = start.id.clone();
        let mut stdio = Stdio::default();
        let (mut stdin, mut stdout, mut stderr) = (None, None, None);
        if !start.tty {
            if start.stdin {
                let (read, write) = launch::pipe()?;
                (stdio.stdin, stdin) = (Some(read), Some(write));
            }
            let (read, write) = launch::pipe()?;
            (stdout, stdio.stdout) = (Some(read), Some(write));
            let (read, write) = launch::pipe()?;
            (stderr, stdio.stderr) = (Some(read), Some(write));
        }
        for stream in [&stdio.stdin, &stdio.stdout, &stdio.stderr].into_iter().flatten() {
            start.user.map_or(Ok(()), |user| launch::own(stream, user))?;
        }
        let container = Container::new(start.clone(), stdin, stdout, stderr)?;
        let (pid, channel) = launch::start(&start, self.sandbox.users.as_ref().map(AsFd::as_fd), stdio)?;
        channel.set_nonblocking(true)?;
        self.containers.insert(id.clone(), container);
        self.serial += 1;
        let launch =
            Launch { pid: pid.as_raw(), channel, incoming: Incoming::default(), client, container: Some(id) };
        self.launches.insert(self.serial, launch);
        Ok(())
    }

    fn exec(&mut self, client: u64, exec: &Exec, fds: Vec<OwnedFd>) -> io::Result<()> {
        let container = self.container(&exec.container)?;
        if !container.is_running() {
            return Err(io::Error::other("the container is not running"));
        }
        let first = container.record.pid;
        let mut fds = fds.into_iter();
        let stdio = Stdio { stdin: fds.next(), stdout: fds.next(), stderr: fds.next() };
        let (pid, channel) = super::exec::exec(exec, first, stdio)?;
        self.serial += 1;
        channel.set_nonblocking(true)?;
        let launch =
            Launch { pid: pid.as_raw(), channel, incoming: Incoming::default(), client, container: None };
        self.launches.insert(self.serial, launch);
        Ok(())
    }

    fn attach(&mut self, client: u64, id: &str, fds: Vec<OwnedFd>) -> io::Result<()> {
        let container = self.container(id)?;
        if !container.is_running() {
            return Err(io::Error::other("the container is not running"));
        }
        let mut fds = fds.into_iter();
        for output in [&mut container.stdout, &mut container.stderr] {
            if let Some(sink) = fds.next() {
                nonblocking(&sink)?;
                output.taps.push(Tap { sink, waiting: Vec::new() });
            }
        }
        let riders = match &container.stdin {
            Some(stdin) => vec![stdin.try_clone()?],
            None => Vec::new(),
        };
        let reply = Reply::Attached { stdin: !riders.is_empty(), tty: container.is_tty() };
        self.reply(client, &reply, riders);
        Ok(())
    }

    fn container(&mut self, id: &str) -> io::Result<&mut Container> {
        self.containers.get_mut(id).ok_or_else(|| io::Error::other(format!("no container {id} here")))
    }

    /// A fork that was to start something has something to say, or is `gone`.
    fn launched(&mut self, serial: u64, gone: bool, buffer: &mut [u8]) {
        let Some(launch) = self.launches.get_mut(&serial) else { return };
        let ended = match launch.incoming.fill(launch.channel.as_fd()) {
            Ok(read) => read == 0,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && !gone => return,
            Err(_) => true,
        };
        let (reply, fds) = match launch.incoming.next::<Reply>() {
            Ok(Some(whole)) => whole,
            Ok(None) if !ended && !gone => return,
            _ => (Reply::Error("the process that was to start it ended early".into()), Vec::new()),
        };
        let Some(launch) = self.launches.remove(&serial) else { return };
        if let Some(id) = launch.container {
            self.started(&id, launch.client, reply, fds, buffer);
            return;
        }
        let pid = if let Reply::ExecStarted { pid } = reply { Some(pid) } else { None };
        self.reply(launch.client, &reply, fds);
        if let Some(pid) = pid {
            self.execs.insert(pid, launch.client);
            self.early_end(pid, buffer);
        }
    }

    fn started(&mut self, id: &str, client: u64, reply: Reply, fds: Vec<OwnedFd>, buffer: &mut [u8]) {
        let Reply::Started { pid } = reply else {
            self.containers.remove(id);
            return self.reply(client, &reply, Vec::new());
        };
        let Some(container) = self.containers.get_mut(id) else {
            // Forgotten meanwhile. Whoever asked for it waits all the same.
            send_signal(pid, libc::SIGKILL);
            return self.reply(client, &Reply::Error("the container is gone".into()), Vec::new());
        };
        container.record.pid = pid;
        if let Some(master) = fds.into_iter().next() {
            let _ = container.use_terminal(master);
        }
        if self.ending {
            send_signal(pid, libc::SIGKILL);
        }
        self.reply(client, &reply, Vec::new());
        self.early_end(pid, buffer);
    }

    /// What was started may have ended before we were told that it started.
    fn early_end(&mut self, pid: i32, buffer: &mut [u8]) {
        if let Some(status) = self.orphans.remove(&pid) {
            self.ended(pid, status, buffer);
        }
    }

    fn reap(&mut self, buffer: &mut [u8]) {
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            let (WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..)) = status else { break };
            self.ended(pid.as_raw(), status, buffer);
        }
        if self.launches.is_empty() {
            self.orphans = HashMap::new();
        }
    }

    fn ended(&mut self, pid: i32, status: WaitStatus, buffer: &mut [u8]) {
        if self.sandbox.pause.as_ref().is_some_and(|(pause, _)| pause.as_raw() == pid) {
            // No process namespace outlives its first process, so this pod cannot have another container: it is over.
            self.sandbox.pause = None;
            return self.end_all();
        }
        // Its channel may be held open by what it has begun.
        if let Some(serial) = self.launches.iter().find(|(_, l)| l.pid == pid).map(|(serial, _)| *serial) {
            return self.launched(serial, true, buffer);
        }
        if let Some(client) = self.execs.remove(&pid) {
            return self.reply(client, &Reply::ExecExited { code: code(status) }, Vec::new());
        }
        let Some(container) = self.containers.values_mut().find(|c| c.record.pid == pid && c.is_running())
        else {
            self.orphans.insert(pid, status);
            return;
        };
        container.ended(status, buffer);
        for output in [&mut container.stdout, &mut container.stderr] {
            output.taps.retain(|tap| !tap.waiting.is_empty());
        }
        if let Some(exit) = container.record.exit.clone() {
            let event = Reply::Exited { id: container.record.id.clone(), exit };
            for client in self.clients.values_mut().filter(|client| client.subscribed) {
                client.reply(&event, Vec::new());
            }
        }
    }

    fn reply(&mut self, client: u64, reply: &Reply, fds: Vec<OwnedFd>) {
        if let Some(client) = self.clients.get_mut(&client) {
            client.reply(reply, fds);
        }
    }
}

impl Client {
    fn reply(&mut self, reply: &Reply, fds: Vec<OwnedFd>) {
        if let Ok(frame) = encode(reply) {
            self.outgoing.push_back((frame, fds));
            self.flush();
        }
    }

    /// Sends what goes at once. `false` when the other side is gone.
    fn flush(&mut self) -> bool {
        while let Some((frame, fds)) = self.outgoing.front_mut() {
            let riders: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            match send_some(self.socket.as_fd(), frame, &riders) {
                Ok(sent) if sent == frame.len() => drop(self.outgoing.pop_front()),
                Ok(sent) => {
                    drop(frame.drain(..sent));
                    fds.clear();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }
}

fn reader_gone(sink: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(sink.as_fd(), PollFlags::empty())];
    let _ = poll(&mut fds, PollTimeout::ZERO);
    fds[0].revents().is_some_and(|flags| flags.intersects(PollFlags::POLLERR | PollFlags::POLLHUP))
}
