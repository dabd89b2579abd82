//! What of a configuration this kubelet heeds, typed, and how it is heeded.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Taint;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use krate_api::Quantity;
use krate_pki::Source;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::gates::{self, Features};
use super::{Configuration, ConfigurationError, check};
use crate::backoff::go_duration;
use crate::certificates::Serving;
use crate::config::{Config, Enforce, LogPolicy, ShutdownPeriod};
use crate::cpus::{CpuOptions, CpuPolicy, CpuSet};
use crate::eviction::EvictionConfig;
use crate::garbage::ImagePolicy;
use crate::memory::{MemoryPolicy, Reservation};
use crate::topology::{Policy, TopologyPolicy, parse_options};
use crate::users::UNIT;

/// A duration as Go writes it, with its sign: what it must not be is said by [`check`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(pub SignedDuration);

impl GoDuration {
    /// What is left of it when it must not be negative.
    fn get(self) -> Duration {
        Duration::try_from(self.0).unwrap_or_default()
    }
}

impl std::fmt::Display for GoDuration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let size = self.0.unsigned_abs();
        if self.0.is_negative() {
            f.write_str("-")?;
        }
        match size.as_millis() {
            0 => f.write_str("0s"),
            parts @ 1..1000 => write!(f, "{parts}ms"),
            _ => f.write_str(&go_duration(size)),
        }
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let parsed = krate_api::duration::parse(&text);
        parsed.map(GoDuration).ok_or_else(|| D::Error::custom(format!("time: invalid duration {text:?}")))
    }
}

/// The fields, under upstream's names.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Heeded {
    pub address: IpAddr,
    pub port: u16,
    pub healthz_port: u16,
    healthz_bind_address: IpAddr,
    #[serde(default)]
    tls_cert_file: String,
    #[serde(default)]
    tls_private_key_file: String,
    #[serde(default, rename = "serverTLSBootstrap")]
    pub server_tls_bootstrap: bool,
    #[serde(default)]
    rotate_certificates: bool,
    authentication: Authentication,
    authorization: Authorization,
    enable_server: bool,
    enable_debugging_handlers: bool,
    enable_system_log_handler: bool,

    register_node: bool,
    #[serde(default)]
    register_with_taints: Vec<Taint>,
    #[serde(default, rename = "providerID")]
    provider_id: String,
    pub node_lease_duration_seconds: i32,
    pub node_status_max_images: i32,
    node_status_update_frequency: GoDuration,
    node_status_report_frequency: GoDuration,
    sync_frequency: GoDuration,
    volume_stats_agg_period: GoDuration,

    #[serde(default)]
    cluster_domain: String,
    #[serde(default, rename = "clusterDNS")]
    cluster_dns: Vec<IpAddr>,
    resolv_conf: PathBuf,
    pub max_pods: i32,
    #[serde(default)]
    pub pods_per_core: i32,
    pod_pids_limit: i64,
    seccomp_default: bool,
    #[serde(default)]
    allowed_unsafe_sysctls: Vec<String>,
    pub crash_loop_back_off: CrashLoopBackOff,
    #[serde(default)]
    static_pod_path: String,
    #[serde(default, rename = "staticPodURL")]
    static_pod_url: String,
    #[serde(default, rename = "staticPodURLHeader")]
    static_pod_url_header: BTreeMap<String, Vec<String>>,
    file_check_frequency: GoDuration,
    http_check_frequency: GoDuration,

    #[serde(default)]
    cgroup_root: String,
    #[serde(rename = "cgroupsPerQOS")]
    pub cgroups_per_qos: bool,
    #[serde(default)]
    pub system_reserved: BTreeMap<String, String>,
    #[serde(default)]
    pub kube_reserved: BTreeMap<String, String>,
    #[serde(default)]
    pub system_reserved_cgroup: String,
    #[serde(default)]
    pub kube_reserved_cgroup: String,
    pub enforce_node_allocatable: Vec<String>,

    #[serde(default)]
    feature_gates: BTreeMap<String, bool>,
    /// What the gates make of the features.
    #[serde(skip)]
    pub features: Features,
    cpu_manager_policy: String,
    #[serde(default)]
    cpu_manager_policy_options: BTreeMap<String, String>,
    cpu_manager_reconcile_period: GoDuration,
    #[serde(default, rename = "reservedSystemCPUs")]
    pub reserved_system_cpus: String,
    pub topology_manager_policy: String,
    pub topology_manager_scope: String,
    #[serde(default)]
    topology_manager_policy_options: BTreeMap<String, String>,
    memory_manager_policy: String,
    #[serde(default)]
    pub reserved_memory: Vec<ReservedMemory>,

    pub container_runtime_endpoint: String,
    #[serde(default)]
    image_service_endpoint: String,
    runtime_request_timeout: GoDuration,
    pub serialize_image_pulls: bool,
    pub max_parallel_image_pulls: Option<i32>,
    #[serde(rename = "registryPullQPS")]
    pub registry_pull_qps: i32,
    pub registry_burst: i32,
    fail_swap_on: bool,
    pub container_log_max_size: String,
    pub container_log_max_files: i32,
    pub container_log_max_workers: i32,
    pub container_log_monitor_interval: GoDuration,
    pub pod_logs_dir: PathBuf,

    #[serde(rename = "imageMinimumGCAge")]
    pub image_minimum_gc_age: GoDuration,
    #[serde(rename = "imageMaximumGCAge")]
    pub image_maximum_gc_age: GoDuration,
    #[serde(rename = "imageGCHighThresholdPercent")]
    pub image_gc_high_threshold_percent: i32,
    #[serde(rename = "imageGCLowThresholdPercent")]
    pub image_gc_low_threshold_percent: i32,

    eviction_hard: Option<BTreeMap<String, String>>,
    #[serde(default)]
    eviction_soft: BTreeMap<String, String>,
    #[serde(default)]
    eviction_soft_grace_period: BTreeMap<String, GoDuration>,
    #[serde(default)]
    eviction_minimum_reclaim: BTreeMap<String, String>,
    eviction_pressure_transition_period: GoDuration,
    #[serde(default)]
    eviction_max_pod_grace_period: i64,
    merge_default_eviction_settings: bool,

    #[serde(default)]
    pub user_namespaces: UserNamespaces,

    pub shutdown_grace_period: GoDuration,
    pub shutdown_grace_period_critical_pods: GoDuration,
    #[serde(default)]
    pub shutdown_grace_period_by_pod_priority: Vec<ShutdownPeriod>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UserNamespaces {
    pub ids_per_pod: Option<i64>,
}

/// What of a NUMA node's memory is not for pods.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReservedMemory {
    #[serde(default)]
    pub numa_node: u32,
    #[serde(default)]
    pub limits: BTreeMap<String, ApiQuantity>,
}

#[derive(Deserialize)]
struct Authentication {
    #[serde(default)]
    x509: X509,
    webhook: TokenWebhook,
    anonymous: Anonymous,
}

#[derive(Default, Deserialize)]
struct X509 {
    #[serde(default, rename = "clientCAFile")]
    client_ca_file: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TokenWebhook {
    enabled: bool,
    #[serde(rename = "cacheTTL")]
    cache_ttl: GoDuration,
}

#[derive(Deserialize)]
struct Anonymous {
    enabled: bool,
}

#[derive(Deserialize)]
struct Authorization {
    mode: String,
    webhook: AccessWebhook,
}

#[derive(Deserialize)]
struct AccessWebhook {
    #[serde(rename = "cacheAuthorizedTTL")]
    allowed: GoDuration,
    #[serde(rename = "cacheUnauthorizedTTL")]
    refused: GoDuration,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CrashLoopBackOff {
    pub max_container_restart_period: GoDuration,
}

impl Configuration {
    /// Makes a kubelet heed this. Thresholds of eviction that are not spoken of stay as they are.
    ///
    /// # Errors
    /// A value is of another type than its field or cannot be (upstream's messages, all of them), or names a file that
    /// cannot be read.
    pub fn apply(self, config: &mut Config) -> Result<(), ConfigurationError> {
        let mut heeded: Heeded = typed(&self.0)?;
        let gates = heeded.feature_gates.iter().map(|(name, on)| (name.as_str(), *on));
        heeded.features = Features::of(gates).map_err(ConfigurationError::Gates)?;
        let wrong = check::problems(&heeded);
        if !wrong.is_empty() {
            return Err(ConfigurationError::Values(wrong));
        }
        for remark in heeded.features.remarks(&gates::HEEDED) {
            tracing::warn!("{remark}");
        }
        config.eviction = heeded.eviction(&config.eviction);
        if let Err(error) = config.eviction.thresholds() {
            return Err(ConfigurationError::Values(vec![error.to_string()]));
        }
        heeded.access(config)?;
        heeded.node(config);
        heeded.resources(config);
        heeded.placement(config).map_err(|why| ConfigurationError::Values(vec![why]))?;
        heeded.runtime(config);
        config.trust_bundles = heeded.features.enabled(gates::TRUST_PROJECTION);
        config.pod_certificates = heeded.features.enabled(gates::POD_CERTIFICATE);
        heeded.pods(config);
        config.configuration = self;
        Ok(())
    }
}

fn typed<T: DeserializeOwned>(value: &Value) -> Result<T, ConfigurationError> {
    serde_json::from_value(value.clone())
        .map_err(|e| ConfigurationError::Values(vec![format!("invalid configuration: {e}")]))
}

fn read(path: &str) -> Result<String, ConfigurationError> {
    let failed = |error| ConfigurationError::File { path: path.into(), error };
    std::fs::read_to_string(path).map_err(failed)
}

fn socket(endpoint: &str) -> PathBuf {
    endpoint.strip_prefix("unix://").unwrap_or(endpoint).into()
}

impl Heeded {
    /// Where is served, and to whom.
    fn access(&self, config: &mut Config) -> Result<(), ConfigurationError> {
        let files = match (self.tls_cert_file.as_str(), self.tls_private_key_file.as_str()) {
            ("", "") => None,
            (certificate, key) => Some((certificate.into(), key.into())),
        };
        if self.server_tls_bootstrap {
            config.serving = Serving::Requested { directory: config.cert_dir.clone(), files };
        } else if let Some((certificate, key)) = files {
            config.serving = Serving::From(Source::Files { certificate, key });
        }
        config.rotate_certificates = self.rotate_certificates;
        let client_ca = &self.authentication.x509.client_ca_file;
        if !client_ca.is_empty() {
            config.client_ca = read(client_ca)?;
            config.client_ca_file = Some(client_ca.into());
        }
        config.anonymous_auth = self.authentication.anonymous.enabled;
        config.token_webhook = self.authentication.webhook.enabled;
        config.token_ttl = self.authentication.webhook.cache_ttl.get();
        config.always_allow = match self.authorization.mode.as_str() {
            "AlwaysAllow" => true,
            "Webhook" => false,
            other => {
                let said = format!("unknown authorization mode {other}");
                return Err(ConfigurationError::Values(vec![said]));
            }
        };
        config.allowed_ttl = self.authorization.webhook.allowed.get();
        config.refused_ttl = self.authorization.webhook.refused.get();
        (config.bind, config.port) = (self.address, self.port);
        let healthz = SocketAddr::new(self.healthz_bind_address, self.healthz_port);
        config.healthz = (healthz.port() != 0).then_some(healthz);
        config.serve = self.enable_server;
        config.debugging_handlers = self.enable_debugging_handlers;
        config.system_logs = self.enable_system_log_handler;
        Ok(())
    }

    fn node(&self, config: &mut Config) {
        config.register = self.register_node;
        config.taints.clone_from(&self.register_with_taints);
        config.provider_id = Some(self.provider_id.clone()).filter(|id| !id.is_empty());
        config.lease_seconds = self.node_lease_duration_seconds;
        config.told_images = usize::try_from(self.node_status_max_images).ok();
        config.status_look = self.node_status_update_frequency.get();
        config.status_tell = self.node_status_report_frequency.get();
        config.sync = self.sync_frequency.get();
        config.volume_stats =
            Duration::try_from(self.volume_stats_agg_period.0).ok().filter(|age| !age.is_zero());
    }

    fn resources(&self, config: &mut Config) {
        let of_cores = std::thread::available_parallelism()
            .map_or(1, |n| i32::try_from(n.get()).unwrap_or(1))
            * self.pods_per_core;
        let most = if of_cores > 0 { self.max_pods.min(of_cores) } else { self.max_pods };
        config.max_pods = u32::try_from(most).unwrap_or_default();
        config.pod_pids_limit = Some(self.pod_pids_limit).filter(|limit| *limit > 0);
        config.system_reserved.clone_from(&self.system_reserved);
        config.kube_reserved.clone_from(&self.kube_reserved);
        if !self.cgroup_root.is_empty() {
            config.cgroup_root.clone_from(&self.cgroup_root);
        }
        let asked = |name: &str| self.enforce_node_allocatable.iter().any(|asked| asked == name);
        let of_group = |name: &str, group: &str| {
            let compressible = asked(&format!("{name}-compressible"));
            (asked(name) || compressible).then(|| (group.to_owned(), compressible))
        };
        config.enforce = Enforce {
            pods: asked("pods"),
            system: of_group("system-reserved", &self.system_reserved_cgroup),
            kube: of_group("kube-reserved", &self.kube_reserved_cgroup),
        };
        config.image_gc = ImagePolicy {
            high_threshold_percent: u8::try_from(self.image_gc_high_threshold_percent).unwrap_or(100),
            low_threshold_percent: u8::try_from(self.image_gc_low_threshold_percent).unwrap_or(100),
            minimum_age: self.image_minimum_gc_age.get(),
            maximum_age: self.image_maximum_gc_age.get(),
        };
    }

    /// What a pod is given for itself alone, and how near it is to each other.
    fn placement(&self, config: &mut Config) -> Result<(), String> {
        let (is_static, wishes) = (self.cpu_manager_policy == "static", &self.cpu_manager_policy_options);
        match self.cpu_manager_policy.as_str() {
            "static" => {}
            "none" | "" if wishes.is_empty() => {}
            "none" | "" => {
                let wishes: Vec<String> = wishes.iter().map(|(k, v)| format!("{k}:{v}")).collect();
                return Err(format!(
                    "new none policy error: None policy: received unsupported options=map[{}]",
                    wishes.join(" ")
                ));
            }
            other => return Err(format!("unknown policy: {other:?}")),
        }
        let options = CpuOptions::parse(wishes, &self.features)
            .map_err(|why| format!("new static policy error: {why}"))?;
        let named = Some(&self.reserved_system_cpus).filter(|set| !set.is_empty());
        let reserved: Option<CpuSet> = named.and_then(|set| set.parse().ok());
        if let Some(reserved) = &reserved {
            // Which they are says how many they are.
            config.system_reserved.insert("cpu".to_owned(), reserved.len().to_string());
            config.kube_reserved.remove("cpu");
        }
        let look = self.cpu_manager_reconcile_period.get();
        config.cpus = CpuPolicy { is_static, reserved, look, options };
        let policy = Policy::NAMES.iter().find(|(name, _)| *name == self.topology_manager_policy);
        let mut topology = TopologyPolicy {
            policy: policy.map(|(_, policy)| *policy).unwrap_or_default(),
            whole_pods: self.topology_manager_scope == "pod",
            ..TopologyPolicy::default()
        };
        if topology.policy != Policy::None {
            parse_options(&self.topology_manager_policy_options, &mut topology)?;
        }
        config.topology = topology;
        let reserved = self.reserved_memory.iter().map(|reserved| {
            let bytes =
                |q: &ApiQuantity| Quantity::parse(&q.0).map_or(0, |q| q.value()).max(0).unsigned_abs();
            let limits = reserved.limits.iter().map(|(kind, q)| (kind.clone(), bytes(q))).collect();
            Reservation { node: reserved.numa_node, limits }
        });
        config.memory = MemoryPolicy {
            is_static: match self.memory_manager_policy.as_str() {
                "Static" => true,
                "None" | "" => false,
                other => return Err(format!("unknown policy: {other:?}")),
            },
            reserved: reserved.collect(),
        };
        Ok(())
    }

    fn eviction(&self, before: &EvictionConfig) -> EvictionConfig {
        let mut hard = match &self.eviction_hard {
            Some(hard) => hard.clone(),
            None => before.hard.clone(),
        };
        if self.merge_default_eviction_settings {
            for (signal, value) in EvictionConfig::default().hard {
                hard.entry(signal).or_insert(value);
            }
        }
        let grace = self.eviction_soft_grace_period.iter();
        EvictionConfig {
            hard,
            soft: self.eviction_soft.clone(),
            soft_grace_period: grace.map(|(signal, grace)| (signal.clone(), grace.get())).collect(),
            minimum_reclaim: self.eviction_minimum_reclaim.clone(),
            max_pod_grace_period: self.eviction_max_pod_grace_period,
            pressure_transition_period: self.eviction_pressure_transition_period.get(),
        }
    }

    fn runtime(&self, config: &mut Config) {
        config.cri_socket = socket(&self.container_runtime_endpoint);
        let images = Some(self.image_service_endpoint.as_str()).filter(|endpoint| !endpoint.is_empty());
        config.image_socket = images.map(socket);
        config.runtime_patience = self.runtime_request_timeout.get();
        let most = self.max_parallel_image_pulls.and_then(|most| usize::try_from(most).ok());
        config.parallel_pulls = if self.serialize_image_pulls { Some(1) } else { most };
        // Upstream: a rate of zero is no limit.
        config.pull_rate = (self.registry_pull_qps > 0)
            .then(|| (f64::from(self.registry_pull_qps), f64::from(self.registry_burst)));
        config.fail_swap_on = self.fail_swap_on;
        config.log_dir.clone_from(&self.pod_logs_dir);
        let size = Quantity::parse(&self.container_log_max_size).map_or(0, |size| size.value());
        config.log_policy = LogPolicy {
            // Upstream: without a size that limits, nothing is put aside.
            max_size: u64::try_from(size).ok().filter(|size| *size > 0),
            max_files: usize::try_from(self.container_log_max_files).unwrap_or_default(),
            interval: self.container_log_monitor_interval.get(),
        };
    }

    fn pods(self, config: &mut Config) {
        if !self.cluster_domain.is_empty() {
            config.cluster_domain = self.cluster_domain;
        }
        config.cluster_dns = self.cluster_dns;
        config.resolv_conf = self.resolv_conf;
        config.seccomp_default = self.seccomp_default;
        let ids = self.user_namespaces.ids_per_pod.and_then(|ids| u32::try_from(ids).ok());
        config.ids_per_pod = ids.unwrap_or(UNIT);
        config.allowed_unsafe_sysctls = self.allowed_unsafe_sysctls;
        config.longest_backoff = self.crash_loop_back_off.max_container_restart_period.get();
        config.static_pods = StaticPods {
            path: Some(self.static_pod_path).filter(|p| !p.is_empty()).map(PathBuf::from),
            url: Some(self.static_pod_url).filter(|u| !u.is_empty()),
            headers: self.static_pod_url_header,
            look: self.file_check_frequency.get(),
            ask: self.http_check_frequency.get(),
        };
        let (all, critical) = (
            self.shutdown_grace_period.get().as_secs(),
            self.shutdown_grace_period_critical_pods.get().as_secs(),
        );
        config.shutdown = match self.shutdown_grace_period_by_pod_priority {
            own if !own.is_empty() => own,
            _ if all == 0 => Vec::new(),
            _ => ShutdownPeriod::of_two(all, critical),
        };
        config.shutdown.sort_by_key(|period| period.priority);
    }
}

/// Pods that are described to the kubelet itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StaticPods {
    /// A file, or a directory of files.
    pub path: Option<PathBuf>,
    pub url: Option<String>,
    /// Headers of the requests to the URL.
    pub headers: BTreeMap<String, Vec<String>>,
    /// How often files are looked at without anything having been heard of them, and the URL is asked.
    pub look: Duration,
    pub ask: Duration,
}
