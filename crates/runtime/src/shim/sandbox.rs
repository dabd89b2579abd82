//! Making a pod's namespaces: the shim enters new ones itself, and they last as long as it does.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use super::protocol::Init;
use super::{launch, users};

/// The socket's name in the sandbox's state directory.
pub const SOCKET: &str = "shim.sock";

/// What the shim holds for as long as it lives.
#[derive(Debug)]
pub struct Sandbox {
    pub listener: UnixListener,
    pub signals: SignalFd,
    /// The namespace of the pod's users, when they are not the host's. The shim itself stays with the host's.
    pub users: Option<OwnedFd>,
    pub pause: Option<(Pid, UnixStream)>,
    pub state_dir: PathBuf,
}

/// Leaves the server's session and enters the pod's namespaces.
pub fn enter(init: &Init) -> io::Result<Sandbox> {
    let _ = nix::unistd::setsid();
    nix::sys::prctl::set_child_subreaper(true)?;
    let _ = nix::sys::prctl::set_name(c"krate-shim");
    let mut awaited = SigSet::empty();
    awaited.add(Signal::SIGCHLD);
    awaited.thread_block()?;
    let signals = SignalFd::with_flags(&awaited, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;

    let mut flags = CloneFlags::empty();
    flags.set(CloneFlags::CLONE_NEWNET, init.new_network);
    flags.set(CloneFlags::CLONE_NEWIPC, init.new_ipc);
    flags.set(CloneFlags::CLONE_NEWUTS, init.new_uts);
    let users = init.users.as_ref().map(|ids| users::make(ids, flags)).transpose();
    let users = users.map_err(|e| told("making the namespaces", e))?;
    if users.is_none() {
        unshare(flags).map_err(|e| told("making the namespaces", e))?;
    }
    if init.new_network {
        loopback_up().map_err(|e| told("bringing loopback up", e))?;
    }
    if init.new_uts && !init.hostname.is_empty() {
        nix::unistd::sethostname(&init.hostname).map_err(|e| told("setting the host name", e))?;
    }
    match &users {
        // Some are for the owner of the namespace alone, and name ids as the pod has them.
        Some(users) => users::inside(users.as_fd(), || set(&init.sysctls))?,
        None => set(&init.sysctls)?,
    }
    let pause = if init.shared_pid { Some(launch::pause(users.as_ref().map(AsFd::as_fd))?) } else { None };

    // By its short name, since a socket's address holds no long path.
    std::env::set_current_dir(&init.state_dir)?;
    let _ = std::fs::remove_file(SOCKET);
    let listener = UnixListener::bind(SOCKET)?;
    listener.set_nonblocking(true)?;
    std::env::set_current_dir("/")?;
    Ok(Sandbox { listener, signals, users, pause, state_dir: init.state_dir.clone() })
}

fn set(sysctls: &BTreeMap<String, String>) -> io::Result<()> {
    sysctls.iter().try_for_each(|(name, value)| {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        std::fs::write(&path, value).map_err(|e| told(&format!("setting sysctl {name}"), e))
    })
}

fn told(what: &str, error: impl Into<io::Error>) -> io::Error {
    let error = error.into();
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

#[allow(unsafe_code)]
fn loopback_up() -> io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: `request` is a whole, zeroed `ifreq`; both calls read and write only within it.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l'.cast_signed();
        request.ifr_name[1] = b'o'.cast_signed();
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &mut request) < 0 {
            return Err(io::Error::last_os_error());
        }
        request.ifr_ifru.ifru_flags |= (libc::IFF_UP | libc::IFF_RUNNING) as i16;
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
