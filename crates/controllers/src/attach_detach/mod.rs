//! Has volumes attached to the nodes whose pods want them, and detached from those whose pods do not, by the objects that
//! tell a driver's attacher so; and tells the nodes which are attached. A volume is not detached that its node says to be
//! in use, unless the node has been out of order for long, or somebody says that it is out of service.

mod figures;
mod wanted;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{AttachedVolume, Node, PersistentVolume, Pod};
use k8s_openapi::api::storage::v1::{VolumeAttachment, VolumeAttachmentSource, VolumeAttachmentSpec};
use krate_client::{
    Api, Client, Event, EventRecorder, EventType, Reconcile, Requeue, WorkQueue, is_conflict, is_not_found,
    reference,
};
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use self::figures::{Figures, Forced};
use self::wanted::{Informers, Volume, is_shareable, told};
use crate::meta::{is_deleting, name, namespace};
use crate::{Context, Error};

const COMPONENT: &str = "attachdetach-controller";
/// How long a node that is out of order has to say that a volume is in use no more (upstream's).
const UNMOUNTED: Duration = Duration::from_mins(6);
/// How long an attacher may take until that is told.
const ATTACHED: Duration = Duration::from_mins(2);
/// How soon a volume is looked at again whose node says that it is in use after all.
const SOON: Duration = Duration::from_secs(1);
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
const WORKERS: usize = 4;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Volume(Volume),
    /// What a node's status says to be attached.
    Node(String),
}

/// What is remembered of a volume at a node, and could be found out again.
#[derive(Default)]
struct Memory {
    /// Since when it is not wanted there.
    unwanted: HashMap<(Volume, String), Instant>,
    /// It is being detached: it must not be used any more.
    detaching: HashSet<(Volume, String)>,
    /// It was asked for: when, and whether its pods were told that it takes long.
    asked: HashMap<(Volume, String), (Instant, bool)>,
    /// What pods were told of a failure, or of another node that has it.
    told: HashMap<(Volume, String), String>,
    /// What nodes that are no more said to be in use, for as long as something is attached to them.
    gone: HashMap<String, Vec<String>>,
}

impl Memory {
    /// A node is no more. What it said to be in use matters only where something is attached to it.
    fn node_gone(&mut self, node: &Node, is_attached: bool) {
        let in_use = node.status.as_ref().and_then(|s| s.volumes_in_use.clone()).unwrap_or_default();
        if is_attached && !in_use.is_empty() {
            self.gone.insert(name(node).to_owned(), in_use);
        }
    }

    fn gone_with(&self, node: &str, unique: &str) -> bool {
        self.gone.get(node).is_some_and(|names| names.iter().any(|name| name == unique))
    }
}

struct Attacher {
    client: Client,
    recorder: EventRecorder,
    informers: Informers,
    force: bool,
    figures: Figures,
    memory: Arc<Mutex<Memory>>,
    /// What was told of a node last; one at a time tells.
    telling: tokio::sync::Mutex<HashMap<String, BTreeSet<String>>>,
}

pub async fn run(cx: Context) {
    let informers = Informers::new(&cx.informers);
    if !cx.ready(informers.synced()).await {
        return;
    }
    informers.add_indexes();
    let queue = WorkQueue::new();
    let memory: Arc<Mutex<Memory>> = Arc::default();
    listen(&informers, &queue, &memory);
    let figures = Figures::new(informers.clone());
    let registry = crate::metrics::registry();
    if let Err(error) = registry.register(Box::new(figures.clone())) {
        tracing::warn!(%error, "what is attached is not told among the metrics");
    }
    let attacher = Attacher {
        client: cx.client.clone(),
        recorder: cx.recorder(COMPONENT),
        informers,
        force: !cx.config.disable_force_detach_on_timeout,
        figures: figures.clone(),
        memory,
        telling: tokio::sync::Mutex::default(),
    };
    cx.work(COMPONENT, attacher, queue, WORKERS).await;
    // Nothing was registered only where that was said.
    let _ = registry.unregister(Box::new(figures));
}

/// Puts the volumes into the queue that an event may concern.
fn listen(informers: &Informers, queue: &WorkQueue<Key>, memory: &Arc<Mutex<Memory>>) {
    let (q, all) = (queue.clone(), informers.clone());
    informers.pods.handle(move |event| {
        for volume in all.of_pod(event.object()) {
            q.add(Key::Volume(volume));
        }
    });
    let (q, all) = (queue.clone(), informers.clone());
    informers.claims.handle(move |event| {
        let claim = event.object();
        let pv = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref());
        if let Some(volume) = pv.and_then(|pv| all.volumes.get("", pv)).as_deref().and_then(Volume::of) {
            q.add(Key::Volume(volume));
        }
    });
    let q = queue.clone();
    informers.volumes.handle(move |event| {
        if let Some(volume) = Volume::of(event.object()) {
            q.add(Key::Volume(volume));
        }
    });
    let (q, all) = (queue.clone(), informers.clone());
    informers.drivers.handle(move |event| {
        let is_changed = match event {
            Event::Modified { old, new } => old.spec.attach_required != new.spec.attach_required,
            _ => true,
        };
        if !is_changed {
            return;
        }
        let driver = name(&**event.object());
        let volumes = all.volumes.list().into_iter().filter_map(|pv| Volume::of(&pv));
        for volume in volumes.filter(|volume| volume.driver == driver) {
            q.add(Key::Volume(volume));
        }
    });
    let (q, all) = (queue.clone(), informers.clone());
    informers.attachments.handle(move |event| {
        let attachment = event.object();
        if let Some(volume) = all.of_attachment(attachment) {
            q.add(Key::Volume(volume));
        }
        q.add(Key::Node(attachment.spec.node_name.clone()));
    });
    let (q, all, memory) = (queue.clone(), informers.clone(), Arc::clone(memory));
    informers.nodes.handle(move |event| {
        let node = event.object();
        match event {
            Event::Modified { old, new } if concern(old) == concern(new) => return,
            Event::Deleted(last) => {
                let is_attached = !all.attachments_of_node(name(&**last)).is_empty();
                memory.lock().node_gone(last, is_attached);
            }
            _ => drop(memory.lock().gone.remove(name(&**node))),
        }
        let attached = all.attachments_of_node(name(&**node));
        let attached = attached.iter().filter_map(|attachment| all.of_attachment(attachment));
        let wanted = all.pods_of_node(name(&**node)).into_iter().flat_map(|pod| all.of_pod(&pod));
        for volume in attached.chain(wanted).chain(told(node)) {
            q.add(Key::Volume(volume));
        }
        q.add(Key::Node(name(&**node).to_owned()));
    });
}

/// What is looked at of a node: most of its changes are of no concern here.
fn concern(node: &Node) -> impl PartialEq {
    let status = node.status.as_ref();
    (
        status.and_then(|s| s.volumes_in_use.as_ref()),
        status.and_then(|s| s.volumes_attached.as_ref()),
        is_healthy(node),
        is_out_of_service(node),
        node.metadata.annotations.as_ref(),
    )
}

fn is_healthy(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

fn is_out_of_service(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    taints.iter().any(|taint| taint.key == OUT_OF_SERVICE)
}

fn says_in_use(node: &Node, unique: &str) -> bool {
    let in_use = node.status.as_ref().and_then(|s| s.volumes_in_use.as_deref()).unwrap_or_default();
    in_use.iter().any(|name| name == unique)
}

impl Reconcile for Attacher {
    type Key = Key;
    type Error = Error;

    async fn reconcile(&self, key: Key) -> Result<Requeue, Error> {
        match key {
            Key::Volume(volume) => self.volume(&volume).await,
            Key::Node(node) => self.tell(&node).await.map(|()| Requeue::Done),
        }
    }
}

impl Attacher {
    async fn volume(&self, volume: &Volume) -> Result<Requeue, Error> {
        let wanted = self.informers.wanted(volume);
        let attached = self.informers.attached(volume);
        self.memory.lock().unwanted.retain(|(of, node), _| {
            of != volume || (attached.contains_key(node) && !wanted.contains_key(node))
        });
        let mut again: Option<Duration> = None;
        let mut look = |after: Option<Duration>| {
            again = after.map_or(again, |after| Some(again.map_or(after, |known| known.min(after))));
        };
        // Volumes go before they come, so that those come that others must give up first.
        for (node, attachment) in attached.iter().filter(|(node, _)| !wanted.contains_key(*node)) {
            look(self.detach(volume, node, attachment).await?);
        }
        for (node, pods) in &wanted {
            let after = match attached.get(node) {
                Some(attachment) => self.follow(volume, node, pods, attachment).await?,
                None => self.attach(volume, node, pods, &attached).await?,
            };
            look(after);
        }
        let known: HashSet<&String> = wanted.keys().chain(attached.keys()).collect();
        let mut memory = self.memory.lock();
        memory.asked.retain(|(of, node), _| of != volume || known.contains(node));
        memory.told.retain(|(of, node), _| of != volume || wanted.contains_key(node));
        memory.detaching.retain(|(of, node)| of != volume || attached.contains_key(node));
        Ok(again.map_or(Requeue::Done, Requeue::After))
    }

    /// Asks for a volume to be attached, unless another node has it alone. Returns when to look again.
    async fn attach(
        &self,
        volume: &Volume,
        node: &str,
        pods: &[Arc<Pod>],
        attached: &BTreeMap<String, Arc<VolumeAttachment>>,
    ) -> Result<Option<Duration>, Error> {
        let Some(pv) = self.informers.persistent(volume).into_iter().next() else { return Ok(None) };
        if !is_shareable(&pv) && !attached.is_empty() {
            self.refuse(volume, node, pods, &pv, attached);
            return Ok(None);
        }
        let attachment = VolumeAttachment {
            metadata: ObjectMeta { name: Some(volume.attachment(node)), ..ObjectMeta::default() },
            spec: VolumeAttachmentSpec {
                attacher: volume.driver.clone(),
                node_name: node.to_owned(),
                source: VolumeAttachmentSource {
                    persistent_volume_name: Some(name(&*pv).to_owned()),
                    ..VolumeAttachmentSource::default()
                },
            },
            status: None,
        };
        let key = (volume.clone(), node.to_owned());
        let api: Api<VolumeAttachment> = Api::all(self.client.clone());
        match api.create(&PostParams::default(), &attachment).await {
            Err(error) if !is_conflict(&error) => return Err(error.into()),
            _ => {}
        }
        let mut memory = self.memory.lock();
        memory.told.remove(&key);
        memory.asked.insert(key, (Instant::now(), false));
        Ok(Some(ATTACHED))
    }

    /// Tells pods that another node has their volume, once.
    fn refuse(
        &self,
        volume: &Volume,
        node: &str,
        pods: &[Arc<Pod>],
        pv: &PersistentVolume,
        attached: &BTreeMap<String, Arc<VolumeAttachment>>,
    ) {
        let key = (volume.clone(), node.to_owned());
        let others: Vec<&str> = attached.keys().map(String::as_str).collect();
        if self.memory.lock().told.insert(key, others.join(",")).is_some_and(|told| told == others.join(","))
        {
            return;
        }
        let users: Vec<Arc<Pod>> = self
            .informers
            .wanted(volume)
            .into_iter()
            .filter(|(node, _)| others.contains(&node.as_str()))
            .flat_map(|(_, pods)| pods)
            .collect();
        for pod in pods {
            let message = format!("Multi-Attach error for volume {:?} {}", name(pv), used_by(pod, &users));
            self.recorder.event(&reference(&**pod), EventType::Warning, "FailedAttachVolume", message);
        }
    }

    /// Looks at what has become of a volume that was asked for. Returns when to look again.
    async fn follow(
        &self,
        volume: &Volume,
        node: &str,
        pods: &[Arc<Pod>],
        attachment: &VolumeAttachment,
    ) -> Result<Option<Duration>, Error> {
        let key = (volume.clone(), node.to_owned());
        let status = attachment.status.clone().unwrap_or_default();
        let pv = attachment.spec.source.persistent_volume_name.clone().unwrap_or_default();
        let tell = |kind, reason: &str, message: &str| {
            for pod in pods {
                self.recorder.event(&reference(&**pod), kind, reason, message.to_owned());
            }
        };
        if is_deleting(attachment) {
            // It is asked for anew when it has gone.
            return Ok(None);
        }
        if status.attached {
            let was_asked = {
                let mut memory = self.memory.lock();
                memory.detaching.remove(&key);
                memory.told.remove(&key);
                memory.asked.remove(&key).is_some()
            };
            if was_asked {
                let message = format!("AttachVolume.Attach succeeded for volume {pv:?} ");
                tell(EventType::Normal, "SuccessfulAttachVolume", &message);
            }
            self.tell(node).await?;
            return Ok(None);
        }
        if let Some(why) = status.attach_error.and_then(|error| error.message) {
            let is_new =
                self.memory.lock().told.insert(key.clone(), why.clone()).is_none_or(|told| told != why);
            if is_new {
                let message = format!("AttachVolume.Attach failed for volume {pv:?} : {why}");
                tell(EventType::Warning, "FailedAttachVolume", &message);
            }
        }
        let (since, is_late) =
            *self.memory.lock().asked.entry(key.clone()).or_insert_with(|| (Instant::now(), false));
        if is_late {
            return Ok(None);
        }
        let left = ATTACHED.saturating_sub(since.elapsed());
        if left.is_zero() {
            self.memory.lock().asked.insert(key, (since, true));
            let message = format!(
                "AttachVolume.Attach failed for volume {pv:?} : timed out waiting for external-attacher of {} CSI driver \
                 to attach volume {}",
                volume.driver, volume.handle
            );
            tell(EventType::Warning, "FailedAttachVolume", &message);
            return Ok(None);
        }
        Ok(Some(left))
    }

    /// Has a volume detached as soon as its node is through with it. Returns when to look again.
    async fn detach(
        &self,
        volume: &Volume,
        node: &str,
        attachment: &VolumeAttachment,
    ) -> Result<Option<Duration>, Error> {
        if is_deleting(attachment) {
            return Ok(None);
        }
        let (key, unique) = ((volume.clone(), node.to_owned()), volume.unique());
        let since = *self.memory.lock().unwanted.entry(key.clone()).or_insert_with(Instant::now);
        let is_overdue = self.force && since.elapsed() >= UNMOUNTED;
        let known = self.informers.nodes.get("", node);
        let is_mounted = match known.as_deref() {
            Some(node) => says_in_use(node, &unique),
            None => self.memory.lock().gone_with(node, &unique),
        };
        let is_healthy = known.as_deref().is_some_and(is_healthy);
        let is_out = known.as_deref().is_some_and(is_out_of_service);
        if is_mounted && !is_out && (is_healthy || !is_overdue) {
            let left = UNMOUNTED.saturating_sub(since.elapsed());
            return Ok(Some(left).filter(|left| self.force && !left.is_zero()));
        }
        // The node must know that it may not be used any more before anybody looks whether it is.
        self.memory.lock().detaching.insert(key.clone());
        self.tell(node).await?;
        if !is_out && !is_overdue && self.is_in_use(node, &unique).await? {
            self.memory.lock().detaching.remove(&key);
            self.tell(node).await?;
            return Ok(Some(SOON));
        }
        if is_mounted {
            tracing::warn!(volume = unique, node, "a volume is detached that may still be in use");
        }
        let api: Api<VolumeAttachment> = Api::all(self.client.clone());
        match api.delete(name(attachment), &DeleteParams::default()).await {
            // Done before, and counted: the informer has not told of it yet.
            Err(error) if is_not_found(&error) => return Ok(None),
            other => drop(other?),
        }
        if is_overdue {
            self.figures.forced(Forced::Timeout);
        } else if is_out {
            self.figures.forced(Forced::OutOfService);
        }
        Ok(None)
    }

    /// Whether a node says now that a volume is in use.
    async fn is_in_use(&self, node: &str, unique: &str) -> Result<bool, Error> {
        let api: Api<Node> = Api::all(self.client.clone());
        Ok(api.get_opt(node).await?.is_some_and(|node| says_in_use(&node, unique)))
    }

    /// Tells a node which volumes are attached to it. Those that are not of CSI drivers are others' to tell.
    async fn tell(&self, node: &str) -> Result<(), Error> {
        let mut telling = self.telling.lock().await;
        let Some(known) = self.informers.nodes.get("", node) else {
            telling.remove(node);
            if self.informers.attachments_of_node(node).is_empty() {
                self.memory.lock().gone.remove(node);
            }
            return Ok(());
        };
        let said = known.status.as_ref().and_then(|s| s.volumes_attached.clone()).unwrap_or_default();
        let others = said.iter().filter(|volume| Volume::parse(&volume.name).is_none()).cloned();
        let attached = self.informers.attachments_of_node(node);
        let attached: BTreeSet<String> = attached
            .iter()
            .filter(|a| !is_deleting(&***a) && a.status.as_ref().is_some_and(|status| status.attached))
            .filter_map(|a| self.informers.of_attachment(a))
            .filter(|volume| !self.memory.lock().detaching.contains(&(volume.clone(), node.to_owned())))
            .map(|volume| volume.unique())
            .collect();
        let said_of_csi: BTreeSet<String> =
            said.iter().filter(|v| Volume::parse(&v.name).is_some()).map(|v| v.name.clone()).collect();
        // What the informer holds may be older than what was told last.
        if said_of_csi == attached && telling.get(node).is_none_or(|last| *last == attached) {
            return Ok(());
        }
        let own =
            attached.iter().map(|name| AttachedVolume { name: name.clone(), device_path: String::new() });
        let all: Vec<AttachedVolume> = others.chain(own).collect();
        let patch = json!({"status": {"volumesAttached": all}});
        let api: Api<Node> = Api::all(self.client.clone());
        match api.patch_status(node, &PatchParams::default(), &Patch::Merge(patch)).await {
            Err(error) if is_not_found(&error) => {}
            other => drop(other?),
        }
        telling.insert(node.to_owned(), attached);
        Ok(())
    }
}

/// By whom a volume is used already, as far as a pod's namespace may know.
fn used_by(pod: &Pod, users: &[Arc<Pod>]) -> String {
    let (here, elsewhere): (Vec<_>, Vec<_>) =
        users.iter().partition(|other| namespace(&***other) == namespace(pod));
    let names: Vec<&str> = here.iter().map(|pod| name(&***pod)).collect();
    match (names.is_empty(), elsewhere.len()) {
        (true, 0) => {
            "Volume is already exclusively attached to one node and can't be attached to another".to_owned()
        }
        (true, others) => format!("Volume is already used by {others} pod(s) in different namespaces"),
        (false, 0) => format!("Volume is already used by pod(s) {}", names.join(", ")),
        (false, others) => format!(
            "Volume is already used by pod(s) {} and {others} pod(s) in different namespaces",
            names.join(", ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_gone_is_remembered_only_while_something_is_attached_to_it() {
        let node = |name: &str, in_use: &[&str]| -> Node {
            let node = json!({"metadata": {"name": name}, "status": {"volumesInUse": in_use}});
            serde_json::from_value(node).expect("a node")
        };
        let mut memory = Memory::default();
        memory.node_gone(&node("bare", &["v"]), false);
        memory.node_gone(&node("idle", &[]), true);
        assert!(memory.gone.is_empty());
        memory.node_gone(&node("busy", &["v"]), true);
        assert!(memory.gone_with("busy", "v") && !memory.gone_with("busy", "w"));
    }

    #[test]
    fn names_of_pods_stay_in_their_namespace() {
        let pod = |namespace: &str, name: &str| -> Arc<Pod> {
            let pod = json!({"metadata": {"namespace": namespace, "name": name}});
            Arc::new(serde_json::from_value(pod).expect("a pod"))
        };
        let own = pod("a", "own");
        for (users, said) in [
            (vec![], "Volume is already exclusively attached to one node and can't be attached to another"),
            (vec![pod("a", "x"), pod("a", "y")], "Volume is already used by pod(s) x, y"),
            (vec![pod("b", "x")], "Volume is already used by 1 pod(s) in different namespaces"),
            (
                vec![pod("a", "x"), pod("b", "y")],
                "Volume is already used by pod(s) x and 1 pod(s) in different namespaces",
            ),
        ] {
            assert_eq!(used_by(&own, &users), said);
        }
    }
}
