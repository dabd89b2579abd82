//! What of a Service may change (`ValidateServiceUpdate`), and what its status may say.

use k8s_openapi::api::core::v1::{LoadBalancerIngress, LoadBalancerStatus, Service, ServiceSpec};
use krate_api::{FieldErrors, FieldPath};

use super::{is_headless, needs_address, needs_health_port};
use crate::registry::core::addresses::{legacy_ip, sloppy_ip};
use crate::registry::rules::{IMMUTABLE, dns_subdomain, one_of};

const ONCE: &str = "may not change once set";

/// An address is given once: only the change to or from ExternalName takes or gives it, and of two, the second may come
/// and go.
pub fn update(new: &ServiceSpec, old: &ServiceSpec, at: &FieldPath, errors: &mut FieldErrors) {
    if needs_address(new) && needs_address(old) {
        match (is_headless(new), is_headless(old)) {
            (true, true) => {}
            (false, false) => {
                addresses(new, old, at, errors);
                families(new, old, at, errors);
            }
            _ => addresses(new, old, at, errors),
        }
    }
    if old.type_.as_deref() == Some("LoadBalancer")
        && new.type_.as_deref() == Some("LoadBalancer")
        && new.load_balancer_class != old.load_balancer_class
    {
        errors.invalid(&at.child("loadBalancerClass"), &new.load_balancer_class, ONCE);
    }
    if needs_health_port(new)
        && needs_health_port(old)
        && new.health_check_node_port.unwrap_or(0) != old.health_check_node_port.unwrap_or(0)
    {
        errors.forbidden(&at.child("healthCheckNodePort"), IMMUTABLE);
    }
}

fn addresses(new: &ServiceSpec, old: &ServiceSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let (ips, were) =
        (new.cluster_ips.as_deref().unwrap_or_default(), old.cluster_ips.as_deref().unwrap_or_default());
    let at_ips = at.child("clusterIPs");
    if ips.len() == were.len() {
        for (i, (ip, was)) in ips.iter().zip(were).enumerate() {
            if ip != was {
                errors.invalid(&at_ips.index(i), ips, ONCE);
            }
        }
        return;
    }
    if ips.is_empty() {
        errors.invalid(&at_ips.index(0), ips, "primary clusterIP can not be unset");
    }
    if let (Some(ip), Some(was)) = (ips.first(), were.first())
        && ip != was
    {
        errors.invalid(&at_ips.index(0), ips, ONCE);
    }
    if ips.len() == 1 && were.len() > 1 {
        said_to_be_single(new, "clusterIP", at, errors);
    }
}

fn families(new: &ServiceSpec, old: &ServiceSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let (now, had) =
        (new.ip_families.as_deref().unwrap_or_default(), old.ip_families.as_deref().unwrap_or_default());
    let at_first = at.child("ipFamilies").index(0);
    if now.len() == had.len() {
        for _ in now.iter().zip(had).filter(|(is, was)| is != was) {
            errors.invalid(&at_first, now, ONCE);
        }
        return;
    }
    let ips = new.cluster_ips.as_deref().unwrap_or_default();
    if had.len() > now.len() && ips.is_empty() {
        errors.invalid(&at_first, now, "primary ipFamily can not be unset");
    }
    if let (Some(is), Some(was)) = (now.first(), had.first())
        && is != was
    {
        errors.invalid(&at_first, ips, ONCE);
    }
    if now.len() == 1 && had.len() > 1 {
        said_to_be_single(new, "ipFamily", at, errors);
    }
}

fn said_to_be_single(new: &ServiceSpec, what: &str, at: &FieldPath, errors: &mut FieldErrors) {
    if new.ip_family_policy.as_deref() != Some("SingleStack") {
        let detail = format!("must be set to 'SingleStack' when releasing the secondary {what}");
        errors.invalid(&at.child("ipFamilyPolicy"), &new.ip_family_policy, detail);
    }
}

/// Where its load balancer is: only one of that type has some.
pub fn status(new: &Service, old: &Service, at: &FieldPath, errors: &mut FieldErrors) {
    let points = |service: &Service| -> Vec<LoadBalancerIngress> {
        let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        balancer.and_then(|LoadBalancerStatus { ingress }| ingress.clone()).unwrap_or_default()
    };
    let at = at.child("status").child("loadBalancer").child("ingress");
    let now = points(new);
    if new.spec.as_ref().and_then(|spec| spec.type_.as_deref()) != Some("LoadBalancer") {
        if !now.is_empty() {
            errors.forbidden(&at, "may only be used when `spec.type` is 'LoadBalancer'");
        }
        return;
    }
    let before: Vec<String> =
        points(old).into_iter().filter_map(|point| point.ip.filter(|ip| !ip.is_empty())).collect();
    for (i, point) in now.iter().enumerate() {
        ingress(point, &before, &at.index(i), errors);
    }
}

fn ingress(point: &LoadBalancerIngress, before: &[String], at: &FieldPath, errors: &mut FieldErrors) {
    let ip = point.ip.as_deref().filter(|ip| !ip.is_empty());
    if let Some(ip) = ip {
        legacy_ip(ip, before, &at.child("ip"), errors);
    }
    let at_mode = at.child("ipMode");
    match (ip, &point.ip_mode) {
        (Some(_), None) => errors.required(&at_mode, "must be specified when `ip` is set"),
        (None, Some(_)) => errors.forbidden(&at_mode, "may not be specified when `ip` is not set"),
        (Some(_), Some(mode)) => one_of(mode, &["Proxy", "VIP"], &at_mode, errors),
        (None, None) => {}
    }
    if let Some(name) = point.hostname.as_deref().filter(|name| !name.is_empty()) {
        let at = at.child("hostname");
        dns_subdomain(name, &at, errors);
        if sloppy_ip(name).is_some() {
            errors.invalid(&at, name, "must be a DNS name, not an IP address");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn wrong(new: &Value, old: &Value) -> Vec<String> {
        let read = |spec: &Value| serde_json::from_value::<ServiceSpec>(spec.clone()).expect("a spec");
        let mut errors = FieldErrors::new();
        update(&read(new), &read(old), &FieldPath::new("spec"), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn addresses_and_health_ports_are_given_once() {
        let one = json!({"type": "ClusterIP", "clusterIPs": ["10.0.0.1"], "ipFamilies": ["IPv4"]});
        let none = json!({"type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"]});
        let health = |port: i32| json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": port});
        for (new, old, text) in [
            (
                json!({"type": "ClusterIP", "clusterIPs": ["10.0.0.2"]}),
                one.clone(),
                "spec.clusterIPs[0]: Invalid value: [\"10.0.0.2\"]: may not change once set",
            ),
            (none, one.clone(), "spec.clusterIPs[0]: Invalid value: [\"None\"]: may not change once set"),
            (
                json!({"type": "ClusterIP", "clusterIPs": ["10.0.0.1"], "ipFamilies": ["IPv4"]}),
                json!({"type": "ClusterIP", "clusterIPs": ["10.0.0.1", "fd00::1"], "ipFamilies": ["IPv4"]}),
                "spec.ipFamilyPolicy: Invalid value: null: must be set to 'SingleStack' when releasing the \
                 secondary clusterIP",
            ),
            (health(30001), health(30000), "spec.healthCheckNodePort: Forbidden: field is immutable"),
        ] {
            assert_eq!(wrong(&new, &old), [text]);
        }
        assert_eq!(wrong(&json!({"type": "ExternalName"}), &one), [""; 0]);
    }

    #[test]
    fn a_status_tells_of_addresses_by_their_rules() {
        let service = |kind: &str, ingress: Value| -> Service {
            serde_json::from_value(json!({"metadata": {}, "spec": {"type": kind},
                                          "status": {"loadBalancer": {"ingress": ingress}}}))
            .expect("a Service")
        };
        for (kind, ingress, texts) in [
            ("LoadBalancer", json!([{"ip": "1.2.3.4", "ipMode": "VIP"}]), vec![]),
            (
                "ClusterIP",
                json!([{"ip": "1.2.3.4"}]),
                vec![
                    "status.loadBalancer.ingress: Forbidden: may only be used when `spec.type` is 'LoadBalancer'",
                ],
            ),
            (
                "LoadBalancer",
                json!([{"ip": "1.2.3.4"}, {"hostname": "a.b", "ipMode": "VIP"}, {"ip": "1.2.3.4", "ipMode": "Odd"}]),
                vec![
                    "status.loadBalancer.ingress[0].ipMode: Required value: must be specified when `ip` is set",
                    "status.loadBalancer.ingress[1].ipMode: Forbidden: may not be specified when `ip` is not set",
                    "status.loadBalancer.ingress[2].ipMode: Unsupported value: \"Odd\": supported values: \"Proxy\", \"VIP\"",
                ],
            ),
            (
                "LoadBalancer",
                json!([{"hostname": "1.2.3.4"}]),
                vec![
                    "status.loadBalancer.ingress[0].hostname: Invalid value: \"1.2.3.4\": must be a DNS name, not an IP address",
                ],
            ),
        ] {
            let mut errors = FieldErrors::new();
            status(&service(kind, ingress), &service(kind, json!([])), &FieldPath::new(""), &mut errors);
            assert_eq!(errors.iter().map(ToString::to_string).collect::<Vec<_>>(), texts);
        }
    }
}
