//! Which volumes are to be attached where: what pods, claims, PersistentVolumes and drivers say together.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    CSIPersistentVolumeSource, Node, PersistentVolume, PersistentVolumeClaim, Pod,
};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use krate_client::Informer;
use sha2::{Digest as _, Sha256};

use crate::meta::{is_deleting, is_terminal, name, namespace, node_of, uid};

const PLUGIN: &str = "kubernetes.io/csi/";
/// Says of a node that its volumes are attached by a controller.
const MANAGED: &str = "volumes.kubernetes.io/controller-managed-attach-detach";

const BY_CLAIM: &str = "attach-claim";
const BY_NODE: &str = "attach-node";
const BY_VOLUME: &str = "attach-volume";
const BY_NAME: &str = "attach-persistent-volume";

/// A volume of a driver, as node statuses name it: `kubernetes.io/csi/<driver>^<handle>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Volume {
    pub driver: String,
    pub handle: String,
}

impl Volume {
    pub fn of(pv: &PersistentVolume) -> Option<Self> {
        source(pv).map(|csi| Volume { driver: csi.driver.clone(), handle: csi.volume_handle.clone() })
    }

    /// The volume that a node's status names; none when it is not of a CSI driver.
    pub fn parse(unique: &str) -> Option<Self> {
        let (driver, handle) = unique.strip_prefix(PLUGIN)?.split_once('^')?;
        Some(Volume { driver: driver.to_owned(), handle: handle.to_owned() })
    }

    pub fn unique(&self) -> String {
        format!("{PLUGIN}{}^{}", self.driver, self.handle)
    }

    /// The name of the object that says whether it is attached to a node.
    pub fn attachment(&self, node: &str) -> String {
        let text = format!("{}{}{node}", self.handle, self.driver);
        format!("csi-{}", hex::encode(Sha256::digest(text.as_bytes())))
    }
}

fn source(pv: &PersistentVolume) -> Option<&CSIPersistentVolumeSource> {
    pv.spec.as_ref()?.csi.as_ref()
}

/// What is read.
#[derive(Clone)]
pub struct Informers {
    pub pods: Informer<Pod>,
    pub claims: Informer<PersistentVolumeClaim>,
    pub volumes: Informer<PersistentVolume>,
    pub nodes: Informer<Node>,
    pub drivers: Informer<CSIDriver>,
    pub attachments: Informer<VolumeAttachment>,
}

impl Informers {
    pub fn new(informers: &krate_client::Informers) -> Self {
        Informers {
            pods: informers.of(),
            claims: informers.of(),
            volumes: informers.of(),
            nodes: informers.of(),
            drivers: informers.of(),
            attachments: informers.of(),
        }
    }

    pub async fn synced(&self) {
        tokio::join!(
            self.pods.synced(),
            self.claims.synced(),
            self.volumes.synced(),
            self.nodes.synced(),
            self.drivers.synced(),
            self.attachments.synced(),
        );
    }

    pub fn add_indexes(&self) {
        self.pods.add_index(BY_CLAIM, claims_of);
        self.pods.add_index(BY_NODE, |pod| node_of(pod).map(str::to_owned).into_iter().collect());
        self.volumes.add_index(BY_VOLUME, |pv| Volume::of(pv).map(|v| v.unique()).into_iter().collect());
        self.attachments.add_index(BY_NODE, |a| vec![a.spec.node_name.clone()]);
        self.attachments
            .add_index(BY_NAME, |a| a.spec.source.persistent_volume_name.clone().into_iter().collect());
    }

    /// The volumes of a pod.
    pub fn of_pod(&self, pod: &Pod) -> Vec<Volume> {
        claims_of(pod).iter().filter_map(|claim| Volume::of(&*self.bound(claim)?)).collect()
    }

    /// The PersistentVolume that a claim, `namespace/name`, leads to and that says so too.
    fn bound(&self, claim: &str) -> Option<Arc<PersistentVolume>> {
        let (namespace, name) = claim.split_once('/')?;
        let claim = self.claims.get(namespace, name)?;
        let is_bound = claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
        let pv = self.volumes.get("", claim.spec.as_ref()?.volume_name.as_deref().filter(|_| is_bound)?)?;
        let of = pv.spec.as_ref()?.claim_ref.as_ref()?.uid.as_deref();
        (of == Some(uid(&*claim))).then_some(pv)
    }

    /// The PersistentVolumes that are this volume; there should be one.
    pub fn persistent(&self, volume: &Volume) -> Vec<Arc<PersistentVolume>> {
        self.volumes.by_index(BY_VOLUME, &volume.unique())
    }

    pub fn pods_of_claim(&self, namespace: &str, name: &str) -> Vec<Arc<Pod>> {
        self.pods.by_index(BY_CLAIM, &format!("{namespace}/{name}"))
    }

    pub fn pods_of_node(&self, node: &str) -> Vec<Arc<Pod>> {
        self.pods.by_index(BY_NODE, node)
    }

    pub fn attachments_of_node(&self, node: &str) -> Vec<Arc<VolumeAttachment>> {
        self.attachments.by_index(BY_NODE, node)
    }

    /// Where a volume is attached or being so, by node.
    pub fn attached(&self, volume: &Volume) -> BTreeMap<String, Arc<VolumeAttachment>> {
        let known = self.persistent(volume);
        let all = if known.is_empty() {
            // What is left of a volume that is no more is found by its name alone.
            self.attachments.list()
        } else {
            known.iter().flat_map(|pv| self.attachments.by_index(BY_NAME, name(&**pv))).collect()
        };
        let is_it = |a: &Arc<VolumeAttachment>| {
            a.spec.attacher == volume.driver && name(&**a) == volume.attachment(&a.spec.node_name)
        };
        all.into_iter().filter(is_it).map(|a| (a.spec.node_name.clone(), a)).collect()
    }

    /// Whether a driver's volumes are attached at all; they are where the API says nothing.
    pub fn attaches(&self, driver: &str) -> bool {
        self.drivers.get("", driver).and_then(|d| d.spec.attach_required).unwrap_or(true)
    }

    /// The nodes at which a volume is wanted, with the pods that want it, and whose claim that is.
    pub fn wanted(&self, volume: &Volume) -> BTreeMap<String, Vec<Arc<Pod>>> {
        let mut found: BTreeMap<String, Vec<Arc<Pod>>> = BTreeMap::new();
        if !self.attaches(&volume.driver) {
            return found;
        }
        for pv in self.persistent(volume) {
            let Some(claim) = pv.spec.as_ref().and_then(|s| s.claim_ref.clone()) else { continue };
            let (namespace, claim) = (claim.namespace.unwrap_or_default(), claim.name.unwrap_or_default());
            let is_bound =
                self.bound(&format!("{namespace}/{claim}")).is_some_and(|b| name(&*b) == name(&*pv));
            for pod in self.pods_of_claim(&namespace, &claim) {
                let Some(node) = node_of(&pod).filter(|_| is_bound && !has_ended(&pod)) else { continue };
                if self.nodes.get("", node).is_some_and(|node| is_managed(&node)) {
                    found.entry(node.to_owned()).or_default().push(Arc::clone(&pod));
                }
            }
        }
        found
    }

    /// The volume that an attachment is of: its PersistentVolume says that, or, when that is gone, the node's status.
    pub fn of_attachment(&self, attachment: &VolumeAttachment) -> Option<Volume> {
        let pv =
            attachment.spec.source.persistent_volume_name.as_deref().and_then(|n| self.volumes.get("", n));
        if let Some(volume) = pv.as_deref().and_then(Volume::of) {
            return Some(volume);
        }
        let node = self.nodes.get("", &attachment.spec.node_name)?;
        told(&node).into_iter().find(|v| v.attachment(&attachment.spec.node_name) == name(attachment))
    }
}

/// All volumes that a node's status names, attached or in use.
pub fn told(node: &Node) -> Vec<Volume> {
    let status = node.status.clone().unwrap_or_default();
    let attached = status.volumes_attached.unwrap_or_default().into_iter().map(|volume| volume.name);
    attached
        .chain(status.volumes_in_use.unwrap_or_default())
        .filter_map(|name| Volume::parse(&name))
        .collect()
}

/// The claims of a pod, as `namespace/name`.
fn claims_of(pod: &Pod) -> Vec<String> {
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    let claim = |volume: &k8s_openapi::api::core::v1::Volume| match &volume.persistent_volume_claim {
        Some(source) => Some(source.claim_name.clone()),
        None => volume.ephemeral.as_ref().map(|_| format!("{}-{}", name(pod), volume.name)),
    };
    volumes.iter().filter_map(claim).map(|claim| format!("{}/{claim}", namespace(pod))).collect()
}

/// Whether nothing of a pod runs, and nothing will.
fn has_ended(pod: &Pod) -> bool {
    let statuses = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    let runs = |s: &k8s_openapi::api::core::v1::ContainerStatus| {
        s.state
            .as_ref()
            .is_some_and(|s| s.running.is_some() || (s.terminated.is_none() && s.waiting.is_none()))
    };
    is_terminal(pod) || (is_deleting(pod) && !statuses.into_iter().any(runs))
}

fn is_managed(node: &Node) -> bool {
    node.metadata.annotations.as_ref().and_then(|a| a.get(MANAGED)).is_some_and(|value| value == "true")
}

/// Whether a volume may be attached to several nodes, as far as its access modes say.
pub fn is_shareable(pv: &PersistentVolume) -> bool {
    let modes = pv.spec.as_ref().and_then(|s| s.access_modes.as_deref()).unwrap_or_default();
    modes.is_empty() || modes.iter().any(|mode| mode == "ReadWriteMany" || mode == "ReadOnlyMany")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn volumes_are_named_as_kubelets_name_them() {
        let volume = Volume { driver: "d.example.com".to_owned(), handle: "h^1".to_owned() };
        assert_eq!(volume.unique(), "kubernetes.io/csi/d.example.com^h^1");
        assert_eq!(Volume::parse(&volume.unique()), Some(volume.clone()));
        assert_eq!(Volume::parse("kubernetes.io/aws-ebs/vol"), None);
        assert_eq!(
            volume.attachment("n"),
            format!("csi-{}", hex::encode(Sha256::digest(b"h^1d.example.comn")))
        );
    }

    #[test]
    fn a_pod_wants_its_volumes_until_nothing_of_it_runs() {
        let pod = |metadata: Value, status: Value| -> Pod {
            serde_json::from_value(json!({"metadata": metadata, "status": status})).expect("a pod")
        };
        let going = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
        let with = |state: Value| {
            json!({"containerStatuses": [{"name": "c", "state": state, "image": "", "imageID": "",
            "ready": false, "restartCount": 0}]})
        };
        for (metadata, status, expected) in [
            (json!({}), json!({"phase": "Pending"}), false),
            (json!({}), json!({"phase": "Failed"}), true),
            (going.clone(), with(json!({"running": {}})), false),
            (going.clone(), with(json!({"terminated": {"exitCode": 0}})), true),
            (going, json!({}), true),
        ] {
            assert_eq!(has_ended(&pod(metadata, status.clone())), expected, "{status}");
        }
    }

    #[test]
    fn volumes_of_many_nodes_are_shareable() {
        for (modes, expected) in [
            (json!([]), true),
            (json!(["ReadWriteOnce"]), false),
            (json!(["ReadWriteOncePod"]), false),
            (json!(["ReadWriteOnce", "ReadOnlyMany"]), true),
            (json!(["ReadWriteMany"]), true),
        ] {
            let pv: PersistentVolume =
                serde_json::from_value(json!({"spec": {"accessModes": modes}})).expect("a volume");
            assert_eq!(is_shareable(&pv), expected, "{modes}");
        }
    }
}
