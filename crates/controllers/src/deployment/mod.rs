//! Deployments: rolls pods from one template to the next through ReplicaSets, one for each template.

mod revision;
mod rollout;
mod status;
mod sync;

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use krate_client::{
    Api, Client, Event, EventRecorder, EventType, Informer, ObjectKey, Reconcile, Requeue, WorkQueue,
    is_conflict, is_not_found, reference,
};
use kube::api::{Patch, PatchParams};
use kube::core::{Selector, SelectorExt};
use serde_json::json;

use crate::meta::{
    controller_key, controller_of, controller_reference, is_deleting, labels, name, namespace, selector, uid,
};
use crate::own_status::OwnStatus;
use crate::replicaset::{BY_CONTROLLER, by_controller};
use crate::{Context, Error};

const COMPONENT: &str = "deployment-controller";
const WORKERS: usize = 5;

struct Controller {
    client: Client,
    recorder: EventRecorder,
    deployments: Informer<Deployment>,
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
    own: Arc<OwnStatus<DeploymentStatus>>,
}

fn set_by_controller(rs: &ReplicaSet) -> Vec<String> {
    match controller_of(&rs.metadata) {
        Some(owner) => vec![owner.uid.clone()],
        None => vec![format!("orphan/{}", namespace(rs))],
    }
}

pub async fn run(cx: Context) {
    let deployments = cx.informers.of::<Deployment>();
    let (sets, pods) = (cx.informers.of::<ReplicaSet>(), cx.informers.of::<Pod>());
    if !cx
        .ready(async {
            tokio::join!(deployments.synced(), sets.synced(), pods.synced());
        })
        .await
    {
        return;
    }
    sets.add_index(BY_CONTROLLER, set_by_controller);
    pods.add_index(BY_CONTROLLER, by_controller);
    let queue = WorkQueue::named("deployment");
    let own = Arc::<OwnStatus<DeploymentStatus>>::default();
    let (q, written) = (queue.clone(), Arc::clone(&own));
    deployments.handle(move |event| match event {
        Event::Modified { old, new }
            if only_status_changed(old, new)
                && written.is_back(&ObjectKey::of(&**new), new.status.as_ref()) => {}
        _ => {
            let key = ObjectKey::of(&**event.object());
            written.forget_if_gone(&key, event);
            q.add(key);
        }
    });
    let (q, informer) = (queue.clone(), deployments.clone());
    sets.handle(move |event| {
        wake_owner(event.object(), &informer, &q);
        if let Event::Modified { old, new } = event
            && controller_of(&old.metadata) != controller_of(&new.metadata)
        {
            wake_owner(old, &informer, &q);
        }
    });
    let (q, informer, owners) = (queue.clone(), deployments.clone(), sets.clone());
    pods.handle(move |event| {
        // Only `Recreate` waits for pods to be gone; all else shows in the sets.
        let Event::Deleted(pod) = event else { return };
        let set = controller_key::<ReplicaSet>(&pod.metadata).and_then(|key| owners.get_key(&key));
        let key = set.and_then(|rs| controller_key::<Deployment>(&rs.metadata));
        if let Some(key) = key
            && informer.get_key(&key).is_some_and(|d| !rollout::is_rolling(&d))
        {
            q.add(key);
        }
    });
    let reconciler = Controller {
        recorder: cx.recorder(COMPONENT),
        client: cx.client.clone(),
        deployments,
        sets,
        pods,
        own,
    };
    cx.work(COMPONENT, reconciler, queue, WORKERS).await;
}

fn only_status_changed(old: &Deployment, new: &Deployment) -> bool {
    let (a, b) = (&old.metadata, &new.metadata);
    a.generation == b.generation
        && a.labels == b.labels
        && a.annotations == b.annotations
        && a.deletion_timestamp == b.deletion_timestamp
        && new.status.as_ref().and_then(|s| s.observed_generation) == b.generation
}

fn wake_owner(rs: &ReplicaSet, deployments: &Informer<Deployment>, queue: &WorkQueue<ObjectKey>) {
    if controller_of(&rs.metadata).is_some() {
        if let Some(key) = controller_key::<Deployment>(&rs.metadata) {
            queue.add(key);
        }
        return;
    }
    for d in deployments.list_in(namespace(rs)) {
        if d.spec.as_ref().and_then(|s| selector(&s.selector).ok()).is_some_and(|s| selects(&s, rs)) {
            queue.add(ObjectKey::of(&*d));
        }
    }
}

fn selects(selector: &Selector, rs: &ReplicaSet) -> bool {
    !labels(&rs.metadata).is_empty() && selector.matches(labels(&rs.metadata))
}

impl Reconcile for Controller {
    type Key = ObjectKey;
    type Error = Error;

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, Error> {
        let Some(d) = self.deployments.get_key(&key) else { return Ok(Requeue::Done) };
        let spec = d.spec.as_ref().ok_or_else(|| Error::Invalid("no spec".into()))?;
        let selector = selector(&spec.selector)?;
        if selector.selects_all() {
            let message = "This deployment is selecting all pods. A non-empty selector is required.";
            self.recorder.event(&reference(&*d), EventType::Warning, "SelectingAll", message);
            return Ok(Requeue::Done);
        }
        let sets = self.claim(&d, &selector).await?;
        Box::pin(sync::Sync { controller: self, d: (*d).clone(), sets }.run()).await
    }
}

impl Controller {
    /// The deployment's sets. Adopts those that it selects and nobody controls; lets go of those that it does not
    /// select any more.
    async fn claim(&self, d: &Deployment, selector: &Selector) -> Result<Vec<Arc<ReplicaSet>>, Error> {
        let mut mine = Vec::new();
        for rs in self.sets.by_index(BY_CONTROLLER, uid(d)) {
            if selects(selector, &rs) || is_deleting(d) {
                mine.push(rs);
            } else {
                let gone = json!([{"$patch": "delete", "uid": uid(d)}]);
                self.patch_owner(&rs, &json!({"metadata": {"uid": uid(&*rs), "ownerReferences": gone}}))
                    .await?;
            }
        }
        if is_deleting(d) {
            return Ok(mine);
        }
        let orphans = self.sets.by_index(BY_CONTROLLER, &format!("orphan/{}", namespace(d)));
        let orphans: Vec<_> =
            orphans.into_iter().filter(|rs| selects(selector, rs) && !is_deleting(&**rs)).collect();
        if orphans.is_empty() {
            return Ok(mine);
        }
        // The informer may not know yet that the deployment is on its way out: adopting would undo orphaning.
        let live = Api::<Deployment>::namespaced(self.client.clone(), namespace(d)).get(name(d)).await?;
        if uid(&live) != uid(d) || is_deleting(&live) {
            return Ok(mine);
        }
        for rs in orphans {
            let owners = json!([controller_reference(d)]);
            let patch = json!({"metadata": {"uid": uid(&*rs), "ownerReferences": owners}});
            mine.extend(self.patch_owner(&rs, &patch).await?);
        }
        Ok(mine)
    }

    async fn patch_owner(
        &self,
        rs: &ReplicaSet,
        patch: &serde_json::Value,
    ) -> Result<Option<Arc<ReplicaSet>>, Error> {
        let api = Api::<ReplicaSet>::namespaced(self.client.clone(), namespace(rs));
        match api.patch(name(rs), &PatchParams::default(), &Patch::Strategic(patch)).await {
            Ok(rs) => Ok(Some(Arc::new(rs))),
            Err(error) if is_not_found(&error) || is_conflict(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
