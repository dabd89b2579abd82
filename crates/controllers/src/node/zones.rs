//! Nodes by zone, and how many of each zone are well: told under upstream's names (`node_collector_*`), and found out when
//! somebody asks.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use k8s_openapi::api::core::v1::Node;
use krate_client::Informer;
use krate_metrics::Stability::{Alpha, Stable};
use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, IntCounterVec, Opts};

use super::lifecycle::ready;
use crate::meta::labels;
use crate::metrics::FAMILIES;

const REGION: &str = "topology.kubernetes.io/region";
const ZONE: &str = "topology.kubernetes.io/zone";

/// Nodes whose pods were told to leave.
pub static EVICTIONS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    FAMILIES.counters(
        Stable,
        "node_collector_evictions_total",
        "Nodes whose pods were told to leave, by zone.",
        &["zone"],
    )
});

static ZONES: LazyLock<Zones> = LazyLock::new(|| FAMILIES.put(Ok(Zones::new())));

/// Tells of these nodes from now on.
pub fn tell_of(nodes: &Informer<Node>) {
    *ZONES.nodes.lock() = Some(nodes.clone());
}

/// The zone of a node as upstream names it: its region and its zone with a separator between, or nothing.
pub fn zone(node: &Node) -> String {
    let of = |key: &str| labels(&node.metadata).get(key).map_or("", String::as_str);
    match (of(REGION), of(ZONE)) {
        ("", "") => String::new(),
        (region, zone) => format!("{region}:\0:{zone}"),
    }
}

/// How many nodes of a zone there are, and how many of them are not ready.
fn count<'n>(nodes: impl Iterator<Item = &'n Node>) -> BTreeMap<String, (u32, u32)> {
    let mut zones = BTreeMap::new();
    for node in nodes {
        let (all, ill): &mut (u32, u32) = zones.entry(zone(node)).or_default();
        *all += 1;
        *ill += u32::from(ready(node) != "True");
    }
    zones
}

#[derive(Clone)]
struct Zones {
    nodes: Arc<Mutex<Option<Informer<Node>>>>,
    size: GaugeVec,
    ill: GaugeVec,
    health: GaugeVec,
}

impl Zones {
    fn new() -> Self {
        let gauges = |name: &str, help: &str| {
            let opts = Opts::new(format!("node_collector_{name}"), Alpha.help(help));
            GaugeVec::new(opts, &["zone"]).expect("the name is good")
        };
        Zones {
            nodes: Arc::default(),
            size: gauges("zone_size", "Nodes of a zone."),
            ill: gauges("unhealthy_nodes_in_zone", "Nodes of a zone that are not ready."),
            health: gauges("zone_health", "Nodes of a zone that are ready, of a hundred."),
        }
    }
}

impl Collector for Zones {
    fn desc(&self) -> Vec<&Desc> {
        [self.size.desc(), self.ill.desc(), self.health.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let nodes = self.nodes.lock().as_ref().map(Informer::list).unwrap_or_default();
        for gauges in [&self.size, &self.ill, &self.health] {
            gauges.reset();
        }
        for (zone, (all, ill)) in count(nodes.iter().map(|node| &**node)) {
            let (all, ill) = (f64::from(all), f64::from(ill));
            self.size.with_label_values(&[&zone]).set(all);
            self.ill.with_label_values(&[&zone]).set(ill);
            self.health.with_label_values(&[&zone]).set(100.0 * (all - ill) / all);
        }
        [self.size.collect(), self.ill.collect(), self.health.collect()].concat()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nodes_are_counted_in_their_zones() {
        let node = |zone: &str, ready: &str| -> Node {
            let labels = if zone.is_empty() { json!({}) } else { json!({REGION: "r", ZONE: zone}) };
            serde_json::from_value(json!({
                "metadata": {"labels": labels}, "status": {"conditions": [{"type": "Ready", "status": ready}]},
            }))
            .expect("a node")
        };
        let nodes = [node("a", "True"), node("a", "Unknown"), node("", "True")];
        let counted = count(nodes.iter());
        assert_eq!(counted, BTreeMap::from([(String::new(), (1, 0)), ("r:\0:a".to_owned(), (2, 1))]));
    }
}
