//! This machine as a node: pod network, container runtime, kubelet, Service proxy and DNS, wired together.

mod cni;
mod network;
mod remove;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;
use krate_apiserver::rbac::DNS;
use krate_client::{Client, Informer, Informers};
use krate_dns::{KubeDns, Upstream};
use krate_kubelet::{Configuration, Providers};
use krate_pki::Source;
use kube::runtime::watcher;
use serde_json::json;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::address;
use crate::cli::Up;
use crate::datadir::{DataDir, Settings};
use crate::up::{ControlPlane, Parts, Progress};
use network::Late;

/// Where upstream's kubelet listens; another cluster on this machine may have it.
const KUBELET_PORT: u16 = 10250;
/// Host of the address that serves DNS in the range of Services.
const DNS_HOST: u32 = 10;
const DNS_PORT: u16 = 53;
const RESOLV_CONF: &str = "/etc/resolv.conf";
pub const DOMAIN: &str = "cluster.local";
/// Bytes that fit into a packet of an ordinary network.
const MTU: u32 = 1500;

/// The address of the DNS Service.
pub fn dns_address(services: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(services.network()) + DNS_HOST)
}

/// What this node's kubelet is configured with.
#[derive(Clone, Debug)]
pub struct Kubelet {
    configuration: Configuration,
    providers: Providers,
}

impl Kubelet {
    /// Upstream's defaults, but for what suits a machine that is not the node's alone: no image goes by itself, as many
    /// are pulled at a time as are needed, and the machine may swap. Over them what the command line names.
    ///
    /// # Errors
    /// A file cannot be read, or is no sound configuration.
    pub fn configured(args: &Up) -> Result<Self> {
        let mut configuration = Configuration::default();
        configuration.set(json!({
            "imageGCHighThresholdPercent": 100, "serializeImagePulls": false, "registryPullQPS": 0, "failSwapOn": false}));
        let configuration =
            configuration.over(args.kubelet_config.as_deref(), args.kubelet_config_dir.as_deref())?;
        // What is wrong is said before anything starts.
        configuration.clone().apply(&mut krate_kubelet::Config::new("", Ipv4Addr::LOCALHOST.into(), ""))?;
        Ok(Kubelet { configuration, providers: args.providers.load()? })
    }
}

/// Starts all that a node is, and returns when the node is Ready.
pub async fn start(
    dir: &DataDir,
    settings: &Settings,
    configured: Kubelet,
    plane: &ControlPlane,
    progress: &Progress,
    shutdown: &CancellationToken,
    parts: &Parts,
) -> Result<()> {
    let name = address::host_name();
    let pods = Late::default();
    if settings.runtime.is_none() {
        runtime(dir, pods.clone(), shutdown, parts).await?;
    }
    progress.ready("container runtime", &cri_socket(dir, settings).display().to_string());

    let node_client = plane.client(&format!("system:node:{name}"), &["system:nodes"]);
    let nodes: Informer<Node> = Informer::start(
        krate_client::Api::all(node_client.clone()),
        watcher::Config::default().fields(&format!("metadata.name={name}")),
        shutdown.clone(),
    );
    let port = kubelet_port();
    kubelet(dir, settings, configured, plane, &name, port, node_client.clone(), shutdown, parts)?;

    let range = pod_range(&nodes).await?;
    let network = krate_network::PodNetwork::new(network_config(dir, settings, range))
        .await
        .context("making the pod network")?;
    let gateway = pods.set(network).gateway();
    if let Some(other) = &settings.runtime {
        cni::write(&other.cni_conf_dir, dir, range, gateway)?;
    }
    progress.ready("pod network", &range.to_string());

    let proxy_client = plane.client("system:kube-proxy", &["system:node-proxier"]);
    let informers = Informers::new(proxy_client, shutdown.clone());
    let config = proxy_config(dir, settings, &name);
    let stop = shutdown.clone();
    parts.spawn("proxy", async move { krate_proxy::run(informers, config, stop).await });
    progress.ready(
        "service proxy",
        &format!("{}, services in {}", krate_proxy::BACKENDS[0].mode, settings.service_cidr),
    );

    dns(settings, plane, &name, gateway, shutdown, parts);
    progress.ready("cluster DNS", &format!("{} at {}", DOMAIN, dns_address(settings.service_cidr)));

    ready(&nodes).await;
    progress.ready("node", &format!("{name} is Ready, kubelet on port {port}"));
    Ok(())
}

/// Serves cluster DNS at the gateway of the pod network, which every pod of the node reaches.
fn dns(
    settings: &Settings,
    plane: &ControlPlane,
    name: &str,
    gateway: Ipv4Addr,
    shutdown: &CancellationToken,
    parts: &Parts,
) {
    let informers = Informers::new(plane.client(DNS, &[]), shutdown.clone());
    let listen = SocketAddr::from((gateway, DNS_PORT));
    let config = krate_dns::Config {
        listen: vec![listen],
        cluster_domain: DOMAIN.to_owned(),
        upstream: Upstream::ResolvConf(RESOLV_CONF.into()),
        service: Some(KubeDns {
            cluster_ip: IpAddr::V4(dns_address(settings.service_cidr)),
            endpoint: Some(listen),
            node: name.to_owned(),
        }),
    };
    let stop = shutdown.clone();
    parts.spawn("cluster DNS", async move { krate_dns::run(&informers, config, stop).await });
}

/// Starts the kubelet. It is ready when the node is.
#[allow(clippy::too_many_arguments, reason = "it is where everything meets")]
fn kubelet(
    dir: &DataDir,
    settings: &Settings,
    configured: Kubelet,
    plane: &ControlPlane,
    name: &str,
    port: u16,
    client: Client,
    shutdown: &CancellationToken,
    parts: &Parts,
) -> Result<()> {
    let hosts = [name.to_owned(), "localhost".to_owned(), "127.0.0.1".to_owned(), plane.address.to_string()];
    let user = format!("system:node:{name}");
    let serving =
        plane.authority.kept(move |authority, _| authority.serving(&user, &["system:nodes"], &hosts))?;
    let mut config = krate_kubelet::Config {
        eviction: krate_kubelet::EvictionConfig::of_a_shared_machine(),
        ..krate_kubelet::Config::new(name, plane.address, dir.kubelet())
    };
    let (bind, log_dir) = (config.bind, config.log_dir.clone());
    configured.configuration.apply(&mut config)?;
    let config = krate_kubelet::Config {
        bind,
        log_dir,
        healthz: None,
        cri_socket: cri_socket(dir, settings),
        image_socket: None,
        providers: configured.providers,
        cgroup_root: cgroup(dir),
        port,
        serving: krate_kubelet::Serving::From(Source::Given(serving)),
        client_ca: plane.authority.certificate().to_owned(),
        client_ca_file: None,
        cluster_dns: vec![IpAddr::V4(dns_address(settings.service_cidr))],
        cluster_domain: DOMAIN.to_owned(),
        ..config
    };
    let stop = shutdown.clone();
    parts.spawn("kubelet", async move { krate_kubelet::run(client, config, None, stop).await });
    Ok(())
}

/// Starts the container runtime and waits until it has found what still runs.
async fn runtime(dir: &DataDir, network: Late, shutdown: &CancellationToken, parts: &Parts) -> Result<()> {
    let config = runtime_config(dir, network);
    let (ready, is_ready) = oneshot::channel();
    let stop = shutdown.clone();
    parts.spawn("container runtime", async move { krate_runtime::serve(config, stop, Some(ready)).await });
    is_ready.await.context("the container runtime did not start")
}

/// Removes what the node has put into the kernel: pods, interfaces, rules, control groups.
pub async fn clean_up(dir: &DataDir, settings: &Settings) -> Result<()> {
    let network = Late::default();
    match krate_network::PodNetwork::new(network_config(dir, settings, settings.pod_cidr)).await {
        Ok(there) => drop(network.set(there)),
        Err(error) => tracing::debug!(%error, "there is no pod network"),
    }
    match &settings.runtime {
        None => remove::pods(runtime_config(dir, network)).await?,
        Some(other) => {
            remove::pods_of(&other.socket).await?;
            cni::remove(&other.cni_conf_dir, dir)?;
        }
    }
    remove::mounts(dir.root())?;
    krate_proxy::clean_up(&proxy_config(dir, settings, ""))?;
    krate_network::clean_up(&dir.instance(), &dir.network()).await?;
    remove::control_groups(&cgroup(dir));
    Ok(())
}

fn network_config(dir: &DataDir, settings: &Settings, range: Ipv4Net) -> krate_network::Config {
    krate_network::Config {
        instance: dir.instance(),
        pod_cidr: range,
        cluster_cidr: settings.pod_cidr,
        service_cidr: Some(settings.service_cidr),
        mtu: MTU,
        state_dir: dir.network(),
    }
}

fn proxy_config(dir: &DataDir, settings: &Settings, name: &str) -> krate_proxy::Config {
    krate_proxy::Config {
        node_name: name.to_owned(),
        instance: dir.instance(),
        cluster_cidrs: vec![settings.pod_cidr.into()],
        service_cidrs: vec![settings.service_cidr.into()],
        ..krate_proxy::Config::default()
    }
}

fn runtime_config(dir: &DataDir, network: Late) -> krate_runtime::Config {
    krate_runtime::Config {
        root: dir.runtime(),
        state: dir.run().join("runtime"),
        socket: dir.cri_socket(),
        cgroup_parent: cgroup(dir),
        instance: dir.instance(),
        streaming_address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        network: std::sync::Arc::new(network),
        registries: dir.registries(),
        cdi: dir.cdi(),
    }
}

/// Where the kubelet finds the container runtime.
fn cri_socket(dir: &DataDir, settings: &Settings) -> PathBuf {
    settings.runtime.as_ref().map_or_else(|| dir.cri_socket(), |other| other.socket.clone())
}

/// The control group that holds all pods of this cluster.
fn cgroup(dir: &DataDir) -> String {
    format!("/krate-{}", dir.instance())
}

fn kubelet_port() -> u16 {
    let is_free = TcpListener::bind((Ipv4Addr::UNSPECIFIED, KUBELET_PORT)).is_ok();
    if is_free { KUBELET_PORT } else { 0 }
}

/// Waits for the range of pod addresses that the control plane gives to this node.
async fn pod_range(nodes: &Informer<Node>) -> Result<Ipv4Net> {
    let text = first(nodes, |node| node.spec.as_ref().and_then(|spec| spec.pod_cidr.clone())).await;
    text.parse().with_context(|| format!("the node's range of pod addresses, {text}"))
}

/// Waits until the node is Ready.
async fn ready(nodes: &Informer<Node>) {
    first(nodes, |node| {
        let conditions = node.status.as_ref()?.conditions.as_ref()?;
        conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True").then_some(())
    })
    .await;
}

/// Waits until `what` finds something in a node of the informer.
async fn first<T: Send + 'static>(
    nodes: &Informer<Node>,
    what: impl Fn(&Node) -> Option<T> + Send + Sync + 'static,
) -> T {
    let mut events = nodes.subscribe();
    loop {
        match events.recv().await {
            Some(event) => {
                if let Some(found) = what(event.object()) {
                    return found;
                }
            }
            // The informer has ended, so the cluster is about to.
            None => std::future::pending().await,
        }
    }
}
