//! What a client is told of a Service that is taken, and yet may not mean what he thinks.

use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use krate_api::FieldPath;

use super::rules::TOPOLOGY_HINTS;
use crate::registry::core::addresses::{cidr_warnings, ip_warning};

pub fn warnings(service: &Service, old: Option<&Service>) -> Vec<String> {
    match (&service.spec, old) {
        // A write of the status leaves the spec as it is, and the other way round.
        (_, Some(old)) if service.spec == old.spec && service.status != old.status => status(service),
        (Some(spec), _) => of_all(service, spec),
        (None, _) => Vec::new(),
    }
}

fn of_all(service: &Service, spec: &ServiceSpec) -> Vec<String> {
    let mut warnings = Vec::new();
    let at = FieldPath::new("spec");
    if service.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(TOPOLOGY_HINTS)) {
        warnings.push(format!(
            "annotation {TOPOLOGY_HINTS} is deprecated, please use service.kubernetes.io/topology-mode instead"
        ));
    }
    let single = spec.cluster_ip.as_deref().unwrap_or_default();
    if !matches!(single, "" | "None") {
        warnings.extend(of_addresses(spec.cluster_ips.as_ref(), &at.child("clusterIPs")));
    }
    let headless = spec.type_.as_deref() == Some("ClusterIP") && single == "None";
    let is_external_name = spec.type_.as_deref() == Some("ExternalName");
    let has_external_ips = spec.external_ips.as_ref().is_some_and(|ips| !ips.is_empty());
    let balancer = spec.load_balancer_ip.as_deref().unwrap_or_default();
    let mut ignored = |is: bool, what: &str| {
        if is {
            warnings.push(format!("{what} is ignored for headless services"));
        }
    };
    ignored(headless && !balancer.is_empty(), "spec.loadBalancerIP");
    ignored(headless && has_external_ips, "spec.externalIPs");
    ignored(headless && spec.session_affinity.as_deref() != Some("None"), "spec.SessionAffinity");
    warnings.extend(of_addresses(spec.external_ips.as_ref(), &at.child("externalIPs")));
    if has_external_ips && !headless && !is_external_name {
        warnings.push(
            "spec.externalIPs is deprecated and may no longer be implemented in some clusters".to_owned(),
        );
    }
    warnings.extend(ip_warning(balancer, &at.child("loadBalancerIP")));
    for (i, range) in spec.load_balancer_source_ranges.iter().flatten().enumerate() {
        warnings.extend(cidr_warnings(range, &at.child("loadBalancerSourceRanges").index(i)));
    }
    if is_external_name && has_external_ips {
        warnings.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".to_owned());
    }
    if !is_external_name && spec.external_name.as_deref().is_some_and(|name| !name.is_empty()) {
        warnings.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".to_owned());
    }
    if spec.traffic_distribution.as_deref() == Some("PreferClose") {
        warnings.push(
            "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"".to_owned(),
        );
    }
    warnings
}

fn of_addresses(ips: Option<&Vec<String>>, at: &FieldPath) -> Vec<String> {
    let ips = ips.into_iter().flatten().enumerate();
    ips.filter_map(|(i, ip)| ip_warning(ip, &at.index(i))).collect()
}

fn status(service: &Service) -> Vec<String> {
    let at = FieldPath::new("status").child("loadBalancer").child("ingress");
    let balancers = service.status.iter().flat_map(|status| &status.load_balancer);
    let points = balancers.flat_map(|balancer| balancer.ingress.iter().flatten()).enumerate();
    points.filter_map(|(i, point)| ip_warning(point.ip.as_deref()?, &at.index(i))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(spec: Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "s"}, "spec": spec})).expect("a Service")
    }

    #[test]
    fn what_is_ignored_or_old_is_told() {
        for (spec, told) in [
            (json!({"type": "ClusterIP", "sessionAffinity": "None"}), vec![]),
            (
                json!({"type": "ClusterIP", "externalName": "a.b", "trafficDistribution": "PreferClose"}),
                vec![
                    "spec.externalName is ignored when spec.type is not \"ExternalName\"",
                    "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"",
                ],
            ),
            (
                json!({"type": "ClusterIP", "clusterIP": "None", "sessionAffinity": "ClientIP", "externalIPs": ["1.2.3.4"]}),
                vec![
                    "spec.externalIPs is ignored for headless services",
                    "spec.SessionAffinity is ignored for headless services",
                ],
            ),
            (
                json!({"type": "NodePort", "externalIPs": ["FD00::1"]}),
                vec![
                    "spec.externalIPs[0]: IPv6 address \"FD00::1\" should be in RFC 5952 canonical format (\"fd00::1\")",
                    "spec.externalIPs is deprecated and may no longer be implemented in some clusters",
                ],
            ),
        ] {
            assert_eq!(warnings(&service(spec), None), told);
        }
    }

    #[test]
    fn who_writes_the_status_is_not_told_of_the_spec() {
        let old = service(json!({"type": "LoadBalancer", "externalIPs": ["1.2.3.4"]}));
        let mut new = old.clone();
        new.status = serde_json::from_value(json!({"loadBalancer": {"ingress": [{"ip": "::ffff:1.2.3.4"}]}}))
            .expect("a status");
        assert_eq!(
            warnings(&new, Some(&old)),
            [
                "status.loadBalancer.ingress[0]: non-standard IP address \"::ffff:1.2.3.4\" is invalid: use \"1.2.3.4\""
            ]
        );
    }
}
