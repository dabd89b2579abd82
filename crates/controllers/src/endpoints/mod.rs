//! Which pods stand behind a service: as EndpointSlices, and in the old form of Endpoints; and Endpoints without pods as
//! slices.

pub mod legacy;
mod metrics;
pub mod mirror;
mod plan;
pub mod slices;

use k8s_openapi::api::core::v1::{ContainerPort, Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use krate_client::{Event, Informer, ObjectKey, WorkQueue};

use crate::meta::{Labels, is_ready, is_terminal, labels, namespace, node_of};

/// The label of a headless service's endpoints.
const HEADLESS: &str = "service.kubernetes.io/headless";

/// What a service selects; none if its endpoints are somebody else's affair.
fn selector(service: &Service) -> Option<&Labels> {
    let spec = service.spec.as_ref()?;
    spec.selector.as_ref().filter(|s| !s.is_empty() && spec.type_.as_deref() != Some("ExternalName"))
}

fn selects(service: &Service, pod: &Pod) -> bool {
    let has = labels(&pod.metadata);
    selector(service).is_some_and(|s| s.iter().all(|(k, v)| has.get(k) == Some(v)))
}

fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None")
}

fn publishes_unready(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses).unwrap_or(false)
}

/// The pod's address of a family.
fn address(pod: &Pod, ipv6: bool) -> Option<&str> {
    let status = pod.status.as_ref()?;
    let all = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).chain(status.pod_ip.as_deref());
    all.into_iter().find(|ip| !ip.is_empty() && ip.contains(':') == ipv6)
}

fn has_address(pod: &Pod) -> bool {
    address(pod, false).or(address(pod, true)).is_some()
}

/// The pod's own name below the service's, if it asks for one.
fn hostname<'a>(pod: &'a Pod, service: &Service) -> Option<&'a str> {
    let spec = pod.spec.as_ref()?;
    let hostname = spec.hostname.as_deref().filter(|h| !h.is_empty())?;
    (spec.subdomain.as_deref()? == service.metadata.name.as_deref()?).then_some(hostname)
}

fn protocol(port: &ServicePort) -> &str {
    port.protocol.as_deref().unwrap_or("TCP")
}

/// The number of the pod's port that a service port leads to.
fn target_port(pod: &Pod, port: &ServicePort) -> Option<i32> {
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(n)) => Some(*n),
        Some(IntOrString::String(name)) if name.is_empty() => Some(port.port),
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            let sidecars = spec
                .init_containers
                .iter()
                .flatten()
                .filter(|c| c.restart_policy.as_deref() == Some("Always"));
            let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
            let is_it = |p: &&ContainerPort| {
                p.name.as_deref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol(port)
            };
            ports.into_iter().find(is_it).map(|p| p.container_port)
        }
    }
}

/// Whether a change of a pod shows in the endpoints of a service that selects it.
fn matters(old: &Pod, new: &Pod) -> bool {
    let ips = |p: &Pod| p.status.as_ref().and_then(|s| s.pod_ips.clone());
    let ip = |p: &Pod| p.status.as_ref().and_then(|s| s.pod_ip.clone());
    ip(old) != ip(new)
        || ips(old) != ips(new)
        || is_ready(old) != is_ready(new)
        || is_terminal(old) != is_terminal(new)
        || node_of(old) != node_of(new)
        || old.metadata.labels != new.metadata.labels
        || old.metadata.deletion_timestamp.is_some() != new.metadata.deletion_timestamp.is_some()
}

/// Wakes the services whose endpoints a change of a pod may change.
fn pod_event(event: &Event<Pod>, services: &Informer<Service>, queue: &WorkQueue<ObjectKey>) {
    let (old, pod) = match event {
        Event::Added(pod) | Event::Deleted(pod) => (pod, pod),
        Event::Modified { old, new } if matters(old, new) => (old, new),
        Event::Modified { .. } => return,
    };
    // A pod without an address is behind nothing yet.
    if !has_address(pod) && !has_address(old) {
        return;
    }
    for service in services.list_in(namespace(&**pod)) {
        if selects(&service, pod) || selects(&service, old) {
            queue.add(ObjectKey::of(&*service));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn ports_are_found_by_number_and_by_name() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [{"name": "c", "ports": [
            {"name": "web", "containerPort": 8080},
            {"name": "dns", "containerPort": 53, "protocol": "UDP"}]}]}}))
        .expect("a pod");
        let cases: [(Value, Option<i32>); 5] = [
            (json!({"port": 80}), Some(80)),
            (json!({"port": 80, "targetPort": 8081}), Some(8081)),
            (json!({"port": 80, "targetPort": "web"}), Some(8080)),
            (json!({"port": 80, "targetPort": "dns"}), None),
            (json!({"port": 80, "targetPort": "dns", "protocol": "UDP"}), Some(53)),
        ];
        for (port, wanted) in cases {
            let service_port = serde_json::from_value(port.clone()).expect("a port");
            assert_eq!(target_port(&pod, &service_port), wanted, "{port}");
        }
    }
}
