//! Shows Endpoints that somebody wrote by hand, for a service that selects no pods, as EndpointSlices (KEP-1412).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use krate_client::{
    Client, EventRecorder, EventType, Informer, ObjectKey, Reconcile, Requeue, WorkQueue, reference,
};

use super::plan::{MANAGED_BY, Plan, SERVICE_NAME, by_service};
use super::slices::write;
use crate::expectations::Expectations;
use crate::meta::{Labels, controller_reference, is_deleting, labels, name, namespace};
use crate::{Context, Error};

const COMPONENT: &str = "endpointslice-mirroring-controller";
const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Annotations that are about the Endpoints themselves.
const OWN: [&str; 2] =
    ["endpoints.kubernetes.io/last-change-trigger-time", "kubectl.kubernetes.io/last-applied-configuration"];
const BY_SERVICE: &str = "service";
/// How many addresses of a subset are mirrored, as upstream's `--mirroring-max-endpoints-per-subset`.
const MOST: usize = 1000;
const WORKERS: usize = 5;

struct Controller {
    client: Client,
    recorder: EventRecorder,
    services: Informer<Service>,
    endpoints: Informer<Endpoints>,
    slices: Informer<EndpointSlice>,
    /// Slices that were made and that the informer does not show yet.
    expectations: Arc<Expectations>,
}

fn is_ours(slice: &EndpointSlice) -> bool {
    labels(&slice.metadata).get(MANAGED_BY).is_some_and(|by| by == MANAGER)
}

fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let service = labels(&slice.metadata).get(SERVICE_NAME).filter(|_| is_ours(slice))?;
    Some(ObjectKey::new(namespace(slice), service))
}

pub async fn run(cx: Context) {
    let (services, slices) = (cx.informers.of::<Service>(), cx.informers.of::<EndpointSlice>());
    let endpoints = cx.informers.of::<Endpoints>();
    if !cx
        .ready(async {
            tokio::join!(services.synced(), slices.synced(), endpoints.synced());
        })
        .await
    {
        return;
    }
    slices.add_index(BY_SERVICE, by_service);
    let expectations = Arc::new(Expectations::default());
    let queue = WorkQueue::named("endpoint_slice_mirroring");
    let q = queue.clone();
    services.handle(move |event| q.add(ObjectKey::of(&**event.object())));
    let q = queue.clone();
    endpoints.handle(move |event| q.add(ObjectKey::of(&**event.object())));
    let (q, expected) = (queue.clone(), Arc::clone(&expectations));
    slices.handle(move |event| {
        let Some(key) = service_of(event.object()) else { return };
        if let krate_client::Event::Added(_) = event {
            expected.creation_observed(&key, 1);
        }
        q.add(key);
    });
    let (client, recorder) = (cx.client.clone(), cx.recorder(COMPONENT));
    let reconciler = Controller { client, recorder, services, endpoints, slices, expectations };
    cx.work(COMPONENT, reconciler, queue, WORKERS).await;
}

impl Reconcile for Controller {
    type Key = ObjectKey;
    type Error = Error;

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, Error> {
        if !self.expectations.satisfied(&key) {
            return Ok(Requeue::Done);
        }
        let mut existing = self.slices.by_index(BY_SERVICE, &key.to_string());
        existing.retain(|slice| is_ours(slice) && !is_deleting(&**slice));
        existing.sort_by(|a, b| name(&**a).cmp(name(&**b)));
        let service = self.services.get_key(&key);
        let selects = service.as_ref().is_some_and(|s| s.spec.as_ref().is_some_and(|s| s.selector.is_some()));
        let endpoints = self.endpoints.get_key(&key).filter(|e| is_mirrored(e));
        let plan = if let Some(endpoints) = endpoints.filter(|_| service.is_some() && !selects) {
            let (plan, odd) = plan(&endpoints, &existing);
            for (reason, message) in odd {
                self.recorder.event(&reference(&*endpoints), EventType::Warning, reason, message);
            }
            plan
        } else {
            self.expectations.forget(&key);
            let delete = existing.iter().map(|slice| name(&**slice).to_owned()).collect();
            Plan { delete, ..Plan::default() }
        };
        write(&self.client, &self.expectations, &key, plan).await.map(|()| Requeue::Done)
    }
}

/// Whether Endpoints want to be shown: not those by which a leader is elected, nor who says so.
fn is_mirrored(endpoints: &Endpoints) -> bool {
    let annotated = endpoints.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(LEADER));
    let skips = labels(&endpoints.metadata).get(SKIP).is_some_and(|said| said == "true");
    !annotated && !skips
}

/// The endpoints of one family behind one set of ports.
struct Group {
    ipv6: bool,
    ports: Vec<EndpointPort>,
    endpoints: BTreeMap<IpAddr, Endpoint>,
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
        hostname: address.hostname.clone().filter(|h| !h.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

/// What the slices should be, and what of the Endpoints cannot be shown: reasons and messages of events.
fn plan(endpoints: &Endpoints, existing: &[Arc<EndpointSlice>]) -> (Plan, Vec<(&'static str, String)>) {
    let (mut plan, mut odd) = (Plan::default(), Vec::new());
    let (groups, invalid, skipped) = groups(endpoints);
    if invalid > 0 {
        let message = format!("Skipped {invalid} invalid IP addresses when mirroring to EndpointSlices");
        odd.push(("InvalidIPAddress", message));
    }
    if skipped > 0 {
        let message = format!(
            "A max of {MOST} addresses can be mirrored to EndpointSlices per Endpoints subset. \
            {skipped} addresses were skipped"
        );
        odd.push(("TooManyAddressesToMirror", message));
    }
    let (wanted_labels, wanted_annotations) = (slice_labels(endpoints), annotations(endpoints));
    let mut unused: Vec<&Arc<EndpointSlice>> = existing.iter().collect();
    for group in groups {
        let kind = if group.ipv6 { "IPv6" } else { "IPv4" };
        let content: Vec<Endpoint> = group.endpoints.into_values().collect();
        let fits = |slice: &EndpointSlice| {
            slice.address_type == kind && slice.ports.as_deref().unwrap_or_default() == group.ports
        };
        let Some(at) = unused.iter().position(|slice| fits(slice)) else {
            plan.create.push(EndpointSlice {
                metadata: ObjectMeta {
                    generate_name: Some(format!("{}-", name(endpoints))),
                    namespace: endpoints.metadata.namespace.clone(),
                    labels: Some(wanted_labels.clone()),
                    annotations: Some(wanted_annotations.clone()).filter(|all| !all.is_empty()),
                    owner_references: Some(vec![controller_reference(endpoints)]),
                    ..ObjectMeta::default()
                },
                address_type: kind.to_owned(),
                endpoints: Some(content),
                ports: Some(group.ports),
            });
            continue;
        };
        let slice = unused.swap_remove(at);
        let same = slice.endpoints.as_deref().unwrap_or_default() == content
            && *labels(&slice.metadata) == wanted_labels
            && slice.metadata.annotations.clone().unwrap_or_default() == wanted_annotations;
        if !same {
            let mut updated = (**slice).clone();
            updated.endpoints = Some(content);
            updated.metadata.labels = Some(wanted_labels.clone());
            updated.metadata.annotations = Some(wanted_annotations.clone());
            plan.update.push(updated);
        }
    }
    plan.delete.extend(unused.into_iter().map(|slice| name(&**slice).to_owned()));
    (plan, odd)
}

/// The groups of all subsets, how many addresses are none, and how many are too many.
fn groups(endpoints: &Endpoints) -> (Vec<Group>, usize, usize) {
    let (mut groups, mut invalid, mut skipped) = (Vec::<Group>::new(), 0, 0);
    for subset in endpoints.subsets.iter().flatten() {
        let ports: Vec<EndpointPort> = subset
            .ports
            .iter()
            .flatten()
            .map(|port| EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(port.port),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                app_protocol: port.app_protocol.clone(),
            })
            .collect();
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let all = ready.chain(subset.not_ready_addresses.iter().flatten().map(|address| (address, false)));
        let mut taken = 0;
        for (address, ready) in all {
            if taken == MOST {
                skipped += 1;
                continue;
            }
            let Ok(ip) = address.ip.parse::<IpAddr>() else {
                invalid += 1;
                continue;
            };
            taken += 1;
            let at = groups.iter().position(|g| g.ipv6 == ip.is_ipv6() && g.ports == ports);
            let at = at.unwrap_or_else(|| {
                groups.push(Group { ipv6: ip.is_ipv6(), ports: ports.clone(), endpoints: BTreeMap::new() });
                groups.len() - 1
            });
            groups[at].endpoints.entry(ip).or_insert_with(|| endpoint(address, ready));
        }
    }
    (groups, invalid, skipped)
}

fn slice_labels(endpoints: &Endpoints) -> Labels {
    let mut result = labels(&endpoints.metadata).clone();
    result.insert(SERVICE_NAME.to_owned(), name(endpoints).to_owned());
    result.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    result
}

fn annotations(endpoints: &Endpoints) -> Labels {
    let mut result = endpoints.metadata.annotations.clone().unwrap_or_default();
    result.retain(|key, _| !OWN.contains(&key.as_str()));
    result
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn endpoints(subsets: Value) -> Endpoints {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "d", "uid": "u", "labels": {"a": "b"},
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "c": "d"}},
            "subsets": subsets,
        }))
        .expect("endpoints")
    }

    #[test]
    fn subsets_become_slices_by_their_family_and_ports() {
        let mirrored = endpoints(json!([
            {"addresses": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}], "notReadyAddresses": [{"ip": "10.0.0.2"}],
                "ports": [{"name": "http", "port": 80}]},
            {"addresses": [{"ip": "10.0.0.3"}, {"ip": "no address"}], "ports": [{"name": "http", "port": 80}]},
        ]));
        let (made, odd) = plan(&mirrored, &[]);
        let shown: Vec<(&str, Vec<(&str, bool)>)> = made
            .create
            .iter()
            .map(|slice| {
                let all = slice.endpoints.iter().flatten();
                let ready = |e: &Endpoint| e.conditions.as_ref().and_then(|c| c.ready) == Some(true);
                (slice.address_type.as_str(), all.map(|e| (e.addresses[0].as_str(), ready(e))).collect())
            })
            .collect();
        assert_eq!(
            shown,
            [
                ("IPv4", vec![("10.0.0.1", true), ("10.0.0.2", false), ("10.0.0.3", true)]),
                ("IPv6", vec![("fd00::1", true)]),
            ]
        );
        assert_eq!(odd.iter().map(|(reason, _)| *reason).collect::<Vec<_>>(), ["InvalidIPAddress"]);
        let meta = &made.create[0].metadata;
        assert_eq!(labels(meta).get(MANAGED_BY).map(String::as_str), Some(MANAGER));
        assert_eq!(meta.annotations, Some(Labels::from([("c".to_owned(), "d".to_owned())])));

        let named = |mut slice: EndpointSlice, n: usize| {
            slice.metadata.name = Some(format!("web-{n}"));
            Arc::new(slice)
        };
        let there: Vec<_> = made.create.into_iter().enumerate().map(|(n, slice)| named(slice, n)).collect();
        assert_eq!(plan(&mirrored, &there).0, Plan::default(), "nothing to do");
        let fewer =
            endpoints(json!([{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"name": "http", "port": 80}]}]));
        let (next, _) = plan(&fewer, &there);
        assert_eq!((next.update.len(), next.delete.as_slice()), (1, &["web-1".to_owned()][..]));
    }

    #[test]
    fn who_does_not_want_to_be_shown_is_not() {
        let mut some = endpoints(json!([]));
        assert!(is_mirrored(&some));
        some.metadata.labels.get_or_insert_default().insert(SKIP.to_owned(), "true".to_owned());
        assert!(!is_mirrored(&some));
        let mut leader = endpoints(json!([]));
        leader.metadata.annotations.get_or_insert_default().insert(LEADER.to_owned(), "{}".to_owned());
        assert!(!is_mirrored(&leader));
    }
}
