//! Service: one address and name for a set of pods.

mod allocate;
mod changes;
mod families;
mod held;
mod metrics;
mod ranges;
mod rules;
mod warnings;

pub use allocate::{Allocator, FAMILY, MANAGED_BY, MANAGER, NODE_PORTS};
pub use ranges::RangeError;

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    ClientIPConfig, LoadBalancerStatus, Service, ServiceSpec, SessionAffinityConfig,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};
use serde_json::Value;

use crate::registry::column::{age, labels, name, or_none, text, wide};
use crate::registry::{Column, Context, Selectable, Strategy};

impl Strategy for Service {
    const KIND: &'static Kind = &kinds::SERVICE;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text("Type", "io.k8s.api.core.v1.ServiceSpec.type", |s| kind(s).into()),
        text("Cluster-IP", "io.k8s.api.core.v1.ServiceSpec.clusterIP", |s| {
            or_none(
                s.spec
                    .as_ref()
                    .and_then(|s| s.cluster_ips.as_ref())
                    .and_then(|i| i.first())
                    .map(String::as_str),
            )
        }),
        text("External-IP", "io.k8s.api.core.v1.ServiceSpec.externalIPs", external_ips),
        text("Port(s)", "io.k8s.api.core.v1.ServiceSpec.ports", ports),
        age(),
        wide("Selector", "io.k8s.api.core.v1.ServiceSpec.selector", |s| {
            labels(s.spec.as_ref().and_then(|s| s.selector.as_ref()))
        }),
    ];
    const ALLOW_CREATE_ON_UPDATE: bool = true;

    fn default(&mut self) {
        let spec = self.spec.get_or_insert_default();
        affinity(spec);
        let kind = text_or(&mut spec.type_, "ClusterIP").to_owned();
        for port in spec.ports.iter_mut().flatten() {
            text_or(&mut port.protocol, "TCP");
            let unset = match &port.target_port {
                None | Some(IntOrString::Int(0)) => true,
                Some(IntOrString::String(name)) => name.is_empty(),
                Some(IntOrString::Int(_)) => false,
            };
            if unset {
                port.target_port = Some(IntOrString::Int(port.port));
            }
        }
        if is_external(spec) {
            text_or(&mut spec.external_traffic_policy, "Cluster");
        }
        if kind != "ExternalName" {
            spec.internal_traffic_policy.get_or_insert_with(|| "Cluster".to_owned());
        }
        if kind == "LoadBalancer" {
            spec.allocate_load_balancer_node_ports.get_or_insert(true);
        }
        let status = self.status.get_or_insert_default();
        let ingress = status.load_balancer.get_or_insert_default().ingress.iter_mut().flatten();
        if kind == "LoadBalancer" {
            for point in ingress.filter(|p| p.ip.as_deref().is_some_and(|ip| !ip.is_empty())) {
                point.ip_mode.get_or_insert_with(|| "VIP".to_owned());
            }
        }
    }

    fn prepare_for_create(&mut self, _: &Context) {
        self.status = None;
        self.status.get_or_insert_default().load_balancer.get_or_insert_default();
        if let Some(spec) = &mut self.spec {
            one_address_in_both_fields(spec, None);
        }
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context) {
        self.status.clone_from(&old.status);
        if let (Some(spec), Some(was)) = (&mut self.spec, &old.spec) {
            keep_allocated(spec, was);
            one_address_in_both_fields(spec, Some(was));
            drop_what_the_type_has_not(spec, was);
            if spec.type_.as_deref() != Some("LoadBalancer") {
                self.status.get_or_insert_default().load_balancer = Some(LoadBalancerStatus::default());
            }
        }
    }

    fn prepare_for_status_update(&mut self, old: &Self, _: &Context) {
        self.spec.clone_from(&old.spec);
    }

    /// A label that begins with a letter: it becomes a variable of pods and a name in DNS.
    fn validate_name(name: &str) -> Vec<String> {
        // Since 1.36 a digit may come first.
        krate_api::names::is_dns1123_label(name)
    }

    /// All depends on what it was before.
    fn validate(&self, _: &FieldPath, _: &mut FieldErrors) {}

    fn validate_new(&self, at: &FieldPath, errors: &mut FieldErrors) {
        rules::service(self, None, at, errors);
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        if let (Some(spec), Some(was)) = (&self.spec, &old.spec) {
            changes::update(spec, was, &at.child("spec"), errors);
        }
        rules::service(self, Some(old), at, errors);
    }

    fn validate_status_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        changes::status(self, old, at, errors);
    }

    fn warnings(&self, old: Option<&Self>) -> Vec<String> {
        warnings::warnings(self, old)
    }

    fn selectable(&self) -> Selectable {
        let spec = self.spec.as_ref();
        vec![
            ("spec.clusterIP", spec.and_then(|s| s.cluster_ip.clone()).unwrap_or_default()),
            ("spec.type", spec.and_then(|s| s.type_.clone()).unwrap_or_default()),
        ]
    }
}

fn text_or<'a>(field: &'a mut Option<String>, value: &str) -> &'a str {
    if field.as_deref().is_none_or(str::is_empty) {
        *field = Some(value.to_owned());
    }
    field.as_deref().unwrap_or_default()
}

fn affinity(spec: &mut ServiceSpec) {
    const THREE_HOURS: i32 = 10800;
    match text_or(&mut spec.session_affinity, "None") {
        "None" => spec.session_affinity_config = None,
        "ClientIP" => {
            let timeout = spec
                .session_affinity_config
                .as_ref()
                .and_then(|c| c.client_ip.as_ref())
                .and_then(|c| c.timeout_seconds);
            if timeout.is_none() {
                spec.session_affinity_config = Some(SessionAffinityConfig {
                    client_ip: Some(ClientIPConfig { timeout_seconds: Some(THREE_HOURS) }),
                });
            }
        }
        _ => {}
    }
}

/// Whether it is reached from outside of the cluster.
pub fn is_external(spec: &ServiceSpec) -> bool {
    matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer"))
        || (spec.type_.as_deref() == Some("ClusterIP")
            && spec.external_ips.as_ref().is_some_and(|i| !i.is_empty()))
}

/// Whether its type has an address of its own, or says that it has none.
fn needs_address(spec: &ServiceSpec) -> bool {
    spec.type_.as_deref() != Some("ExternalName")
}

/// Whether its type may have node ports.
fn has_node_ports(spec: &ServiceSpec) -> bool {
    matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer"))
}

/// Whether it is given node ports for which it does not ask by number.
pub fn needs_node_ports(spec: &ServiceSpec) -> bool {
    match spec.type_.as_deref() {
        Some("NodePort") => true,
        Some("LoadBalancer") => spec.allocate_load_balancer_node_ports != Some(false),
        _ => false,
    }
}

/// Whether its type has a port by which load balancers ask a node for pods of its own.
pub fn needs_health_port(spec: &ServiceSpec) -> bool {
    spec.type_.as_deref() == Some("LoadBalancer") && spec.external_traffic_policy.as_deref() == Some("Local")
}

pub fn is_headless(spec: &ServiceSpec) -> bool {
    spec.cluster_ip.as_deref() == Some("None")
        || spec.cluster_ips.as_ref().and_then(|i| i.first()).is_some_and(|i| i == "None")
}

/// An update that does not speak of what was allocated keeps it, where its type still has it.
fn keep_allocated(spec: &mut ServiceSpec, was: &ServiceSpec) {
    if needs_address(spec) && needs_address(was) {
        if spec.cluster_ip.as_deref().is_none_or(str::is_empty) {
            spec.cluster_ip.clone_from(&was.cluster_ip);
        }
        if spec.cluster_ips.as_ref().is_none_or(Vec::is_empty) {
            spec.cluster_ips.clone_from(&was.cluster_ips);
        }
        if spec.ip_families.as_ref().is_none_or(Vec::is_empty) {
            spec.ip_families.clone_from(&was.ip_families);
        }
        if spec.ip_family_policy.is_none() {
            spec.ip_family_policy.clone_from(&was.ip_family_policy);
        }
    }
    if needs_node_ports(spec) && needs_node_ports(was) {
        keep_node_ports(spec, was);
    }
    if needs_health_port(spec) && needs_health_port(was) && spec.health_check_node_port.unwrap_or(0) == 0 {
        spec.health_check_node_port = was.health_check_node_port;
    }
}

/// A port has the node port of the one that had its name, whatever else of it has changed.
fn keep_node_ports(spec: &mut ServiceSpec, was: &ServiceSpec) {
    let still_asked_for = &node_ports(was) & &node_ports(spec);
    let by_name: BTreeMap<Option<&str>, i32> = was
        .ports
        .iter()
        .flatten()
        .map(|p| (p.name.as_deref().filter(|name| !name.is_empty()), p.node_port.unwrap_or(0)))
        .collect();
    for port in spec.ports.iter_mut().flatten().filter(|p| p.node_port.unwrap_or(0) == 0) {
        let name = port.name.as_deref().filter(|name| !name.is_empty());
        let number = by_name.get(&name).copied().filter(|n| *n != 0 && !still_asked_for.contains(n));
        if number.is_some() {
            port.node_port = number;
        }
    }
}

fn node_ports(spec: &ServiceSpec) -> BTreeSet<i32> {
    spec.ports.iter().flatten().filter_map(|p| p.node_port.filter(|n| *n != 0)).collect()
}

/// `clusterIP` is the first of `clusterIPs`; an old client knows one of them only.
fn one_address_in_both_fields(spec: &mut ServiceSpec, was: Option<&ServiceSpec>) {
    let single = spec.cluster_ip.clone().filter(|ip| !ip.is_empty());
    let is_empty = spec.cluster_ips.as_ref().is_none_or(Vec::is_empty);
    let Some(was) = was else {
        if is_empty && let Some(single) = single {
            spec.cluster_ips = Some(vec![single]);
        }
        return;
    };
    let same_single = single.as_deref() == was.cluster_ip.as_deref().filter(|ip| !ip.is_empty());
    if same_single && is_empty {
        spec.cluster_ips.clone_from(&was.cluster_ips);
    }
    let before = was.cluster_ips.as_deref().unwrap_or_default();
    if !same_single && spec.cluster_ips.as_deref().unwrap_or_default() == before {
        spec.cluster_ips = single.map(|single| vec![single]);
    }
}

/// A change of type takes with it what the new type has not, as long as the client did not write it anew.
fn drop_what_the_type_has_not(spec: &mut ServiceSpec, was: &ServiceSpec) {
    if needs_address(was) && !needs_address(spec) {
        if spec.cluster_ip == was.cluster_ip && spec.cluster_ips == was.cluster_ips {
            spec.cluster_ip = None;
            spec.cluster_ips = None;
        }
        if spec.ip_families == was.ip_families {
            spec.ip_families = None;
        }
        if spec.ip_family_policy == was.ip_family_policy {
            spec.ip_family_policy = None;
        }
    }
    if has_node_ports(was) && !has_node_ports(spec) && node_ports(was).is_superset(&node_ports(spec)) {
        for port in spec.ports.iter_mut().flatten() {
            port.node_port = None;
        }
    }
    if needs_health_port(was)
        && !needs_health_port(spec)
        && spec.health_check_node_port == was.health_check_node_port
    {
        spec.health_check_node_port = None;
    }
    let balanced = |s: &ServiceSpec| s.type_.as_deref() == Some("LoadBalancer");
    if balanced(was) && !balanced(spec) {
        if spec.allocate_load_balancer_node_ports == was.allocate_load_balancer_node_ports {
            spec.allocate_load_balancer_node_ports = None;
        }
        if spec.load_balancer_class == was.load_balancer_class {
            spec.load_balancer_class = None;
        }
    }
    if is_external(was) && !is_external(spec) && spec.external_traffic_policy == was.external_traffic_policy {
        spec.external_traffic_policy = None;
    }
}

fn kind(service: &Service) -> &str {
    service.spec.as_ref().and_then(|s| s.type_.as_deref()).unwrap_or_default()
}

fn external_ips(service: &Service) -> Value {
    let Some(spec) = &service.spec else { return "<none>".into() };
    let own = spec.external_ips.clone().unwrap_or_default();
    match kind(service) {
        "ExternalName" => spec.external_name.as_deref().unwrap_or_default().into(),
        "LoadBalancer" => {
            let points = service.status.iter().flat_map(|s| s.load_balancer.iter());
            let balancers: BTreeSet<String> = points
                .flat_map(|l| l.ingress.iter().flatten())
                .filter_map(|p| p.ip.clone().filter(|i| !i.is_empty()).or_else(|| p.hostname.clone()))
                .filter(|point| !point.is_empty())
                .collect();
            let all = balancers.into_iter().chain(own).collect::<Vec<_>>().join(",");
            if all.is_empty() { "<pending>".into() } else { all.into() }
        }
        _ => or_none(Some(&own.join(","))),
    }
}

fn ports(service: &Service) -> Value {
    let ports = service.spec.iter().flat_map(|s| s.ports.iter().flatten());
    let list: Vec<String> = ports
        .map(|p| {
            let protocol = p.protocol.as_deref().unwrap_or("TCP");
            match p.node_port.filter(|n| *n > 0) {
                Some(node) => format!("{}:{node}/{protocol}", p.port),
                None => format!("{}/{protocol}", p.port),
            }
        })
        .collect();
    or_none(Some(&list.join(",")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(spec: Value) -> Service {
        let mut s: Service =
            serde_json::from_value(json!({"metadata": {"name": "s"}, "spec": spec})).expect("service");
        s.default();
        s
    }

    #[test]
    fn a_type_without_node_ports_gives_them_back() {
        let mut old = service(json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}],
                                     "clusterIP": "10.0.0.1"}));
        old.prepare_for_create(&Context::default());
        let mut new = old.clone();
        new.spec.as_mut().expect("spec").type_ = Some("ClusterIP".to_owned());
        new.default();
        new.prepare_for_update(&old, &Context::default());
        let spec = new.spec.expect("spec");
        assert_eq!(spec.ports.expect("ports")[0].node_port, None);
        assert_eq!(spec.external_traffic_policy, None);
        assert_eq!(spec.cluster_ips, Some(vec!["10.0.0.1".to_owned()]));
    }

    #[test]
    fn what_was_allocated_is_kept() {
        let mut old = service(json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}],
                                     "clusterIP": "10.0.0.1"}));
        old.prepare_for_create(&Context::default());
        let mut new = service(json!({"type": "NodePort", "ports": [{"port": 80}]}));
        new.prepare_for_update(&old, &Context::default());
        let spec = new.spec.expect("spec");
        assert_eq!(spec.cluster_ip.as_deref(), Some("10.0.0.1"));
        assert_eq!(spec.ports.expect("ports")[0].node_port, Some(30080));
    }

    fn updated(mut new: Service, old: &Service) -> ServiceSpec {
        new.prepare_for_update(old, &Context::default());
        new.spec.expect("spec")
    }

    #[test]
    fn a_port_keeps_its_node_port_by_its_name() {
        let old = service(json!({"type": "NodePort", "ports": [{"name": "a", "port": 80, "nodePort": 30080},
                                                               {"name": "b", "port": 81, "nodePort": 30081}]}));
        let new = service(json!({"type": "NodePort", "ports": [{"name": "a", "port": 8080},
                                                               {"name": "c", "port": 81, "nodePort": 30081},
                                                               {"name": "b", "port": 82}]}));
        let ports: Vec<_> = updated(new, &old).ports.into_iter().flatten().map(|p| p.node_port).collect();
        assert_eq!(ports, [Some(30080), Some(30081), None]);
    }

    #[test]
    fn node_ports_stay_where_no_more_are_given() {
        let old = service(json!({"type": "LoadBalancer", "ports": [{"port": 80, "nodePort": 30080}]}));
        let mut new = old.clone();
        new.spec.as_mut().expect("spec").allocate_load_balancer_node_ports = Some(false);
        assert_eq!(updated(new, &old).ports.expect("ports")[0].node_port, Some(30080));
    }

    #[test]
    fn the_other_address_is_seen_though_the_list_is_not_written() {
        let mut old = service(json!({"clusterIP": "10.0.0.1", "ports": [{"port": 80}]}));
        old.prepare_for_create(&Context::default());
        let new = service(json!({"clusterIP": "10.0.0.2", "ports": [{"port": 80}]}));
        assert_eq!(updated(new, &old).cluster_ips, Some(vec!["10.0.0.2".to_owned()]));
    }

    #[test]
    fn what_was_written_anew_is_not_dropped_with_the_type() {
        let mut old = service(json!({"clusterIP": "10.0.0.1", "ports": [{"port": 80}]}));
        old.prepare_for_create(&Context::default());
        let external = |ip: &str| {
            let spec = json!({"type": "ExternalName", "externalName": "a.b", "clusterIP": ip});
            updated(service(spec), &old)
        };
        assert_eq!(external("10.0.0.1").cluster_ip, None);
        assert_eq!(external("10.0.0.2").cluster_ip.as_deref(), Some("10.0.0.2"));
    }

    #[test]
    fn only_load_balancers_have_one_in_their_status() {
        let mut old = service(json!({"type": "LoadBalancer", "ports": [{"port": 80}]}));
        old.status = serde_json::from_value(
            json!({"loadBalancer": {"ingress": [{"ip": "2.0.0.1"}, {"ip": "1.0.0.1"}]}}),
        )
        .expect("a status");
        assert_eq!(external_ips(&old), "1.0.0.1,2.0.0.1");
        let mut new = service(json!({"ports": [{"port": 80}]}));
        new.prepare_for_update(&old, &Context::default());
        assert_eq!(new.status.expect("a status").load_balancer, Some(LoadBalancerStatus::default()));
    }
}
