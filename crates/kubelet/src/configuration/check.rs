//! What a configuration must not say, in upstream's words: all of it at once.

use std::collections::BTreeSet;

use jiff::SignedDuration;
use krate_api::Quantity;

use super::gates;
use super::heeded::Heeded;
use crate::cpus::CpuSet;
use crate::topology::Policy;
use crate::users::UNIT;

/// What may be reserved.
const RESERVABLE: [&str; 4] = ["cpu", "memory", "ephemeral-storage", "pid"];
/// What may be enforced, and the field that must then name a control group.
const ENFORCEABLE: [(&str, Option<&str>); 6] = [
    ("pods", None),
    ("system-reserved", Some("systemReservedCgroup (--system-reserved-cgroup)")),
    ("system-reserved-compressible", Some("systemReservedCgroup (--system-reserved-cgroup)")),
    ("kube-reserved", Some("kubeReservedCgroup (--kube-reserved-cgroup)")),
    ("kube-reserved-compressible", Some("kubeReservedCgroup (--kube-reserved-cgroup)")),
    ("none", None),
];
/// Milliseconds: the least and the most that a container that crashes may wait at last.
const RESTART_PERIOD: std::ops::RangeInclusive<i128> = 1000..=300_000;
/// Seconds between two looks at logs, at least.
const LOG_INTERVAL: i64 = 3;

/// Everything that is wrong.
pub fn problems(heeded: &Heeded) -> Vec<String> {
    let mut found = Vec::new();
    numbers(heeded, &mut found);
    images(heeded, &mut found);
    shutdown(heeded, &mut found);
    enforcement(heeded, &mut found);
    logs(heeded, &mut found);
    processors(heeded, &mut found);
    placement(heeded, &mut found);
    reserved_memory(heeded, &mut found);
    users(heeded, &mut found);
    for reserved in [&heeded.system_reserved, &heeded.kube_reserved] {
        found.extend(reserved.iter().filter_map(|(name, amount)| reservation(name, amount)));
    }
    found
}

fn wrong(said: impl std::fmt::Display) -> String {
    format!("invalid configuration: {said}")
}

fn numbers(heeded: &Heeded, found: &mut Vec<String>) {
    if heeded.node_lease_duration_seconds <= 0 {
        found.push(wrong("nodeLeaseDurationSeconds must be greater than 0"));
    }
    for (name, value) in [
        ("maxPods (--max-pods)", heeded.max_pods),
        ("podsPerCore (--pods-per-core)", heeded.pods_per_core),
        ("registryPullQPS (--registry-qps)", heeded.registry_pull_qps),
        ("registryBurst (--registry-burst)", heeded.registry_burst),
    ] {
        if value < 0 {
            found.push(wrong(format!("{name} {value} must not be a negative number")));
        }
    }
    if heeded.node_status_max_images < -1 {
        let value = heeded.node_status_max_images;
        found.push(wrong(format!(
            "nodeStatusMaxImages (--node-status-max-images) {value} must be -1 or greater"
        )));
    }
    if heeded.server_tls_bootstrap && !heeded.features.enabled(gates::SERVING) {
        let gate = gates::SERVING;
        found.push(wrong(format!("serverTLSBootstrap true requires feature gate {gate}")));
    }
    let period = heeded.crash_loop_back_off.max_container_restart_period.0;
    if !RESTART_PERIOD.contains(&period.as_millis()) {
        found.push(wrong(format!(
            "CrashLoopBackOff.MaxContainerRestartPeriod (got: {} seconds) must be set between 1s and 300s",
            period.as_secs_f64()
        )));
    }
    if heeded.container_runtime_endpoint.is_empty() {
        found.push(wrong("the containerRuntimeEndpoint was not specified or empty"));
    }
}

fn images(heeded: &Heeded, found: &mut Vec<String>) {
    let (high, low) = (heeded.image_gc_high_threshold_percent, heeded.image_gc_low_threshold_percent);
    const HIGH: &str = "imageGCHighThresholdPercent (--image-gc-high-threshold)";
    const LOW: &str = "imageGCLowThresholdPercent (--image-gc-low-threshold)";
    for (name, value) in [(HIGH, high), (LOW, low)] {
        if !(0..=100).contains(&value) {
            found.push(wrong(format!("{name} {value} must be between 0 and 100, inclusive")));
        }
    }
    if low >= high {
        found.push(wrong(format!("{LOW} {low} must be less than {HIGH} {high}")));
    }
    let (least, most) = (heeded.image_minimum_gc_age, heeded.image_maximum_gc_age);
    for (name, age) in [("imageMinimumGCAge", least), ("imageMaximumGCAge", most)] {
        if age.0.is_negative() {
            found.push(wrong(format!("{name} {age} must not be negative")));
        }
    }
    if most.0.is_positive() && most <= least {
        found.push(wrong(format!("imageMaximumGCAge {most} must be greater than imageMinimumGCAge {least}")));
    }
    match heeded.max_parallel_image_pulls {
        Some(most) if most < 1 => {
            found.push(wrong(format!("maxParallelImagePulls {most} must be a positive number")));
        }
        Some(most) if most > 1 && heeded.serialize_image_pulls => found.push(wrong(
            "maxParallelImagePulls cannot be larger than 1 unless SerializeImagePulls (--serialize-image-pulls) is set to false",
        )),
        _ => {}
    }
}

fn shutdown(heeded: &Heeded, found: &mut Vec<String>) {
    let (all, critical) = (heeded.shutdown_grace_period, heeded.shutdown_grace_period_critical_pods);
    if critical > all {
        found.push(wrong(format!(
            "shutdownGracePeriodCriticalPods {critical} must be <= shutdownGracePeriod {all}"
        )));
    }
    for (name, period) in [("shutdownGracePeriod", all), ("shutdownGracePeriodCriticalPods", critical)] {
        if !period.0.is_zero() && period.0 < SignedDuration::from_secs(1) {
            found.push(wrong(format!("{name} {period} must be either zero or otherwise >= 1 sec")));
        }
    }
    let by_priority = !heeded.shutdown_grace_period_by_pod_priority.is_empty();
    if by_priority && (all.0.is_positive() || critical.0.is_positive()) {
        found.push(wrong(
            "Cannot specify both shutdownGracePeriodByPodPriority and shutdownGracePeriod at the same time",
        ));
    }
}

fn enforcement(heeded: &Heeded, found: &mut Vec<String>) {
    const FIELD: &str = "enforceNodeAllocatable (--enforce-node-allocatable)";
    let all = &heeded.enforce_node_allocatable;
    for (place, name) in all.iter().enumerate() {
        if all[..place].contains(name) {
            found.push(wrong(format!("duplicated enforcements {name:?} in {FIELD}")));
            continue;
        }
        let Some((_, group)) = ENFORCEABLE.iter().find(|(known, _)| known == name) else {
            let valid: Vec<String> = ENFORCEABLE.iter().map(|(known, _)| format!("{known:?}")).collect();
            let valid = valid.join(", ");
            found.push(wrong(format!("option {name:?} specified for {FIELD}. Valid options are {valid}")));
            continue;
        };
        if name == "none" {
            if all.len() > 1 {
                found.push(wrong(format!(
                    "{FIELD} may not contain additional enforcements when {name:?} is specified"
                )));
            }
            continue;
        }
        let is_named = match name.split('-').next() {
            Some("system") => !heeded.system_reserved_cgroup.is_empty(),
            _ => !heeded.kube_reserved_cgroup.is_empty(),
        };
        if let (Some(group), false) = (group, is_named) {
            let base = name.trim_end_matches("-compressible");
            found.push(wrong(format!(
                "{group} must be specified when {base:?} or \"{base}-compressible\" included in {FIELD}"
            )));
        }
        if !heeded.cgroups_per_qos {
            found.push(wrong(format!(
                "cgroupsPerQOS (--cgroups-per-qos) must be set to true when {name:?} contained in {FIELD}"
            )));
        }
    }
    for base in ["system-reserved", "kube-reserved"] {
        let compressible = format!("{base}-compressible");
        if all.iter().any(|name| name == base) && all.contains(&compressible) {
            found.push(wrong(format!(
                "both {base:?} and {compressible:?} cannot be specified together in {FIELD}"
            )));
        }
    }
}

fn processors(heeded: &Heeded, found: &mut Vec<String>) {
    let set = &heeded.reserved_system_cpus;
    if set.is_empty() {
        return;
    }
    if !(heeded.system_reserved_cgroup.is_empty() && heeded.kube_reserved_cgroup.is_empty()) {
        found.push(wrong(
            "can't use reservedSystemCPUs (--reserved-cpus) with systemReservedCgroup (--system-reserved-cgroup) or \
             kubeReservedCgroup (--kube-reserved-cgroup)",
        ));
    }
    if let Err(error) = set.parse::<CpuSet>() {
        found.push(wrong(format!(
            "unable to parse reservedSystemCPUs (--reserved-cpus) {set}, error: {error}"
        )));
    }
}

/// What the managers of processors and of NUMA nodes cannot be.
fn placement(heeded: &Heeded, found: &mut Vec<String>) {
    let policy = &heeded.topology_manager_policy;
    if !Policy::NAMES.iter().any(|(name, _)| name == policy) {
        found.push(wrong(format!(
            "topologyManagerPolicy (--topology-manager-policy) {policy:?} must be one of: {}",
            quoted(&Policy::NAMES.map(|(name, _)| name))
        )));
    }
    let scope = &heeded.topology_manager_scope;
    if !["container", "pod"].contains(&scope.as_str()) {
        found.push(wrong(format!(
            "topologyManagerScope (--topology-manager-scope) {scope:?} must be one of: \"container\", or \"pod\""
        )));
    }
}

/// What of the nodes' memory cannot be reserved.
fn reserved_memory(heeded: &Heeded, found: &mut Vec<String>) {
    let mut known = BTreeSet::new();
    for reserved in &heeded.reserved_memory {
        let node = reserved.numa_node;
        for (kind, amount) in &reserved.limits {
            if kind != "memory" && !kind.starts_with("hugepages-") {
                found.push(wrong(format!(
                    "the limit type {kind:?} for NUMA node {node} is not supported, only [memory \
                     hugepages-<HugePageSize>] is accepted"
                )));
            }
            match Quantity::parse(&amount.0) {
                Ok(amount) if amount.signum() != 0 => {}
                Ok(_) => found.push(wrong(format!(
                    "reserved memory may not be zero for NUMA node {node} and resource {kind:?}"
                ))),
                Err(error) => {
                    let amount = &amount.0;
                    found.push(format!("failed to parse quantity {amount:?} for {kind:?} resource: {error}"));
                }
            }
            if !known.insert((node, kind)) {
                found.push(wrong(format!(
                    "the reserved memory has a duplicate value for NUMA node {node} and resource {kind:?}"
                )));
            }
        }
    }
}

/// How many ids no pod can have.
fn users(heeded: &Heeded, found: &mut Vec<String>) {
    const FIELD: &str = "userNamespaces.idsPerPod";
    let unit = i64::from(UNIT);
    match heeded.user_namespaces.ids_per_pod {
        Some(ids) if ids < unit => found.push(wrong(format!("{FIELD} must not be less than {unit}"))),
        Some(ids) if ids % unit != 0 => found.push(wrong(format!("{FIELD} must be a multiple of {unit}"))),
        Some(ids) if ids > i64::from(u32::MAX) => {
            found.push(wrong(format!("{FIELD} must not be more than {}", u32::MAX)));
        }
        _ => {}
    }
}

/// As Go writes a list of strings.
fn quoted(all: &[&str]) -> String {
    format!("[{}]", all.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(" "))
}

fn logs(heeded: &Heeded, found: &mut Vec<String>) {
    if heeded.container_log_max_workers < 1 {
        found.push(wrong("containerLogMaxWorkers must be greater than or equal to 1"));
    }
    if heeded.container_log_monitor_interval.0 < SignedDuration::from_secs(LOG_INTERVAL) {
        found.push(wrong(
            "containerLogMonitorInterval must be a positive time duration greater than or equal to 3s",
        ));
    }
    if heeded.container_log_max_files <= 1 {
        found.push(wrong("containerLogMaxFiles must be greater than 1"));
    }
    if let Err(error) = Quantity::parse(&heeded.container_log_max_size) {
        let size = &heeded.container_log_max_size;
        found.push(format!("failed to parse container log max size {size:?}: {error}"));
    }
    let directory = &heeded.pod_logs_dir;
    if directory.as_os_str().is_empty() {
        found.push(wrong("podLogsDir was not specified"));
    }
    if !directory.is_absolute() {
        let shown = directory.display().to_string();
        found.push(wrong(format!("pod logs path {shown:?} must be absolute path")));
    }
}

fn reservation(name: &str, amount: &str) -> Option<String> {
    if !RESERVABLE.contains(&name) {
        return Some(format!("cannot reserve {name:?} resource"));
    }
    match Quantity::parse(amount) {
        Err(error) => Some(format!("failed to parse quantity {amount:?} for {name:?} resource: {error}")),
        Ok(quantity) if quantity.signum() < 0 => {
            Some(format!("resource quantity for {name:?} cannot be negative: {amount}"))
        }
        Ok(_) => None,
    }
}
