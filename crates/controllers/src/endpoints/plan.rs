//! What the slices of a service should be, and how to get there from what they are with the fewest writes.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{HEADLESS, address, hostname, is_headless, protocol, publishes_unready, target_port};
use crate::meta::{
    Labels, controller_reference, is_deleting, is_ready, is_terminal, labels, name, node_of, uid,
};

pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub const MANAGER: &str = "endpointslice-controller.k8s.io";
/// How many endpoints a slice holds at the most.
pub const MOST: usize = 100;
const ZONE: &str = "topology.kubernetes.io/zone";

/// Endpoints by what they lead to, for one set of ports.
struct Group {
    ports: Vec<EndpointPort>,
    endpoints: BTreeMap<String, Endpoint>,
}

/// What to write.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    pub create: Vec<EndpointSlice>,
    pub update: Vec<EndpointSlice>,
    pub delete: Vec<String>,
    /// How many endpoints come, and how many go.
    pub added: usize,
    pub removed: usize,
}

fn families(service: &Service) -> Vec<bool> {
    let spec = service.spec.as_ref();
    let named: Vec<bool> =
        spec.and_then(|s| s.ip_families.as_ref()).into_iter().flatten().map(|f| f == "IPv6").collect();
    let ipv6 = spec.and_then(|s| s.cluster_ip.as_deref()).is_some_and(|ip| ip.contains(':'));
    if named.is_empty() { vec![ipv6] } else { named }
}

fn ports_of(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let ports = service.spec.as_ref().and_then(|s| s.ports.as_deref()).unwrap_or_default();
    ports
        .iter()
        .filter_map(|port| {
            Some(EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(target_port(pod, port)?),
                protocol: Some(protocol(port).to_owned()),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect()
}

fn endpoint(service: &Service, pod: &Pod, ip: &str, node: Option<&Node>) -> Endpoint {
    let (serving, terminating) = (is_ready(pod), is_deleting(pod));
    Endpoint {
        addresses: vec![ip.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(publishes_unready(service) || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: hostname(pod, service).map(str::to_owned),
        node_name: node_of(pod).map(str::to_owned),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        zone: node.and_then(|n| labels(&n.metadata).get(ZONE).cloned()),
        ..Endpoint::default()
    }
}

fn target(endpoint: &Endpoint) -> String {
    endpoint.target_ref.as_ref().and_then(|r| r.uid.clone()).unwrap_or_default()
}

fn groups(
    service: &Service,
    pods: &[Arc<Pod>],
    node: impl Fn(&str) -> Option<Arc<Node>>,
    ipv6: bool,
) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for pod in pods.iter().filter(|p| !is_terminal(p)) {
        let Some(ip) = address(pod, ipv6) else { continue };
        let ports = ports_of(service, pod);
        let node = node_of(pod).and_then(&node);
        let endpoint = endpoint(service, pod, ip, node.as_deref());
        let at = groups.iter().position(|g| g.ports == ports).unwrap_or_else(|| {
            groups.push(Group { ports, endpoints: BTreeMap::new() });
            groups.len() - 1
        });
        groups[at].endpoints.insert(uid(&**pod).to_owned(), endpoint);
    }
    groups
}

/// The labels of a service's slices: its own, and those that say whose they are.
fn slice_labels(service: &Service) -> Labels {
    let mut result = labels(&service.metadata).clone();
    result.remove(HEADLESS);
    if is_headless(service) {
        result.insert(HEADLESS.to_owned(), String::new());
    }
    result.insert(SERVICE_NAME.to_owned(), name(service).to_owned());
    result.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    result
}

fn new_slice(
    service: &Service,
    ipv6: bool,
    ports: &[EndpointPort],
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", name(service))),
            namespace: service.metadata.namespace.clone(),
            labels: Some(slice_labels(service)),
            owner_references: Some(vec![controller_reference(service)]),
            ..ObjectMeta::default()
        },
        address_type: if ipv6 { "IPv6" } else { "IPv4" }.to_owned(),
        endpoints: Some(endpoints),
        ports: Some(ports.to_vec()),
    }
}

/// Compares what is there with what should be. `existing` are the slices that this controller manages for the service.
pub fn plan(
    service: &Service,
    pods: &[Arc<Pod>],
    node: impl Fn(&str) -> Option<Arc<Node>>,
    existing: &[Arc<EndpointSlice>],
) -> Plan {
    let mut plan = Plan::default();
    let mut unused: Vec<&Arc<EndpointSlice>> = existing.iter().collect();
    for ipv6 in families(service) {
        let kind = if ipv6 { "IPv6" } else { "IPv4" };
        let mut groups = groups(service, pods, &node, ipv6);
        if groups.is_empty() {
            // A service with no endpoints has one slice that says so.
            groups.push(Group { ports: Vec::new(), endpoints: BTreeMap::new() });
        }
        for group in groups {
            let mine;
            let has_ports = |s: &EndpointSlice| s.ports.as_deref().unwrap_or_default() == group.ports;
            (mine, unused) = unused.into_iter().partition(|s| s.address_type == kind && has_ports(s));
            fill(service, ipv6, group, &mine, &mut plan);
        }
    }
    plan.removed += unused.iter().map(|s| s.endpoints.as_ref().map_or(0, Vec::len)).sum::<usize>();
    plan.delete.extend(unused.into_iter().map(|s| name(&**s).to_owned()));
    plan
}

/// Keeps each endpoint in the slice that it is in, puts new ones where something changes anyway, then where there is
/// room, then in new slices.
fn fill(service: &Service, ipv6: bool, group: Group, existing: &[&Arc<EndpointSlice>], plan: &mut Plan) {
    let Group { ports, endpoints: mut left } = group;
    let nothing = left.is_empty();
    let wanted_labels = slice_labels(service);
    let mut contents: Vec<(usize, Vec<Endpoint>, bool)> = Vec::new();
    for (at, slice) in existing.iter().enumerate() {
        let (mut kept, mut changed) = (Vec::new(), labels(&slice.metadata) != &wanted_labels);
        for had in slice.endpoints.iter().flatten() {
            if let Some(wanted) = left.remove(&target(had)) {
                changed |= wanted != *had;
                kept.push(wanted);
            } else {
                changed = true;
                plan.removed += 1;
            }
        }
        contents.push((at, kept, changed));
    }
    let mut left: Vec<Endpoint> = left.into_values().collect();
    plan.added += left.len();
    contents.sort_by_key(|(_, _, changed)| !changed);
    for (_, kept, changed) in &mut contents {
        let room = MOST.saturating_sub(kept.len()).min(left.len());
        if room > 0 {
            kept.extend(left.drain(..room));
            *changed = true;
        }
    }
    let mut placeholder = nothing;
    for (at, kept, changed) in contents {
        let slice = existing[at];
        if kept.is_empty() && !std::mem::take(&mut placeholder) {
            plan.delete.push(name(&**slice).to_owned());
        } else if changed {
            let mut updated = (**slice).clone();
            updated.endpoints = Some(kept);
            updated.metadata.labels = Some(wanted_labels.clone());
            plan.update.push(updated);
        }
    }
    if placeholder {
        plan.create.push(new_slice(service, ipv6, &ports, Vec::new()));
    }
    while !left.is_empty() {
        let rest = left.split_off(left.len().min(MOST));
        plan.create.push(new_slice(service, ipv6, &ports, std::mem::replace(&mut left, rest)));
    }
}

/// Slices by the service that they are of.
pub fn by_service(slice: &EndpointSlice) -> Vec<String> {
    let has = labels(&slice.metadata);
    let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
    has.get(SERVICE_NAME).map(|service| format!("{namespace}/{service}")).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(more: Value) -> Service {
        let mut spec =
            json!({"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]});
        if let (Some(spec), Some(more)) = (spec.as_object_mut(), more.as_object()) {
            spec.extend(more.clone());
        }
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "d", "uid": "s", "labels": {"team": "a"}}, "spec": spec}))
        .expect("a service")
    }

    fn pod(n: usize, ready: bool, deleting: bool) -> Arc<Pod> {
        let mut meta = json!({"name": format!("p{n}"), "namespace": "d", "uid": format!("u{n:03}")});
        if deleting {
            meta["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        let status = json!({
            "podIP": format!("10.0.{}.{}", n / 200, n % 200 + 1),
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]});
        let spec = json!({"containers": [], "nodeName": "n"});
        Arc::new(
            serde_json::from_value(json!({"metadata": meta, "spec": spec, "status": status})).expect("a pod"),
        )
    }

    fn none(_: &str) -> Option<Arc<Node>> {
        None
    }

    /// The slices as they are after the plan.
    fn apply(existing: &[Arc<EndpointSlice>], plan: Plan) -> Vec<Arc<EndpointSlice>> {
        let mut all: Vec<Arc<EndpointSlice>> =
            existing.iter().filter(|s| !plan.delete.contains(&name(&***s).to_owned())).cloned().collect();
        for updated in plan.update {
            for slice in &mut all {
                if name(&**slice) == name(&updated) {
                    *slice = Arc::new(updated.clone());
                }
            }
        }
        for (n, mut created) in plan.create.into_iter().enumerate() {
            created.metadata.name = Some(format!("web-{}-{n}", all.len()));
            all.push(Arc::new(created));
        }
        all
    }

    fn total(slices: &[Arc<EndpointSlice>]) -> usize {
        slices.iter().map(|s| s.endpoints.as_ref().map_or(0, Vec::len)).sum()
    }

    #[test]
    fn conditions_tell_what_becomes_of_a_pod() {
        let cases = [
            (true, false, json!({}), [true, true, false]),
            (false, false, json!({}), [false, false, false]),
            (true, true, json!({}), [false, true, true]),
            (false, false, json!({"publishNotReadyAddresses": true}), [true, false, false]),
        ];
        for (ready, deleting, more, wanted) in cases {
            let plan = plan(&service(more), &[pod(1, ready, deleting)], none, &[]);
            let endpoint = &plan.create[0].endpoints.as_ref().expect("has endpoints")[0];
            let c = endpoint.conditions.clone().unwrap_or_default();
            assert_eq!([c.ready, c.serving, c.terminating].map(Option::unwrap_or_default), wanted);
        }
    }

    #[test]
    fn slices_hold_a_hundred_and_change_as_little_as_they_can() {
        let s = service(json!({}));
        let pods: Vec<_> = (0..250).map(|n| pod(n, true, false)).collect();
        let slices = apply(&[], plan(&s, &pods, none, &[]));
        assert_eq!((slices.len(), total(&slices)), (3, 250));
        assert_eq!(plan(&s, &pods, none, &slices), Plan::default(), "nothing to do");
        let fewer = &pods[1..];
        let next = plan(&s, fewer, none, &slices);
        assert_eq!((next.create.len(), next.update.len(), next.delete.len()), (0, 1, 0));
        let slices = apply(&slices, next);
        let mut more = fewer.to_vec();
        more.push(pod(300, true, false));
        let next = plan(&s, &more, none, &slices);
        assert_eq!((next.create.len(), next.update.len(), next.delete.len()), (0, 1, 0));
        assert_eq!(total(&apply(&slices, next)), 250);
    }

    #[test]
    fn a_service_without_pods_has_one_empty_slice() {
        let s = service(json!({}));
        let slices = apply(&[], plan(&s, &[], none, &[]));
        assert_eq!((slices.len(), total(&slices)), (1, 0));
        assert_eq!(plan(&s, &[], none, &slices), Plan::default());
        let full = apply(&slices, plan(&s, &[pod(1, true, false)], none, &slices));
        assert_eq!((full.len(), total(&full)), (1, 1), "the empty one goes when there is a full one");
    }

    #[test]
    fn slices_bear_the_labels_that_say_whose_they_are() {
        let slice = plan(&service(json!({"clusterIP": "None"})), &[], none, &[]).create.remove(0);
        let has: Vec<_> = labels(&slice.metadata).iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(
            has,
            [
                "endpointslice.kubernetes.io/managed-by=endpointslice-controller.k8s.io",
                "kubernetes.io/service-name=web",
                "service.kubernetes.io/headless=",
                "team=a"
            ]
        );
    }
}
