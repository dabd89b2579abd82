//! Which endpoints of a Service may be used from this node.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::service::{PortName, Protocol, ServicePort};

/// An endpoint of one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub at: SocketAddr,
    pub local: bool,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
}

/// The endpoints of a Service by port.
#[derive(Clone, Debug, Default)]
pub struct EndpointSet(BTreeMap<(String, Protocol), BTreeMap<SocketAddr, Endpoint>>);

impl EndpointSet {
    /// The endpoints in all slices of one Service. One that is in two slices counts once, at its best.
    pub fn of<'a>(slices: impl Iterator<Item = &'a EndpointSlice>, node: &str) -> Self {
        let mut set = Self::default();
        for slice in slices {
            set.add(slice, node);
        }
        set
    }

    fn add(&mut self, slice: &EndpointSlice, node: &str) {
        for port in slice.ports.iter().flatten() {
            let number = port.port.and_then(|port| u16::try_from(port).ok());
            let (Some(number), Some(protocol)) = (number, Protocol::parse(port.protocol.as_deref())) else {
                continue;
            };
            let there = self.0.entry((port.name.clone().unwrap_or_default(), protocol)).or_default();
            for endpoint in slice.endpoints.iter().flatten() {
                // All addresses of an endpoint are the same: the first stands for it.
                let Some(address) = endpoint.addresses.first().and_then(|text| text.parse::<IpAddr>().ok())
                else {
                    continue;
                };
                let conditions = endpoint.conditions.as_ref();
                let ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
                let found = Endpoint {
                    at: SocketAddr::new(address, number),
                    local: endpoint.node_name.as_deref().is_some_and(|name| name == node),
                    ready,
                    serving: conditions.and_then(|conditions| conditions.serving).unwrap_or(ready),
                    terminating: conditions.and_then(|conditions| conditions.terminating).unwrap_or(false),
                };
                let known = there.entry(found.at).or_insert(found);
                if found.ready && !known.ready || found.serving && !known.serving {
                    *known = found;
                }
            }
        }
    }

    /// Gives a port its endpoints.
    pub fn fill(&self, name: &PortName, port: &mut ServicePort) {
        let none = BTreeMap::new();
        // A service's only port need not have a name, and then neither has the slice's.
        let endpoints = self.0.get(&(name.port.clone(), name.protocol)).unwrap_or(&none);
        port.cluster = usable(endpoints.values());
        port.local = usable(endpoints.values().filter(|endpoint| endpoint.local));
    }
}

/// Those that are ready or, when none is, those that still serve while they end (KEP-1669).
fn usable<'a>(endpoints: impl Iterator<Item = &'a Endpoint> + Clone) -> Vec<SocketAddr> {
    let ready: Vec<_> =
        endpoints.clone().filter(|endpoint| endpoint.ready).map(|endpoint| endpoint.at).collect();
    if !ready.is_empty() {
        return ready;
    }
    endpoints
        .filter(|endpoint| endpoint.serving && endpoint.terminating)
        .map(|endpoint| endpoint.at)
        .collect()
}
