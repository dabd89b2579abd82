//! Counts what each namespace uses of its quotas, and writes it to their status.
//!
//! The API server charges what is made before it is made; this controller gives back what is gone, begins the count of a
//! new quota, and sets right whatever was charged for nothing. Upstream's rule: a quota is counted anew when its spec
//! changes, when something that it counts is gone or ends, and every five minutes; not when something is made, since
//! charges of what is being made at this moment would be lost.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, Pod, ResourceQuota, ResourceQuotaSpec, ResourceQuotaStatus, Service,
};
use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Raw;
use k8s_openapi::jiff::Timestamp;
use krate_api::Quantity;
use krate_api::quota::{self, Counted, Resource, Usage, parsed};
use krate_client::{Api, Client, Event, Informer, ObjectKey, Reconcile, Requeue, WorkQueue, is_not_found};
use kube::api::{DynamicObject, PartialObjectMeta, PostParams};
use kube::runtime::watcher;
use parking_lot::Mutex;

use crate::discovery::{self, Served};
use crate::meta::{is_terminal, name, namespace};
use crate::{Context, Error};

/// How long a quota goes without being counted anew, as upstream.
const RESYNC: Duration = Duration::from_mins(5);

type Meta = PartialObjectMeta<DynamicObject>;

struct Counter {
    cx: Context,
    client: Client,
    queue: WorkQueue<ObjectKey>,
    quotas: Informer<ResourceQuota>,
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    services: Informer<Service>,
    /// Of resources of which only the number counts: those that a quota has named so far.
    others: Mutex<HashMap<Resource, Informer<Meta>>>,
}

pub async fn run(cx: Context) {
    let quotas = cx.informers.of::<ResourceQuota>();
    let (pods, claims, services) = (cx.informers.of(), cx.informers.of(), cx.informers.of());
    if !cx
        .ready(async {
            tokio::join!(quotas.synced(), pods.synced(), claims.synced(), services.synced());
        })
        .await
    {
        return;
    }
    let queue = WorkQueue::named("resourcequota_primary");
    let q = queue.clone();
    let again = replenish(&queue, &quotas);
    quotas.handle(move |event| match event {
        Event::Added(quota) => q.add(ObjectKey::of(&**quota)),
        Event::Modified { old, new } if old.spec != new.spec => q.add(ObjectKey::of(&**new)),
        // Quotas count quotas.
        Event::Deleted(quota) => again(namespace(&**quota)),
        Event::Modified { .. } => {}
    });
    let again = replenish(&queue, &quotas);
    pods.handle(move |event: &Event<Pod>| match event {
        Event::Deleted(pod) => again(namespace(&**pod)),
        Event::Modified { old, new } if is_terminal(new) && !is_terminal(old) => again(namespace(&**new)),
        _ => {}
    });
    let again = replenish(&queue, &quotas);
    claims.handle(move |event: &Event<PersistentVolumeClaim>| match event {
        Event::Deleted(claim) => again(namespace(&**claim)),
        Event::Modified { old, new } if old.spec != new.spec => again(namespace(&**new)),
        _ => {}
    });
    let again = replenish(&queue, &quotas);
    services.handle(move |event: &Event<Service>| match event {
        Event::Deleted(service) => again(namespace(&**service)),
        Event::Modified { old, new } if old.spec != new.spec => again(namespace(&**new)),
        _ => {}
    });
    let counter = Counter {
        client: cx.client.clone(),
        queue: queue.clone(),
        quotas,
        pods,
        claims,
        services,
        others: Mutex::default(),
        cx: cx.clone(),
    };
    cx.work("resourcequota", counter, queue, 5).await;
}

/// Has all quotas of a namespace counted anew.
fn replenish(
    queue: &WorkQueue<ObjectKey>,
    quotas: &Informer<ResourceQuota>,
) -> impl Fn(&str) + Send + Sync + 'static {
    let (queue, quotas) = (queue.clone(), quotas.clone());
    move |namespace| {
        for quota in quotas.list_in(namespace) {
            queue.add(ObjectKey::of(&*quota));
        }
    }
}

fn hard(spec: Option<&ResourceQuotaSpec>) -> BTreeMap<String, Raw> {
    spec.and_then(|s| s.hard.clone()).unwrap_or_default()
}

fn same(a: &BTreeMap<String, Raw>, b: Option<&BTreeMap<String, Raw>>) -> bool {
    let none = BTreeMap::new();
    let b = b.unwrap_or(&none);
    a.len() == b.len()
        && a.iter().all(|(name, amount)| b.get(name).is_some_and(|b| parsed(b) == parsed(amount)))
}

impl Reconcile for Counter {
    type Key = ObjectKey;
    type Error = Error;

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, Error> {
        let Some(quota) = self.quotas.get_key(&key) else { return Ok(Requeue::Done) };
        let spec = quota.spec.clone().unwrap_or_default();
        let hard = hard(Some(&spec));
        let used = self.used(namespace(&*quota), &spec, hard.keys()).await?;
        let used: BTreeMap<String, Raw> =
            used.iter().map(|(name, amount)| (name.clone(), Raw::from(amount))).collect();
        let status = quota.status.as_ref();
        let counted = same(&hard, status.and_then(|s| s.hard.as_ref()))
            && same(&used, status.and_then(|s| s.used.as_ref()));
        if !counted {
            let mut new = ResourceQuota::clone(&quota);
            new.status = Some(ResourceQuotaStatus { hard: Some(hard), used: Some(used) });
            let api = Api::<ResourceQuota>::namespaced(self.client.clone(), namespace(&*quota));
            // It names the version that was seen: a charge that was written meanwhile is not lost.
            match api.replace_status(name(&*quota), &PostParams::default(), &new).await {
                Err(error) if !is_not_found(&error) => return Err(error.into()),
                _ => {}
            }
        }
        Ok(Requeue::After(RESYNC))
    }
}

impl Counter {
    /// What is used of each of the names that anybody counts.
    async fn used(
        &self,
        namespace: &str,
        spec: &ResourceQuotaSpec,
        names: impl Iterator<Item = &String>,
    ) -> Result<Usage, Error> {
        let mut by_resource: BTreeMap<Resource, BTreeSet<&String>> = BTreeMap::new();
        for name in names {
            if let Some(resource) = Resource::of_name(name) {
                by_resource.entry(resource).or_default().insert(name);
            }
        }
        let mut used = Usage::new();
        for (resource, names) in by_resource {
            let Some(all) = self.all(&resource, namespace, spec).await? else { continue };
            for name in names {
                used.insert(name.clone(), all.get(name).cloned().unwrap_or_default());
            }
        }
        Ok(used)
    }

    /// All that the objects of a resource in a quota's scopes use; `None` if it is not served.
    async fn all(
        &self,
        resource: &Resource,
        namespace: &str,
        spec: &ResourceQuotaSpec,
    ) -> Result<Option<Usage>, Error> {
        let sum = |objects: &mut dyn Iterator<Item = Counted<'_>>| sum(resource, spec, objects);
        let usage = match (resource.group.as_str(), resource.plural.as_str()) {
            ("", "pods") => sum(&mut self.pods.list_in(namespace).iter().map(|o| Counted::Pod(o))),
            ("", "persistentvolumeclaims") => {
                sum(&mut self.claims.list_in(namespace).iter().map(|o| Counted::Claim(o)))
            }
            ("", "services") => {
                sum(&mut self.services.list_in(namespace).iter().map(|o| Counted::Service(o)))
            }
            // Asked of the same informer that told of the quota: another one may not have heard of it yet.
            ("", "resourcequotas") => sum(&mut self.quotas.list_in(namespace).iter().map(|_| Counted::Other)),
            ("resource.k8s.io", "resourceclaims") => {
                let api = Api::<ResourceClaim>::namespaced(self.client.clone(), namespace);
                let list = api.list(&kube::api::ListParams::default()).await?;
                // Deletions are told by the watch of the number.
                drop(self.other(resource).await?);
                sum(&mut list.items.iter().map(Counted::Devices))
            }
            _ => {
                let Some(objects) = self.other(resource).await? else { return Ok(None) };
                sum(&mut objects.list_in(namespace).iter().map(|_| Counted::Other))
            }
        };
        Ok(Some(usage))
    }

    /// The objects of a resource of which only the number counts; watched from the first quota on that names it.
    async fn other(&self, resource: &Resource) -> Result<Option<Informer<Meta>>, Error> {
        let there = self.others.lock().get(resource).cloned();
        if let Some(informer) = there {
            informer.synced().await;
            return Ok(Some(informer));
        }
        let served = discovery::deletable(&self.client).await?;
        let Some(served) = served.into_iter().find(|s| {
            s.resource.group == resource.group && s.resource.plural == resource.plural && s.watches
        }) else {
            return Ok(None);
        };
        let informer =
            self.others.lock().entry(resource.clone()).or_insert_with(|| self.watch(&served)).clone();
        informer.synced().await;
        Ok(Some(informer))
    }

    fn watch(&self, served: &Served) -> Informer<Meta> {
        let api = Api::all_with(self.client.clone(), &served.resource);
        let informer = Informer::start(api, watcher::Config::default(), self.cx.shutdown.clone());
        let again = replenish(&self.queue, &self.quotas);
        informer.handle(move |event: &Event<Meta>| {
            if let Event::Deleted(object) = event {
                again(object.metadata.namespace.as_deref().unwrap_or_default());
            }
        });
        informer
    }
}

fn sum(
    resource: &Resource,
    spec: &ResourceQuotaSpec,
    objects: &mut dyn Iterator<Item = Counted<'_>>,
) -> Usage {
    let now = Timestamp::now();
    let mut usage = Usage::new();
    for object in objects.filter(|object| quota::in_scope(spec, *object)) {
        quota::add(&mut usage, &quota::usage(resource, object, now));
    }
    usage.retain(|_, amount: &mut Quantity| !amount.is_zero());
    usage
}
