//! What a pod is given of processors, memory and devices lies together, as far as that is configured (upstream's topology
//! manager, KEP-693): those who give say how they could, and what they have in common is what they go by.

mod admit;
mod counts;
mod mask;
mod merge;
mod options;

use std::sync::Arc;

pub use admit::{admit, unexpected};
pub use counts::{Boundary, Counts, Scope as Aligned};
pub use mask::Mask;
pub use merge::{Hint, Hints, Nodes};
pub use options::parse as parse_options;

use crate::numa::NumaNode;

/// How near to each other things must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// It does not matter.
    #[default]
    None,
    /// As near as can be.
    BestEffort,
    /// As near as could be on an empty machine.
    Restricted,
    /// Of one node.
    SingleNumaNode,
}

impl Policy {
    /// The policies under upstream's names.
    pub const NAMES: [(&str, Policy); 4] = [
        ("none", Policy::None),
        ("best-effort", Policy::BestEffort),
        ("restricted", Policy::Restricted),
        ("single-numa-node", Policy::SingleNumaNode),
    ];
}

/// What is configured of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopologyPolicy {
    pub policy: Policy,
    /// Whether all containers of a pod are to be near each other, and not only what one of them has.
    pub whole_pods: bool,
    /// `prefer-closest-numa-nodes`: of as many nodes, those that lie closer together (KEP-3545).
    pub prefer_closest: bool,
    /// `max-allowable-numa-nodes`: a machine with more is refused, since ways are tried by sets of nodes.
    pub max_nodes: usize,
}

impl Default for TopologyPolicy {
    fn default() -> Self {
        TopologyPolicy {
            policy: Policy::None,
            whole_pods: false,
            prefer_closest: false,
            max_nodes: options::MAX_NODES,
        }
    }
}

/// Who sees to it.
#[derive(Debug)]
pub struct Topology {
    policy: TopologyPolicy,
    nodes: Nodes,
    /// Pods are admitted one after the other, so that nobody takes what another has been told of.
    turn: tokio::sync::Mutex<()>,
    pub counts: Arc<Counts>,
}

impl Topology {
    /// For a machine with these nodes.
    ///
    /// # Errors
    /// Upstream's message, when it has too many.
    pub fn new(policy: &TopologyPolicy, nodes: &[NumaNode]) -> Result<Self, String> {
        if policy.policy != Policy::None {
            if nodes.len() > policy.max_nodes {
                let most = policy.max_nodes;
                return Err(format!("unsupported on machines with more than {most} NUMA Nodes"));
            }
            if policy.prefer_closest && nodes.iter().any(|node| node.distances.is_empty()) {
                return Err(
                    "cannot discover NUMA topology: error getting NUMA distances from cadvisor".to_owned()
                );
            }
        }
        let counts = Arc::new(Counts::new(policy.policy != Policy::None));
        Ok(Topology {
            policy: policy.clone(),
            nodes: Nodes::of(nodes),
            turn: tokio::sync::Mutex::default(),
            counts,
        })
    }

    /// Whether all that is given is of one node: what upstream counts as aligned.
    fn is_guaranteed(&self) -> bool {
        self.policy.policy == Policy::SingleNumaNode
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_with_too_many_nodes_is_refused() {
        let nodes: Vec<NumaNode> =
            (0..9).map(|id| NumaNode { id, distances: vec![10; 9], ..NumaNode::default() }).collect();
        let of = |policy, max_nodes| TopologyPolicy { policy, max_nodes, ..TopologyPolicy::default() };
        let error = Topology::new(&of(Policy::BestEffort, 8), &nodes).unwrap_err();
        assert_eq!(error, "unsupported on machines with more than 8 NUMA Nodes");
        assert!(Topology::new(&of(Policy::BestEffort, 9), &nodes).is_ok());
        assert!(Topology::new(&of(Policy::None, 8), &nodes).is_ok());
        let closest = TopologyPolicy { prefer_closest: true, ..of(Policy::Restricted, 8) };
        assert!(Topology::new(&closest, &[NumaNode::default()]).unwrap_err().contains("distances"));
    }
}
