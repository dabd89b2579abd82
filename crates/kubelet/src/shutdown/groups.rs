//! Which pods end together, and how long they have.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use crate::config::ShutdownPeriod;

/// Pods that end together.
#[derive(Clone, Debug)]
pub struct Group {
    pub period: ShutdownPeriod,
    pub pods: Vec<Arc<Pod>>,
}

impl Group {
    /// Seconds that one of the pods has: no more than it asks for itself.
    pub fn grace_of(&self, pod: &Pod) -> i64 {
        let own = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
        own.map_or(self.period.seconds, |own| own.min(self.period.seconds)).max(1)
    }
}

/// How long all groups together have.
pub fn period(periods: &[ShutdownPeriod]) -> Duration {
    Duration::from_secs(periods.iter().map(|period| period.seconds.max(0).unsigned_abs()).sum())
}

/// The groups that have pods, the least important first. A pod is in the one of the highest priority that is not above its
/// own; below them all, it is in the first. `periods` ascend.
pub fn of(periods: &[ShutdownPeriod], pods: Vec<Arc<Pod>>) -> Vec<Group> {
    let mut groups: Vec<Group> =
        periods.iter().map(|period| Group { period: *period, pods: Vec::new() }).collect();
    for pod in pods {
        let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
        let above = groups.partition_point(|group| group.period.priority <= priority);
        if let Some(group) = groups.get_mut(above.saturating_sub(1)) {
            group.pods.push(pod);
        }
    }
    groups.retain(|group| !group.pods.is_empty());
    groups
}

#[cfg(test)]
mod tests {
    use kube::ResourceExt as _;
    use serde_json::json;

    use super::*;

    fn pod(name: &str, priority: Option<i32>) -> Arc<Pod> {
        let pod = json!({"metadata": {"name": name}, "spec": {"priority": priority, "containers": []}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    /// The seconds that each group has, and the names of its pods.
    fn named(groups: &[Group]) -> Vec<(i64, String)> {
        let names = |group: &Group| {
            let names: Vec<String> = group.pods.iter().map(|pod| pod.name_any()).collect();
            names.join(" ")
        };
        groups.iter().map(|group| (group.period.seconds, names(group))).collect()
    }

    #[test]
    fn the_least_important_go_first() {
        let period = |priority, seconds| ShutdownPeriod { priority, seconds };
        let pods = || vec![pod("critical", Some(2_000_000_001)), pod("plain", None), pod("low", Some(-5))];
        let two = ShutdownPeriod::of_two(30, 10);
        assert_eq!(named(&of(&two, pods())), [(20, "plain low".to_owned()), (10, "critical".to_owned())]);
        assert_eq!(super::period(&two), Duration::from_secs(30));

        let three = [period(10, 1), period(1000, 2), period(100_000, 3)];
        let pods = ["below", "first", "between", "second", "above"].iter().zip([0, 10, 999, 1000, 999_999]);
        let pods = pods.map(|(name, priority)| pod(name, Some(priority))).collect();
        assert_eq!(
            named(&of(&three, pods)),
            [(1, "below first between"), (2, "second"), (3, "above")].map(|(s, names)| (s, names.to_owned()))
        );
        assert!(of(&three, Vec::new()).is_empty());
    }

    #[test]
    fn no_pod_has_more_time_than_it_asks_for() {
        let group = Group { period: ShutdownPeriod { priority: 0, seconds: 10 }, pods: Vec::new() };
        for (asked, given) in [(None, 10), (Some(3), 3), (Some(30), 10), (Some(0), 1)] {
            let pod = json!({"spec": {"terminationGracePeriodSeconds": asked, "containers": []}});
            assert_eq!(group.grace_of(&serde_json::from_value(pod).unwrap()), given, "{asked:?}");
        }
    }
}
