//! What all pod workers share: the doors to the API and to the runtime, and what is known of the machine.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use k8s_cri::v1::DnsConfig;
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, Service};
use krate_client::{Client, EventRecorder, EventType, Informer, reference};
use krate_pki::Current;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cgroups::Cgroups;
use crate::config::Config;
use crate::cpus::Cpus;
use crate::cri::Cri;
use crate::csi::Csi;
use crate::devices::Devices;
use crate::dra::Dra;
use crate::eviction::Evictions;
use crate::features::Features;
use crate::fieldpath::{Addresses, Allocatable};
use crate::images::Images;
use crate::memory::Memory;
use crate::naming::is_host_network;
use crate::node::Machine;
use crate::objects::Objects;
use crate::observed::Observed;
use crate::pod_certificates::PodCertificates;
use crate::probes::Counts;
use crate::shutdown::Shutdown;
use crate::spec::{self, Kind};
use crate::static_pods::mirrored;
use crate::status::is_over;
use crate::topology::Topology;
use crate::trust_bundles::TrustBundles;
use crate::users::Users;
use crate::volumes::Tally;
use crate::working::Working;

pub struct Shared {
    pub config: Config,
    pub client: Client,
    pub cri: Cri,
    pub events: EventRecorder,
    pub objects: Objects,
    pub trust_bundles: TrustBundles,
    /// What pods have of signers, where the feature is on.
    pub certificates: Option<Arc<PodCertificates>>,
    pub services: Informer<Service>,
    /// The node's own object, as the API tells of it.
    pub own_node: Informer<Node>,
    /// The pods of this node, as the API tells.
    pub pods: Informer<Pod>,
    /// Static pods that are run here, by UID, with what was told of them last.
    pub statics: Mutex<HashMap<String, Arc<Pod>>>,
    pub evictions: Evictions,
    pub node_shutdown: Shutdown,
    pub cgroups: Cgroups,
    pub devices: Arc<Devices>,
    pub cpus: Cpus,
    pub memory: Memory,
    pub users: Users,
    pub topology: Topology,
    pub csi: Arc<Csi>,
    pub tally: Tally,
    pub working: Working,
    pub dra: Dra,
    pub images: Images,
    /// The first part of container ids in statuses.
    pub runtime_name: String,
    /// As the node's status tells it: `name://version`.
    pub runtime_version: String,
    pub machine: Machine,
    /// Whether the runtime says that pods can be connected; the reason when not.
    pub network: watch::Receiver<Result<(), String>>,
    /// What the runtime says that it can do.
    pub features: watch::Receiver<Features>,
    pub host_dns: DnsConfig,
    pub node: Allocatable,
    pub probes: Counts,
    /// The certificate that the server shows, if there is a server.
    pub serving: Option<Current>,
    /// When the pods' loop came round last: seconds since the kubelet started.
    pub looped: AtomicU64,
    pub started: Instant,
    pub shutdown: CancellationToken,
}

/// How long the pods' loop may take to come round: it does so once a minute even if nothing happens.
const PATIENCE: u64 = 5 * 60;

impl Shared {
    /// The pods that are run here or are to be: those of the API, with static pods themselves in the place of their images.
    pub fn all_pods(&self) -> Vec<Arc<Pod>> {
        let mut all = self.pods.list();
        all.retain(|pod| mirrored(pod).is_none());
        all.extend(self.statics.lock().values().cloned());
        all
    }

    /// Those that have not ended.
    pub fn active_pods(&self) -> Vec<Arc<Pod>> {
        let mut pods = self.all_pods();
        pods.retain(|pod| !pod.status.as_ref().and_then(|s| s.phase.as_deref()).is_some_and(is_over));
        pods
    }

    /// A pod needs nothing any more that it has alone.
    pub fn take_back(&self, uid: &str) {
        self.devices.release(uid);
        self.cpus.release(uid);
        self.memory.release(uid);
        self.users.release(uid);
    }

    /// Whatever other pods than these have alone is free.
    pub fn keep_only(&self, known: &HashSet<String>) {
        self.devices.keep(known);
        self.cpus.keep(known);
        self.memory.keep(known);
        self.users.keep(known);
    }

    /// Notes that the pods' loop has come round.
    pub fn loops(&self) {
        self.looped.store(self.started.elapsed().as_secs(), Ordering::Relaxed);
    }

    /// Whether the pods' loop still comes round.
    pub fn is_looping(&self) -> bool {
        self.started.elapsed().as_secs() - self.looped.load(Ordering::Relaxed) < PATIENCE
    }

    /// Records an event of a pod.
    pub fn pod_event(&self, pod: &Pod, kind: EventType, reason: &str, message: impl Into<String>) {
        self.events.event(&reference(pod), kind, reason, message);
    }

    /// Records an event of one of a pod's containers.
    pub fn container_event(
        &self,
        pod: &Pod,
        container: &str,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        self.events.event(&container_reference(pod, container), kind, reason, message);
    }

    /// A pod's addresses, and its host's.
    pub fn addresses(&self, pod: &Pod, seen: &Observed) -> Addresses {
        let host = vec![self.config.node_ip.to_string()];
        let pod = if is_host_network(pod) { host.clone() } else { seen.ips() };
        Addresses { pod, host }
    }

    /// What an event of the node points at. Upstream's kubelet gives its name as its UID.
    pub fn node_reference(&self) -> ObjectReference {
        let name = Some(self.config.node_name.clone());
        ObjectReference { kind: Some("Node".to_owned()), uid: name.clone(), name, ..Default::default() }
    }

    /// Waits until the network is ready for pods, or there will be no more.
    pub async fn network_ready(&self) {
        let mut network = self.network.clone();
        let _ = network.wait_for(Result::is_ok).await;
    }
}

/// What an event of a container points at.
pub fn container_reference(pod: &Pod, container: &str) -> ObjectReference {
    let found = pod.spec.as_ref().and_then(|s| spec::find(s, container));
    let list = found.map_or(Kind::Own, |(kind, _)| kind).list();
    ObjectReference { field_path: Some(format!("spec.{list}{{{container}}}")), ..reference(pod) }
}

pub type SharedRef = Arc<Shared>;
