//! What pods ask of processor and memory: their class of service, and what the kernel is told.

use std::collections::BTreeMap;

use k8s_cri::v1::{HugepageLimit, LinuxContainerResources};
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use krate_api::Quantity;

use crate::node::page_sizes;
use crate::plan::is_sidecar;
use crate::spec::containers;

pub const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;
/// Microseconds: the period of the processor quota.
pub const PERIOD: i64 = 100_000;
/// Microseconds: the smallest quota that the kernel takes.
const MIN_QUOTA: i64 = 1000;
/// The priority of `system-node-critical`.
const NODE_CRITICAL: i32 = 2_000_001_000;

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

/// The class of service, from the containers' resources, unless the API server has written it down already.
pub fn qos(pod: &Pod) -> Qos {
    match pod.status.as_ref().and_then(|s| s.qos_class.as_deref()) {
        Some("Guaranteed") => return Qos::Guaranteed,
        Some("Burstable") => return Qos::Burstable,
        Some("BestEffort") => return Qos::BestEffort,
        _ => {}
    }
    let (mut any, mut guaranteed) = (false, true);
    let all: Vec<_> = match own(pod) {
        Some(own) => vec![Some(own)],
        None => containers(pod).map(|c| c.resources.as_ref()).collect(),
    };
    for resources in all {
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
    if pod.spec.as_ref().and_then(|s| s.priority).is_some_and(|p| p >= NODE_CRITICAL) {
        // The node is not worth much without it.
        return -997;
    }
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
        hugepage_limits: last_said([huge_pages(own(pod)), huge_pages(resources)])
            .into_iter()
            .map(|(page_size, limit)| HugepageLimit { page_size, limit: limit.unsigned_abs() })
            .collect(),
        ..Default::default()
    }
}

/// What a pod as a whole asks for and may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodResources {
    pub cpu_request: i64,
    pub memory_request: i64,
    /// `None` as soon as one container has no limit.
    pub cpu_limit: Option<i64>,
    pub memory_limit: Option<i64>,
    pub huge_pages: HugePages,
    pub pids_limit: Option<i64>,
}

/// The sum over what runs together, or the largest of what runs alone before it.
pub fn together(pod: &Pod, of: impl Fn(&Container) -> i64) -> i64 {
    let Some(spec) = &pod.spec else { return 0 };
    let (mut sidecars, mut largest) = (0, 0);
    for init in spec.init_containers.iter().flatten() {
        if is_sidecar(init) {
            sidecars += of(init);
            largest = largest.max(sidecars);
        } else {
            largest = largest.max(sidecars + of(init));
        }
    }
    let together: i64 = spec.containers.iter().map(of).sum::<i64>() + sidecars;
    together.max(largest)
}

fn total(pod: &Pod, of: fn(Option<&ResourceRequirements>) -> Option<i64>) -> i64 {
    together(pod, |container| of(container.resources.as_ref()).unwrap_or(0))
}

/// What the pod asks for as a whole (KEP-2837), which goes over the sum of its containers.
fn own(pod: &Pod) -> Option<&ResourceRequirements> {
    pod.spec.as_ref()?.resources.as_ref()
}

/// Whether a pod asks as a whole for what could be a container's alone.
pub fn is_of_pod(pod: &Pod) -> bool {
    let named = |name: &str| matches!(name, "cpu" | "memory") || name.starts_with("hugepages-");
    own(pod).is_some_and(|own| own.requests.iter().chain(&own.limits).flatten().any(|(name, _)| named(name)))
}

/// What running a pod costs beside its containers (KEP-688).
fn overhead(pod: &Pod, name: &str) -> Option<Quantity> {
    amount(pod.spec.as_ref()?.overhead.as_ref()?.get(name))
}

pub fn pod(pod: &Pod) -> PodResources {
    let asked = |of: fn(Option<&ResourceRequirements>) -> Option<i64>, overhead: i64| {
        of(own(pod)).unwrap_or_else(|| total(pod, of)) + overhead
    };
    let all = |of: fn(Option<&ResourceRequirements>) -> Option<i64>, overhead: i64| {
        let sum = || containers(pod).all(|c| of(c.resources.as_ref()).is_some()).then(|| total(pod, of));
        of(own(pod)).or_else(sum).map(|limit| limit + overhead)
    };
    let cpu = overhead(pod, "cpu").map_or(0, |q| q.milli_value());
    let memory = overhead(pod, "memory").map_or(0, |q| q.value());
    PodResources {
        cpu_request: asked(cpu_request, cpu),
        memory_request: asked(memory_request, memory),
        cpu_limit: all(cpu_limit, cpu),
        memory_limit: all(memory_limit, memory),
        huge_pages: huge_pages_of_pod(pod),
        pids_limit: None,
    }
}

/// Bytes of the node's disk that a pod asks for.
pub fn ephemeral_storage_request(pod: &Pod) -> i64 {
    total(pod, |r| request(r, "ephemeral-storage").map(|q| q.value()))
}

/// Bytes of the node's disk that a pod may use, where its containers set a limit.
pub fn ephemeral_storage_limit(pod: &Pod) -> Option<i64> {
    let limit = total(pod, |r| limit(r, "ephemeral-storage").map(|q| q.value()));
    (limit > 0).then_some(limit)
}

/// Bytes of huge pages, by the size of the page as the kernel names it.
type HugePages = BTreeMap<String, i64>;

/// What was said last of each size, and none of those of which nothing is said: the kernel bounds no group by itself.
fn last_said(said: [HugePages; 2]) -> HugePages {
    let none = page_sizes().iter().map(|size| (page_size(*size), 0));
    none.chain(said.into_iter().flatten()).collect()
}

/// The limits of huge pages that are said.
fn huge_pages(resources: Option<&ResourceRequirements>) -> HugePages {
    let limits = resources.and_then(|resources| resources.limits.as_ref()).into_iter().flatten();
    let of_page = limits.filter_map(|(name, limit)| {
        let page = Quantity::parse(name.strip_prefix("hugepages-")?).ok()?;
        Some((page_size(page.value()), amount(Some(limit))?.value()))
    });
    of_page.collect()
}

/// What the containers of a pod may have of huge pages together, or the pod as a whole where it says so.
fn huge_pages_of_pod(pod: &Pod) -> HugePages {
    let of = |container: &Container| huge_pages(container.resources.as_ref());
    let named = containers(pod).flat_map(|container| of(container).into_keys());
    let together = named.map(|page| {
        let bytes = together(pod, |container| of(container).get(&page).copied().unwrap_or(0));
        (page, bytes)
    });
    last_said([together.collect(), huge_pages(own(pod))])
}

/// The size of a page as the kernel names it in control groups.
fn page_size(bytes: i64) -> String {
    let (mut size, mut unit) = (bytes, 0);
    const UNITS: [&str; 4] = ["B", "KB", "MB", "GB"];
    while size >= 1024 && unit + 1 < UNITS.len() {
        size /= 1024;
        unit += 1;
    }
    format!("{size}{}", UNITS[unit])
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

    #[test]
    fn what_it_costs_to_run_a_pod_and_what_the_pod_says_itself_count() {
        let mut pod = pod_of(serde_json::json!({
            "requests": {"cpu": "1", "ephemeral-storage": "1Gi"},
            "limits": {"cpu": "2", "memory": "1Gi", "hugepages-2Mi": "4Mi"}}));
        let spec = pod.spec.as_mut().unwrap();
        spec.overhead = serde_json::from_value(serde_json::json!({"cpu": "250m", "memory": "1Mi"})).unwrap();
        let all = super::pod(&pod);
        assert_eq!((all.cpu_request, all.cpu_limit), (1250, Some(2250)));
        assert_eq!(all.memory_limit, Some((1 << 30) + (1 << 20)));
        // Of other sizes that this kernel knows there are none.
        assert_eq!(all.huge_pages["2MB"], 4 << 20);
        assert_eq!(all.huge_pages.values().sum::<i64>(), 4 << 20);
        assert_eq!((ephemeral_storage_request(&pod), ephemeral_storage_limit(&pod)), (1 << 30, None));

        let spec = pod.spec.as_mut().unwrap();
        spec.resources = serde_json::from_value(serde_json::json!({
            "requests": {"cpu": "3", "memory": "2Gi"},
            "limits": {"cpu": "3", "memory": "2Gi", "hugepages-2Mi": "6Mi"}}))
        .unwrap();
        let all = super::pod(&pod);
        assert_eq!(all.huge_pages["2MB"], 6 << 20);
        assert_eq!((all.cpu_request, all.cpu_limit, qos(&pod)), (3250, Some(3250), Qos::Guaranteed));
    }

    #[test]
    fn pages_are_named_as_the_kernel_does() {
        for (bytes, name) in [(2 << 20, "2MB"), (1 << 30, "1GB"), (64 << 10, "64KB")] {
            assert_eq!(page_size(bytes), name);
        }
    }
}
