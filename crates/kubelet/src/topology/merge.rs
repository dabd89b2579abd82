//! Where all that a container asks for can be had together (KEP-693): of what each of those who give says that it could do,
//! one from each, the nodes that all have in common; and the best of those.

use std::collections::{BTreeMap, BTreeSet};

use super::mask::Mask;
use super::{Policy, TopologyPolicy};
use crate::numa::NumaNode;

/// One way in which something can be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hint {
    /// The nodes that it would be of; none: that does not matter.
    pub affinity: Option<Mask>,
    /// Whether there is no way with fewer nodes.
    pub preferred: bool,
}

/// The ways of one who gives, by resource. Without a list, it does not matter where the resource is; with an empty one it
/// cannot be given.
pub type Hints = BTreeMap<String, Option<Vec<Hint>>>;

/// What the machine's nodes are, as far as it matters here.
#[derive(Clone, Debug, Default)]
pub struct Nodes {
    pub ids: Vec<u32>,
    pub distances: BTreeMap<u32, Vec<u64>>,
}

impl Nodes {
    pub fn of(nodes: &[NumaNode]) -> Self {
        Nodes {
            ids: nodes.iter().map(|node| node.id).collect(),
            distances: nodes.iter().map(|node| (node.id, node.distances.clone())).collect(),
        }
    }

    fn all(&self) -> Mask {
        self.ids.iter().copied().collect()
    }

    /// The mean of the distances between these nodes, each to itself included.
    fn distance(&self, mask: Mask) -> f64 {
        let between = |(from, to): (u32, u32)| {
            // The kernel lists distances by place, not by number: they differ where numbers are left out.
            let place = self.ids.iter().position(|id| *id == to).unwrap_or_default();
            self.distances.get(&from).and_then(|all| all.get(place)).map_or(0.0, |d| *d as f64)
        };
        let pairs = mask.nodes().flat_map(|from| mask.nodes().map(move |to| (from, to)));
        let sum: f64 = pairs.map(between).sum();
        sum / (mask.count() * mask.count()).max(1) as f64
    }

    /// Whether the first is of nodes that lie closer together. Fewer nodes are better in any case.
    fn is_closer(&self, one: Mask, other: Mask) -> bool {
        if one.count() != other.count() {
            return one.is_narrower_than(other);
        }
        let (first, second) = (self.distance(one), self.distance(other));
        if (first - second).abs() < f64::EPSILON { one < other } else { first < second }
    }
}

/// The best of all ways, and whether the pod may come.
pub fn merge(policy: &TopologyPolicy, nodes: &Nodes, all: &[Hints]) -> (Hint, bool) {
    if policy.policy == Policy::None {
        return (Hint { affinity: None, preferred: false }, true);
    }
    let mut resources = lists(all);
    let is_single = policy.policy == Policy::SingleNumaNode;
    if is_single {
        for hints in &mut resources {
            hints.retain(|hint| hint.preferred && hint.affinity.is_none_or(|mask| mask.count() == 1));
        }
    }
    let fewest = |hints: &Vec<Hint>| hints.iter().filter_map(|h| h.affinity).map(Mask::count).min();
    // Of ways that are not the best for everybody, it is one of as many nodes as who needs most needs.
    let aim = resources.iter().filter_map(fewest).max().unwrap_or(0);
    let closest = policy.prefer_closest && !is_single;
    let mut best: Option<(Mask, bool)> = None;
    for candidate in combined(nodes.all(), &resources) {
        if best.is_none_or(|best| is_better(nodes, closest, aim, candidate, best)) {
            best = Some(candidate);
        }
    }
    let (mask, preferred) = best.unwrap_or((nodes.all(), false));
    let is_anywhere = is_single && mask == nodes.all();
    let hint = Hint { affinity: (!is_anywhere).then_some(mask), preferred };
    (hint, preferred || policy.policy == Policy::BestEffort)
}

/// The ways by resource, of everybody.
fn lists(all: &[Hints]) -> Vec<Vec<Hint>> {
    let anywhere = |preferred| vec![Hint { affinity: None, preferred }];
    let mut lists = Vec::new();
    for hints in all {
        if hints.is_empty() {
            lists.push(anywhere(true));
        }
        lists.extend(hints.values().map(|hints| match hints {
            None => anywhere(true),
            Some(none) if none.is_empty() => anywhere(false),
            Some(some) => some.clone(),
        }));
    }
    lists
}

/// What any choice of one hint from each list comes to: the common nodes, and whether all prefer just these. Choices that
/// come to the same are followed once, so that many lists cost no more than their sum.
fn combined(all: Mask, resources: &[Vec<Hint>]) -> BTreeSet<(Mask, bool)> {
    // Nodes in common; whether it is preferred so far; and then, of which nodes exactly.
    let mut ways: BTreeSet<(Mask, bool, Option<Mask>)> = BTreeSet::from([(all, true, None)]);
    for hints in resources {
        ways = ways
            .iter()
            .flat_map(|(common, preferred, of)| {
                hints.iter().map(move |hint| {
                    let is_same = hint.affinity.is_none() || of.is_none() || *of == hint.affinity;
                    let preferred = *preferred && hint.preferred && is_same;
                    let common = hint.affinity.map_or(*common, |mask| common.and(mask));
                    (common, preferred, of.or(hint.affinity).filter(|_| preferred))
                })
            })
            .collect();
    }
    ways.into_iter()
        .filter(|(mask, ..)| !mask.is_empty())
        .map(|(mask, preferred, _)| (mask, preferred))
        .collect()
}

fn is_better(
    nodes: &Nodes,
    closest: bool,
    aim: usize,
    (mask, preferred): (Mask, bool),
    (best, best_preferred): (Mask, bool),
) -> bool {
    let fits_better = || if closest { nodes.is_closer(mask, best) } else { mask.is_narrower_than(best) };
    match (preferred, best_preferred) {
        (true, false) => return true,
        (false, true) => return false,
        (true, true) => return fits_better(),
        (false, false) => {}
    }
    let (count, best_count) = (mask.count(), best.count());
    if best_count > aim {
        return fits_better();
    }
    if best_count == aim {
        return count == aim && fits_better();
    }
    match count {
        _ if count > aim => false,
        _ if count == best_count => fits_better(),
        _ => count > best_count,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(nodes: &[u32]) -> Mask {
        nodes.iter().copied().collect()
    }

    fn hint(nodes: &[u32], preferred: bool) -> Hint {
        Hint { affinity: Some(mask(nodes)), preferred }
    }

    fn anywhere(preferred: bool) -> Hint {
        Hint { affinity: None, preferred }
    }

    fn of(hints: &[Hint]) -> Hints {
        Hints::from([("r".to_owned(), Some(hints.to_vec()))])
    }

    fn nodes(count: u32) -> Nodes {
        let far = |from: u32| (0..count).map(|to| if from == to { 10 } else { 20 }).collect();
        Nodes { ids: (0..count).collect(), distances: (0..count).map(|id| (id, far(id))).collect() }
    }

    fn policy(policy: Policy) -> TopologyPolicy {
        TopologyPolicy { policy, ..TopologyPolicy::default() }
    }

    const ALIKE: [Policy; 2] = [Policy::BestEffort, Policy::Restricted];
    const THREE: [Policy; 3] = [Policy::BestEffort, Policy::Restricted, Policy::SingleNumaNode];

    #[test]
    fn nobody_minds_or_nobody_can() {
        for p in ALIKE {
            let merged = |all: &[Hints]| merge(&policy(p), &nodes(2), all);
            let both = |preferred| hint(&[0, 1], preferred);
            assert_eq!(merged(&[]).0, both(true), "{p:?}");
            assert_eq!(merged(&[Hints::new()]).0, both(true), "{p:?}");
            assert_eq!(merged(&[Hints::from([("r".to_owned(), None)])]).0, both(true), "{p:?}");
            assert_eq!(merged(&[of(&[])]), (both(false), p == Policy::BestEffort), "{p:?}");
        }
        let single = |all: &[Hints]| merge(&policy(Policy::SingleNumaNode), &nodes(2), all);
        assert_eq!(single(&[Hints::new()]), (anywhere(true), true));
        assert_eq!(single(&[of(&[])]), (anywhere(false), false));
        assert_eq!(merge(&policy(Policy::None), &nodes(2), &[of(&[])]), (anywhere(false), true));
    }

    /// What is best, of who gives one resource each.
    #[test]
    fn the_nodes_that_all_have_in_common_are_chosen() {
        let (zero, one) = (hint(&[0], true), hint(&[1], true));
        let both = hint(&[0, 1], false);
        let cases: [(&str, Vec<Hints>, Hint); 9] = [
            ("one way of one", vec![of(&[one])], one),
            ("the narrower of two", vec![of(&[zero, both]), of(&[zero])], zero),
            ("the same of both", vec![of(&[zero, one]), of(&[one])], one),
            ("the lower of equals", vec![of(&[zero, one]), of(&[zero, one])], zero),
            ("where one does not mind", vec![of(&[one]), Hints::new()], one),
            ("different ones", vec![of(&[zero]), of(&[one])], hint(&[0, 1], false)),
            ("part of the other", vec![of(&[one]), of(&[both])], hint(&[1], false)),
            (
                "not preferred",
                vec![of(&[hint(&[0], false), hint(&[1], false)]), of(&[both])],
                hint(&[0], false),
            ),
            ("one cannot", vec![of(&[zero]), of(&[])], hint(&[0], false)),
        ];
        for (name, all, expected) in cases {
            for p in ALIKE {
                let admitted = expected.preferred || p == Policy::BestEffort;
                assert_eq!(merge(&policy(p), &nodes(2), &all), (expected, admitted), "{name} {p:?}");
            }
            let (hint, admitted) = merge(&policy(Policy::SingleNumaNode), &nodes(2), &all);
            assert_eq!(admitted, expected.preferred, "{name}");
            assert!(!admitted || hint == expected, "{name}: {hint:?}");
        }
    }

    #[test]
    fn one_node_is_not_preferred_where_two_are_needed() {
        let two = [hint(&[0, 1], true)];
        for p in THREE {
            let (hint, admitted) = merge(&policy(p), &nodes(2), &[of(&two)]);
            assert_eq!(admitted, p != Policy::SingleNumaNode, "{hint:?}");
        }
        // Preferred ways of different width are not the same way.
        let all = [of(&two), of(&[hint(&[0], true), hint(&[1], true), hint(&[0, 1], false)])];
        let (found, admitted) = merge(&policy(Policy::Restricted), &nodes(2), &all);
        assert_eq!((found, admitted), (hint(&[0, 1], false), false), "as many as who needs most needs");
    }

    #[test]
    fn what_is_not_preferred_has_as_many_nodes_as_who_needs_most() {
        let wide = |count: usize| Mask::all_of(&[0, 1, 2, 3]).into_iter().filter(move |m| m.count() >= count);
        let hints = |count: usize| -> Hints {
            let all: Vec<Hint> =
                wide(count).map(|m| Hint { affinity: Some(m), preferred: m.count() == count }).collect();
            of(&all)
        };
        for (needs, expected) in
            [([1, 2], &[0, 1][..]), ([1, 3], &[0, 1, 2]), ([2, 3], &[0, 1, 2]), ([2, 2], &[0, 1])]
        {
            let all: Vec<Hints> = needs.into_iter().map(hints).collect();
            let (found, _) = merge(&policy(Policy::BestEffort), &nodes(4), &all);
            assert_eq!(found, hint(expected, needs[0] == needs[1]), "{needs:?}");
        }
    }

    #[test]
    fn nodes_that_lie_close_together_are_preferred_if_that_is_wished() {
        let mut four = nodes(4);
        let table = [[10, 30, 12, 30], [30, 10, 30, 12], [12, 30, 10, 30], [30, 12, 30, 10]];
        four.distances = (0..).zip(table).map(|(id, row)| (id, row.to_vec())).collect();
        let two: Vec<Hint> = Mask::all_of(&[0, 1, 2, 3])
            .into_iter()
            .filter(|m| m.count() == 2)
            .map(|m| Hint { affinity: Some(m), preferred: true })
            .collect();
        for p in ALIKE {
            let plain = policy(p);
            let closest = TopologyPolicy { prefer_closest: true, ..plain.clone() };
            assert_eq!(merge(&plain, &four, &[of(&two)]).0, hint(&[0, 1], true), "{p:?}");
            assert_eq!(merge(&closest, &four, &[of(&two)]).0, hint(&[0, 2], true), "{p:?}");
        }
    }

    #[test]
    fn many_resources_on_many_nodes_take_no_longer_than_one() {
        let ids: Vec<u32> = (0..8).collect();
        let any: Vec<Hint> = Mask::all_of(&ids)
            .into_iter()
            .map(|m| Hint { affinity: Some(m), preferred: m.count() == 1 })
            .collect();
        let all: Vec<Hints> = (0..12).map(|_| of(&any)).collect();
        assert_eq!(merge(&policy(Policy::Restricted), &nodes(8), &all), (hint(&[0], true), true));
    }
}
