//! How the machine's processors lie together.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::set::CpuSet;
use crate::numa::NumaNode;
use crate::topology::Mask;

/// What processors have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Node,
    Socket,
    /// A third cache that a part of a node shares; where there is none, the socket.
    Cache,
    /// Named by its lowest processor, since cores of different sockets may have the same number.
    Core,
}

/// Where one processor is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    node: u32,
    socket: u32,
    cache: u32,
    core: u32,
}

impl Place {
    fn at(self, level: Level) -> u32 {
        match level {
            Level::Node => self.node,
            Level::Socket => self.socket,
            Level::Cache => self.cache,
            Level::Core => self.core,
        }
    }
}

/// The place of each processor that is online.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology(BTreeMap<u32, Place>);

impl Topology {
    /// As the kernel tells below `sysfs`, of a machine with these nodes.
    pub fn read(sysfs: &Path, nodes: &[NumaNode]) -> Self {
        let root = sysfs.join("devices/system/cpu");
        let text = |path: &Path| fs::read_to_string(path).unwrap_or_default();
        let online: CpuSet = text(&root.join("online")).parse().unwrap_or_default();
        let number = |cpu: u32, name: &str, default: u32| {
            text(&root.join(format!("cpu{cpu}/{name}"))).trim().parse().unwrap_or(default)
        };
        let mut first_of_core: BTreeMap<(u32, u32, u32), u32> = BTreeMap::new();
        let mut places = BTreeMap::new();
        for &cpu in &online.0 {
            let home = nodes.iter().find(|node| node.cpus.0.contains(&cpu));
            let node = home.map_or(0, |node| node.id);
            let socket = number(cpu, "topology/physical_package_id", 0);
            let core = number(cpu, "topology/core_id", cpu);
            let core = *first_of_core.entry((node, socket, core)).or_insert(cpu);
            let of_node = home.map_or(online.len(), |node| node.cpus.len());
            let cache = third_cache(&root.join(format!("cpu{cpu}/cache")), of_node).unwrap_or(socket);
            places.insert(cpu, Place { node, socket, cache, core });
        }
        Topology(places)
    }

    /// Processors in order, each of a node, a socket, a cache and a core.
    #[cfg(test)]
    pub fn of(places: impl IntoIterator<Item = (u32, u32, u32, u32)>) -> Self {
        let place = |(node, socket, cache, core)| Place { node, socket, cache, core };
        Topology((0..).zip(places).map(|(cpu, at)| (cpu, place(at))).collect())
    }

    pub fn all(&self) -> CpuSet {
        self.0.keys().copied().collect()
    }

    /// The numbers of what some processors are of, in order.
    pub fn ids(&self, of: &CpuSet, level: Level) -> BTreeSet<u32> {
        of.0.iter().filter_map(|cpu| self.0.get(cpu)).map(|place| place.at(level)).collect()
    }

    /// Those of some processors that are of this one.
    pub fn within(&self, of: &CpuSet, level: Level, id: u32) -> CpuSet {
        of.0.iter()
            .filter(|cpu| self.0.get(cpu).is_some_and(|place| place.at(level) == id))
            .copied()
            .collect()
    }

    /// How many there are.
    pub fn count(&self, level: Level) -> usize {
        self.ids(&self.all(), level).len()
    }

    /// Processors of each, on the average.
    pub fn per(&self, level: Level) -> usize {
        self.0.len() / self.count(level).max(1)
    }

    pub fn node(&self, cpu: u32) -> u32 {
        self.0.get(&cpu).map_or(0, |place| place.node)
    }

    /// Those of some processors that are of these nodes.
    pub fn in_nodes(&self, of: &CpuSet, nodes: Mask) -> CpuSet {
        of.0.iter().copied().filter(|cpu| nodes.contains(self.node(*cpu))).collect()
    }
}

/// The number of the third cache, if it is shared by less than a node's processors: one that all of them share says no more
/// than the node.
fn third_cache(directory: &Path, of_node: usize) -> Option<u32> {
    let number = |path: &Path| fs::read_to_string(path).ok()?.trim().parse::<u32>().ok();
    fs::read_dir(directory).into_iter().flatten().flatten().find_map(|entry| {
        let path = entry.path();
        let shared: CpuSet = fs::read_to_string(path.join("shared_cpu_list")).ok()?.parse().ok()?;
        let is_of_part = number(&path.join("level"))? > 2 && shared.len() < of_node;
        is_of_part.then(|| number(&path.join("id"))).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numa;

    #[test]
    fn processors_are_where_the_kernel_says() {
        let root = tempfile::tempdir().unwrap();
        // Two nodes, each a socket of two cores, whose processors n and n + 4 are siblings; each core has a cache.
        let place = |cpu: u32| (cpu % 4 / 2, cpu % 4 / 2, cpu % 2, Some(cpu % 4));
        let places: Vec<_> = (0..8).map(place).collect();
        numa::tests::describe(root.path(), &places, &[1 << 30, 1 << 30]);
        let topology = Topology::read(root.path(), &numa::nodes(root.path()));
        let expected = (0..8).map(|cpu: u32| (cpu % 4 / 2, cpu % 4 / 2, cpu % 4, cpu % 4));
        assert_eq!(topology, Topology::of(expected));
        assert_eq!(
            (topology.count(Level::Core), topology.per(Level::Core), topology.per(Level::Node)),
            (4, 2, 4)
        );
        let all = topology.all();
        assert_eq!(topology.within(&all, Level::Core, 1).to_string(), "1,5");
        assert_eq!(topology.in_nodes(&all, Mask::from_iter([1])).to_string(), "2-3,6-7");
    }

    #[test]
    fn a_cache_of_the_whole_node_is_the_sockets() {
        let root = tempfile::tempdir().unwrap();
        numa::tests::describe(root.path(), &[(0, 3, 0, Some(7)), (0, 3, 1, Some(7))], &[1 << 30]);
        let topology = Topology::read(root.path(), &numa::nodes(root.path()));
        assert_eq!(topology, Topology::of([(0, 3, 3, 0), (0, 3, 3, 1)]));
    }

    #[test]
    fn the_machine_has_at_least_one() {
        let sysfs = Path::new("/sys");
        assert!(!Topology::read(sysfs, &numa::nodes(sysfs)).all().is_empty());
    }
}
