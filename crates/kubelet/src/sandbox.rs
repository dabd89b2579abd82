//! A pod's sandbox, as the runtime is told it.

use std::collections::HashMap;
use std::path::PathBuf;

use k8s_cri::v1::{
    LinuxContainerResources, LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata, PortMapping,
    Protocol, UserNamespace,
};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use crate::config::Config;
use crate::naming::{self, is_host_network};
use crate::resources::{self, PERIOD};
use crate::{names, security};

/// Where a pod's logs are.
pub fn log_directory(config: &Config, pod: &Pod) -> PathBuf {
    config.log_dir.join(names::log_directory(pod))
}

/// The configuration of the sandbox, for the `attempt`th time that one is made.
pub fn config(
    config: &Config,
    pod: &Pod,
    attempt: u32,
    cgroup: String,
    host_dns: &k8s_cri::v1::DnsConfig,
    users: &UserNamespace,
) -> PodSandboxConfig {
    let mut labels: HashMap<String, String> = pod.labels().clone().into_iter().collect();
    labels.extend(names::pod_labels(pod));
    let mut annotations: HashMap<String, String> = pod.annotations().clone().into_iter().collect();
    annotations.entry(names::CONFIG_SOURCE.to_owned()).or_insert_with(|| "api".to_owned());
    let host_network = is_host_network(pod);
    let hostname = if host_network { String::new() } else { naming::hostname(pod, &config.cluster_domain).0 };
    let all = resources::pod(pod);
    let of_pod = LinuxContainerResources {
        cpu_period: PERIOD,
        cpu_quota: all.cpu_limit.map_or(0, resources::quota),
        cpu_shares: resources::shares(all.cpu_request),
        memory_limit_in_bytes: all.memory_limit.unwrap_or(0),
        ..Default::default()
    };
    let sysctls =
        pod.spec.as_ref().and_then(|s| s.security_context.as_ref()).and_then(|s| s.sysctls.as_ref());
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: pod.name_any(),
            uid: names::uid(pod),
            namespace: names::namespace(pod),
            attempt,
        }),
        hostname,
        log_directory: log_directory(config, pod).display().to_string(),
        dns_config: Some(naming::dns(pod, host_dns, &config.cluster_dns, &config.cluster_domain)),
        port_mappings: if host_network { Vec::new() } else { ports(pod) },
        labels,
        annotations,
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: cgroup,
            security_context: Some(security::sandbox(pod, users)),
            sysctls: sysctls.into_iter().flatten().map(|s| (s.name.clone(), s.value.clone())).collect(),
            resources: Some(of_pod),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn ports(pod: &Pod) -> Vec<PortMapping> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let sidecars = spec.init_containers.iter().flatten().filter(|c| crate::plan::is_sidecar(c));
    let all = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    all.map(|port| PortMapping {
        protocol: match port.protocol.as_deref() {
            Some("UDP") => Protocol::Udp,
            Some("SCTP") => Protocol::Sctp,
            _ => Protocol::Tcp,
        } as i32,
        container_port: port.container_port,
        host_port: port.host_port.unwrap_or(0),
        host_ip: port.host_ip.clone().unwrap_or_default(),
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_is_found_by_upstreams_labels() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"app": "x"}},
            "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 53, "hostPort": 5353, "protocol": "UDP"}]}]}}))
        .unwrap();
        let kubelet = Config::new("node", "10.0.0.1".parse().unwrap(), "/tmp/x");
        let made = config(
            &kubelet,
            &pod,
            2,
            "/kubepods/podu".into(),
            &k8s_cri::v1::DnsConfig::default(),
            &UserNamespace::default(),
        );
        assert_eq!(made.labels["app"], "x");
        assert_eq!(made.labels[names::POD_UID], "u");
        assert_eq!(made.metadata.unwrap().attempt, 2);
        assert_eq!(made.log_directory, "/tmp/x/logs/n_p_u");
        assert_eq!(
            (made.port_mappings[0].protocol, made.port_mappings[0].host_port),
            (Protocol::Udp as i32, 5353)
        );
        assert_eq!(made.linux.unwrap().cgroup_parent, "/kubepods/podu");
    }
}
