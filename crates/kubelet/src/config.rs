//! What the kubelet is told when it starts.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::Taint;
use krate_api::Quantity;
use krate_pki::{Current, Source};

use crate::certificates::Serving;
use crate::configuration::{Configuration, StaticPods};
use crate::cpus::CpuPolicy;
use crate::eviction::EvictionConfig;
use crate::garbage::ImagePolicy;
use crate::memory::MemoryPolicy;
use crate::providers::Providers;
use crate::shutdown::LogindConfig;
use crate::topology::TopologyPolicy;
use crate::users::UNIT;

/// When a container's log is put aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogPolicy {
    /// Bytes of a file; none: it may grow for ever.
    pub max_size: Option<u64>,
    /// Files of a container, with the one that is written to.
    pub max_files: usize,
    /// How often they are looked at.
    pub interval: Duration,
}

impl Default for LogPolicy {
    fn default() -> Self {
        LogPolicy { max_size: Some(10 << 20), max_files: 5, interval: Duration::from_secs(10) }
    }
}

/// Whose use of the machine is bounded by what is reserved (upstream's `enforceNodeAllocatable`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enforce {
    /// All pods together have what is not reserved.
    pub pods: bool,
    /// The control group that has what is reserved for the system, and whether only the processor is bounded.
    pub system: Option<(String, bool)>,
    /// The same for Kubernetes' own processes.
    pub kube: Option<(String, bool)>,
}

/// How long pods from this priority on have to end when the machine shuts down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShutdownPeriod {
    pub priority: i32,
    #[serde(rename = "shutdownGracePeriodSeconds")]
    pub seconds: i64,
}

impl ShutdownPeriod {
    /// The last `critical` seconds of all are for critical pods.
    pub fn of_two(all: u64, critical: u64) -> Vec<Self> {
        let seconds = |seconds: u64| i64::try_from(seconds).unwrap_or(i64::MAX);
        vec![
            ShutdownPeriod { priority: 0, seconds: seconds(all.saturating_sub(critical)) },
            ShutdownPeriod { priority: crate::eviction::CRITICAL, seconds: seconds(critical) },
        ]
    }
}

/// Everything that the kubelet needs to know to run pods on this machine.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name of the Node object; also its label `kubernetes.io/hostname`.
    pub node_name: String,
    /// The address under which the node is known.
    pub node_ip: IpAddr,
    /// Where pods' volumes and files live (upstream: `/var/lib/kubelet`).
    pub root_dir: PathBuf,
    /// Where containers' logs live (upstream: `/var/log/pods`).
    pub log_dir: PathBuf,
    /// The unix socket of the container runtime.
    pub cri_socket: PathBuf,
    /// That of its images, if it is another.
    pub image_socket: Option<PathBuf>,
    /// How long the runtime may take for what it should do at once.
    pub runtime_patience: Duration,
    /// How many images are pulled at a time; none: as many as are asked for.
    pub parallel_pulls: Option<usize>,
    /// How many pulls may begin in a second, and at once after a pause; none: as many as are asked for.
    pub pull_rate: Option<(f64, f64)>,
    /// Whether a machine that swaps is refused.
    pub fail_swap_on: bool,
    /// Plugins that know accounts for registries.
    pub providers: Providers,
    pub log_policy: LogPolicy,
    /// The control group, absolute below every controller's root, that holds `kubepods`; of this node alone.
    pub cgroup_root: String,
    /// The address that the HTTPS server binds.
    pub bind: IpAddr,
    /// The port of the HTTPS server (upstream: 10250); 0 lets the kernel choose. The node's status tells which.
    pub port: u16,
    /// Where the server's certificate comes from.
    pub serving: Serving,
    /// Where certificates are kept that are asked for, or made (upstream: `/var/lib/kubelet/pki`).
    pub cert_dir: PathBuf,
    /// Whether the client certificate is renewed, where the kubelet itself sees to how it reaches the API server.
    pub rotate_certificates: bool,
    /// The client certificate, where it is renewed: what is told of it.
    pub identity: Option<Current>,
    /// The certificates that sign clients' certificates, PEM, and the file in which they may change.
    pub client_ca: String,
    pub client_ca_file: Option<PathBuf>,
    /// Whether who shows no certificate and no token is let in, as `system:anonymous`.
    pub anonymous_auth: bool,
    /// Whether the API server is asked whose a bearer token is.
    pub token_webhook: bool,
    /// How long it is remembered whose a token is, what was allowed, and what was refused.
    pub token_ttl: Duration,
    pub allowed_ttl: Duration,
    pub refused_ttl: Duration,
    /// Whether whoever is known may do all; else the API server is asked.
    pub always_allow: bool,
    /// Whether the HTTPS server is there, and whether it lets into containers.
    pub serve: bool,
    pub debugging_handlers: bool,
    /// Whether the node's own logs can be read there.
    pub system_logs: bool,
    /// Where health alone is served, without TLS (upstream: `127.0.0.1:10248`).
    pub healthz: Option<SocketAddr>,
    pub static_pods: StaticPods,
    /// What was configured by file, for who asks at `/configz`.
    pub configuration: Configuration,
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    /// The file from which names are resolved for pods that do not ask the cluster.
    pub resolv_conf: PathBuf,
    pub max_pods: u32,
    /// Processes that a pod may have; none: as many as the node.
    pub pod_pids_limit: Option<i64>,
    /// What is kept for the system and for Kubernetes' own processes, by resource.
    pub system_reserved: BTreeMap<String, String>,
    pub kube_reserved: BTreeMap<String, String>,
    pub enforce: Enforce,
    pub cpus: CpuPolicy,
    pub memory: MemoryPolicy,
    pub topology: TopologyPolicy,
    /// User and group ids of a pod that has users of its own.
    pub ids_per_pod: u32,
    /// Where the kernel tells what the machine's processors and memory are; elsewhere only to show how another is dealt
    /// with.
    pub sysfs: PathBuf,
    pub eviction: EvictionConfig,
    pub image_gc: ImagePolicy,
    /// Sysctls, or groups of them that end in `*`, that pods may set beside the safe ones.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// Whether containers that say nothing of it have the runtime's own filter of system calls (KEP-2413).
    pub seccomp_default: bool,
    /// How long a container that ends again and again waits at last.
    pub longest_backoff: Duration,
    /// How long pods have to end when the machine shuts down, by priority, the lowest first. Empty: they have no time.
    pub shutdown: Vec<ShutdownPeriod>,
    /// Who tells that the machine shuts down; another one only to show what is then done.
    pub logind: LogindConfig,
    /// Whether the node's object is made if it is not there, and what cloud the machine is of.
    pub register: bool,
    pub provider_id: Option<String>,
    /// Seconds after which a node that does not renew its lease is taken for dead.
    pub lease_seconds: i32,
    /// How many images the node's status tells of; none: all.
    pub told_images: Option<usize>,
    /// How often the node's status is looked at, and how often it is told without having changed.
    pub status_look: Duration,
    pub status_tell: Duration,
    /// How often volumes are looked at that may change while nobody tells (upstream's sync of a pod).
    pub sync: Duration,
    /// How old the figures of volumes may be; none: they are not asked for.
    pub volume_stats: Option<Duration>,
    /// Whether volumes may show ClusterTrustBundles, and certificates that are asked for by PodCertificateRequests.
    pub trust_bundles: bool,
    pub pod_certificates: bool,
    /// How long a DRA driver may be away until the ResourceSlices of its devices here go (upstream's 30 seconds).
    pub slices_kept: Duration,
    /// Labels and taints that the node is registered with.
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
}

impl Config {
    /// Upstream's defaults for a node of this name and address. Certificates and the runtime's socket are still to be
    /// filled in.
    pub fn new(node_name: impl Into<String>, node_ip: IpAddr, root_dir: impl Into<PathBuf>) -> Self {
        let root_dir = root_dir.into();
        let cert_dir = root_dir.join("pki");
        Config {
            node_name: node_name.into(),
            node_ip,
            log_dir: root_dir.join("logs"),
            root_dir,
            cri_socket: PathBuf::from("/run/containerd/containerd.sock"),
            image_socket: None,
            runtime_patience: Duration::from_mins(2),
            parallel_pulls: None,
            pull_rate: None,
            fail_swap_on: false,
            providers: Providers::default(),
            log_policy: LogPolicy::default(),
            cgroup_root: "/".to_owned(),
            bind: IpAddr::from([0, 0, 0, 0]),
            port: 10250,
            serving: Serving::From(Source::Files {
                certificate: cert_dir.join("kubelet.crt"),
                key: cert_dir.join("kubelet.key"),
            }),
            cert_dir,
            rotate_certificates: false,
            identity: None,
            client_ca: String::new(),
            client_ca_file: None,
            anonymous_auth: false,
            token_webhook: true,
            token_ttl: Duration::from_mins(2),
            allowed_ttl: Duration::from_mins(5),
            refused_ttl: Duration::from_secs(30),
            always_allow: false,
            serve: true,
            debugging_handlers: true,
            system_logs: true,
            healthz: None,
            static_pods: StaticPods::default(),
            configuration: Configuration::default(),
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            max_pods: 110,
            pod_pids_limit: None,
            system_reserved: BTreeMap::new(),
            kube_reserved: BTreeMap::new(),
            enforce: Enforce { pods: true, system: None, kube: None },
            cpus: CpuPolicy::default(),
            memory: MemoryPolicy::default(),
            topology: TopologyPolicy::default(),
            ids_per_pod: UNIT,
            sysfs: PathBuf::from("/sys"),
            eviction: EvictionConfig::default(),
            image_gc: ImagePolicy::default(),
            allowed_unsafe_sysctls: Vec::new(),
            seccomp_default: false,
            longest_backoff: Duration::from_mins(5),
            shutdown: Vec::new(),
            logind: LogindConfig::default(),
            register: true,
            provider_id: None,
            lease_seconds: 40,
            told_images: Some(50),
            status_look: Duration::from_secs(10),
            status_tell: Duration::from_mins(5),
            sync: Duration::from_mins(1),
            volume_stats: Some(Duration::from_mins(1)),
            trust_bundles: false,
            pod_certificates: false,
            slices_kept: Duration::from_secs(30),
            labels: BTreeMap::new(),
            taints: Vec::new(),
        }
    }

    /// The configuration that is in force, as a `KubeletConfiguration`.
    pub fn told(&self) -> serde_json::Value {
        self.configuration.told(self)
    }

    /// How much of a resource is kept from pods.
    pub fn reserved(&self, resource: &str) -> Quantity {
        let of = |all: &BTreeMap<String, String>| all.get(resource).and_then(|q| Quantity::parse(q).ok());
        let none = Quantity::new(0, krate_api::quantity::Format::BinarySi);
        let both = [of(&self.system_reserved), of(&self.kube_reserved)];
        both.into_iter().flatten().fold(none, |sum, more| sum.add(&more))
    }

    /// The directory of one pod.
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.root_dir.join("pods").join(uid)
    }
}
