//! Endpoints: the older list of a Service's addresses.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Endpoints;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};
use serde_json::Value;

use crate::registry::column::{age, name, text};
use crate::registry::rules::{dns_label, ip, label_name, one_of, port};
use crate::registry::{Column, Strategy};

impl Strategy for Endpoints {
    const KIND: &'static Kind = &kinds::ENDPOINTS;
    const COLUMNS: &'static [Column<Self>] =
        &[name(), text("Endpoints", "io.k8s.api.core.v1.Endpoints.subsets", addresses), age()];

    fn default(&mut self) {
        for port in self.subsets.iter_mut().flatten().flat_map(|s| s.ports.iter_mut().flatten()) {
            if port.protocol.as_deref().is_none_or(str::is_empty) {
                port.protocol = Some("TCP".to_owned());
            }
        }
    }

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        for (i, subset) in self.subsets.iter().flatten().enumerate() {
            let at = at.child("subsets").index(i);
            let ready = subset.addresses.as_deref().unwrap_or_default();
            let not_ready = subset.not_ready_addresses.as_deref().unwrap_or_default();
            if ready.is_empty() && not_ready.is_empty() {
                errors.required(&at, "must specify `addresses` or `notReadyAddresses`");
            }
            for (field, list) in [("addresses", ready), ("notReadyAddresses", not_ready)] {
                for (j, address) in list.iter().enumerate() {
                    let at = at.child(field).index(j);
                    ip(&address.ip, &at.child("ip"), errors);
                    if let Some(host) = address.hostname.as_deref().filter(|h| !h.is_empty()) {
                        dns_label(host, &at.child("hostname"), errors);
                    }
                }
            }
            let ports = subset.ports.as_deref().unwrap_or_default();
            let mut names = BTreeSet::new();
            for (j, p) in ports.iter().enumerate() {
                let at = at.child("ports").index(j);
                let name = p.name.as_deref().unwrap_or_default();
                if ports.len() > 1 && name.is_empty() {
                    errors.required(&at.child("name"), "");
                } else if !name.is_empty() {
                    dns_label(name, &at.child("name"), errors);
                }
                if !names.insert(name) {
                    errors.duplicate(&at.child("name"), name);
                }
                port(p.port, &at.child("port"), errors);
                one_of(
                    p.protocol.as_deref().unwrap_or_default(),
                    &["SCTP", "TCP", "UDP"],
                    &at.child("protocol"),
                    errors,
                );
                if let Some(protocol) = &p.app_protocol {
                    label_name(protocol, &at.child("appProtocol"), errors);
                }
            }
        }
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
