//! Lets a pod that names a node go there only.

use std::borrow::Cow;

use crate::framework::{ClusterEvent, Cycle, Filter, Plugin, Reasons};
use crate::nodes::{NodeId, Nodes};
use crate::pod::PodInfo;

pub struct NodeName;

struct Named(Option<NodeId>);

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn filter<'a>(&self, cycle: Cycle<'a>) -> Option<Box<dyn Filter + 'a>> {
        let name = cycle.pod.spec().node_name.as_deref().filter(|n| !n.is_empty())?;
        Some(Box::new(Named(cycle.nodes.id(name))))
    }

    fn may_help(&self, _: &PodInfo, _: &Nodes, event: ClusterEvent<'_>) -> bool {
        matches!(event, ClusterEvent::NodeAdded(_))
    }
}

impl Filter for Named {
    fn filter(&self, node: NodeId) -> Reasons {
        Reasons::when(self.0 != Some(node), 0)
    }

    fn reason(&self, _: u32) -> Cow<'_, str> {
        "node(s) didn't match the requested node name".into()
    }
}
