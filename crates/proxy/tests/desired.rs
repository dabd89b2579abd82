//! From Services and EndpointSlices to what should be.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use krate_client::Event;
use krate_proxy::{Protocol, ServicePort, Tracker};
use serde_json::{Value, json};

fn service(name: &str, spec: Value) -> Event<Service> {
    let object = json!({"metadata": {"namespace": "ns", "name": name}, "spec": spec});
    Event::Added(Arc::new(serde_json::from_value(object).unwrap()))
}

fn slice(name: &str, of: &str, endpoints: Value) -> Event<EndpointSlice> {
    let object = json!({
        "metadata": {"namespace": "ns", "name": name, "labels": {"kubernetes.io/service-name": of}},
        "addressType": "IPv4",
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        "endpoints": endpoints,
    });
    Event::Added(Arc::new(serde_json::from_value(object).unwrap()))
}

fn one_port() -> Value {
    json!({"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "ports": [{"port": 80, "protocol": "TCP"}]})
}

fn ready(address: &str, node: &str) -> Value {
    json!({"addresses": [address], "nodeName": node, "conditions": {"ready": true}})
}

fn terminating(address: &str, node: &str, serving: bool) -> Value {
    let conditions = json!({"ready": false, "serving": serving, "terminating": true});
    json!({"addresses": [address], "nodeName": node, "conditions": conditions})
}

/// The only port that the tracker knows.
fn only(tracker: &Tracker) -> &ServicePort {
    assert_eq!(tracker.services().len(), 1);
    tracker.services().values().next().unwrap()
}

fn merged(mut spec: Value, more: &Value) -> Value {
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    spec
}

#[test]
fn what_is_no_ones_to_proxy_is_left_out() {
    let spec = |more: Value| merged(one_port(), &more);
    let label = json!({"service.kubernetes.io/service-proxy-name": "mesh"});
    let others = json!({"metadata": {"namespace": "ns", "name": "s", "labels": label}, "spec": one_port()});
    let cases = [
        ("headless", service("s", spec(json!({"clusterIP": "None", "clusterIPs": ["None"]})))),
        ("without an address yet", service("s", json!({"ports": [{"port": 80}]}))),
        ("an alias", service("s", spec(json!({"type": "ExternalName", "externalName": "example.test"})))),
        ("another proxy's", Event::Added(Arc::new(serde_json::from_value(others).unwrap()))),
    ];
    for (case, event) in cases {
        let mut tracker = Tracker::new("me");
        tracker.service(&event);
        assert!(tracker.update().is_empty(), "{case}");
        assert!(tracker.services().is_empty(), "{case}");
    }
}

#[test]
fn fields_of_a_service_become_what_the_proxy_needs() {
    let cases = [
        ("type", json!({"type": "ClusterIP", "ports": [{"port": 80, "nodePort": 30080}]}), "node_port: None"),
        (
            "node port",
            json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]}),
            "node_port: Some(30080)",
        ),
        ("affinity", json!({"sessionAffinity": "ClientIP"}), "affinity: Some(10800s)"),
        (
            "affinity's time",
            json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 7}}}),
            "affinity: Some(7s)",
        ),
        ("no affinity", json!({"sessionAffinity": "None"}), "affinity: None"),
        ("external", json!({"externalIPs": ["192.0.2.1", "192.0.2.1"]}), "external_ips: [192.0.2.1]"),
        ("internal policy", json!({"internalTrafficPolicy": "Local"}), "internal_local: true"),
        (
            "external policy",
            json!({"type": "NodePort", "externalTrafficPolicy": "Local", "ports": [{"port": 80, "nodePort": 30080}]}),
            "external_local: true",
        ),
        (
            "external policy of nothing external",
            json!({"externalTrafficPolicy": "Local"}),
            "external_local: false",
        ),
        (
            "sources",
            json!({"loadBalancerSourceRanges": ["192.0.2.0/24", " 198.51.100.0/24"]}),
            "source_ranges: [192.0.2.0/24, 198.51.100.0/24]",
        ),
        ("families", json!({"clusterIPs": ["10.96.0.9", "fd00::9"]}), "cluster_ips: [10.96.0.9, fd00::9]"),
    ];
    for (case, more, expected) in cases {
        let mut tracker = Tracker::new("me");
        tracker.service(&service("s", merged(one_port(), &more)));
        tracker.update();
        let port = format!("{:?}", only(&tracker));
        assert!(port.contains(expected), "{case}: {expected} is not in {port}");
    }
}

#[test]
fn a_load_balancers_addresses_are_served_unless_it_wants_to_see_the_traffic() {
    let ingress = json!([{"ip": "192.0.2.1", "ipMode": "VIP"}, {"ip": "192.0.2.2", "ipMode": "Proxy"}, {"ip": "192.0.2.3"}]);
    let object = json!({
        "metadata": {"namespace": "ns", "name": "s"},
        "spec": merged(one_port(), &json!({"type": "LoadBalancer"})),
        "status": {"loadBalancer": {"ingress": ingress}},
    });
    let mut tracker = Tracker::new("me");
    tracker.service(&Event::Added(Arc::new(serde_json::from_value(object).unwrap())));
    tracker.update();
    let served: Vec<_> = only(&tracker).load_balancer_ips.iter().map(ToString::to_string).collect();
    assert_eq!(served, ["192.0.2.1", "192.0.2.3"]);
}

#[test]
fn endpoints_are_those_that_are_ready_or_else_those_that_still_serve() {
    let (a, b, c) = ("10.244.0.1", "10.244.0.2", "10.244.0.3");
    let cases = [
        ("all ready", json!([ready(a, "me"), ready(b, "you")]), vec![a, b], vec![a]),
        ("unknown is ready", json!([{"addresses": [a], "nodeName": "me"}]), vec![a], vec![a]),
        ("of no node", json!([{"addresses": [a]}]), vec![a], vec![]),
        (
            "not ready",
            json!([{"addresses": [a], "nodeName": "me", "conditions": {"ready": false}}]),
            vec![],
            vec![],
        ),
        ("some end", json!([ready(a, "you"), terminating(b, "me", true)]), vec![a], vec![b]),
        ("all end", json!([terminating(a, "you", true), terminating(b, "me", true)]), vec![a, b], vec![b]),
        ("ended", json!([terminating(a, "me", false), terminating(c, "you", true)]), vec![c], vec![]),
    ];
    for (case, endpoints, cluster, local) in cases {
        let mut tracker = Tracker::new("me");
        tracker.service(&service("s", one_port()));
        tracker.slice(&slice("s-1", "s", endpoints));
        tracker.update();
        let at = |all: &[std::net::SocketAddr]| all.iter().map(|at| at.ip().to_string()).collect::<Vec<_>>();
        assert_eq!(at(&only(&tracker).cluster), cluster, "{case}");
        assert_eq!(at(&only(&tracker).local), local, "{case}");
        assert!(only(&tracker).cluster.iter().all(|at| at.port() == 8080), "{case}");
    }
}

#[test]
fn a_change_names_what_it_touched_and_nothing_else() {
    let mut tracker = Tracker::new("me");
    let changes =
        |tracker: &mut Tracker| tracker.update().iter().map(ToString::to_string).collect::<Vec<_>>();
    tracker.slice(&slice("a-1", "a", json!([ready("10.244.0.1", "me")])));
    assert!(changes(&mut tracker).is_empty(), "a slice alone is nothing");
    let two = json!({"clusterIP": "10.96.0.9", "ports": [
        {"name": "web", "port": 80, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"}]});
    tracker.service(&service("a", one_port()));
    tracker.service(&service("b", two.clone()));
    assert_eq!(changes(&mut tracker), ["ns/a/tcp/", "ns/b/tcp/web", "ns/b/udp/dns"]);
    assert_eq!(only_of(&tracker, "a").cluster.len(), 1, "the slice that came first");
    tracker.service(&service("b", two));
    assert!(changes(&mut tracker).is_empty(), "the same again");
    tracker.slice(&slice("a-2", "a", json!([ready("10.244.0.2", "you"), ready("10.244.0.1", "me")])));
    assert_eq!(changes(&mut tracker), ["ns/a/tcp/"]);
    assert_eq!(only_of(&tracker, "a").cluster.len(), 2, "one that is in two slices counts once");

    let Event::Added(old) = slice("a-2", "a", json!([ready("10.244.0.2", "you")])) else { unreachable!() };
    let Event::Added(new) = slice("a-2", "other", json!([ready("10.244.0.2", "you")])) else {
        unreachable!()
    };
    tracker.slice(&Event::Modified { old, new });
    assert_eq!(changes(&mut tracker), ["ns/a/tcp/"], "the slice went over to another Service");
    assert_eq!(only_of(&tracker, "a").cluster.len(), 1);

    let Event::Added(gone) = slice("a-1", "a", json!([])) else { unreachable!() };
    tracker.slice(&Event::Deleted(gone));
    assert_eq!(changes(&mut tracker), ["ns/a/tcp/"]);
    assert!(!only_of(&tracker, "a").has_endpoints());
    let Event::Added(gone) = service("b", json!({})) else { unreachable!() };
    tracker.service(&Event::Deleted(gone));
    assert_eq!(changes(&mut tracker), ["ns/b/tcp/web", "ns/b/udp/dns"]);
    assert_eq!(tracker.services().len(), 1);
}

fn only_of<'a>(tracker: &'a Tracker, service: &str) -> &'a ServicePort {
    let mut ports = tracker.services().iter().filter(|(name, _)| name.service == service);
    let (name, port) = ports.next().unwrap();
    assert_eq!((name.protocol, ports.next()), (Protocol::Tcp, None));
    port
}
