//! Endpoints: the older list of a Service's addresses.

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, Endpoints};
use krate_api::{FieldErrors, FieldPath, Kind, kinds};
use serde_json::Value;

use super::addresses::{ip_warning, legacy_ip, reachable_ip};
use crate::registry::column::{age, name, text};
use crate::registry::prepare::differ;
use crate::registry::rules::{dns_label, dns_subdomain, label_name, port, required_one_of};
use crate::registry::{Column, Strategy};

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const CONTROLLER: &str = "endpoint-controller";

impl Strategy for Endpoints {
    const KIND: &'static Kind = &kinds::ENDPOINTS;
    const COLUMNS: &'static [Column<Self>] =
        &[name(), text("Endpoints", "io.k8s.api.core.v1.Endpoints.subsets", addresses), age()];
    const ALLOW_CREATE_ON_UPDATE: bool = true;

    fn default(&mut self) {
        for port in self.subsets.iter_mut().flatten().flat_map(|s| s.ports.iter_mut().flatten()) {
            if port.protocol.as_deref().is_none_or(str::is_empty) {
                port.protocol = Some("TCP".to_owned());
            }
        }
    }

    /// What it says may stay as it was, whatever it is.
    fn validate(&self, _: &FieldPath, _: &mut FieldErrors) {}

    fn validate_new(&self, at: &FieldPath, errors: &mut FieldErrors) {
        subsets(self, &at.child("subsets"), errors);
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        if differ(&self.subsets, &old.subsets) {
            subsets(self, &at.child("subsets"), errors);
        }
    }

    fn warnings(&self, _: Option<&Self>) -> Vec<String> {
        // The controller writes them as they should be, and often.
        if self.metadata.labels.as_ref().and_then(|l| l.get(MANAGED_BY)).is_some_and(|by| by == CONTROLLER) {
            return Vec::new();
        }
        let mut warnings = Vec::new();
        for (i, subset) in self.subsets.iter().flatten().enumerate() {
            for (field, list) in
                [("addresses", &subset.addresses), ("notReadyAddresses", &subset.not_ready_addresses)]
            {
                let at = FieldPath::new("subsets").index(i).child(field);
                let addresses = list.iter().flatten().enumerate();
                warnings.extend(addresses.filter_map(|(j, a)| ip_warning(&a.ip, &at.index(j).child("ip"))));
            }
        }
        warnings
    }
}

fn subsets(endpoints: &Endpoints, at: &FieldPath, errors: &mut FieldErrors) {
    for (i, subset) in endpoints.subsets.iter().flatten().enumerate() {
        let at = at.index(i);
        let ready = subset.addresses.as_deref().unwrap_or_default();
        let not_ready = subset.not_ready_addresses.as_deref().unwrap_or_default();
        if ready.is_empty() && not_ready.is_empty() {
            errors.required(&at, "must specify `addresses` or `notReadyAddresses`");
        }
        for (field, list) in [("addresses", ready), ("notReadyAddresses", not_ready)] {
            for (j, a) in list.iter().enumerate() {
                address(a, &at.child(field).index(j), errors);
            }
        }
        let ports = subset.ports.as_deref().unwrap_or_default();
        for (j, p) in ports.iter().enumerate() {
            endpoint_port(p, ports.len() > 1, &at.child("ports").index(j), errors);
        }
    }
}

fn address(address: &EndpointAddress, at: &FieldPath, errors: &mut FieldErrors) {
    legacy_ip(&address.ip, &[], &at.child("ip"), errors);
    if let Some(host) = address.hostname.as_deref().filter(|h| !h.is_empty()) {
        dns_label(host, &at.child("hostname"), errors);
    }
    if let Some(node) = &address.node_name {
        dns_subdomain(node, &at.child("nodeName"), errors);
    }
    reachable_ip(&address.ip, &at.child("ip"), errors);
}

fn endpoint_port(p: &EndpointPort, needs_name: bool, at: &FieldPath, errors: &mut FieldErrors) {
    let name = p.name.as_deref().unwrap_or_default();
    if needs_name && name.is_empty() {
        errors.required(&at.child("name"), "");
    } else if !name.is_empty() {
        dns_label(name, &at.child("name"), errors);
    }
    port(p.port, &at.child("port"), errors);
    required_one_of(p.protocol.as_deref(), &["SCTP", "TCP", "UDP"], &at.child("protocol"), errors);
    if let Some(protocol) = &p.app_protocol {
        label_name(protocol, &at.child("appProtocol"), errors);
    }
}

fn addresses(e: &Endpoints) -> Value {
    const SHOWN: usize = 3;
    let mut list = Vec::new();
    for subset in e.subsets.iter().flatten() {
        let ports = subset.ports.as_deref().unwrap_or_default();
        for address in subset.addresses.iter().flatten() {
            let ip = &address.ip;
            if ports.is_empty() {
                list.push(ip.clone());
            }
            for p in ports {
                list.push(if ip.contains(':') {
                    format!("[{ip}]:{}", p.port)
                } else {
                    format!("{ip}:{}", p.port)
                });
            }
        }
    }
    if list.is_empty() {
        return "<none>".into();
    }
    let more = list.len().saturating_sub(SHOWN);
    list.truncate(SHOWN);
    let shown = list.join(",");
    if more == 0 { shown.into() } else { format!("{shown} + {more} more...").into() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn endpoints(subset: &Value) -> Endpoints {
        let object = json!({"metadata": {"name": "e"}, "subsets": [subset]});
        let mut endpoints: Endpoints = serde_json::from_value(object).expect("endpoints");
        endpoints.default();
        endpoints
    }

    fn wrong(check: impl Fn(&mut FieldErrors)) -> Vec<String> {
        let mut errors = FieldErrors::new();
        check(&mut errors);
        errors.iter().map(|e| e.to_string().replace("subsets[0].", "")).collect()
    }

    #[test]
    fn traffic_must_be_able_to_arrive() {
        for (subset, texts) in [
            (
                json!({"addresses": [{"ip": "10.0.0.1"}], "ports": [{"name": "a", "port": 1}, {"name": "a", "port": 2}]}),
                vec![],
            ),
            (
                json!({"addresses": [{"ip": "127.0.0.1", "nodeName": "Odd_"}]}),
                vec![
                    "addresses[0].nodeName: Invalid value: \"Odd_\": ",
                    "addresses[0].ip: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
                ],
            ),
            (
                json!({"notReadyAddresses": [{"ip": "x"}]}),
                vec![
                    "notReadyAddresses[0].ip: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                    "notReadyAddresses[0].ip: Invalid value: \"x\": must be a valid IP address",
                ],
            ),
        ] {
            let endpoints = endpoints(&subset);
            let at = FieldPath::new("");
            let told = wrong(|errors| endpoints.validate_new(&at, errors));
            assert_eq!(told.len(), texts.len(), "{told:?}");
            for (told, text) in told.iter().zip(texts) {
                assert!(told.starts_with(text), "{told}");
            }
            assert_eq!(wrong(|errors| endpoints.validate_update(&endpoints, &at, errors)), [""; 0]);
        }
    }

    #[test]
    fn addresses_in_other_spellings_are_warned_of_unless_the_controller_wrote_them() {
        let mut endpoints = endpoints(&json!({"addresses": [{"ip": "FD00::1"}]}));
        assert_eq!(
            endpoints.warnings(None),
            [
                "subsets[0].addresses[0].ip: IPv6 address \"FD00::1\" should be in RFC 5952 canonical format (\"fd00::1\")"
            ]
        );
        endpoints.metadata.labels = Some([(MANAGED_BY.to_owned(), CONTROLLER.to_owned())].into());
        assert_eq!(endpoints.warnings(None), [""; 0]);
    }
}
