//! The cluster's range of pod addresses, cut into one range a node: who holds what, and what is free next.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use krate_metrics::Stability::Alpha;
use prometheus::{Gauge, GaugeVec, IntCounter, IntCounterVec};

use crate::metrics::FAMILIES;

/// Some of the ranges, as many as a power of two: `index` counts those of the same size from the beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Block {
    power: u8,
    index: u128,
}

/// What is counted of all ranges, by the cluster's.
struct Families {
    given: IntCounterVec,
    returned: IntCounterVec,
    usage: GaugeVec,
    most: GaugeVec,
}

static METRICS: LazyLock<Families> = LazyLock::new(|| {
    const OF: &[&str] = &["clusterCIDR"];
    // One of the names is spelt so.
    let name = |end: &str| format!("node_ipam_controller_{end}");
    Families {
        given: FAMILIES.counters(
            Alpha,
            &name("cidrset_cidrs_allocations_total"),
            "Ranges that nodes got.",
            OF,
        ),
        returned: FAMILIES.counters(
            Alpha,
            &name("cidrset_cidrs_releases_total"),
            "Ranges that nodes gave back.",
            OF,
        ),
        usage: FAMILIES.fractions(
            Alpha,
            &name("cidrset_usage_cidrs"),
            "The part of all ranges that nodes have.",
            OF,
        ),
        most: FAMILIES.fractions(Alpha, &name("cirdset_max_cidrs"), "Ranges that nodes can have.", OF),
    }
});

/// The same of one cluster's.
struct Counts {
    given: IntCounter,
    returned: IntCounter,
    usage: Gauge,
    most: f64,
}

impl Counts {
    fn new(cluster: IpNet, power: Option<u8>) -> Self {
        let of = [cluster.to_string()];
        let most = power.map_or(0.0, |power| f64::from(power).exp2());
        METRICS.most.with_label_values(&of).set(most);
        Counts {
            given: METRICS.given.with_label_values(&of),
            returned: METRICS.returned.with_label_values(&of),
            usage: METRICS.usage.with_label_values(&of),
            most,
        }
    }

    fn uses(&self, taken: usize) {
        self.usage.set(if self.most > 0.0 { taken as f64 / self.most } else { 0.0 });
    }
}

/// Ranges of one size, numbered from the beginning of the cluster's.
pub struct Ranges {
    cluster: IpNet,
    prefix: u8,
    /// There are two to this power of them; `None` when there are none.
    power: Option<u8>,
    /// Where the search begins: ranges go round before one is given again, as upstream's do.
    next: u128,
    /// How many nodes hold a block; more than one only where somebody else gave it twice.
    taken: HashMap<Block, u32>,
    /// Whether none was free when last looked, and nothing was given back since: nodes beyond the last range ask again and
    /// again.
    full: bool,
    of: HashMap<String, Vec<IpNet>>,
    counts: Counts,
}

impl Ranges {
    /// Ranges of `prefix` bits within the cluster's. There are none if that is shorter than the cluster's own prefix, or
    /// longer than an address.
    pub fn new(cluster: IpNet, prefix: u8) -> Self {
        let power = prefix.checked_sub(cluster.prefix_len()).filter(|_| prefix <= cluster.max_prefix_len());
        let cluster = cluster.trunc();
        Ranges {
            counts: Counts::new(cluster, power),
            cluster,
            prefix,
            power,
            next: 0,
            taken: HashMap::new(),
            full: false,
            of: HashMap::new(),
        }
    }

    /// A node has these ranges, and no others.
    pub fn hold(&mut self, node: &str, ranges: Vec<IpNet>) {
        self.release(node);
        for range in &ranges {
            if let Some(block) = self.block(range) {
                *self.taken.entry(block).or_default() += 1;
                self.counts.given.inc();
            }
        }
        self.counts.uses(self.taken.len());
        self.of.insert(node.to_owned(), ranges);
    }

    /// A node is gone.
    pub fn release(&mut self, node: &str) {
        for range in self.of.remove(node).unwrap_or_default() {
            let Some(block) = self.block(&range) else { continue };
            self.full = false;
            self.counts.returned.inc();
            if let Some(holders) = self.taken.get_mut(&block) {
                *holders -= 1;
                if *holders == 0 {
                    self.taken.remove(&block);
                }
            }
        }
        self.counts.uses(self.taken.len());
    }

    /// A node's range: the one that it has, or the next that is free. `None` when there is none left.
    pub fn give(&mut self, node: &str) -> Option<IpNet> {
        if let Some(has) = self.of.get(node).and_then(|ranges| ranges.first()) {
            return Some(*has);
        }
        if self.full {
            return None;
        }
        let Some(slot) = self.free_from(self.next).or_else(|| self.free_from(0)) else {
            self.full = true;
            return None;
        };
        self.next = slot.wrapping_add(1);
        let range = self.range(slot);
        self.hold(node, vec![range]);
        Some(range)
    }

    /// The first free range from here on. Each step passes a whole block that is taken.
    fn free_from(&self, mut slot: u128) -> Option<u128> {
        let power = self.power?;
        while slot.checked_shr(power.into()).unwrap_or(0) == 0 {
            let around = |up: u8| Block { power: up, index: slot.checked_shr(up.into()).unwrap_or(0) };
            let Some(taken) = (0..=power).rev().map(around).find(|block| self.taken.contains_key(block))
            else {
                return Some(slot);
            };
            slot = 1u128.checked_shl(taken.power.into())?.checked_mul(taken.index + 1)?;
        }
        None
    }

    fn range(&self, slot: u128) -> IpNet {
        let up = u32::from(self.cluster.max_prefix_len() - self.prefix);
        let offset = slot.checked_shl(up).unwrap_or(0);
        match self.cluster {
            IpNet::V4(cluster) => {
                let address = u32::from(cluster.network()) + offset as u32;
                Ipv4Net::new_assert(Ipv4Addr::from(address), self.prefix).into()
            }
            IpNet::V6(cluster) => {
                let address = u128::from(cluster.network()) + offset;
                Ipv6Net::new_assert(Ipv6Addr::from(address), self.prefix).into()
            }
        }
    }

    /// Which of our ranges another one touches.
    fn block(&self, range: &IpNet) -> Option<Block> {
        if range.contains(&self.cluster) {
            return Some(Block { power: self.power?, index: 0 });
        }
        if !self.cluster.contains(range) {
            return None;
        }
        let number = |range: &IpNet| match range {
            IpNet::V4(range) => u128::from(u32::from(range.network())),
            IpNet::V6(range) => u128::from(range.network()),
        };
        let prefix = range.prefix_len().min(self.prefix);
        let down = u32::from(self.cluster.max_prefix_len() - prefix);
        let index = (number(range) - number(&self.cluster)).checked_shr(down).unwrap_or(0);
        Some(Block { power: self.prefix - prefix, index })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a range")
    }

    #[test]
    fn the_next_free_range_is_given() {
        let cases: [(&str, u8, &[&str], Option<&str>); 14] = [
            ("10.244.0.0/16", 24, &[], Some("10.244.0.0/24")),
            ("10.244.0.0/16", 24, &["10.244.0.0/24", "10.244.1.0/24"], Some("10.244.2.0/24")),
            ("10.244.0.0/16", 24, &["10.244.1.0/24"], Some("10.244.0.0/24")),
            ("10.244.0.0/16", 24, &["10.244.0.0/23"], Some("10.244.2.0/24")),
            ("10.244.0.0/16", 24, &["10.244.0.128/25"], Some("10.244.1.0/24")),
            ("10.244.0.0/16", 24, &["10.1.0.0/16"], Some("10.244.0.0/24")),
            ("10.244.0.0/16", 24, &["10.244.0.0/16"], None),
            ("10.244.0.0/16", 24, &["10.0.0.0/8"], None),
            ("10.244.0.0/16", 12, &[], None),
            ("fd00:10::/48", 64, &["fd00:10::/64"], Some("fd00:10:0:1::/64")),
            ("0.0.0.0/0", 32, &["0.0.0.0/1"], Some("128.0.0.0/32")),
            ("::/0", 128, &["::/1", "8000::/128"], Some("8000::1/128")),
            ("::/0", 128, &["::/0"], None),
            ("::/0", 128, &["::/1", "8000::/1"], None),
        ];
        for (cluster, prefix, taken, wanted) in cases {
            let mut ranges = Ranges::new(net(cluster), prefix);
            for (n, range) in taken.iter().enumerate() {
                ranges.hold(&format!("other-{n}"), vec![net(range)]);
            }
            assert_eq!(
                ranges.give("node"),
                wanted.map(net),
                "{cluster} cut into /{prefix} without {taken:?}"
            );
        }
    }

    #[test]
    fn a_node_keeps_its_range_and_all_are_given_before_one_is_again() {
        let mut ranges = Ranges::new(net("10.0.0.0/30"), 32);
        let given: Vec<IpNet> = ["a", "b", "c"].iter().filter_map(|node| ranges.give(node)).collect();
        assert_eq!(given, [net("10.0.0.0/32"), net("10.0.0.1/32"), net("10.0.0.2/32")]);
        assert_eq!(ranges.give("a"), Some(net("10.0.0.0/32")));
        ranges.release("a");
        assert_eq!(ranges.give("d"), Some(net("10.0.0.3/32")));
        assert_eq!(ranges.give("e"), Some(net("10.0.0.0/32")));
        assert_eq!(ranges.give("f"), None);
        // Somebody else gave what d had to g as well: it is free when both are gone.
        ranges.hold("g", vec![net("10.0.0.3/32")]);
        ranges.release("d");
        assert_eq!(ranges.give("f"), None);
        ranges.release("g");
        assert_eq!(ranges.give("f"), Some(net("10.0.0.3/32")));
    }
}
