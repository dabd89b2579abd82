//! The life of a pod sandbox.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use k8s_cri::v1::{
    ContainerEventType, DnsConfig, NamespaceMode, NamespaceOption, PodSandboxConfig, PortMapping as CriPort,
    Protocol as CriProtocol, RunPodSandboxRequest,
};
use tonic::Status;

use super::node::{Node, Sandbox, new_id};
use super::record::{self, SandboxRecord};
use super::{adopt, container};
use crate::cgroup::Cgroup;
use crate::config::{PodAddresses, PortMapping, Protocol};
use crate::shim::client::{self, Spawned};
use crate::shim::protocol::Init;
use crate::snapshot;
use crate::userns::Ids;

/// Bytes of a pod's shared memory (containerd's default).
const SHM: u64 = 64 << 20;

pub fn namespace_options(config: &PodSandboxConfig) -> NamespaceOption {
    let security = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    security.and_then(|security| security.namespace_options.clone()).unwrap_or_default()
}

/// Makes a sandbox and attaches it to the network. On failure nothing of it is left.
pub async fn run(node: &Arc<Node>, request: RunPodSandboxRequest) -> Result<String, Status> {
    let mut config = request.config.ok_or_else(|| Status::invalid_argument("sandbox config is nil"))?;
    let metadata = config
        .metadata
        .clone()
        .ok_or_else(|| Status::invalid_argument("sandbox config must include metadata"))?;
    if !request.runtime_handler.is_empty() {
        return Err(Status::invalid_argument(format!(
            "no runtime for {:?} is configured",
            request.runtime_handler
        )));
    }
    let options = namespace_options(&config);
    let ids = Ids::asked(options.userns_options.as_ref())
        .map_err(|e| Status::invalid_argument(format!("user namespace configuration: {e}")))?;
    let taken =
        node.sandboxes.read().values().any(|s| s.record.read().config.metadata.as_ref() == Some(&metadata));
    if taken {
        return Err(Status::already_exists(format!(
            "a sandbox of pod {}/{} ({}), attempt {}, exists",
            metadata.namespace, metadata.name, metadata.uid, metadata.attempt
        )));
    }
    if options.network() == NamespaceMode::Node && config.hostname.is_empty() {
        let hosts = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        hosts.trim().clone_into(&mut config.hostname);
    }
    let id = new_id();
    let parent = config.linux.as_ref().map(|linux| linux.cgroup_parent.clone()).unwrap_or_default();
    let own_cgroup = (!parent.is_empty() && !Cgroup::new(&parent).exists()).then_some(parent);
    let record = SandboxRecord {
        id: id.clone(),
        config,
        runtime_handler: request.runtime_handler,
        created_at: record::now(),
        shim: 0,
        pause: None,
        addresses: PodAddresses::default(),
        stopped: false,
        own_cgroup,
    };
    let sandbox = Sandbox::new(record, false);
    match build(node, &sandbox, &options, ids).await {
        Ok(()) => {}
        Err(error) => {
            let _ = tear_down(node, &sandbox).await;
            let _ = discard(node, &sandbox).await;
            return Err(error);
        }
    }
    node.sandboxes.write().insert(id.clone(), Arc::clone(&sandbox));
    node.emit(&id, &id, ContainerEventType::ContainerCreatedEvent);
    node.emit(&id, &id, ContainerEventType::ContainerStartedEvent);
    Ok(id)
}

async fn build(
    node: &Arc<Node>,
    sandbox: &Arc<Sandbox>,
    options: &NamespaceOption,
    ids: Option<Ids>,
) -> Result<(), Status> {
    let (id, config) = {
        let record = sandbox.record.read();
        (record.id.clone(), record.config.clone())
    };
    let host_network = options.network() == NamespaceMode::Node;
    let host_ipc = options.ipc() == NamespaceMode::Node;
    let state = node.layout.sandbox_state(&id);
    let failed = |what: &str, error: std::io::Error| Status::unknown(format!("failed to {what}: {error}"));
    write_files(&node.layout.sandbox(&id), &state, &config, host_network)
        .map_err(|e| failed("write the sandbox's files", e))?;
    if !host_ipc {
        snapshot::mount_shm(&node.layout.shm(&id), SHM).map_err(|e| failed("mount shared memory", e))?;
    }
    let init = Init {
        sandbox_id: id.clone(),
        state_dir: state.clone(),
        new_network: !host_network,
        new_ipc: !host_ipc,
        new_uts: !host_network,
        shared_pid: options.pid() == NamespaceMode::Pod,
        hostname: config.hostname.clone(),
        sysctls: sysctls(&config, host_network, ids.as_ref()),
        users: ids,
    };
    let Spawned { pid, pause, users, connection } = node
        .zygote
        .spawn(&init, &state.join("shim.log"))
        .await
        .map_err(|e| failed("start the sandbox", e))?;
    {
        let mut record = sandbox.record.write();
        (record.shim, record.pause) = (pid, pause);
    }
    if let Some(users) = users {
        let _ = sandbox.users.set(users);
    }
    sandbox.ready.store(true, Ordering::Release);
    // Written before the network is attached, so that a new server knows what to take back.
    node.save_sandbox(sandbox).map_err(|e| failed("record the sandbox", e))?;
    adopt::watch(Arc::clone(node), Arc::clone(sandbox), connection);
    if !host_network {
        let netns = netns(pid);
        let ports = ports(&config.port_mappings);
        let addresses = node.config.network.attach(&sandbox.identity(), &netns, &ports).await;
        let addresses = addresses
            .map_err(|e| Status::unknown(format!("failed to setup network for sandbox {id:?}: {e}")))?;
        sandbox.record.write().addresses = addresses;
        node.save_sandbox(sandbox).map_err(|e| failed("record the sandbox", e))?;
    }
    Ok(())
}

pub fn netns(shim: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{shim}/ns/net"))
}

/// What is set in a pod's own namespaces: what it asks for, and that its users may ping and listen on any port, as
/// containerd has it.
fn sysctls(config: &PodSandboxConfig, host_network: bool, ids: Option<&Ids>) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    if !host_network {
        // A pod cannot name groups that it does not have.
        let most = i32::MAX as u32;
        let (first, last) = ids.and_then(|ids| ids.groups.first()).map_or((0, most), |range| {
            (range.container, range.container.saturating_add(range.length - 1).min(most))
        });
        all.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned());
        all.insert("net.ipv4.ping_group_range".to_owned(), format!("{first} {last}"));
    }
    if let Some(linux) = &config.linux {
        all.extend(linux.sysctls.clone());
    }
    all
}

fn write_files(
    directory: &Path,
    state: &Path,
    config: &PodSandboxConfig,
    host_network: bool,
) -> std::io::Result<()> {
    std::fs::create_dir_all(directory)?;
    std::fs::create_dir_all(state)?;
    std::fs::write(state.join("hostname"), format!("{}\n", config.hostname))?;
    let hosts = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n";
    let hosts = if host_network {
        std::fs::read_to_string("/etc/hosts").unwrap_or(hosts.into())
    } else {
        hosts.into()
    };
    std::fs::write(state.join("hosts"), hosts)?;
    let resolv = match &config.dns_config {
        Some(dns) if !(dns.servers.is_empty() && dns.searches.is_empty() && dns.options.is_empty()) => {
            resolv_conf(dns)
        }
        _ => std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
    };
    std::fs::write(state.join("resolv.conf"), resolv)
}

fn resolv_conf(dns: &DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        let _ = writeln!(text, "search {}", dns.searches.join(" "));
    }
    for server in &dns.servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !dns.options.is_empty() {
        let _ = writeln!(text, "options {}", dns.options.join(" "));
    }
    text
}

fn ports(asked: &[CriPort]) -> Vec<PortMapping> {
    let usable = |port: &&CriPort| port.host_port > 0;
    asked
        .iter()
        .filter(usable)
        .map(|port| PortMapping {
            protocol: match port.protocol() {
                CriProtocol::Tcp => Protocol::Tcp,
                CriProtocol::Udp => Protocol::Udp,
                CriProtocol::Sctp => Protocol::Sctp,
            },
            container_port: port.container_port as u16,
            host_port: port.host_port as u16,
            host_ip: port.host_ip.parse::<IpAddr>().ok().filter(|ip| !ip.is_unspecified()),
        })
        .collect()
}

/// Ends a sandbox's processes and gives its network back. May be called again and again.
pub async fn stop(node: &Arc<Node>, id: &str) -> Result<(), Status> {
    let Ok(sandbox) = node.sandbox(id) else { return Ok(()) };
    let _changing = sandbox.changing.lock().await;
    stop_locked(node, &sandbox).await
}

async fn stop_locked(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<(), Status> {
    if sandbox.record.read().stopped {
        return Ok(());
    }
    tear_down(node, sandbox).await?;
    sandbox.record.write().stopped = true;
    let id = sandbox.id();
    node.save_sandbox(sandbox).map_err(|e| Status::unknown(format!("failed to record the sandbox: {e}")))?;
    node.emit(&id, &id, ContainerEventType::ContainerStoppedEvent);
    Ok(())
}

async fn tear_down(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<(), Status> {
    let id = sandbox.id();
    let options = namespace_options(&sandbox.record.read().config);
    if options.network() != NamespaceMode::Node {
        let shim = sandbox.record.read().shim;
        let netns = Some(netns(shim)).filter(|path| sandbox.ready.load(Ordering::Acquire) && path.exists());
        node.config
            .network
            .detach(&sandbox.identity(), netns.as_deref())
            .await
            .map_err(|e| Status::unknown(format!("failed to destroy network for sandbox {id:?}: {e}")))?;
    }
    // Answered when all is over. A shim that is gone has nothing more to end.
    let ended = client::shutdown(&node.shim(&id)).await;
    if let Err(error) = ended {
        tracing::debug!(sandbox = %id, %error, "no shim to end");
    }
    for container in node.containers_of(&id) {
        container::gather_end(node, &container);
    }
    sandbox.ready.store(false, Ordering::Release);
    snapshot::unmount(&node.layout.shm(&id))
        .map_err(|e| Status::unknown(format!("failed to unmount shared memory: {e}")))
}

/// Removes a sandbox with all that was in it.
pub async fn remove(node: &Arc<Node>, id: &str) -> Result<(), Status> {
    let Ok(sandbox) = node.sandbox(id) else { return Ok(()) };
    let _changing = sandbox.changing.lock().await;
    stop_locked(node, &sandbox).await?;
    let id = sandbox.id();
    for container in node.containers_of(&id) {
        container::remove(node, &container.id()).await?;
    }
    discard(node, &sandbox).await?;
    node.emit(&id, &id, ContainerEventType::ContainerDeletedEvent);
    node.samples.forget(&id);
    node.sandboxes.write().remove(&id);
    Ok(())
}

async fn discard(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<(), Status> {
    let (id, own_cgroup) = {
        let record = sandbox.record.read();
        (record.id.clone(), record.own_cgroup.clone())
    };
    let directories = [node.layout.sandbox(&id), node.layout.sandbox_state(&id)];
    let removal = move || -> std::io::Result<()> {
        if let Some(cgroup) = own_cgroup {
            // Others may be using it by now.
            let _ = Cgroup::new(&cgroup).remove_empty();
        }
        directories.iter().try_for_each(|directory| match std::fs::remove_dir_all(directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            outcome => outcome,
        })
    };
    tokio::task::spawn_blocking(removal)
        .await
        .map_err(std::io::Error::other)
        .flatten()
        .map_err(|e| Status::unknown(format!("failed to remove sandbox {id:?}: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_up_as_asked() {
        let dns = DnsConfig {
            servers: vec!["10.96.0.10".into()],
            searches: vec!["default.svc.cluster.local".into(), "svc.cluster.local".into()],
            options: vec!["ndots:5".into()],
        };
        assert_eq!(
            resolv_conf(&dns),
            "search default.svc.cluster.local svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n"
        );
    }

    #[test]
    fn only_ports_of_the_host_are_mapped() {
        let port = |host_port, host_ip: &str| CriPort {
            container_port: 80,
            host_port,
            host_ip: host_ip.into(),
            ..Default::default()
        };
        let mapped = ports(&[port(0, ""), port(8080, "0.0.0.0"), port(8081, "127.0.0.1")]);
        assert_eq!(mapped.len(), 2);
        assert_eq!(mapped[0].host_ip, None);
        assert_eq!(mapped[1].host_ip, Some(IpAddr::from([127, 0, 0, 1])));
    }
}
