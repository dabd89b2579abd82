//! Removes pods that nobody else will: those whose node is gone, those that were never given a node and are to be
//! deleted, and the oldest of those that have run to their end, beyond a limit.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use krate_client::{Api, Client, Event, Informer, Reconcile, Requeue, WorkQueue, is_not_found};
use krate_metrics::Stability::Alpha;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use prometheus::IntCounterVec;
use serde_json::json;

use crate::meta::{is_deleting, is_terminal, name, namespace, node_of, now, phase, uid};
use crate::metrics::FAMILIES;
use crate::{Context, Error};

/// A node may be there a moment after its pods: upstream's quarantine of a node that is missing.
const QUARANTINE: Duration = Duration::from_secs(40);

/// What to look at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    /// The pods of a node that may be gone.
    Node(String),
    /// A pod without a node that is to be deleted.
    Unscheduled(String, String),
    /// All pods that have run to their end.
    Terminated,
}

/// Pods that were removed, and those that could not be, by namespace and why.
static REMOVED: LazyLock<[IntCounterVec; 2]> = LazyLock::new(|| {
    let counters = |end: &str, help: &str| {
        FAMILIES.counters(
            Alpha,
            &format!("pod_gc_collector_force_delete_{end}"),
            help,
            &["namespace", "reason"],
        )
    };
    [
        counters("pods_total", "Pods that nobody else would have removed."),
        counters("pod_errors_total", "Pods that nobody else would remove, and that could not be removed."),
    ]
});

/// Why a pod is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    Orphaned,
    Unscheduled,
    Terminated,
}

impl Why {
    fn name(self) -> &'static str {
        match self {
            Why::Orphaned => "orphaned",
            Why::Unscheduled => "unscheduled",
            Why::Terminated => "terminated",
        }
    }
}

struct Collector {
    client: Client,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    limit: usize,
}

const BY_NODE: &str = "node";

fn by_node(pod: &Pod) -> Vec<String> {
    node_of(pod).map(str::to_owned).into_iter().collect()
}

pub async fn run(cx: Context) {
    let (pods, nodes) = (cx.informers.of::<Pod>(), cx.informers.of::<Node>());
    if !cx
        .ready(async {
            tokio::join!(pods.synced(), nodes.synced());
        })
        .await
    {
        return;
    }
    pods.add_index(BY_NODE, by_node);
    let queue = WorkQueue::named("orphaned_pods_nodes");
    let q = queue.clone();
    nodes.handle(move |event| {
        if let Event::Deleted(node) = event {
            q.add_after(Key::Node(name(&**node).to_owned()), QUARANTINE);
        }
    });
    let (q, known) = (queue.clone(), nodes.clone());
    pods.handle(move |event| {
        let (old, pod) = match event {
            Event::Added(pod) => (None, pod),
            Event::Modified { old, new } => (Some(old), new),
            Event::Deleted(_) => return,
        };
        match node_of(pod) {
            Some(node) if old.is_none_or(|o| node_of(o).is_none()) && known.get("", node).is_none() => {
                q.add_after(Key::Node(node.to_owned()), QUARANTINE);
            }
            None if is_deleting(&**pod) => {
                q.add(Key::Unscheduled(namespace(&**pod).to_owned(), name(&**pod).to_owned()));
            }
            _ => {}
        }
        if is_terminal(pod) && old.is_none_or(|o| !is_terminal(o)) {
            q.add(Key::Terminated);
        }
    });
    let reconciler = Collector { client: cx.client.clone(), pods, nodes, limit: cx.config.terminated_pods };
    cx.work("pod-garbage-collector", reconciler, queue, 1).await;
}

impl Reconcile for Collector {
    type Key = Key;
    type Error = Error;

    async fn reconcile(&self, key: Key) -> Result<Requeue, Error> {
        match key {
            Key::Node(node) => {
                if self.nodes.get("", &node).is_some() || self.is_there(&node).await? {
                    return Ok(Requeue::Done);
                }
                for pod in self.pods.by_index(BY_NODE, &node) {
                    self.remove(&pod, Why::Orphaned).await?;
                }
            }
            Key::Unscheduled(namespace, name) => {
                if let Some(pod) = self.pods.get(&namespace, &name)
                    && is_deleting(&*pod)
                    && node_of(&pod).is_none()
                {
                    self.remove(&pod, Why::Unscheduled).await?;
                }
            }
            Key::Terminated => {
                for pod in surplus(self.pods.list(), self.limit) {
                    self.remove(&pod, Why::Terminated).await?;
                }
            }
        }
        Ok(Requeue::Done)
    }
}

/// The pods that have run to their end beyond the limit, the oldest first. Evicted ones wait longest.
fn surplus(pods: Vec<Arc<Pod>>, limit: usize) -> Vec<Arc<Pod>> {
    let mut ended: Vec<_> = pods.into_iter().filter(|p| is_terminal(p) && !is_deleting(&**p)).collect();
    if limit == 0 || ended.len() <= limit {
        return Vec::new();
    }
    let surplus = ended.len() - limit;
    ended.sort_by_cached_key(|p| {
        (p.metadata.creation_timestamp.as_ref().map(|t| t.0), p.metadata.name.clone())
    });
    ended.truncate(surplus);
    ended
}

impl Collector {
    /// Whether the API, not only the informer, knows the node.
    async fn is_there(&self, node: &str) -> Result<bool, Error> {
        Ok(Api::<Node>::all(self.client.clone()).get_metadata_opt(node).await?.is_some())
    }

    /// Removes a pod, and counts that. A pod that had not ended is said to have failed, because nobody will see its end.
    async fn remove(&self, pod: &Pod, why: Why) -> Result<(), Error> {
        let removed = self.delete(pod, why).await;
        let counts = &REMOVED[usize::from(removed.is_err())];
        counts.with_label_values(&[namespace(pod), why.name()]).inc();
        removed
    }

    async fn delete(&self, pod: &Pod, why: Why) -> Result<(), Error> {
        let api = Api::<Pod>::namespaced(self.client.clone(), namespace(pod));
        if !is_terminal(pod) && why == Why::Orphaned {
            let message = "PodGC: node no longer exists";
            let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
                "message": message, "lastTransitionTime": now()});
            let patch = json!({"metadata": {"uid": uid(pod)},
                "status": {"phase": "Failed", "conditions": [condition]}});
            match api.patch_status(name(pod), &PatchParams::default(), &Patch::Strategic(patch)).await {
                Err(error) if !is_not_found(&error) => return Err(error.into()),
                _ => {}
            }
        }
        let same = Preconditions { uid: Some(uid(pod).to_owned()), resource_version: None };
        let params = DeleteParams {
            preconditions: Some(same),
            grace_period_seconds: Some(0),
            ..DeleteParams::default()
        };
        match api.delete(name(pod), &params).await {
            Err(error) if !is_not_found(&error) => Err(error.into()),
            _ => {
                tracing::debug!(pod = name(pod), phase = phase(pod), "removed a pod that nobody else would");
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_beyond_the_limit_go() {
        let pod = |name: &str, phase: &str, hour: u32| -> Arc<Pod> {
            let created = format!("2026-01-01T{hour:02}:00:00Z");
            let pod =
                json!({"metadata": {"name": name, "creationTimestamp": created}, "status": {"phase": phase}});
            Arc::new(serde_json::from_value(pod).expect("a pod"))
        };
        let pods = vec![
            pod("new", "Succeeded", 9),
            pod("old", "Failed", 1),
            pod("running", "Running", 0),
            pod("middle", "Succeeded", 5),
        ];
        let gone: Vec<_> =
            surplus(pods.clone(), 1).iter().map(|p| p.metadata.name.clone().unwrap_or_default()).collect();
        assert_eq!(gone, ["old", "middle"]);
        assert!(surplus(pods, 3).is_empty());
    }
}
