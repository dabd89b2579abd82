//! Who goes so that a critical pod finds room: as few pods as can be, of the least class of service, that ask for no more
//! than is needed.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use crate::admission::{Amounts, Short};
use crate::eviction::is_critical;
use crate::resources::{self, Qos};

pub const REASON: &str = "Preempting";
pub const MESSAGE: &str = "Preempted in order to admit critical pod";
/// Of the condition `DisruptionTarget` (KEP-3329).
pub const CONDITION: &str = "Pod was preempted by Kubelet to accommodate a critical pod.";

/// The pods that go, so that what is short is there.
///
/// # Errors
/// Upstream's message, when not even all would be enough.
pub fn victims(critical: &Pod, pods: &[Arc<Pod>], short: &[Short]) -> Result<Vec<Arc<Pod>>, String> {
    let of = |class: Qos| -> Vec<Arc<Pod>> {
        let all = pods.iter().filter(|pod| is_preemptable(critical, pod) && resources::qos(pod) == class);
        all.cloned().collect()
    };
    let (best_effort, burstable, guaranteed) = (of(Qos::BestEffort), of(Qos::Burstable), of(Qos::Guaranteed));
    let left = without(short, best_effort.iter().chain(&burstable).chain(&guaranteed));
    if !left.is_empty() {
        return Err(not_enough(&left));
    }
    // Of each class, only what would be missing still if all of the lesser ones had gone.
    let of_guaranteed = closest(guaranteed, without(short, best_effort.iter().chain(&burstable)))?;
    let of_burstable = closest(burstable, without(short, best_effort.iter().chain(&of_guaranteed)))?;
    let of_best_effort = closest(best_effort, without(short, of_burstable.iter().chain(&of_guaranteed)))?;
    Ok([of_best_effort, of_burstable, of_guaranteed].concat())
}

fn is_preemptable(critical: &Pod, pod: &Pod) -> bool {
    let priority = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.priority);
    if is_critical(critical) && !is_critical(pod) {
        return true;
    }
    priority(critical).zip(priority(pod)).is_some_and(|(own, other)| own > other)
}

fn not_enough(short: &[Short]) -> String {
    let each = short.iter().map(|s| format!("(res: {}, q: {}), ", s.resource, s.amount));
    let all = each.collect::<Vec<_>>().concat();
    format!("no set of running pods found to reclaim resources: [{all}]")
}

/// What is short still when these pods have gone.
fn without<'a>(short: &[Short], pods: impl Iterator<Item = &'a Arc<Pod>> + Clone) -> Vec<Short> {
    let left = short.iter().map(|short| {
        let freed: i64 = pods.clone().map(|pod| Amounts::of(pod).get(short.resource)).sum();
        Short { amount: short.amount - freed, ..*short }
    });
    left.filter(|short| short.amount > 0).collect()
}

/// Takes pods until nothing is short, each time the one that leaves least; of two alike, the one that asks for less.
fn closest(mut pods: Vec<Arc<Pod>>, mut short: Vec<Short>) -> Result<Vec<Arc<Pod>>, String> {
    let mut taken = Vec::new();
    while !short.is_empty() {
        let key = |pod: &Pod| {
            let asks = Amounts::of(pod);
            (distance(&short, asks), asks.get("memory"), asks.get("cpu"))
        };
        let best = pods
            .iter()
            .enumerate()
            .min_by(|(_, a), (_, b)| {
                let ((a, a_memory, a_cpu), (b, b_memory, b_cpu)) = (key(a), key(b));
                a.total_cmp(&b).then(a_memory.cmp(&b_memory)).then(a_cpu.cmp(&b_cpu))
            })
            .map(|(place, _)| place);
        let Some(place) = best else { return Err(not_enough(&short)) };
        let pod = pods.swap_remove(place);
        short = without(&short, std::iter::once(&pod));
        taken.push(pod);
    }
    Ok(taken)
}

/// How far a pod is from what is short: each resource counts alike, by the part of it that would be missing still.
fn distance(short: &[Short], asks: Amounts) -> f64 {
    let missing = |short: &Short| {
        let left = (short.amount - asks.get(short.resource)).max(0);
        (left as f64 / short.amount as f64).powi(2)
    };
    short.iter().map(missing).sum()
}

#[cfg(test)]
mod tests {
    use kube::ResourceExt as _;
    use serde_json::json;

    use super::*;

    fn pod(name: &str, priority: i32, class: &str, cpu: &str, memory: &str) -> Arc<Pod> {
        let resources = match class {
            "Guaranteed" => json!({"limits": {"cpu": cpu, "memory": memory}}),
            "Burstable" => json!({"requests": {"cpu": cpu, "memory": memory}}),
            _ => json!({}),
        };
        Arc::new(
            serde_json::from_value(
                json!({"metadata": {"name": name, "uid": name}, "spec": {"priority": priority,
                "containers": [{"name": "c", "resources": resources}]}}),
            )
            .unwrap(),
        )
    }

    #[test]
    fn as_few_as_can_be_of_the_least_class() {
        let pods = [
            pod("idle", 0, "BestEffort", "0", "0"),
            pod("small", 0, "Burstable", "100m", "1Mi"),
            pod("middle", 0, "Burstable", "500m", "1Mi"),
            pod("thrifty", 0, "Burstable", "500m", "1"),
            pod("sure", 0, "Guaranteed", "1", "1Gi"),
            pod("precious", 2_000_001_000, "Burstable", "2", "1Gi"),
        ];
        let critical = pod("critical", 2_000_000_000, "Burstable", "1", "1Mi");
        let found = |short: &[(&'static str, i64)]| {
            let short: Vec<Short> =
                short.iter().map(|(resource, amount)| Short { resource, amount: *amount }).collect();
            victims(&critical, &pods, &short).map(|all| all.iter().map(|p| p.name_any()).collect::<Vec<_>>())
        };
        for (short, gone) in [
            (&[("pods", 1)][..], &["idle"][..]),
            (&[("cpu", 50)], &["thrifty"]),
            (&[("cpu", 400)], &["thrifty"]),
            (&[("cpu", 900)], &["thrifty", "middle"]),
            (&[("cpu", 1500)], &["thrifty", "sure"]),
            (&[("memory", 1 << 20), ("cpu", 100)], &["small"]),
        ] {
            assert_eq!(found(short).unwrap(), gone, "{short:?}");
        }
        let error = found(&[("cpu", 5000)]).unwrap_err();
        assert_eq!(error, "no set of running pods found to reclaim resources: [(res: cpu, q: 2900), ]");
    }
}
