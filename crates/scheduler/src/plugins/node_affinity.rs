//! Node selectors and node affinity: where a pod must go, and where it would rather go.

use std::borrow::Cow;

use k8s_openapi::api::core::v1::{PodSpec, PreferredSchedulingTerm};
use krate_api::placement;
use krate_api::selector::node::term_matches;

use crate::framework::{ClusterEvent, Cycle, Filter, Plugin, Reasons, Score, stretch};
use crate::nodes::{NodeId, Nodes};
use crate::pod::PodInfo;

pub struct NodeAffinity;

/// The nodes of which a pod must have one.
pub struct RequiredNodes<'a> {
    nodes: &'a Nodes,
    required: placement::RequiredNodes<'a>,
}

impl<'a> RequiredNodes<'a> {
    /// None if the pod may go anywhere.
    pub fn of(spec: &'a PodSpec, nodes: &'a Nodes) -> Option<Self> {
        placement::RequiredNodes::of(spec).map(|required| RequiredNodes { nodes, required })
    }

    pub fn allow(&self, node: NodeId) -> bool {
        self.required.allow(&self.nodes.labels[node], &self.nodes.names[node])
    }
}

struct Preferred<'a> {
    nodes: &'a Nodes,
    terms: &'a [PreferredSchedulingTerm],
}

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn filter<'a>(&self, cycle: Cycle<'a>) -> Option<Box<dyn Filter + 'a>> {
        RequiredNodes::of(cycle.pod.spec(), cycle.nodes).map(|r| Box::new(r) as _)
    }

    fn score<'a>(&self, cycle: Cycle<'a>, _: &[NodeId]) -> Option<Box<dyn Score + 'a>> {
        let affinity = cycle.pod.spec().affinity.as_ref()?.node_affinity.as_ref()?;
        let terms = affinity.preferred_during_scheduling_ignored_during_execution.as_deref()?;
        (!terms.is_empty()).then(|| Box::new(Preferred { nodes: cycle.nodes, terms }) as _)
    }

    fn may_help(&self, pod: &PodInfo, nodes: &Nodes, event: ClusterEvent<'_>) -> bool {
        let node = match event {
            ClusterEvent::NodeAdded(node) => node,
            ClusterEvent::NodeChanged { node, what } if what.labels => node,
            _ => return false,
        };
        RequiredNodes::of(pod.spec(), nodes).is_none_or(|r| r.allow(node))
    }
}

impl Filter for RequiredNodes<'_> {
    fn filter(&self, node: NodeId) -> Reasons {
        Reasons::when(!self.allow(node), 0)
    }

    fn reason(&self, _: u32) -> Cow<'_, str> {
        "node(s) didn't match Pod's node affinity/selector".into()
    }

    /// A pod of a DaemonSet names its node in every term: no other needs to be asked about.
    fn candidates(&self) -> Option<Vec<NodeId>> {
        let mut candidates = Vec::new();
        for term in self.required.terms()? {
            let name = term
                .match_fields
                .iter()
                .flatten()
                .find(|r| r.key == "metadata.name" && r.operator == "In")?;
            candidates.extend(name.values.iter().flatten().filter_map(|name| self.nodes.id(name)));
        }
        candidates.sort_unstable();
        candidates.dedup();
        Some(candidates)
    }
}

impl Score for Preferred<'_> {
    fn score(&self, node: NodeId) -> i64 {
        let (labels, name) = (&self.nodes.labels[node], &self.nodes.names[node]);
        let label = |key: &str| labels.get(key).map(String::as_str);
        let holds = |t: &&PreferredSchedulingTerm| term_matches(&t.preference, label, name);
        self.terms.iter().filter(holds).map(|t| i64::from(t.weight)).sum()
    }

    fn normalize(&self, _: &[NodeId], scores: &mut [i64]) {
        stretch(scores, false);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::nodes::tests::{node, pod};

    #[test]
    fn a_named_node_is_the_only_candidate() {
        let mut nodes = Nodes::default();
        nodes.put(&node("a", json!({})));
        nodes.put(&node("b", json!({"disk": "fast"})));
        let p = pod(
            &mut nodes,
            "p",
            json!({}),
            json!({"containers": [], "affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                    {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["b"]}]}]}}}}),
        );
        let required = RequiredNodes::of(p.spec(), &nodes).expect("is required");
        assert_eq!(required.candidates(), nodes.id("b").map(|b| vec![b]));
        assert!(!required.allow(nodes.id("a").expect("a")));
    }
}
