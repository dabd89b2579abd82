//! What each name means, by type: the specification's records, and what is denied and how.

mod common;

use hickory_proto::rr::{Name, RData, RecordType};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use krate_dns::{Outcome, Source, TTL, Zone};
use std::{net::IpAddr, sync::Arc};

struct Fixed {
    namespaces: Vec<String>,
    services: Vec<Arc<Service>>,
    slices: Vec<Arc<EndpointSlice>>,
}

fn typed<T: for<'a> serde::Deserialize<'a>>(object: serde_json::Value) -> Arc<T> {
    Arc::new(serde_json::from_value(object).unwrap())
}

fn fixed() -> Fixed {
    let name = |v: &serde_json::Value| v["metadata"]["name"].as_str().unwrap().to_owned();
    Fixed {
        namespaces: common::namespaces().iter().map(name).collect(),
        services: common::services().into_iter().map(typed).collect(),
        slices: common::slices().into_iter().map(typed).collect(),
    }
}

impl Source for Fixed {
    fn ready(&self) -> bool {
        true
    }

    fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.iter().any(|n| n == namespace)
    }

    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>> {
        let is = |s: &&Arc<Service>| {
            (s.metadata.namespace.as_deref(), s.metadata.name.as_deref()) == (Some(namespace), Some(name))
        };
        self.services.iter().find(is).cloned()
    }

    fn slices(&self, namespace: &str, service: &str) -> Vec<Arc<EndpointSlice>> {
        let is = |s: &&Arc<EndpointSlice>| {
            let label = s.metadata.labels.as_ref().unwrap().get("kubernetes.io/service-name").unwrap();
            s.metadata.namespace.as_deref() == Some(namespace) && label == service
        };
        self.slices.iter().filter(is).cloned().collect()
    }

    fn service_at(&self, ip: IpAddr) -> Option<Arc<Service>> {
        let ip = ip.to_string();
        let has = |s: &&Arc<Service>| {
            s.spec.as_ref().unwrap().cluster_ips.as_ref().is_some_and(|ips| ips.contains(&ip))
        };
        self.services.iter().find(has).cloned()
    }

    fn slices_at(&self, ip: IpAddr) -> Vec<Arc<EndpointSlice>> {
        let ip = ip.to_string();
        let has = |s: &&Arc<EndpointSlice>| s.endpoints.iter().flatten().any(|e| e.addresses.contains(&ip));
        self.slices.iter().filter(has).cloned().collect()
    }

    fn serial(&self) -> u32 {
        7
    }
}

fn zone() -> Zone {
    Zone::new("cluster.local", Some("10.96.0.10".parse().unwrap())).unwrap()
}

/// The outcome in words: the data of all records, or what is denied. Additional records follow a plus.
fn words(outcome: Outcome) -> Vec<String> {
    let text = |data: &RData| match data {
        RData::SRV(srv) => format!("{} {} {}", srv.weight, srv.port, srv.target),
        other => other.to_string(),
    };
    let mut words: Vec<String> = match outcome {
        Outcome::Answer { answers, additionals } => {
            assert!(answers.iter().chain(&additionals).all(|r| r.ttl == TTL));
            let additionals = additionals.iter().map(|r| format!("+{} {}", r.name, text(&r.data)));
            answers.iter().map(|r| text(&r.data)).chain(additionals).collect()
        }
        Outcome::Alias { target, .. } => vec![format!("alias {target}")],
        Outcome::NoData => vec!["no data".to_owned()],
        Outcome::NoName => vec!["no name".to_owned()],
        Outcome::Elsewhere => vec!["elsewhere".to_owned()],
    };
    words.sort();
    words
}

#[test]
fn names_mean_what_the_specification_says() {
    use RecordType::{A, AAAA, CNAME, MX, NS, PTR, SOA, SRV, TXT};
    let (zone, source) = (zone(), fixed());
    let db = "db.prod.svc.cluster.local.";
    let cases: &[(&str, RecordType, &[&str])] = &[
        // A service with a cluster IP.
        ("kubernetes.default.svc.cluster.local.", A, &["10.96.0.1"]),
        ("KUBERNETES.Default.svc.CLUSTER.local.", A, &["10.96.0.1"]),
        ("kubernetes.default.svc.cluster.local.", AAAA, &["no data"]),
        ("kubernetes.default.svc.cluster.local.", MX, &["no data"]),
        ("kubernetes.default.svc.cluster.local.", CNAME, &["no data"]),
        ("dual.default.svc.cluster.local.", A, &["10.96.0.2"]),
        ("dual.default.svc.cluster.local.", AAAA, &["fd00::2"]),
        ("nothing.default.svc.cluster.local.", A, &["no name"]),
        ("kubernetes.prod.svc.cluster.local.", A, &["no name"]),
        ("kubernetes.nowhere.svc.cluster.local.", A, &["no name"]),
        (
            "_https._tcp.kubernetes.default.svc.cluster.local.",
            SRV,
            &[
                "+kubernetes.default.svc.cluster.local. 10.96.0.1",
                "100 443 kubernetes.default.svc.cluster.local.",
            ],
        ),
        ("_https._tcp.kubernetes.default.svc.cluster.local.", A, &["10.96.0.1"]),
        ("_https._udp.kubernetes.default.svc.cluster.local.", SRV, &["no name"]),
        ("_http._tcp.kubernetes.default.svc.cluster.local.", SRV, &["no name"]),
        (
            "_DNS._UDP.dual.default.svc.cluster.local.",
            SRV,
            &[
                "+dual.default.svc.cluster.local. 10.96.0.2",
                "+dual.default.svc.cluster.local. fd00::2",
                "50 53 dual.default.svc.cluster.local.",
            ],
        ),
        // An endpoint of it has a name too.
        ("192-0-2-10.kubernetes.default.svc.cluster.local.", A, &["192.0.2.10"]),
        ("192-0-2-11.kubernetes.default.svc.cluster.local.", A, &["no name"]),
        // A headless service.
        (db, A, &["10.0.0.1", "10.0.0.2"]),
        (db, AAAA, &["fd00::1"]),
        ("db-0.db.prod.svc.cluster.local.", A, &["10.0.0.1"]),
        ("DB-0.db.prod.svc.cluster.local.", AAAA, &["fd00::1"]),
        ("10-0-0-2.db.prod.svc.cluster.local.", A, &["10.0.0.2"]),
        ("10-0-0-2.db.prod.svc.cluster.local.", AAAA, &["no data"]),
        ("10-0-0-1.db.prod.svc.cluster.local.", A, &["no name"]),
        ("db-2.db.prod.svc.cluster.local.", A, &["no name"]),
        (
            "_http._tcp.db.prod.svc.cluster.local.",
            SRV,
            &[
                "+10-0-0-2.db.prod.svc.cluster.local. 10.0.0.2",
                "+db-0.db.prod.svc.cluster.local. 10.0.0.1",
                "+db-0.db.prod.svc.cluster.local. fd00::1",
                "33 8080 10-0-0-2.db.prod.svc.cluster.local.",
                "33 8080 db-0.db.prod.svc.cluster.local.",
            ],
        ),
        ("empty.prod.svc.cluster.local.", A, &["no name"]),
        ("eager.prod.svc.cluster.local.", A, &["10.0.0.5"]),
        ("portless.prod.svc.cluster.local.", A, &["10.0.0.6"]),
        ("portless.prod.svc.cluster.local.", SRV, &["no data"]),
        // An external name.
        ("outside.prod.svc.cluster.local.", A, &["alias www.example.com."]),
        ("outside.prod.svc.cluster.local.", CNAME, &["alias www.example.com."]),
        ("x.outside.prod.svc.cluster.local.", A, &["no name"]),
        ("address.prod.svc.cluster.local.", A, &["no name"]),
        // Pods.
        ("10-1-2-3.prod.pod.cluster.local.", A, &["10.1.2.3"]),
        ("10-1-2-3.prod.pod.cluster.local.", AAAA, &["no data"]),
        ("fd00--7.prod.pod.cluster.local.", AAAA, &["fd00::7"]),
        ("10-1-2-3.nowhere.pod.cluster.local.", A, &["no name"]),
        ("10-1-2-300.prod.pod.cluster.local.", A, &["no name"]),
        ("name.prod.pod.cluster.local.", A, &["no name"]),
        ("x.10-1-2-3.prod.pod.cluster.local.", A, &["no name"]),
        // What lies between.
        ("prod.svc.cluster.local.", A, &["no data"]),
        ("prod.pod.cluster.local.", A, &["no data"]),
        ("nowhere.svc.cluster.local.", A, &["no name"]),
        ("svc.cluster.local.", A, &["no data"]),
        ("pod.cluster.local.", A, &["no data"]),
        ("else.cluster.local.", A, &["no name"]),
        ("a.b.c.d.e.svc.cluster.local.", A, &["no name"]),
        // The zone.
        ("cluster.local.", A, &["no data"]),
        ("cluster.local.", NS, &["+ns.dns.cluster.local. 10.96.0.10", "ns.dns.cluster.local."]),
        ("cluster.local.", SOA, &["ns.dns.cluster.local. hostmaster.cluster.local. 7 7200 1800 86400 5"]),
        ("ns.dns.cluster.local.", A, &["10.96.0.10"]),
        ("dns-version.cluster.local.", TXT, &["1.1.0"]),
        ("dns-version.cluster.local.", A, &["no data"]),
        // Addresses.
        ("1.0.96.10.in-addr.arpa.", PTR, &["kubernetes.default.svc.cluster.local."]),
        ("1.0.0.10.in-addr.arpa.", PTR, &["db-0.db.prod.svc.cluster.local."]),
        ("2.0.0.10.in-addr.arpa.", PTR, &["10-0-0-2.db.prod.svc.cluster.local."]),
        ("3.0.0.10.in-addr.arpa.", PTR, &["elsewhere"]),
        ("0.0.10.in-addr.arpa.", PTR, &["elsewhere"]),
        ("9.9.9.9.in-addr.arpa.", PTR, &["elsewhere"]),
        (
            "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.",
            PTR,
            &["dual.default.svc.cluster.local."],
        ),
        // The world.
        ("www.example.com.", A, &["elsewhere"]),
        ("cluster.local.example.com.", A, &["elsewhere"]),
        ("xcluster.local.", A, &["elsewhere"]),
        ("local.", A, &["elsewhere"]),
    ];
    for (name, kind, expected) in cases {
        let outcome = words(zone.lookup(&source, &Name::from_ascii(name).unwrap(), *kind));
        let outcome: Vec<&str> = outcome.iter().map(|word| word.trim_matches('"')).collect();
        assert_eq!(outcome, *expected, "{name} {kind}");
    }
}

#[test]
fn the_question_is_answered_as_it_was_written() {
    let name = Name::from_ascii("KuberNetes.default.svc.Cluster.Local.").unwrap();
    let Outcome::Answer { answers, .. } = zone().lookup(&fixed(), &name, RecordType::A) else {
        panic!("there is an answer")
    };
    assert_eq!(answers[0].name.to_ascii(), "KuberNetes.default.svc.Cluster.Local.");
}
