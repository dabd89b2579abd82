//! Which pods are a pod's siblings: the selector of the services that choose it and of the controller that owns it.
//! Upstream's default spreading keeps siblings apart.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{ReplicationController, Service};
use krate_client::{Informer, Informers};
use kube::core::{Expression, Selector};

use crate::pod::PodInfo;

pub struct Siblings {
    pub services: Informer<Service>,
    pub replica_sets: Informer<ReplicaSet>,
    pub stateful_sets: Informer<StatefulSet>,
    pub replication_controllers: Informer<ReplicationController>,
}

impl Siblings {
    pub fn new(informers: &Informers) -> Self {
        Siblings {
            services: informers.of(),
            replica_sets: informers.of(),
            stateful_sets: informers.of(),
            replication_controllers: informers.of(),
        }
    }

    pub async fn synced(&self) {
        self.services.synced().await;
        self.replica_sets.synced().await;
        self.stateful_sets.synced().await;
        self.replication_controllers.synced().await;
    }

    /// None for a pod that nobody chose.
    pub fn selector_of(&self, pod: &PodInfo) -> Option<Selector> {
        let namespace = &pod.key.namespace;
        let mut equal: BTreeMap<String, String> = BTreeMap::new();
        for service in self.services.list_in(namespace) {
            let Some(selector) = service.spec.as_ref().and_then(|s| s.selector.as_ref()) else { continue };
            if !selector.is_empty() && selector.iter().all(|(k, v)| pod.labels.get(k) == Some(v)) {
                equal.extend(selector.clone());
            }
        }
        let mut selector: Selector = equal.into_iter().map(|(k, v)| Expression::Equal(k, v)).collect();
        let owners = pod.pod.metadata.owner_references.iter().flatten();
        if let Some(owner) = owners.into_iter().find(|o| o.controller == Some(true)) {
            let of_owner = match owner.kind.as_str() {
                "ReplicaSet" => self
                    .replica_sets
                    .get(namespace, &owner.name)
                    .and_then(|o| Some(o.spec.as_ref()?.selector.clone())),
                "StatefulSet" => self
                    .stateful_sets
                    .get(namespace, &owner.name)
                    .and_then(|o| Some(o.spec.as_ref()?.selector.clone())),
                "ReplicationController" => {
                    let owner = self.replication_controllers.get(namespace, &owner.name);
                    let equal = owner.and_then(|o| o.spec.as_ref()?.selector.clone()).unwrap_or_default();
                    selector.extend(equal.into_iter().map(|(k, v)| Expression::Equal(k, v)));
                    None
                }
                _ => None,
            };
            if let Some(more) = of_owner.and_then(|s| Selector::try_from(s).ok()) {
                selector.extend(more);
            }
        }
        (!selector.selects_all()).then_some(selector)
    }
}
