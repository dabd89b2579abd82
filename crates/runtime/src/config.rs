//! What the runtime is told when it starts, and the one door it has to the pod network.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

/// Everything that the runtime needs to know to serve.
#[derive(Clone)]
pub struct Config {
    /// What outlives a reboot: images, layers, and the records of sandboxes and containers.
    pub root: PathBuf,
    /// What does not: sockets, bundles, mount points.
    pub state: PathBuf,
    /// The unix socket that CRI is served on.
    pub socket: PathBuf,
    /// The cgroup that containers are put in when a sandbox names no parent of its own.
    pub cgroup_parent: String,
    /// A short identifier of this node on this host, so that several can live side by side.
    pub instance: String,
    /// Where exec, attach and port-forward streams are served; port 0 lets the kernel choose.
    pub streaming_address: SocketAddr,
    /// The pod network.
    pub network: Arc<dyn PodNetwork>,
    /// How images are fetched.
    pub registries: Registries,
    /// Where devices are described that containers ask for by name (the Container Device Interface); the later directory
    /// counts.
    pub cdi: Vec<PathBuf>,
}

impl Config {
    /// Where descriptions of devices are on most machines.
    pub fn usual_cdi() -> Vec<PathBuf> {
        crate::cdi::DIRECTORIES.map(PathBuf::from).to_vec()
    }
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("root", &self.root)
            .field("state", &self.state)
            .field("socket", &self.socket)
            .field("cgroup_parent", &self.cgroup_parent)
            .field("instance", &self.instance)
            .field("streaming_address", &self.streaming_address)
            .field("registries", &self.registries)
            .field("cdi", &self.cdi)
            .finish_non_exhaustive()
    }
}

/// How registries are reached.
#[derive(Clone, Debug, Default)]
pub struct Registries {
    /// `host[:port]` of registries that are spoken to over plain HTTP. Loopback always is.
    pub insecure: Vec<String>,
    /// Directories that hold `<host>/hosts.toml` as containerd has it (its `config_path`): mirrors, authorities,
    /// certificates and headers. The first that knows a host counts.
    pub directories: Vec<PathBuf>,
}

/// A port of the host that leads into a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    pub protocol: Protocol,
    pub container_port: u16,
    pub host_port: u16,
    /// The host's address it is bound to; every one of them when none is given.
    pub host_ip: Option<IpAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// The addresses that a pod was given, the primary one first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodAddresses {
    pub ips: Vec<IpAddr>,
}

/// Which sandbox an attachment is for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodIdentity {
    pub sandbox_id: String,
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// What connects a sandbox's network namespace to the pod network (upstream: CNI).
///
/// Sandboxes on the host's network never get here.
#[async_trait]
pub trait PodNetwork: Send + Sync + 'static {
    /// Gives the namespace at `netns` an interface and addresses. Called again for the same sandbox it must
    /// give the same answer.
    async fn attach(
        &self,
        pod: &PodIdentity,
        netns: &Path,
        ports: &[PortMapping],
    ) -> Result<PodAddresses, NetworkError>;

    /// Takes everything back that `attach` gave. `netns` is absent when the namespace is already gone. Must
    /// succeed when there is nothing to take back.
    async fn detach(&self, pod: &PodIdentity, netns: Option<&Path>) -> Result<(), NetworkError>;

    /// Whether pods can be attached now; the reason when not. It becomes CRI's `NetworkReady`.
    async fn status(&self) -> Result<(), NetworkError>;
}

/// Why the pod network refused.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NetworkError(pub String);

/// A pod network that gives pods nothing but their loopback: for tests, and for hosts that need no network.
#[derive(Clone, Copy, Debug, Default)]
pub struct Loopback;

#[async_trait]
impl PodNetwork for Loopback {
    async fn attach(
        &self,
        _: &PodIdentity,
        _: &Path,
        _: &[PortMapping],
    ) -> Result<PodAddresses, NetworkError> {
        Ok(PodAddresses { ips: vec![IpAddr::from([127, 0, 0, 1])] })
    }

    async fn detach(&self, _: &PodIdentity, _: Option<&Path>) -> Result<(), NetworkError> {
        Ok(())
    }

    async fn status(&self) -> Result<(), NetworkError> {
        Ok(())
    }
}
