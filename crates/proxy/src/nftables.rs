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
use crate::{Config, PortName, Protocol};

/// Rules in the kernel's nftables.
#[derive(Debug)]
pub struct Nftables {
    config: Config,
    families: Vec<Programmed>,
    datagrams: Datagrams,
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
        Self { config: config.clone(), families: families.collect(), datagrams: Datagrams::default() }
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
        }
        if let Err(error) = self.datagrams.forget_stale(&self.families, desired, changed) {
            tracing::warn!(%error, "connections to endpoints that are gone could not be forgotten");
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

/// The addresses of the datagram Services that the rules served last.
#[derive(Debug, Default)]
struct Datagrams(HashMap<PortName, Vec<SocketAddr>>);

impl Datagrams {
    /// Forgets the datagram "connections" of changed ports whose endpoint is not one any more, or that have none
    /// though there are some by now: they would go on for as long as their client does.
    fn forget_stale(
        &mut self,
        families: &[Programmed],
        desired: &ServiceMap,
        changed: &Changes,
    ) -> Result<(), Error> {
        let mut endpoints: HashMap<SocketAddr, HashSet<SocketAddr>> = HashMap::new();
        let mut node_ports = HashMap::new();
        for name in changed.iter().filter(|name| name.protocol == Protocol::Udp) {
            let before = self.0.remove(name).unwrap_or_default();
            endpoints.extend(before.into_iter().map(|at| (at, HashSet::new())));
            let Some(port) = desired.get(name) else { continue };
            let usable: HashSet<_> = port.cluster.iter().chain(&port.local).copied().collect();
            let addresses = port.cluster_ips.iter().chain(&port.external_ips).chain(&port.load_balancer_ips);
            let addresses: Vec<_> = addresses.map(|address| SocketAddr::new(*address, port.port)).collect();
            endpoints.extend(addresses.iter().map(|at| (*at, usable.clone())));
            if let Some(number) = port.node_port {
                node_ports.insert(number, usable);
            }
            self.0.insert(name.clone(), addresses);
        }
        if endpoints.is_empty() && node_ports.is_empty() {
            return Ok(());
        }
        for family in families {
            let mut flows = conntrack::flows(family.family, Protocol::Udp.number())?;
            flows.retain(|flow| {
                let usable =
                    endpoints.get(&flow.destination).or_else(|| node_ports.get(&flow.destination.port()));
                usable.is_some_and(|usable| !usable.contains(&flow.answered_by))
            });
            conntrack::forget(&flows)?;
        }
        Ok(())
    }
}
