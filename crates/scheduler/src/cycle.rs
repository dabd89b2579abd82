//! One scheduling cycle: from a pod to its node, or to the reasons why there is none. No I/O, no waiting.

use std::collections::BTreeMap;
use std::time::Instant;

use prometheus::Histogram;

use crate::framework::{Cycle, Filter, Reasons, Score};
use crate::metrics::{Attempt, METRICS, Point};
use crate::nodes::NodeId;
use crate::plugins::PLUGINS;
use crate::queue::PluginSet;

/// What a cycle comes to.
pub enum Outcome {
    Node(NodeId),
    Nowhere { message: String, refused_by: PluginSet },
}

/// How many nodes that would do are enough to choose among: upstream's `numFeasibleNodesToFind` with its default,
/// adaptive percentage. The larger the cluster, the smaller the part that is looked at.
pub fn enough(nodes: usize) -> usize {
    const LEAST_NODES: usize = 100;
    const LEAST_PERCENT: usize = 5;
    if nodes < LEAST_NODES {
        return nodes;
    }
    let percent = 50usize.saturating_sub(nodes / 125).max(LEAST_PERCENT);
    (nodes * percent / 100).max(LEAST_NODES)
}

/// The plugins of one cycle of so many are timed, as upstream's are, and for no more than so many nodes: taking the time
/// takes longer than most of them do.
const TIMED_CYCLES: u64 = 10;
const TIMED_NODES: usize = 16;

/// What is remembered between cycles.
#[derive(Default)]
pub struct Placer {
    /// Where in the order of nodes the next cycle starts, so that all are looked at in turn.
    start: usize,
    /// Breaks ties between nodes of equal score.
    dice: u64,
    cycles: u64,
    feasible: Vec<NodeId>,
    totals: Vec<i64>,
    scores: Vec<i64>,
}

struct Asked<'a> {
    row: usize,
    filter: Box<dyn Filter + 'a>,
    /// How often it gave each of its reasons.
    counts: [u32; 32],
    /// How many nodes it was asked about.
    nodes: usize,
    /// Where it is noted what it took, where it passes a node and where it does not, in a cycle that is timed.
    timers: Option<[Histogram; 2]>,
}

impl Asked<'_> {
    fn ask(&mut self, node: NodeId) -> Reasons {
        self.nodes += 1;
        let Some([passed, refused]) = self.timers.as_ref().filter(|_| self.nodes <= TIMED_NODES) else {
            return self.filter.filter(node);
        };
        let began = Instant::now();
        let reasons = self.filter.filter(node);
        let timer = if reasons.is_none() { passed } else { refused };
        timer.observe(began.elapsed().as_secs_f64());
        reasons
    }
}

impl Placer {
    pub fn place(&mut self, cycle: Cycle<'_>) -> Outcome {
        let order = cycle.nodes.order();
        if order.is_empty() {
            let message = "no nodes available to schedule pods".to_owned();
            return Outcome::Nowhere { message, refused_by: PluginSet::default() };
        }
        let profile = cycle.pod.profile();
        let timed = self.cycles.is_multiple_of(TIMED_CYCLES);
        self.cycles += 1;
        let began = Instant::now();
        let mut asked: Vec<Asked<'_>> = PLUGINS
            .iter()
            .enumerate()
            .filter_map(|(row, r)| {
                let filter = r.plugin.filter(cycle)?;
                let timer = |attempt| METRICS.timer(r.plugin.name(), Point::Filter, attempt);
                let timers = timed.then(|| [Attempt::Scheduled, Attempt::Unschedulable].map(timer));
                Some(Asked { row, filter, counts: [0; 32], nodes: 0, timers })
            })
            .collect();
        let prepared = Instant::now();
        METRICS.point(Point::PreFilter, Attempt::Scheduled, profile, prepared - began);
        self.find(order, &mut asked);
        let found = Instant::now();
        let status = if self.feasible.is_empty() { Attempt::Unschedulable } else { Attempt::Scheduled };
        METRICS.point(Point::Filter, status, profile, found - prepared);
        for a in &asked {
            METRICS.evaluated(PLUGINS[a.row].plugin.name(), Point::Filter, profile, a.nodes);
        }
        match self.feasible.as_slice() {
            [] => nowhere(order.len(), &asked),
            [only] => Outcome::Node(*only),
            _ => {
                let best = self.best(cycle, timed);
                METRICS.point(Point::Score, Attempt::Scheduled, profile, found.elapsed());
                Outcome::Node(best)
            }
        }
    }

    /// Collects nodes that pass every filter, until there are enough.
    fn find(&mut self, order: &[NodeId], asked: &mut [Asked<'_>]) {
        self.feasible.clear();
        if let Some(candidates) = asked.iter().find_map(|a| a.filter.candidates()) {
            // The others are counted as refused, so that the message speaks of all nodes.
            let named = asked.iter().position(|a| a.filter.candidates().is_some()).unwrap_or(0);
            asked[named].counts[0] += (order.len() - candidates.len()) as u32;
            self.feasible.extend(candidates.into_iter().filter(|node| passes(asked, *node)));
            return;
        }
        let enough = enough(order.len());
        let start = self.start % order.len();
        let mut looked = 0;
        for &node in order[start..].iter().chain(&order[..start]) {
            looked += 1;
            if passes(asked, node) {
                self.feasible.push(node);
                if self.feasible.len() == enough {
                    break;
                }
            }
        }
        self.start = (start + looked) % order.len();
    }

    fn best(&mut self, cycle: Cycle<'_>, timed: bool) -> NodeId {
        self.totals.clear();
        self.totals.resize(self.feasible.len(), 0);
        for row in PLUGINS.iter().filter(|r| r.weight > 0) {
            let Some(scorer) = row.plugin.score(cycle, &self.feasible) else { continue };
            let scorer: &dyn Score = &*scorer;
            let (plugin, profile) = (row.plugin.name(), cycle.pod.profile());
            METRICS.evaluated(plugin, Point::Score, profile, self.feasible.len());
            self.scores.clear();
            let (some, rest) =
                self.feasible.split_at(if timed { TIMED_NODES.min(self.feasible.len()) } else { 0 });
            if !some.is_empty() {
                let timer = METRICS.timer(plugin, Point::Score, Attempt::Scheduled);
                for node in some {
                    let began = Instant::now();
                    self.scores.push(scorer.score(*node));
                    timer.observe(began.elapsed().as_secs_f64());
                }
            }
            self.scores.extend(rest.iter().map(|node| scorer.score(*node)));
            scorer.normalize(&self.feasible, &mut self.scores);
            for (total, score) in self.totals.iter_mut().zip(&self.scores) {
                *total += row.weight * score;
            }
        }
        let most = self.totals.iter().copied().max().unwrap_or(0);
        let ties = self.totals.iter().filter(|t| **t == most).count();
        let chosen = self.roll() as usize % ties.max(1);
        let best =
            self.totals.iter().enumerate().filter(|(_, t)| **t == most).nth(chosen).map_or(0, |(i, _)| i);
        self.feasible[best]
    }

    /// A number without pattern enough to spread ties (splitmix64).
    fn roll(&mut self) -> u64 {
        self.dice = self.dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.dice;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

fn passes(asked: &mut [Asked<'_>], node: NodeId) -> bool {
    for a in asked {
        let mut reasons = a.ask(node).0;
        if reasons != 0 {
            while reasons != 0 {
                a.counts[reasons.trailing_zeros() as usize] += 1;
                reasons &= reasons - 1;
            }
            return false;
        }
    }
    true
}

/// Upstream's message: how many nodes there are, and how often each reason was given.
fn nowhere(nodes: usize, asked: &[Asked<'_>]) -> Outcome {
    let mut refused_by = PluginSet::default();
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for a in asked {
        for (n, count) in a.counts.iter().enumerate().filter(|(_, c)| **c > 0) {
            *counts.entry(a.filter.reason(n as u32).into_owned()).or_insert(0) += count;
            refused_by.insert(a.row);
        }
    }
    let mut reasons: Vec<String> = counts.into_iter().map(|(reason, n)| format!("{n} {reason}")).collect();
    reasons.sort();
    Outcome::Nowhere {
        message: format!("0/{nodes} nodes are available: {}.", reasons.join(", ")),
        refused_by,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::framework::Surroundings;
    use crate::nodes::Nodes;
    use crate::nodes::tests::{node, pod};

    fn place(nodes: &mut Nodes, spec: Value) -> Result<String, String> {
        let p = pod(nodes, "p", json!({}), spec);
        let around = Surroundings::default();
        let cycle = Cycle { pod: &p, nodes, around: &around, siblings: None };
        match Placer::default().place(cycle) {
            Outcome::Node(id) => Ok(nodes.names[id].to_string()),
            Outcome::Nowhere { message, .. } => Err(message),
        }
    }

    fn asks(cpu: &str) -> Value {
        json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]})
    }

    #[test]
    fn the_part_that_is_looked_at_shrinks_with_the_cluster() {
        let cases = [(10, 10), (99, 99), (100, 100), (1000, 420), (5000, 500), (6000, 300), (130_000, 6500)];
        for (nodes, wanted) in cases {
            assert_eq!(enough(nodes), wanted, "{nodes} nodes");
        }
    }

    #[test]
    fn the_message_counts_every_reason() {
        let mut nodes = Nodes::default();
        assert_eq!(place(&mut nodes, asks("1")), Err("no nodes available to schedule pods".into()));
        for name in ["a", "b", "c"] {
            let mut n = node(name, json!({}));
            if name != "a" {
                let taint = json!({"key": "k", "effect": "NoSchedule"});
                n.spec = serde_json::from_value(json!({"taints": [taint]})).ok();
            }
            nodes.put(&n);
        }
        assert_eq!(place(&mut nodes, asks("1")), Ok("a".into()));
        assert_eq!(
            place(&mut nodes, asks("5")),
            Err("0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint(s).".into())
        );
    }

    #[test]
    fn plugins_are_counted_for_every_node_and_timed_now_and_then() {
        let mut nodes = Nodes::default();
        for n in 0..3 {
            nodes.put(&node(&format!("n{n}"), json!({})));
        }
        let profile = "counted";
        let mut spec = asks("1");
        spec["schedulerName"] = json!(profile);
        let p = pod(&mut nodes, "p", json!({}), spec);
        let around = Surroundings::default();
        let mut placer = Placer::default();
        for _ in 0..4 {
            placer.place(Cycle { pod: &p, nodes: &nodes, around: &around, siblings: None });
        }
        let families = crate::metrics::registry().gather();
        let row = |name: &str, labels: &[(&str, &str)]| {
            let family = families.iter().find(|family| family.name() == name).expect("a family");
            let has = |row: &&prometheus::proto::Metric| {
                labels.iter().all(|(name, value)| {
                    row.get_label().iter().any(|pair| pair.name() == *name && pair.value() == *value)
                })
            };
            family.get_metric().iter().find(has).cloned().expect("a row")
        };
        for point in ["Filter", "Score"] {
            let labels = [("plugin", "NodeResourcesFit"), ("extension_point", point)];
            let counted = [labels[0], labels[1], ("profile", profile)];
            let count = row("scheduler_plugin_evaluation_total", &counted).get_counter().get_value();
            assert!((count - 12.0).abs() < 0.1, "{point}: {count}");
            let timed = row("scheduler_plugin_execution_duration_seconds", &labels);
            assert!(timed.get_histogram().get_sample_count() >= 3, "{point}");
        }
    }

    #[test]
    fn equal_nodes_are_all_used() {
        let mut nodes = Nodes::default();
        for n in 0..4 {
            nodes.put(&node(&format!("n{n}"), json!({})));
        }
        let p = pod(&mut nodes, "p", json!({}), asks("1"));
        let around = Surroundings::default();
        let mut placer = Placer::default();
        let mut used = std::collections::BTreeSet::new();
        for _ in 0..100 {
            let cycle = Cycle { pod: &p, nodes: &nodes, around: &around, siblings: None };
            if let Outcome::Node(id) = placer.place(cycle) {
                used.insert(id);
            }
        }
        assert_eq!(used.len(), 4);
    }
}
