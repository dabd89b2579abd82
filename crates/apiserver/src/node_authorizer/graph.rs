//! What belongs to which node: pods, what they refer to, the volumes behind their claims, and what names a node itself.

use std::collections::{HashMap, HashSet};

use k8s_openapi::api::core::v1::{PersistentVolume, Pod, PodSpec, SecretReference, Volume};

use crate::registry::core::pod_spec;

/// What a pod may refer to by name in its namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Referent {
    ConfigMap,
    Secret,
    Claim,
    ServiceAccount,
    ResourceClaim,
}

/// A namespace and a name.
pub type Key = (String, String);
pub type Reference = (Referent, String);

/// A volume that is bound to a claim, and the secrets by which nodes reach it.
struct Bound {
    claim: Key,
    secrets: HashSet<Key>,
}

#[derive(Default)]
pub struct Graph {
    /// The node of a bound pod, and what the pod refers to.
    pods: HashMap<Key, (String, HashSet<Reference>)>,
    /// How many pods of each node refer to an object.
    uses: HashMap<(Referent, Key), HashMap<String, usize>>,
    volumes: HashMap<String, Bound>,
    /// The volumes of a secret.
    by_secret: HashMap<Key, HashSet<String>>,
    /// The node of a VolumeAttachment.
    pub attachments: HashMap<String, String>,
    /// The node of a ResourceSlice.
    pub slices: HashMap<String, String>,
    /// The node of a PodCertificateRequest.
    pub requests: HashMap<Key, String>,
}

impl Graph {
    pub fn set_pod(&mut self, key: Key, pod: &Pod) {
        self.forget_pod(&key);
        let Some(spec) = &pod.spec else { return };
        let Some(node) = spec.node_name.clone().filter(|n| !n.is_empty()) else { return };
        // What a node says itself must not lead it to what is others'.
        let is_mirror = pod_spec::is_mirror(&pod.metadata);
        let references = if is_mirror { HashSet::new() } else { all_references(pod, spec, &key.1) };
        for (what, name) in &references {
            let used = (*what, (key.0.clone(), name.clone()));
            *self.uses.entry(used).or_default().entry(node.clone()).or_default() += 1;
        }
        self.pods.insert(key, (node, references));
    }

    pub fn forget_pod(&mut self, pod: &Key) {
        let Some((node, references)) = self.pods.remove(pod) else { return };
        for (what, name) in references {
            let key = (what, (pod.0.clone(), name));
            let Some(nodes) = self.uses.get_mut(&key) else { continue };
            if let Some(count) = nodes.get_mut(&node) {
                *count -= 1;
                if *count == 0 {
                    nodes.remove(&node);
                }
            }
            if nodes.is_empty() {
                self.uses.remove(&key);
            }
        }
    }

    pub fn set_volume(&mut self, name: &str, volume: &PersistentVolume) {
        self.forget_volume(name);
        let claim = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
        let Some((namespace, claim)) = claim.and_then(|c| c.namespace.clone().zip(c.name.clone())) else {
            return;
        };
        let secrets = secrets_of(volume, &namespace);
        for secret in &secrets {
            self.by_secret.entry(secret.clone()).or_default().insert(name.to_owned());
        }
        self.volumes.insert(name.to_owned(), Bound { claim: (namespace, claim), secrets });
    }

    pub fn forget_volume(&mut self, name: &str) {
        let Some(bound) = self.volumes.remove(name) else { return };
        for secret in bound.secrets {
            if let Some(volumes) = self.by_secret.get_mut(&secret) {
                volumes.remove(name);
                if volumes.is_empty() {
                    self.by_secret.remove(&secret);
                }
            }
        }
    }

    /// Whether a pod of the node refers to an object, itself or by a volume of its claims.
    pub fn refers(&self, node: &str, what: Referent, namespace: &str, name: &str) -> bool {
        let key = (namespace.to_owned(), name.to_owned());
        let by_volume = || {
            let volumes = (what == Referent::Secret).then(|| self.by_secret.get(&key)).flatten();
            volumes.into_iter().flatten().any(|volume| self.has_volume(node, volume))
        };
        self.uses.get(&(what, key.clone())).is_some_and(|nodes| nodes.contains_key(node)) || by_volume()
    }

    /// Whether a pod of the node claims a volume.
    pub fn has_volume(&self, node: &str, name: &str) -> bool {
        let Some(bound) = self.volumes.get(name) else { return false };
        let (namespace, claim) = &bound.claim;
        self.refers(node, Referent::Claim, namespace, claim)
    }

    /// The node of a pod, if it is known and has one.
    pub fn node_of(&self, namespace: &str, name: &str) -> Option<&str> {
        self.pods.get(&(namespace.to_owned(), name.to_owned())).map(|(node, _)| node.as_str())
    }
}

/// What a pod refers to, the claims included that were made for it.
fn all_references(pod: &Pod, spec: &PodSpec, name: &str) -> HashSet<Reference> {
    let mut out = references(spec);
    for volume in spec.volumes.iter().flatten().filter(|volume| volume.ephemeral.is_some()) {
        out.insert((Referent::Claim, format!("{name}-{}", volume.name)));
    }
    let Some(status) = &pod.status else { return out };
    let made = status.resource_claim_statuses.iter().flatten();
    out.extend(
        made.filter_map(|claim| claim.resource_claim_name.clone())
            .map(|name| (Referent::ResourceClaim, name)),
    );
    if let Some(extended) = &status.extended_resource_claim_status {
        out.insert((Referent::ResourceClaim, extended.resource_claim_name.clone()));
    }
    out
}

/// The secrets by which nodes reach a volume; those that only controllers need are not theirs.
fn secrets_of(volume: &PersistentVolume, claim_namespace: &str) -> HashSet<Key> {
    let Some(spec) = &volume.spec else { return HashSet::new() };
    let mut out = HashSet::new();
    if let Some(azure) = &spec.azure_file {
        let namespace =
            azure.secret_namespace.as_deref().filter(|n| !n.is_empty()).unwrap_or(claim_namespace);
        out.insert((namespace.to_owned(), azure.secret_name.clone()));
    }
    let csi = spec.csi.as_ref();
    let references: [Option<&SecretReference>; 9] = [
        spec.cephfs.as_ref().and_then(|v| v.secret_ref.as_ref()),
        spec.cinder.as_ref().and_then(|v| v.secret_ref.as_ref()),
        spec.flex_volume.as_ref().and_then(|v| v.secret_ref.as_ref()),
        spec.rbd.as_ref().and_then(|v| v.secret_ref.as_ref()),
        spec.scale_io.as_ref().map(|v| &v.secret_ref),
        spec.iscsi.as_ref().and_then(|v| v.secret_ref.as_ref()),
        csi.and_then(|v| v.node_publish_secret_ref.as_ref()),
        csi.and_then(|v| v.node_stage_secret_ref.as_ref()),
        csi.and_then(|v| v.node_expand_secret_ref.as_ref()),
    ];
    for reference in references.into_iter().flatten() {
        let namespace = reference.namespace.as_deref().filter(|n| !n.is_empty()).unwrap_or(claim_namespace);
        out.insert((namespace.to_owned(), reference.name.clone().unwrap_or_default()));
    }
    if let Some(reference) = spec.storageos.as_ref().and_then(|v| v.secret_ref.as_ref()) {
        let namespace = reference.namespace.clone().unwrap_or_else(|| claim_namespace.to_owned());
        out.insert((namespace, reference.name.clone().unwrap_or_default()));
    }
    out
}

/// What a pod refers to by name.
pub fn references(spec: &PodSpec) -> HashSet<Reference> {
    let mut out = HashSet::new();
    let mut add = |what, name: Option<&String>| {
        if let Some(name) = name.filter(|n| !n.is_empty()) {
            out.insert((what, name.clone()));
        }
    };
    add(Referent::ServiceAccount, spec.service_account_name.as_ref());
    for secret in spec.image_pull_secrets.iter().flatten() {
        add(Referent::Secret, Some(&secret.name));
    }
    for volume in spec.volumes.iter().flatten() {
        add(Referent::ConfigMap, volume.config_map.as_ref().map(|v| &v.name));
        add(Referent::Secret, volume.secret.as_ref().and_then(|v| v.secret_name.as_ref()));
        add(Referent::Claim, volume.persistent_volume_claim.as_ref().map(|v| &v.claim_name));
        for secret in volume_secrets(volume) {
            add(Referent::Secret, Some(secret));
        }
        for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            add(Referent::ConfigMap, source.config_map.as_ref().map(|s| &s.name));
            add(Referent::Secret, source.secret.as_ref().map(|s| &s.name));
        }
    }
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|c| (&c.env, &c.env_from));
    for (env, env_from) in containers.map(|c| (&c.env, &c.env_from)).chain(ephemeral) {
        for source in env_from.iter().flatten() {
            add(Referent::ConfigMap, source.config_map_ref.as_ref().map(|r| &r.name));
            add(Referent::Secret, source.secret_ref.as_ref().map(|r| &r.name));
        }
        for source in env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
            add(Referent::ConfigMap, source.config_map_key_ref.as_ref().map(|r| &r.name));
            add(Referent::Secret, source.secret_key_ref.as_ref().map(|r| &r.name));
        }
    }
    for claim in spec.resource_claims.iter().flatten() {
        add(Referent::ResourceClaim, claim.resource_claim_name.as_ref());
    }
    out
}

/// The secrets by which a volume of a pod is reached.
fn volume_secrets(volume: &Volume) -> Vec<&String> {
    let mut out: Vec<&String> = volume.azure_file.iter().map(|v| &v.secret_name).collect();
    let references = [
        volume.cephfs.as_ref().and_then(|v| v.secret_ref.as_ref()),
        volume.cinder.as_ref().and_then(|v| v.secret_ref.as_ref()),
        volume.csi.as_ref().and_then(|v| v.node_publish_secret_ref.as_ref()),
        volume.flex_volume.as_ref().and_then(|v| v.secret_ref.as_ref()),
        volume.iscsi.as_ref().and_then(|v| v.secret_ref.as_ref()),
        volume.rbd.as_ref().and_then(|v| v.secret_ref.as_ref()),
        volume.scale_io.as_ref().map(|v| &v.secret_ref),
        volume.storageos.as_ref().and_then(|v| v.secret_ref.as_ref()),
    ];
    out.extend(references.into_iter().flatten().map(|reference| &reference.name));
    out
}
