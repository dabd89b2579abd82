//! A machine for a test.

use std::ffi::OsStr;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use ipnet::IpNet;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rtnetlink::RouteMessageBuilder;

use crate::{Namespace, Net};

/// A host: a network namespace of its own, with processes that share the machine's other namespaces (files,
/// processes, control groups).
///
/// When it is dropped, also by a panic, whatever still runs in its network namespace is killed (all of it was
/// started there by this test), and the namespace with its interfaces, routes and rules is gone.
#[derive(Debug)]
pub struct Host {
    namespace: Arc<Namespace>,
    addresses: Vec<IpAddr>,
    nets: Vec<Net>,
}

impl Host {
    /// A host with no interface but its loopback.
    pub fn new() -> io::Result<Self> {
        Ok(Self { namespace: Arc::new(Namespace::new()?), addresses: Vec::new(), nets: Vec::new() })
    }

    /// A host with an address on `net` (interface `eth0`), that reaches the net's other hosts and nothing else.
    pub fn on(net: &Net) -> io::Result<Self> {
        let mut host = Self::new()?;
        host.join(net)?;
        Ok(host)
    }

    /// Gives the host one more interface (`eth0`, `eth1`, …) on `net`, and returns its address there.
    pub fn join(&mut self, net: &Net) -> io::Result<IpAddr> {
        let address = net.join(&self.namespace, &format!("eth{}", self.addresses.len()))?;
        self.addresses.push(address);
        self.nets.push(net.clone());
        Ok(address)
    }

    /// Sends everything that no other route wants to the net's gateway, where it ends.
    pub fn default_route(&self, net: &Net) -> io::Result<()> {
        let everything = match net.gateway() {
            IpAddr::V4(_) => IpNet::from(ipnet::Ipv4Net::default()),
            IpAddr::V6(_) => IpNet::from(ipnet::Ipv6Net::default()),
        };
        self.route(everything, net.gateway())
    }

    /// Sends what is for `range` to the neighbour `via`.
    pub fn route(&self, range: IpNet, via: IpAddr) -> io::Result<()> {
        let route =
            RouteMessageBuilder::<IpAddr>::new().destination_prefix(range.network(), range.prefix_len());
        let route = route.and_then(|route| route.gateway(via)).map_err(io::Error::other)?.build();
        self.namespace
            .netlink(async |handle| handle.route().add(route).execute().await.map_err(io::Error::other))
    }

    /// The address on the net that was joined first.
    ///
    /// # Panics
    /// When the host has joined no net.
    pub fn address(&self) -> IpAddr {
        *self.addresses.first().expect("a host that joined a net")
    }

    /// The namespace, to be entered by threads of the test.
    pub fn namespace(&self) -> &Arc<Namespace> {
        &self.namespace
    }

    /// A path that opens the network namespace, for as long as the host lives.
    pub fn path(&self) -> PathBuf {
        self.namespace.path()
    }

    /// A command that will run on this host. Control groups, mounts and processes are the machine's.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.command_after(program, || Ok(()))
    }

    /// A command that will run on this host and in a mount namespace of its own: it sees the machine's mounts
    /// come and go, and the machine does not see its.
    pub fn command_with_own_mounts(&self, program: impl AsRef<OsStr>) -> Command {
        self.command_after(program, || {
            unshare(CloneFlags::CLONE_NEWNS)?;
            Ok(mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)?)
        })
    }

    #[allow(unsafe_code)]
    fn command_after(
        &self,
        program: impl AsRef<OsStr>,
        prepare: impl Fn() -> io::Result<()> + Send + Sync + 'static,
    ) -> Command {
        let namespace = Arc::clone(&self.namespace);
        let mut command = Command::new(program);
        let enter = move || {
            namespace.enter()?;
            prepare()
        };
        // SAFETY: between fork and exec the closure makes system calls only (setns, unshare, mount); it neither
        // allocates nor takes a lock.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// Runs `work` in a thread on this host; see [`Namespace::run`].
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.namespace.run(work)
    }

    /// Runs a future on this host; see [`Namespace::block_on`].
    pub fn block_on<T: Send, F: Future<Output = T>>(&self, work: impl FnOnce() -> F + Send) -> T {
        self.namespace.block_on(work)
    }

    /// The processes in the host's network namespace, this one's own threads aside.
    pub fn processes(&self) -> Vec<u32> {
        let link = format!("/proc/self/fd/{}", std::os::fd::AsFd::as_fd(&*self.namespace).as_raw_fd());
        let (Ok(ours), Ok(entries)) = (std::fs::read_link(link), std::fs::read_dir("/proc")) else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
            .filter(|pid| *pid != std::process::id())
            .filter(|pid| {
                std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|theirs| theirs == ours)
            })
            .collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Twice, because one that is about to fork can slip through the first time.
        for _ in 0..2 {
            for pid in self.processes() {
                let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
            }
        }
    }
}
