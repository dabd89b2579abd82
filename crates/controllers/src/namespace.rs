//! Empties namespaces that are to be deleted, pods first, then everything else of every kind that is served, and lets
//! go of them when nothing is left.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, NamespaceStatus};
use krate_client::{CancellationToken, Client, Event, Informer, Reconcile, Requeue, WorkQueue, is_not_found};
use kube::api::{DeleteParams, DynamicObject, ListParams, PartialObjectMeta, Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use parking_lot::Mutex;
use serde_json::json;

use crate::discovery::{Served, deletable};
use crate::meta::{is_deleting, name, now, uid};
use crate::{Context, Error};

const FINALIZER: &str = "kubernetes";
const WORKERS: usize = 10;
/// When something came late, how long until it is deleted too: where it comes again and again, others have their turn.
const NEXT_ROUND: Duration = Duration::from_millis(100);

type Meta = PartialObjectMeta<DynamicObject>;

struct Emptier {
    client: Client,
    namespaces: Informer<Namespace>,
    queue: WorkQueue<String>,
    /// Namespaces of which somebody waits that what remains be gone.
    waiting: Arc<Mutex<HashSet<String>>>,
    shutdown: CancellationToken,
}

pub async fn run(cx: Context) {
    let namespaces = cx.informers.of::<Namespace>();
    if !cx.ready(namespaces.synced()).await {
        return;
    }
    let queue = WorkQueue::named("namespace");
    let q = queue.clone();
    namespaces.handle(move |event| {
        let (old, namespace) = match event {
            Event::Added(namespace) => (None, namespace),
            Event::Modified { old, new } => (Some(old), new),
            Event::Deleted(_) => return,
        };
        // Once it is known to go, it is only its own conditions that change.
        let same = |o: &Arc<Namespace>| is_deleting(&**o) && finalizers(o) == finalizers(namespace);
        if is_deleting(&**namespace) && !old.is_some_and(same) {
            q.add(name(&**namespace).to_owned());
        }
    });
    let reconciler = Emptier {
        client: cx.client.clone(),
        namespaces,
        queue: queue.clone(),
        waiting: Arc::default(),
        shutdown: cx.shutdown.clone(),
    };
    cx.work("namespace", reconciler, queue, WORKERS).await;
}

fn finalizers(namespace: &Namespace) -> Vec<String> {
    namespace.spec.as_ref().and_then(|s| s.finalizers.clone()).unwrap_or_default()
}

/// What a round of deletions has left.
#[derive(Default)]
struct Remains {
    /// How many objects of each resource.
    objects: BTreeMap<String, usize>,
    /// How many objects each finalizer holds.
    finalizers: BTreeMap<String, usize>,
    resources: Vec<Served>,
    failures: Vec<String>,
}

impl Remains {
    fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.failures.is_empty()
    }
}

impl Reconcile for Emptier {
    /// A namespace.
    type Key = String;
    type Error = Error;

    async fn reconcile(&self, key: String) -> Result<Requeue, Error> {
        let Some(namespace) = self.namespaces.get("", &key).filter(|n| is_deleting(&**n)) else {
            return Ok(Requeue::Done);
        };
        if !finalizers(&namespace).iter().any(|f| f == FINALIZER) {
            return Ok(Requeue::Done);
        }
        let (served, undiscovered) = match deletable(&self.client).await {
            Ok(served) => (served, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        if let Some(error) = undiscovered {
            self.tell(&namespace, &Remains::default(), Some(&error)).await?;
            return Err(error.into());
        }
        let served: Vec<Served> = served.into_iter().filter(|s| s.namespaced).collect();
        // Pods go first: what protects or serves them is there until they are gone (KEP-5080).
        let (pods, rest): (Vec<_>, Vec<_>) = served.into_iter().partition(|s| s.name() == "pods");
        let mut remains = self.delete(&key, pods).await;
        if remains.is_empty() {
            remains = self.delete(&key, rest).await;
        }
        if remains.is_empty() {
            self.let_go(&namespace).await?;
            return Ok(Requeue::Done);
        }
        self.tell(&namespace, &remains, None).await?;
        if !remains.failures.is_empty() {
            return Err(Error::Invalid(remains.failures.join("; ")));
        }
        self.await_end(&key, remains.resources);
        Ok(Requeue::Done)
    }
}

impl Emptier {
    fn api(&self, namespace: &str, served: &Served) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &served.resource)
    }

    /// Deletes all objects of these resources, side by side.
    async fn delete(&self, namespace: &str, resources: Vec<Served>) -> Remains {
        let mut rounds: FuturesUnordered<_> =
            resources.into_iter().map(|served| self.delete_one(namespace, served)).collect();
        let mut remains = Remains::default();
        while let Some((served, left)) = rounds.next().await {
            match left {
                Err(error) => {
                    remains.failures.push(format!("unexpected items still remain in namespace: {error}"));
                }
                Ok(left) if left.is_empty() => {}
                Ok(left) => {
                    for finalizer in left.iter().flat_map(ResourceExt::finalizers) {
                        *remains.finalizers.entry(finalizer.clone()).or_insert(0) += 1;
                    }
                    remains.objects.insert(served.name(), left.len());
                    remains.resources.push(served);
                }
            }
        }
        remains
    }

    async fn delete_one(&self, namespace: &str, served: Served) -> (Served, Result<Vec<Meta>, kube::Error>) {
        let result = async {
            let api = self.api(namespace, &served);
            let params = DeleteParams::background();
            let listing = ListParams::default();
            let there = api.list_metadata(&listing).await?.items;
            if there.is_empty() {
                return Ok(there);
            }
            if served.deletes_collections {
                api.delete_collection(&params, &listing).await?;
            } else {
                for object in there.iter().filter(|o| o.metadata.deletion_timestamp.is_none()) {
                    match api.delete(&object.name_any(), &params).await {
                        Err(error) if !is_not_found(&error) => return Err(error),
                        _ => {}
                    }
                }
            }
            Ok(api.list_metadata(&listing).await?.items)
        };
        let result = match result.await {
            // The resource is served no more, and so has no objects.
            Err(error) if is_not_found(&error) => Ok(Vec::new()),
            other => other,
        };
        (served, result)
    }

    /// Watches what remains, and wakes the namespace when it is gone, or when something has come that nobody deleted.
    fn await_end(&self, namespace: &str, resources: Vec<Served>) {
        if !self.waiting.lock().insert(namespace.to_owned()) {
            return;
        }
        let (client, queue, waiting) = (self.client.clone(), self.queue.clone(), Arc::clone(&self.waiting));
        let (namespace, shutdown) = (namespace.to_owned(), self.shutdown.clone());
        tokio::spawn(async move {
            let all: FuturesUnordered<_> =
                resources.iter().map(|served| emptied(client.clone(), &namespace, served)).collect();
            let came_late = all.any(async |ended| ended == Ended::CameLate);
            let next_round = tokio::select! {
                () = shutdown.cancelled() => return,
                came_late = came_late => if came_late { NEXT_ROUND } else { Duration::ZERO },
            };
            waiting.lock().remove(&namespace);
            queue.add_after(namespace, next_round);
        });
    }

    /// Takes away the namespace's finalizer, whereupon the API server removes it.
    async fn let_go(&self, namespace: &Namespace) -> Result<(), Error> {
        let key = name(namespace);
        let mut freed = namespace.clone();
        freed.metadata.managed_fields = None;
        freed.metadata.resource_version = None;
        let mut left = finalizers(namespace);
        left.retain(|f| f != FINALIZER);
        freed.spec.get_or_insert_default().finalizers = Some(left);
        let body = serde_json::to_vec(&freed).map_err(|e| Error::Invalid(e.to_string()))?;
        let request = http_put(&format!("/api/v1/namespaces/{key}/finalize"), body)?;
        match self.client.request::<Namespace>(request).await {
            Err(error) if !is_not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Says in the namespace's conditions how far its deletion has come, unless they say so already.
    async fn tell(
        &self,
        namespace: &Namespace,
        remains: &Remains,
        undiscovered: Option<&kube::Error>,
    ) -> Result<(), Error> {
        let old = namespace.status.clone().unwrap_or_default();
        let conditions = conditions(&old, remains, undiscovered.map(ToString::to_string));
        if old.conditions.as_ref() == Some(&conditions) {
            return Ok(());
        }
        let patch = json!({"metadata": {"uid": uid(namespace)}, "status": {"conditions": conditions}});
        let api = Api::<Namespace>::all(self.client.clone());
        match api.patch_status(name(namespace), &PatchParams::default(), &Patch::Merge(patch)).await {
            Err(error) if !is_not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }
}

fn http_put(path: &str, body: Vec<u8>) -> Result<http::Request<Vec<u8>>, Error> {
    http::Request::put(path)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body)
        .map_err(|e| Error::Invalid(e.to_string()))
}

/// What has become of a resource in a namespace that goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// No object is left.
    Empty,
    /// An object is there that was made after all others were deleted: by a request that had been let through before, such
    /// as that of the last event of a pod. It goes by another round only.
    CameLate,
}

async fn emptied(client: Client, namespace: &str, served: &Served) -> Ended {
    let api = Api::<Meta>::namespaced_with(client, namespace, &served.resource);
    let mut stream = watcher(api, watcher::Config::default()).default_backoff().boxed();
    let mut there: HashSet<String> = HashSet::new();
    while let Some(event) = stream.next().await {
        match event {
            Ok(event) => {
                if let Some(ended) = follow(&mut there, event) {
                    return ended;
                }
            }
            Err(error) => {
                tracing::debug!(%error, resource = served.name(), "watch failed; trying again");
            }
        }
    }
    Ended::Empty
}

/// Keeps the names of what is there, and tells when there is nothing more to wait for.
fn follow(there: &mut HashSet<String>, event: watcher::Event<Meta>) -> Option<Ended> {
    match event {
        watcher::Event::Init => {
            there.clear();
            return None;
        }
        watcher::Event::InitApply(object) | watcher::Event::Apply(object) => {
            let came_late = object.metadata.deletion_timestamp.is_none();
            there.insert(object.name_any());
            return came_late.then_some(Ended::CameLate);
        }
        watcher::Event::Delete(object) => drop(there.remove(&object.name_any())),
        watcher::Event::InitDone => {}
    }
    there.is_empty().then_some(Ended::Empty)
}

/// Upstream's five conditions of a namespace's end.
fn conditions(
    old: &NamespaceStatus,
    remains: &Remains,
    undiscovered: Option<String>,
) -> Vec<NamespaceCondition> {
    let some = |counts: &BTreeMap<String, usize>, text: &dyn Fn(&str, usize) -> String| {
        counts.iter().map(|(what, n)| text(what, *n)).collect::<Vec<_>>().join(", ")
    };
    let failures = (!remains.failures.is_empty()).then(|| remains.failures.join(", "));
    let objects = (!remains.objects.is_empty()).then(|| {
        let list = some(&remains.objects, &|what, n| format!("{what}. has {n} resource instances"));
        format!("Some resources are remaining: {list}")
    });
    let held = (!remains.finalizers.is_empty()).then(|| {
        let list = some(&remains.finalizers, &|what, n| format!("{what} in {n} resource instances"));
        format!("Some content in the namespace has finalizers remaining: {list}")
    });
    let table = [
        (
            "NamespaceDeletionDiscoveryFailure",
            undiscovered,
            "DiscoveryFailed",
            "ResourcesDiscovered",
            "All resources successfully discovered",
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            None,
            "GroupVersionParsingFailed",
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
        ),
        (
            "NamespaceDeletionContentFailure",
            failures,
            "ContentDeletionFailed",
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization",
        ),
        (
            "NamespaceContentRemaining",
            objects,
            "SomeResourcesRemain",
            "ContentRemoved",
            "All content successfully removed",
        ),
        (
            "NamespaceFinalizersRemaining",
            held,
            "SomeFinalizersRemain",
            "ContentHasNoFinalizers",
            "All content-preserving finalizers finished",
        ),
    ];
    table
        .into_iter()
        .map(|(kind, bad, bad_reason, good_reason, good)| {
            let status = if bad.is_some() { "True" } else { "False" };
            let known = old.conditions.iter().flatten().find(|c| c.type_ == kind && c.status == status);
            NamespaceCondition {
                type_: kind.to_owned(),
                status: status.to_owned(),
                reason: Some(if bad.is_some() { bad_reason } else { good_reason }.to_owned()),
                message: Some(bad.unwrap_or_else(|| good.to_owned())),
                last_transition_time: known.map_or_else(|| Some(now()), |c| c.last_transition_time.clone()),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_name_what_remains() {
        let mut remains = Remains::default();
        remains.objects.insert("pods".into(), 2);
        remains.finalizers.insert("example.com/hold".into(), 1);
        let said = conditions(&NamespaceStatus::default(), &remains, None);
        let of = |kind: &str| {
            let c = said.iter().find(|c| c.type_ == kind).expect("is said");
            (c.status.as_str(), c.message.as_deref().unwrap_or_default())
        };
        assert_eq!(
            of("NamespaceContentRemaining"),
            ("True", "Some resources are remaining: pods. has 2 resource instances")
        );
        assert_eq!(
            of("NamespaceFinalizersRemaining"),
            (
                "True",
                "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances"
            )
        );
        assert_eq!(of("NamespaceDeletionContentFailure").0, "False");
        let status = NamespaceStatus { conditions: Some(said.clone()), ..NamespaceStatus::default() };
        assert_eq!(conditions(&status, &remains, None), said, "and stays the same while nothing changes");
    }

    #[test]
    fn what_came_late_is_not_waited_for() {
        let object = |name: &str, deleted: Option<&str>| -> Meta {
            let metadata = json!({"name": name, "deletionTimestamp": deleted});
            serde_json::from_value(json!({"metadata": metadata})).expect("an object")
        };
        let going = |name| object(name, Some("2026-01-01T00:00:00Z"));
        let mut there = HashSet::new();
        assert_eq!(follow(&mut there, watcher::Event::Init), None);
        assert_eq!(follow(&mut there, watcher::Event::InitApply(going("held"))), None);
        assert_eq!(follow(&mut there, watcher::Event::InitDone), None, "its finalizer will go");
        assert_eq!(follow(&mut there, watcher::Event::Apply(going("also held"))), None);
        assert_eq!(follow(&mut there, watcher::Event::Delete(going("held"))), None);
        let late = watcher::Event::Apply(object("late", None));
        assert_eq!(follow(&mut there.clone(), late), Some(Ended::CameLate));
        assert_eq!(follow(&mut there, watcher::Event::Delete(going("also held"))), Some(Ended::Empty));
        assert_eq!(follow(&mut there, watcher::Event::Init), None);
        assert_eq!(follow(&mut there, watcher::Event::InitDone), Some(Ended::Empty));
    }
}
