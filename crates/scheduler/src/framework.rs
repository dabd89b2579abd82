//! What a plugin is. Upstream's extension points, as Rust has them: a plugin looks at a pod once and hands out what it
//! needs for the rest of the cycle, a [`Filter`] or a [`Score`], whose fields are the cycle's state. A plugin to which
//! the pod is nothing hands out none, and costs nothing more.

use std::borrow::Cow;

use kube::core::Selector;

use crate::nodes::{NodeId, Nodes};
use crate::pod::{NamespaceLabels, PodInfo};

/// The highest score of one plugin for one node.
pub const MAX_SCORE: i64 = 100;

/// What plugins may look at, beside the nodes.
#[derive(Default)]
pub struct Surroundings {
    pub namespaces: NamespaceLabels,
}

/// One attempt to place one pod.
#[derive(Clone, Copy)]
pub struct Cycle<'a> {
    pub pod: &'a PodInfo,
    pub nodes: &'a Nodes,
    pub around: &'a Surroundings,
    /// What selects the pod's siblings: those of its services and of the controller that owns it.
    pub siblings: Option<&'a Selector>,
}

/// Why a node will not do: a set of a filter's own reasons. None means that it will.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Reasons(pub u32);

impl Reasons {
    pub const NONE: Reasons = Reasons(0);

    /// The `n`th reason alone, of 32.
    pub const fn only(n: u32) -> Reasons {
        Reasons(1 << n)
    }

    pub const fn when(condition: bool, n: u32) -> Reasons {
        if condition { Reasons::only(n) } else { Reasons::NONE }
    }

    pub fn is_none(self) -> bool {
        self.0 == 0
    }
}

/// Says of one node whether the pod of this cycle may go there. Called for hundreds of nodes: it must not allocate.
pub trait Filter {
    fn filter(&self, node: NodeId) -> Reasons;

    /// The words for the `n`th reason, as upstream's message has them.
    fn reason(&self, n: u32) -> Cow<'_, str>;

    /// The only nodes that can pass, if that is known beforehand.
    fn candidates(&self) -> Option<Vec<NodeId>> {
        None
    }
}

/// Says how well the pod of this cycle would be placed.
pub trait Score {
    fn score(&self, node: NodeId) -> i64;

    /// Brings the scores of all nodes, in the order of `nodes`, between 0 and [`MAX_SCORE`].
    fn normalize(&self, _nodes: &[NodeId], _scores: &mut [i64]) {}
}

/// What has happened in the cluster that may make room for a pod.
#[derive(Clone, Copy)]
pub enum ClusterEvent<'a> {
    NodeAdded(NodeId),
    NodeChanged {
        node: NodeId,
        what: NodeChange,
    },
    /// A pod was bound, or a bound pod has got other labels.
    PodPlaced(&'a PodInfo),
    /// A pod is gone from its node.
    PodGone(&'a PodInfo),
    NamespaceChanged,
}

impl ClusterEvent<'_> {
    /// As upstream's metrics call it.
    pub fn label(self) -> &'static str {
        match self {
            ClusterEvent::NodeAdded(_) => "NodeAdd",
            ClusterEvent::NodeChanged { what, .. } => what.label(),
            ClusterEvent::PodPlaced(_) => "AssignedPodAdd",
            ClusterEvent::PodGone(_) => "AssignedPodDelete",
            ClusterEvent::NamespaceChanged => "NamespaceUpdate",
        }
    }
}

/// What has changed in a node, as a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct NodeChange {
    pub allocatable: bool,
    pub labels: bool,
    pub taints: bool,
    pub unschedulable: bool,
}

impl NodeChange {
    pub fn any(self) -> bool {
        self.allocatable || self.labels || self.taints || self.unschedulable
    }

    /// The first of what has changed, as upstream's metrics call it.
    fn label(self) -> &'static str {
        match self {
            NodeChange { allocatable: true, .. } => "NodeUpdateNodeAllocatable",
            NodeChange { labels: true, .. } => "NodeUpdateNodeLabel",
            // A node that takes no pods has a taint that says so.
            _ => "NodeUpdateNodeTaint",
        }
    }
}

/// A plugin implements those that it means.
pub trait Plugin: Send + Sync {
    fn name(&self) -> &'static str;

    /// Label keys whose topology it will ask for.
    fn topologies(&self, _pod: &PodInfo, _into: &mut Vec<String>) {}

    fn filter<'a>(&self, _cycle: Cycle<'a>) -> Option<Box<dyn Filter + 'a>> {
        None
    }

    fn score<'a>(&self, _cycle: Cycle<'a>, _feasible: &[NodeId]) -> Option<Box<dyn Score + 'a>> {
        None
    }

    /// Whether the event may help a pod that this plugin's filter has kept from every node.
    fn may_help(&self, _pod: &PodInfo, _nodes: &Nodes, _event: ClusterEvent<'_>) -> bool {
        true
    }
}

/// Stretches scores so that the highest becomes [`MAX_SCORE`]; `reverse` makes the highest the worst.
pub fn stretch(scores: &mut [i64], reverse: bool) {
    let most = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        let part = if most == 0 { 0 } else { *score * MAX_SCORE / most };
        *score = if reverse { MAX_SCORE - part } else { part };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_stretched_to_the_full_range() {
        let cases: [(&[i64], bool, &[i64]); 4] = [
            (&[1, 2, 4], false, &[25, 50, 100]),
            (&[1, 2, 4], true, &[75, 50, 0]),
            (&[0, 0], false, &[0, 0]),
            (&[0, 0], true, &[100, 100]),
        ];
        for (scores, reverse, wanted) in cases {
            let mut scores = scores.to_vec();
            stretch(&mut scores, reverse);
            assert_eq!(scores, wanted);
        }
    }
}
