//! A PersistentVolumeClaim stays while a pod that has a node uses it: the kubelet starts no pod whose claim is going, and
//! so a pod without a node keeps nobody.

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Volume};
use krate_client::{Api, Client, Event, Informer, Reconcile, Requeue, WorkQueue};
use kube::api::ListParams;

use super::{WORKERS, is_bare, is_leaving, turn};
use crate::meta::{controller_of, is_deleting, name, namespace, node_of, uid};
use crate::{Context, Error};

const FINALIZER: &str = "kubernetes.io/pvc-protection";

struct Controller {
    client: Client,
    claims: Informer<PersistentVolumeClaim>,
    pods: Informer<Pod>,
}

pub async fn run(cx: Context) {
    let claims = cx.informers.of::<PersistentVolumeClaim>();
    let pods = cx.informers.of::<Pod>();
    if !cx
        .ready(async {
            tokio::join!(claims.synced(), pods.synced());
        })
        .await
    {
        return;
    }
    let queue = WorkQueue::new();
    let q = queue.clone();
    claims.handle(move |event| {
        let claim = &**event.object();
        if !matches!(event, Event::Deleted(_)) && (is_bare(claim, FINALIZER) || is_leaving(claim, FINALIZER))
        {
            q.add(namespace(claim).to_owned());
        }
    });
    let q = queue.clone();
    pods.handle(move |event| {
        let gone = match event {
            Event::Added(_) => false,
            // One may have come under the name of another whose end nobody told.
            Event::Modified { old, new } => uid(&**old) != uid(&**new),
            Event::Deleted(_) => true,
        };
        let pod = &**event.object();
        let lets_go = gone || is_shut_down(pod);
        if lets_go && volumes(pod).any(|v| v.persistent_volume_claim.is_some() || v.ephemeral.is_some()) {
            q.add(namespace(pod).to_owned());
        }
    });
    let controller = Controller { client: cx.client.clone(), claims, pods };
    cx.work("persistentvolumeclaim-protection", controller, queue, WORKERS).await;
}

impl Reconcile for Controller {
    /// A namespace: however many of its claims go, its pods are listed once.
    type Key = String;
    type Error = Error;

    async fn reconcile(&self, key: String) -> Result<Requeue, Error> {
        let api = Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), &key);
        let (mut known, mut live) = (None, None);
        for claim in self.claims.list_in(&key) {
            if is_leaving(&*claim, FINALIZER) {
                let known = known.get_or_insert_with(|| self.pods.list_in(&key));
                if known.iter().any(|pod| uses(pod, &claim)) {
                    continue;
                }
                // A pod may have come that the informer has not heard of yet.
                let live = if let Some(live) = &live {
                    live
                } else {
                    let pods = Api::<Pod>::namespaced(self.client.clone(), &key);
                    live.insert(pods.list(&ListParams::default()).await?.items)
                };
                if live.iter().any(|pod| uses(pod, &claim)) {
                    continue;
                }
            } else if !is_bare(&*claim, FINALIZER) {
                continue;
            }
            turn(&api, &*claim, FINALIZER).await?;
        }
        Ok(Requeue::Done)
    }
}

fn volumes(pod: &Pod) -> impl Iterator<Item = &Volume> {
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten())
}

/// Whether the kubelet is done with a pod that is being deleted, or nobody asks it: its own claims need not wait for its
/// other finalizers, which may wait for them.
fn is_shut_down(pod: &Pod) -> bool {
    is_deleting(pod) && pod.metadata.deletion_grace_period_seconds == Some(0)
}

fn uses(pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    if node_of(pod).is_none() {
        return false;
    }
    let wanted = name(claim);
    volumes(pod).any(|volume| {
        let named = volume.persistent_volume_claim.as_ref().is_some_and(|source| source.claim_name == wanted);
        let is_own = || {
            volume.ephemeral.is_some()
                && !is_shut_down(pod)
                && wanted.strip_prefix(name(pod)).and_then(|rest| rest.strip_prefix('-'))
                    == Some(&volume.name)
                && controller_of(&claim.metadata).is_some_and(|owner| owner.uid == uid(pod))
        };
        named || is_own()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(change: &Value) -> Pod {
        let mut pod = json!({
            "metadata": {"name": "p", "uid": "u"},
            "spec": {"nodeName": "n", "containers": [], "volumes": [
                {"name": "named", "persistentVolumeClaim": {"claimName": "data"}},
                {"name": "own", "ephemeral": {}},
            ]},
        });
        for (pointer, value) in change.as_object().expect("an object") {
            let (at, field) = pointer.rsplit_once('/').expect("a pointer");
            pod.pointer_mut(at).expect("a parent")[field] = value.clone();
        }
        serde_json::from_value(pod).expect("a pod")
    }

    #[test]
    fn a_claim_is_used_by_pods_that_have_a_node() {
        let claim = |name: &str, owner: Option<&str>| -> PersistentVolumeClaim {
            let owners: Vec<Value> = owner
                .map(|uid| json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid, "controller": true}))
                .into_iter()
                .collect();
            serde_json::from_value(json!({"metadata": {"name": name, "ownerReferences": owners}}))
                .expect("a claim")
        };
        let (named, own) = (claim("data", None), claim("p-own", Some("u")));
        let runs = pod(&json!({}));
        assert!(uses(&runs, &named) && uses(&runs, &own));
        assert!(!uses(&runs, &claim("other", None)), "nobody names it");
        assert!(!uses(&runs, &claim("p-own", None)), "it only has the name");
        assert!(!uses(&runs, &claim("p-own", Some("another"))), "it was made for another");
        let waits = pod(&json!({"/spec/nodeName": null}));
        assert!(!uses(&waits, &named) && !uses(&waits, &own));
        let done = pod(&json!({
            "/metadata/deletionTimestamp": "2026-01-01T00:00:00Z", "/metadata/deletionGracePeriodSeconds": 0,
        }));
        assert!(uses(&done, &named) && !uses(&done, &own));
    }
}
