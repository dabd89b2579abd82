//! EndpointSlice: some of a Service's addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointHints, EndpointSlice};
use krate_api::names::{is_dns1123_label, is_dns1123_subdomain};
use krate_api::{FieldErrors, FieldPath, Kind, kinds};
use serde_json::Value;

use crate::registry::column::{age, name, text};
use crate::registry::core::addresses::{ip_warning, legacy_ip, reachable_ip};
use crate::registry::networking::strict_ip;
use crate::registry::prepare::{differ, first_generation, next_generation};
use crate::registry::rules::{IMMUTABLE, dns_label, dns_subdomain, each, label_name, label_value, one_of};
use crate::registry::{Column, Context, Strategy};

const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;
const MAX_PORTS: usize = 20000;
const MAX_HINTS: usize = 8;
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Those who mend the addresses that they are given.
const OWN_MANAGERS: [&str; 2] =
    ["endpointslice-controller.k8s.io", "endpointslicemirroring-controller.k8s.io"];
const HOST_NAME: &str = "kubernetes.io/hostname";
const TYPES: &[&str] = &["FQDN", "IPv4", "IPv6"];
const SHOWN: usize = 3;

impl Strategy for EndpointSlice {
    const KIND: &'static Kind = &kinds::ENDPOINT_SLICE;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text("AddressType", "io.k8s.api.discovery.v1.EndpointSlice.addressType", |s| {
            s.address_type.as_str().into()
        }),
        text("Ports", "io.k8s.api.discovery.v1.EndpointSlice.ports", |s| {
            let ports = s.ports.iter().flatten().map(|p| match (p.port, &p.name) {
                (Some(number), _) => number.to_string(),
                (None, name) => name.clone().unwrap_or_else(|| "*".to_owned()),
            });
            few(ports.collect(), "<unset>")
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
        drop_topology(self, None);
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context) {
        let endpoints = differ(&self.endpoints, &old.endpoints);
        let changed = endpoints
            || differ(&self.ports, &old.ports)
            || differ(&self.metadata.labels, &old.metadata.labels);
        next_generation(&mut self.metadata, &old.metadata, changed);
        if endpoints {
            drop_topology(self, Some(old));
        }
    }

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        if self.address_type.is_empty() {
            errors.required(&at.child("addressType"), "");
        } else {
            one_of(&self.address_type, TYPES, &at.child("addressType"), errors);
        }
        let ports = self.ports.as_deref().unwrap_or_default();
        let at = at.child("ports");
        if ports.len() > MAX_PORTS {
            errors.too_many(&at, ports.len(), MAX_PORTS);
            return;
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
            match p.protocol.as_deref() {
                None => errors.required(&at.child("protocol"), ""),
                Some(protocol) => one_of(protocol, &["SCTP", "TCP", "UDP"], &at.child("protocol"), errors),
            }
            if let Some(protocol) = &p.app_protocol {
                label_name(protocol, &at.child("appProtocol"), errors);
            }
        }
    }

    fn validate_new(&self, at: &FieldPath, errors: &mut FieldErrors) {
        self.check_endpoints(&at.child("endpoints"), errors);
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        // Endpoints that are older than the rules for them may stay as they are.
        if differ(&self.endpoints, &old.endpoints) {
            self.check_endpoints(&at.child("endpoints"), errors);
        }
        if self.address_type != old.address_type {
            errors.invalid(&at.child("addressType"), &self.address_type, IMMUTABLE);
        }
    }

    fn warnings(&self, old: Option<&Self>) -> Vec<String> {
        let deprecated = old.is_none() && self.address_type == "FQDN";
        let mut warnings: Vec<String> = deprecated
            .then(|| "spec.addressType: FQDN endpoints are deprecated".to_owned())
            .into_iter()
            .collect();
        let manager = self.metadata.labels.as_ref().and_then(|labels| labels.get(MANAGED_BY));
        if manager.is_some_and(|manager| OWN_MANAGERS.contains(&manager.as_str())) {
            return warnings;
        }
        for (i, endpoint) in self.endpoints.iter().flatten().enumerate() {
            let at = FieldPath::new("endpoints").index(i).child("addresses");
            let each = endpoint.addresses.iter().enumerate();
            warnings.extend(each.filter_map(|(j, address)| ip_warning(address, &at.index(j))));
        }
        warnings
    }
}

/// Version 1 has no topology but the node's name and the zone. What an older client left of it stays until the endpoints
/// change, and a node's name in it is the endpoint's then.
fn drop_topology(slice: &mut EndpointSlice, old: Option<&EndpointSlice>) {
    let node = |endpoint: &Endpoint| -> Option<String> {
        endpoint.deprecated_topology.as_ref()?.get(HOST_NAME).filter(|name| !name.is_empty()).cloned()
    };
    let known: BTreeSet<String> =
        old.iter().flat_map(|old| old.endpoints.iter().flatten()).filter_map(node).collect();
    for endpoint in slice.endpoints.iter_mut().flatten() {
        if endpoint.node_name.is_none() {
            endpoint.node_name =
                node(endpoint).filter(|name| known.contains(name) && is_dns1123_subdomain(name).is_empty());
        }
        endpoint.deprecated_topology = None;
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
                check_address(address, &self.address_type, &addresses, j, errors);
            }
            if let Some(node) = &endpoint.node_name {
                dns_subdomain(node, &at.child("nodeName"), errors);
            }
            if let Some(host) = &endpoint.hostname {
                dns_label(host, &at.child("hostname"), errors);
            }
            if let Some(hints) = &endpoint.hints {
                check_hints(hints, &at.child("hints"), errors);
            }
        }
    }
}

fn check_address(address: &str, kind: &str, at: &FieldPath, j: usize, errors: &mut FieldErrors) {
    let at_address = at.index(j);
    let family = match kind {
        "FQDN" => {
            full_name(address, &at_address, errors);
            return;
        }
        "IPv4" if legacy_ip(address, &[], &at_address, errors) => "IPv4",
        "IPv6" if strict_ip(address, &at_address, errors) => "IPv6",
        _ => return,
    };
    if address.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv4() != (family == "IPv4")) {
        errors.invalid(at, address, format!("must be an {family} address"));
    }
    reachable_ip(address, &at_address, errors);
}

/// A name of at least two labels.
fn full_name(name: &str, at: &FieldPath, errors: &mut FieldErrors) {
    if name.is_empty() {
        errors.required(at, "");
        return;
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    let wrong = is_dns1123_subdomain(name);
    if !wrong.is_empty() {
        errors.invalid(at, name, wrong.join(","));
    } else if !name.contains('.') {
        errors.invalid(at, name, "should be a domain with at least two segments separated by dots");
    } else if let Some(label) = name.split('.').find(|label| !is_dns1123_label(label).is_empty()) {
        errors.invalid(at, label, is_dns1123_label(label).join(","));
    }
}

fn check_hints(hints: &EndpointHints, at: &FieldPath, errors: &mut FieldErrors) {
    let zones = hints.for_zones.as_deref().unwrap_or_default();
    let zones: Vec<&str> = zones.iter().map(|zone| zone.name.as_str()).collect();
    if !hint_names(&zones, label_value, &at.child("forZones"), errors) {
        return;
    }
    let nodes = hints.for_nodes.as_deref().unwrap_or_default();
    let nodes: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
    hint_names(&nodes, is_dns1123_subdomain, &at.child("forNodes"), errors);
}

/// Whether there are few enough to be looked at.
fn hint_names(
    names: &[&str],
    wrong: fn(&str) -> Vec<String>,
    at: &FieldPath,
    errors: &mut FieldErrors,
) -> bool {
    if names.len() > MAX_HINTS {
        errors.too_many(at, names.len(), MAX_HINTS);
        return false;
    }
    let mut seen = BTreeSet::new();
    for (i, name) in names.iter().enumerate() {
        let at = at.index(i).child("name");
        if !seen.insert(name) {
            errors.duplicate(&at, name);
        }
        each(wrong(name), name, &at, errors);
    }
    true
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn slice(kind: &str, endpoint: Value, port: Value) -> EndpointSlice {
        let mut slice: EndpointSlice = serde_json::from_value(
            json!({"metadata": {"name": "s"}, "addressType": kind, "endpoints": [endpoint], "ports": [port]}),
        )
        .expect("a slice");
        Strategy::default(&mut slice);
        slice
    }

    fn said(kind: &str, endpoint: Value) -> Vec<String> {
        let (slice, mut errors) = (slice(kind, endpoint, json!({"port": 70_000})), FieldErrors::new());
        slice.validate(&FieldPath::new(""), &mut errors);
        slice.validate_new(&FieldPath::new(""), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    fn of(kind: &str, address: &str) -> Vec<String> {
        said(kind, json!({"addresses": [address]}))
    }

    #[test]
    fn addresses_are_of_the_kind_and_of_others_hosts() {
        let at = "endpoints[0].addresses";
        for (kind, address, wanted) in [
            ("IPv4", "10.0.0.1", None),
            ("IPv4", "010.0.0.1", Some("[0]: Invalid value: \"010.0.0.1\": must not have leading 0s")),
            ("IPv4", "fd00::1", Some(": Invalid value: \"fd00::1\": must be an IPv4 address")),
            (
                "IPv4",
                "127.0.0.1",
                Some(
                    "[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
                ),
            ),
            (
                "IPv6",
                "FD00::1",
                Some("[0]: Invalid value: \"FD00::1\": must be in canonical form (\"fd00::1\")"),
            ),
            ("FQDN", "a.test.", None),
            (
                "FQDN",
                "a",
                Some(
                    "[0]: Invalid value: \"a\": should be a domain with at least two segments separated by dots",
                ),
            ),
        ] {
            let wanted: Vec<String> = wanted.into_iter().map(|wrong| format!("{at}{wrong}")).collect();
            assert_eq!(of(kind, address), wanted);
        }
    }

    #[test]
    fn hints_are_few_and_each_is_given_once() {
        let hinted = |hints: Value| said("IPv4", json!({"addresses": ["10.0.0.1"], "hints": hints}));
        let many: Vec<Value> = (0..9).map(|i| json!({"name": format!("z{i}")})).collect();
        assert_eq!(
            hinted(json!({"forZones": many})),
            ["endpoints[0].hints.forZones: Too many: 9: must have at most 8 items"]
        );
        assert_eq!(
            hinted(json!({"forZones": [{"name": "a"}, {"name": "a"}]})),
            ["endpoints[0].hints.forZones[1].name: Duplicate value: \"a\""]
        );
    }

    #[test]
    fn what_was_there_may_stay() {
        let odd = slice("IPv4", json!({"addresses": ["127.0.0.1"]}), json!({}));
        let mut errors = FieldErrors::new();
        odd.validate_update(&odd, &FieldPath::new(""), &mut errors);
        assert_eq!(errors.aggregate(), "[]");
    }

    #[test]
    fn the_topology_becomes_the_node_of_those_who_had_it() {
        let old_way = json!({"addresses": ["10.0.0.1"], "deprecatedTopology": {HOST_NAME: "n"}});
        let mut new = slice("IPv4", old_way.clone(), json!({}));
        new.prepare_for_create(&Context::default());
        let node =
            |slice: &EndpointSlice| slice.endpoints.iter().flatten().next().and_then(|e| e.node_name.clone());
        assert_eq!(node(&new), None);
        let mut changed = old_way.clone();
        changed["addresses"] = json!(["10.0.0.2"]);
        let mut new = slice("IPv4", changed, json!({}));
        new.prepare_for_update(&slice("IPv4", old_way, json!({})), &Context::default());
        assert_eq!(node(&new).as_deref(), Some("n"));
        assert!(new.endpoints.iter().flatten().all(|endpoint| endpoint.deprecated_topology.is_none()));
    }

    #[test]
    fn odd_addresses_are_warned_of() {
        assert_eq!(slice("FQDN", json!({"addresses": ["a.test"]}), json!({})).warnings(None).len(), 1);
        let mut odd = slice("IPv6", json!({"addresses": ["FD00::1"]}), json!({}));
        assert_eq!(odd.warnings(Some(&odd)).len(), 1);
        odd.metadata.labels = Some([(MANAGED_BY.to_owned(), OWN_MANAGERS[0].to_owned())].into());
        assert_eq!(odd.warnings(None), [""; 0]);
    }

    #[test]
    fn a_port_without_number_is_shown_by_its_name() {
        let shown = |port: Value| {
            (EndpointSlice::COLUMNS[2].cell)(&slice("IPv4", json!({"addresses": ["10.0.0.1"]}), port))
        };
        assert_eq!(shown(json!({"port": 80})), "80");
        assert_eq!(shown(json!({"name": "http"})), "http");
    }
}
