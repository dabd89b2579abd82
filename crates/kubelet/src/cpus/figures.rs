//! How many processors are whose, as `/metrics` tells.

use std::collections::BTreeMap;

use super::{Cpus, taken};
use crate::server::text_format::{Family, one};

impl Cpus {
    /// Writes them as Prometheus reads them. Without the static policy none is anybody's.
    pub fn write(&self, out: &mut String) {
        let taken = taken(&self.owned.lock());
        let shared = self.allocatable().without(&taken);
        Family::gauge(
            "kubelet_cpu_manager_shared_pool_size_millicores",
            "[ALPHA] The size of the shared CPU pool for non-guaranteed QoS pods, in millicores.",
        )
        .rows(out, one(shared.len() as f64 * 1000.0));
        Family::gauge(
            "kubelet_cpu_manager_exclusive_cpu_allocation_count",
            "[ALPHA] The total number of CPUs exclusively allocated to containers running on this node",
        )
        .rows(out, one(taken.len() as f64));
        let mut by_node: BTreeMap<u32, u32> = BTreeMap::new();
        for cpu in &taken.0 {
            *by_node.entry(self.topology.node(*cpu)).or_default() += 1;
        }
        let rows = by_node
            .into_iter()
            .map(|(node, count)| (vec![("numa_node", node.to_string())], f64::from(count)));
        Family::gauge(
            "kubelet_cpu_manager_allocation_per_numa",
            "[ALPHA] Number of CPUs allocated per NUMA node",
        )
        .rows(out, rows);
    }
}
