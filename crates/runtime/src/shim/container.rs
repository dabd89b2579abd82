//! A container as its shim sees it: where its output goes, and how it ended.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::wait::WaitStatus;

use super::log::{self, Lines, Log, Stream};
use super::protocol::{ContainerRecord, Exit, Start};

/// One output of a container.
#[derive(Debug)]
pub struct Output {
    pub source: Option<std::fs::File>,
    lines: Lines,
    pub taps: Vec<Tap>,
}

/// Somebody attached who gets a copy. While a copy waits, the output is not read further.
#[derive(Debug)]
pub struct Tap {
    pub sink: OwnedFd,
    pub waiting: Vec<u8>,
}

impl Tap {
    /// Writes what goes at once. `false` when nobody reads any more.
    pub fn flush(&mut self) -> bool {
        while !self.waiting.is_empty() {
            match nix::unistd::write(&self.sink, &self.waiting) {
                Ok(written) => drop(self.waiting.drain(..written)),
                Err(nix::errno::Errno::EAGAIN) => return true,
                Err(nix::errno::Errno::EINTR) => {}
                Err(_) => return false,
            }
        }
        true
    }
}

impl Output {
    fn new(stream: Stream, source: Option<OwnedFd>) -> io::Result<Self> {
        if let Some(source) = &source {
            nonblocking(source)?;
        }
        Ok(Self { source: source.map(std::fs::File::from), lines: Lines::new(stream), taps: Vec::new() })
    }

    pub fn is_stalled(&self) -> bool {
        self.taps.iter().any(|tap| !tap.waiting.is_empty())
    }

    /// Copies what has come to the log and to whoever is attached. `false` when there is no more to come now.
    fn pump(&mut self, log: &mut Option<Log>, buffer: &mut [u8]) -> bool {
        let Some(source) = &mut self.source else { return false };
        let read = match source.read(buffer) {
            Ok(0) => 0,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            // A terminal whose last user is gone answers with an error.
            Err(_) => 0,
        };
        if read == 0 {
            self.end(log);
            return false;
        }
        if let Some(log) = log {
            let mut formatted = Vec::with_capacity(read + 64);
            self.lines.push(&buffer[..read], log::now, &mut formatted);
            let _ = log.write(&formatted);
        }
        self.taps.retain_mut(|tap| {
            tap.waiting.extend_from_slice(&buffer[..read]);
            tap.flush()
        });
        true
    }

    fn end(&mut self, log: &mut Option<Log>) {
        if self.source.take().is_some()
            && let Some(log) = log
        {
            let mut formatted = Vec::new();
            self.lines.finish(log::now, &mut formatted);
            let _ = log.write(&formatted);
        }
    }
}

#[derive(Debug)]
pub struct Container {
    pub record: ContainerRecord,
    start: Start,
    log: Option<Log>,
    pub stdout: Output,
    pub stderr: Output,
    /// What writes to the container's input: a pipe's end, or the terminal.
    pub stdin: Option<OwnedFd>,
}

impl Container {
    pub fn new(
        start: Start,
        stdin: Option<OwnedFd>,
        stdout: Option<OwnedFd>,
        stderr: Option<OwnedFd>,
    ) -> io::Result<Self> {
        let log = match &start.log_path {
            Some(path) => {
                if let Some(directory) = path.parent() {
                    std::fs::create_dir_all(directory)?;
                }
                Some(Log::open(path)?)
            }
            None => None,
        };
        Ok(Self {
            record: ContainerRecord { id: start.id.clone(), pid: 0, exit: None },
            start,
            log,
            stdout: Output::new(Stream::Stdout, stdout)?,
            stderr: Output::new(Stream::Stderr, stderr)?,
            stdin,
        })
    }

    /// The terminal's master takes the place of the three pipes.
    pub fn use_terminal(&mut self, master: OwnedFd) -> io::Result<()> {
        nonblocking(&master)?;
        self.stdin = Some(master.try_clone()?);
        self.stdout.source = Some(master.into());
        Ok(())
    }

    pub fn is_tty(&self) -> bool {
        self.start.tty
    }

    pub fn is_running(&self) -> bool {
        self.record.pid != 0 && self.record.exit.is_none()
    }

    pub fn pump(&mut self, stream: Stream, buffer: &mut [u8]) {
        let output = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        output.pump(&mut self.log, buffer);
    }

    pub fn reopen_log(&mut self) -> io::Result<()> {
        self.log.as_mut().map_or(Ok(()), Log::reopen)
    }

    /// The first process has ended: the rest is killed, what they said is read to its end, and the end recorded.
    pub fn ended(&mut self, status: WaitStatus, buffer: &mut [u8]) {
        self.kill_rest(libc::SIGKILL);
        for output in [&mut self.stdout, &mut self.stderr] {
            while output.pump(&mut self.log, buffer) {}
            output.end(&mut self.log);
        }
        self.stdin = None;
        let exit = Exit {
            code: code(status),
            oom_killed: self.start.oom_files.iter().any(|file| oom_kills(file) > 0),
            at: jiff::Timestamp::now().as_nanosecond() as i64,
        };
        let _ = record(&self.start.exit_file, &exit);
        self.record.exit = Some(exit);
    }

    /// Sends a signal to the processes of the container beside its first one.
    pub fn kill_rest(&self, signal: i32) {
        let Some(cgroup) = &self.start.kill_cgroup else { return };
        let Ok(listed) = std::fs::read_to_string(cgroup.join("cgroup.procs")) else { return };
        for pid in listed.lines().filter_map(|line| line.parse::<i32>().ok()) {
            send_signal(pid, signal);
        }
    }
}

/// A signal for a process; whether it is still there does not matter.
pub fn send_signal(pid: i32, signal: i32) {
    if pid > 0
        && let Ok(signal) = nix::sys::signal::Signal::try_from(signal)
    {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
    }
}

/// As a shell says it.
pub fn code(status: WaitStatus) -> i32 {
    match status {
        WaitStatus::Exited(_, code) => code,
        WaitStatus::Signaled(_, signal, _) => 128 + signal as i32,
        _ => 255,
    }
}

pub fn nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// `memory.oom_control` of version 1 and `memory.events` of version 2 tell it in the same words.
fn oom_kills(file: &Path) -> u64 {
    let Ok(text) = std::fs::read_to_string(file) else { return 0 };
    text.lines()
        .filter_map(|line| line.strip_prefix("oom_kill "))
        .filter_map(|count| count.trim().parse::<u64>().ok())
        .sum()
}

/// Recorded whole or not at all.
fn record(file: &Path, exit: &Exit) -> io::Result<()> {
    let partial = file.with_extension("partial");
    std::fs::write(&partial, serde_json::to_vec(exit)?)?;
    std::fs::rename(partial, file)
}
