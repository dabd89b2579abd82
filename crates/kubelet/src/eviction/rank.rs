//! Whom it hits first, and what is said of it.

use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use krate_api::Quantity;
use krate_api::quantity::Format;
use kube::ResourceExt as _;

use super::layout::Parts;
use super::threshold::{Observations, Signal, Threshold};
use super::usage::PodUsage;
use crate::{names, resources};

/// From here on a pod is critical (`system-cluster-critical`).
pub const CRITICAL: i32 = 2_000_000_000;

/// Whether the node must not do without a pod.
pub fn is_critical(pod: &Pod) -> bool {
    let annotations = pod.annotations();
    let is_static = annotations.get("kubernetes.io/config.source").is_some_and(|source| source != "api")
        || annotations.contains_key("kubernetes.io/config.mirror");
    is_static || pod.spec.as_ref().and_then(|s| s.priority).is_some_and(|p| p >= CRITICAL)
}

/// Puts the pods in the order in which they are evicted for what a signal looks at: those that use more than they asked
/// for, then those of low priority, then those that use most beyond what they asked for. `parts` of theirs lie where it is
/// short.
pub fn rank(pods: &mut [Arc<Pod>], signal: Signal, parts: Parts, usage: &HashMap<String, PodUsage>) {
    let key = |pod: &Pod| {
        let priority = pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0);
        let Some(used) = usage.get(&names::uid(pod)) else {
            return (Reverse(true), priority, Reverse(i64::MAX));
        };
        let (used, asked) = match signal.resource() {
            "memory" => (used.memory(), resources::pod(pod).memory_request),
            "pids" => return (Reverse(false), priority, Reverse(used.processes)),
            "inodes" => (used.on_disk(parts).inodes, 0),
            _ => (used.on_disk(parts).bytes, resources::ephemeral_storage_request(pod)),
        };
        (Reverse(used > asked), priority, Reverse(used - asked))
    };
    pods.sort_by(|a, b| -> Ordering { key(a).cmp(&key(b)) });
}

/// The first of the thresholds that is to be done something about: memory before all else.
pub fn first(met: &[Threshold]) -> Option<&Threshold> {
    met.iter().min_by_key(|threshold| threshold.signal != Signal::MemoryAvailable)
}

fn binary(bytes: i64) -> Quantity {
    Quantity::new(bytes, Format::BinarySi)
}

/// Why a pod is evicted, in upstream's words.
pub fn message(
    pod: &Pod,
    signal: Signal,
    met: &[Threshold],
    observed: &Observations,
    usage: Option<&PodUsage>,
) -> String {
    let resource = signal.resource();
    let mut text = format!("The node was low on resource: {resource}. ");
    let of_resource = met.iter().find(|t| t.signal.resource() == resource);
    if let Some((threshold, seen)) = of_resource.and_then(|t| Some((t, observed.get(&t.signal)?))) {
        let format =
            if resource == "pids" || resource == "inodes" { Format::DecimalSi } else { Format::BinarySi };
        let available = Quantity::new(seen.available, format);
        let quantity = threshold.value.of(seen.capacity);
        let _ = write!(text, "Threshold quantity: {quantity}, available: {available}. ");
    }
    let Some((usage, spec)) = usage.zip(pod.spec.as_ref()) else { return text };
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        let Some(used) = usage.containers.get(&container.name) else { continue };
        let used = match resource {
            "memory" => used.memory,
            "ephemeral-storage" => used.disk(),
            _ => continue,
        };
        let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
        let asked = requests.and_then(|r| r.get(resource)).and_then(|q| Quantity::parse(&q.0).ok());
        let asked = asked.unwrap_or_else(|| Quantity::new(0, Format::DecimalSi));
        if used > asked.value() {
            let (name, used) = (&container.name, binary(used));
            let _ = write!(
                text,
                "Container {name} was using {used}, request is {asked}, has larger consumption of {resource}. "
            );
        }
    }
    text
}

/// Why a pod is evicted that uses more of the disk than it set itself as a limit; `None` when it does not.
/// `with_rootfs`: what containers write beside their volumes is on the same disk. Upstream's name of the limit comes first.
pub fn over_its_limits(pod: &Pod, usage: &PodUsage, with_rootfs: bool) -> Option<(&'static str, String)> {
    let spec = pod.spec.as_ref()?;
    let parse = |q: &k8s_openapi::apimachinery::pkg::api::resource::Quantity| {
        Quantity::parse(&q.0).ok().filter(|q| q.signum() > 0)
    };
    for volume in spec.volumes.iter().flatten() {
        let limit = volume.empty_dir.as_ref().and_then(|s| s.size_limit.as_ref()).and_then(parse);
        let used = usage.volumes.get(&volume.name);
        if let Some((limit, used)) = limit.zip(used)
            && *used > limit.value()
        {
            let (name, limit) = (&volume.name, limit.to_string());
            let message = format!("Usage of EmptyDir volume {name:?} exceeds the limit {limit:?}. ");
            return Some(("emptydirfs.limit", message));
        }
    }
    if let Some(limit) = resources::ephemeral_storage_limit(pod)
        && usage.on_disk(Parts::ALL).bytes > limit
    {
        let limit = binary(limit);
        let message =
            format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}. ");
        return Some(("ephemeralpodfs.limit", message));
    }
    for container in &spec.containers {
        let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
        let limit = limits.and_then(|l| l.get("ephemeral-storage")).and_then(parse);
        let used = usage.containers.get(&container.name);
        if let Some((limit, used)) = limit.zip(used)
            && if with_rootfs { used.disk() } else { used.logs.bytes } > limit.value()
        {
            let (name, limit) = (&container.name, limit.to_string());
            let message = format!("Container {name} exceeded its local ephemeral storage limit {limit:?}. ");
            return Some(("ephemeralcontainerfs.limit", message));
        }
    }
    None
}

/// Whether a pod sets itself a limit of the disk.
pub fn has_limits(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let of_volume =
        spec.volumes.iter().flatten().any(|v| v.empty_dir.as_ref().is_some_and(|s| s.size_limit.is_some()));
    of_volume
        || spec.containers.iter().any(|c| {
            let limits = c.resources.as_ref().and_then(|r| r.limits.as_ref());
            limits.is_some_and(|l| l.contains_key("ephemeral-storage"))
        })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::threshold::{EvictionConfig, Observation};
    use super::super::usage::{ContainerUsage, Files};
    use super::*;

    fn pod(name: &str, priority: i32, resources: &Value) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(
                json!({"metadata": {"name": name, "uid": name}, "spec": {"priority": priority,
                "containers": [{"name": "c", "resources": resources}],
                "volumes": [{"name": "cache", "emptyDir": {"sizeLimit": "1Mi"}}]}}),
            )
            .unwrap(),
        )
    }

    fn used(memory: i64, rootfs: i64) -> PodUsage {
        // The more bytes, the fewer files.
        let rootfs = Files { bytes: rootfs, inodes: 100 - rootfs.min(50) };
        let container = ContainerUsage { memory, rootfs, logs: Files::default() };
        PodUsage { containers: [("c".to_owned(), container)].into(), ..PodUsage::default() }
    }

    #[test]
    fn who_uses_more_than_asked_goes_first() {
        let asks = json!({"requests": {"memory": "1Mi", "ephemeral-storage": "1Mi"}});
        let mut pods = vec![
            pod("modest", 0, &asks),
            pod("important", 9, &json!({})),
            pod("small", 0, &json!({})),
            pod("big", 0, &json!({})),
        ];
        let usage = HashMap::from([
            ("modest".to_owned(), used(1 << 19, 0)),
            ("important".to_owned(), used(1 << 30, 0)),
            ("small".to_owned(), used(1 << 10, 5)),
            ("big".to_owned(), used(1 << 20, 4)),
        ]);
        let order = |pods: &[Arc<Pod>]| pods.iter().map(|p| p.name_any()).collect::<Vec<_>>();
        rank(&mut pods, Signal::MemoryAvailable, Parts::ALL, &usage);
        assert_eq!(order(&pods), ["big", "small", "important", "modest"]);
        rank(&mut pods, Signal::NodeFsAvailable, Parts::ALL, &usage);
        assert_eq!(order(&pods), ["small", "big", "modest", "important"]);
        rank(&mut pods, Signal::NodeFsInodesFree, Parts::ALL, &usage);
        assert_eq!(order(&pods), ["modest", "big", "small", "important"]);
    }

    #[test]
    fn a_message_names_what_was_short_and_who_used_it() {
        let met = EvictionConfig::default().thresholds().unwrap();
        let seen = Observations::from([(
            Signal::MemoryAvailable,
            Observation { available: 50 << 20, capacity: 1 << 30 },
        )]);
        let pod = pod("p", 0, &json!({"requests": {"memory": "1Mi"}}));
        let said = message(&pod, Signal::MemoryAvailable, &met, &seen, Some(&used(2 << 20, 0)));
        assert_eq!(
            said,
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. \
             Container c was using 2Mi, request is 1Mi, has larger consumption of memory. "
        );
    }

    #[test]
    fn limits_of_the_disk_are_its_own() {
        let limited = pod("p", 0, &json!({"limits": {"ephemeral-storage": "2Mi"}}));
        assert!(has_limits(&limited));
        assert_eq!(over_its_limits(&limited, &used(0, 1 << 20), true), None);
        let mut usage = used(0, 0);
        usage.volumes.insert("cache".into(), 2 << 20);
        let said = |usage: &PodUsage| over_its_limits(&limited, usage, true).unwrap().1;
        assert_eq!(said(&usage), "Usage of EmptyDir volume \"cache\" exceeds the limit \"1Mi\". ");
        let said = said(&used(0, 3 << 20));
        assert_eq!(said, "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi. ");
    }

    #[test]
    fn some_pods_stay() {
        for (pod, expected) in [
            (json!({"spec": {"containers": [], "priority": 2_000_000_000}}), true),
            (json!({"spec": {"containers": [], "priority": 7}}), false),
            (json!({"metadata": {"annotations": {"kubernetes.io/config.source": "file"}}}), true),
            (json!({"metadata": {"annotations": {"kubernetes.io/config.source": "api"}}}), false),
        ] {
            assert_eq!(is_critical(&serde_json::from_value(pod.clone()).unwrap()), expected, "{pod}");
        }
    }
}
