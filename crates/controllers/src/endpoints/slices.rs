//! Keeps the EndpointSlices of each service that selects pods.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use krate_client::{
    Api, Client, Event, EventRecorder, EventType, Informer, ObjectKey, Reconcile, Requeue, WorkQueue,
    is_not_found, reference,
};
use kube::api::{DeleteParams, PostParams};

use super::metrics::METRICS;
use super::plan::{MANAGED_BY, MANAGER, Plan, SERVICE_NAME, by_service, plan};
use super::{pod_event, selector, selects};
use crate::expectations::Expectations;
use crate::meta::{is_deleting, labels, name, namespace, node_of};
use crate::{Context, Error};

const COMPONENT: &str = "endpoint-slice-controller";
const BY_SERVICE: &str = "service";
const WORKERS: usize = 5;

struct Controller {
    client: Client,
    recorder: EventRecorder,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    /// Slices that were made and that the informer does not show yet.
    expectations: Arc<Expectations>,
}

pub(super) fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let has = labels(&slice.metadata);
    let ours = has.get(MANAGED_BY).is_some_and(|m| m == MANAGER);
    has.get(SERVICE_NAME).filter(|_| ours).map(|service| ObjectKey::new(namespace(slice), service))
}

pub async fn run(cx: Context) {
    let (services, slices) = (cx.informers.of::<Service>(), cx.informers.of::<EndpointSlice>());
    let (pods, nodes) = (cx.informers.of::<Pod>(), cx.informers.of::<Node>());
    let all = async { tokio::join!(services.synced(), slices.synced(), pods.synced(), nodes.synced()) };
    if !cx
        .ready(async {
            all.await;
        })
        .await
    {
        return;
    }
    slices.add_index(BY_SERVICE, by_service);
    METRICS.tell_of(&slices);
    let expectations = Arc::new(Expectations::default());
    let queue = WorkQueue::named("endpoint_slice");
    let q = queue.clone();
    services.handle(move |event| q.add(ObjectKey::of(&**event.object())));
    let (q, known) = (queue.clone(), services.clone());
    pods.handle(move |event| pod_event(event, &known, &q));
    let (q, expected) = (queue.clone(), Arc::clone(&expectations));
    slices.handle(move |event| {
        let Some(key) = service_of(event.object()) else { return };
        if let Event::Added(_) = event {
            expected.creation_observed(&key, 1);
        }
        q.add(key);
    });
    let reconciler = Controller {
        recorder: cx.recorder(COMPONENT),
        client: cx.client.clone(),
        services,
        slices,
        pods,
        nodes,
        expectations,
    };
    cx.work(COMPONENT, reconciler, queue, WORKERS).await;
}

impl Reconcile for Controller {
    type Key = ObjectKey;
    type Error = Error;

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, Error> {
        let Some(service) = self.services.get_key(&key) else {
            // The slices are the garbage collector's: they name the service as their owner.
            self.expectations.forget(&key);
            return Ok(Requeue::Done);
        };
        if selector(&service).is_none() || is_deleting(&*service) || !self.expectations.satisfied(&key) {
            return Ok(Requeue::Done);
        }
        let mut existing = self.slices.by_index(BY_SERVICE, &key.to_string());
        existing.retain(|s| service_of(s).is_some() && !is_deleting(&**s));
        existing.sort_by(|a, b| name(&**a).cmp(name(&**b)));
        let mut pods = self.pods.list_in(&key.namespace);
        pods.retain(|pod| selects(&service, pod));
        // Zones come from nodes: one look at each.
        debug_assert!(pods.iter().all(|p| p.metadata.namespace.as_deref() == Some(&key.namespace)));
        let plan = plan(&service, &pods, |node| self.nodes.get("", node), &existing);
        let distribution = service.spec.as_ref().and_then(|spec| spec.traffic_distribution.as_deref());
        METRICS.planned(&plan, distribution.unwrap_or_default());
        let written = write(&self.client, &self.expectations, &key, plan).await;
        METRICS.synced(written.is_err());
        // A conflict says only that the informer was behind: the slices are looked at again.
        if let Err(error) = &written
            && !error.is_conflict()
        {
            tracing::debug!(%error, service = %key, nodes = pods.iter().filter_map(|p| node_of(p)).count(),
                "endpoint slices could not be written");
            let message = format!("Error updating Endpoint Slices for Service {key}: {error}");
            self.recorder.event(
                &reference(&*service),
                EventType::Warning,
                "FailedToUpdateEndpointSlices",
                message,
            );
        }
        written.map(|()| Requeue::Done)
    }
}

/// Writes what is planned for a service.
pub(super) async fn write(
    client: &Client,
    expectations: &Expectations,
    key: &ObjectKey,
    plan: Plan,
) -> Result<(), Error> {
    let api = Api::<EndpointSlice>::namespaced(client.clone(), &key.namespace);
    if !plan.create.is_empty() {
        expectations.expect_creations(key, plan.create.len());
    }
    let mut left = plan.create.len();
    for slice in &plan.create {
        if let Err(error) = api.create(&PostParams::default(), slice).await {
            expectations.creation_observed(key, left);
            return Err(error.into());
        }
        left -= 1;
    }
    for slice in &plan.update {
        match api.replace(name(slice), &PostParams::default(), slice).await {
            Err(error) if !is_not_found(&error) => return Err(error.into()),
            _ => {}
        }
    }
    for name in &plan.delete {
        match api.delete(name, &DeleteParams::default()).await {
            Err(error) if !is_not_found(&error) => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}
