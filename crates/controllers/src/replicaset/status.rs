//! What a set says of its pods.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Counts, Replicated};
use crate::meta::{availability, is_ready, labels};

/// The counts, and in how many seconds they change if nothing else happens: when the next pod will have been ready
/// long enough.
pub fn count<K: Replicated>(
    set: &K,
    active: &[Arc<Pod>],
    terminating: usize,
    now: &Time,
) -> (Counts, Option<i64>) {
    let mut counts =
        Counts { replicas: active.len() as i32, terminating: terminating as i32, ..Counts::default() };
    let mut next = None;
    for pod in active {
        let has = labels(&pod.metadata);
        if set.template_labels().is_none_or(|wanted| wanted.iter().all(|(k, v)| has.get(k) == Some(v))) {
            counts.fully_labeled += 1;
        }
        if is_ready(pod) {
            counts.ready += 1;
            let (available, left) = availability(pod, set.min_ready_seconds(), now);
            counts.available += i32::from(available);
            next = next.into_iter().chain(left).min();
        }
    }
    (counts, next)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::ReplicaSet;
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_are_counted_as_they_are() {
        let set: ReplicaSet = serde_json::from_value(json!({
            "spec": {"minReadySeconds": 10, "selector": {}, "template": {"metadata": {"labels": {"a": "b"}}}}}))
        .expect("a set");
        let pod = |label: &str, ready: &str, since: &str| -> Arc<Pod> {
            Arc::new(
                serde_json::from_value(json!({
                    "metadata": {"labels": {"a": label}},
                    "status": {"conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": since}]}}))
                .expect("a pod"),
            )
        };
        let active = [
            pod("b", "True", "2026-01-01T00:00:00Z"),
            pod("b", "True", "2026-01-01T00:00:15Z"),
            pod("b", "True", "2026-01-01T00:00:18Z"),
            pod("c", "False", "2026-01-01T00:00:00Z"),
        ];
        let now = Time("2026-01-01T00:00:20Z".parse().expect("a time"));
        let (counts, next) = count(&set, &active, 2, &now);
        assert_eq!(counts, Counts { replicas: 4, fully_labeled: 3, ready: 3, available: 1, terminating: 2 });
        assert_eq!(next, Some(5));
        let updated = set.with_status(&counts, Some("no"), 4).expect("the status has changed");
        assert!(updated.with_status(&counts, Some("no"), 4).is_none(), "and then says so already");
    }
}
