//! Starting further processes in running containers: as upstream's runtimes do it, in all namespaces and control groups of
//! the container's first process, with the rights that the container has.

use std::convert::Infallible;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::{Process, Spec};
use libcontainer::syscall::syscall::create_syscall;
use libcontainer::workload::Executor;
use libcontainer::{apparmor, capabilities, tty, utils};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::unistd::{ForkResult, Gid, Pid, Uid, fork};

use super::executor::Locking;
use super::launch::{self, Outcome, Stdio};
use super::protocol::{Exec, Reply};
use super::users;

/// What a process may share with others, and the file of `/proc` that tells whether it does.
const NAMESPACES: [(CloneFlags, &str); 7] = [
    (CloneFlags::CLONE_NEWUSER, "user"),
    (CloneFlags::CLONE_NEWNS, "mnt"),
    (CloneFlags::CLONE_NEWPID, "pid"),
    (CloneFlags::CLONE_NEWNET, "net"),
    (CloneFlags::CLONE_NEWIPC, "ipc"),
    (CloneFlags::CLONE_NEWUTS, "uts"),
    (CloneFlags::CLONE_NEWCGROUP, "cgroup"),
];

/// The first process of a container. Its number is nobody else's until the shim has heard of its end, so this is found out in
/// the shim.
struct First {
    process: OwnedFd,
    /// Those of its namespaces that are not the shim's.
    namespaces: CloneFlags,
    /// Its control group of version 2.
    cgroup: Option<PathBuf>,
}

impl First {
    fn find(pid: i32) -> io::Result<Self> {
        let mut namespaces = CloneFlags::empty();
        for (flag, name) in NAMESPACES {
            let of = |who: &str| std::fs::metadata(format!("/proc/{who}/ns/{name}"));
            namespaces.set(flag, of(&pid.to_string())?.ino() != of("self")?.ino());
        }
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let cgroup = groups.lines().find_map(|line| line.strip_prefix("0::/"));
        Ok(Self {
            process: open_process(pid)?,
            namespaces,
            cgroup: cgroup.map(|path| Path::new("/sys/fs/cgroup").join(path)),
        })
    }
}

#[allow(unsafe_code)]
fn open_process(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call reads no memory of ours, and the descriptor that it returns is known to nobody else.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(fd as i32))
    }
}

/// Starts one more process in the container whose first process is `first`. The answer comes through the socket: one
/// [`Reply`], with the terminal's master when there is one.
pub fn exec(exec: &Exec, first: i32, stdio: Stdio) -> io::Result<(Pid, UnixStream)> {
    let first = First::find(first)?;
    let kept = [first.process.as_fd()];
    launch::in_fork(&stdio, &kept, |channel| {
        launch::report(channel, start(exec, &first, &stdio), |pid| Reply::ExecStarted { pid });
    })
}

/// Enters the container, and forks there: only a child is in another process namespace.
#[allow(unsafe_code)]
fn start(exec: &Exec, first: &First, stdio: &Stdio) -> Outcome {
    let process: Process =
        serde_json::from_value(exec.process.clone()).map_err(|e| format!("reading the process: {e}"))?;
    let locking = launch::locking(&exec.bundle)?;
    launch::take_stdio(stdio)?;
    own_streams(exec.user).map_err(|e| format!("giving the streams to the user: {e}"))?;
    if let Some(score) = process.oom_score_adj() {
        std::fs::write("/proc/self/oom_score_adj", score.to_string())
            .map_err(|e| format!("setting the out-of-memory score: {e}"))?;
    }
    // From here on the container's processes could look into this one.
    prctl::set_dumpable(false).map_err(|e| format!("hiding the process: {e}"))?;
    join_groups(&exec.cgroups, first).map_err(|e| format!("joining the control groups: {e}"))?;
    setns(&first.process, first.namespaces).map_err(|e| format!("joining the namespaces: {e}"))?;
    if first.namespaces.contains(CloneFlags::CLONE_NEWUSER) {
        users::become_root().map_err(|e| format!("becoming the pod's root: {e}"))?;
    }
    let console = exec.tty.then(UnixStream::pair).transpose().map_err(|e| e.to_string())?;
    let (console, theirs) = console.unzip();
    let (said, says) = launch::pipe().map_err(|e| e.to_string())?;
    // SAFETY: as in `in_fork`.
    match unsafe { fork() }.map_err(|e| format!("starting the process: {e}"))? {
        ForkResult::Child => {
            drop((said, console));
            let Err(why) = become_program(process, &locking, theirs.map(OwnedFd::from));
            let _ = std::fs::File::from(says).write_all(why.as_bytes());
            // SAFETY: nothing of the shim's may be flushed or dropped twice.
            unsafe { libc::_exit(1) }
        }
        ForkResult::Parent { child } => {
            drop((says, theirs));
            let mut why = String::new();
            // Closed by the program's start.
            std::fs::File::from(said).read_to_string(&mut why).map_err(|e| e.to_string())?;
            if !why.is_empty() {
                return Err(why);
            }
            let master = console.map(|console| launch::receive_one(&console)).transpose();
            Ok((child.as_raw(), master.map_err(|e| format!("receiving the terminal: {e}"))?))
        }
    }
}

/// Lets the user of a process open its streams again, as `/dev/stdout` and the like.
fn own_streams(user: Option<u32>) -> io::Result<()> {
    let Some(user) = user else { return Ok(()) };
    for stream in [io::stdin().as_fd(), io::stdout().as_fd(), io::stderr().as_fd()] {
        launch::own(stream, user)?;
    }
    Ok(())
}

fn join_groups(groups: &[PathBuf], first: &First) -> io::Result<()> {
    let join = |group: &Path| std::fs::write(group.join("cgroup.procs"), "0");
    for group in groups {
        match (join(group), &first.cgroup) {
            // One that has been divided holds no processes itself.
            (Err(error), Some(inner)) if error.raw_os_error() == Some(libc::EBUSY) => join(inner)?,
            (outcome, _) => outcome?,
        }
    }
    Ok(())
}

/// Takes on what a process of the container is and may do, and becomes its program. Returns only why it could not.
fn become_program(
    process: Process,
    locking: &Locking,
    console: Option<OwnedFd>,
) -> Result<Infallible, String> {
    let call = create_syscall();
    let (user, group) = (process.user().uid(), process.user().gid());
    nix::unistd::setsid().map_err(|e| format!("beginning a session: {e}"))?;
    if let Some(console) = console {
        tty::setup_console(call.as_ref(), console.into_raw_fd(), false)
            .map_err(|e| format!("setting up the terminal: {e}"))?;
        nix::unistd::fchown(io::stdin(), Some(Uid::from_raw(user)), None)
            .map_err(|e| format!("giving the terminal to the user: {e}"))?;
    }
    if process.no_new_privileges() == Some(true) {
        prctl::set_no_new_privs().map_err(|e| format!("giving up new privileges: {e}"))?;
    }
    if let Some(profile) = process.apparmor_profile() {
        apparmor::apply_profile(profile).map_err(|e| format!("applying the AppArmor profile: {e}"))?;
    }
    // Root may go where the user may not, and the user where root of another namespace may not.
    let directory = process.cwd().clone();
    let entered = nix::unistd::chdir(&directory);
    let told = |error: Errno| {
        let why = error.desc().to_lowercase();
        format!("chdir to cwd (\"{}\") set in config.json failed: {why}", directory.display())
    };
    let entered_late = matches!(entered, Err(Errno::EPERM | Errno::EACCES));
    if !entered_late {
        entered.map_err(told)?;
    }
    let groups = process.user().additional_gids().clone().unwrap_or_default();
    become_user(user, group, &groups).map_err(|e| format!("becoming user {user} of group {group}: {e}"))?;
    call.close_range(0).map_err(|e| format!("closing descriptors: {e}"))?;
    capabilities::reset_effective(call.as_ref()).map_err(|e| format!("taking up capabilities: {e}"))?;
    if let Some(granted) = process.capabilities() {
        capabilities::drop_privileges(granted, call.as_ref())
            .map_err(|e| format!("giving up capabilities: {e}"))?;
    }
    if entered_late {
        nix::unistd::chdir(&directory).map_err(told)?;
    }
    // A directory outside of the container has no path here.
    std::env::current_dir().map_err(|e| format!("the working directory is not in the container: {e}"))?;
    let env = utils::parse_env(process.env().as_deref().unwrap_or_default());
    let mut spec = Spec::default();
    spec.set_process(Some(process));
    locking.validate(&spec).map_err(|e| e.to_string())?;
    locking.setup_envs(env).map_err(|e| e.to_string())?;
    match locking.exec(&spec) {
        Err(error) => Err(error.to_string()),
        Ok(()) => Err("the program returned".into()),
    }
}

/// Keeps, for the moment, what this process may do.
fn become_user(user: u32, group: u32, groups: &[u32]) -> nix::Result<()> {
    let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
    let groups: Vec<Gid> = groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    prctl::set_keepcaps(true)?;
    nix::unistd::setgroups(&groups)?;
    nix::unistd::setresgid(group, group, group)?;
    nix::unistd::setresuid(user, user, user)?;
    prctl::set_keepcaps(false)
}
