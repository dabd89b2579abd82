//! What a Service may say (`validateService`). What it said before may stay, though it would not be taken anew.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use krate_api::field::Fault;
use krate_api::{FieldError, FieldErrors, FieldPath};

use super::{is_external, is_headless, needs_health_port};
use crate::registry::core::addresses::{legacy_cidr, legacy_ip, reachable_ip, sloppy_ip};
use crate::registry::rules::{
    dns_label, dns_subdomain, each, label_name, labels, one_of, port, port_or_name,
};

pub const TOPOLOGY_HINTS: &str = "service.kubernetes.io/topology-aware-hints";
const TOPOLOGY_MODE: &str = "service.kubernetes.io/topology-mode";
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const POLICIES: &[&str] = &["Cluster", "Local"];
const BALANCERS_ONLY: &str = "may only be used when `type` is 'LoadBalancer'";
const ONE_DAY: i64 = 86400;

pub fn service(new: &Service, old: Option<&Service>, at: &FieldPath, errors: &mut FieldErrors) {
    topology(new, &at.child("metadata").child("annotations"), errors);
    let Some(spec) = &new.spec else { return };
    let was = old.and_then(|old| old.spec.as_ref());
    let at_spec = at.child("spec");
    let kind = spec.type_.as_deref().unwrap_or_default();
    let at_ports = at_spec.child("ports");
    let list = spec.ports.as_deref().unwrap_or_default();
    if list.is_empty() && !is_headless(spec) && kind != "ExternalName" {
        errors.required(&at_ports, "");
    }
    match kind {
        "LoadBalancer" | "NodePort" if is_headless(spec) => {
            errors.invalid(
                &at_spec.child("clusterIPs").index(0),
                "None",
                format!("may not be set to 'None' for {kind} services"),
            );
        }
        "ExternalName" => external_name(spec, &at_spec, errors),
        _ => {}
    }
    ports(spec, &at_ports, errors);
    labels(spec.selector.as_ref(), &at_spec.child("selector"), errors);
    affinity(spec, &at_spec, errors);
    if kind != "ExternalName" {
        addresses(spec, was, &at_spec, errors);
    }
    external_ips(spec, was, &at_spec.child("externalIPs"), errors);
    if kind.is_empty() {
        errors.required(&at_spec.child("type"), "");
    } else {
        one_of(kind, TYPES, &at_spec.child("type"), errors);
    }
    if kind == "ClusterIP" {
        for (i, p) in list.iter().enumerate() {
            if p.node_port.unwrap_or(0) != 0 {
                let detail = "may not be used when `type` is 'ClusterIP'";
                errors.forbidden(&at_ports.index(i).child("nodePort"), detail);
            }
        }
    }
    duplicates(list, &at_ports, errors);
    source_ranges(new, old, kind, at, errors);
    load_balancer(spec, kind, &at_spec, errors);
    traffic(spec, kind, &at_spec, errors);
}

fn annotation<'a>(service: &'a Service, key: &str) -> Option<&'a String> {
    service.metadata.annotations.as_ref()?.get(key)
}

/// An annotation has two names, which must not say two things.
fn topology(service: &Service, at: &FieldPath, errors: &mut FieldErrors) {
    if let (Some(mode), Some(hints)) =
        (annotation(service, TOPOLOGY_MODE), annotation(service, TOPOLOGY_HINTS))
        && mode != hints
    {
        let detail = format!("must match annotations[{TOPOLOGY_HINTS}] when both are specified");
        errors.invalid(&at.key(TOPOLOGY_MODE), mode, detail);
    }
}

fn external_name(spec: &ServiceSpec, at: &FieldPath, errors: &mut FieldErrors) {
    for (name, set) in [
        ("clusterIPs", spec.cluster_ips.as_ref().is_some_and(|i| !i.is_empty())),
        ("ipFamilies", spec.ip_families.as_ref().is_some_and(|i| !i.is_empty())),
        ("ipFamilyPolicy", spec.ip_family_policy.is_some()),
    ] {
        if set {
            errors.forbidden(&at.child(name), "may not be set for ExternalName services");
        }
    }
    let at = at.child("externalName");
    let name = spec.external_name.as_deref().unwrap_or_default();
    match name.strip_suffix('.').unwrap_or(name) {
        "" => errors.required(&at, ""),
        name => dns_subdomain(name, &at, errors),
    }
}

fn ports(spec: &ServiceSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let list = spec.ports.as_deref().unwrap_or_default();
    let mut names = BTreeSet::new();
    for (i, p) in list.iter().enumerate() {
        let at = at.index(i);
        let name = p.name.as_deref().unwrap_or_default();
        if list.len() > 1 && name.is_empty() {
            errors.required(&at.child("name"), "");
        } else if !name.is_empty() {
            dns_label(name, &at.child("name"), errors);
            if !names.insert(name) {
                errors.duplicate(&at.child("name"), name);
            }
        }
        port(p.port, &at.child("port"), errors);
        match p.protocol.as_deref().unwrap_or_default() {
            "" => errors.required(&at.child("protocol"), ""),
            protocol => one_of(protocol, &["SCTP", "TCP", "UDP"], &at.child("protocol"), errors),
        }
        if let Some(target) = &p.target_port {
            port_or_name(target, &at.child("targetPort"), errors);
        }
        if let Some(protocol) = &p.app_protocol {
            label_name(protocol, &at.child("appProtocol"), errors);
        }
    }
}

/// A port is told by its protocol and its number, on the Service's address and on the nodes.
fn duplicates(list: &[ServicePort], at: &FieldPath, errors: &mut FieldErrors) {
    let mut node_ports = BTreeSet::new();
    for (i, p) in list.iter().enumerate() {
        let Some(number) = p.node_port.filter(|n| *n != 0) else { continue };
        if !node_ports.insert((p.protocol.as_deref(), number)) {
            errors.duplicate(&at.index(i).child("nodePort"), number);
        }
    }
    let mut seen = BTreeSet::new();
    for (i, p) in list.iter().enumerate() {
        if !seen.insert((p.protocol.as_deref().unwrap_or_default(), p.port)) {
            errors.push(FieldError {
                fault: Fault::Duplicate,
                field: at.index(i),
                value: Some(shown(p)),
                detail: String::new(),
            });
        }
    }
}

/// The pair that must be unique, as upstream shows it: a port with nothing but that.
fn shown(p: &ServicePort) -> String {
    format!(
        "{{\"Name\":\"\",\"Protocol\":\"{}\",\"AppProtocol\":null,\"Port\":{},\"TargetPort\":0,\"NodePort\":0}}",
        p.protocol.as_deref().unwrap_or_default(),
        p.port
    )
}

fn affinity(spec: &ServiceSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let affinity = spec.session_affinity.as_deref().unwrap_or_default();
    if affinity.is_empty() {
        errors.required(&at.child("sessionAffinity"), "");
    } else {
        one_of(affinity, &["ClientIP", "None"], &at.child("sessionAffinity"), errors);
    }
    let at = at.child("sessionAffinityConfig");
    match (affinity, &spec.session_affinity_config) {
        ("ClientIP", config) => {
            let at = at.child("clientIP").child("timeoutSeconds");
            match config.as_ref().and_then(|c| c.client_ip.as_ref()).and_then(|c| c.timeout_seconds) {
                None => errors.required(&at, "when session affinity type is ClientIP"),
                Some(seconds) if seconds <= 0 || i64::from(seconds) > ONE_DAY => {
                    errors.invalid(&at, seconds, format!("must be greater than 0 and less than {ONE_DAY}"));
                }
                Some(_) => {}
            }
        }
        ("None", Some(_)) => {
            errors.forbidden(&at, "must not be set when session affinity is None");
        }
        _ => {}
    }
}

fn addresses(spec: &ServiceSpec, was: Option<&ServiceSpec>, at: &FieldPath, errors: &mut FieldErrors) {
    let ips = spec.cluster_ips.as_deref().unwrap_or_default();
    let at_ips = at.child("clusterIPs");
    let single = spec.cluster_ip.as_deref().unwrap_or_default();
    match ips.first() {
        None if !single.is_empty() => errors.required(&at_ips, ""),
        Some(_) if single.is_empty() => {
            errors.invalid(&at_ips, ips, "must be empty when `clusterIP` is not specified");
        }
        Some(first) if first != single => {
            errors.invalid(&at_ips, ips, "first value must match `clusterIP`");
        }
        _ => {}
    }
    let families = spec.ip_families.as_deref().unwrap_or_default();
    let mut seen = BTreeSet::new();
    for (i, family) in families.iter().enumerate() {
        one_of(family, &["IPv4", "IPv6"], &at.child("ipFamilies").index(i), errors);
        if !seen.insert(family) {
            errors.duplicate(&at.child("ipFamilies").index(i), family);
        }
    }
    if let Some(policy) = &spec.ip_family_policy {
        one_of(
            policy,
            &["PreferDualStack", "RequireDualStack", "SingleStack"],
            &at.child("ipFamilyPolicy"),
            errors,
        );
    }
    let before = was.and_then(|was| was.cluster_ips.as_deref()).unwrap_or_default();
    let mut all_right = true;
    for (i, value) in ips.iter().enumerate() {
        if i == 0 && value == "None" {
            if ips.len() > 1 {
                all_right = false;
                errors.invalid(&at_ips, ips, "'None' must be the first and only value");
            }
        } else {
            all_right &= legacy_ip(value, before, &at_ips.index(i), errors);
        }
    }
    if ips.len() > 2 {
        errors.invalid(&at_ips, ips, "may only hold up to 2 values");
    }
    // What is no address has no family that one could complain of.
    if all_right {
        of_their_families(ips, families, is_headless(spec), &at_ips, errors);
    }
}

fn of_their_families(
    ips: &[String],
    families: &[String],
    headless: bool,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    let is_v6 = |ip: &String| sloppy_ip(ip).is_some_and(|ip| ip.to_canonical().is_ipv6());
    if ips.len() > 1 {
        let six = ips.iter().filter(|ip| is_v6(ip)).count();
        if six == 0 || six == ips.len() {
            errors.invalid(at, ips, "may specify no more than one IP for each IP family");
        }
    }
    if headless {
        return;
    }
    for (i, (ip, family)) in ips.iter().zip(families).enumerate() {
        let expected = match (family.as_str(), is_v6(ip)) {
            ("IPv4", true) => "an IPv4",
            ("IPv6", false) => "an IPv6",
            _ => continue,
        };
        errors.invalid(
            &at.index(i),
            ip,
            format!("expected {expected} value as indicated by `ipFamilies[{i}]`"),
        );
    }
}

fn external_ips(spec: &ServiceSpec, was: Option<&ServiceSpec>, at: &FieldPath, errors: &mut FieldErrors) {
    let before = was.and_then(|was| was.external_ips.as_deref()).unwrap_or_default();
    for (i, value) in spec.external_ips.iter().flatten().enumerate() {
        if legacy_ip(value, before, &at.index(i), errors) {
            reachable_ip(value, &at.index(i), errors);
        }
    }
}

/// Where clients of a load balancer may be: in a field, or in the annotation that was there before it.
fn source_ranges(new: &Service, old: Option<&Service>, kind: &str, at: &FieldPath, errors: &mut FieldErrors) {
    let trimmed = |service: &Service| -> Vec<String> {
        let ranges = service.spec.iter().flat_map(|s| s.load_balancer_source_ranges.iter().flatten());
        ranges.map(|range| range.trim().to_owned()).collect()
    };
    let ranges = trimmed(new);
    let annotated = annotation(new, SOURCE_RANGES);
    let at = match annotated {
        _ if !ranges.is_empty() => at.child("spec").child("LoadBalancerSourceRanges"),
        Some(_) => at.child("metadata").child("annotations").key(SOURCE_RANGES),
        None => return,
    };
    if kind != "LoadBalancer" {
        errors.forbidden(&at, BALANCERS_ONLY);
    }
    if !ranges.is_empty() {
        let before = old.map(trimmed).unwrap_or_default();
        for (i, range) in ranges.iter().enumerate() {
            legacy_cidr(range, &before, &at.index(i), errors);
        }
    } else if old.and_then(|old| annotation(old, SOURCE_RANGES)) != annotated {
        let text = annotated.map(|text| text.trim()).unwrap_or_default();
        for range in text.split(',').filter(|_| !text.is_empty()) {
            legacy_cidr(range.trim(), &[], &at, errors);
        }
    }
}

fn load_balancer(spec: &ServiceSpec, kind: &str, at: &FieldPath, errors: &mut FieldErrors) {
    match (&spec.allocate_load_balancer_node_ports, kind) {
        (None, "LoadBalancer") => {
            errors.required(&FieldPath::new("allocateLoadBalancerNodePorts"), "");
        }
        (Some(_), other) if other != "LoadBalancer" => {
            errors.forbidden(&at.child("allocateLoadBalancerNodePorts"), BALANCERS_ONLY);
        }
        _ => {}
    }
    if let Some(class) = &spec.load_balancer_class {
        let at = at.child("loadBalancerClass");
        if kind == "LoadBalancer" {
            each(crate::registry::rules::qualified_name(class), class, &at, errors);
        } else {
            errors.forbidden(&at, BALANCERS_ONLY);
        }
    }
}

fn traffic(spec: &ServiceSpec, kind: &str, at: &FieldPath, errors: &mut FieldErrors) {
    let external = spec.external_traffic_policy.as_deref().unwrap_or_default();
    let at_external = at.child("externalTrafficPolicy");
    if is_external(spec) {
        if external.is_empty() {
            errors.required(&at_external, "");
        } else {
            one_of(external, POLICIES, &at_external, errors);
        }
    } else if !external.is_empty() {
        errors.invalid(&at_external, external, "may only be set for externally-accessible services");
    }
    let health = spec.health_check_node_port.unwrap_or(0);
    if !needs_health_port(spec) && health != 0 {
        errors.invalid(
            &at.child("healthCheckNodePort"),
            health,
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
        );
    } else if health != 0 {
        port(health, &at.child("healthCheckNodePort"), errors);
    }
    let at_internal = at.child("internalTrafficPolicy");
    match spec.internal_traffic_policy.as_deref() {
        None if matches!(kind, "NodePort" | "LoadBalancer" | "ClusterIP") => {
            errors.required(&at_internal, "");
        }
        Some(policy) => one_of(policy, POLICIES, &at_internal, errors),
        None => {}
    }
    if let Some(distribution) = &spec.traffic_distribution {
        one_of(
            distribution,
            &["PreferClose", "PreferSameZone", "PreferSameNode"],
            &at.child("trafficDistribution"),
            errors,
        );
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::registry::Strategy;

    fn made(spec: &Value) -> Service {
        let mut service: Service =
            serde_json::from_value(json!({"metadata": {"name": "s"}, "spec": spec})).expect("a Service");
        service.default();
        service
    }

    fn wrong(new: &Service, old: Option<&Service>) -> Vec<String> {
        let mut errors = FieldErrors::new();
        service(new, old, &FieldPath::new(""), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_port_is_told_by_protocol_and_number() {
        let list = serde_json::json!([{"name": "a", "port": 80, "protocol": "TCP"},
                                      {"name": "b", "port": 80, "protocol": "UDP"},
                                      {"name": "c", "port": 80, "protocol": "TCP"}]);
        let text = wrong(&made(&json!({"ports": list})), None);
        assert_eq!(text.len(), 1);
        assert!(text[0].starts_with("spec.ports[2]: Duplicate value"), "{text:?}");
    }

    #[test]
    fn a_load_balancer_may_show_any_port() {
        let spec = json!({"type": "LoadBalancer", "ports": [{"port": 10250}]});
        assert_eq!(wrong(&made(&spec), None), [""; 0]);
    }

    #[test]
    fn old_spellings_stay_and_new_ones_are_refused() {
        let spec = json!({"type": "LoadBalancer", "ports": [{"port": 80}], "externalIPs": ["010.0.0.1"],
                          "loadBalancerSourceRanges": [" 10.0.0.1/8"]});
        let service = made(&spec);
        assert_eq!(
            wrong(&service, None),
            [
                "spec.externalIPs[0]: Invalid value: \"010.0.0.1\": must not have leading 0s",
                "spec.LoadBalancerSourceRanges[0]: Invalid value: \"10.0.0.1/8\": must not have bits set beyond \
                 the prefix length",
            ]
        );
        assert_eq!(wrong(&service, Some(&service)), [""; 0]);
    }

    #[test]
    fn addresses_are_of_their_families() {
        for (spec, text) in [
            (
                json!({"ports": [{"port": 80}], "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"],
                       "ipFamilies": ["IPv6"]}),
                "spec.clusterIPs[0]: Invalid value: \"10.0.0.1\": expected an IPv6 value as indicated by `ipFamilies[0]`",
            ),
            (
                json!({"ports": [{"port": 80}], "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "10.0.0.2"]}),
                "spec.clusterIPs: Invalid value: [\"10.0.0.1\",\"10.0.0.2\"]: may specify no more than one IP for \
                 each IP family",
            ),
            (
                json!({"ports": [{"port": 80}], "clusterIPs": ["10.0.0.1"]}),
                "spec.clusterIPs: Invalid value: [\"10.0.0.1\"]: must be empty when `clusterIP` is not specified",
            ),
            (
                json!({"type": "ExternalName", "externalName": "a.b", "ipFamilies": ["IPv4"]}),
                "spec.ipFamilies: Forbidden: may not be set for ExternalName services",
            ),
        ] {
            assert_eq!(wrong(&made(&spec), None), [text]);
        }
    }

    #[test]
    fn ranges_in_the_annotation_are_checked() {
        let mut service = made(&json!({"ports": [{"port": 80}]}));
        let annotations = [(SOURCE_RANGES.to_owned(), "10.0.0.0/8, x".to_owned())];
        service.metadata.annotations = Some(annotations.into());
        let text = wrong(&service, None);
        assert_eq!(text.len(), 2, "{text:?}");
        assert!(text[0].ends_with(": Forbidden: may only be used when `type` is 'LoadBalancer'"), "{text:?}");
        assert!(text[1].contains("]: Invalid value: \"x\": must be a valid CIDR value"), "{text:?}");
    }
}
