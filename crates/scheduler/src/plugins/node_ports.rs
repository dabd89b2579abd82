//! Keeps pods that take the same port of the host apart.

use std::borrow::Cow;

use krate_api::placement::HostPort;

use crate::framework::{ClusterEvent, Cycle, Filter, Plugin, Reasons};
use crate::nodes::{NodeId, Nodes};
use crate::pod::PodInfo;

pub struct NodePorts;

struct Free<'a> {
    nodes: &'a Nodes,
    wanted: &'a [HostPort],
}

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn filter<'a>(&self, cycle: Cycle<'a>) -> Option<Box<dyn Filter + 'a>> {
        let wanted = cycle.pod.ports.as_slice();
        (!wanted.is_empty()).then(|| Box::new(Free { nodes: cycle.nodes, wanted }) as _)
    }

    fn may_help(&self, pod: &PodInfo, _: &Nodes, event: ClusterEvent<'_>) -> bool {
        match event {
            ClusterEvent::NodeAdded(_) => true,
            ClusterEvent::PodGone(gone) => {
                gone.ports.iter().any(|p| pod.ports.iter().any(|q| p.conflicts(q)))
            }
            _ => false,
        }
    }
}

impl Filter for Free<'_> {
    fn filter(&self, node: NodeId) -> Reasons {
        let taken = &self.nodes.ports[node];
        Reasons::when(taken.iter().any(|t| self.wanted.iter().any(|w| w.conflicts(t))), 0)
    }

    fn reason(&self, _: u32) -> Cow<'_, str> {
        "node(s) didn't have free ports for the requested pod ports".into()
    }
}
