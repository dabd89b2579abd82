//! The plugins, one file each. To add one, add its file and its line to [`PLUGINS`].

mod image_locality;
mod inter_pod_affinity;
mod node_affinity;
mod node_name;
mod node_ports;
mod node_resources;
mod node_unschedulable;
mod taint_toleration;
mod topology_spread;

use crate::framework::Plugin;

pub use node_affinity::RequiredNodes;

/// A plugin and how much its score counts.
pub struct Row {
    pub plugin: &'static dyn Plugin,
    pub weight: i64,
}

/// In the order in which a node is asked about: the first filter that refuses it ends the questions. Upstream's
/// default order and weights.
pub static PLUGINS: &[Row] = &[
    Row { plugin: &node_unschedulable::NodeUnschedulable, weight: 0 },
    Row { plugin: &node_name::NodeName, weight: 0 },
    Row { plugin: &taint_toleration::TaintToleration, weight: 3 },
    Row { plugin: &node_affinity::NodeAffinity, weight: 2 },
    Row { plugin: &node_ports::NodePorts, weight: 0 },
    Row { plugin: &node_resources::Fit, weight: 1 },
    Row { plugin: &topology_spread::PodTopologySpread, weight: 2 },
    Row { plugin: &inter_pod_affinity::InterPodAffinity, weight: 2 },
    Row { plugin: &node_resources::BalancedAllocation, weight: 1 },
    Row { plugin: &image_locality::ImageLocality, weight: 1 },
];
