//! What pods use.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    Container, ContainerStatus, Pod, PodAffinityTerm, PodSpec, ResourceRequirements,
    ScopedResourceSelectorRequirement,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Raw;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::{Usage, one, parsed, selects};
use crate::quantity::Quantity;

type Amounts = BTreeMap<String, Quantity>;

const TRACKED: [&str; 10] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
];
/// What every container must name as soon as a quota counts it.
const NAMED_BY_EACH: [&str; 6] =
    ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];
const HUGE_PAGES: &str = "hugepages-";
/// How containers ask for devices of a class (KEP-5004).
const DEVICE_CLASS: &str = "deviceclass.resource.kubernetes.io/";

/// Whether an amount of a quota counts pods.
pub fn tracks(name: &str) -> bool {
    TRACKED.contains(&name)
        || name.starts_with(HUGE_PAGES)
        || name.strip_prefix("requests.").is_some_and(|r| r.starts_with(HUGE_PAGES) || is_extended(r))
}

/// A resource outside Kubernetes' own names: `example.com/gpu`; or the devices of a class, by the name of the class.
fn is_extended(name: &str) -> bool {
    name.starts_with(DEVICE_CLASS)
        || name.split_once('/').is_some_and(|(domain, _)| !domain.contains("kubernetes.io"))
}

/// Whether a pod still uses what it was given: not once it has ended, nor when its deletion is overdue.
pub fn is_charged(pod: &Pod, now: Timestamp) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
    if matches!(phase, "Succeeded" | "Failed") {
        return false;
    }
    let meta = &pod.metadata;
    let (Some(deleted), Some(grace)) = (&meta.deletion_timestamp, meta.deletion_grace_period_seconds) else {
        return true;
    };
    deleted.0.saturating_add(SignedDuration::from_secs(grace)).is_ok_and(|end| now <= end)
}

pub fn usage(pod: &Pod, now: Timestamp) -> Usage {
    if !is_charged(pod, now) {
        return Usage::new();
    }
    of_amounts(&pod_requests(pod), &pod_limits(pod))
}

/// Amounts by the names that quotas have for them.
fn of_amounts(requests: &Amounts, limits: &Amounts) -> Usage {
    let mut usage = Usage::from([("pods".to_owned(), one())]);
    for (name, amount) in requests {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") || name.starts_with(HUGE_PAGES) {
            usage.insert(name.clone(), amount.clone());
            usage.insert(format!("requests.{name}"), amount.clone());
        } else if is_extended(name) {
            usage.insert(format!("requests.{name}"), amount.clone());
        }
    }
    for name in ["cpu", "memory", "ephemeral-storage"] {
        if let Some(amount) = limits.get(name) {
            usage.insert(format!("limits.{name}"), amount.clone());
        }
    }
    usage
}

#[derive(Clone, Copy)]
enum Side {
    Requests,
    Limits,
}

impl Side {
    fn of(self, resources: Option<&ResourceRequirements>) -> Amounts {
        let list = resources.and_then(|r| match self {
            Side::Requests => r.requests.as_ref(),
            Side::Limits => r.limits.as_ref(),
        });
        amounts(list)
    }
}

/// Amounts of an object, by their names.
pub fn amounts(list: Option<&BTreeMap<String, Raw>>) -> Amounts {
    list.into_iter().flatten().map(|(name, raw)| (name.clone(), parsed(raw))).collect()
}

fn most(into: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        match into.get(name) {
            Some(there) if there >= amount => {}
            _ => {
                into.insert(name.clone(), amount.clone());
            }
        }
    }
}

/// What a pod's containers need at the most at any one time, and what running them costs on top (KEP-753 for those that
/// start with it and stay, KEP-2837 for what the pod says as a whole, KEP-1287 for what is resized).
pub fn pod_requests(pod: &Pod) -> Amounts {
    let Some(spec) = &pod.spec else { return Amounts::new() };
    of_pod(pod, spec, Side::Requests)
}

/// The same of limits.
pub fn pod_limits(pod: &Pod) -> Amounts {
    let Some(spec) = &pod.spec else { return Amounts::new() };
    of_pod(pod, spec, Side::Limits)
}

fn of_pod(pod: &Pod, spec: &PodSpec, side: Side) -> Amounts {
    let status = pod.status.as_ref();
    let statuses = status.and_then(|s| s.container_statuses.as_deref()).unwrap_or_default();
    let init_statuses = status.and_then(|s| s.init_container_statuses.as_deref()).unwrap_or_default();
    let is_infeasible = is_infeasible(pod);
    let mut sum = Amounts::new();
    for container in &spec.containers {
        super::add(&mut sum, &of_container(container, statuses, is_infeasible, side));
    }
    // Init containers run one after another; those that restart always stay beside all that come later.
    let (mut staying, mut peak) = (Amounts::new(), Amounts::new());
    for container in spec.init_containers.iter().flatten() {
        if container.restart_policy.as_deref() == Some("Always") {
            let needs = of_container(container, init_statuses, is_infeasible, side);
            super::add(&mut sum, &needs);
            super::add(&mut staying, &needs);
            most(&mut peak, &staying);
        } else {
            let mut then = side.of(container.resources.as_ref());
            super::add(&mut then, &staying);
            most(&mut peak, &then);
        }
    }
    most(&mut sum, &peak);
    for (name, amount) in side.of(spec.resources.as_ref()) {
        if is_of_pods(&name) {
            sum.insert(name, amount);
        }
    }
    for (name, amount) in amounts(spec.overhead.as_ref()) {
        // A limit that nobody set is none, whatever the overhead.
        let there = sum.get(&name).map(|sum| sum.add(&amount));
        match (there, side) {
            (Some(sum_with), _) => drop(sum.insert(name, sum_with)),
            (None, Side::Requests) => drop(sum.insert(name, amount)),
            (None, Side::Limits) => {}
        }
    }
    sum
}

/// Whether a pod's node has said that it can never give what the pod came to ask for.
fn is_infeasible(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let pending = conditions.iter().find(|c| c.type_ == "PodResizePending");
    pending.is_some_and(|c| c.reason.as_deref() == Some("Infeasible"))
}

/// A container that is being resized holds the largest of what it asks for, what it was promised and what it has; what
/// it can never be given it does not hold.
fn of_container(
    container: &Container,
    statuses: &[ContainerStatus],
    is_infeasible: bool,
    side: Side,
) -> Amounts {
    let asked = side.of(container.resources.as_ref());
    let status = statuses.iter().find(|s| s.name == container.name);
    let Some((status, has)) = status.and_then(|s| Some((s, s.resources.as_ref()?))) else { return asked };
    let mut needs = if is_infeasible { Amounts::new() } else { asked };
    most(&mut needs, &side.of(Some(has)));
    if matches!(side, Side::Requests) {
        most(&mut needs, &amounts(status.allocated_resources.as_ref()));
    }
    needs
}

/// Whether nothing of a pod asks for processor time or memory, or is limited in them.
pub fn is_best_effort(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return true };
    let asks = |resources: Option<&ResourceRequirements>| {
        [Side::Requests, Side::Limits].into_iter().any(|side| {
            side.of(resources)
                .iter()
                .any(|(name, q)| matches!(name.as_str(), "cpu" | "memory") && q.signum() > 0)
        })
    };
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    !asks(spec.resources.as_ref()) && !all.into_iter().any(|c| asks(c.resources.as_ref()))
}

/// Whether a pod ends by itself: it has a deadline.
pub fn is_terminating(pod: &Pod) -> bool {
    let deadline = pod.spec.as_ref().and_then(|spec| spec.active_deadline_seconds);
    deadline.is_some_and(|seconds| seconds >= 0)
}

/// Whether a pod as a whole says what it asks for, of what can be said so (KEP-2837).
fn says_as_a_whole(spec: &PodSpec) -> bool {
    let Some(resources) = &spec.resources else { return false };
    let both = [&resources.requests, &resources.limits];
    both.into_iter().flatten().flat_map(BTreeMap::keys).any(|name| is_of_pods(name))
}

/// Whether a pod can ask for a resource as a whole.
fn is_of_pods(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with(HUGE_PAGES)
}

pub fn in_scope(pod: &Pod, scope: &ScopedResourceSelectorRequirement) -> bool {
    let spec = pod.spec.as_ref();
    match scope.scope_name.as_str() {
        "Terminating" => is_terminating(pod),
        "NotTerminating" => !is_terminating(pod),
        "BestEffort" => is_best_effort(pod),
        "NotBestEffort" => !is_best_effort(pod),
        "PriorityClass" => {
            let class = spec.and_then(|s| s.priority_class_name.as_deref()).filter(|c| !c.is_empty());
            selects(scope, class.as_slice())
        }
        "CrossNamespacePodAffinity" => spec.is_some_and(looks_elsewhere),
        _ => false,
    }
}

/// Whether a pod wants to be with, or away from, pods of other namespaces.
fn looks_elsewhere(spec: &PodSpec) -> bool {
    let elsewhere = |term: &PodAffinityTerm| {
        term.namespaces.as_ref().is_some_and(|n| !n.is_empty()) || term.namespace_selector.is_some()
    };
    let Some(affinity) = &spec.affinity else { return false };
    let near = affinity.pod_affinity.as_ref().map(|a| {
        (
            a.required_during_scheduling_ignored_during_execution.as_deref(),
            a.preferred_during_scheduling_ignored_during_execution.as_deref(),
        )
    });
    let far = affinity.pod_anti_affinity.as_ref().map(|a| {
        (
            a.required_during_scheduling_ignored_during_execution.as_deref(),
            a.preferred_during_scheduling_ignored_during_execution.as_deref(),
        )
    });
    [near, far].into_iter().flatten().any(|(required, preferred)| {
        required.unwrap_or_default().iter().any(elsewhere)
            || preferred.unwrap_or_default().iter().any(|term| elsewhere(&term.pod_affinity_term))
    })
}

pub fn missing<'a>(pod: &Pod, required: impl Iterator<Item = &'a str>) -> Option<String> {
    let spec = pod.spec.as_ref().filter(|spec| !says_as_a_whole(spec))?;
    let required: BTreeSet<&str> = required.filter(|name| NAMED_BY_EACH.contains(name)).collect();
    let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        let resources = container.resources.as_ref();
        let named = of_amounts(&Side::Requests.of(resources), &Side::Limits.of(resources));
        for name in required.iter().filter(|name| !named.contains_key(**name)) {
            missing.entry(name).or_default().insert(&container.name);
        }
    }
    let each: Vec<String> = missing
        .into_iter()
        .map(|(name, containers)| {
            format!("{name} for: {}", containers.into_iter().collect::<Vec<_>>().join(","))
        })
        .collect();
    (!each.is_empty()).then(|| each.join("; "))
}
