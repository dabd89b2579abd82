//! Of which nodes processors could be given.

use super::options::CpuOptions;
use super::set::CpuSet;
use super::topology::{Level, Topology};
use crate::topology::{Hint, Mask};

/// All sets of nodes that have `count` of the free processors, beside those that are used again and must all be of them.
pub fn hints(
    topology: &Topology,
    options: CpuOptions,
    free: &CpuSet,
    again: &CpuSet,
    count: usize,
) -> Vec<Hint> {
    let all = topology.all();
    let nodes: Vec<u32> = topology.ids(&all, Level::Node).into_iter().collect();
    // As few as could have so many, if nobody had any.
    let mut fewest = nodes.len();
    let mut masks: Vec<Mask> = Vec::new();
    for mask in Mask::all_of(&nodes) {
        if topology.in_nodes(&all, mask).len() >= count {
            fewest = fewest.min(mask.count());
        }
        let of_mask = topology.in_nodes(free, mask).len() + again.len();
        if topology.in_nodes(again, mask) == *again && of_mask >= count {
            masks.push(mask);
        }
    }
    let preferred = |mask: Mask| {
        mask.count() == fewest || (options.by_socket && is_of_fewest_sockets(topology, mask, fewest))
    };
    masks.into_iter().map(|mask| Hint { affinity: Some(mask), preferred: preferred(mask) }).collect()
}

/// Whether nodes are of no more sockets than that many nodes must be.
fn is_of_fewest_sockets(topology: &Topology, mask: Mask, fewest: usize) -> bool {
    let per_socket = topology.count(Level::Node) / topology.count(Level::Socket).max(1);
    per_socket > 0 && sockets(topology, mask).len() == fewest.div_ceil(per_socket)
}

fn sockets(topology: &Topology, mask: Mask) -> std::collections::BTreeSet<u32> {
    topology.ids(&topology.in_nodes(&topology.all(), mask), Level::Socket)
}

/// Those of some processors that are near: of the nodes, or of their sockets if these are the measure.
pub fn near(topology: &Topology, options: CpuOptions, of: &CpuSet, mask: Mask) -> CpuSet {
    if !options.by_socket {
        return topology.in_nodes(of, mask);
    }
    let near = sockets(topology, mask).into_iter().map(|socket| topology.within(of, Level::Socket, socket));
    near.fold(CpuSet::default(), |sum, more| sum.with(&more))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is hinted, as text: a set of nodes, and a star if it is preferred.
    fn said(topology: &Topology, options: CpuOptions, free: &str, again: &str, count: usize) -> Vec<String> {
        hints(topology, options, &free.parse().unwrap(), &again.parse().unwrap(), count)
            .into_iter()
            .map(|hint| {
                let nodes = hint.affinity.unwrap().nodes().collect::<CpuSet>();
                format!("{nodes}{}", if hint.preferred { "*" } else { "" })
            })
            .collect()
    }

    #[test]
    fn nodes_that_have_enough_are_hinted() {
        // Two sockets that are nodes, of four processors each: even ones and odd ones.
        let two = Topology::of((0..8).map(|cpu| (cpu % 2, cpu % 2, cpu % 2, cpu)));
        let plain = CpuOptions::default();
        for (free, again, count, expected) in [
            ("0-7", "", 2, &["0*", "1*", "0-1"][..]),
            ("0-7", "", 5, &["0-1*"]),
            ("0-1,3,5,7", "", 2, &["1*", "0-1"]),
            // One node would do, if it were free.
            ("0-1", "", 2, &["0-1"]),
            ("0,2", "", 3, &[]),
            ("0-7", "", 11, &[]),
            // What is used again must be of them.
            ("1,3,5,7", "0", 2, &["0-1"]),
            ("2-7", "0", 2, &["0*", "0-1"]),
            ("2-7", "0-1", 2, &["0-1"]),
        ] {
            assert_eq!(said(&two, plain, free, again, count), expected, "{count} of {free} and {again}");
        }
    }

    #[test]
    fn nodes_of_one_socket_are_as_good_as_one() {
        // Two sockets of two nodes of two processors.
        let four = Topology::of((0..8).map(|cpu| (cpu / 2, cpu / 4, cpu / 4, cpu)));
        let by_socket = CpuOptions { by_socket: true, ..CpuOptions::default() };
        for (options, free, count, expected) in [
            (CpuOptions::default(), "0,2,4-7", 2, &["2*", "3*"][..]),
            (by_socket, "0,2,4-7", 2, &["2*", "3*", "0-1*"]),
            (by_socket, "0-7", 6, &["0-2*", "0-1,3*", "0,2-3*", "1-3*", "0-3*"]),
        ] {
            let all = said(&four, options, free, "", count);
            let narrow: Vec<_> = all.into_iter().filter(|hint| hint.ends_with('*')).collect();
            assert!(expected.iter().all(|e| narrow.iter().any(|n| n == e)), "{narrow:?} {expected:?}");
            assert_eq!(narrow.iter().any(|hint| hint == "0-1*"), expected.contains(&"0-1*"), "{narrow:?}");
        }
        let of: CpuSet = "0-7".parse().unwrap();
        let zero = Mask::from_iter([0]);
        assert_eq!(near(&four, by_socket, &of, zero).to_string(), "0-3");
        assert_eq!(near(&four, CpuOptions::default(), &of, zero).to_string(), "0-1");
    }
}
