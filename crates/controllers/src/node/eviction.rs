//! Drives pods off nodes with taints that they do not bear, or do not bear any longer.

use std::sync::LazyLock;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use k8s_openapi::jiff::Timestamp;
use krate_client::{
    Api, Client, Event, EventRecorder, EventType, Informer, ObjectKey, Reconcile, Requeue, WorkQueue,
    is_not_found, reference,
};
use krate_metrics::Stability::Alpha;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use prometheus::{Histogram, IntCounter};
use serde_json::json;

use crate::meta::{is_deleting, is_terminal, name, node_of, now, uid};
use crate::metrics::FAMILIES;
use crate::{Context, Error};

const COMPONENT: &str = "taint-eviction-controller";
const BY_NODE: &str = "eviction-node";

/// Upper bounds of how late a pod goes, in seconds.
const LATE_SECONDS: &[f64] = &[0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 30.0, 60.0, 120.0, 180.0, 240.0];

/// Pods that were driven off, and how long after they were to go.
static DRIVEN_OFF: LazyLock<(IntCounter, Histogram)> = LazyLock::new(|| {
    let name = |end: &str| format!("taint_eviction_controller_pod_{end}");
    let late = FAMILIES.histograms(
        Alpha,
        &name("deletion_duration_seconds"),
        "From when a pod was to be driven off until it was.",
        &[],
        LATE_SECONDS,
    );
    (
        FAMILIES.counter(Alpha, &name("deletions_total"), "Pods that were driven off by taints."),
        late.with_label_values::<&str>(&[]),
    )
});

struct Evictor {
    client: Client,
    recorder: EventRecorder,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
}

pub async fn run(cx: Context) {
    let (nodes, pods) = (cx.informers.of::<Node>(), cx.informers.of::<Pod>());
    if !cx
        .ready(async {
            tokio::join!(nodes.synced(), pods.synced());
        })
        .await
    {
        return;
    }
    pods.add_index(BY_NODE, |pod| node_of(pod).map(str::to_owned).into_iter().collect());
    let queue = WorkQueue::named("noexec_taint_pod");
    let (q, on) = (queue.clone(), pods.clone());
    nodes.handle(move |event| {
        let (old, node) = match event {
            Event::Added(node) => (Vec::new(), node),
            Event::Modified { old, new } => (driving(old), new),
            Event::Deleted(_) => return,
        };
        if old != driving(node) {
            for pod in on.by_index(BY_NODE, name(&**node)) {
                q.add(ObjectKey::of(&*pod));
            }
        }
    });
    let (q, known) = (queue.clone(), nodes.clone());
    pods.handle(move |event| {
        let (old, pod) = match event {
            Event::Added(pod) => (None, pod),
            Event::Modified { old, new } => (Some(old), new),
            Event::Deleted(_) => return,
        };
        let tolerations = |p: &Pod| p.spec.as_ref().and_then(|s| s.tolerations.clone());
        let same = old.is_some_and(|o| node_of(o) == node_of(pod) && tolerations(o) == tolerations(pod));
        let tainted = |n: &str| known.get("", n).is_some_and(|n| !driving(&n).is_empty());
        if !same && node_of(pod).is_some_and(tainted) {
            q.add(ObjectKey::of(&**pod));
        }
    });
    let reconciler = Evictor { recorder: cx.recorder(COMPONENT), client: cx.client.clone(), nodes, pods };
    cx.work(COMPONENT, reconciler, queue, 4).await;
}

/// The taints that drive pods off.
fn driving(node: &Node) -> Vec<Taint> {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    taints.iter().filter(|t| t.effect == "NoExecute").cloned().collect()
}

fn bears(t: &Toleration, taint: &Taint) -> bool {
    let text = |s: &Option<String>| s.clone().unwrap_or_default();
    let key = text(&t.key);
    let effect = text(&t.effect);
    (effect.is_empty() || effect == taint.effect)
        && (key.is_empty() || key == taint.key)
        && match t.operator.as_deref().filter(|o| !o.is_empty()).unwrap_or("Equal") {
            "Exists" => true,
            "Equal" => !key.is_empty() && text(&t.value) == text(&taint.value),
            _ => false,
        }
}

#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Stays,
    /// In so many seconds; at once if none are left, and since so many if they are less than none.
    Goes(i64),
}

/// What becomes of a pod: it goes when the shortest of its tolerations has run out since the taint was put, or since
/// the pod came.
fn fate(pod: &Pod, taints: &[Taint], now: Timestamp) -> Fate {
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
    let came =
        pod.status.as_ref().and_then(|s| s.start_time.as_ref()).or(pod.metadata.creation_timestamp.as_ref());
    let mut soonest = None;
    for taint in taints {
        let bearing: Vec<_> = tolerations.iter().filter(|t| bears(t, taint)).collect();
        if bearing.is_empty() {
            return Fate::Goes(0);
        }
        let Some(seconds) = bearing.iter().filter_map(|t| t.toleration_seconds).min() else { continue };
        let since = taint.time_added.as_ref().into_iter().chain(came).map(|t| t.0).max().unwrap_or(now);
        let left = since.as_second() + seconds.max(0) - now.as_second();
        soonest = Some(soonest.map_or(left, |s: i64| s.min(left)));
    }
    soonest.map_or(Fate::Stays, Fate::Goes)
}

impl Reconcile for Evictor {
    type Key = ObjectKey;
    type Error = Error;

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, Error> {
        let Some(pod) = self.pods.get_key(&key).filter(|p| !is_deleting(&**p)) else {
            return Ok(Requeue::Done);
        };
        let Some(node) = node_of(&pod).and_then(|n| self.nodes.get("", n)) else { return Ok(Requeue::Done) };
        let taints = driving(&node);
        let late = match fate(&pod, &taints, now().0) {
            Fate::Stays => return Ok(Requeue::Done),
            Fate::Goes(left) if left > 0 => {
                return Ok(Requeue::After(Duration::from_secs(left.unsigned_abs())));
            }
            Fate::Goes(left) => left.unsigned_abs(),
        };
        let api = Api::<Pod>::namespaced(self.client.clone(), &key.namespace);
        if !is_terminal(&pod) {
            let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
                "message": "Taint manager: deleting due to NoExecute taint", "lastTransitionTime": now()});
            let patch = json!({"metadata": {"uid": uid(&*pod)}, "status": {"conditions": [condition]}});
            match api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                Err(error) if !is_not_found(&error) => return Err(error.into()),
                _ => {}
            }
        }
        let message = format!("Marking for deletion Pod {key}");
        self.recorder.event(&reference(&*pod), EventType::Normal, "TaintManagerEviction", message);
        let same = Preconditions { uid: Some(uid(&*pod).to_owned()), resource_version: None };
        let params = DeleteParams { preconditions: Some(same), ..DeleteParams::default() };
        match api.delete(&key.name, &params).await {
            Err(error) if !is_not_found(&error) => Err(error.into()),
            _ => {
                DRIVEN_OFF.0.inc();
                DRIVEN_OFF.1.observe(late as f64);
                Ok(Requeue::Done)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn pods_go_when_they_bear_a_taint_no_longer() {
        let at = |s: &str| s.parse::<Timestamp>().expect("a time");
        let taint: Taint = serde_json::from_value(json!({
            "key": "k", "effect": "NoExecute", "timeAdded": "2026-01-01T00:01:00Z"}))
        .expect("a taint");
        let cases: [(Value, Fate); 4] = [
            (json!([]), Fate::Goes(0)),
            (json!([{"key": "k", "operator": "Exists"}]), Fate::Stays),
            (json!([{"key": "k", "operator": "Exists", "tolerationSeconds": 300}]), Fate::Goes(240)),
            (json!([{"operator": "Exists", "tolerationSeconds": 30}]), Fate::Goes(-30)),
        ];
        for (tolerations, wanted) in cases {
            let pod = json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"containers": [], "tolerations": tolerations}});
            let pod: Pod = serde_json::from_value(pod).expect("a pod");
            assert_eq!(fate(&pod, std::slice::from_ref(&taint), at("2026-01-01T00:02:00Z")), wanted);
        }
        assert_eq!(fate(&Pod::default(), &[], at("2026-01-01T00:02:00Z")), Fate::Stays);
    }
}
