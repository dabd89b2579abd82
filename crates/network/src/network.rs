//! The network of one node, as a whole.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use parking_lot::Mutex;
use rtnetlink::Handle;

use crate::lease::{HostPort, Lease, Leases, gateway};
use crate::link::{self, Wire};
use crate::{Error, Result, rules};

/// The file that keeps the range of the cluster's pods.
const CLUSTER: &str = "cluster-cidr";

/// What a node's pod network is made of.
#[derive(Clone, Debug)]
pub struct Config {
    /// Names this cluster on this machine: 1 to 8 lower-case letters and digits. Part of the names of interfaces
    /// and tables.
    pub instance: String,
    /// The node's own range. Its first address is the gateway.
    pub pod_cidr: Ipv4Net,
    /// All pods of the cluster: what is sent there keeps its source, what is sent elsewhere is masqueraded.
    pub cluster_cidr: Ipv4Net,
    /// The addresses of Services. A node without a default route needs a way for what it sends there itself, until
    /// it is translated.
    pub service_cidr: Option<Ipv4Net>,
    /// Largest packet of a pod's interface, in bytes.
    pub mtu: u32,
    /// Where leases are kept. It has to survive the process, and may go with the machine's next start.
    pub state_dir: PathBuf,
}

/// The pod network of this node (of the network namespace in which it was made).
///
/// All methods are idempotent and may run at the same time, as long as one sandbox is the matter of one call at a
/// time.
#[derive(Debug)]
pub struct PodNetwork {
    config: Config,
    handle: Handle,
    connection: tokio::task::JoinHandle<()>,
    leases: Mutex<Leases>,
}

impl PodNetwork {
    /// Makes the network, or takes over what a process before this one made.
    ///
    /// # Errors
    /// When the range or the instance's name cannot be, when another network of this machine has a part of the range, when the process may not change the network, or when
    /// forwarding of packets is off and cannot be turned on.
    pub async fn new(config: Config) -> Result<Self> {
        check(&config.instance)?;
        let leases = Leases::open(&config.state_dir, config.pod_cidr)?;
        // Known to who cleans up without a configuration.
        let path = config.state_dir.join(CLUSTER);
        std::fs::write(&path, config.cluster_cidr.to_string())
            .map_err(|error| Error::State { path, error })?;
        forward_packets()?;
        let (handle, connection) = link::connect()?;
        let network = Self { handle, connection, leases: Mutex::new(leases), config };
        network.check_ranges().await?;
        let at = Ipv4Net::new(network.gateway(), network.config.pod_cidr.prefix_len())
            .expect("the prefix is that of a network");
        let (anchor, services) = (anchor(&network.config.instance), network.config.service_cidr);
        link::make_anchor(&network.handle, &anchor, at, services, network.config.mtu).await?;
        network.free_leases_without_wire().await?;
        network.renew_rules()?;
        Ok(network)
    }

    /// Two networks of one range would take each other's routes away.
    async fn check_ranges(&self) -> Result<()> {
        let (anchor, prefix) = (anchor(&self.config.instance), interface_prefix(&self.config.instance));
        // What is there under the claim of an earlier process is its pods', whoever has connected them.
        if link::named(&self.handle, &anchor).await?.contains(&anchor) {
            return Ok(());
        }
        for range in [Some(self.config.pod_cidr), self.config.service_cidr].into_iter().flatten() {
            let is_ours = |name: &str| name == anchor || name.starts_with(&prefix);
            if let Some((taken, by)) = link::claim_on(&self.handle, range, is_ours).await? {
                return Err(Error::Taken { range, taken, by });
            }
        }
        Ok(())
    }

    /// A sandbox's end on the node goes with its network namespace: a lease without one is that of a sandbox that is
    /// gone, as all are after the machine was started anew.
    async fn free_leases_without_wire(&self) -> Result<()> {
        let there = link::named(&self.handle, &interface_prefix(&self.config.instance)).await?;
        let mut leases = self.leases.lock();
        let gone: Vec<String> = leases
            .iter()
            .filter(|(_, lease)| !there.contains(&self.interface(lease.address)))
            .map(|(sandbox, _)| sandbox.clone())
            .collect();
        gone.iter().try_for_each(|sandbox| leases.free(sandbox).map(drop))
    }

    /// The node's own address in the pod network.
    pub fn gateway(&self) -> Ipv4Addr {
        gateway(self.config.pod_cidr)
    }

    /// What a sandbox has, if it has been attached.
    pub fn lease(&self, sandbox: &str) -> Option<Lease> {
        self.leases.lock().get(sandbox).cloned()
    }

    /// Connects the network namespace at `netns`, gives it an address, and opens the node's ports that lead to it.
    /// A sandbox that is attached already keeps what it has.
    ///
    /// # Errors
    /// When no address is free, or a port of the node is another sandbox's. Nothing of the attempt is left then.
    pub async fn attach(&self, sandbox: &str, netns: &Path, host_ports: &[HostPort]) -> Result<Vec<IpAddr>> {
        let known = self.lease(sandbox).is_some();
        let lease = self.leases.lock().take(sandbox, host_ports)?;
        let name = self.interface(lease.address);
        let wire =
            Wire { name: &name, address: lease.address, gateway: self.gateway(), mtu: self.config.mtu };
        let attached = match link::plug(&self.handle, netns, &wire).await {
            Ok(()) => rules::add(&self.config.instance, &lease),
            Err(error) => Err(error),
        };
        match attached {
            Ok(()) => Ok(vec![lease.address.into()]),
            Err(error) => {
                if !known && let Err(left) = self.undo(sandbox, &lease).await {
                    tracing::warn!(sandbox, error = %left, "part of a failed attachment is left; the next sweep removes it");
                }
                Err(error)
            }
        }
    }

    /// Disconnects a sandbox and ends its lease. One that is not attached is no error.
    pub async fn detach(&self, sandbox: &str) -> Result<()> {
        let Some(lease) = self.lease(sandbox) else { return Ok(()) };
        // Rules before the address: nothing leads to an address that is another's already.
        if rules::remove(&self.config.instance, &lease).is_err() {
            // Some of it was not there: all of it is put right below, once the lease is gone.
            self.unplug_and_free(sandbox, &lease).await?;
            return self.renew_rules();
        }
        self.unplug_and_free(sandbox, &lease).await
    }

    /// Sends what is for the pods of other nodes to these nodes: `nodes` has every other node's range and the address
    /// under which this one reaches it without a hop between. Ranges that were given before and are not in it lose
    /// their way.
    pub async fn set_routes(&self, nodes: &BTreeMap<Ipv4Net, Ipv4Addr>) -> Result<()> {
        link::set_routes(&self.handle, self.config.cluster_cidr, nodes).await
    }

    /// Frees what an earlier process left and what belongs to no sandbox of `live`: leases, interfaces, ports. What
    /// was attached through this value stays.
    pub async fn sweep(&self, live: &HashSet<String>) -> Result<()> {
        let dead: Vec<String> =
            self.leases.lock().inherited().filter(|id| !live.contains(*id)).cloned().collect();
        for sandbox in dead {
            self.detach(&sandbox).await?;
        }
        for name in link::named(&self.handle, &interface_prefix(&self.config.instance)).await? {
            // Asked anew for each: a sandbox may have been attached since the list was made.
            let leased = self.leases.lock().iter().any(|(_, lease)| self.interface(lease.address) == name);
            if !leased {
                link::unplug(&self.handle, &name).await?;
            }
        }
        Ok(())
    }

    /// Removes everything that the network made on this machine: interfaces, routes, rules and leases.
    pub async fn clean_up(self) -> Result<()> {
        clean_up(&self.config.instance, &self.config.state_dir).await
    }

    /// A failed attachment is taken back. Its rules were not added, or were refused as a whole.
    async fn undo(&self, sandbox: &str, lease: &Lease) -> Result<()> {
        self.unplug_and_free(sandbox, lease).await
    }

    async fn unplug_and_free(&self, sandbox: &str, lease: &Lease) -> Result<()> {
        link::unplug(&self.handle, &self.interface(lease.address)).await?;
        self.leases.lock().free(sandbox).map(drop)
    }

    fn renew_rules(&self) -> Result<()> {
        let leases: Vec<Lease> = self.leases.lock().iter().map(|(_, lease)| lease.clone()).collect();
        rules::renew(&self.config, leases.iter())
    }

    /// The name of the node's end of a pod's connection. It follows from the address, which is one pod's at a time,
    /// so that a leftover is recognised, and it fits in the 15 bytes that the kernel allows.
    fn interface(&self, address: Ipv4Addr) -> String {
        let number = u32::from(address).wrapping_sub(u32::from(self.config.pod_cidr.network()));
        format!("{}{:x}", interface_prefix(&self.config.instance), number & 0xf_ffff)
    }
}

impl Drop for PodNetwork {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Removes everything that a network of this name made on this machine: interfaces, routes, rules and leases.
/// Settings of the kernel stay, because others may rely on them by now.
pub async fn clean_up(instance: &str, state_dir: &Path) -> Result<()> {
    check(instance)?;
    let (handle, connection) = link::connect()?;
    for name in link::named(&handle, &interface_prefix(instance)).await? {
        link::unplug(&handle, &name).await?;
    }
    link::unplug(&handle, &anchor(instance)).await?;
    let cluster = std::fs::read_to_string(state_dir.join(CLUSTER)).ok().and_then(|text| text.parse().ok());
    if let Some(cluster) = cluster {
        link::set_routes(&handle, cluster, &BTreeMap::new()).await?;
    }
    connection.abort();
    rules::delete(instance)?;
    match std::fs::remove_dir_all(state_dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::State { path: state_dir.to_owned(), error })
        }
        _ => Ok(()),
    }
}

fn check(instance: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if (1..=8).contains(&instance.len()) && instance.chars().all(plain) {
        Ok(())
    } else {
        Err(Error::BadInstance(instance.to_owned()))
    }
}

fn anchor(instance: &str) -> String {
    format!("kr-{instance}")
}

fn interface_prefix(instance: &str) -> String {
    format!("k{instance}.")
}

/// Turns on forwarding of packets. A file system that may not be written to is fine when it is on already.
fn forward_packets() -> Result<()> {
    const SWITCH: &str = "/proc/sys/net/ipv4/ip_forward";
    let on = std::fs::read_to_string(SWITCH).is_ok_and(|text| text.trim() == "1");
    if on { Ok(()) } else { std::fs::write(SWITCH, "1").map_err(Error::Forwarding) }
}
