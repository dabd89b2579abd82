//! What is counted of the addresses and ports that Services get, under upstream's names.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry};

use super::allocate::NODE_PORTS;
use super::ranges::{Range, Ranges};
use crate::instruments::{Alpha, Families};

/// Upper bounds of what it takes to give an address, in seconds.
const SECONDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

pub struct Metrics {
    families: Families,
    addresses: IntCounterVec,
    address_errors: IntCounterVec,
    durations: HistogramVec,
    ports: IntCounterVec,
    port_errors: IntCounterVec,
    ports_taken: IntGaugeVec,
    ports_free: IntGaugeVec,
    taken: Arc<RwLock<BTreeSet<IpAddr>>>,
}

impl Default for Metrics {
    fn default() -> Self {
        const OF: &[&str] = &["cidr", "scope"];
        let families = Families::default();
        let address = |name: &str, help: &str| {
            families.counters(Alpha, &format!("kube_apiserver_clusterip_allocator_{name}"), help, OF)
        };
        let port = |name: &str, help: &str| {
            families.counters(Alpha, &format!("kube_apiserver_nodeport_allocator_{name}"), help, &["scope"])
        };
        let ports = |name: &str, help: &str| {
            families.gauges(Alpha, &format!("kube_apiserver_nodeport_allocator_{name}"), help, &[])
        };
        Metrics {
            addresses: address("allocation_total", "Addresses that Services were given."),
            address_errors: address("allocation_errors_total", "Addresses that Services could not be given."),
            durations: families.histograms(
                Alpha,
                "kube_apiserver_clusterip_allocator_allocation_duration_seconds",
                "How long it took to give a Service its address.",
                &["cidr"],
                SECONDS,
            ),
            ports: port("allocation_total", "Node ports that Services were given."),
            port_errors: port("allocation_errors_total", "Node ports that Services could not be given."),
            ports_taken: ports("allocated_ports", "Node ports that Services have."),
            ports_free: ports("available_ports", "Node ports that are left for Services."),
            taken: Arc::default(),
            families,
        }
    }
}

impl Metrics {
    /// Counts an address that was given, or could not be. `scope`: whether it was asked for by name.
    pub fn address(&self, range: &Range, scope: &str, got: bool, took: Duration) {
        let range = range.to_string();
        let counts = if got { &self.addresses } else { &self.address_errors };
        counts.with_label_values(&[range.as_str(), scope]).inc();
        if got {
            self.durations.with_label_values(&[range]).observe(took.as_secs_f64());
        }
    }

    pub fn port(&self, scope: &str, got: bool) {
        let counts = if got { &self.ports } else { &self.port_errors };
        counts.with_label_values(&[scope]).inc();
    }

    pub fn ports_taken(&self, count: usize) {
        let (taken, all) = (i64::try_from(count).unwrap_or(i64::MAX), NODE_PORTS.count() as i64);
        self.ports_taken.with_label_values::<&str>(&[]).set(taken);
        self.ports_free.with_label_values::<&str>(&[]).set(all.saturating_sub(taken));
    }

    pub fn hear(&self, ip: IpAddr, is_taken: bool) {
        let mut taken = self.taken.write();
        if is_taken {
            taken.insert(ip);
        } else {
            taken.remove(&ip);
        }
    }

    /// All of it, with what is taken of each of these ranges.
    pub fn registry(&self, ranges: &Arc<Ranges>) -> Registry {
        let gauges = |name: &str, help: &str| {
            let name = format!("kube_apiserver_clusterip_allocator_{name}");
            IntGaugeVec::new(Opts::new(name, format!("[ALPHA] {help}")), &["cidr"]).expect("the name is good")
        };
        let usage = Usage {
            ranges: Arc::clone(ranges),
            taken: Arc::clone(&self.taken),
            allocated: gauges("allocated_ips", "Addresses of a range that Services have."),
            available: gauges("available_ips", "Addresses of a range that are left for Services."),
        };
        self.families.0.register(Box::new(usage)).expect("the names are free");
        self.families.0.clone()
    }
}

/// How much of each range is taken, found out when it is asked for.
struct Usage {
    ranges: Arc<Ranges>,
    taken: Arc<RwLock<BTreeSet<IpAddr>>>,
    allocated: IntGaugeVec,
    available: IntGaugeVec,
}

impl Collector for Usage {
    fn desc(&self) -> Vec<&Desc> {
        [self.allocated.desc(), self.available.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.allocated.reset();
        self.available.reset();
        let taken = self.taken.read();
        for range in self.ranges.ready() {
            let used = taken.iter().filter(|ip| range.contains(**ip)).count();
            let (used, all) = (used as i64, range.all().len() as i64);
            let name = [range.to_string()];
            self.allocated.with_label_values(&name).set(used);
            self.available.with_label_values(&name).set(all.saturating_sub(used));
        }
        [self.allocated.collect(), self.available.collect()].concat()
    }
}
