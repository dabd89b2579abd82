//! The backend for nftables: one table a cluster and address family.
//!
//! What a packet meets does not grow with the number of Services: a lookup by address, protocol and port gives the
//! Service's chain, and that has one rule that picks an endpoint, however many there are. A change rewrites the
//! chains and elements of the Services that changed, in one transaction.

use std::collections::{BTreeMap, HashMap, HashSet};

use ipnet::IpNet;
use krate_nft::{Batch, Elements, Family, Field, Hook, Key, Rule, Set, Type, Value, Verdict, conntrack};

use crate::backend::{Changes, Error, Rules};
use crate::program::{
    MASQUERADE, Program, REJECT, Table, Target, address_type, endpoint_type, is_of, program,
};
use crate::tracker::ServiceMap;
use crate::{Config, PortName, Protocol};

/// Rules in the kernel's nftables.
#[derive(Debug)]
pub struct Nftables {
    config: Config,
    families: Vec<Programmed>,
}

/// What the kernel holds in one family, as this process knows it.
#[derive(Debug)]
struct Programmed {
    family: Family,
    /// Whether the kernel is known to hold this; otherwise everything is made anew.
    known: bool,
    ports: HashMap<PortName, Program>,
    /// Who wants an element, and where to. Two Services may want the same one (an external address and port of
    /// both, an endpoint of both): the first by name has it.
    wanted: HashMap<(Table, Key), BTreeMap<PortName, Target>>,
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
            let known = std::mem::take(&mut family.known);
            let mut batch = Batch::new(family.family, &table(&self.config));
            if known {
                for name in changed {
                    family.change(&mut batch, &self.config, name, desired);
                }
            } else {
                *family = Programmed::new(family.family);
                base(&mut batch, family.family, &self.config);
                for name in desired.keys() {
                    family.change(&mut batch, &self.config, name, desired);
                }
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

impl Programmed {
    fn new(family: Family) -> Self {
        Self { family, known: false, ports: HashMap::new(), wanted: HashMap::new() }
    }

    /// Writes the change of one port into the batch.
    fn change(&mut self, batch: &mut Batch, config: &Config, name: &PortName, desired: &ServiceMap) {
        let old = self.ports.remove(name).unwrap_or_default();
        let new = desired.get(name).map(|port| program(self.family, config, name, port)).unwrap_or_default();
        let keeps_affinity = old.affinity == new.affinity;

        // The old rules go first, for nothing else may look into a map that goes.
        for chain in old.chains.keys() {
            batch.flush_chain(chain);
        }
        if let Some((map, _)) = old.affinity.as_ref().filter(|_| !keeps_affinity) {
            batch.delete_set(map);
        }
        if let Some((map, timeout)) = new.affinity.as_ref().filter(|_| !keeps_affinity) {
            let key = [address_type(self.family)];
            let value = endpoint_type(self.family);
            let value = Value::Fields(&value);
            batch.add_set(&Set { name: map, key: &key, value, timeout: Some(*timeout) });
        }
        for chain in new.chains.keys().filter(|chain| !old.chains.contains_key(*chain)) {
            batch.add_chain(chain);
        }
        for (chain, rules) in &new.chains {
            for rule in rules {
                batch.add_rule(chain, rule);
            }
        }
        let keys: HashSet<&(Table, Key)> = old.elements.keys().chain(new.elements.keys()).collect();
        for key in keys {
            self.change_element(batch, name, key, new.elements.get(key));
        }
        for chain in old.chains.keys().filter(|chain| !new.chains.contains_key(*chain)) {
            batch.delete_chain(chain);
        }
        if desired.contains_key(name) {
            self.ports.insert(name.clone(), new);
        }
    }

    fn change_element(
        &mut self,
        batch: &mut Batch,
        name: &PortName,
        at: &(Table, Key),
        target: Option<&Target>,
    ) {
        let wanted = self.wanted.entry(at.clone()).or_default();
        let before = wanted.values().next().cloned();
        match target {
            Some(target) => wanted.insert(name.clone(), target.clone()),
            None => wanted.remove(name),
        };
        let after = wanted.values().next();
        let (table, key) = at;
        if before.as_ref() != after {
            if before.is_some() {
                batch.delete_elements(table.name(), Elements::new().key(key));
            }
            if let Some(target) = after {
                let mut element = Elements::new();
                match target.verdict() {
                    Some(verdict) => element.verdict(key, &verdict),
                    None => element.key(key),
                };
                batch.add_elements(table.name(), &element);
            }
        }
        if after.is_none() {
            self.wanted.remove(at);
        }
    }
}

const SERVICE: [Field; 3] = [Field::Destination, Field::Protocol, Field::DestinationPort];
const NODE_PORT: [Field; 2] = [Field::Protocol, Field::DestinationPort];

/// The table without any Service.
fn base(batch: &mut Batch, family: Family, config: &Config) {
    let rule = || Rule::new(family);
    batch.renew_table();
    for table in Table::ALL {
        let address = address_type(family);
        let (key, value): (&[Type], _) = match table {
            Table::Services | Table::DeadServices | Table::Guarded => {
                (&[address, Type::Protocol, Type::Port], Value::Verdict)
            }
            Table::NodePorts | Table::DeadNodePorts => (&[Type::Protocol, Type::Port], Value::Verdict),
            Table::ClusterIps => (&[address], Value::None),
            Table::Hairpins => (&[address, address], Value::None),
        };
        batch.add_set(&Set { name: table.name(), key, value, timeout: None });
    }

    batch.add_chain(REJECT);
    batch.add_rule(REJECT, &rule().protocol(Protocol::Tcp.number()).reject(true));
    batch.add_rule(REJECT, &rule().reject(false));

    batch.add_chain("to-service");
    batch.add_rule("to-service", &rule().verdict_by(&SERVICE, Table::Services.name()));
    for own in own_addresses(family, config) {
        batch.add_rule("to-service", &own.verdict_by(&NODE_PORT, Table::NodePorts.name()));
    }
    batch.add_base_chain("translate-prerouting", Hook::TranslatePrerouting);
    batch.add_rule("translate-prerouting", &rule().verdict(Verdict::Jump("to-service")));
    batch.add_base_chain("translate-output", Hook::TranslateOutput);
    batch.add_rule("translate-output", &rule().verdict(Verdict::Jump("to-service")));

    batch.add_base_chain("translate-postrouting", Hook::TranslatePostrouting);
    let marked = rule().marked(MASQUERADE).unmark(MASQUERADE).masquerade();
    batch.add_rule("translate-postrouting", &marked);
    let hairpin =
        rule().was_translated().in_set(&[Field::Source, Field::Destination], Table::Hairpins.name());
    batch.add_rule("translate-postrouting", &hairpin.masquerade().comment("a pod that reaches itself"));

    // Before translation: who may use a load balancer's address.
    for (chain, hook) in
        [("guard-prerouting", Hook::FilterPrerouting), ("guard-output", Hook::FilterOutputEarly)]
    {
        batch.add_base_chain(chain, hook);
        batch.add_rule(chain, &rule().is_new().verdict_by(&SERVICE, Table::Guarded.name()));
    }

    // After translation: what is still for a Service's address was for nobody.
    batch.add_chain("nobody");
    batch.add_rule("nobody", &rule().verdict_by(&SERVICE, Table::DeadServices.name()));
    batch.add_chain("nobodys-cluster-ip");
    let stray = rule().in_set(&[Field::Destination], Table::ClusterIps.name());
    batch.add_rule("nobodys-cluster-ip", &stray.verdict(Verdict::Goto(REJECT)).comment("no such port"));
    for range in config.service_cidrs.iter().filter(|range| is_of(family, range.addr())) {
        let stray = rule().destination_in(range.network(), range.prefix_len(), false);
        batch.add_rule("nobodys-cluster-ip", &stray.verdict(Verdict::Drop).comment("no such Service"));
    }
    batch.add_base_chain("filter-input", Hook::FilterInput);
    for own in own_addresses(family, config) {
        batch.add_rule("filter-input", &own.is_new().verdict_by(&NODE_PORT, Table::DeadNodePorts.name()));
    }
    batch.add_rule("filter-input", &rule().is_new().verdict(Verdict::Jump("nobody")));
    for (chain, hook) in [("filter-forward", Hook::FilterForward), ("filter-output", Hook::FilterOutput)] {
        batch.add_base_chain(chain, hook);
        batch.add_rule(chain, &rule().is_new().verdict(Verdict::Jump("nobody")));
        batch.add_rule(chain, &rule().is_new().verdict(Verdict::Jump("nobodys-cluster-ip")));
    }
}

/// Beginnings of rules that match this node's addresses on which node ports are open.
fn own_addresses(family: Family, config: &Config) -> Vec<Rule> {
    let local = || Rule::new(family).destination_is_local();
    let chosen: Vec<&IpNet> =
        config.node_port_addresses.iter().filter(|range| is_of(family, range.addr())).collect();
    if !config.node_port_addresses.is_empty() {
        return chosen
            .iter()
            .map(|range| local().destination_in(range.network(), range.prefix_len(), false))
            .collect();
    }
    // Answers to a loopback address do not leave an endpoint.
    vec![match family {
        Family::Ipv4 => local().destination_in([127, 0, 0, 0].into(), 8, true),
        Family::Ipv6 => local().destination_in(std::net::Ipv6Addr::LOCALHOST.into(), 128, true),
    }]
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
            endpoints.insert(std::net::SocketAddr::new(*address, port.port), usable.clone());
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
