//! The network's table of rules: masquerading for what leaves the cluster, and ports of the node that lead to pods.

use std::net::IpAddr;

use ipnet::Ipv4Net;
use krate_nft::{Batch, Elements, Family, Field, Hook, Key, Rule, Set, Type, Value};

use crate::lease::{HostPort, Lease};
use crate::{Config, Result};

const PODS: &str = "pods-to-themselves";
const PORTS: &str = "host-ports";
const ADDRESS_PORTS: &str = "host-address-ports";

const POD_PORT: Value<'_> = Value::Fields(&[Type::Ipv4, Type::Port]);

pub(crate) fn table(instance: &str) -> String {
    format!("krate-network-{instance}")
}

/// Replaces the whole table, whatever is in it, by one that fits the leases.
pub(crate) fn renew<'a>(config: &Config, leases: impl Iterator<Item = &'a Lease>) -> Result<()> {
    let rule = || Rule::new(Family::Ipv4);
    let mut batch = Batch::new(Family::Ipv4, &table(&config.instance));
    batch.renew_table();

    let pair = [Type::Ipv4, Type::Ipv4];
    batch.add_set(&Set { name: PODS, key: &pair, value: Value::None, timeout: None });
    let port = [Type::Protocol, Type::Port];
    batch.add_set(&Set { name: PORTS, key: &port, value: POD_PORT, timeout: None });
    let address_port = [Type::Ipv4, Type::Protocol, Type::Port];
    batch.add_set(&Set { name: ADDRESS_PORTS, key: &address_port, value: POD_PORT, timeout: None });

    // The node's own connections go through output, all others through prerouting. Loopback addresses are left
    // alone: answers to them do not leave a pod.
    let loopback = Ipv4Net::new([127, 0, 0, 0].into(), 8).expect("a network");
    for (chain, hook) in [("prerouting", Hook::TranslatePrerouting), ("output", Hook::TranslateOutput)] {
        batch.add_base_chain(chain, hook);
        let by_address = [Field::Destination, Field::Protocol, Field::DestinationPort];
        batch.add_rule(chain, &rule().map(&by_address, ADDRESS_PORTS).translate_destination());
        let by_port = [Field::Protocol, Field::DestinationPort];
        let local =
            rule().destination_is_local().destination_in(loopback.addr().into(), loopback.prefix_len(), true);
        batch.add_rule(chain, &local.map(&by_port, PORTS).translate_destination());
    }

    batch.add_base_chain("postrouting", Hook::TranslatePostrouting);
    let to_itself = rule().was_translated().in_set(&[Field::Source, Field::Destination], PODS);
    batch.add_rule("postrouting", &to_itself.masquerade().comment("a pod that reaches itself"));
    let (pods, cluster) = (config.pod_cidr, config.cluster_cidr);
    let leaves = rule()
        .source_in(pods.network().into(), pods.prefix_len(), false)
        .destination_in(cluster.network().into(), cluster.prefix_len(), true)
        .destination_in([224, 0, 0, 0].into(), 4, true);
    batch.add_rule("postrouting", &leaves.masquerade().comment("from pods to beyond the cluster"));

    for lease in leases {
        fill(&mut batch, lease);
    }
    Ok(batch.commit()?)
}

/// Adds what a lease asks for.
pub(crate) fn add(instance: &str, lease: &Lease) -> Result<()> {
    let mut batch = Batch::new(Family::Ipv4, &table(instance));
    fill(&mut batch, lease);
    Ok(batch.commit()?)
}

/// Removes what a lease asked for.
pub(crate) fn remove(instance: &str, lease: &Lease) -> Result<()> {
    if lease.host_ports.is_empty() {
        return Ok(());
    }
    let mut batch = Batch::new(Family::Ipv4, &table(instance));
    let address = IpAddr::V4(lease.address);
    batch.delete_elements(PODS, Elements::new().key(&Key::new().address(address).address(address)));
    for port in &lease.host_ports {
        let (set, key) = key(port);
        batch.delete_elements(set, Elements::new().key(&key));
    }
    Ok(batch.commit()?)
}

pub(crate) fn delete(instance: &str) -> Result<()> {
    let mut batch = Batch::new(Family::Ipv4, &table(instance));
    batch.add_table().delete_table();
    Ok(batch.commit()?)
}

fn fill(batch: &mut Batch, lease: &Lease) {
    if lease.host_ports.is_empty() {
        return;
    }
    let address = IpAddr::V4(lease.address);
    batch.add_elements(PODS, Elements::new().key(&Key::new().address(address).address(address)));
    for port in &lease.host_ports {
        let (set, key) = key(port);
        let pod = Key::new().address(address).port(port.pod_port);
        batch.add_elements(set, Elements::new().value(&key, &pod));
    }
}

fn key(port: &HostPort) -> (&'static str, Key) {
    // A manifest's 0.0.0.0 means what no address means.
    let address = port.host_ip.filter(|address| !address.is_unspecified());
    let set = if address.is_some() { ADDRESS_PORTS } else { PORTS };
    let key = address.map_or_else(Key::new, |address| Key::new().address(address.into()));
    (set, key.protocol(port.protocol.number()).port(port.host_port))
}
