//! The kubelet's configuration as a file: `KubeletConfiguration` of `kubelet.config.k8s.io/v1beta1`, with drop-ins beside
//! it (KEP-3983). A field that upstream does not have is refused; one that changes nothing here is kept and told.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::Taint;
use krate_api::patch::merge;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::config::Config;

/// Upstream's defaults, and the names of all its fields.
const DEFAULTS: &str = include_str!("configuration/defaults.yaml");
const FIELDS: &str = include_str!("configuration/fields.txt");
const VERSION: &str = "kubelet.config.k8s.io/v1beta1";
const KIND: &str = "KubeletConfiguration";

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    #[error("failed to read kubelet config file {:?}, error: {error}", path.display().to_string())]
    File { path: PathBuf, error: std::io::Error },
    #[error("failed to load kubelet config file, path: {}, error: {why}", path.display())]
    Format { path: PathBuf, why: String },
    #[error("invalid configuration: {0}")]
    Value(String),
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
    if let Some(unknown) = fields.keys().find(|name| !FIELDS.split_whitespace().any(|f| f == *name)) {
        return Err(failed(format!("strict decoding error: unknown field {unknown:?}")));
    }
    Ok(value)
}

/// What this kubelet heeds, typed.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Heeded {
    address: IpAddr,
    port: u16,
    healthz_port: u16,
    healthz_bind_address: IpAddr,
    #[serde(default)]
    tls_cert_file: String,
    #[serde(default)]
    tls_private_key_file: String,
    #[serde(default)]
    cluster_domain: String,
    #[serde(default, rename = "clusterDNS")]
    cluster_dns: Vec<IpAddr>,
    resolv_conf: PathBuf,
    #[serde(default)]
    cgroup_root: String,
    max_pods: u32,
    container_runtime_endpoint: String,
    #[serde(default)]
    register_with_taints: Vec<Taint>,
    pod_logs_dir: PathBuf,
    #[serde(default)]
    static_pod_path: String,
    #[serde(default, rename = "staticPodURL")]
    static_pod_url: String,
    #[serde(default, rename = "staticPodURLHeader")]
    static_pod_url_header: std::collections::BTreeMap<String, Vec<String>>,
    file_check_frequency: String,
    http_check_frequency: String,
    enable_server: bool,
    enable_debugging_handlers: bool,
}

impl Configuration {
    /// Reads a file and then the drop-ins of a directory: files that end in `.conf`, in the order of their names. Lists
    /// replace one another.
    ///
    /// # Errors
    /// One of them cannot be read, or is no configuration of a kubelet.
    pub fn load(file: Option<&Path>, drop_ins: Option<&Path>) -> Result<Self, ConfigurationError> {
        let mut made = Configuration::default();
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

    fn text(&self, path: &str) -> &str {
        self.0.pointer(path).and_then(Value::as_str).unwrap_or_default()
    }

    fn flag(&self, path: &str) -> bool {
        self.0.pointer(path).and_then(Value::as_bool).unwrap_or_default()
    }

    /// Makes a kubelet heed this.
    ///
    /// # Errors
    /// A value is of another type than its field, or names a file that cannot be read.
    pub fn apply(self, config: &mut Config) -> Result<(), ConfigurationError> {
        let heeded: Heeded = typed(&self.0)?;
        let read = |path: &str| -> Result<String, ConfigurationError> {
            let failed = |error| ConfigurationError::File { path: path.into(), error };
            std::fs::read_to_string(path).map_err(failed)
        };
        match (heeded.tls_cert_file.as_str(), heeded.tls_private_key_file.as_str()) {
            ("", "") => {}
            (certificate, key) => (config.tls_cert, config.tls_key) = (read(certificate)?, read(key)?),
        }
        let client_ca = self.text("/authentication/x509/clientCAFile");
        if !client_ca.is_empty() {
            config.client_ca = read(client_ca)?;
        }
        config.anonymous_auth = self.flag("/authentication/anonymous/enabled");
        config.token_webhook = self.flag("/authentication/webhook/enabled");
        config.always_allow = match self.text("/authorization/mode") {
            "AlwaysAllow" => true,
            "Webhook" => false,
            other => return Err(ConfigurationError::Value(format!("unknown authorization mode {other}"))),
        };
        let socket = heeded.container_runtime_endpoint;
        config.cri_socket = socket.strip_prefix("unix://").unwrap_or(&socket).into();
        (config.bind, config.port) = (heeded.address, heeded.port);
        let healthz = SocketAddr::new(heeded.healthz_bind_address, heeded.healthz_port);
        config.healthz = (healthz.port() != 0).then_some(healthz);
        if !heeded.cluster_domain.is_empty() {
            config.cluster_domain = heeded.cluster_domain;
        }
        config.cluster_dns = heeded.cluster_dns;
        config.resolv_conf = heeded.resolv_conf;
        if !heeded.cgroup_root.is_empty() {
            config.cgroup_root = heeded.cgroup_root;
        }
        config.max_pods = heeded.max_pods;
        config.taints = heeded.register_with_taints;
        config.log_dir = heeded.pod_logs_dir;
        config.serve = heeded.enable_server;
        config.debugging_handlers = heeded.enable_debugging_handlers;
        config.static_pods = StaticPods {
            path: Some(heeded.static_pod_path).filter(|p| !p.is_empty()).map(PathBuf::from),
            url: Some(heeded.static_pod_url).filter(|u| !u.is_empty()),
            headers: heeded.static_pod_url_header,
            look: go_duration("fileCheckFrequency", &heeded.file_check_frequency)?,
            ask: go_duration("httpCheckFrequency", &heeded.http_check_frequency)?,
        };
        config.configuration = self;
        Ok(())
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
            "resolvConf": config.resolv_conf.display().to_string(),
            "podLogsDir": config.log_dir.display().to_string(),
            "containerRuntimeEndpoint": format!("unix://{}", config.cri_socket.display()),
        });
        merge(&mut told, fields);
        told
    }
}

fn typed<T: DeserializeOwned>(value: &Value) -> Result<T, ConfigurationError> {
    serde_json::from_value(value.clone()).map_err(|e| ConfigurationError::Value(e.to_string()))
}

/// Pods that are described to the kubelet itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StaticPods {
    /// A file, or a directory of files.
    pub path: Option<PathBuf>,
    pub url: Option<String>,
    /// Headers of the requests to the URL.
    pub headers: std::collections::BTreeMap<String, Vec<String>>,
    /// How often files are looked at without anything having been heard of them, and the URL is asked.
    pub look: Duration,
    pub ask: Duration,
}

/// A duration as Go writes it: `1h2m3.5s`, `100ms`.
fn go_duration(field: &str, text: &str) -> Result<Duration, ConfigurationError> {
    let wrong = || ConfigurationError::Value(format!("{field}: time: invalid duration {text:?}"));
    let (mut total, mut rest) = (0.0, text);
    while !rest.is_empty() && rest != "0" {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        let units = &rest[digits..];
        let end = units.find(|c: char| c.is_ascii_digit()).unwrap_or(units.len());
        total += number
            * match &units[..end] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return Err(wrong()),
            };
        rest = &units[end..];
    }
    Duration::try_from_secs_f64(total).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn what_is_wrong_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.yaml");
        let head = format!("apiVersion: {VERSION}\nkind: {KIND}\n");
        for (text, said) in [
            (format!("{head}maxPod: 1\n"), "unknown field \"maxPod\""),
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
        ] {
            let mut made = Configuration::default();
            made.set(fields);
            let error = made.apply(&mut config()).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn durations_are_gos() {
        for (text, seconds) in [("1h2m3.5s", 3723.5), ("100ms", 0.1), ("0s", 0.0), ("0", 0.0)] {
            assert_eq!(go_duration("x", text).unwrap(), Duration::from_secs_f64(seconds), "{text}");
        }
    }
}
