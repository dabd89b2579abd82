//! Keeps pods off nodes with taints that they do not tolerate, and prefers nodes without taints that only ask to be
//! avoided.

use std::borrow::Cow;

use k8s_openapi::api::core::v1::{Taint, Toleration};

use crate::framework::{ClusterEvent, Cycle, Filter, Plugin, Reasons, Score, stretch};
use crate::nodes::{NodeId, Nodes};
use crate::pod::PodInfo;

/// Whether one of the tolerations bears the taint.
pub fn tolerated(taint: &Taint, tolerations: &[Toleration]) -> bool {
    tolerations.iter().any(|t| bears(t, taint))
}

fn bears(toleration: &Toleration, taint: &Taint) -> bool {
    let some = |s: &Option<String>| s.as_deref().unwrap_or_default().to_owned();
    if toleration.effect.as_deref().is_some_and(|e| !e.is_empty() && e != taint.effect) {
        return false;
    }
    let operator = toleration.operator.as_deref().filter(|o| !o.is_empty()).unwrap_or("Equal");
    let key = toleration.key.as_deref().unwrap_or_default();
    if !key.is_empty() && key != taint.key {
        return false;
    }
    match operator {
        "Exists" => true,
        "Equal" => !key.is_empty() && some(&toleration.value) == some(&taint.value),
        "Gt" | "Lt" => {
            let number = |s: &Option<String>| s.as_deref().and_then(|s| s.parse::<i64>().ok());
            match (number(&taint.value), number(&toleration.value)) {
                (Some(has), Some(bound)) if operator == "Gt" => has > bound,
                (Some(has), Some(bound)) => has < bound,
                _ => false,
            }
        }
        _ => false,
    }
}

pub struct TaintToleration;

struct Intolerable<'a> {
    nodes: &'a Nodes,
    tolerations: &'a [Toleration],
}

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn filter<'a>(&self, cycle: Cycle<'a>) -> Option<Box<dyn Filter + 'a>> {
        let tolerations = cycle.pod.spec().tolerations.as_deref().unwrap_or_default();
        Some(Box::new(Intolerable { nodes: cycle.nodes, tolerations }))
    }

    fn score<'a>(&self, cycle: Cycle<'a>, _: &[NodeId]) -> Option<Box<dyn Score + 'a>> {
        // With no such taint anywhere, every node would get the same.
        if cycle.nodes.softly_tainted == 0 {
            return None;
        }
        let tolerations = cycle.pod.spec().tolerations.as_deref().unwrap_or_default();
        Some(Box::new(Intolerable { nodes: cycle.nodes, tolerations }))
    }

    fn may_help(&self, pod: &PodInfo, nodes: &Nodes, event: ClusterEvent<'_>) -> bool {
        let node = match event {
            ClusterEvent::NodeAdded(node) => node,
            ClusterEvent::NodeChanged { node, what } if what.taints => node,
            _ => return false,
        };
        let tolerations = pod.spec().tolerations.as_deref().unwrap_or_default();
        Intolerable { nodes, tolerations }.filter(node).is_none()
    }
}

impl Filter for Intolerable<'_> {
    fn filter(&self, node: NodeId) -> Reasons {
        let hard = |t: &&Taint| t.effect == "NoSchedule" || t.effect == "NoExecute";
        let refused = self.nodes.taints[node].iter().filter(hard).any(|t| !tolerated(t, self.tolerations));
        Reasons::when(refused, 0)
    }

    fn reason(&self, _: u32) -> Cow<'_, str> {
        "node(s) had untolerated taint(s)".into()
    }
}

impl Score for Intolerable<'_> {
    fn score(&self, node: NodeId) -> i64 {
        let soft = |t: &&Taint| t.effect == "PreferNoSchedule";
        self.nodes.taints[node].iter().filter(soft).filter(|t| !tolerated(t, self.tolerations)).count() as i64
    }

    fn normalize(&self, _: &[NodeId], scores: &mut [i64]) {
        stretch(scores, true);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn tolerations_bear_taints_as_upstream_has_it() {
        let taint = json!({"key": "k", "value": "v", "effect": "NoSchedule"});
        let cases: [(Value, bool); 8] = [
            (json!({"operator": "Exists"}), true),
            (json!({"key": "k", "operator": "Exists"}), true),
            (json!({"key": "k", "value": "v"}), true),
            (json!({"key": "k", "value": "w"}), false),
            (json!({"key": "x", "operator": "Exists"}), false),
            (json!({"key": "k", "operator": "Exists", "effect": "NoExecute"}), false),
            (json!({"key": "k", "operator": "Equal", "value": "v", "effect": "NoSchedule"}), true),
            (json!({}), false),
        ];
        let taint: Taint = serde_json::from_value(taint).expect("a taint");
        for (toleration, wanted) in cases {
            let t: Toleration = serde_json::from_value(toleration.clone()).expect("a toleration");
            assert_eq!(tolerated(&taint, &[t]), wanted, "{toleration}");
        }
    }
}
