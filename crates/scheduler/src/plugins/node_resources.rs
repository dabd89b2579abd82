//! Resources: whether a pod fits, how empty a node would stay, and how evenly it would be used.

use std::borrow::Cow;

use crate::framework::{ClusterEvent, Cycle, Filter, MAX_SCORE, Plugin, Reasons, Score};
use crate::nodes::{NodeId, Nodes};
use crate::pod::{CPU, MEMORY, PodInfo};

/// Refuses nodes without room; prefers those with the most room left (`LeastAllocated`).
pub struct Fit;

/// Prefers nodes of which processor and memory are used in the same measure.
pub struct BalancedAllocation;

struct Room<'a> {
    nodes: &'a Nodes,
    pod: &'a PodInfo,
}

const TOO_MANY_PODS: u32 = 0;
/// Reasons are 32 at the most: the pods' count and the first 31 resources that the pod asks for.
const NAMED: usize = 31;

impl Room<'_> {
    fn short(&self, node: NodeId, resource: usize, asked: i64) -> bool {
        asked > self.nodes.allocatable(resource, node) - self.nodes.requested(resource, node)
    }
}

impl Plugin for Fit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn filter<'a>(&self, cycle: Cycle<'a>) -> Option<Box<dyn Filter + 'a>> {
        Some(Box::new(Room { nodes: cycle.nodes, pod: cycle.pod }))
    }

    fn score<'a>(&self, cycle: Cycle<'a>, _: &[NodeId]) -> Option<Box<dyn Score + 'a>> {
        Some(Box::new(LeastAllocated { nodes: cycle.nodes, adds: cycle.pod.scored }))
    }

    fn may_help(&self, pod: &PodInfo, nodes: &Nodes, event: ClusterEvent<'_>) -> bool {
        match event {
            ClusterEvent::NodeAdded(node) => Room { nodes, pod }.filter(node).is_none(),
            ClusterEvent::NodeChanged { node, what } => {
                what.allocatable && Room { nodes, pod }.filter(node).is_none()
            }
            ClusterEvent::PodGone(_) => true,
            _ => false,
        }
    }
}

impl Filter for Room<'_> {
    fn filter(&self, node: NodeId) -> Reasons {
        let mut reasons =
            Reasons::when(self.nodes.pods[node] + 1 > self.nodes.allowed_pods[node], TOO_MANY_PODS);
        for (n, (resource, asked)) in self.pod.requests.iter().enumerate() {
            if self.short(node, *resource, *asked) {
                reasons.0 |= Reasons::only(n.min(NAMED - 1) as u32 + 1).0;
            }
        }
        reasons
    }

    fn reason(&self, n: u32) -> Cow<'_, str> {
        if n == TOO_MANY_PODS {
            return "Too many pods".into();
        }
        let (resource, _) = self.pod.requests[n as usize - 1];
        format!("Insufficient {}", self.nodes.resources.name(resource)).into()
    }
}

struct LeastAllocated<'a> {
    nodes: &'a Nodes,
    adds: [i64; 2],
}

impl Score for LeastAllocated<'_> {
    fn score(&self, node: NodeId) -> i64 {
        let (mut sum, mut counted) = (0, 0);
        for (n, resource) in [CPU, MEMORY].into_iter().enumerate() {
            let capacity = self.nodes.allocatable(resource, node);
            if capacity > 0 {
                let used = self.nodes.scored[n][node] + self.adds[n];
                // In 128 bits: memory in bytes times a hundred can be large.
                let free = i128::from((capacity - used).max(0));
                sum += (free * i128::from(MAX_SCORE) / i128::from(capacity)) as i64;
                counted += 1;
            }
        }
        if counted == 0 { 0 } else { sum / counted }
    }
}

impl Plugin for BalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    /// A pod that asks for nothing changes no balance.
    fn score<'a>(&self, cycle: Cycle<'a>, _: &[NodeId]) -> Option<Box<dyn Score + 'a>> {
        let asks = |wanted| cycle.pod.requests.iter().find(|(r, _)| *r == wanted).map_or(0, |(_, n)| *n);
        let adds = [asks(CPU), asks(MEMORY)];
        (adds != [0, 0]).then(|| Box::new(Balance { nodes: cycle.nodes, adds }) as _)
    }
}

struct Balance<'a> {
    nodes: &'a Nodes,
    adds: [i64; 2],
}

impl Score for Balance<'_> {
    fn score(&self, node: NodeId) -> i64 {
        let part = |n: usize, resource| {
            let capacity = self.nodes.allocatable(resource, node);
            let used = self.nodes.requested(resource, node) + self.adds[n];
            (capacity > 0).then(|| (used as f64 / capacity as f64).min(1.0))
        };
        // The standard deviation of two numbers is half their distance.
        let deviation = match (part(0, CPU), part(1, MEMORY)) {
            (Some(cpu), Some(memory)) => (cpu - memory).abs() / 2.0,
            _ => 0.0,
        };
        ((1.0 - deviation) * MAX_SCORE as f64) as i64
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::framework::Surroundings;
    use crate::nodes::tests::{node, pod};

    #[test]
    fn what_is_missing_is_named() {
        let mut nodes = Nodes::default();
        nodes.put(&node("a", json!({})));
        let ask = |cpu: &str, memory: &str| json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}}]});
        let cases = [
            ("4", "8Gi", vec![]),
            ("4001m", "8Gi", vec!["Insufficient cpu"]),
            ("5", "9Gi", vec!["Insufficient cpu", "Insufficient memory"]),
        ];
        for (cpu, memory, wanted) in cases {
            let p = pod(&mut nodes, "p", json!({}), ask(cpu, memory));
            let around = Surroundings::default();
            let cycle = Cycle { pod: &p, nodes: &nodes, around: &around, siblings: None };
            let filter = Fit.filter(cycle).expect("always filters");
            let reasons = filter.filter(nodes.id("a").expect("a"));
            let words: Vec<_> = (0..32)
                .filter(|n| reasons.0 & (1 << n) != 0)
                .map(|n| filter.reason(n).into_owned())
                .collect();
            assert_eq!(words, wanted);
        }
    }

    #[test]
    fn emptier_and_better_balanced_nodes_score_higher() {
        let mut nodes = Nodes::default();
        nodes.put(&node("empty", json!({})));
        nodes.put(&node("used", json!({})));
        let ask =
            json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "1", "memory": "2Gi"}}}]});
        let cpu =
            json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "2", "memory": "0"}}}]});
        let there = pod(&mut nodes, "there", json!({}), cpu);
        nodes.place(there, "used", false);
        let p = pod(&mut nodes, "p", json!({}), ask);
        let around = Surroundings::default();
        let cycle = Cycle { pod: &p, nodes: &nodes, around: &around, siblings: None };
        let scores = |plugin: &dyn Plugin| {
            let score = plugin.score(cycle, &[]).expect("scores");
            ["empty", "used"].map(|n| score.score(nodes.id(n).expect("there")))
        };
        assert_eq!(scores(&Fit), [75, 50]);
        assert_eq!(scores(&BalancedAllocation), [100, 75]);
    }
}
