//! Spreads a pod's like over zones, nodes or any other topology: as the pod asks for, or, if it asks for nothing and
//! has siblings, by upstream's default of a loose spread over nodes and zones.

use std::borrow::Cow;

use k8s_openapi::api::core::v1::TopologySpreadConstraint;
use krate_api::placement::tolerated;
use kube::core::{Selector, SelectorExt};

use crate::framework::{ClusterEvent, Cycle, Filter, MAX_SCORE, Plugin, Reasons, Score};
use crate::nodes::{HOSTNAME, NOWHERE, NodeId, Nodes, Topology, ZONE};
use crate::plugins::RequiredNodes;
use crate::pod::{PodInfo, add_keys};

pub struct PodTopologySpread;

/// The skew that the default spread bears: over nodes and over zones.
const DEFAULTS: [(&str, i64); 2] = [(HOSTNAME, 3), (ZONE, 5)];

/// A constraint, ready to be counted.
struct Constraint<'a> {
    topology: &'a Topology,
    selector: Cow<'a, Selector>,
    max_skew: i64,
    min_domains: i64,
    /// Whether nodes that the pod's node affinity refuses are left out of the count.
    honor_affinity: bool,
    honor_taints: bool,
}

/// Matches nothing: what a constraint without a selector selects.
fn nothing() -> Selector {
    kube::core::Expression::In("-".into(), std::collections::BTreeSet::new()).into()
}

fn constraints<'a>(cycle: Cycle<'a>, when: &str) -> Vec<Constraint<'a>> {
    let asked = cycle.pod.spec().topology_spread_constraints.iter().flatten();
    asked.filter(|c| c.when_unsatisfiable == when).filter_map(|c| constraint(cycle, c)).collect()
}

fn constraint<'a>(cycle: Cycle<'a>, c: &TopologySpreadConstraint) -> Option<Constraint<'a>> {
    let mut selector = c.label_selector.clone();
    add_keys(&mut selector, &cycle.pod.pod, c.match_label_keys.as_deref(), "In");
    let selector = match selector {
        None => nothing(),
        Some(selector) => selector.try_into().ok()?,
    };
    Some(Constraint {
        topology: cycle.nodes.topologies.get(&c.topology_key)?,
        selector: Cow::Owned(selector),
        max_skew: i64::from(c.max_skew),
        min_domains: i64::from(c.min_domains.unwrap_or(1)),
        honor_affinity: c.node_affinity_policy.as_deref() != Some("Ignore"),
        honor_taints: c.node_taints_policy.as_deref() == Some("Honor"),
    })
}

fn defaults(cycle: Cycle<'_>) -> Vec<Constraint<'_>> {
    let Some(siblings) = cycle.siblings else { return Vec::new() };
    if cycle.pod.spec().topology_spread_constraints.as_ref().is_some_and(|c| !c.is_empty()) {
        return Vec::new();
    }
    let known = DEFAULTS.iter().filter_map(|(key, skew)| Some((cycle.nodes.topologies.get(*key)?, *skew)));
    known
        .map(|(topology, max_skew)| Constraint {
            topology,
            selector: Cow::Borrowed(siblings),
            max_skew,
            min_domains: 1,
            honor_affinity: true,
            honor_taints: false,
        })
        .collect()
}

/// Which nodes count, by the policies of a constraint.
struct Counted<'a> {
    cycle: Cycle<'a>,
    required: Option<RequiredNodes<'a>>,
}

impl<'a> Counted<'a> {
    fn new(cycle: Cycle<'a>) -> Self {
        Counted { cycle, required: RequiredNodes::of(cycle.pod.spec(), cycle.nodes) }
    }

    fn counts(&self, c: &Constraint<'_>, node: NodeId) -> bool {
        let tolerations = self.cycle.pod.spec().tolerations.as_deref().unwrap_or_default();
        let bears = |node: NodeId| {
            let taints = self.cycle.nodes.taints[node].iter();
            taints.filter(|t| t.effect != "PreferNoSchedule").all(|t| tolerated(t, tolerations))
        };
        (!c.honor_affinity || self.required.as_ref().is_none_or(|r| r.allow(node)))
            && (!c.honor_taints || bears(node))
    }
}

fn domain(topology: &Topology, node: NodeId) -> Option<usize> {
    topology.domain.get(node).copied().filter(|d| *d != NOWHERE).map(|d| d as usize)
}

/// Adds up, by domain, the pods that a constraint counts on nodes that it counts.
fn count(c: &Constraint<'_>, cycle: Cycle<'_>, counts: impl Fn(NodeId) -> bool) -> Vec<i64> {
    let mut sums = vec![0; c.topology.len()];
    let classes = cycle.nodes.classes.of_namespace(&cycle.pod.key.namespace);
    for class in classes.filter(|class| !class.example.terminating && c.selector.matches(class.labels())) {
        for (node, n) in &class.on {
            if let Some(domain) = domain(c.topology, *node)
                && counts(*node)
            {
                sums[domain] += n;
            }
        }
    }
    sums
}

impl Plugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn topologies(&self, pod: &PodInfo, into: &mut Vec<String>) {
        let asked = pod.spec().topology_spread_constraints.iter().flatten();
        into.extend(asked.map(|c| c.topology_key.clone()));
    }

    fn filter<'a>(&self, cycle: Cycle<'a>) -> Option<Box<dyn Filter + 'a>> {
        let constraints = constraints(cycle, "DoNotSchedule");
        if constraints.is_empty() {
            return None;
        }
        let counted = Counted::new(cycle);
        // A node without one of the labels is in no domain of any.
        let in_all = |node| constraints.iter().all(|c| domain(c.topology, node).is_some());
        let limits = constraints
            .iter()
            .map(|c| {
                let mut present = vec![false; c.topology.len()];
                for &node in cycle.nodes.order() {
                    if let Some(domain) = domain(c.topology, node)
                        && in_all(node)
                        && counted.counts(c, node)
                    {
                        present[domain] = true;
                    }
                }
                let sums = count(c, cycle, |node| in_all(node) && counted.counts(c, node));
                let domains = present.iter().filter(|p| **p).count() as i64;
                let least = sums.iter().zip(&present).filter(|(_, p)| **p).map(|(n, _)| *n).min();
                let least = if domains < c.min_domains { 0 } else { least.unwrap_or(0) };
                let itself = i64::from(c.selector.matches(&cycle.pod.labels));
                Limit { topology: c.topology, most: least + c.max_skew - itself, sums }
            })
            .collect();
        Some(Box::new(Skew { limits }))
    }

    fn score<'a>(&self, cycle: Cycle<'a>, feasible: &[NodeId]) -> Option<Box<dyn Score + 'a>> {
        let asked = constraints(cycle, "ScheduleAnyway");
        // By default a node without a zone is not put last, only counted in none.
        let every_label = !asked.is_empty();
        let constraints = if asked.is_empty() { defaults(cycle) } else { asked };
        if constraints.is_empty() {
            return None;
        }
        let counted = Counted::new(cycle);
        let in_all = |node| !every_label || constraints.iter().all(|c| domain(c.topology, node).is_some());
        let ignored: Vec<NodeId> = feasible.iter().copied().filter(|n| !in_all(*n)).collect();
        let weighed = constraints
            .iter()
            .map(|c| {
                let mut present = vec![false; c.topology.len()];
                for node in feasible.iter().filter(|n| !ignored.contains(n)) {
                    if let Some(domain) = domain(c.topology, *node) {
                        present[domain] = true;
                    }
                }
                let domains = present.iter().filter(|p| **p).count();
                Weighed {
                    topology: c.topology,
                    sums: count(c, cycle, |node| in_all(node) && counted.counts(c, node)),
                    skew: c.max_skew - 1,
                    weight: (domains as f64 + 2.0).ln(),
                }
            })
            .collect();
        Some(Box::new(Spread { weighed, ignored }))
    }

    fn may_help(&self, pod: &PodInfo, _: &Nodes, event: ClusterEvent<'_>) -> bool {
        match event {
            ClusterEvent::PodPlaced(other) | ClusterEvent::PodGone(other) => {
                other.key.namespace == pod.key.namespace
            }
            ClusterEvent::NodeAdded(_) => true,
            ClusterEvent::NodeChanged { what, .. } => what.labels || what.taints,
            ClusterEvent::NamespaceChanged => false,
        }
    }
}

struct Limit<'a> {
    topology: &'a Topology,
    /// How many a domain may have before this pod comes.
    most: i64,
    sums: Vec<i64>,
}

struct Skew<'a> {
    limits: Vec<Limit<'a>>,
}

impl Filter for Skew<'_> {
    fn filter(&self, node: NodeId) -> Reasons {
        for limit in &self.limits {
            match domain(limit.topology, node) {
                None => return Reasons::only(1),
                Some(domain) if limit.sums[domain] > limit.most => return Reasons::only(0),
                Some(_) => {}
            }
        }
        Reasons::NONE
    }

    fn reason(&self, n: u32) -> Cow<'_, str> {
        match n {
            0 => "node(s) didn't match pod topology spread constraints",
            _ => "node(s) didn't match pod topology spread constraints (missing required label)",
        }
        .into()
    }
}

struct Weighed<'a> {
    topology: &'a Topology,
    sums: Vec<i64>,
    skew: i64,
    weight: f64,
}

struct Spread<'a> {
    weighed: Vec<Weighed<'a>>,
    ignored: Vec<NodeId>,
}

impl Score for Spread<'_> {
    /// The fewer the better: turned around when all are known.
    fn score(&self, node: NodeId) -> i64 {
        let cost = self.weighed.iter().filter_map(|w| {
            let count = w.sums[domain(w.topology, node)?];
            Some(count as f64 * w.weight + w.skew as f64)
        });
        cost.sum::<f64>().round() as i64
    }

    fn normalize(&self, nodes: &[NodeId], scores: &mut [i64]) {
        let ignored = |node: &NodeId| !self.ignored.is_empty() && self.ignored.contains(node);
        let counted = || nodes.iter().zip(scores.iter()).filter(|(n, _)| !ignored(n)).map(|(_, s)| *s);
        let (least, most) = (counted().min().unwrap_or(0), counted().max().unwrap_or(0));
        for (node, score) in nodes.iter().zip(scores.iter_mut()) {
            *score = match most {
                _ if ignored(node) => 0,
                0 => MAX_SCORE,
                _ => MAX_SCORE * (most + least - *score) / most,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::framework::Surroundings;
    use crate::nodes::tests::{node, pod};

    /// Nodes a and b in zone x, c in zone y, d in none, with these many pods labelled `app: web`.
    fn cluster(pods: [usize; 4]) -> Nodes {
        let mut nodes = Nodes::default();
        nodes.know_topology(ZONE);
        nodes.know_topology(HOSTNAME);
        for (name, zone) in [("a", "x"), ("b", "x"), ("c", "y")] {
            nodes.put(&node(name, json!({ZONE: zone})));
        }
        nodes.put(&node("d", json!({})));
        for (name, n) in ["a", "b", "c", "d"].into_iter().zip(pods) {
            for i in 0..n {
                let p = web(&mut nodes, &format!("{name}{i}"), json!([]));
                nodes.place(p, name, false);
            }
        }
        nodes
    }

    fn web(nodes: &mut Nodes, name: &str, constraints: Value) -> std::sync::Arc<PodInfo> {
        let spec = json!({"containers": [], "topologySpreadConstraints": constraints});
        pod(nodes, name, json!({"app": "web"}), spec)
    }

    #[test]
    fn a_hard_constraint_keeps_the_skew() {
        let cases = [
            ([0, 0, 0, 0], 1, [true, true, true, false]),
            ([1, 0, 0, 0], 1, [false, false, true, false]),
            ([1, 1, 1, 0], 1, [false, false, true, false]),
            ([1, 1, 1, 0], 2, [true, true, true, false]),
        ];
        for (pods, skew, wanted) in cases {
            let mut nodes = cluster(pods);
            let constraint = json!([{"maxSkew": skew, "topologyKey": ZONE, "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": {"matchLabels": {"app": "web"}}}]);
            let p = web(&mut nodes, "p", constraint);
            let around = Surroundings::default();
            let cycle = Cycle { pod: &p, nodes: &nodes, around: &around, siblings: None };
            let filter = PodTopologySpread.filter(cycle).expect("has a constraint");
            let passes = ["a", "b", "c", "d"].map(|n| filter.filter(nodes.id(n).expect("there")).is_none());
            assert_eq!(passes, wanted, "{pods:?} {skew}");
        }
    }

    #[test]
    fn by_default_siblings_are_spread_over_nodes_and_zones() {
        let mut nodes = cluster([2, 0, 0, 0]);
        let p = web(&mut nodes, "p", json!([]));
        let siblings: Selector = kube::core::Expression::Equal("app".into(), "web".into()).into();
        let around = Surroundings::default();
        let cycle = Cycle { pod: &p, nodes: &nodes, around: &around, siblings: Some(&siblings) };
        let feasible = ["a", "b", "c"].map(|n| nodes.id(n).expect("there"));
        let score = PodTopologySpread.score(cycle, &feasible).expect("has siblings");
        let mut scores = feasible.map(|n| score.score(n));
        score.normalize(&feasible, &mut scores);
        assert!(scores[0] < scores[1] && scores[1] < scores[2], "{scores:?}");
        let cycle = Cycle { siblings: None, ..cycle };
        assert!(PodTopologySpread.score(cycle, &feasible).is_none(), "nobody chose it");
    }
}
