//! A D-Bus of a test's own, and on it one that answers as systemd-logind does, as far as shutdowns go.

use std::io::{BufRead as _, BufReader};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use zbus::object_server::SignalEmitter;

use crate::Child;

/// Everybody may be anything on it and talk to everybody.
const CONFIGURATION: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path=SOCKET</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*" eavesdrop="true"/>
<allow eavesdrop="true"/></policy>
</busconfig>
"#;

/// A D-Bus, gone with this value.
#[derive(Debug)]
pub struct Bus {
    socket: PathBuf,
    _daemon: Child,
}

impl Bus {
    /// Starts a bus that listens in `directory`; says aloud why there is none, when there cannot be one.
    pub fn start(directory: &Path) -> Option<Self> {
        let (socket, file) = (directory.join("bus.sock"), directory.join("bus.conf"));
        let _ = std::fs::remove_file(&socket);
        std::fs::write(&file, CONFIGURATION.replace("SOCKET", &socket.to_string_lossy())).expect("written");
        let mut command = Command::new("dbus-daemon");
        command.args(["--nofork", "--nopidfile", "--print-address", "--config-file"]).arg(&file);
        let mut daemon = match Child::spawn(command.stdin(Stdio::null()).stdout(Stdio::piped())) {
            Ok(daemon) => daemon,
            Err(error) => {
                eprintln!("SKIPPED: dbus-daemon cannot be started: {error}");
                return None;
            }
        };
        // It listens when it says where.
        let mut line = String::new();
        BufReader::new(daemon.stdout.take().expect("piped")).read_line(&mut line).expect("it says where");
        assert!(line.starts_with("unix:path="), "dbus-daemon said {line:?}");
        Some(Bus { socket, _daemon: daemon })
    }

    /// The address, as `DBUS_SYSTEM_BUS_ADDRESS` names one.
    pub fn address(&self) -> String {
        format!("unix:path={}", self.socket.display())
    }
}

/// A lock that somebody holds.
#[derive(Debug)]
struct Lock {
    /// What, who, why and mode.
    of: [String; 4],
    /// Nobody is at the other end any more once it is let go.
    end: OwnedFd,
}

impl Lock {
    fn is_held(&self) -> bool {
        let mut asked = [PollFd::new(self.end.as_fd(), PollFlags::POLLIN)];
        poll(&mut asked, PollTimeout::ZERO).is_ok_and(|hung_up| hung_up == 0)
    }
}

#[derive(Debug, Default)]
struct State {
    delay: Duration,
    locks: Vec<Lock>,
}

/// One that answers as systemd-logind does, for as long as this value is there.
#[derive(Debug)]
pub struct Logind {
    state: Arc<Mutex<State>>,
    tell: Option<UnboundedSender<bool>>,
    thread: Option<JoinHandle<()>>,
}

impl Logind {
    /// Answers on `bus`: shutdowns may be held up for `delay`, or for what a file in `drop_ins` says once it is told to look.
    pub fn start(bus: &Bus, delay: Duration, drop_ins: &Path) -> Self {
        let state = Arc::new(Mutex::new(State { delay, locks: Vec::new() }));
        let (tell, told) = unbounded_channel();
        let (ready, is_ready) = mpsc::channel();
        let (address, drop_ins, known) = (bus.address(), drop_ins.to_owned(), Arc::clone(&state));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let served = runtime.expect("a runtime").block_on(serve(&address, known, drop_ins, ready, told));
            served.expect("logind is on the bus");
        });
        is_ready.recv().expect("logind is on the bus");
        Logind { state, tell: Some(tell), thread: Some(thread) }
    }

    /// Tells that a shutdown begins, or is called off.
    pub fn prepare_for_shutdown(&self, begins: bool) {
        let tell = self.tell.as_ref().expect("there until it is dropped");
        tell.send(begins).expect("it runs");
    }

    /// What, who, why and mode of the locks that are held.
    pub fn locks(&self) -> Vec<[String; 4]> {
        let state = known(&self.state);
        state.locks.iter().filter(|lock| lock.is_held()).map(|lock| lock.of.clone()).collect()
    }
}

impl Drop for Logind {
    fn drop(&mut self) {
        drop(self.tell.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn known(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(
    address: &str,
    state: Arc<Mutex<State>>,
    drop_ins: PathBuf,
    ready: mpsc::Sender<()>,
    mut told: UnboundedReceiver<bool>,
) -> zbus::Result<()> {
    const AT: &str = "/org/freedesktop/login1";
    let bus = zbus::connection::Builder::address(address)?
        .name("org.freedesktop.login1")?
        .name("org.freedesktop.systemd1")?
        .serve_at(AT, Manager(Arc::clone(&state)))?
        .serve_at("/org/freedesktop/systemd1", Services { state, drop_ins })?
        .build()
        .await?;
    let _ = ready.send(());
    while let Some(begins) = told.recv().await {
        // Nobody hears it when the bus is gone.
        let _ = Manager::prepare_for_shutdown(&SignalEmitter::new(&bus, AT)?, begins).await;
    }
    Ok(())
}

struct Manager(Arc<Mutex<State>>);

#[zbus::interface(name = "org.freedesktop.login1.Manager")]
impl Manager {
    fn inhibit(
        &self,
        what: String,
        who: String,
        why: String,
        mode: String,
    ) -> zbus::fdo::Result<zbus::zvariant::OwnedFd> {
        let (end, theirs) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
            .map_err(|error| zbus::fdo::Error::Failed(error.to_string()))?;
        known(&self.0).locks.push(Lock { of: [what, who, why, mode], end });
        Ok(theirs.into())
    }

    #[zbus(property, name = "InhibitDelayMaxUSec")]
    fn inhibit_delay_max(&self) -> u64 {
        known(&self.0).delay.as_micros() as u64
    }

    #[zbus(signal)]
    async fn prepare_for_shutdown(emitter: &SignalEmitter<'_>, start: bool) -> zbus::Result<()>;
}

/// What systemd itself is asked.
struct Services {
    state: Arc<Mutex<State>>,
    drop_ins: PathBuf,
}

#[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
impl Services {
    fn kill_unit(&self, name: String, whom: String, signal: i32) {
        assert_eq!((name.as_str(), whom.as_str(), signal), ("systemd-logind.service", "all", 1));
        for file in std::fs::read_dir(&self.drop_ins).into_iter().flatten().flatten() {
            let text = std::fs::read_to_string(file.path()).unwrap_or_default();
            let seconds =
                text.lines().find_map(|line| line.strip_prefix("InhibitDelayMaxSec=")?.parse().ok());
            if let Some(seconds) = seconds {
                known(&self.state).delay = Duration::from_secs(seconds);
            }
        }
    }
}
