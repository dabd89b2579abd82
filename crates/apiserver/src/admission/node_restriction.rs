//! NodeRestriction: a kubelet writes its own node, and the pods that are bound to it, and nothing else
//! (<https://kubernetes.io/docs/reference/access-authn-authz/admission-controllers/#noderestriction>).

mod tokens;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::certificates::v1beta1::PodCertificateRequest;
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod, PodSpec, ServiceAccount, Volume};
use k8s_openapi::api::resource::v1::ResourceSlice;
use krate_api::StatusError;

use super::certificates::Subject;
use super::{Admit, Attributes, Operation, lookup};
use crate::auth::Authorizer;
use crate::kinds::Kinds;
use crate::node_authorizer::{self, Referent};
use crate::path::unclassified;
use crate::registry::core::pod_spec::{MIRROR, is_mirror};
use crate::registry::erased::Object;

const LEASES: &str = "kube-node-lease";
/// Labels of whose domains only an administrator decides.
const RESTRICTED: &str = "node-restriction.kubernetes.io";
/// The labels of Kubernetes' own domains that a kubelet may give its node; the last are domains of them.
const OWN_LABELS: [&str; 10] = [
    "kubernetes.io/hostname",
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "topology.kubernetes.io/region",
];
const OWN_ZONE: &str = "topology.kubernetes.io/zone";
const OWN_DOMAINS: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];

/// Who signs what a kubelet shows.
const NODE_SIGNERS: [&str; 2] =
    ["kubernetes.io/kubelet-serving", "kubernetes.io/kube-apiserver-client-kubelet"];

pub struct NodeRestriction {
    kinds: Arc<Kinds>,
    authorizer: Authorizer,
}

impl NodeRestriction {
    pub fn new(kinds: Arc<Kinds>, authorizer: Authorizer) -> Self {
        NodeRestriction { kinds, authorizer }
    }
}

#[async_trait]
impl Admit for NodeRestriction {
    async fn mutate(
        &self,
        attributes: &Attributes,
        object: &mut dyn Object,
        _old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        // Of a token counts what is asked for, before anything is filled in.
        let about = (attributes.kind.group, attributes.kind.plural, attributes.subresource.as_str());
        if about != ("", "serviceaccounts", "token") {
            return Ok(());
        }
        let node = node_authorizer::node_of(&attributes.user.name, &attributes.user.groups);
        match node.filter(|node| !node.is_empty()) {
            Some(node) => self.token(attributes, node, &*object).await,
            None => Ok(()),
        }
    }

    async fn validate(
        &self,
        attributes: &Attributes,
        object: Option<&dyn Object>,
        old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        let Some(node) = node_authorizer::node_of(&attributes.user.name, &attributes.user.groups) else {
            return Ok(());
        };
        let refused = |why: String| Err(attributes.forbidden(why));
        if node.is_empty() {
            return refused(format!("could not determine node from user {:?}", attributes.user.name));
        }
        let name = object.or(old).and_then(|object| object.meta().name.as_deref()).unwrap_or_default();
        let pod = |object: Option<&dyn Object>| object.and_then(|object| object.is::<Pod>().cloned());
        let judged = match (attributes.kind.group, attributes.kind.plural, attributes.subresource.as_str()) {
            ("", "pods", "") => match (attributes.operation, pod(object), pod(old)) {
                (Operation::Create, Some(pod), _) => {
                    mirror(node, &pod).or_else(refused)?;
                    self.owner(attributes, node, &pod).await?;
                    references(node, &pod)
                }
                (Operation::Delete, _, Some(pod)) if node_name(&pod) == node => Ok(()),
                (Operation::Delete, ..) => {
                    Err(format!("node {node:?} can only delete pods with spec.nodeName set to itself"))
                }
                _ => Err(format!(
                    "unexpected operation \"UPDATE\", node {node:?} can only create and delete mirror pods"
                )),
            },
            ("", "pods", "status") => match (pod(object), pod(old)) {
                (Some(new), Some(old)) => status(node, &new, &old),
                _ => Ok(()),
            },
            ("", "pods", "eviction") => {
                let (namespace, name) = (&attributes.namespace, &attributes.name);
                let pod = lookup::find::<Pod>(&self.kinds, "", "pods", namespace, name).await?;
                eviction(node, pod.as_ref())
            }
            ("", "pods", other) => {
                Err(format!("unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"))
            }
            ("", "nodes", _) if name != node => {
                Err(format!("node {node:?} is not allowed to modify node {name:?}"))
            }
            ("", "nodes", _) => own_node(node, object, old),
            ("", "persistentvolumeclaims", "status") => claim(node, object, old),
            ("", "persistentvolumeclaims", _) => Err("may only update PVC status".to_owned()),
            ("coordination.k8s.io", "leases", _) if attributes.namespace != LEASES => {
                Err(format!("can only access leases in the {LEASES:?} system namespace"))
            }
            ("coordination.k8s.io", "leases", _) if name != node => {
                Err("can only access node lease with the same name as the requesting node".to_owned())
            }
            ("storage.k8s.io", "csinodes", _) if name != node => {
                Err("can only access CSINode with the same name as the requesting node".to_owned())
            }
            ("resource.k8s.io", "resourceslices", _) => slice(node, object, old),
            ("certificates.k8s.io", "certificatesigningrequests", "") => own_certificate(node, object, old),
            ("certificates.k8s.io", "podcertificaterequests", _) => {
                return self.pod_certificate(attributes, node, object).await;
            }
            _ => Ok(()),
        };
        judged.or_else(refused)
    }
}

/// A kubelet asks for certificates of its own node alone.
fn own_certificate(node: &str, object: Option<&dyn Object>, old: Option<&dyn Object>) -> Result<(), String> {
    let made = object.filter(|_| old.is_none()).and_then(|object| object.is::<CertificateSigningRequest>());
    let Some(csr) = made.filter(|csr| NODE_SIGNERS.contains(&csr.spec.signer_name.as_str())) else {
        return Ok(());
    };
    let subject =
        Subject::of_request(&csr.spec.request.0).map_err(|why| format!("unable to parse csr: {why}"))?;
    if subject.common_name != format!("system:node:{node}") {
        return Err(format!("can only create a node CSR with CN=system:node:{node}"));
    }
    Ok(())
}

impl NodeRestriction {
    /// A kubelet asks for certificates of the pods that it runs, as they are (KEP-4317). What it may know sooner than
    /// this server is no refusal for good.
    async fn pod_certificate(
        &self,
        attributes: &Attributes,
        node: &str,
        object: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        let refused = |why: String| Err(attributes.forbidden(why));
        let operation = match attributes.operation {
            Operation::Create if attributes.subresource.is_empty() => None,
            Operation::Create => Some("CREATE"),
            Operation::Update => Some("UPDATE"),
            Operation::Delete => Some("DELETE"),
            Operation::Connect => Some("CONNECT"),
        };
        let request = object.and_then(|object| object.is::<PodCertificateRequest>());
        let (None, Some(request)) = (operation, request) else {
            return refused(format!("unexpected operation {}", operation.unwrap_or_default()));
        };
        let (spec, namespace) = (&request.spec, attributes.namespace.as_str());
        let pod_name = format!("{namespace}/{}", spec.pod_name);
        let missing = |what: &str, name: &str, plural: &str, found: &str| {
            unclassified(format!(
                "while retrieving {what} {name:?} named in the PodCertificateRequest: {plural} {found:?} not found"
            ))
        };
        if spec.node_name != node {
            return refused(format!(
                "PodCertificateRequest.Spec.NodeName={:?}, which is not the requesting node {node:?}",
                spec.node_name
            ));
        }
        let of_pod = format!("PodCertificateRequest for pod {pod_name:?}");
        let found = lookup::find::<Node>(&self.kinds, "", "nodes", "", node).await?;
        let found = found.ok_or_else(|| missing("node", node, "nodes", node))?;
        let uid = found.metadata.uid.unwrap_or_default();
        if uid != spec.node_uid {
            let why = format!(
                "{of_pod} names node UID {:?}, inconsistent with the running node ({uid:?})",
                spec.node_uid
            );
            return Err(unclassified(why));
        }
        let pod = lookup::find::<Pod>(&self.kinds, "", "pods", namespace, &spec.pod_name).await?;
        let pod = pod.ok_or_else(|| missing("pod", &pod_name, "pods", &spec.pod_name))?;
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        if uid != spec.pod_uid {
            let why = format!(
                "{of_pod} contains pod UID ({:?}) which differs from running pod {uid:?}",
                spec.pod_uid
            );
            return Err(unclassified(why));
        }
        if node_name(&pod) != node {
            return refused(format!(
                "pod {pod_name:?} is not running on node {node:?} named in the PodCertificateRequest"
            ));
        }
        if is_mirror(&pod.metadata) {
            return refused(format!("pod {pod_name:?} is a mirror pod"));
        }
        let account = pod.spec.and_then(|spec| spec.service_account_name).unwrap_or_default();
        if account != spec.service_account_name {
            return refused(format!(
                "{of_pod} contains serviceAccountName ({:?}) that differs from running pod ({account:?})",
                spec.service_account_name
            ));
        }
        let found =
            lookup::find::<ServiceAccount>(&self.kinds, "", "serviceaccounts", namespace, &account).await?;
        let found = found.ok_or_else(|| {
            missing("service account", &format!("{namespace}/{account}"), "serviceaccounts", &account)
        })?;
        let uid = found.metadata.uid.unwrap_or_default();
        if uid != spec.service_account_uid {
            let why = format!(
                "{of_pod} names service account UID {:?}, which differs from the running service account ({uid:?})",
                spec.service_account_uid
            );
            return Err(unclassified(why));
        }
        Ok(())
    }

    /// A mirror pod is owned by its node.
    async fn owner(&self, attributes: &Attributes, node: &str, pod: &Pod) -> Result<(), StatusError> {
        let refused = |why: String| Err(attributes.forbidden(why));
        let owner = match pod.metadata.owner_references.as_deref().unwrap_or_default() {
            [owner] if owner.api_version == "v1" && owner.kind == "Node" && owner.name == node => owner,
            [_, _, ..] => {
                return refused(format!(
                    "node {node:?} can only create pods with a single owner reference set to itself"
                ));
            }
            _ => {
                return refused(format!(
                    "node {node:?} can only create pods with an owner reference set to itself"
                ));
            }
        };
        if owner.controller != Some(true) {
            return refused(format!(
                "node {node:?} can only create pods with a controller owner reference set to itself"
            ));
        }
        if owner.block_owner_deletion == Some(true) {
            return refused(format!("node {node:?} must not set blockOwnerDeletion on an owner reference"));
        }
        let found = lookup::find::<Node>(&self.kinds, "", "nodes", "", node).await?;
        let uid = match found {
            Some(found) => found.metadata.uid.unwrap_or_default(),
            None => return Err(StatusError::not_found("", "nodes", node)),
        };
        if owner.uid != uid {
            return refused(format!("node {node} UID mismatch: expected {} got {uid}", owner.uid));
        }
        Ok(())
    }
}

fn node_name(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

fn mirror(node: &str, pod: &Pod) -> Result<(), String> {
    if !is_mirror(&pod.metadata) {
        return Err(format!(
            "pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"
        ));
    }
    if node_name(pod) != node {
        return Err(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
    }
    Ok(())
}

/// What a pod refers to, its node may read: a node must not make itself a reader.
fn references(node: &str, pod: &Pod) -> Result<(), String> {
    match pod.spec.as_ref().and_then(referred) {
        None => Ok(()),
        Some(told) => Err(format!("node {node:?} can not create pods that reference {told}")),
    }
}

fn referred(spec: &PodSpec) -> Option<&'static str> {
    let all = node_authorizer::references(spec);
    for (what, told) in [
        (Referent::ServiceAccount, "serviceaccounts"),
        (Referent::Secret, "secrets"),
        (Referent::ConfigMap, "configmaps"),
    ] {
        if all.iter().any(|(kind, _)| *kind == what) {
            return Some(told);
        }
    }
    if spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty()) {
        return Some("resourceclaims");
    }
    spec.volumes.iter().flatten().find_map(referred_by)
}

/// What a volume refers to besides secrets and configurations that it names.
fn referred_by(volume: &Volume) -> Option<&'static str> {
    let plain = [
        (volume.csi.is_some(), "csidrivers (via CSI volumes)"),
        (volume.glusterfs.is_some(), "endpoints (via glusterFS volumes)"),
        (volume.persistent_volume_claim.is_some(), "persistentvolumeclaims"),
        (volume.ephemeral.is_some(), "persistentvolumeclaims (via ephemeral volumes)"),
    ];
    let projected = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
    let projected = projected.flat_map(|source| {
        [
            (source.service_account_token.is_some(), "serviceaccounts (via projected volumes)"),
            (source.cluster_trust_bundle.is_some(), "clustertrustbundles"),
            (source.pod_certificate.is_some(), "podcertificates"),
        ]
    });
    plain.into_iter().chain(projected).find(|(is_there, _)| *is_there).map(|(_, told)| told)
}

fn eviction(node: &str, pod: Option<&Pod>) -> Result<(), String> {
    if pod.is_none_or(|pod| node_name(pod) == node) {
        return Ok(());
    }
    Err(format!("node {node} can only evict pods with spec.nodeName set to itself"))
}

fn status(node: &str, new: &Pod, old: &Pod) -> Result<(), String> {
    if node_name(old) != node {
        return Err(format!(
            "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
        ));
    }
    let labels = |pod: &Pod| pod.metadata.labels.clone().unwrap_or_default();
    if labels(new) != labels(old) {
        return Err(format!("node {node:?} cannot update labels through pod status"));
    }
    let claims =
        |pod: &Pod| pod.status.as_ref().and_then(|s| s.resource_claim_statuses.clone()).unwrap_or_default();
    if claims(new) != claims(old) {
        return Err(format!("node {node:?} cannot update resource claim statues"));
    }
    let extended = |pod: &Pod| pod.status.as_ref().and_then(|s| s.extended_resource_claim_status.clone());
    if extended(new) != extended(old) {
        return Err(format!("node {node:?} cannot update extended resource claim status"));
    }
    Ok(())
}

fn own_node(node: &str, new: Option<&dyn Object>, old: Option<&dyn Object>) -> Result<(), String> {
    let Some(new) = new.and_then(|object| object.is::<Node>()) else { return Ok(()) };
    let none = BTreeMap::new();
    let labels = new.metadata.labels.as_ref().unwrap_or(&none);
    let source = |node: &Node| node.spec.as_ref().and_then(|spec| spec.config_source.clone());
    let Some(old) = old.and_then(|object| object.is::<Node>()) else {
        if source(new).is_some() {
            return Err(format!("node {node:?} is not allowed to create pods with a non-nil configSource"));
        }
        let forbidden = forbidden_labels(labels, &none);
        if forbidden.is_empty() {
            return Ok(());
        }
        return Err(format!("node {node:?} is not allowed to set the following labels: {forbidden}"));
    };
    if source(new).is_some() && source(new) != source(old) {
        return Err(format!(
            "node {node:?} is not allowed to update configSource to a new non-nil configSource"
        ));
    }
    let taints = |node: &Node| node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    if taints(new) != taints(old) {
        return Err(format!("node {node:?} is not allowed to modify taints"));
    }
    let owners = |node: &Node| node.metadata.owner_references.clone().unwrap_or_default();
    if owners(new) != owners(old) {
        return Err(format!("node {node:?} is not allowed to modify ownerReferences"));
    }
    let forbidden = forbidden_labels(labels, old.metadata.labels.as_ref().unwrap_or(&none));
    if forbidden.is_empty() { Ok(()) } else { Err(format!("is not allowed to modify labels: {forbidden}")) }
}

/// The labels that differ and that a kubelet may not decide about, in a row.
fn forbidden_labels(new: &BTreeMap<String, String>, old: &BTreeMap<String, String>) -> String {
    let keys: BTreeSet<&String> = new.keys().chain(old.keys()).collect();
    let differs = |key: &&&String| new.get(**key) != old.get(**key);
    let forbidden: Vec<&str> =
        keys.iter().filter(differs).map(|key| key.as_str()).filter(|key| is_forbidden(key)).collect();
    forbidden.join(", ")
}

fn is_forbidden(label: &str) -> bool {
    let domain = label.split_once('/').map_or("", |(domain, _)| domain);
    let within = |of: &str| domain == of || domain.strip_suffix(of).is_some_and(|rest| rest.ends_with('.'));
    if within(RESTRICTED) {
        return true;
    }
    let own = OWN_LABELS.contains(&label) || label == OWN_ZONE || OWN_DOMAINS.iter().any(|of| within(of));
    (within("kubernetes.io") || within("k8s.io")) && !own
}

fn claim(node: &str, new: Option<&dyn Object>, old: Option<&dyn Object>) -> Result<(), String> {
    // What the kubelet tells of a claim is how far it has been made larger.
    let rest = |object: Option<&dyn Object>| {
        let mut claim = object?.is::<PersistentVolumeClaim>()?.clone();
        claim.metadata.resource_version = None;
        claim.metadata.managed_fields = None;
        let status = claim.status.get_or_insert_default();
        status.capacity = None;
        status.conditions = None;
        status.allocated_resource_statuses = None;
        status.allocated_resources = None;
        Some(claim)
    };
    if rest(new) == rest(old) {
        return Ok(());
    }
    Err(format!(
        "node {node:?} is not allowed to update fields other than status.quantity and status.conditions"
    ))
}

fn slice(node: &str, new: Option<&dyn Object>, old: Option<&dyn Object>) -> Result<(), String> {
    let (object, verb) = match (new, old) {
        (Some(new), None) => (new, "create"),
        (None, Some(old)) => (old, "delete"),
        // Who is authorized to change one has it.
        _ => return Ok(()),
    };
    if object.is::<ResourceSlice>().is_none_or(|slice| slice.spec.node_name.as_deref() == Some(node)) {
        return Ok(());
    }
    Err(format!("can only {verb} ResourceSlice with the same NodeName as the requesting node"))
}

#[cfg(test)]
mod tests;
