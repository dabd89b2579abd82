//! Keeps as many pods as a ReplicaSet, or a ReplicationController, asks for. The two differ in names and in the form of
//! their selector; [`Replicated`] is what is said of both.

mod kinds;
mod ranking;
mod status;

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use krate_client::{
    Api, Client, Event, EventRecorder, EventType, Informer, ObjectKey, Reconcile, Requeue, WorkQueue,
    is_not_found, message, reference,
};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{Selector, SelectorExt};
use serde_json::json;

pub use kinds::{Counts, Replicated};

use crate::expectations::Expectations;
use crate::meta::{
    condition, controller_key, controller_of, controller_reference, is_active, is_deleting, labels, name,
    namespace, phase, uid,
};
use crate::own_status::OwnStatus;
use crate::{Context, Error};

/// How many pods one round makes or deletes at the most.
const BURST: usize = 500;
/// The first batch of creations; each that goes well doubles the next, so that a refusal is met once and not
/// hundreds of times.
const FIRST_BATCH: usize = 1;
const WORKERS: usize = 5;
/// Pods by the uid of their controller, or by `orphan/namespace`.
pub const BY_CONTROLLER: &str = "controller";

pub fn by_controller(pod: &Pod) -> Vec<String> {
    match controller_of(&pod.metadata) {
        Some(owner) => vec![owner.uid.clone()],
        None => vec![format!("orphan/{}", namespace(pod))],
    }
}

struct Controller<K: Replicated> {
    client: Client,
    recorder: EventRecorder,
    sets: Informer<K>,
    pods: Informer<Pod>,
    expectations: Arc<Expectations>,
    own: Arc<OwnStatus<K::Status>>,
}

pub async fn run<K: Replicated>(cx: Context) {
    let (sets, pods) = (cx.informers.of::<K>(), cx.informers.of::<Pod>());
    if !cx
        .ready(async {
            tokio::join!(sets.synced(), pods.synced());
        })
        .await
    {
        return;
    }
    pods.add_index(BY_CONTROLLER, by_controller);
    let expectations = Arc::new(Expectations::default());
    let queue = WorkQueue::named(K::QUEUE);
    let own = Arc::<OwnStatus<K::Status>>::default();
    let (q, written) = (queue.clone(), Arc::clone(&own));
    sets.handle(move |event| match event {
        Event::Modified { old, new }
            if K::only_status_changed(old, new) && written.is_back(&ObjectKey::of(&**new), new.status()) => {}
        _ => {
            let key = ObjectKey::of(&**event.object());
            written.forget_if_gone(&key, event);
            q.add(key);
        }
    });
    let (q, expected, informer) = (queue.clone(), Arc::clone(&expectations), sets.clone());
    pods.handle(move |event| pod_event(event, &informer, &q, &expected));
    let reconciler = Controller {
        recorder: cx.recorder(K::COMPONENT),
        client: cx.client.clone(),
        sets,
        pods,
        expectations,
        own,
    };
    cx.work(K::COMPONENT, reconciler, queue, WORKERS).await;
}

/// Whether a change of a pod can change what its set does or says.
fn matters(old: &Pod, new: &Pod) -> bool {
    let ready = |p: &Pod| condition(p, "Ready").map(|c| (c.status.clone(), c.last_transition_time.clone()));
    let (a, b) = (&old.metadata, &new.metadata);
    phase(old) != phase(new)
        || ready(old) != ready(new)
        || a.labels != b.labels
        || a.owner_references != b.owner_references
        || a.deletion_timestamp.is_some() != b.deletion_timestamp.is_some()
}

fn pod_event<K: Replicated>(
    event: &Event<Pod>,
    sets: &Informer<K>,
    queue: &WorkQueue<ObjectKey>,
    expectations: &Expectations,
) {
    let key = |pod: &Pod| controller_key::<K>(&pod.metadata);
    let wake_selecting = |pod: &Pod| {
        if controller_of(&pod.metadata).is_none() && !labels(&pod.metadata).is_empty() {
            for set in sets.list_in(namespace(pod)) {
                if set.selector().is_ok_and(|s| s.matches(labels(&pod.metadata))) {
                    queue.add(ObjectKey::of(&*set));
                }
            }
        }
    };
    match event {
        Event::Added(pod) if is_deleting(&**pod) => {
            if let Some(key) = key(pod)
                && expectations.deletion_observed(&key, uid(&**pod))
            {
                queue.add(key);
            }
        }
        Event::Added(pod) => match key(pod) {
            // The set is looked at when the last pod that it waits for is there, not at each.
            Some(key) => {
                if expectations.creation_observed(&key, 1) {
                    queue.add(key);
                }
            }
            None => wake_selecting(pod),
        },
        Event::Modified { old, new } => {
            if !matters(old, new) {
                return;
            }
            if let Some(key) = key(new) {
                if is_deleting(&**new) && !is_deleting(&**old) {
                    expectations.deletion_observed(&key, uid(&**new));
                }
                queue.add(key);
            }
            if let Some(before) = key(old)
                && controller_of(&old.metadata) != controller_of(&new.metadata)
            {
                queue.add(before);
            }
            if old.metadata.labels != new.metadata.labels
                || controller_of(&old.metadata).is_some() != controller_of(&new.metadata).is_some()
            {
                wake_selecting(new);
            }
        }
        Event::Deleted(pod) => {
            if let Some(key) = key(pod) {
                expectations.deletion_observed(&key, uid(&**pod));
                queue.add(key);
            }
        }
    }
}

impl<K: Replicated> Reconcile for Controller<K> {
    type Key = ObjectKey;
    type Error = Error;

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, Error> {
        let Some(set) = self.sets.get_key(&key) else {
            self.expectations.forget(&key);
            return Ok(Requeue::Done);
        };
        // Asked before the pods are read: what is seen later can only be more.
        let may_act = self.expectations.satisfied(&key);
        let selector = set.selector()?;
        let mine = self.claim(&set, &selector).await?;
        let (active, rest): (Vec<_>, Vec<_>) = mine.into_iter().partition(|p| is_active(p));
        let terminating = rest.iter().filter(|p| is_deleting(&***p)).count();
        let managed =
            if may_act && !is_deleting(&*set) { self.manage(&key, &set, &active).await } else { Ok(()) };
        let now = crate::meta::now();
        let (counts, left) = status::count(&*set, &active, terminating, &now);
        let failure = managed.as_ref().err().map(ToString::to_string);
        if let Some(updated) = set.with_status(&counts, failure.as_deref(), active.len()) {
            let api = Api::<K>::namespaced(self.client.clone(), &key.namespace);
            if let Some(status) = updated.status() {
                self.own.writes(key.clone(), status.clone());
            }
            if let Err(error) = api.replace_status(&key.name, &PostParams::default(), &updated).await {
                self.own.failed(&key);
                if !is_not_found(&error) {
                    return Err(error.into());
                }
            }
        }
        managed?;
        // A pod that is ready but not long enough makes no event when it is.
        Ok(left.map_or(Requeue::Done, |s| Requeue::After(Duration::from_secs(s.max(1) as u64))))
    }
}

impl<K: Replicated> Controller<K> {
    /// The set's pods. Adopts those that it selects and nobody controls; lets go of those that it does not select any
    /// more.
    async fn claim(&self, set: &Arc<K>, selector: &Selector) -> Result<Vec<Arc<Pod>>, Error> {
        let mut mine = Vec::new();
        for pod in self.pods.by_index(BY_CONTROLLER, uid(&**set)) {
            if selector.matches(labels(&pod.metadata)) {
                mine.push(pod);
            } else if !is_deleting(&**set) {
                self.release(set, &pod).await?;
            }
        }
        if is_deleting(&**set) {
            return Ok(mine);
        }
        let orphans = self.pods.by_index(BY_CONTROLLER, &format!("orphan/{}", namespace(&**set)));
        let mut verified = false;
        for pod in orphans {
            if !selector.matches(labels(&pod.metadata)) || !is_active(&pod) {
                continue;
            }
            if !verified {
                // The informer may not know yet that the set is on its way out: then adopting would undo orphaning.
                let api = Api::<K>::namespaced(self.client.clone(), namespace(&**set));
                let live = api.get(name(&**set)).await?;
                if uid(&live) != uid(&**set) || is_deleting(&live) {
                    return Ok(mine);
                }
                verified = true;
            }
            let patch =
                json!({"metadata": {"uid": uid(&*pod), "ownerReferences": [controller_reference(&**set)]}});
            if self.patch_pod(&pod, &patch).await? {
                mine.push(pod);
            }
        }
        Ok(mine)
    }

    async fn release(&self, set: &Arc<K>, pod: &Arc<Pod>) -> Result<(), Error> {
        let gone = json!([{"$patch": "delete", "uid": uid(&**set)}]);
        let patch = json!({"metadata": {"uid": uid(&**pod), "ownerReferences": gone}});
        self.patch_pod(pod, &patch).await.map(drop)
    }

    /// False if the pod is not there any more, or has become another's.
    async fn patch_pod(&self, pod: &Pod, patch: &serde_json::Value) -> Result<bool, Error> {
        let api = Api::<Pod>::namespaced(self.client.clone(), namespace(pod));
        match api.patch(name(pod), &PatchParams::default(), &Patch::Strategic(patch)).await {
            Ok(_) => Ok(true),
            Err(error) if is_not_found(&error) || krate_client::is_conflict(&error) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes or deletes pods until there are as many as asked for.
    async fn manage(&self, key: &ObjectKey, set: &Arc<K>, active: &[Arc<Pod>]) -> Result<(), Error> {
        let wanted = usize::try_from(set.replicas()).unwrap_or(0);
        match active.len().cmp(&wanted) {
            Ordering::Equal => Ok(()),
            Ordering::Less => {
                let missing = (wanted - active.len()).min(BURST);
                self.expectations.expect_creations(key, missing);
                self.create(key, set, missing).await
            }
            Ordering::Greater => {
                let surplus = (active.len() - wanted).min(BURST);
                let doomed = ranking::first_to_go(active, surplus, &self.related_per_node(set));
                self.expectations.expect_deletions(key, doomed.iter().map(|p| uid(&**p).to_owned()));
                self.delete(key, set, doomed).await
            }
        }
    }

    async fn create(&self, key: &ObjectKey, set: &Arc<K>, missing: usize) -> Result<(), Error> {
        let pod = new_pod(&**set);
        let api = Api::<Pod>::namespaced(self.client.clone(), &key.namespace);
        let (mut left, mut batch) = (missing, FIRST_BATCH);
        while left > 0 {
            let size = batch.min(left);
            let params = PostParams::default();
            let mut creations: FuturesUnordered<_> = (0..size).map(|_| api.create(&params, &pod)).collect();
            let mut failure = None;
            while let Some(created) = creations.next().await {
                match created {
                    Ok(pod) => self.tell(
                        set,
                        EventType::Normal,
                        "SuccessfulCreate",
                        format!("Created pod: {}", name(&pod)),
                    ),
                    Err(error) => {
                        self.expectations.creation_observed(key, 1);
                        failure = Some(error);
                    }
                }
            }
            left -= size;
            if let Some(error) = failure {
                self.expectations.creation_observed(key, left);
                if is_closed_namespace(&error) {
                    // Nothing can be made there any more, and all of it is about to go.
                    return Ok(());
                }
                self.tell(
                    set,
                    EventType::Warning,
                    "FailedCreate",
                    format!("Error creating: {}", message(&error)),
                );
                return Err(error.into());
            }
            batch = size * 2;
        }
        Ok(())
    }

    async fn delete(&self, key: &ObjectKey, set: &Arc<K>, doomed: Vec<Arc<Pod>>) -> Result<(), Error> {
        let api = Api::<Pod>::namespaced(self.client.clone(), &key.namespace);
        let mut deletions: FuturesUnordered<_> = doomed
            .iter()
            .map(|pod| {
                let api = api.clone();
                async move {
                    // Another pod of the same name is not meant.
                    let same = Preconditions { uid: Some(uid(&**pod).to_owned()), resource_version: None };
                    let params = DeleteParams { preconditions: Some(same), ..DeleteParams::default() };
                    (pod, api.delete(name(&**pod), &params).await)
                }
            })
            .collect();
        let mut failure = None;
        while let Some((pod, deleted)) = deletions.next().await {
            match deleted {
                Ok(_) => self.tell(
                    set,
                    EventType::Normal,
                    "SuccessfulDelete",
                    format!("Deleted pod: {}", name(&**pod)),
                ),
                Err(error) => {
                    self.expectations.deletion_observed(key, uid(&**pod));
                    if !is_not_found(&error) {
                        let text = format!("Error deleting: {}", message(&error));
                        self.tell(set, EventType::Warning, "FailedDelete", text);
                        failure = Some(error);
                    }
                }
            }
        }
        failure.map_or(Ok(()), |error| Err(error.into()))
    }

    /// How many pods of this set and of its siblings (those with the same controller) each node has.
    fn related_per_node(&self, set: &Arc<K>) -> ranking::PerNode {
        let mut per_node = ranking::PerNode::new();
        let mut sets = vec![Arc::clone(set)];
        if let Some(owner) = controller_of(set.meta()) {
            sets = self.sets.list_in(namespace(&**set));
            sets.retain(|s| controller_of(s.meta()).is_some_and(|o| o.uid == owner.uid));
        }
        for sibling in sets {
            for pod in self.pods.by_index(BY_CONTROLLER, uid(&*sibling)).iter().filter(|p| is_active(p)) {
                if let Some(node) = crate::meta::node_of(pod) {
                    *per_node.entry(node.to_owned()).or_insert(0) += 1;
                }
            }
        }
        per_node
    }

    fn tell(&self, set: &Arc<K>, kind: EventType, reason: &str, message: String) {
        self.recorder.event(&reference(&**set), kind, reason, message);
    }
}

/// Whether nothing can be created because the namespace is being deleted.
fn is_closed_namespace(error: &kube::Error) -> bool {
    let closed = |s: &kube::core::Status| {
        s.details.as_ref().is_some_and(|d| d.causes.iter().any(|c| c.reason == "NamespaceTerminating"))
    };
    matches!(error, kube::Error::Api(status) if status.code == 403 && closed(status))
}

/// A pod from the set's template, owned by the set, with a name made from the set's.
fn new_pod<K: Replicated>(set: &K) -> Pod {
    let PodTemplateSpec { metadata, spec } = set.template();
    let template = metadata.unwrap_or_default();
    let mut pod = Pod { spec, ..Pod::default() };
    pod.metadata.labels = template.labels;
    pod.metadata.annotations = template.annotations;
    pod.metadata.finalizers = template.finalizers;
    pod.metadata.namespace.clone_from(&set.meta().namespace);
    pod.metadata.generate_name = Some(format!("{}-", name(set)));
    pod.metadata.owner_references = Some(vec![controller_reference(set)]);
    pod
}
