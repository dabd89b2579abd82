//! How much of its memory each NUMA node has left, and of which nodes some can be had (KEP-1769).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::numa::NumaNode;
use crate::topology::{Hint, Mask};

/// Bytes of one kind, `memory` or huge pages of a size, on one node. The fields have upstream's names in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Table {
    total: u64,
    system_reserved: u64,
    pub allocatable: u64,
    reserved: u64,
    free: u64,
}

/// One node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// How many blocks are, in part, of it.
    number_of_assignments: usize,
    pub memory_map: BTreeMap<String, Table>,
    /// The nodes that blocks share with it: one node is of one group.
    cells: Vec<u32>,
}

/// What somebody has of some nodes together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Block {
    pub numa_affinity: Vec<u32>,
    #[serde(rename = "type")]
    pub kind: String,
    pub size: u64,
}

impl Block {
    pub fn mask(&self) -> Mask {
        self.numa_affinity.iter().copied().collect()
    }
}

/// Bytes by kind.
pub type Amounts = BTreeMap<String, u64>;

/// All nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Machine(pub BTreeMap<u32, Node>);

impl Machine {
    /// One that nobody has anything of, but what is reserved by node and kind.
    pub fn new(nodes: &[NumaNode], reserved: &BTreeMap<u32, Amounts>) -> Self {
        let node = |node: &NumaNode| {
            let table = |kind: &str, total: u64, others: u64| {
                let of_node = reserved.get(&node.id).and_then(|of| of.get(kind));
                let system_reserved = of_node.copied().unwrap_or(0);
                let allocatable = total.saturating_sub(others).saturating_sub(system_reserved);
                let table = Table { total, system_reserved, allocatable, reserved: 0, free: allocatable };
                (kind.to_owned(), table)
            };
            let huge = node.huge_pages.iter().map(|(kind, bytes)| table(kind, *bytes, 0));
            // Huge pages are taken from all memory.
            let others = node.huge_pages.values().sum();
            let memory_map = huge.chain([table("memory", node.memory, others)]).collect();
            (node.id, Node { number_of_assignments: 0, memory_map, cells: vec![node.id] })
        };
        Machine(nodes.iter().map(node).collect())
    }

    fn sum(&self, nodes: Mask, kind: &str, of: fn(&Table) -> u64) -> u64 {
        let nodes = self.0.iter().filter(|(id, _)| nodes.contains(**id));
        nodes.filter_map(|(_, node)| node.memory_map.get(kind)).map(of).sum()
    }

    /// Takes a block, of which `size` bytes are not had by somebody before. Whether all of it was there.
    pub fn take(&mut self, block: &Block, size: u64) -> bool {
        let mut missing = size;
        let mut is_there = true;
        for id in &block.numa_affinity {
            let Some(node) = self.0.get_mut(id) else {
                is_there = false;
                continue;
            };
            node.number_of_assignments += 1;
            node.cells.clone_from(&block.numa_affinity);
            let Some(table) = node.memory_map.get_mut(&block.kind) else {
                is_there = false;
                continue;
            };
            let some = table.free.min(missing);
            table.free -= some;
            table.reserved += some;
            missing -= some;
        }
        is_there && missing == 0
    }

    /// Whether nodes have all of this left.
    pub fn has(&self, nodes: Mask, asked: &Amounts) -> bool {
        asked.iter().all(|(kind, size)| self.sum(nodes, kind, |table| table.free) >= *size)
    }

    /// Whether a block of these nodes would not go with those that are there: a node gives to itself, or to one group.
    pub fn is_at_odds(&self, nodes: Mask) -> bool {
        nodes.count() > 1
            && self.0.iter().filter(|(id, node)| nodes.contains(**id) && node.number_of_assignments > 0).any(
                |(_, node)| node.cells.len() == 1 || node.cells.iter().copied().collect::<Mask>() != nodes,
            )
    }

    /// All sets of nodes that have so much. `again` tells how much of a kind on a set can be used again.
    pub fn hints(&self, asked: &Amounts, again: &dyn Fn(Mask, &str) -> u64) -> Vec<Hint> {
        let ids: Vec<u32> = self.0.keys().copied().collect();
        // As few as could have so much, if nobody had any.
        let mut fewest = ids.len();
        let mut masks = Vec::new();
        for mask in Mask::all_of(&ids) {
            if !asked.iter().all(|(kind, size)| self.sum(mask, kind, |table| table.allocatable) >= *size) {
                continue;
            }
            fewest = fewest.min(mask.count());
            let is_of_group = |id: u32| self.0.get(&id).is_some_and(|node| node.cells.len() > 1);
            if mask.count() == 1 && mask.nodes().any(is_of_group) || self.is_at_odds(mask) {
                continue;
            }
            let free = |kind: &str| self.sum(mask, kind, |table| table.free) + again(mask, kind);
            if asked.iter().all(|(kind, size)| free(kind) >= *size) {
                masks.push(mask);
            }
        }
        let hint = |mask: Mask| Hint { affinity: Some(mask), preferred: mask.count() == fewest };
        masks.into_iter().map(hint).collect()
    }

    /// What can be given at all, a block for each node and kind.
    pub fn allocatable(&self) -> Vec<Block> {
        let of_node = |(id, node): (&u32, &Node)| -> Vec<Block> {
            let some = node.memory_map.iter().filter(|(_, table)| table.allocatable > 0);
            some.map(|(kind, table)| Block {
                numa_affinity: vec![*id],
                kind: kind.clone(),
                size: table.allocatable,
            })
            .collect()
        };
        self.0.iter().flat_map(of_node).collect()
    }
}

/// The best of several: preferred, and then with the fewest and lowest nodes.
pub fn best(hints: impl IntoIterator<Item = Hint>) -> Option<Hint> {
    hints.into_iter().filter(|hint| hint.affinity.is_some()).reduce(|best, hint| {
        let (Some(mask), Some(known)) = (hint.affinity, best.affinity) else { return best };
        let is_better = match (hint.preferred, best.preferred) {
            (true, false) => true,
            (false, true) => false,
            _ => mask.is_narrower_than(known),
        };
        if is_better { hint } else { best }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GI: u64 = 1 << 30;

    /// Nodes of 10 GiB, of which 1 GiB are huge pages and 1 GiB is reserved.
    fn machine(count: u32) -> Machine {
        let node = |id| NumaNode {
            id,
            memory: 10 * GI,
            huge_pages: [("hugepages-1Gi".to_owned(), GI)].into(),
            ..NumaNode::default()
        };
        let nodes: Vec<NumaNode> = (0..count).map(node).collect();
        let reserved = (0..count).map(|id| (id, [("memory".to_owned(), GI)].into())).collect();
        Machine::new(&nodes, &reserved)
    }

    fn block(nodes: &[u32], gib: u64) -> Block {
        Block { numa_affinity: nodes.to_vec(), kind: "memory".to_owned(), size: gib * GI }
    }

    fn said(machine: &Machine, asked: &[(&str, u64)]) -> Vec<String> {
        let asked = asked.iter().map(|(kind, gib)| ((*kind).to_owned(), gib * GI)).collect();
        let hints = machine.hints(&asked, &|_, _| 0);
        hints
            .iter()
            .map(|h| format!("{:?}{}", h.affinity.unwrap(), if h.preferred { "*" } else { "" }))
            .collect()
    }

    #[test]
    fn a_node_has_what_is_neither_reserved_nor_huge() {
        let machine = machine(1);
        let table = machine.0[&0].memory_map["memory"];
        assert_eq!((table.total, table.system_reserved, table.free), (10 * GI, GI, 8 * GI));
        assert_eq!(machine.0[&0].memory_map["hugepages-1Gi"].free, GI);
        assert_eq!(
            machine.allocatable().iter().map(|b| (b.kind.as_str(), b.size / GI)).collect::<Vec<_>>(),
            [("hugepages-1Gi", 1), ("memory", 8)]
        );
    }

    #[test]
    fn nodes_with_enough_left_are_hinted() {
        for (blocks, asked, expected) in [
            (&[][..], &[("memory", 8)][..], &["{0}*", "{1}*", "{0, 1}"][..]),
            (&[], &[("memory", 9)], &["{0, 1}*"]),
            (&[], &[("memory", 17)], &[]),
            (&[], &[("memory", 1), ("hugepages-1Gi", 2)], &["{0, 1}*"]),
            // One node would do, if it were free; and who has something alone shares with nobody.
            (&[block(&[0], 5)], &[("memory", 4)], &["{1}*"]),
            (&[block(&[0], 5), block(&[1], 5)], &[("memory", 4)], &[]),
            (&[block(&[0], 5)], &[("memory", 9)], &[]),
            // Nodes of a group give to the group.
            (&[block(&[0, 1], 9)], &[("memory", 4)], &["{0, 1}"]),
            (&[block(&[0, 1], 9)], &[("memory", 8)], &[]),
        ] {
            let mut machine = machine(2);
            for block in blocks {
                assert!(machine.take(block, block.size));
            }
            assert_eq!(said(&machine, asked), expected, "{asked:?} beside {blocks:?}");
        }
        let mut four = machine(4);
        four.take(&block(&[0, 1], 9), 9 * GI);
        assert_eq!(said(&four, &[("memory", 9)]), ["{2, 3}*"]);
    }

    #[test]
    fn what_is_used_again_is_there() {
        let mut machine = machine(1);
        assert!(machine.take(&block(&[0], 7), 7 * GI));
        let asked: Amounts = [("memory".to_owned(), 4 * GI)].into();
        assert!(machine.hints(&asked, &|_, _| 0).is_empty());
        let again = |mask: Mask, kind: &str| if mask.contains(0) && kind == "memory" { 3 * GI } else { 0 };
        assert_eq!(machine.hints(&asked, &again).len(), 1);
        assert!(!machine.has(Mask::from_iter([0]), &asked));
    }

    #[test]
    fn what_is_not_there_cannot_be_taken() {
        let mut machine = machine(1);
        assert!(!machine.take(&block(&[0], 9), 9 * GI));
        assert!(!machine.take(&block(&[3], 1), GI), "there is no such node");
        let other = Block { kind: "hugepages-2Mi".to_owned(), ..block(&[0], 1) };
        assert!(!machine.take(&other, GI), "nor such pages");
    }

    #[test]
    fn the_preferred_and_narrowest_is_the_best() {
        let hint =
            |nodes: &[u32], preferred| Hint { affinity: Some(nodes.iter().copied().collect()), preferred };
        let all = [hint(&[0, 1], false), hint(&[1, 2], true), hint(&[0, 2], true), hint(&[0], false)];
        assert_eq!(best(all), Some(hint(&[0, 2], true)));
        assert_eq!(best([]), None);
    }
}
