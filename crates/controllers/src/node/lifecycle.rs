//! Watches whether nodes are heard of. A node that is silent for too long is said to be of unknown health; what a node's
//! conditions say becomes taints; and the pods of a silent node are not ready any more.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint};
use krate_client::{
    Api, Client, Event, EventRecorder, EventType, Informer, Reconcile, Requeue, WorkQueue, is_not_found,
    reference,
};
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::zones;
use crate::meta::{is_ready, name, namespace, node_of, now, uid};
use crate::{Context, Error};

const COMPONENT: &str = "node-controller";
const LEASES: &str = "kube-node-lease";
const BY_NODE: &str = "lifecycle-node";

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// What a condition's status says as a taint that keeps new pods away.
const TAINTS: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
];
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// The conditions that a silent node is not believed any more.
const HEARD: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// When each node was last heard of, by this process's clock. Rebuilt, with all the patience, after a restart.
type Heard = Arc<Mutex<HashMap<String, Instant>>>;

struct Lifecycle {
    client: Client,
    recorder: EventRecorder,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    heard: Heard,
    grace: Duration,
}

pub async fn run(cx: Context) {
    let (nodes, pods) = (cx.informers.of::<Node>(), cx.informers.of::<Pod>());
    let leases: Informer<Lease> = Informer::start(
        Api::namespaced(cx.client.clone(), LEASES),
        watcher::Config::default(),
        cx.shutdown.clone(),
    );
    if !cx
        .ready(async {
            tokio::join!(nodes.synced(), pods.synced(), leases.synced());
        })
        .await
    {
        return;
    }
    pods.add_index(BY_NODE, |pod| node_of(pod).map(str::to_owned).into_iter().collect());
    zones::tell_of(&nodes);
    let heard = Heard::default();
    let queue = WorkQueue::named("node_lifecycle_controller");
    let (h, q, known) = (Arc::clone(&heard), queue.clone(), nodes.clone());
    nodes.handle(move |event| node_event(event, &h, &q, &known));
    let h = Arc::clone(&heard);
    // A heartbeat is only noted: the node is looked at when it has been silent for too long.
    leases.handle(move |event| {
        if let Event::Added(lease) | Event::Modified { new: lease, .. } = event {
            h.lock().insert(name(&**lease).to_owned(), Instant::now());
        }
    });
    let reconciler = Lifecycle {
        recorder: cx.recorder(COMPONENT),
        client: cx.client.clone(),
        nodes,
        pods,
        heard,
        grace: cx.config.node_grace_period,
    };
    cx.work("node-lifecycle", reconciler, queue, 4).await;
}

fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.iter().flatten().find(|c| c.type_ == kind)
}

pub(super) fn ready(node: &Node) -> &str {
    condition(node, "Ready").map_or("Unknown", |c| &c.status)
}

fn node_event(event: &Event<Node>, heard: &Heard, queue: &WorkQueue<String>, known: &Informer<Node>) {
    let node = event.object();
    let key = name(&**node).to_owned();
    if let Event::Deleted(_) = event {
        heard.lock().remove(&key);
    } else {
        let beat = |n: &Node| condition(n, "Ready").and_then(|c| c.last_heartbeat_time.clone());
        let news = match event {
            Event::Modified { old, new } => beat(old) != beat(new),
            _ => true,
        };
        if news {
            heard.lock().insert(key.clone(), Instant::now());
        }
    }
    let before = match event {
        Event::Modified { old, .. } => Some(ready(old)),
        _ => None,
    };
    if before != Some(ready(node)) {
        // How many nodes are ill decides what is done to each.
        for ill in known.list().iter().filter(|n| ready(n) != "True") {
            queue.add(name(&**ill).to_owned());
        }
    }
    queue.add(key);
}

/// Whether pods may be driven off ill nodes. If (nearly) all are ill it is not the nodes: upstream's full and partial
/// disruption.
fn may_evict(nodes: &[Arc<Node>]) -> bool {
    let ill = nodes.iter().filter(|n| ready(n) != "True").count();
    let all = nodes.len();
    let most = ill > 2 && ill * 100 >= all * 55;
    ill < all && !(most && all <= 50)
}

/// The taints that a node should have, given those that it has: those of others stay as they are.
fn taints(node: &Node, may_evict: bool) -> Vec<Taint> {
    let spec = node.spec.clone().unwrap_or_default();
    let has = spec.taints.unwrap_or_default();
    let mut wanted: Vec<(&str, &str)> = TAINTS
        .iter()
        .filter(|(kind, status, _)| condition(node, kind).is_some_and(|c| c.status == *status))
        .map(|(_, _, key)| (*key, "NoSchedule"))
        .collect();
    if condition(node, "Ready").is_none() {
        wanted.push((NOT_READY, "NoSchedule"));
    }
    if spec.unschedulable.unwrap_or(false) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    match condition(node, "Ready").map(|c| c.status.as_str()) {
        Some("False") if may_evict => wanted.push((NOT_READY, "NoExecute")),
        Some("Unknown") if may_evict => wanted.push((UNREACHABLE, "NoExecute")),
        _ => {}
    }
    let ours = |t: &Taint| {
        let execute = t.effect == "NoExecute" && [NOT_READY, UNREACHABLE].contains(&t.key.as_str());
        let schedule = t.effect == "NoSchedule"
            && (t.key == UNSCHEDULABLE || TAINTS.iter().any(|(_, _, key)| *key == t.key));
        execute || schedule
    };
    let is = |t: &Taint, (key, effect): (&str, &str)| t.key == key && t.effect == effect;
    let mut result: Vec<Taint> =
        has.iter().filter(|t| !ours(t) || wanted.iter().any(|w| is(t, *w))).cloned().collect();
    for w in wanted {
        if !has.iter().any(|t| is(t, w)) {
            let (key, effect) = (w.0.to_owned(), w.1.to_owned());
            result.push(Taint { key, effect, value: None, time_added: Some(now()) });
        }
    }
    result
}

/// Whether pods are told to leave because the node is ill.
fn drives_off(taints: &[Taint]) -> bool {
    taints.iter().any(|t| t.effect == "NoExecute" && [NOT_READY, UNREACHABLE].contains(&t.key.as_str()))
}

impl Reconcile for Lifecycle {
    /// A node.
    type Key = String;
    type Error = Error;

    async fn reconcile(&self, key: String) -> Result<Requeue, Error> {
        let Some(mut node) = self.nodes.get("", &key) else { return Ok(Requeue::Done) };
        let since = *self.heard.lock().entry(key.clone()).or_insert_with(Instant::now);
        let silent = since.elapsed() >= self.grace;
        if silent {
            node = self.doubt(&node).await?;
        }
        let wanted = taints(&node, may_evict(&self.nodes.list()));
        let has = node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
        if has != wanted {
            let patch = json!({
                "metadata": {"resourceVersion": node.metadata.resource_version},
                "spec": {"taints": if wanted.is_empty() { Value::Null } else { json!(wanted) }},
            });
            let api = Api::<Node>::all(self.client.clone());
            match api.patch(&key, &PatchParams::default(), &Patch::Merge(patch)).await {
                Err(error) if !is_not_found(&error) => return Err(error.into()),
                _ if drives_off(&wanted) && !drives_off(&has) => {
                    zones::EVICTIONS.with_label_values(&[zones::zone(&node)]).inc();
                }
                _ => {}
            }
        }
        if ready(&node) == "Unknown" {
            self.doubt_pods(&key).await?;
        }
        // A silent node is looked at again when it speaks; another when it could have fallen silent.
        let left = self.grace.saturating_sub(since.elapsed());
        Ok(if silent { Requeue::Done } else { Requeue::After(left.max(Duration::from_millis(100))) })
    }
}

impl Lifecycle {
    /// Says that the health of a silent node is unknown.
    async fn doubt(&self, node: &Arc<Node>) -> Result<Arc<Node>, Error> {
        let doubted: Vec<Value> = HEARD
            .iter()
            .filter(|kind| condition(node, kind).is_none_or(|c| c.status != "Unknown"))
            .map(|kind| {
                let (reason, message) = match condition(node, kind) {
                    Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
                    None => ("NodeStatusNeverUpdated", "Kubelet never posted node status."),
                };
                json!({"type": kind, "status": "Unknown", "reason": reason, "message": message,
                    "lastTransitionTime": now()})
            })
            .collect();
        if doubted.is_empty() {
            return Ok(Arc::clone(node));
        }
        let key = name(&**node);
        let message = format!("Node {key} status is now: NodeNotReady");
        self.recorder.event(&reference(&**node), EventType::Normal, "NodeNotReady", message);
        let patch = json!({"status": {"conditions": doubted}});
        let api = Api::<Node>::all(self.client.clone());
        Ok(Arc::new(api.patch_status(key, &PatchParams::default(), &Patch::Strategic(patch)).await?))
    }

    /// Nobody can say that the pods of a silent node are ready: they leave their services.
    async fn doubt_pods(&self, node: &str) -> Result<(), Error> {
        for pod in self.pods.by_index(BY_NODE, node).iter().filter(|p| is_ready(p)) {
            let condition = json!({"type": "Ready", "status": "False", "lastTransitionTime": now()});
            let patch = json!({"metadata": {"uid": uid(&**pod)}, "status": {"conditions": [condition]}});
            let api = Api::<Pod>::namespaced(self.client.clone(), namespace(&**pod));
            match api.patch_status(name(&**pod), &PatchParams::default(), &Patch::Strategic(patch)).await {
                Err(error) if !is_not_found(&error) => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ready: &str, unschedulable: bool, has: &[(&str, &str)]) -> Node {
        let taints: Vec<_> = has.iter().map(|(k, e)| json!({"key": k, "effect": e})).collect();
        serde_json::from_value(json!({
            "metadata": {"name": "n"},
            "spec": {"unschedulable": unschedulable, "taints": taints},
            "status": {"conditions": [{"type": "Ready", "status": ready}]}}))
        .expect("a node")
    }

    #[test]
    fn conditions_become_taints() {
        let (schedule, execute) = ("NoSchedule", "NoExecute");
        let of = |node: &Node, may_evict| {
            taints(node, may_evict).iter().map(|t| format!("{}:{}", t.key, t.effect)).collect::<Vec<_>>()
        };
        let text = |key: &str, effect: &str| format!("{key}:{effect}");
        assert_eq!(
            of(&node("True", false, &[(NOT_READY, schedule), ("own", execute)]), true),
            ["own:NoExecute"]
        );
        assert_eq!(of(&node("True", true, &[]), true), [text(UNSCHEDULABLE, schedule)]);
        assert_eq!(
            of(&node("Unknown", false, &[(NOT_READY, schedule)]), true),
            [text(UNREACHABLE, schedule), text(UNREACHABLE, execute)]
        );
        assert_eq!(of(&node("False", false, &[]), false), [text(NOT_READY, schedule)]);
    }

    #[test]
    fn pods_are_not_driven_off_when_everything_seems_ill() {
        let cluster = |ill: usize, well: usize| {
            let ill = std::iter::repeat_n(Arc::new(node("Unknown", false, &[])), ill);
            let well = std::iter::repeat_n(Arc::new(node("True", false, &[])), well);
            ill.chain(well).collect::<Vec<_>>()
        };
        for (ill, well, wanted) in [(1, 0, false), (1, 1, true), (2, 1, true), (3, 2, false), (40, 30, true)]
        {
            assert_eq!(may_evict(&cluster(ill, well)), wanted, "{ill} of {}", ill + well);
        }
    }
}
