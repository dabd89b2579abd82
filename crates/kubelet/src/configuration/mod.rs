//! The kubelet's configuration as a file: `KubeletConfiguration` of `kubelet.config.k8s.io/v1beta1`, with drop-ins beside
//! it (KEP-3983). A field that upstream does not have is refused; one that changes nothing here is kept and told.

mod check;
mod fields;
pub mod gates;
mod heeded;

use std::path::{Path, PathBuf};

use krate_api::patch::merge;
use serde_json::{Value, json};

use crate::config::Config;

pub use heeded::StaticPods;

/// Upstream's defaults, where they are known.
const DEFAULTS: &str = include_str!("defaults.yaml");
const VERSION: &str = "kubelet.config.k8s.io/v1beta1";
const KIND: &str = "KubeletConfiguration";

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    #[error("failed to read kubelet config file {:?}, error: {error}", path.display().to_string())]
    File { path: PathBuf, error: std::io::Error },
    #[error("failed to load kubelet config file, path: {}, error: {why}", path.display())]
    Format { path: PathBuf, why: String },
    #[error("failed to set feature gates from initial flags-based config: {0}")]
    Gates(String),
    #[error("failed to validate kubelet configuration, error: {}", aggregate(.0))]
    Values(Vec<String>),
}

/// Several errors in one line, as upstream writes them.
fn aggregate(all: &[String]) -> String {
    match all {
        [one] => one.clone(),
        several => format!("[{}]", several.join(", ")),
    }
}

/// A configuration as it is written, over upstream's defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct Configuration(Value);

impl Default for Configuration {
    fn default() -> Self {
        Configuration(serde_yaml_ng::from_str(DEFAULTS).unwrap_or(Value::Null))
    }
}

fn document(path: &Path, whole: bool) -> Result<Value, ConfigurationError> {
    let failed = |why: String| ConfigurationError::Format { path: path.to_owned(), why };
    let text = std::fs::read_to_string(path)
        .map_err(|error| ConfigurationError::File { path: path.to_owned(), error })?;
    let value: Value = serde_yaml_ng::from_str(&text).map_err(|e| failed(e.to_string()))?;
    let Some(fields) = value.as_object() else { return Err(failed("it is no object".to_owned())) };
    // A drop-in may leave out what it is; it must not say that it is something else.
    for (field, expected) in [("apiVersion", VERSION), ("kind", KIND)] {
        match fields.get(field).and_then(Value::as_str) {
            Some(said) if said == expected => {}
            None if !whole => {}
            said => {
                let said = said.unwrap_or_default();
                return Err(failed(format!("{field} is {said:?} and must be {expected:?}")));
            }
        }
    }
    let unknown = fields::unknown(&value);
    if !unknown.is_empty() {
        let named: Vec<String> = unknown.iter().map(|name| format!("unknown field {name:?}")).collect();
        return Err(failed(format!("strict decoding error: {}", named.join(", "))));
    }
    Ok(value)
}

impl Configuration {
    /// Reads a file and then the drop-ins of a directory: files that end in `.conf`, in the order of their names. Lists
    /// replace one another.
    ///
    /// # Errors
    /// One of them cannot be read, or is no configuration of a kubelet.
    pub fn load(file: Option<&Path>, drop_ins: Option<&Path>) -> Result<Self, ConfigurationError> {
        Configuration::default().over(file, drop_ins)
    }

    /// The same over this one instead of upstream's defaults.
    ///
    /// # Errors
    /// As of [`load`](Self::load).
    pub fn over(self, file: Option<&Path>, drop_ins: Option<&Path>) -> Result<Self, ConfigurationError> {
        let mut made = self;
        if let Some(file) = file {
            merge(&mut made.0, document(file, true)?);
        }
        if let Some(directory) = drop_ins {
            let failed = |error| ConfigurationError::File { path: directory.to_owned(), error };
            let entries = std::fs::read_dir(directory).map_err(failed)?;
            let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
            files.retain(|path| path.extension().is_some_and(|e| e == "conf"));
            files.sort();
            for file in files {
                merge(&mut made.0, document(&file, false)?);
            }
        }
        Ok(made)
    }

    /// Sets fields, as flags do: these go before files.
    pub fn set(&mut self, fields: Value) {
        merge(&mut self.0, fields);
    }

    /// All of it, with what is in force.
    pub fn told(&self, config: &Config) -> Value {
        let mut told = self.0.clone();
        let dns: Vec<String> = config.cluster_dns.iter().map(ToString::to_string).collect();
        let fields = json!({
            "address": config.bind.to_string(),
            "port": config.port,
            "clusterDNS": dns,
            "clusterDomain": config.cluster_domain,
            "cgroupRoot": config.cgroup_root,
            "maxPods": config.max_pods,
            "evictionHard": config.eviction.hard,
            "resolvConf": config.resolv_conf.display().to_string(),
            "podLogsDir": config.log_dir.display().to_string(),
            "containerRuntimeEndpoint": format!("unix://{}", config.cri_socket.display()),
        });
        merge(&mut told, fields);
        told
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::cpus::CpuOptions;
    use crate::memory::{MemoryPolicy, Reservation};
    use crate::topology::{Policy, TopologyPolicy};

    fn config() -> Config {
        Config::new("node", "10.0.0.1".parse().unwrap(), "/tmp/x")
    }

    #[test]
    fn drop_ins_go_over_the_file_and_flags_over_both() {
        let directory = tempfile::tempdir().unwrap();
        let (file, drop_ins) = (directory.path().join("config.yaml"), directory.path().join("conf.d"));
        std::fs::create_dir(&drop_ins).unwrap();
        let head = format!("apiVersion: {VERSION}\nkind: {KIND}\n");
        std::fs::write(&file, format!("{head}maxPods: 20\nclusterDNS: [10.0.0.10]\nport: 1\n")).unwrap();
        std::fs::write(drop_ins.join("10-a.conf"), "maxPods: 30\nclusterDNS: [10.0.0.11]\n").unwrap();
        std::fs::write(drop_ins.join("20-b.conf"), "maxPods: 40\n").unwrap();
        std::fs::write(drop_ins.join("30-c.yaml"), "maxPods: 50\n").unwrap();
        let mut made = Configuration::load(Some(&file), Some(&drop_ins)).unwrap();
        made.set(json!({"port": 2, "authentication": {"anonymous": {"enabled": true}}}));
        let mut config = config();
        made.apply(&mut config).unwrap();
        assert_eq!((config.max_pods, config.port, config.anonymous_auth), (40, 2, true));
        assert_eq!(config.cluster_dns, ["10.0.0.11".parse::<IpAddr>().unwrap()]);
        assert!(config.token_webhook && !config.always_allow, "upstream's defaults");
        let told = config.told();
        assert_eq!((&told["maxPods"], &told["kind"]), (&json!(40), &json!(KIND)));
        assert_eq!(told["evictionPressureTransitionPeriod"], "5m0s", "what changes nothing is told too");
    }

    #[test]
    fn certificates_are_asked_for_or_read_from_files() {
        let serving = |fields: Value| {
            let (mut made, mut config) = (Configuration::default(), config());
            made.set(fields);
            made.apply(&mut config).unwrap();
            (format!("{:?}", config.serving), config.rotate_certificates)
        };
        let (own, rotates) = serving(json!({}));
        assert!(own.contains("/tmp/x/pki/kubelet.crt") && !rotates, "{own}");
        let (files, _) = serving(json!({"tlsCertFile": "/a", "tlsPrivateKeyFile": "/b"}));
        assert_eq!(files, "From(Files { certificate: \"/a\", key: \"/b\" })");
        let (asked, rotates) = serving(json!({"serverTLSBootstrap": true, "rotateCertificates": true}));
        assert_eq!(asked, "Requested { directory: \"/tmp/x/pki\", files: None }");
        assert!(rotates);
    }

    #[test]
    fn what_lies_together_is_configured() {
        let mut made = Configuration::default();
        made.set(json!({
            "featureGates": {"CPUManagerPolicyAlphaOptions": true},
            "cpuManagerPolicy": "static",
            "cpuManagerPolicyOptions": {"align-by-socket": "true", "full-pcpus-only": "true"},
            "reservedSystemCPUs": "0-1",
            "topologyManagerPolicy": "restricted",
            "topologyManagerScope": "pod",
            "memoryManagerPolicy": "Static",
            "reservedMemory": [{"numaNode": 1, "limits": {"memory": "1Gi", "hugepages-2Mi": "4Mi"}}],
            "topologyManagerPolicyOptions": {"prefer-closest-numa-nodes": "true", "max-allowable-numa-nodes": "9"},
        }));
        let mut config = config();
        made.apply(&mut config).unwrap();
        let options = CpuOptions { by_socket: true, full_cores: true, ..CpuOptions::default() };
        assert_eq!((config.cpus.is_static, config.cpus.options), (true, options));
        assert_eq!(config.system_reserved["cpu"], "2");
        let limits = [("memory".to_owned(), 1 << 30), ("hugepages-2Mi".to_owned(), 4 << 20)].into();
        let reserved = vec![Reservation { node: 1, limits }];
        assert_eq!(config.memory, MemoryPolicy { is_static: true, reserved });
        assert_eq!(
            config.topology,
            TopologyPolicy {
                policy: Policy::Restricted,
                whole_pods: true,
                prefer_closest: true,
                max_nodes: 9
            }
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.yaml");
        let head = format!("apiVersion: {VERSION}\nkind: {KIND}\n");
        for (text, said) in [
            (format!("{head}maxPod: 1\n"), "unknown field \"maxPod\""),
            (
                format!(
                    "{head}authentication: {{x509: {{ca: x}}}}\nshutdownGracePeriodByPodPriority: [{{prio: 1}}]\n"
                ),
                "unknown field \"authentication.x509.ca\", unknown field \"shutdownGracePeriodByPodPriority[0].prio\"",
            ),
            ("kind: Pod\napiVersion: v1\n".to_owned(), "apiVersion is \"v1\""),
            (format!("{head}maxPods: [\n"), "failed to load kubelet config file"),
        ] {
            std::fs::write(&file, text).unwrap();
            let error = Configuration::load(Some(&file), None).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        for (fields, said) in [
            (json!({"maxPods": "many"}), "invalid type"),
            (json!({"authorization": {"mode": "Never"}}), "unknown authorization mode Never"),
            (json!({"fileCheckFrequency": "often"}), "invalid duration \"often\""),
            (json!({"evictionHard": {"memory.free": "1"}}), "unsupported eviction signal memory.free"),
            (json!({"systemReserved": {"gpu": "1"}}), "cannot reserve \"gpu\" resource"),
            (
                json!({"registryBurst": -1}),
                "registryBurst (--registry-burst) -1 must not be a negative number",
            ),
            (json!({"imageGCLowThresholdPercent": 90}), "90 must be less than imageGCHighThresholdPercent"),
            (
                json!({"enforceNodeAllocatable": ["system-reserved"]}),
                "systemReservedCgroup (--system-reserved-cgroup) must",
            ),
            (
                json!({"crashLoopBackOff": {"maxContainerRestartPeriod": "10m"}}),
                "must be set between 1s and 300s",
            ),
            (json!({"cpuManagerPolicy": "greedy"}), "unknown policy: \"greedy\""),
            (
                json!({"cpuManagerPolicyOptions": {"full-pcpus-only": "true"}}),
                "None policy: received unsupported options=map[full-pcpus-only:true]",
            ),
            (
                json!({"cpuManagerPolicy": "static", "cpuManagerPolicyOptions": {"align-by-socket": "true"}}),
                "Alpha-level Options not enabled",
            ),
            (
                json!({"topologyManagerPolicy": "strict"}),
                "topologyManagerPolicy (--topology-manager-policy) \"strict\" must be one of: \
                 [\"none\" \"best-effort\" \"restricted\" \"single-numa-node\"]",
            ),
            (json!({"memoryManagerPolicy": "BestEffort"}), "unknown policy: \"BestEffort\""),
            (
                json!({"reservedMemory": [{"numaNode": 1, "limits": {"cpu": "1"}}]}),
                "the limit type \"cpu\" for NUMA node 1 is not supported, only [memory hugepages-<HugePageSize>] is",
            ),
            (
                json!({"reservedMemory": [{"limits": {"memory": "0"}}]}),
                "reserved memory may not be zero for NUMA node 0 and resource \"memory\"",
            ),
            (
                json!({"reservedMemory": [{"limits": {"memory": "1"}}, {"limits": {"memory": "1"}}]}),
                "duplicate value for NUMA node 0 and resource \"memory\"",
            ),
            (
                json!({"serverTLSBootstrap": true, "featureGates": {"RotateKubeletServerCertificate": false}}),
                "serverTLSBootstrap true requires feature gate RotateKubeletServerCertificate",
            ),
            (
                json!({"featureGates": {"NoSuch": true}}),
                "failed to set feature gates from initial flags-based config: unrecognized feature gate: NoSuch",
            ),
            (
                json!({"featureGates": {"ClusterTrustBundleProjection": true}}),
                "failed to set feature gates from initial flags-based config: ClusterTrustBundleProjection is enabled",
            ),
            (json!({"userNamespaces": {"idsPerPod": 1}}), "idsPerPod must not be less than 65536"),
            (json!({"userNamespaces": {"idsPerPod": 65537}}), "idsPerPod must be a multiple of 65536"),
            (json!({"userNamespaces": {"idsPerPod": 4_294_967_296i64}}), "must not be more than 4294967295"),
            (json!({"topologyManagerScope": "node"}), "\"node\" must be one of: \"container\", or \"pod\""),
            (
                json!({"topologyManagerPolicy": "restricted", "topologyManagerPolicyOptions": {"x": "1"}}),
                "unknown Topology Manager Policy option: \"x\"",
            ),
        ] {
            let mut made = Configuration::default();
            made.set(fields);
            let error = made.apply(&mut config()).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
