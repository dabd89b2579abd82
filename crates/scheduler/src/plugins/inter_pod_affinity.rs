//! Puts pods near to, or far from, other pods; and respects that those that are there want others far.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::classes::Class;
use crate::framework::{ClusterEvent, Cycle, Filter, MAX_SCORE, Plugin, Reasons, Score};
use crate::nodes::{NOWHERE, NodeId, Nodes, Topology};
use crate::pod::{PodInfo, Term};

/// What a pod that must be near another adds to where that other would go.
const HARD_AFFINITY_WEIGHT: i64 = 1;

pub struct InterPodAffinity;

const NEAR: u32 = 0;
const FAR: u32 = 1;
const OTHERS_FAR: u32 = 2;

fn domain(topology: &Topology, node: NodeId) -> Option<usize> {
    topology.domain.get(node).copied().filter(|d| *d != NOWHERE).map(|d| d as usize)
}

/// Numbers by the domains of one topology.
struct Sums<'a> {
    topology: &'a Topology,
    sums: Vec<i64>,
}

impl<'a> Sums<'a> {
    fn new(topology: &'a Topology) -> Self {
        Sums { topology, sums: vec![0; topology.len()] }
    }

    fn add(&mut self, class: &Class, weight: i64) {
        for (node, n) in &class.on {
            if let Some(domain) = domain(self.topology, *node) {
                self.sums[domain] += n * weight;
            }
        }
    }

    fn at(&self, node: NodeId) -> Option<i64> {
        domain(self.topology, node).map(|d| self.sums[d])
    }
}

fn selects(term: &Term, cycle: Cycle<'_>, pod: &PodInfo) -> bool {
    term.matches(&pod.key.namespace, &pod.labels, &cycle.around.namespaces)
}

struct Rules<'a> {
    near: Vec<Sums<'a>>,
    /// No pod that the pod wants to be near is anywhere, and it is such a pod itself: it may be the first.
    first: bool,
    far: Vec<Sums<'a>>,
    others_far: Vec<Sums<'a>>,
}

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn topologies(&self, pod: &PodInfo, into: &mut Vec<String>) {
        let a = &pod.affinity;
        let terms = a.required.iter().chain(&a.required_anti).chain(&a.preferred);
        into.extend(terms.map(|t| t.topology_key.clone()));
    }

    fn filter<'a>(&self, cycle: Cycle<'a>) -> Option<Box<dyn Filter + 'a>> {
        let (nodes, affinity) = (cycle.nodes, &cycle.pod.affinity);
        let of = |term: &Term| nodes.topologies.get(&term.topology_key).map(Sums::new);
        let mut others: HashMap<&str, Sums<'a>> = HashMap::new();
        for class in nodes.classes.with_affinity() {
            for term in &class.example.affinity.required_anti {
                if selects(term, cycle, cycle.pod)
                    && let Some(topology) = nodes.topologies.get(&term.topology_key)
                {
                    others.entry(&term.topology_key).or_insert_with(|| Sums::new(topology)).add(class, 1);
                }
            }
        }
        let mut near: Vec<_> = affinity.required.iter().filter_map(of).collect();
        let mut far: Vec<_> = affinity.required_anti.iter().filter_map(of).collect();
        if near.is_empty() && far.is_empty() && others.is_empty() {
            return None;
        }
        if !near.is_empty() || !far.is_empty() {
            for class in nodes.classes.iter() {
                // A pod is one to be near to if all terms mean it, and one to be far from if any does.
                if affinity.required.iter().all(|t| selects(t, cycle, &class.example)) {
                    for sums in &mut near {
                        sums.add(class, 1);
                    }
                }
                for (term, sums) in affinity.required_anti.iter().zip(&mut far) {
                    if selects(term, cycle, &class.example) {
                        sums.add(class, 1);
                    }
                }
            }
        }
        let nobody = near.iter().all(|s| s.sums.iter().all(|n| *n == 0));
        let first = nobody && affinity.required.iter().all(|t| selects(t, cycle, cycle.pod));
        Some(Box::new(Rules { near, first, far, others_far: others.into_values().collect() }))
    }

    fn score<'a>(&self, cycle: Cycle<'a>, _: &[NodeId]) -> Option<Box<dyn Score + 'a>> {
        let nodes = cycle.nodes;
        let mut sums: HashMap<&str, Sums<'a>> = HashMap::new();
        let mut add = |term: &'a Term, class: &Class, weight: i64| {
            if let Some(topology) = nodes.topologies.get(&term.topology_key) {
                sums.entry(&term.topology_key).or_insert_with(|| Sums::new(topology)).add(class, weight);
            }
        };
        let wishes = &cycle.pod.affinity.preferred;
        if !wishes.is_empty() {
            for class in nodes.classes.iter() {
                for term in wishes.iter().filter(|t| selects(t, cycle, &class.example)) {
                    add(term, class, term.weight);
                }
            }
        }
        for class in nodes.classes.with_affinity() {
            let theirs = &class.example.affinity;
            for term in theirs.preferred.iter().filter(|t| selects(t, cycle, cycle.pod)) {
                add(term, class, term.weight);
            }
            for term in theirs.required.iter().filter(|t| selects(t, cycle, cycle.pod)) {
                add(term, class, HARD_AFFINITY_WEIGHT);
            }
        }
        (!sums.is_empty()).then(|| Box::new(Wishes(sums.into_values().collect())) as _)
    }

    fn may_help(&self, pod: &PodInfo, _: &Nodes, event: ClusterEvent<'_>) -> bool {
        match event {
            ClusterEvent::PodPlaced(_) => !pod.affinity.required.is_empty(),
            ClusterEvent::NodeChanged { what, .. } => what.labels,
            ClusterEvent::PodGone(_) | ClusterEvent::NodeAdded(_) | ClusterEvent::NamespaceChanged => true,
        }
    }
}

impl Filter for Rules<'_> {
    fn filter(&self, node: NodeId) -> Reasons {
        let near = self.near.iter().all(|s| match s.at(node) {
            Some(n) => n > 0 || self.first,
            None => false,
        });
        let somebody = |sums: &[Sums<'_>]| sums.iter().any(|s| s.at(node).is_some_and(|n| n > 0));
        if !near {
            Reasons::only(NEAR)
        } else if somebody(&self.far) {
            Reasons::only(FAR)
        } else {
            Reasons::when(somebody(&self.others_far), OTHERS_FAR)
        }
    }

    fn reason(&self, n: u32) -> Cow<'_, str> {
        match n {
            NEAR => "node(s) didn't match pod affinity rules",
            FAR => "node(s) didn't match pod anti-affinity rules",
            _ => "node(s) didn't satisfy existing pods anti-affinity rules",
        }
        .into()
    }
}

struct Wishes<'a>(Vec<Sums<'a>>);

impl Score for Wishes<'_> {
    fn score(&self, node: NodeId) -> i64 {
        self.0.iter().filter_map(|s| s.at(node)).sum()
    }

    fn normalize(&self, _: &[NodeId], scores: &mut [i64]) {
        let (least, most) = (scores.iter().min().copied(), scores.iter().max().copied());
        let (Some(least), Some(most)) = (least, most) else { return };
        for score in scores {
            *score = if most == least { 0 } else { MAX_SCORE * (*score - least) / (most - least) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::framework::Surroundings;
    use crate::nodes::tests::{node, pod};
    use crate::nodes::{HOSTNAME, ZONE};

    fn term(app: &str, key: &str) -> Value {
        json!({"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": key})
    }

    fn affine(nodes: &mut Nodes, name: &str, app: &str, affinity: Value) -> Arc<PodInfo> {
        let p = pod(nodes, name, json!({"app": app}), json!({"containers": [], "affinity": affinity}));
        let mut keys = Vec::new();
        InterPodAffinity.topologies(&p, &mut keys);
        for key in &keys {
            nodes.know_topology(key);
        }
        p
    }

    fn required(kind: &str, term: &Value) -> Value {
        json!({kind: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}})
    }

    /// Nodes a and b in zone x, c in zone y.
    fn cluster() -> Nodes {
        let mut nodes = Nodes::default();
        for (name, zone) in [("a", "x"), ("b", "x"), ("c", "y")] {
            nodes.put(&node(name, json!({ZONE: zone})));
        }
        nodes
    }

    fn passes(nodes: &Nodes, p: &PodInfo) -> [bool; 3] {
        let around = Surroundings::default();
        let cycle = Cycle { pod: p, nodes, around: &around, siblings: None };
        let filter = InterPodAffinity.filter(cycle);
        ["a", "b", "c"]
            .map(|n| filter.as_ref().is_none_or(|f| f.filter(nodes.id(n).expect("there")).is_none()))
    }

    #[test]
    fn a_pod_goes_near_those_that_it_must_be_near() {
        let mut nodes = cluster();
        let near = required("podAffinity", &term("db", ZONE));
        let p = affine(&mut nodes, "p", "web", near.clone());
        assert_eq!(passes(&nodes, &p), [false; 3], "there is none to be near to");
        let own = affine(&mut nodes, "db", "db", near);
        assert_eq!(passes(&nodes, &own), [true; 3], "the first of its like may go anywhere");
        nodes.place(own, "a", false);
        assert_eq!(passes(&nodes, &p), [true, true, false]);
    }

    #[test]
    fn pods_that_want_distance_get_it_both_ways() {
        let mut nodes = cluster();
        let far = required("podAntiAffinity", &term("web", HOSTNAME));
        let first = affine(&mut nodes, "first", "web", far.clone());
        nodes.place(first, "a", false);
        let second = affine(&mut nodes, "second", "web", far);
        assert_eq!(passes(&nodes, &second), [false, true, true]);
        let plain = affine(&mut nodes, "plain", "web", json!({}));
        assert_eq!(passes(&nodes, &plain), [false, true, true], "the one that is there wants it far");
        let other = affine(&mut nodes, "other", "db", json!({}));
        assert_eq!(passes(&nodes, &other), [true; 3]);
    }

    #[test]
    fn wishes_count_by_their_weight() {
        let mut nodes = cluster();
        let db = affine(&mut nodes, "db", "db", json!({}));
        nodes.place(db, "c", false);
        let wish = json!({"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution":
            [{"weight": 7, "podAffinityTerm": term("db", ZONE)}]}});
        let p = affine(&mut nodes, "p", "web", wish);
        let around = Surroundings::default();
        let cycle = Cycle { pod: &p, nodes: &nodes, around: &around, siblings: None };
        let ids = ["a", "b", "c"].map(|n| nodes.id(n).expect("there"));
        let score = InterPodAffinity.score(cycle, &ids).expect("it has a wish");
        let mut scores = ids.map(|n| score.score(n));
        assert_eq!(scores, [0, 0, 7]);
        score.normalize(&ids, &mut scores);
        assert_eq!(scores, [0, 0, 100]);
    }
}
