//! The loop: one task that owns cache and queue, is told of changes through channels, and hands decisions to tasks
//! that write them.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Binding, Namespace, Node, ObjectReference, Pod};
use krate_client::{
    Api, CancellationToken, Client, Event, EventRecorder, EventType, Informers, is_conflict, is_not_found,
    reference,
};
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::Config;
use crate::cycle::{Outcome, Placer};
use crate::framework::{ClusterEvent, Cycle, NodeChange, Surroundings};
use crate::metrics::{Attempt, METRICS, Point};
use crate::nodes::{HOSTNAME, Nodes, ZONE};
use crate::plugins::PLUGINS;
use crate::pod::PodInfo;
use crate::queue::{Queue, Waiting};
use crate::siblings::Siblings;

/// How many pods are decided on before changes are heard again.
const BATCH: usize = 32;

/// A binding that the API server did not take.
struct Unbound {
    waiting: Waiting,
    /// Whether the pod may still want a node.
    again: bool,
}

struct Scheduler {
    client: Client,
    recorder: EventRecorder,
    names: Vec<String>,
    nodes: Nodes,
    around: Surroundings,
    queue: Queue,
    placer: Placer,
    siblings: Siblings,
    unbound: mpsc::UnboundedSender<Unbound>,
}

/// Schedules pods until `shutdown`.
///
/// # Errors
/// The configuration names no scheduler. What fails for one pod is told in that pod's condition and events.
pub async fn run(
    client: Client,
    informers: Informers,
    config: Config,
    shutdown: CancellationToken,
) -> Result<(), crate::Error> {
    let Some(component) = config.scheduler_names.first() else { return Err(crate::Error::NoName) };
    let (pods, nodes, namespaces) =
        (informers.of::<Pod>(), informers.of::<Node>(), informers.of::<Namespace>());
    let siblings = Siblings::new(&informers);
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        () = async {
            nodes.synced().await;
            pods.synced().await;
            namespaces.synced().await;
            siblings.synced().await;
        } => {}
    }
    let (unbound, mut failures) = mpsc::unbounded_channel();
    let mut scheduler = Scheduler {
        recorder: EventRecorder::new(client.clone(), component, ""),
        client,
        names: config.scheduler_names,
        nodes: Nodes::default(),
        around: Surroundings::default(),
        queue: Queue::default(),
        placer: Placer::default(),
        siblings,
        unbound,
    };
    for key in [HOSTNAME, ZONE] {
        scheduler.nodes.know_topology(key);
    }
    let (mut nodes, mut pods, mut namespaces) = (nodes.subscribe(), pods.subscribe(), namespaces.subscribe());
    loop {
        // Nodes before pods, so that the first pods find all of them.
        while let Ok(event) = namespaces.try_recv() {
            scheduler.namespace_changed(&event);
        }
        while let Ok(event) = nodes.try_recv() {
            scheduler.node_changed(&event);
        }
        while let Ok(event) = pods.try_recv() {
            scheduler.pod_changed(&event);
        }
        while let Ok(failed) = failures.try_recv() {
            scheduler.not_bound(failed);
        }
        for _ in 0..BATCH {
            let Some(waiting) = scheduler.queue.pop(Instant::now()) else { break };
            scheduler.schedule(waiting);
        }
        METRICS.knows(scheduler.nodes.counts());
        if scheduler.queue.has_active() {
            tokio::task::yield_now().await;
            if shutdown.is_cancelled() {
                return Ok(());
            }
            continue;
        }
        let wake = scheduler.queue.next_wake();
        let woken = async {
            match wake {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            Some(event) = namespaces.recv() => scheduler.namespace_changed(&event),
            Some(event) = nodes.recv() => scheduler.node_changed(&event),
            Some(event) = pods.recv() => scheduler.pod_changed(&event),
            Some(failed) = failures.recv() => scheduler.not_bound(failed),
            () = woken => {}
        }
    }
}

/// Whether a pod has run to its end, and holds nothing any more.
fn is_terminal(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).filter(|n| !n.is_empty())
}

/// Whether nothing has changed in a bound pod that the scheduler counts: most updates are the kubelet's status.
fn is_only_status(old: &Pod, new: &Pod) -> bool {
    let (a, b) = (&old.metadata, &new.metadata);
    node_of(old).is_some()
        && node_of(old) == node_of(new)
        && a.generation.is_some()
        && a.generation == b.generation
        && a.labels == b.labels
        && a.deletion_timestamp.is_some() == b.deletion_timestamp.is_some()
        && is_terminal(old) == is_terminal(new)
}

fn node_change(old: &Node, new: &Node) -> NodeChange {
    let spec = |n: &Node| n.spec.clone().unwrap_or_default();
    let (a, b) = (spec(old), spec(new));
    let allocatable = |n: &Node| n.status.as_ref().and_then(|s| s.allocatable.clone());
    NodeChange {
        allocatable: allocatable(old) != allocatable(new),
        labels: old.metadata.labels != new.metadata.labels,
        taints: a.taints != b.taints,
        unschedulable: a.unschedulable.unwrap_or(false) != b.unschedulable.unwrap_or(false),
    }
}

impl Scheduler {
    fn is_mine(&self, pod: &Pod) -> bool {
        let name = pod.spec.as_ref().and_then(|s| s.scheduler_name.as_deref());
        self.names.iter().any(|n| n == name.unwrap_or(crate::DEFAULT_SCHEDULER))
    }

    fn pod_changed(&mut self, event: &Event<Pod>) {
        match event {
            Event::Modified { old, new } if is_only_status(old, new) => {}
            Event::Added(pod) | Event::Modified { new: pod, .. } => self.pod_is(pod),
            Event::Deleted(pod) => self.pod_gone(pod),
        }
    }

    fn pod_is(&mut self, pod: &Arc<Pod>) {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        if is_terminal(pod) {
            return self.pod_gone(pod);
        }
        if let Some(node) = node_of(pod) {
            self.queue.remove(uid);
            let info = Arc::new(PodInfo::new(Arc::clone(pod), &mut self.nodes.resources));
            self.nodes.place(Arc::clone(&info), node, false);
            self.queue.on_event(&self.nodes, ClusterEvent::PodPlaced(&info), Instant::now());
        } else if pod.metadata.deletion_timestamp.is_some() {
            self.queue.remove(uid);
        } else if self.is_mine(pod) && !self.nodes.is_assumed(uid) {
            let info = Arc::new(PodInfo::new(Arc::clone(pod), &mut self.nodes.resources));
            self.queue.put(info, Instant::now());
        }
    }

    fn pod_gone(&mut self, pod: &Arc<Pod>) {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        self.queue.remove(uid);
        self.nodes.displace(uid);
        let info = PodInfo::new(Arc::clone(pod), &mut self.nodes.resources);
        self.queue.on_event(&self.nodes, ClusterEvent::PodGone(&info), Instant::now());
    }

    fn node_changed(&mut self, event: &Event<Node>) {
        let (node, change) = match event {
            Event::Added(node) => (node, None),
            Event::Modified { old, new } => (new, Some(node_change(old, new))),
            Event::Deleted(node) => {
                return self.nodes.remove(node.metadata.name.as_deref().unwrap_or_default());
            }
        };
        self.nodes.put(node);
        let Some(node) = self.nodes.id(node.metadata.name.as_deref().unwrap_or_default()) else { return };
        let event = match change {
            None => ClusterEvent::NodeAdded(node),
            Some(what) if what.any() => ClusterEvent::NodeChanged { node, what },
            Some(_) => return,
        };
        self.queue.on_event(&self.nodes, event, Instant::now());
    }

    fn namespace_changed(&mut self, event: &Event<Namespace>) {
        let namespace = event.object();
        let name = namespace.metadata.name.clone().unwrap_or_default();
        let labels = namespace.metadata.labels.clone().unwrap_or_default();
        if let Event::Deleted(_) = event {
            self.around.namespaces.remove(&name);
        } else if self.around.namespaces.get(&name) != Some(&labels) {
            self.around.namespaces.insert(name, labels);
            self.queue.on_event(&self.nodes, ClusterEvent::NamespaceChanged, Instant::now());
        }
    }

    fn schedule(&mut self, waiting: Waiting) {
        let began = Instant::now();
        let info = Arc::clone(&waiting.info);
        let mut keys = Vec::new();
        for row in PLUGINS {
            row.plugin.topologies(&info, &mut keys);
        }
        for key in &keys {
            self.nodes.know_topology(key);
        }
        let siblings = self.siblings.selector_of(&info);
        let cycle =
            Cycle { pod: &info, nodes: &self.nodes, around: &self.around, siblings: siblings.as_ref() };
        let outcome = self.placer.place(cycle);
        METRICS.chose(began.elapsed());
        match outcome {
            Outcome::Node(id) => {
                let node = self.nodes.names[id].to_string();
                self.nodes.place(Arc::clone(&info), &node, true);
                self.bind(waiting, node, began);
            }
            Outcome::Nowhere { message, refused_by } => {
                self.recorder.event(
                    &reference(&*info.pod),
                    EventType::Warning,
                    "FailedScheduling",
                    message.as_str(),
                );
                self.tell_unschedulable(&info, message);
                METRICS.tried(info.profile(), Attempt::Unschedulable, began.elapsed());
                self.queue.park(waiting, refused_by, Instant::now());
            }
        }
    }

    /// Writes the decision in a task of its own. `began`: when the attempt did.
    fn bind(&self, waiting: Waiting, node: String, began: Instant) {
        let (client, recorder, unbound) = (self.client.clone(), self.recorder.clone(), self.unbound.clone());
        tokio::spawn(async move {
            let info = &waiting.info;
            let decided = Instant::now();
            let bound = bind(client, info, &node).await;
            let attempt = if bound.is_ok() { Attempt::Scheduled } else { Attempt::Error };
            METRICS.point(Point::Bind, attempt, info.profile(), decided.elapsed());
            METRICS.tried(info.profile(), attempt, began.elapsed());
            match bound {
                Ok(()) => {
                    METRICS.bound(waiting.attempts, waiting.first_tried.unwrap_or(began).elapsed());
                    let message = format!("Successfully assigned {} to {node}", info.key);
                    recorder.event(&reference(&*info.pod), EventType::Normal, "Scheduled", message);
                }
                Err(error) => {
                    tracing::debug!(%error, pod = %info.key, node, "a pod could not be bound");
                    // A pod that is gone, or that somebody else has bound, is done with.
                    let again = !is_not_found(&error) && !is_conflict(&error);
                    if again {
                        let message = format!("binding rejected: {error}");
                        recorder.event(
                            &reference(&*info.pod),
                            EventType::Warning,
                            "FailedScheduling",
                            message,
                        );
                    }
                    // Nobody listens any more when the scheduler has ended.
                    let _ = unbound.send(Unbound { waiting, again });
                }
            }
        });
    }

    fn not_bound(&mut self, failed: Unbound) {
        let info = Arc::clone(&failed.waiting.info);
        if !self.nodes.is_assumed(&info.uid) {
            return;
        }
        self.nodes.displace(&info.uid);
        if failed.again {
            self.queue.retry(failed.waiting, Instant::now());
        }
        self.queue.on_event(&self.nodes, ClusterEvent::PodGone(&info), Instant::now());
    }

    /// Says in the pod's condition why it has no node, unless it says so already.
    fn tell_unschedulable(&self, info: &PodInfo, message: String) {
        let conditions = info.pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        let known = conditions.iter().find(|c| c.type_ == "PodScheduled");
        if known.is_some_and(|c| c.status == "False" && c.message.as_deref() == Some(message.as_str())) {
            return;
        }
        let since = known.filter(|c| c.status == "False").and_then(|c| c.last_transition_time.clone());
        let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(k8s_openapi::jiff::Timestamp::now());
        let condition = json!({
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": message,
            "lastProbeTime": Value::Null,
            "lastTransitionTime": since.unwrap_or(now),
            "observedGeneration": info.pod.metadata.generation,
        });
        let patch = json!({
            "metadata": {"uid": info.uid},
            "status": {"conditions": [condition]},
        });
        let api = Api::<Pod>::namespaced(self.client.clone(), &info.key.namespace);
        let key = info.key.clone();
        tokio::spawn(async move {
            let patched =
                api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await;
            if let Err(error) = patched {
                tracing::debug!(%error, pod = %key, "a pod's condition could not be written");
            }
        });
    }
}

async fn bind(client: Client, info: &PodInfo, node: &str) -> Result<(), kube::Error> {
    let mut binding = Binding {
        target: ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(node.to_owned()),
            ..ObjectReference::default()
        },
        ..Binding::default()
    };
    binding.metadata.name = Some(info.key.name.clone());
    binding.metadata.namespace = Some(info.key.namespace.clone());
    binding.metadata.uid = Some(info.uid.clone());
    let api = Api::<Pod>::namespaced(client, &info.key.namespace);
    let _: Value =
        api.create_subresource("binding", &info.key.name, &PostParams::default(), &binding).await?;
    Ok(())
}
