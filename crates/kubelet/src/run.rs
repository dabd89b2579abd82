//! Putting the parts together.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use krate_api::Quantity;
use krate_client::{CancellationToken, Client, EventRecorder, EventType, Informer};
use kube::Api;
use kube::runtime::watcher;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinSet;

use crate::certificates::ServingError;
use crate::cgroups::Cgroups;
use crate::config::Config;
use crate::cpus::{self, Cpus};
use crate::cri::Cri;
use crate::csi::{Csi, CsiPlugins, Drivers, Times};
use crate::devices::{self, DevicePlugins, Devices};
use crate::dra::{Dra, DraPlugins};
use crate::eviction::{self, Evictions};
use crate::features::Features;
use crate::garbage::{self, ImageGarbage};
use crate::images::Images;
use crate::memory::Memory;
use crate::node::{self, Machine, processes};
use crate::objects::Objects;
use crate::pod_certificates::PodCertificates;
use crate::probes::Counts;
use crate::resources::PodResources;
use crate::shared::{Shared, SharedRef};
use crate::shutdown::{self, Shutdown};
use crate::topology::Topology;
use crate::trust_bundles::TrustBundles;
use crate::users::{self, Users};
use crate::volumes::Tally;
use crate::working::Working;
use crate::{certificates, logs, naming, numa, plugins, pods, server};

/// Why the kubelet cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what}: {error}")]
    File { what: String, error: std::io::Error },
    #[error("the kubelet's certificates: {0}")]
    Tls(String),
    #[error("{0}")]
    Serving(#[from] ServingError),
    #[error("{0}")]
    Processors(String),
    #[error("{0}")]
    Topology(String),
    #[error("{0}")]
    Memory(String),
    #[error("create user namespace manager: {0}")]
    Users(String),
    #[error("running with swap on is not supported, please disable swap or set --fail-swap-on flag to false")]
    Swap,
}

/// Runs the node's pods until `shutdown`; what runs then goes on running. `ready` is told once the API knows the node
/// as Ready.
///
/// # Errors
/// A directory, the port or the certificates cannot be used. Everything else is waited for.
pub async fn run(
    client: Client,
    config: Config,
    ready: Option<oneshot::Sender<()>>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    if config.fail_swap_on && swaps(&std::fs::read_to_string("/proc/swaps").unwrap_or_default()) {
        return Err(Error::Swap);
    }
    for directory in [&config.root_dir, &config.log_dir] {
        std::fs::create_dir_all(directory)
            .map_err(|error| Error::File { what: format!("making {}", directory.display()), error })?;
    }
    let cri = Cri::new(&config.cri_socket, config.image_socket.as_deref(), config.runtime_patience);
    let Some(version) = runtime_version(&cri, &shutdown).await else { return Ok(()) };
    let (network, watched) = watch::channel(Err("the runtime has not been asked yet".to_owned()));
    let (able, features) = watch::channel(Features::default());
    let events = EventRecorder::new(client.clone(), "kubelet", &config.node_name);
    let machine = Machine::look(&config.sysfs);
    let own = |field: &str| watcher::Config::default().fields(&format!("{field}={}", config.node_name));
    let own_pods: Informer<Pod> =
        Informer::start(Api::all(client.clone()), own("spec.nodeName"), shutdown.clone());
    let own_node: Informer<Node> =
        Informer::start(Api::all(client.clone()), own("metadata.name"), shutdown.clone());
    let serving = if config.serve {
        Some(certificates::serving(&config.serving, &client, &config.node_name, &own_node, &shutdown)?)
    } else {
        None
    };
    let changed = Arc::new(Notify::new());
    let devices = Arc::new(Devices::new(&config.root_dir, Arc::clone(&changed)));
    let nodes = numa::nodes(&config.sysfs);
    let topology = Topology::new(&config.topology, &nodes).map_err(Error::Topology)?;
    let cpus = Cpus::new(
        &config.root_dir,
        &config.cpus,
        config.reserved("cpu").milli_value(),
        cpus::Topology::read(&config.sysfs, &nodes),
        config.topology.policy,
    );
    let cpus = cpus.map_err(Error::Processors)?;
    cpus.expect(&topology.counts);
    let kept = config.reserved("memory").value()
        + config.eviction.kept_free(eviction::Signal::MemoryAvailable, machine.memory);
    let memory = Memory::new(&config.root_dir, &config.memory, &nodes, kept).map_err(Error::Memory)?;
    let drivers = Drivers::new(client.clone(), &config.node_name, shutdown.clone());
    let csi = Arc::new(Csi::new(
        client.clone(),
        &config.node_name,
        config.root_dir.clone(),
        Times { sync: config.sync, stats: config.volume_stats },
        events.clone(),
        drivers,
        Arc::clone(&changed),
    ));
    let dra =
        Dra::new(client.clone(), &config.node_name, &config.root_dir, config.slices_kept, shutdown.clone());
    let dra = dra.map_err(|error| Error::File {
        what: "create ResourceClaim cache, please drain node and remove DRA state file".to_owned(),
        error,
    })?;
    let ids = users::range(config.ids_per_pod).map_err(Error::Users)?;
    let users = Users::new(&config.root_dir.join("pods"), config.ids_per_pod, ids, config.max_pods)
        .map_err(Error::Users)?;
    let certificates = config.pod_certificates.then(|| {
        let (pods, node) = (own_pods.clone(), own_node.clone());
        PodCertificates::start(
            client.clone(),
            events.clone(),
            &config.node_name,
            pods,
            node,
            shutdown.clone(),
        )
    });
    let trust_bundles = TrustBundles::new(config.trust_bundles.then(|| client.clone()), shutdown.clone());
    let shared: SharedRef = Arc::new(Shared {
        cpus,
        memory,
        users,
        topology,
        devices: Arc::clone(&devices),
        csi,
        tally: Tally::default(),
        working: Working::default(),
        dra,
        objects: Objects::new(&client),
        trust_bundles,
        certificates,
        own_node,
        pods: own_pods.clone(),
        statics: Mutex::default(),
        evictions: Evictions::default(),
        node_shutdown: Shutdown::new(&config.root_dir),
        services: Informer::<Service>::start(
            Api::all(client.clone()),
            watcher::Config::default(),
            shutdown.clone(),
        ),
        cgroups: Cgroups::new(&config.cgroup_root),
        images: Images::new(cri.clone(), client.clone(), events.clone(), &config),
        runtime_version: format!("{}://{}", version.runtime_name, version.runtime_version),
        runtime_name: version.runtime_name,
        network: watched,
        features,
        host_dns: naming::parse(&std::fs::read_to_string(&config.resolv_conf).unwrap_or_default()),
        node: machine.allocatable(&config),
        machine,
        client,
        cri,
        events,
        probes: Counts::default(),
        serving,
        looped: AtomicU64::new(0),
        started: Instant::now(),
        shutdown: shutdown.clone(),
        config,
    });

    enforce(&shared)?;
    let placing = tokio::spawn(cpus::run(Arc::clone(&shared)));
    let telling_resources = tokio::spawn(devices::pod_resources::run(Arc::clone(&shared)));
    let device_plugins = Arc::new(DevicePlugins::new(devices, shutdown.clone()));
    let registering = tokio::spawn(devices::run(Arc::clone(&device_plugins)));
    let announced = {
        let (root, stop) = (shared.config.root_dir.clone(), shutdown.clone());
        let handlers: plugins::Handlers = Arc::new([
            Arc::new(CsiPlugins(Arc::clone(&shared.csi.drivers))),
            Arc::new(DraPlugins(Arc::clone(&shared.dra.plugins))),
            device_plugins,
        ]);
        tokio::spawn(async move { plugins::run(&root, handlers, stop).await })
    };
    watch_node(&shared, &changed);
    let (is_ready, mut readiness) = watch::channel(false);
    let running_pods = tokio::spawn(pods::run(Arc::clone(&shared), own_pods.clone()));
    let mut servers = JoinSet::new();
    let mut port = 0;
    if let Some(serving) = &shared.serving {
        let (listener, tls) = server::bind(&shared, serving).await?;
        let asked = listener.local_addr();
        port = asked.map_err(|error| Error::File { what: "asking for the port".to_owned(), error })?.port();
        servers.spawn(server::serve(Arc::clone(&shared), own_pods, listener, tls));
    }
    if let Some(address) = shared.config.healthz {
        servers.spawn(server::health::serve(Arc::clone(&shared), server::health::bind(address).await?));
    }
    let images = Arc::new(ImageGarbage::default());
    let collecting = tokio::spawn(garbage::run(Arc::clone(&shared), Arc::clone(&images)));
    let evicting = tokio::spawn(eviction::run(Arc::clone(&shared), images, Arc::clone(&changed)));
    let leaving = tokio::spawn(shutdown::run(Arc::clone(&shared), Arc::clone(&changed)));
    let rotating = tokio::spawn(logs::rotate::run(Arc::clone(&shared)));
    let running_node = tokio::spawn(node::run(
        Arc::clone(&shared),
        port,
        node::Told { network, features: able },
        changed,
        is_ready,
    ));
    let telling = tokio::spawn(async move {
        if readiness.wait_for(|ready| *ready).await.is_ok()
            && let Some(ready) = ready
        {
            // Nobody may be waiting.
            let _ = ready.send(());
        }
    });
    shutdown.cancelled().await;
    telling.abort();
    let _ = running_node.await;
    let _ = running_pods.await;
    let _ = tokio::join!(
        servers.join_all(),
        rotating,
        collecting,
        evicting,
        registering,
        announced,
        placing,
        telling_resources,
        leaving
    );
    Ok(())
}

/// Whether the kernel's table of swap areas, which has a line at its head, has any.
fn swaps(table: &str) -> bool {
    table.lines().skip(1).any(|line| !line.trim().is_empty())
}

/// Bounds what pods may use together, and what the system and Kubernetes' own processes may, as far as that is asked.
fn enforce(shared: &SharedRef) -> Result<(), Error> {
    let (config, machine) = (&shared.config, &shared.machine);
    if config.enforce.pods {
        let most = processes().1;
        let left = PodResources {
            cpu_request: machine.cpu_milli() - config.reserved("cpu").milli_value(),
            memory_limit: Some(machine.memory - config.reserved("memory").value()),
            pids_limit: Some(config.reserved("pid").value()).filter(|kept| *kept > 0).map(|kept| most - kept),
            ..PodResources::default()
        };
        if let Err(error) = shared.cgroups.bound(&left) {
            tracing::warn!(%error, "what all pods may use together cannot be bounded");
        }
    }
    for (what, group, reserved) in [
        ("System", &config.enforce.system, &config.system_reserved),
        ("Kube", &config.enforce.kube, &config.kube_reserved),
    ] {
        let Some((group, compressible)) = group else { continue };
        let of = |name: &str| reserved.get(name).and_then(|q| Quantity::parse(q).ok());
        let limit = |name: &str| of(name).map(|q| q.value()).filter(|_| !compressible);
        let bounds = PodResources {
            cpu_request: of("cpu").map_or(0, |q| q.milli_value()),
            memory_limit: limit("memory"),
            pids_limit: limit("pid"),
            ..PodResources::default()
        };
        if let Err(error) = shared.cgroups.bound_other(group, &bounds) {
            let what = format!("Failed to enforce {what} Reserved Cgroup Limits on {group:?}");
            let said = format!("{what}: {error}");
            let node = shared.node_reference();
            shared.events.event(&node, EventType::Warning, "FailedNodeAllocatableEnforcement", said);
            return Err(Error::File { what, error });
        }
    }
    Ok(())
}

/// Waits until the runtime answers; `None` when the kubelet is to end before.
async fn runtime_version(cri: &Cri, shutdown: &CancellationToken) -> Option<k8s_cri::v1::VersionResponse> {
    let mut pause = Duration::from_millis(5);
    loop {
        let request = k8s_cri::v1::VersionRequest { version: "0.1.0".to_owned() };
        match cri.runtime().version(request).await {
            Ok(answer) => return Some(answer.into_inner()),
            Err(status) => tracing::debug!(%status, "the container runtime does not answer yet"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return None,
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(Duration::from_millis(500));
    }
}

/// Looks at the node's own object: what is given to it there, such as a range of addresses, may make it ready.
fn watch_node(shared: &SharedRef, changed: &Arc<Notify>) {
    let (changed, csi) = (Arc::clone(changed), Arc::clone(&shared.csi));
    shared.own_node.handle(move |event| {
        csi.seen(event.object());
        if let krate_client::Event::Modified { old, new } = event
            && old.spec != new.spec
        {
            changed.notify_one();
        }
    });
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_machine_swaps_that_has_somewhere_to() {
        let head = "Filename\tType\tSize\tUsed\tPriority\n";
        assert!(!super::swaps(head) && !super::swaps(""));
        assert!(super::swaps(&format!("{head}/dev/sda2 partition 1048572 0 -2\n")));
    }
}
