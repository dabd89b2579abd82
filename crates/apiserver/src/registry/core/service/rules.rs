//! What a Service may say (`ValidateService`), and what of it may change.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{ServicePort, ServiceSpec};
use krate_api::field::Fault;
use krate_api::{FieldError, FieldErrors, FieldPath};

use super::{is_external, is_headless, needs_health_port};
use crate::registry::rules::{
    NOT_AN_IP, cidr, dns_label, dns_subdomain, each, in_range, label_name, labels, one_of, port, port_or_name,
};

const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const POLICIES: &[&str] = &["Cluster", "Local"];
const ONE_DAY: i64 = 86400;

pub fn spec(spec: &ServiceSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let kind = spec.type_.as_deref().unwrap_or_default();
    let at_ports = at.child("ports");
    let list = spec.ports.as_deref().unwrap_or_default();
    if list.is_empty() && !is_headless(spec) && kind != "ExternalName" {
        errors.required(&at_ports, "");
    }
    match kind {
        "LoadBalancer" | "NodePort" if is_headless(spec) => {
            errors.invalid(
                &at.child("clusterIPs").index(0),
                "None",
                format!("may not be set to 'None' for {kind} services"),
            );
        }
        "LoadBalancer" => {
            for (i, p) in list.iter().enumerate() {
                if p.port == 10250 && p.protocol.as_deref() == Some("TCP") {
                    errors.invalid(
                        &at_ports.index(i),
                        p,
                        "may not expose port 10250 externally since it is used by kubelet",
                    );
                }
            }
        }
        "ExternalName" => external_name(spec, at, errors),
        _ => {}
    }
    ports(spec, &at_ports, errors);
    labels(spec.selector.as_ref(), &at.child("selector"), errors);
    affinity(spec, at, errors);
    addresses(spec, at, errors);
    if kind.is_empty() {
        errors.required(&at.child("type"), "");
    } else {
        one_of(kind, TYPES, &at.child("type"), errors);
    }
    if kind == "ClusterIP" || kind == "ExternalName" {
        for (i, p) in list.iter().enumerate() {
            if p.node_port.unwrap_or(0) != 0 {
                let detail = format!("may not be used when `type` is '{kind}'");
                errors.forbidden(&at_ports.index(i).child("nodePort"), detail);
            }
        }
    }
    let mut node_ports = BTreeSet::new();
    for (i, p) in list.iter().enumerate() {
        let Some(number) = p.node_port.filter(|n| *n != 0) else { continue };
        if !node_ports.insert((p.protocol.as_deref(), number)) {
            errors.duplicate(&at_ports.index(i).child("nodePort"), number);
        }
    }
    load_balancer(spec, kind, at, errors);
    traffic(spec, kind, at, errors);
}

fn external_name(spec: &ServiceSpec, at: &FieldPath, errors: &mut FieldErrors) {
    for (name, set) in [
        ("clusterIPs", spec.cluster_ips.as_ref().is_some_and(|i| !i.is_empty())),
        ("ipFamilies", spec.ip_families.as_ref().is_some_and(|i| !i.is_empty())),
        ("ipFamilyPolicy", spec.ip_family_policy.is_some()),
    ] {
        if set {
            errors.forbidden(&at.child(name), "may not be set when `type` is 'ExternalName'");
        }
    }
    let at = at.child("externalName");
    match spec.external_name.as_deref().unwrap_or_default() {
        "" => errors.required(&at, ""),
        name => dns_subdomain(name.strip_suffix('.').unwrap_or(name), &at, errors),
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

fn addresses(spec: &ServiceSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let ips = spec.cluster_ips.as_deref().unwrap_or_default();
    let at_ips = at.child("clusterIPs");
    let single = spec.cluster_ip.as_deref().unwrap_or_default();
    if !single.is_empty() && ips.is_empty() {
        errors.required(&at_ips, "");
    } else if let Some(first) = ips.first()
        && first != single
    {
        errors.invalid(&at_ips, ips, "first value must match `clusterIP`");
    }
    for (i, value) in ips.iter().enumerate() {
        if value == "None" {
            if ips.len() > 1 {
                errors.invalid(&at_ips.index(i), value, "'None' must be the first and only value");
            }
        } else if value.parse::<IpAddr>().is_err() {
            errors.invalid(&at_ips.index(i), value, NOT_AN_IP);
        }
    }
    if ips.len() > 2 {
        errors.invalid(&at_ips, ips, "may only hold up to 2 values");
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
    for (i, value) in spec.external_ips.iter().flatten().enumerate() {
        external_ip(value, &at.child("externalIPs").index(i), errors);
    }
}

/// An address that traffic from outside can arrive at.
fn external_ip(value: &str, at: &FieldPath, errors: &mut FieldErrors) {
    let Ok(ip) = value.parse::<IpAddr>() else {
        errors.invalid(at, value, NOT_AN_IP);
        return;
    };
    if ip.is_unspecified() {
        errors.invalid(at, value, format!("may not be unspecified ({value})"));
    }
    if ip.is_loopback() {
        errors.invalid(at, value, "may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    let (link_local, link_multicast) = match ip {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(v6) => (v6.segments()[0] & 0xffc0 == 0xfe80, v6.segments()[0] & 0xff0f == 0xff02),
    };
    if link_local {
        errors.invalid(at, value, "may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    if link_multicast {
        errors.invalid(at, value, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)");
    }
}

fn load_balancer(spec: &ServiceSpec, kind: &str, at: &FieldPath, errors: &mut FieldErrors) {
    let ranges = spec.load_balancer_source_ranges.as_deref().unwrap_or_default();
    if !ranges.is_empty() && kind != "LoadBalancer" {
        errors.forbidden(
            &at.child("LoadBalancerSourceRanges"),
            "may only be used when `type` is 'LoadBalancer'",
        );
    }
    for (i, range) in ranges.iter().enumerate() {
        cidr(range.trim(), &at.child("LoadBalancerSourceRanges").index(i), errors);
    }
    match (&spec.allocate_load_balancer_node_ports, kind) {
        (None, "LoadBalancer") => {
            errors.required(&at.child("allocateLoadBalancerNodePorts"), "");
        }
        (Some(_), other) if other != "LoadBalancer" => {
            errors.forbidden(
                &at.child("allocateLoadBalancerNodePorts"),
                "may only be used when `type` is 'LoadBalancer'",
            );
        }
        _ => {}
    }
    if let Some(class) = &spec.load_balancer_class {
        let at = at.child("loadBalancerClass");
        if kind == "LoadBalancer" {
            each(crate::registry::rules::qualified_name(class), class, &at, errors);
        } else {
            errors.forbidden(&at, "may only be used when `type` is 'LoadBalancer'");
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
    } else if health < 0 {
        in_range(health, 0, 65535, &at.child("healthCheckNodePort"), errors);
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
            &["PreferClose", "PreferSameNode", "PreferSameZone"],
            &at.child("trafficDistribution"),
            errors,
        );
    }
}

/// An address is given once: only the change to or from ExternalName takes or gives it.
pub fn update(new: &ServiceSpec, old: &ServiceSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let external = |s: &ServiceSpec| s.type_.as_deref() == Some("ExternalName");
    if external(new) || external(old) {
        return;
    }
    let (ips, were) =
        (new.cluster_ips.clone().unwrap_or_default(), old.cluster_ips.clone().unwrap_or_default());
    let at_ips = at.child("clusterIPs");
    if let Some(was) = were.first() {
        match ips.first() {
            None => errors.invalid(&at_ips.index(0), &ips, "primary clusterIP can not be unset"),
            Some(is) if is != was => errors.invalid(&at_ips.index(0), &ips, "may not change once set"),
            Some(_) => {}
        }
    }
    let (families, had) =
        (new.ip_families.clone().unwrap_or_default(), old.ip_families.clone().unwrap_or_default());
    if let (Some(is), Some(was)) = (families.first(), had.first())
        && is != was
    {
        errors.invalid(&at.child("ipFamilies").index(0), &families, "may not change once set");
    }
    if old.type_.as_deref() == Some("LoadBalancer")
        && new.type_.as_deref() == Some("LoadBalancer")
        && new.load_balancer_class != old.load_balancer_class
    {
        errors.invalid(&at.child("loadBalancerClass"), &new.load_balancer_class, "may not change once set");
    }
    if needs_health_port(new)
        && needs_health_port(old)
        && new.health_check_node_port.unwrap_or(0) != old.health_check_node_port.unwrap_or(0)
    {
        errors.invalid(&at.child("healthCheckNodePort"), new.health_check_node_port, "field is immutable");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_told_by_protocol_and_number() {
        let list = serde_json::json!([{"name": "a", "port": 80, "protocol": "TCP"},
                                      {"name": "b", "port": 80, "protocol": "UDP"},
                                      {"name": "c", "port": 80, "protocol": "TCP"}]);
        let spec =
            ServiceSpec { ports: serde_json::from_value(list).expect("ports"), ..ServiceSpec::default() };
        let mut errors = FieldErrors::new();
        ports(&spec, &FieldPath::new("spec").child("ports"), &mut errors);
        let text: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(text.len(), 1);
        assert!(text[0].starts_with("spec.ports[2]: Duplicate value"), "{text:?}");
    }
}
