//! The provider of a cluster that runs on machines of its own: a Service of type LoadBalancer is reached at the
//! addresses of the nodes, where each node's service proxy takes its traffic.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Node, Service};
use parking_lot::Mutex;

use crate::provider::{Ingress, LoadBalancers, Provider, ProviderError};

/// A protocol and a port.
type Port = (String, i32);

/// What a Service has: its ports, and where it is reached.
type Given = (BTreeSet<Port>, Vec<Ingress>);

/// Gives Services the nodes' addresses. No two get the same port, and none gets one that the nodes need themselves.
pub struct Local {
    reserved: BTreeSet<Port>,
    /// By the Services' UIDs. Built anew after a restart, when every Service is ensured again.
    given: Mutex<BTreeMap<String, Given>>,
}

impl Local {
    /// `reserved` are the TCP ports at which nodes serve themselves, such as those of the API server and the kubelet.
    pub fn new(reserved: &[u16]) -> Self {
        let reserved = reserved.iter().map(|port| ("TCP".to_owned(), i32::from(*port))).collect();
        Local { reserved, given: Mutex::default() }
    }
}

impl Provider for Local {
    fn name(&self) -> &'static str {
        "local"
    }

    fn load_balancers(&self) -> Option<&dyn LoadBalancers> {
        Some(self)
    }
}

fn uid(service: &Service) -> String {
    service.metadata.uid.clone().unwrap_or_default()
}

fn ports(service: &Service) -> BTreeSet<Port> {
    let ports = service.spec.as_ref().and_then(|s| s.ports.as_deref()).unwrap_or_default();
    ports.iter().map(|p| (p.protocol.clone().unwrap_or_else(|| "TCP".to_owned()), p.port)).collect()
}

/// The addresses by which nodes are reached from outside, or else from each other.
fn addresses(nodes: &[Node]) -> Vec<Ingress> {
    let mut all = BTreeSet::new();
    for node in nodes {
        let of = |kind: &str| {
            let addresses = node.status.as_ref().and_then(|s| s.addresses.as_deref()).unwrap_or_default();
            addresses.iter().filter(|a| a.type_ == kind).map(|a| a.address.clone()).collect::<Vec<_>>()
        };
        let external = of("ExternalIP");
        all.extend(if external.is_empty() { of("InternalIP") } else { external });
    }
    all.into_iter().map(Ingress::Ip).collect()
}

#[async_trait]
impl LoadBalancers for Local {
    async fn get(&self, service: &Service) -> Result<Option<Vec<Ingress>>, ProviderError> {
        let given = self.given.lock();
        Ok(given.get(&uid(service)).map(|(_, ingress)| ingress.clone()))
    }

    async fn ensure(&self, service: &Service, nodes: &[Node]) -> Result<Vec<Ingress>, ProviderError> {
        let wanted = ports(service);
        let mut given = self.given.lock();
        let others =
            given.iter().filter(|(other, _)| **other != uid(service)).flat_map(|(_, (ports, _))| ports);
        let taken: BTreeSet<&Port> = others.chain(&self.reserved).collect();
        if let Some((protocol, port)) = wanted.iter().find(|port| taken.contains(port)) {
            return Err(ProviderError(format!("port {port}/{protocol} of the nodes is taken")));
        }
        let ingress = addresses(nodes);
        if ingress.is_empty() {
            return Err(ProviderError("no node can take traffic".to_owned()));
        }
        given.insert(uid(service), (wanted, ingress.clone()));
        Ok(ingress)
    }

    async fn delete(&self, service: &Service) -> Result<(), ProviderError> {
        self.given.lock().remove(&uid(service));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(uid: &str, port: i32) -> Service {
        serde_json::from_value(json!({"metadata": {"uid": uid}, "spec": {"ports": [{"port": port}]}}))
            .expect("a service")
    }

    fn node(addresses: &[(&str, &str)]) -> Node {
        let addresses: Vec<_> = addresses.iter().map(|(k, a)| json!({"type": k, "address": a})).collect();
        serde_json::from_value(json!({"status": {"addresses": addresses}})).expect("a node")
    }

    #[tokio::test]
    async fn services_are_reached_at_the_nodes() {
        let local = Local::new(&[6443]);
        let nodes = [
            node(&[("InternalIP", "10.0.0.2"), ("Hostname", "b")]),
            node(&[("InternalIP", "10.0.0.1"), ("ExternalIP", "192.0.2.1")]),
        ];
        let reached = local.ensure(&service("a", 80), &nodes).await.expect("it is free");
        assert_eq!(reached, ["10.0.0.2", "192.0.2.1"].map(|ip| Ingress::Ip(ip.to_owned())));
        assert!(local.ensure(&service("a", 80), &nodes).await.is_ok(), "again");
        assert!(local.ensure(&service("b", 80), &nodes).await.is_err(), "the port is another's");
        assert!(local.ensure(&service("b", 6443), &nodes).await.is_err(), "the port is the nodes' own");
        local.delete(&service("a", 80)).await.expect("it goes");
        assert!(local.ensure(&service("b", 80), &nodes).await.is_ok(), "the port is free again");
        assert!(local.ensure(&service("c", 81), &[]).await.is_err(), "there must be a node");
    }
}
