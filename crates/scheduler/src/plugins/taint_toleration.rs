//! Keeps pods off nodes with taints that they do not tolerate, and prefers nodes without taints that only ask to be
//! avoided.

use std::borrow::Cow;

use k8s_openapi::api::core::v1::{Taint, Toleration};
use krate_api::placement::tolerated;

use crate::framework::{ClusterEvent, Cycle, Filter, Plugin, Reasons, Score, stretch};
use crate::nodes::{NodeId, Nodes};
use crate::pod::PodInfo;

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
