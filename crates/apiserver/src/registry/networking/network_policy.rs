//! NetworkPolicy: which traffic may reach pods, and leave them.

use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use crate::registry::column::{age, name, or_none, selector_text, text};
use crate::registry::prepare::counted;
use crate::registry::rules::{cidr, label_selector, one_of, parse_cidr, port_or_name};
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
        }
        for (i, kind) in types.iter().enumerate() {
            one_of(kind, &["Egress", "Ingress"], &at.child("policyTypes").index(i), errors);
        }
    }
}

fn ports(list: Option<&[NetworkPolicyPort]>, at: &FieldPath, errors: &mut FieldErrors) {
    for (i, p) in list.unwrap_or_default().iter().enumerate() {
        let at = at.index(i);
        if let Some(protocol) = &p.protocol {
            one_of(protocol, &["SCTP", "TCP", "UDP"], &at.child("protocol"), errors);
        }
        match (&p.port, p.end_port) {
            (None, Some(_)) => {
                errors.required(&at.child("port"), "must be specified when endPort is specified");
            }
            (Some(IntOrString::String(name)), Some(_)) => {
                errors.invalid(&at.child("endPort"), name, "may not be specified when `port` is non-numeric");
            }
            (Some(IntOrString::Int(first)), Some(end)) if end < *first => {
                errors.invalid(&at.child("endPort"), end, "must be greater than or equal to `port`");
            }
            _ => {}
        }
        if let Some(port) = &p.port {
            port_or_name(port, &at.child("port"), errors);
        }
        if let Some(end) = p.end_port {
            crate::registry::rules::port(end, &at.child("endPort"), errors);
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
        match &peer.ip_block {
            None if !selectors => errors.required(&at, "must specify a peer"),
            None => {}
            Some(block) => {
                if selectors {
                    errors.forbidden(&at, "may not specify both ipBlock and another peer");
                }
                let at = at.child("ipBlock");
                cidr(&block.cidr, &at.child("cidr"), errors);
                for (j, except) in block.except.iter().flatten().enumerate() {
                    let at = at.child("except").index(j);
                    cidr(except, &at, errors);
                    if let (Some((_, outer)), Some((_, inner))) =
                        (parse_cidr(&block.cidr), parse_cidr(except))
                        && inner <= outer
                    {
                        errors.invalid(&at, except, "must be a strict subset of `cidr`");
                    }
                }
            }
        }
    }
}
