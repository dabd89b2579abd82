//! What pods ask of processor and memory: their class of service, and what the kernel is told.

use k8s_cri::v1::LinuxContainerResources;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use krate_api::Quantity;

pub const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;
/// Microseconds: the period of the processor quota.
pub const PERIOD: i64 = 100_000;
/// Microseconds: the smallest quota that the kernel takes.
const MIN_QUOTA: i64 = 1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Qos {
    pub fn name(self) -> &'static str {
        match self {
            Qos::Guaranteed => "Guaranteed",
            Qos::Burstable => "Burstable",
            Qos::BestEffort => "BestEffort",
        }
    }
}

fn amount(of: Option<&ApiQuantity>) -> Option<Quantity> {
    of.and_then(|q| Quantity::parse(&q.0).ok()).filter(|q| q.signum() > 0)
}

fn request(resources: Option<&ResourceRequirements>, name: &str) -> Option<Quantity> {
    amount(resources?.requests.as_ref()?.get(name))
}

fn limit(resources: Option<&ResourceRequirements>, name: &str) -> Option<Quantity> {
    amount(resources?.limits.as_ref()?.get(name))
}

/// Thousandths of a processor that are asked for; the limit stands in for a request that is missing.
pub fn cpu_request(resources: Option<&ResourceRequirements>) -> Option<i64> {
    request(resources, "cpu").or_else(|| limit(resources, "cpu")).map(|q| q.milli_value())
}

pub fn cpu_limit(resources: Option<&ResourceRequirements>) -> Option<i64> {
    limit(resources, "cpu").map(|q| q.milli_value())
}

pub fn memory_request(resources: Option<&ResourceRequirements>) -> Option<i64> {
    request(resources, "memory").or_else(|| limit(resources, "memory")).map(|q| q.value())
}

pub fn memory_limit(resources: Option<&ResourceRequirements>) -> Option<i64> {
    limit(resources, "memory").map(|q| q.value())
}

fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.as_ref();
    let own = spec.map(|s| s.containers.iter()).into_iter().flatten();
    own.chain(spec.and_then(|s| s.init_containers.as_ref()).into_iter().flatten())
}

/// The class of service, from the containers' resources, unless the API server has written it down already.
pub fn qos(pod: &Pod) -> Qos {
    match pod.status.as_ref().and_then(|s| s.qos_class.as_deref()) {
        Some("Guaranteed") => return Qos::Guaranteed,
        Some("Burstable") => return Qos::Burstable,
        Some("BestEffort") => return Qos::BestEffort,
        _ => {}
    }
    let (mut any, mut guaranteed) = (false, true);
    for container in containers(pod) {
        let resources = container.resources.as_ref();
        for name in ["cpu", "memory"] {
            let (request, limit) = (request(resources, name), limit(resources, name));
            any |= request.is_some() || limit.is_some();
            let same = match (&request, &limit) {
                (Some(r), Some(l)) => r.scaled_value(-3) == l.scaled_value(-3),
                (None, Some(_)) => true,
                _ => false,
            };
            guaranteed &= same;
        }
    }
    match (any, guaranteed) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    }
}

pub fn shares(milli: i64) -> i64 {
    if milli == 0 { MIN_SHARES } else { (milli * 1024 / 1000).clamp(MIN_SHARES, MAX_SHARES) }
}

pub fn quota(milli: i64) -> i64 {
    if milli == 0 { 0 } else { (milli * PERIOD / 1000).max(MIN_QUOTA) }
}

/// The kernel's inclination to kill a container when memory is short.
pub fn oom_score_adj(pod: &Pod, container: &Container, memory_capacity: i64) -> i64 {
    match qos(pod) {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let request = memory_request(container.resources.as_ref()).unwrap_or(0);
            let adjusted = 1000 - (1000 * request) / memory_capacity.max(1);
            adjusted.clamp(3, 999)
        }
    }
}

/// What the runtime is told of a container's resources.
pub fn linux(pod: &Pod, container: &Container, memory_capacity: i64) -> LinuxContainerResources {
    let resources = container.resources.as_ref();
    LinuxContainerResources {
        cpu_period: PERIOD,
        cpu_quota: cpu_limit(resources).map_or(0, quota),
        cpu_shares: shares(cpu_request(resources).unwrap_or(0)),
        memory_limit_in_bytes: memory_limit(resources).unwrap_or(0),
        oom_score_adj: oom_score_adj(pod, container, memory_capacity),
        ..Default::default()
    }
}

/// What a pod as a whole asks for and may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodResources {
    pub cpu_request: i64,
    pub memory_request: i64,
    /// `None` as soon as one container has no limit.
    pub cpu_limit: Option<i64>,
    pub memory_limit: Option<i64>,
}

fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// The sum over what runs together, or the largest of what runs alone before it.
fn total(pod: &Pod, of: fn(Option<&ResourceRequirements>) -> Option<i64>) -> i64 {
    let Some(spec) = &pod.spec else { return 0 };
    let own = |c: &Container| of(c.resources.as_ref()).unwrap_or(0);
    let (mut sidecars, mut largest) = (0, 0);
    for init in spec.init_containers.iter().flatten() {
        if is_sidecar(init) {
            sidecars += own(init);
            largest = largest.max(sidecars);
        } else {
            largest = largest.max(sidecars + own(init));
        }
    }
    let together: i64 = spec.containers.iter().map(own).sum::<i64>() + sidecars;
    together.max(largest)
}

pub fn pod(pod: &Pod) -> PodResources {
    let all = |of: fn(Option<&ResourceRequirements>) -> Option<i64>| {
        containers(pod).all(|c| of(c.resources.as_ref()).is_some()).then(|| total(pod, of))
    };
    PodResources {
        cpu_request: total(pod, cpu_request),
        memory_request: total(pod, memory_request),
        cpu_limit: all(cpu_limit),
        memory_limit: all(memory_limit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod_of(resources: serde_json::Value) -> Pod {
        serde_json::from_value(
            serde_json::json!({"spec": {"containers": [{"name": "a", "resources": resources}]}}),
        )
        .unwrap()
    }

    #[test]
    fn classes_follow_requests_and_limits() {
        let both = serde_json::json!({"cpu": "1", "memory": "1Gi"});
        for (resources, expected) in [
            (serde_json::json!({}), Qos::BestEffort),
            (serde_json::json!({"requests": {"cpu": "1"}}), Qos::Burstable),
            (serde_json::json!({"limits": both}), Qos::Guaranteed),
            (serde_json::json!({"limits": both, "requests": both}), Qos::Guaranteed),
            (serde_json::json!({"limits": both, "requests": {"cpu": "500m"}}), Qos::Burstable),
            (serde_json::json!({"requests": {"cpu": "0"}}), Qos::BestEffort),
        ] {
            assert_eq!(qos(&pod_of(resources.clone())), expected, "{resources}");
        }
    }

    #[test]
    fn the_kernel_is_told_shares_and_quotas() {
        let pod = pod_of(
            serde_json::json!({"requests": {"cpu": "250m", "memory": "64Mi"}, "limits": {"cpu": "1500m"}}),
        );
        let told = linux(&pod, &pod.spec.as_ref().unwrap().containers[0], 1 << 30);
        assert_eq!((told.cpu_shares, told.cpu_quota, told.memory_limit_in_bytes), (256, 150_000, 0));
        assert_eq!(told.oom_score_adj, 938);
        assert_eq!(shares(0), 2);
        assert_eq!(quota(1), 1000);
    }

    #[test]
    fn a_pod_is_as_large_as_what_runs_together() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {
            "initContainers": [
                {"name": "big", "resources": {"requests": {"cpu": "2"}}},
                {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}}],
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "1"}, "limits": {"memory": "1Gi"}}}]}}))
        .unwrap();
        let all = super::pod(&pod);
        assert_eq!((all.cpu_request, all.cpu_limit, all.memory_limit), (2000, None, None));
    }
}
