//! Gives Services of type LoadBalancer what the provider makes for them, and takes it away with them.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Service};
use krate_client::{
    Api, CancellationToken, Client, Event, EventRecorder, EventType, Informer, Informers, ObjectKey,
    Reconcile, Requeue, WorkQueue, is_not_found, reference,
};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::provider::{Ingress, LoadBalancers, Provider, ProviderError};

const COMPONENT: &str = "service-controller";
/// Keeps a Service until its load balancer is gone.
const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
/// Nodes with this label take no traffic from load balancers.
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
const WORKERS: usize = 2;

struct Controller {
    client: Client,
    recorder: EventRecorder,
    services: Informer<Service>,
    nodes: Informer<Node>,
    provider: Arc<dyn Provider>,
}

pub async fn run(
    client: Client,
    informers: Informers,
    provider: Arc<dyn Provider>,
    shutdown: CancellationToken,
) {
    let (services, nodes) = (informers.of::<Service>(), informers.of::<Node>());
    tokio::select! {
        () = shutdown.cancelled() => return,
        () = async { tokio::join!(services.synced(), nodes.synced()); } => {}
    }
    let queue = WorkQueue::named("service");
    let q = queue.clone();
    services.handle(move |event| {
        let service = event.object();
        if !matches!(event, Event::Deleted(_)) && (wants(service) || has_finalizer(service)) {
            q.add(ObjectKey::of(&**service));
        }
    });
    let (q, known) = (queue.clone(), services.clone());
    nodes.handle(move |event| {
        let same = match event {
            Event::Modified { old, new } => {
                takes_traffic(old) == takes_traffic(new) && addresses(old) == addresses(new)
            }
            _ => false,
        };
        if !same {
            for service in known.list().iter().filter(|s| wants(s)) {
                q.add(ObjectKey::of(&**service));
            }
        }
    });
    let recorder = EventRecorder::new(client.clone(), COMPONENT, "");
    let controller = Controller { client, recorder, services, nodes, provider };
    krate_client::run(COMPONENT, Arc::new(controller), queue, WORKERS, shutdown).await;
}

/// Whether the Service asks for a load balancer of this provider: one that names a class asks for another's.
fn wants(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.is_some_and(|s| s.type_.as_deref() == Some("LoadBalancer") && s.load_balancer_class.is_none())
}

fn has_finalizer(service: &Service) -> bool {
    service.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER)
}

fn takes_traffic(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let ready = conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True");
    let excluded = node.metadata.labels.as_ref().is_some_and(|l| l.contains_key(EXCLUDED));
    ready && !excluded && node.metadata.deletion_timestamp.is_none()
}

fn addresses(node: &Node) -> Vec<(String, String)> {
    let addresses = node.status.as_ref().and_then(|s| s.addresses.as_deref()).unwrap_or_default();
    addresses.iter().map(|a| (a.type_.clone(), a.address.clone())).collect()
}

/// Why a Service could not be reconciled.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error(transparent)]
    Provider(#[from] ProviderError),
}

impl Reconcile for Controller {
    type Key = ObjectKey;
    type Error = Error;

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, Error> {
        let Some(service) = self.services.get_key(&key) else { return Ok(Requeue::Done) };
        let Some(balancers) = self.provider.load_balancers() else { return Ok(Requeue::Done) };
        let wanted = wants(&service) && service.metadata.deletion_timestamp.is_none();
        let done = if wanted {
            self.ensure(&key, &service, balancers).await
        } else if has_finalizer(&service) {
            self.delete(&key, &service, balancers).await
        } else {
            Ok(())
        };
        if let Err(error) = &done {
            let message = format!("Error syncing load balancer: {error}");
            self.tell(&service, EventType::Warning, "SyncLoadBalancerFailed", &message);
        }
        done.map(|()| Requeue::Done)
    }
}

/// What a Service's status says of its load balancer. Nodes' proxies see to the traffic themselves: mode `VIP`.
fn status(ingress: &[Ingress]) -> Value {
    let all: Vec<Value> = ingress
        .iter()
        .map(|i| match i {
            Ingress::Ip(ip) => json!({"ip": ip, "ipMode": "VIP"}),
            Ingress::Hostname(name) => json!({"hostname": name}),
        })
        .collect();
    json!({"ingress": all})
}

impl Controller {
    async fn ensure(
        &self,
        key: &ObjectKey,
        service: &Service,
        balancers: &dyn LoadBalancers,
    ) -> Result<(), Error> {
        if !has_finalizer(service) {
            let mut finalizers = service.metadata.finalizers.clone().unwrap_or_default();
            finalizers.push(FINALIZER.to_owned());
            self.set_finalizers(key, service, &finalizers).await?;
            self.tell(service, EventType::Normal, "EnsuringLoadBalancer", "Ensuring load balancer");
        }
        let nodes: Vec<Node> =
            self.nodes.list().iter().filter(|n| takes_traffic(n)).map(|n| (**n).clone()).collect();
        let ingress = balancers.ensure(service, &nodes).await?;
        let wanted = status(&ingress);
        let has = service.status.as_ref().and_then(|s| s.load_balancer.as_ref());
        if has.is_some_and(|has| serde_json::to_value(has).is_ok_and(|has| has == wanted)) {
            return Ok(());
        }
        self.patch_status(key, wanted).await?;
        self.tell(service, EventType::Normal, "EnsuredLoadBalancer", "Ensured load balancer");
        Ok(())
    }

    async fn delete(
        &self,
        key: &ObjectKey,
        service: &Service,
        balancers: &dyn LoadBalancers,
    ) -> Result<(), Error> {
        self.tell(service, EventType::Normal, "DeletingLoadBalancer", "Deleting load balancer");
        balancers.delete(service).await?;
        if service.metadata.deletion_timestamp.is_none() {
            self.patch_status(key, json!({"ingress": null})).await?;
        }
        let mut finalizers = service.metadata.finalizers.clone().unwrap_or_default();
        finalizers.retain(|f| f != FINALIZER);
        self.set_finalizers(key, service, &finalizers).await?;
        self.tell(service, EventType::Normal, "DeletedLoadBalancer", "Deleted load balancer");
        Ok(())
    }

    async fn set_finalizers(
        &self,
        key: &ObjectKey,
        service: &Service,
        finalizers: &[String],
    ) -> Result<(), Error> {
        let meta = &service.metadata;
        let patch = json!({"metadata": {
            "uid": meta.uid, "resourceVersion": meta.resource_version, "finalizers": finalizers}});
        let api = Api::<Service>::namespaced(self.client.clone(), &key.namespace);
        match api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Err(error) if !is_not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    async fn patch_status(&self, key: &ObjectKey, load_balancer: Value) -> Result<(), Error> {
        let patch = json!({"status": {"loadBalancer": load_balancer}});
        let api = Api::<Service>::namespaced(self.client.clone(), &key.namespace);
        match api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Err(error) if !is_not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn tell(&self, service: &Service, kind: EventType, reason: &str, message: &str) {
        self.recorder.event(&reference(service), kind, reason, message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ready_nodes_that_are_not_excluded_take_traffic() {
        let node = |ready: &str, labels: Value| -> Node {
            let condition = json!({"type": "Ready", "status": ready});
            let node = json!({"metadata": {"labels": labels}, "status": {"conditions": [condition]}});
            serde_json::from_value(node).expect("a node")
        };
        assert!(takes_traffic(&node("True", json!({}))));
        assert!(!takes_traffic(&node("Unknown", json!({}))));
        assert!(!takes_traffic(&node("True", json!({EXCLUDED: ""}))));
    }

    #[test]
    fn a_service_of_another_class_is_left_to_others() {
        let service =
            |spec: Value| -> Service { serde_json::from_value(json!({"spec": spec})).expect("a service") };
        assert!(wants(&service(json!({"type": "LoadBalancer"}))));
        assert!(!wants(&service(json!({"type": "LoadBalancer", "loadBalancerClass": "example.com/other"}))));
        assert!(!wants(&service(json!({"type": "ClusterIP"}))));
    }
}
