//! The backend for nftables: one table a cluster and address family.
//!
//! What a packet meets does not grow with the number of Services: a lookup by address, protocol and port gives the
//! Service's chain, and that has one rule that picks an endpoint, however many there are. A change rewrites the
//! chains and elements of the Services that changed, in one transaction.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use krate_nft::{Batch, Family, conntrack};

use crate::backend::{Changes, Error, Rules};
use crate::base;
use crate::programmed::Programmed;
use crate::tracker::ServiceMap;
use crate::{Config, Protocol};

/// Rules in the kernel's nftables.
#[derive(Debug)]
pub struct Nftables {
    config: Config,
    families: Vec<Programmed>,
}

impl Nftables {
    /// A backend that knows nothing of the kernel yet: its first change makes everything anew. It serves the
    /// families of the cluster's ranges, and IPv4 when there are none.
    pub fn new(config: &Config) -> Self {
        let ranges = || config.cluster_cidrs.iter().chain(&config.service_cidrs);
        let second = ranges().any(|range| range.addr().is_ipv6());
        let first = ranges().any(|range| range.addr().is_ipv4()) || !second;
        let families = [(Family::Ipv4, first), (Family::Ipv6, second)];
        let families =
            families.into_iter().filter(|(_, used)| *used).map(|(family, _)| Programmed::new(family));
        Self { config: config.clone(), families: families.collect() }
    }
}

impl Rules for Nftables {
    fn sync(&mut self, desired: &ServiceMap, changed: &Changes) -> Result<(), Error> {
        for family in &mut self.families {
            let mut batch = Batch::new(family.family, &table(&self.config));
            let known = std::mem::take(&mut family.known) && !family.numbers_run_low();
            if known {
                family.change(&mut batch, &self.config, desired, changed.iter());
            } else {
                *family = Programmed::new(family.family);
                base::write(&mut batch, family.family, &self.config);
                family.change(&mut batch, &self.config, desired, desired.keys());
            }
            batch.commit()?;
            family.known = true;
            if let Err(error) = forget_stale(family.family, desired, changed) {
                tracing::warn!(%error, "connections to endpoints that are gone could not be forgotten");
            }
        }
        Ok(())
    }

    fn clean_up(&mut self) -> Result<(), Error> {
        for family in [Family::Ipv4, Family::Ipv6] {
            let mut batch = Batch::new(family, &table(&self.config));
            batch.add_table().delete_table();
            batch.commit()?;
        }
        for family in &mut self.families {
            *family = Programmed::new(family.family);
        }
        Ok(())
    }
}

fn table(config: &Config) -> String {
    format!("krate-proxy-{}", config.instance)
}

/// Forgets the datagram "connections" of changed ports whose endpoint is not one any more, or that have none though
/// there are some by now: they would go on for as long as their client does.
fn forget_stale(family: Family, desired: &ServiceMap, changed: &Changes) -> Result<(), krate_nft::Error> {
    let datagrams = || changed.iter().filter(|name| name.protocol == Protocol::Udp);
    if datagrams().next().is_none() {
        return Ok(());
    }
    let mut endpoints = HashMap::new();
    let mut node_ports = HashMap::new();
    for port in datagrams().filter_map(|name| desired.get(name)) {
        let usable: HashSet<_> = port.cluster.iter().chain(&port.local).copied().collect();
        for address in port.cluster_ips.iter().chain(&port.external_ips).chain(&port.load_balancer_ips) {
            endpoints.insert(SocketAddr::new(*address, port.port), usable.clone());
        }
        if let Some(number) = port.node_port {
            node_ports.insert(number, usable.clone());
        }
    }
    let mut flows = conntrack::flows(family, Protocol::Udp.number())?;
    flows.retain(|flow| {
        let usable = endpoints.get(&flow.destination).or_else(|| node_ports.get(&flow.destination.port()));
        usable.is_some_and(|usable| !usable.contains(&flow.answered_by))
    });
    conntrack::forget(&flows)
}
