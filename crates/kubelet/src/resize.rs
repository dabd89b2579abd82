//! Resources of a pod that runs (KEP-1287): what is asked, what the node grants, and what the runtime has yet to be
//! told. Functions only.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_cri::v1::LinuxContainerResources;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use krate_api::Quantity;
use krate_api::quantity::Format;
use serde_json::json;

use crate::fieldpath::Allocatable;
use crate::observed::{ContainerSeen, Observed};
use crate::resources::{self, PERIOD, PodResources, Qos};
use crate::spec::containers;

/// Resources by container.
pub type Resources = BTreeMap<String, ResourceRequirements>;

fn statuses(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let status = pod.status.iter();
    status
        .flat_map(|s| s.init_container_statuses.iter().flatten().chain(s.container_statuses.iter().flatten()))
}

/// What the containers ask.
pub fn asked(pod: &Pod) -> Resources {
    containers(pod).map(|c| (c.name.clone(), c.resources.clone().unwrap_or_default())).collect()
}

/// What the containers were granted, by what was told of them; a container that has not run yet gets what it asks.
pub fn granted(pod: &Pod) -> Resources {
    let mut found = asked(pod);
    for status in statuses(pod).filter(|s| s.container_id.is_some()) {
        if let (Some(resources), Some(told)) = (found.get_mut(&status.name), &status.resources) {
            resources.requests.clone_from(&status.allocated_resources);
            resources.limits.clone_from(&told.limits);
        }
    }
    found
}

/// What the containers have, by what was told of them.
pub fn actual(pod: &Pod) -> PodResources {
    let mut found = asked(pod);
    for status in statuses(pod) {
        if let (Some(resources), Some(told)) = (found.get_mut(&status.name), &status.resources) {
            *resources = told.clone();
        }
    }
    resources::pod(&with(pod, &found))
}

/// The pod with these resources.
pub fn with(pod: &Pod, given: &Resources) -> Pod {
    let mut pod = pod.clone();
    if let Some(spec) = &mut pod.spec {
        for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
            if let Some(resources) = given.get(&container.name) {
                container.resources = Some(resources.clone());
            }
        }
    }
    pod
}

type Amounts = BTreeMap<String, ApiQuantity>;

fn same_amounts(a: Option<&Amounts>, b: Option<&Amounts>) -> bool {
    let empty = Amounts::new();
    let (a, b) = (a.unwrap_or(&empty), b.unwrap_or(&empty));
    let value = |q: &ApiQuantity| Quantity::parse(&q.0).ok();
    a.len() == b.len() && a.iter().all(|(name, q)| b.get(name).is_some_and(|other| value(q) == value(other)))
}

/// Whether two grants are the same amounts, however they are written.
pub fn same(a: &Resources, b: &Resources) -> bool {
    a.len() == b.len()
        && a.iter().all(|(name, of)| {
            b.get(name).is_some_and(|other| {
                same_amounts(of.requests.as_ref(), other.requests.as_ref())
                    && same_amounts(of.limits.as_ref(), other.limits.as_ref())
            })
        })
}

/// What all of these pods ask, but one.
pub fn used(pods: &[Arc<Pod>], but: &str) -> PodResources {
    let is_over =
        |p: &Pod| p.status.as_ref().and_then(|s| s.phase.as_deref()).is_some_and(crate::status::is_over);
    let others = pods.iter().filter(|p| p.metadata.uid.as_deref() != Some(but) && !is_over(p));
    others.fold(PodResources::default(), |sum, pod| {
        let one = resources::pod(&with(pod, &granted(pod)));
        PodResources {
            cpu_request: sum.cpu_request + one.cpu_request,
            memory_request: sum.memory_request + one.memory_request,
            ..sum
        }
    })
}

/// Why a pod cannot have other resources for as long as it runs: what containers of guaranteed pods have alone stays as
/// it was given. `managers` are those who give what is had alone: by resource, and as upstream calls them.
pub fn fixed(pod: &Pod, asked: &Resources, granted: &Resources, managers: &[(&str, &str)]) -> Option<String> {
    if resources::qos(pod) != Qos::Guaranteed {
        return None;
    }
    let amount = |of: &ResourceRequirements, name: &str| {
        let amounts = of.requests.as_ref().and_then(|r| r.get(name));
        amounts.or_else(|| of.limits.as_ref()?.get(name)).and_then(|q| Quantity::parse(&q.0).ok())
    };
    let is_other = |name: &str| {
        asked.iter().any(|(container, of)| {
            granted.get(container).is_some_and(|had| amount(of, name) != amount(had, name))
        })
    };
    let (_, manager) = managers.iter().find(|(name, _)| is_other(name))?;
    Some(format!("Resize is infeasible for Guaranteed Pods alongside {manager}"))
}

/// Whether the node has room for a pod that asks this, beside what is used.
///
/// # Errors
/// Reason and message: never (`Infeasible`), or not now (`Deferred`).
pub fn fits(
    asked: PodResources,
    used: PodResources,
    node: Allocatable,
) -> Result<(), (&'static str, String)> {
    let table = [
        ("cpu", asked.cpu_request, used.cpu_request, node.cpu_milli),
        ("memory", asked.memory_request, used.memory_request, node.memory),
    ];
    for (name, asked, _, capacity) in table {
        if asked > capacity {
            let message =
                format!("Node didn't have enough capacity: {name}, requested: {asked}, capacity: {capacity}");
            return Err(("Infeasible", message));
        }
    }
    for (name, asked, used, capacity) in table {
        if asked + used > capacity {
            let message = format!(
                "Node didn't have enough resource: {name}, requested: {asked}, used: {used}, capacity: {capacity}"
            );
            return Err(("Deferred", message));
        }
    }
    Ok(())
}

/// Which of a running container's resources are others than it was granted: processor, memory.
pub fn differs(container: &Container, seen: &ContainerSeen) -> (bool, bool) {
    let Some(has) = told(seen) else { return (false, false) };
    let of = container.resources.as_ref();
    let wanted = resources::shares(resources::cpu_request(of).unwrap_or(0));
    let quota = resources::cpu_limit(of).map_or(0, resources::quota);
    let cpu = has.cpu_shares > 0 && has.cpu_shares != wanted || has.cpu_quota.max(0) != quota;
    (cpu, limit(has) != resources::memory_limit(of).unwrap_or(0))
}

/// What the runtime tells of a running container, as far as it tells anything.
fn told(seen: &ContainerSeen) -> Option<&LinuxContainerResources> {
    seen.status.resources.as_ref().filter(|_| seen.is_running())?.linux.as_ref()
}

/// No limit may also be told as the largest number.
fn limit(has: &LinuxContainerResources) -> i64 {
    if has.memory_limit_in_bytes >= i64::MAX - (1 << 20) { 0 } else { has.memory_limit_in_bytes.max(0) }
}

/// Whether a container must be started again to get what it was granted.
pub fn needs_restart(container: &Container, seen: &ContainerSeen) -> bool {
    let (cpu, memory) = differs(container, seen);
    let restarts = |name: &str| {
        let policy = container.resize_policy.iter().flatten().find(|p| p.resource_name == name);
        policy.is_some_and(|p| p.restart_policy == "RestartContainer")
    };
    cpu && restarts("cpu") || memory && restarts("memory")
}

/// What the runtime is to be told: the containers that get less come first.
pub fn updates(pod: &Pod, seen: &Observed, memory_capacity: i64) -> Vec<(String, LinuxContainerResources)> {
    let mut found = Vec::new();
    for container in containers(pod) {
        let Some(current) = seen.current(&container.name).filter(|c| c.is_running()) else { continue };
        if differs(container, current) == (false, false) || needs_restart(container, current) {
            continue;
        }
        let wanted = resources::linux(pod, container, memory_capacity);
        let grows = told(current).is_some_and(|has| {
            wanted.memory_limit_in_bytes > limit(has) || wanted.cpu_shares > has.cpu_shares
        });
        found.push((grows, (current.id().to_owned(), wanted)));
    }
    found.sort_by_key(|(grows, _)| *grows);
    found.into_iter().map(|(_, update)| update).collect()
}

/// What a container has: what it was granted, but for what the runtime tells otherwise.
pub fn had(container: &Container, seen: &ContainerSeen) -> ResourceRequirements {
    let mut found = container.resources.clone().unwrap_or_default();
    found.claims = None;
    let (cpu, memory) = differs(container, seen);
    let Some(has) = told(seen) else { return found };
    let milli = |n: i64| ApiQuantity(Quantity::from_milli(n, Format::DecimalSi).to_string());
    if cpu
        && has.cpu_shares > 0
        && let Some(requests) = &mut found.requests
    {
        requests.insert("cpu".to_owned(), milli((has.cpu_shares * 1000 + 1023) / 1024));
    }
    if let Some(limits) = &mut found.limits {
        let quota = has.cpu_quota.max(0);
        if cpu && quota > 0 {
            let period = if has.cpu_period > 0 { has.cpu_period } else { PERIOD };
            limits.insert("cpu".to_owned(), milli(quota * 1000 / period));
        } else if cpu {
            limits.remove("cpu");
        }
        if memory && limit(has) > 0 {
            let bytes = Quantity::new(limit(has), Format::BinarySi);
            limits.insert("memory".to_owned(), ApiQuantity(bytes.to_string()));
        } else if memory {
            limits.remove("memory");
        }
    }
    found
}

/// Room for both.
pub fn widest(a: PodResources, b: PodResources) -> PodResources {
    let limit = |a: Option<i64>, b: Option<i64>| Some(a?.max(b?));
    PodResources {
        cpu_request: a.cpu_request.max(b.cpu_request),
        memory_request: a.memory_request.max(b.memory_request),
        cpu_limit: limit(a.cpu_limit, b.cpu_limit),
        memory_limit: limit(a.memory_limit, b.memory_limit),
        huge_pages: b.huge_pages,
        pids_limit: b.pids_limit,
    }
}

/// What events say of a resize: its beginning, and the resources that are asked.
pub fn summary(what: &str, pod: &Pod, generation: i64, error: &str) -> String {
    let list = |all: &[Container]| -> Vec<serde_json::Value> {
        all.iter()
            .map(|c| json!({"name": c.name, "resources": c.resources.clone().unwrap_or_default()}))
            .collect()
    };
    let spec = pod.spec.clone().unwrap_or_default();
    let mut said = json!({"containers": list(&spec.containers), "generation": generation});
    if let Some(inits) = spec.init_containers.filter(|i| !i.is_empty()) {
        said["initContainers"] = list(&inits).into();
    }
    if !error.is_empty() {
        said["error"] = error.into();
    }
    format!("{what}: {said}")
}

#[cfg(test)]
mod tests {
    use k8s_cri::v1::{ContainerResources, ContainerState, ContainerStatus as CriStatus};

    use super::*;
    use crate::names;

    fn pod(requests: &serde_json::Value, limits: &serde_json::Value, policy: &serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "uid": "u"}, "spec": {"containers": [
            {"name": "c", "resources": {"requests": requests, "limits": limits}, "resizePolicy": policy}]}}))
        .unwrap()
    }

    fn running(shares: i64, quota: i64, memory: i64) -> ContainerSeen {
        let linux = LinuxContainerResources {
            cpu_shares: shares,
            cpu_quota: quota,
            cpu_period: PERIOD,
            memory_limit_in_bytes: memory,
            ..Default::default()
        };
        ContainerSeen {
            sandbox: "s".into(),
            status: CriStatus {
                id: "c-id".into(),
                state: ContainerState::ContainerRunning as i32,
                labels: std::collections::HashMap::from([(names::CONTAINER_NAME.to_owned(), "c".to_owned())]),
                resources: Some(ContainerResources { linux: Some(linux), windows: None }),
                ..Default::default()
            },
        }
    }

    #[test]
    fn what_is_had_alone_stays_as_it_was_given() {
        let of = |cpu: &str, memory: &str, class: &str| {
            let mut pod = pod(&json!({}), &json!({"cpu": cpu, "memory": memory}), &json!([]));
            pod.status.get_or_insert_default().qos_class = Some(class.to_owned());
            pod
        };
        let (cpu, memory) =
            (("cpu", "CPU Manager policy \"static\""), ("memory", "Memory Manager policy \"Static\""));
        let said =
            |manager: &str| Some(format!("Resize is infeasible for Guaranteed Pods alongside {manager}"));
        for (class, wanted, managers, expected) in [
            ("Guaranteed", ("2", "1Gi"), &[cpu, memory][..], said("CPU Manager policy \"static\"")),
            ("Guaranteed", ("1", "2Gi"), &[cpu, memory], said("Memory Manager policy \"Static\"")),
            ("Guaranteed", ("1", "2Gi"), &[cpu], None),
            ("Guaranteed", ("1000m", "1024Mi"), &[cpu, memory], None),
            ("Guaranteed", ("2", "2Gi"), &[], None),
            ("Burstable", ("2", "2Gi"), &[cpu, memory], None),
        ] {
            let (granted, pod) = (asked(&of("1", "1Gi", class)), of(wanted.0, wanted.1, class));
            assert_eq!(
                fixed(&pod, &asked(&pod), &granted, managers),
                expected,
                "{class} {wanted:?} {managers:?}"
            );
        }
    }

    #[test]
    fn what_the_runtime_has_is_compared_with_what_was_granted() {
        let restart = json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
        let pod = pod(&json!({"cpu": "100m"}), &json!({"cpu": "200m", "memory": "64Mi"}), &restart);
        let container = &pod.spec.as_ref().unwrap().containers[0];
        for (shares, quota, memory, differing, restarts) in [
            (102, 20_000, 64 << 20, (false, false), false),
            (204, 20_000, 64 << 20, (true, false), false),
            (102, 10_000, 64 << 20, (true, false), false),
            (102, 20_000, 32 << 20, (false, true), true),
            (102, 20_000, i64::MAX, (false, true), true),
        ] {
            let seen = running(shares, quota, memory);
            assert_eq!(differs(container, &seen), differing, "{shares} {quota} {memory}");
            assert_eq!(needs_restart(container, &seen), restarts, "{shares} {quota} {memory}");
        }
        let has = had(container, &running(205, 10_000, 32 << 20));
        let amount = |all: &Option<Amounts>, name: &str| all.as_ref().unwrap()[name].0.clone();
        assert_eq!(amount(&has.requests, "cpu"), "201m");
        assert_eq!(
            (amount(&has.limits, "cpu"), amount(&has.limits, "memory")),
            ("100m".into(), "32Mi".into())
        );
    }

    #[test]
    fn a_node_grants_what_it_has() {
        let node = Allocatable { cpu_milli: 2000, memory: 1 << 30, ephemeral_storage: 0 };
        let of =
            |cpu, memory| PodResources { cpu_request: cpu, memory_request: memory, ..Default::default() };
        assert_eq!(fits(of(1000, 0), of(1000, 0), node), Ok(()));
        let never = "Node didn't have enough capacity: cpu, requested: 2001, capacity: 2000";
        assert_eq!(fits(of(2001, 0), of(0, 0), node), Err(("Infeasible", never.into())));
        let later = "Node didn't have enough resource: cpu, requested: 1500, used: 1000, capacity: 2000";
        assert_eq!(fits(of(1500, 0), of(1000, 0), node), Err(("Deferred", later.into())));
    }

    #[test]
    fn grants_are_found_again() {
        let mut asking = pod(&json!({"cpu": "200m"}), &json!({"cpu": "1"}), &json!([]));
        assert!(same(&granted(&asking), &asked(&asking)));
        asking.status =
            serde_json::from_value(json!({"containerStatuses": [{"name": "c", "image": "", "imageID": "",
            "containerID": "x://1", "ready": true, "restartCount": 0, "allocatedResources": {"cpu": "0.1"},
            "resources": {"requests": {"cpu": "100m"}, "limits": {"cpu": "1000m"}}}]}))
            .unwrap();
        let had = pod(&json!({"cpu": "100m"}), &json!({"cpu": "1"}), &json!([]));
        assert!(same(&granted(&asking), &asked(&had)) && !same(&granted(&asking), &asked(&asking)));
    }
}
