//! Keeps the Endpoints of each service that selects pods, for those who still read them.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, ObjectReference, Pod, Service,
};
use krate_client::{Api, Client, Event, Informer, ObjectKey, Reconcile, Requeue, WorkQueue, is_not_found};
use kube::api::{DeleteParams, PostParams};

use super::{
    HEADLESS, address, hostname, is_headless, pod_event, protocol, publishes_unready, selector, selects,
    target_port,
};
use crate::meta::{Labels, is_deleting, is_ready, is_terminal, labels, name, node_of};
use crate::{Context, Error};

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// How many addresses one object holds at the most; the rest is left out, and said to be.
const MOST: usize = 1000;
const WORKERS: usize = 5;

struct Controller {
    client: Client,
    services: Informer<Service>,
    endpoints: Informer<Endpoints>,
    pods: Informer<Pod>,
}

pub async fn run(cx: Context) {
    let (services, endpoints) = (cx.informers.of::<Service>(), cx.informers.of::<Endpoints>());
    let pods = cx.informers.of::<Pod>();
    if !cx
        .ready(async {
            tokio::join!(services.synced(), endpoints.synced(), pods.synced());
        })
        .await
    {
        return;
    }
    let queue = WorkQueue::named("endpoint");
    let q = queue.clone();
    services.handle(move |event| q.add(ObjectKey::of(&**event.object())));
    let (q, known) = (queue.clone(), services.clone());
    pods.handle(move |event| pod_event(event, &known, &q));
    let (q, known) = (queue.clone(), services.clone());
    endpoints.handle(move |event| {
        let key = ObjectKey::of(&**event.object());
        // Also those whose service went while nobody looked.
        let ours = labels(&event.object().metadata).get(MANAGED_BY).is_some_and(|m| m == MANAGER);
        if matches!(event, Event::Deleted(_)) || known.get_key(&key).is_some() || ours {
            q.add(key);
        }
    });
    let reconciler = Controller { client: cx.client.clone(), services, endpoints, pods };
    cx.work("endpoints", reconciler, queue, WORKERS).await;
}

/// Ready and unready addresses of pods with the same ports.
type Subsets = Vec<(Vec<EndpointPort>, BTreeMap<String, EndpointAddress>, BTreeMap<String, EndpointAddress>)>;

fn ports_of(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let ports = service.spec.as_ref().and_then(|s| s.ports.as_deref()).unwrap_or_default();
    ports
        .iter()
        .filter_map(|port| {
            Some(EndpointPort {
                name: port.name.clone().filter(|n| !n.is_empty()),
                port: target_port(pod, port)?,
                protocol: Some(protocol(port).to_owned()),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect()
}

/// The subsets of a service, and whether some addresses were left out.
fn subsets(service: &Service, pods: &[Arc<Pod>]) -> (Vec<EndpointSubset>, bool) {
    let spec = service.spec.clone().unwrap_or_default();
    let ipv6 = spec.ip_families.iter().flatten().next().is_some_and(|f| f == "IPv6")
        || (spec.ip_families.is_none() && spec.cluster_ip.as_deref().is_some_and(|ip| ip.contains(':')));
    let mut all = Subsets::new();
    let with_ports = spec.ports.as_ref().is_some_and(|p| !p.is_empty());
    for pod in pods {
        let leaving = is_deleting(&**pod) && !publishes_unready(service);
        let Some(ip) = address(pod, ipv6).filter(|_| !is_terminal(pod) && !leaving) else { continue };
        let ports = ports_of(service, pod);
        // A pod that has none of the ports is not behind the service, unless that is headless and has none.
        if ports.is_empty() && with_ports {
            continue;
        }
        let entry = EndpointAddress {
            ip: ip.to_owned(),
            hostname: hostname(pod, service).map(str::to_owned),
            node_name: node_of(pod).map(str::to_owned),
            target_ref: Some(ObjectReference {
                kind: Some("Pod".to_owned()),
                namespace: pod.metadata.namespace.clone(),
                name: pod.metadata.name.clone(),
                uid: pod.metadata.uid.clone(),
                ..ObjectReference::default()
            }),
        };
        let at = all.iter().position(|(p, _, _)| *p == ports).unwrap_or_else(|| {
            all.push((ports, BTreeMap::new(), BTreeMap::new()));
            all.len() - 1
        });
        let (_, ready, unready) = &mut all[at];
        if publishes_unready(service) || is_ready(pod) { ready } else { unready }
            .insert(ip.to_owned(), entry);
    }
    let whole: usize = all.iter().map(|(_, r, u)| r.len() + u.len()).sum();
    let mut room = MOST;
    let mut take = |addresses: BTreeMap<String, EndpointAddress>| {
        let taken: Vec<_> = addresses.into_values().take(room).collect();
        room -= taken.len();
        (!taken.is_empty()).then_some(taken)
    };
    all.sort_by_key(|(ports, _, _)| serde_json::to_string(ports).unwrap_or_default());
    // Those that are ready come in first, where not all do.
    let ready: Vec<_> = all.iter_mut().map(|(_, ready, _)| take(std::mem::take(ready))).collect();
    let subsets = all
        .into_iter()
        .zip(ready)
        .map(|((ports, _, unready), addresses)| EndpointSubset {
            addresses,
            not_ready_addresses: take(unready),
            ports: (!ports.is_empty()).then_some(ports),
        })
        .filter(|s| s.addresses.is_some() || s.not_ready_addresses.is_some())
        .collect();
    (subsets, whole > MOST)
}

fn wanted_labels(service: &Service) -> Labels {
    let mut wanted = labels(&service.metadata).clone();
    wanted.remove(HEADLESS);
    if is_headless(service) {
        wanted.insert(HEADLESS.to_owned(), String::new());
    }
    wanted.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    wanted
}

impl Reconcile for Controller {
    type Key = ObjectKey;
    type Error = Error;

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, Error> {
        let api = Api::<Endpoints>::namespaced(self.client.clone(), &key.namespace);
        let current = self.endpoints.get_key(&key);
        let Some(service) = self.services.get_key(&key) else {
            let Some(current) = current else { return Ok(Requeue::Done) };
            if labels(&current.metadata).get(MANAGED_BY).is_none_or(|m| m != MANAGER) {
                return Ok(Requeue::Done);
            }
            return match api.delete(&key.name, &DeleteParams::default()).await {
                Err(error) if !is_not_found(&error) => Err(error.into()),
                _ => Ok(Requeue::Done),
            };
        };
        if selector(&service).is_none() || is_deleting(&*service) {
            return Ok(Requeue::Done);
        }
        let mut pods = self.pods.list_in(&key.namespace);
        pods.retain(|pod| selects(&service, pod));
        let (subsets, over) = subsets(&service, &pods);
        let mut wanted = current.as_deref().cloned().unwrap_or_default();
        wanted.metadata.name = Some(name(&*service).to_owned());
        wanted.metadata.labels = Some(wanted_labels(&service));
        let annotations = wanted.metadata.annotations.get_or_insert_default();
        if over {
            annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned());
        } else {
            annotations.remove(OVER_CAPACITY);
        }
        if annotations.is_empty() {
            wanted.metadata.annotations = None;
        }
        wanted.subsets = (!subsets.is_empty()).then_some(subsets);
        match current {
            None => drop(api.create(&PostParams::default(), &wanted).await?),
            Some(current) if *current == wanted => {}
            Some(_) => drop(api.replace(&key.name, &PostParams::default(), &wanted).await?),
        }
        Ok(Requeue::Done)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service() -> Service {
        serde_json::from_value(json!({"metadata": {"name": "web"}, "spec": {
            "selector": {"a": "b"}, "ports": [{"port": 80, "targetPort": 8080}]}}))
        .expect("a service")
    }

    fn pod(n: usize, ready: &str) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": format!("p{n}"), "uid": format!("u{n}")},
                "status": {"podIP": format!("10.0.{}.{}", n / 200, n % 200 + 1),
                    "conditions": [{"type": "Ready", "status": ready}]}}))
            .expect("a pod"),
        )
    }

    #[test]
    fn ready_and_unready_pods_are_told_apart() {
        let (subsets, over) = subsets(&service(), &[pod(1, "True"), pod(2, "False"), pod(3, "True")]);
        assert!(!over);
        assert_eq!(subsets.len(), 1);
        let count = |a: &Option<Vec<EndpointAddress>>| a.as_ref().map_or(0, Vec::len);
        assert_eq!((count(&subsets[0].addresses), count(&subsets[0].not_ready_addresses)), (2, 1));
        assert_eq!(subsets[0].ports.as_ref().map(|p| p[0].port), Some(8080));
    }

    #[test]
    fn what_is_too_much_is_left_out_and_ready_ones_stay() {
        let pods: Vec<_> = (0..1200).map(|n| pod(n, if n < 600 { "False" } else { "True" })).collect();
        let (subsets, over) = subsets(&service(), &pods);
        assert!(over);
        let count = |a: &Option<Vec<EndpointAddress>>| a.as_ref().map_or(0, Vec::len);
        assert_eq!((count(&subsets[0].addresses), count(&subsets[0].not_ready_addresses)), (600, 400));
    }
}
