//! NetworkPolicy: which traffic may reach pods, and leave them.

use std::net::IpAddr;

use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use crate::registry::column::{age, name, or_none, selector_text, text};
use crate::registry::core::addresses::{cidr_warnings, legacy_cidr};
use crate::registry::prepare::counted;
use crate::registry::rules::{label_selector, one_of, parse_cidr, port_or_name};
use crate::registry::{Column, Strategy};

impl Strategy for NetworkPolicy {
    const KIND: &'static Kind = &kinds::NETWORK_POLICY;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text("Pod-Selector", "io.k8s.api.networking.v1.NetworkPolicySpec.podSelector", |p| {
            let selector = p.spec.as_ref().and_then(|s| s.pod_selector.as_ref());
            or_none(selector.map(selector_text).as_deref())
        }),
        age(),
    ];

    fn default(&mut self) {
        let spec = self.spec.get_or_insert_default();
        spec.pod_selector.get_or_insert_default();
        let ports = spec.ingress.iter_mut().flatten().flat_map(|r| r.ports.iter_mut().flatten());
        let ports = ports.chain(spec.egress.iter_mut().flatten().flat_map(|r| r.ports.iter_mut().flatten()));
        for port in ports {
            port.protocol.get_or_insert_with(|| "TCP".to_owned());
        }
        if spec.policy_types.as_ref().is_none_or(Vec::is_empty) {
            let mut types = vec!["Ingress".to_owned()];
            if spec.egress.as_ref().is_some_and(|e| !e.is_empty()) {
                types.push("Egress".to_owned());
            }
            spec.policy_types = Some(types);
        }
    }

    counted!(spec);

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec");
        let Some(spec) = &self.spec else { return };
        if let Some(selector) = &spec.pod_selector {
            label_selector(selector, &at.child("podSelector"), errors);
        }
        for (i, rule) in spec.ingress.iter().flatten().enumerate() {
            let at = at.child("ingress").index(i);
            ports(rule.ports.as_deref(), &at.child("ports"), errors);
            peers(rule.from.as_deref(), &at.child("from"), errors);
        }
        for (i, rule) in spec.egress.iter().flatten().enumerate() {
            let at = at.child("egress").index(i);
            ports(rule.ports.as_deref(), &at.child("ports"), errors);
            peers(rule.to.as_deref(), &at.child("to"), errors);
        }
        let types = spec.policy_types.as_deref().unwrap_or_default();
        if types.len() > 2 {
            errors.invalid(&at.child("policyTypes"), types, "may not specify more than two policyTypes");
            return;
        }
        for (i, kind) in types.iter().enumerate() {
            one_of(kind, &["Ingress", "Egress"], &at.child("policyTypes").index(i), errors);
        }
    }

    fn validate_new(&self, at: &FieldPath, errors: &mut FieldErrors) {
        for (at, block) in blocks(self, at) {
            ranges(block, &[], &at, errors);
        }
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        // A range may have come to another place: what stood anywhere may stand everywhere.
        let before: Vec<String> = blocks(old, at)
            .into_iter()
            .flat_map(|(_, block)| std::iter::once(&block.cidr).chain(block.except.iter().flatten()))
            .cloned()
            .collect();
        for (at, block) in blocks(self, at) {
            ranges(block, &before, &at, errors);
        }
    }

    fn warnings(&self, _: Option<&Self>) -> Vec<String> {
        let mut warnings = Vec::new();
        for (at, block) in blocks(self, &FieldPath::new("")) {
            warnings.extend(cidr_warnings(&block.cidr, &at.child("cidr")));
            for (i, except) in block.except.iter().flatten().enumerate() {
                warnings.extend(cidr_warnings(except, &at.child("except").index(i)));
            }
        }
        warnings
    }
}

/// All ranges of addresses that a policy speaks of, and where.
fn blocks<'a>(policy: &'a NetworkPolicy, at: &FieldPath) -> Vec<(FieldPath, &'a IPBlock)> {
    let Some(spec) = &policy.spec else { return Vec::new() };
    let at = at.child("spec");
    let ingress = spec.ingress.iter().flatten().enumerate();
    let ingress = ingress.map(|(i, rule)| (at.child("ingress").index(i).child("from"), &rule.from));
    let egress = spec.egress.iter().flatten().enumerate();
    let egress = egress.map(|(i, rule)| (at.child("egress").index(i).child("to"), &rule.to));
    let mut blocks = Vec::new();
    for (at, peers) in ingress.chain(egress) {
        for (i, peer) in peers.iter().flatten().enumerate() {
            if let Some(block) = &peer.ip_block {
                blocks.push((at.index(i).child("ipBlock"), block));
            }
        }
    }
    blocks
}

fn ranges(block: &IPBlock, before: &[String], at: &FieldPath, errors: &mut FieldErrors) {
    if block.cidr.is_empty() {
        errors.required(&at.child("cidr"), "");
        return;
    }
    legacy_cidr(&block.cidr, before, &at.child("cidr"), errors);
    let Some(outer) = parse_cidr(&block.cidr) else { return };
    for (i, except) in block.except.iter().flatten().enumerate() {
        let at = at.child("except").index(i);
        legacy_cidr(except, before, &at, errors);
        if parse_cidr(except).is_some_and(|inner| !is_inside(inner, outer)) {
            errors.invalid(&at, except, "must be a strict subset of `cidr`");
        }
    }
}

/// Whether a range is a part of another, and not all of it.
fn is_inside((inner, length): (IpAddr, u8), (outer, shorter): (IpAddr, u8)) -> bool {
    let same = match (inner, outer) {
        (IpAddr::V4(inner), IpAddr::V4(outer)) => {
            (inner.to_bits() ^ outer.to_bits()).leading_zeros() >= u32::from(shorter)
        }
        (IpAddr::V6(inner), IpAddr::V6(outer)) => {
            (inner.to_bits() ^ outer.to_bits()).leading_zeros() >= u32::from(shorter)
        }
        _ => false,
    };
    same && shorter < length
}

fn ports(list: Option<&[NetworkPolicyPort]>, at: &FieldPath, errors: &mut FieldErrors) {
    for (i, p) in list.unwrap_or_default().iter().enumerate() {
        let at = at.index(i);
        if let Some(protocol) = &p.protocol {
            one_of(protocol, &["TCP", "UDP", "SCTP"], &at.child("protocol"), errors);
        }
        let at_end = at.child("endPort");
        if let (Some(end), None) = (p.end_port, &p.port) {
            errors.invalid(&at_end, end, "may not be specified when `port` is not specified");
        }
        let Some(first) = &p.port else { continue };
        port_or_name(first, &at.child("port"), errors);
        match (first, p.end_port) {
            (IntOrString::String(_), Some(end)) => {
                errors.invalid(&at_end, end, "may not be specified when `port` is non-numeric");
            }
            (IntOrString::Int(first), Some(end)) => {
                if end < *first {
                    // Upstream shows the port here, and not its end.
                    errors.invalid(&at_end, first, "must be greater than or equal to `port`");
                }
                crate::registry::rules::port(end, &at_end, errors);
            }
            (_, None) => {}
        }
    }
}

fn peers(list: Option<&[NetworkPolicyPeer]>, at: &FieldPath, errors: &mut FieldErrors) {
    for (i, peer) in list.unwrap_or_default().iter().enumerate() {
        let at = at.index(i);
        if let Some(selector) = &peer.pod_selector {
            label_selector(selector, &at.child("podSelector"), errors);
        }
        if let Some(selector) = &peer.namespace_selector {
            label_selector(selector, &at.child("namespaceSelector"), errors);
        }
        let selectors = peer.pod_selector.is_some() || peer.namespace_selector.is_some();
        if peer.ip_block.is_none() && !selectors {
            errors.required(&at, "must specify a peer");
        } else if peer.ip_block.is_some() && selectors {
            errors.forbidden(&at, "may not specify both ipBlock and another peer");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn policy(rule: Value) -> NetworkPolicy {
        serde_json::from_value(
            json!({"metadata": {"name": "p"}, "spec": {"podSelector": {}, "ingress": [rule]}}),
        )
        .expect("a policy")
    }

    fn said(rule: Value, old: Option<Value>) -> Vec<String> {
        let (policy, old, mut errors) = (policy(rule), old.map(policy), FieldErrors::new());
        policy.validate(&FieldPath::new(""), &mut errors);
        match old {
            None => policy.validate_new(&FieldPath::new(""), &mut errors),
            Some(old) => policy.validate_update(&old, &FieldPath::new(""), &mut errors),
        }
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ports_end_after_they_begin() {
        assert_eq!(said(json!({"ports": [{"port": 8, "endPort": 9}]}), None), [""; 0]);
        assert_eq!(
            said(
                json!({"ports": [{"port": "http", "endPort": 8}, {"endPort": 9}, {"port": 9, "endPort": 3}]}),
                None
            ),
            [
                "spec.ingress[0].ports[0].endPort: Invalid value: 8: may not be specified when `port` is non-numeric",
                "spec.ingress[0].ports[1].endPort: Invalid value: 9: may not be specified when `port` is not specified",
                "spec.ingress[0].ports[2].endPort: Invalid value: 9: must be greater than or equal to `port`",
            ]
        );
    }

    #[test]
    fn what_there_is_stands_in_upstreams_order() {
        assert_eq!(
            said(json!({"ports": [{"protocol": "Odd"}]}), None),
            [
                "spec.ingress[0].ports[0].protocol: Unsupported value: \"Odd\": supported values: \"TCP\", \"UDP\", \
                 \"SCTP\""
            ]
        );
    }

    #[test]
    fn exceptions_are_parts_of_their_range() {
        let block =
            |cidr: &str, except: &str| json!({"from": [{"ipBlock": {"cidr": cidr, "except": [except]}}]});
        assert_eq!(said(block("10.0.0.0/8", "10.1.0.0/16"), None), [""; 0]);
        for other in ["192.168.0.0/16", "10.0.0.0/8", "fd00::/64"] {
            assert_eq!(
                said(block("10.0.0.0/8", other), None),
                [format!(
                    "spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"{other}\": must be a strict subset of \
                     `cidr`"
                )]
            );
        }
        let none = json!({"from": [{"ipBlock": {"cidr": ""}}]});
        assert_eq!(said(none, None), ["spec.ingress[0].from[0].ipBlock.cidr: Required value"]);
    }

    #[test]
    fn a_range_that_was_there_may_stay() {
        let odd = json!({"from": [{"ipBlock": {"cidr": "10.0.0.1/8"}}]});
        assert_eq!(said(odd.clone(), Some(odd.clone())), [""; 0]);
        assert_eq!(policy(odd.clone()).warnings(None).len(), 1);
        assert_eq!(
            said(odd, None),
            [
                "spec.ingress[0].from[0].ipBlock.cidr: Invalid value: \"10.0.0.1/8\": must not have bits set beyond the \
                 prefix length"
            ]
        );
    }
}
