//! Which pods go first when there are too many.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;

use crate::meta::{condition, is_ready, node_of, phase};

/// How many related pods each node has.
pub type PerNode = HashMap<String, usize>;

/// The user's word on what a pod is worth (KEP-2255).
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// The first `count` pods by upstream's order: those without a node, then pending ones, then those not ready, then
/// the cheaper to delete, then those whose node has more of their like, then those ready for less time (by orders of
/// magnitude), with more restarts, younger.
pub fn first_to_go(pods: &[Arc<Pod>], count: usize, related: &PerNode) -> Vec<Arc<Pod>> {
    if count >= pods.len() {
        return pods.to_vec();
    }
    let now = Timestamp::now();
    let mut ranked = pods.to_vec();
    ranked.sort_by_cached_key(|pod| {
        let ready = is_ready(pod);
        let crowd = node_of(pod).and_then(|n| related.get(n)).copied().unwrap_or(0);
        let ready_since = condition(pod, "Ready").and_then(|c| c.last_transition_time.as_ref()).map(|t| t.0);
        let created = pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
        (
            node_of(pod).is_some(),
            match phase(pod) {
                "Pending" => 0,
                "Unknown" => 1,
                _ => 2,
            },
            ready,
            cost(pod),
            Reverse(crowd),
            if ready { magnitude(ready_since, now) } else { 0 },
            Reverse(restarts(pod)),
            magnitude(created, now),
            pod.metadata.uid.clone(),
        )
    });
    ranked.truncate(count);
    ranked
}

fn cost(pod: &Pod) -> i32 {
    let said = pod.metadata.annotations.as_ref().and_then(|a| a.get(DELETION_COST));
    said.and_then(|c| c.parse().ok()).unwrap_or(0)
}

/// The logarithm of an age: pods of about the same age are alike, and chance (their uid) decides between them
/// (KEP-2185).
fn magnitude(since: Option<Timestamp>, now: Timestamp) -> u32 {
    since.map_or(0, |t| (now.as_second() - t.as_second()).max(0).unsigned_abs().checked_ilog2().unwrap_or(0))
}

fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.as_deref()).unwrap_or_default();
    statuses.iter().map(|s| s.restart_count).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, node: Option<&str>, phase: &str, ready: bool, more: Value) -> Arc<Pod> {
        let status = if ready { "True" } else { "False" };
        let mut meta = json!({"name": name, "uid": name});
        if let (Some(meta), Some(more)) = (meta.as_object_mut(), more.as_object()) {
            meta.extend(more.clone());
        }
        let pod = json!({
            "metadata": meta,
            "spec": {"containers": [], "nodeName": node},
            "status": {"phase": phase, "conditions": [{"type": "Ready", "status": status}]},
        });
        Arc::new(serde_json::from_value(pod).expect("a pod"))
    }

    #[test]
    fn what_is_worth_least_goes_first() {
        let cheap = json!({"annotations": {DELETION_COST: "-5"}});
        let pods = [
            pod("ready", Some("a"), "Running", true, json!({})),
            pod("cheap", Some("a"), "Running", true, cheap),
            pod("unready", Some("a"), "Running", false, json!({})),
            pod("crowded", Some("b"), "Running", true, json!({})),
            pod("pending", Some("a"), "Pending", false, json!({})),
            pod("nowhere", None, "Pending", false, json!({})),
        ];
        let related = PerNode::from([("a".to_owned(), 4), ("b".to_owned(), 9)]);
        let order: Vec<_> = first_to_go(&pods, 5, &related)
            .iter()
            .map(|p| p.metadata.name.clone().unwrap_or_default())
            .collect();
        assert_eq!(order, ["nowhere", "pending", "unready", "cheap", "crowded"]);
    }
}
