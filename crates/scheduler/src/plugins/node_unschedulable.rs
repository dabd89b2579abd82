//! Keeps pods off cordoned nodes, but those that tolerate it.

use std::borrow::Cow;

use k8s_openapi::api::core::v1::Taint;
use krate_api::placement::tolerated;

use crate::framework::{ClusterEvent, Cycle, Filter, Plugin, Reasons};
use crate::nodes::{NodeId, Nodes};
use crate::pod::PodInfo;

pub struct NodeUnschedulable;

struct Cordoned<'a>(&'a Nodes);

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn filter<'a>(&self, cycle: Cycle<'a>) -> Option<Box<dyn Filter + 'a>> {
        let cordon = Taint {
            key: "node.kubernetes.io/unschedulable".to_owned(),
            effect: "NoSchedule".to_owned(),
            ..Taint::default()
        };
        let tolerations = cycle.pod.spec().tolerations.as_deref().unwrap_or_default();
        (!tolerated(&cordon, tolerations)).then(|| Box::new(Cordoned(cycle.nodes)) as _)
    }

    fn may_help(&self, _: &PodInfo, nodes: &Nodes, event: ClusterEvent<'_>) -> bool {
        match event {
            ClusterEvent::NodeAdded(node) => !nodes.unschedulable[node],
            ClusterEvent::NodeChanged { node, what } => what.unschedulable && !nodes.unschedulable[node],
            _ => false,
        }
    }
}

impl Filter for Cordoned<'_> {
    fn filter(&self, node: NodeId) -> Reasons {
        Reasons::when(self.0.unschedulable[node], 0)
    }

    fn reason(&self, _: u32) -> Cow<'_, str> {
        "node(s) were unschedulable".into()
    }
}
