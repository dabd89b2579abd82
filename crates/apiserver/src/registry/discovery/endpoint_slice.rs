//! EndpointSlice: some of a Service's addresses.

use std::collections::BTreeSet;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};
use serde_json::Value;

use crate::registry::column::{age, name, text};
use crate::registry::prepare::{differ, first_generation, next_generation};
use crate::registry::rules::{IMMUTABLE, NOT_AN_IP, dns_label, dns_subdomain, label_name, one_of, port};
use crate::registry::{Column, Context, Strategy};

const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;
const MAX_PORTS: usize = 20000;
const TYPES: &[&str] = &["FQDN", "IPv4", "IPv6"];
const SHOWN: usize = 3;

impl Strategy for EndpointSlice {
    const KIND: &'static Kind = &kinds::ENDPOINT_SLICE;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text("AddressType", "io.k8s.api.discovery.v1.EndpointSlice.addressType", |s| {
            s.address_type.as_str().into()
        }),
        text("Ports", "io.k8s.api.discovery.v1.EndpointSlice.ports", |s| match &s.ports {
            None => "*".into(),
            Some(ports) => {
                let ports = ports.iter().map(|p| p.port.map_or_else(|| "*".to_owned(), |n| n.to_string()));
                few(ports.collect(), "<unset>")
            }
        }),
        text("Endpoints", "io.k8s.api.discovery.v1.EndpointSlice.endpoints", |s| {
            few(s.endpoints.iter().flatten().flat_map(|e| e.addresses.clone()).collect(), "<unset>")
        }),
        age(),
    ];

    fn default(&mut self) {
        for port in self.ports.iter_mut().flatten() {
            port.name.get_or_insert_default();
            port.protocol.get_or_insert_with(|| "TCP".to_owned());
        }
    }

    fn prepare_for_create(&mut self, _: &Context) {
        first_generation(&mut self.metadata);
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context) {
        let changed = differ(&self.endpoints, &old.endpoints)
            || differ(&self.ports, &old.ports)
            || self.metadata.labels != old.metadata.labels;
        next_generation(&mut self.metadata, &old.metadata, changed);
    }

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        if self.address_type.is_empty() {
            errors.required(&at.child("addressType"), "");
        } else {
            one_of(&self.address_type, TYPES, &at.child("addressType"), errors);
        }
        self.check_endpoints(&at.child("endpoints"), errors);
        let ports = self.ports.as_deref().unwrap_or_default();
        let at = at.child("ports");
        if ports.len() > MAX_PORTS {
            errors.too_many(&at, ports.len(), MAX_PORTS);
        }
        let mut names = BTreeSet::new();
        for (i, p) in ports.iter().enumerate() {
            let at = at.index(i);
            let name = p.name.as_deref().unwrap_or_default();
            if !name.is_empty() {
                dns_label(name, &at.child("name"), errors);
            }
            if !names.insert(name) {
                errors.duplicate(&at.child("name"), name);
            }
            if let Some(number) = p.port {
                port(number, &at.child("port"), errors);
            }
            match p.protocol.as_deref() {
                None => errors.required(&at.child("protocol"), ""),
                Some(protocol) => one_of(protocol, &["SCTP", "TCP", "UDP"], &at.child("protocol"), errors),
            }
            if let Some(protocol) = &p.app_protocol {
                label_name(protocol, &at.child("appProtocol"), errors);
            }
        }
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        if self.address_type != old.address_type {
            errors.invalid(&at.child("addressType"), &self.address_type, IMMUTABLE);
        }
    }
}

trait CheckEndpoints {
    fn check_endpoints(&self, at: &FieldPath, errors: &mut FieldErrors);
}

impl CheckEndpoints for EndpointSlice {
    fn check_endpoints(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let endpoints = self.endpoints.as_deref().unwrap_or_default();
        if endpoints.len() > MAX_ENDPOINTS {
            errors.too_many(at, endpoints.len(), MAX_ENDPOINTS);
            return;
        }
        for (i, endpoint) in endpoints.iter().enumerate() {
            let at = at.index(i);
            let addresses = at.child("addresses");
            if endpoint.addresses.is_empty() {
                errors.required(&addresses, "must contain at least 1 address");
            } else if endpoint.addresses.len() > MAX_ADDRESSES {
                errors.too_many(&addresses, endpoint.addresses.len(), MAX_ADDRESSES);
            }
            for (j, address) in endpoint.addresses.iter().enumerate() {
                let at = addresses.index(j);
                let ip = address.parse::<std::net::IpAddr>();
                match (self.address_type.as_str(), ip) {
                    ("IPv4" | "IPv6", Err(_)) => errors.invalid(&at, address, NOT_AN_IP),
                    ("IPv4", Ok(ip)) if !ip.is_ipv4() => {
                        errors.invalid(&at, address, "must be an IPv4 address");
                    }
                    ("IPv6", Ok(ip)) if !ip.is_ipv6() => {
                        errors.invalid(&at, address, "must be an IPv6 address");
                    }
                    ("FQDN", _) => dns_subdomain(address, &at, errors),
                    _ => {}
                }
            }
            if let Some(node) = &endpoint.node_name {
                dns_subdomain(node, &at.child("nodeName"), errors);
            }
            if let Some(host) = &endpoint.hostname {
                dns_label(host, &at.child("hostname"), errors);
            }
        }
    }
}

fn few(mut list: Vec<String>, none: &str) -> Value {
    if list.is_empty() {
        return none.into();
    }
    let more = list.len().saturating_sub(SHOWN);
    list.truncate(SHOWN);
    let text = list.join(",");
    if more == 0 { text.into() } else { format!("{text} + {more} more...").into() }
}
