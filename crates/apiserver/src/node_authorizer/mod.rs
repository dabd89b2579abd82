//! The Node authorizer: a kubelet may read what the pods of its node refer to, and write what is its own.
//!
//! It is told of pods, volumes, attachments and slices by whoever watches them. Everything that is not about a single
//! node's objects is as the role `system:node` says.

mod graph;
pub mod metrics;

use k8s_openapi::api::certificates::v1beta1::PodCertificateRequest;
use k8s_openapi::api::core::v1::{PersistentVolume, Pod};
use k8s_openapi::api::rbac::v1::PolicyRule;
use k8s_openapi::api::resource::v1::ResourceSlice;
use k8s_openapi::api::storage::v1::VolumeAttachment;
use krate_api::FieldSelector;
use parking_lot::RwLock;

use self::graph::Graph;
pub use self::graph::{Reference, Referent, references};
use self::metrics::METRICS;
use crate::features::{Features, POD_CERTIFICATE_REQUEST};
use crate::rbac::{self, Ask, Target, matches};

const USER_PREFIX: &str = "system:node:";
const GROUP: &str = "system:nodes";
const LEASES: &str = "kube-node-lease";

/// The name of the node that a user is, if he is one; it may be empty.
pub fn node_of<'a>(user: &'a str, groups: &[String]) -> Option<&'a str> {
    user.strip_prefix(USER_PREFIX).filter(|_| groups.iter().any(|group| group == GROUP))
}

/// The authorizer.
pub struct NodeAuthorizer {
    graph: RwLock<Graph>,
    rules: Vec<PolicyRule>,
    /// Whether kubelets ask for certificates of pods (KEP-4317).
    pod_certificates: bool,
}

impl Default for NodeAuthorizer {
    fn default() -> Self {
        Self::new(&Features::default())
    }
}

/// One question about a resource.
struct Question<'a> {
    node: &'a str,
    verb: &'a str,
    subresource: &'a str,
    namespace: &'a str,
    name: &'a str,
    /// The field selector of a list or a watch.
    fields: &'a str,
}

impl Question<'_> {
    fn is(&self, verbs: &[&str]) -> bool {
        verbs.contains(&self.verb)
    }

    /// Whether only what is of the node is asked for, by this field.
    fn selects_own(&self, field: &str) -> bool {
        let selector = FieldSelector::parse(self.fields);
        selector.is_ok_and(|s| s.exact(field).is_some_and(|value| value == self.node))
    }

    fn unrelated(&self) -> String {
        if self.name.is_empty() {
            return "No Object name found".to_owned();
        }
        format!("no relationship found between node '{}' and this object", self.node)
    }
}

/// Allowed, or why not; the reason may be empty.
type Verdict = Result<(), String>;

fn only(holds: bool, why: &str) -> Verdict {
    if holds { Ok(()) } else { Err(why.to_owned()) }
}

impl NodeAuthorizer {
    pub fn new(features: &Features) -> Self {
        let role = rbac::bootstrap(features)
            .cluster_roles
            .into_iter()
            .find(|role| role.metadata.name.as_deref() == Some("system:node"));
        NodeAuthorizer {
            graph: RwLock::default(),
            rules: role.and_then(|r| r.rules).unwrap_or_default(),
            pod_certificates: features.enabled(POD_CERTIFICATE_REQUEST),
        }
    }

    pub fn set_pod(&self, pod: &Pod) {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let key = (text(&pod.metadata.namespace), text(&pod.metadata.name));
        let _timed = METRICS.timed("AddPod");
        self.graph.write().set_pod(key, pod);
    }

    pub fn forget_pod(&self, namespace: &str, name: &str) {
        let _timed = METRICS.timed("DeletePod");
        self.graph.write().forget_pod(&(namespace.to_owned(), name.to_owned()));
    }

    /// Of a volume as it is, or that it is gone.
    pub fn set_volume(&self, name: &str, volume: Option<&PersistentVolume>) {
        let _timed = METRICS.timed(if volume.is_some() { "AddPV" } else { "DeletePV" });
        let mut graph = self.graph.write();
        match volume {
            Some(volume) => graph.set_volume(name, volume),
            None => graph.forget_volume(name),
        }
    }

    pub fn set_attachment(&self, name: &str, attachment: Option<&VolumeAttachment>) {
        let operation = if attachment.is_some() { "AddVolumeAttachment" } else { "DeleteVolumeAttachment" };
        let _timed = METRICS.timed(operation);
        let mut graph = self.graph.write();
        match attachment {
            Some(attachment) => graph.attachments.insert(name.to_owned(), attachment.spec.node_name.clone()),
            None => graph.attachments.remove(name),
        };
    }

    pub fn set_slice(&self, name: &str, slice: Option<&ResourceSlice>) {
        let operation = if slice.is_some() { "AddResourceSlice" } else { "DeleteResourceSlice" };
        let _timed = METRICS.timed(operation);
        let mut graph = self.graph.write();
        match slice.and_then(|slice| slice.spec.node_name.clone()) {
            Some(node) => graph.slices.insert(name.to_owned(), node),
            None => graph.slices.remove(name),
        };
    }

    pub fn set_request(&self, namespace: &str, name: &str, request: Option<&PodCertificateRequest>) {
        let added = request.is_some();
        let _timed =
            METRICS.timed(if added { "AddPodCertificateRequest" } else { "DeletePodCertificateRequest" });
        let key = (namespace.to_owned(), name.to_owned());
        let mut graph = self.graph.write();
        match request {
            Some(request) => graph.requests.insert(key, request.spec.node_name.clone()),
            None => graph.requests.remove(&key),
        };
    }

    /// Whether it is allowed, and why not. Nobody but a node is allowed anything.
    ///
    /// # Errors
    /// It is not: what is said of that, which may be nothing.
    pub fn decide(&self, ask: &Ask<'_>) -> Verdict {
        let Some(node) = node_of(ask.user, ask.groups) else { return Err(String::new()) };
        if node.is_empty() {
            return Err(format!("unknown node for user {:?}", ask.user));
        }
        let by_role = || only(self.rules.iter().any(|rule| matches(rule, ask)), "");
        let Target::Resource { group, resource, subresource, namespace, name } = ask.target else {
            return by_role();
        };
        let q = Question { node, verb: ask.verb, subresource, namespace, name, fields: ask.fields };
        match (group, resource) {
            ("", "secrets") => self.read(&q, Referent::Secret),
            ("", "configmaps") => self.read(&q, Referent::ConfigMap),
            ("", "persistentvolumeclaims") if subresource == "status" => {
                only(q.is(&["update", "patch"]), "can only get/update/patch this type")?;
                self.refers(&q, Referent::Claim)
            }
            ("", "persistentvolumeclaims") => get(&q, |q| self.refers(q, Referent::Claim)),
            ("", "persistentvolumes") => {
                get(&q, |q| only(self.graph.read().has_volume(node, q.name), &q.unrelated()))
            }
            ("resource.k8s.io", "resourceclaims") => get(&q, |q| self.refers(q, Referent::ResourceClaim)),
            ("storage.k8s.io", "volumeattachments") => get(&q, |q| {
                let of = self.graph.read().attachments.get(q.name).is_some_and(|of| of == node);
                only(of, &q.unrelated())
            }),
            ("", "serviceaccounts") if q.verb == "get" && subresource.is_empty() => {
                self.refers(&q, Referent::ServiceAccount)
            }
            ("", "serviceaccounts") => {
                let why = "can only create tokens for individual service accounts";
                only(q.verb == "create" && !name.is_empty(), why)?;
                only(subresource == "token", "can only create token subresource of serviceaccount")?;
                self.refers(&q, Referent::ServiceAccount)
            }
            ("coordination.k8s.io", "leases") => lease(&q),
            ("storage.k8s.io", "csinodes") => csi_node(&q),
            ("resource.k8s.io", "resourceslices") => self.slice(&q),
            ("", "nodes") => own_node(&q),
            ("", "pods") => self.pod(&q),
            ("certificates.k8s.io", "podcertificaterequests") if self.pod_certificates => self.request(&q),
            ("certificates.k8s.io", "podcertificaterequests") => Err(String::new()),
            _ => by_role(),
        }
    }

    fn refers(&self, q: &Question<'_>, what: Referent) -> Verdict {
        let refers = self.graph.read().refers(q.node, what, q.namespace, q.name);
        only(refers && !q.name.is_empty(), &q.unrelated())
    }

    fn read(&self, q: &Question<'_>, what: Referent) -> Verdict {
        only(q.is(&["get", "list", "watch"]), "can only read resources of this type")?;
        only(q.subresource.is_empty(), "cannot read subresource")?;
        only(!q.namespace.is_empty(), "can only read namespaced object of this type")?;
        self.refers(q, what)
    }

    fn slice(&self, q: &Question<'_>) -> Verdict {
        only(q.subresource.is_empty(), "cannot authorize ResourceSlice subresources")?;
        match q.verb {
            // What it says of its node is looked at by admission.
            "create" => Ok(()),
            "get" | "update" | "patch" | "delete" => {
                let of = self.graph.read().slices.get(q.name).is_some_and(|of| of == q.node);
                only(of, &q.unrelated())
            }
            "watch" | "list" | "deletecollection" => {
                let why = "can only list/watch/deletecollection resourceslices with nodeName field selector";
                only(q.selects_own("spec.nodeName") || q.selects_own("nodeName"), why)
            }
            _ => Err("only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, \
                      patch, delete, deletecollection"
                .to_owned()),
        }
    }

    fn request(&self, q: &Question<'_>) -> Verdict {
        let why = "nodes may not access the status subresource of PodCertificateRequests";
        only(q.subresource.is_empty(), why)?;
        match q.verb {
            // Whose pod it names is looked at by admission.
            "create" => Ok(()),
            "get" => {
                let key = (q.namespace.to_owned(), q.name.to_owned());
                let of = self.graph.read().requests.get(&key).is_some_and(|of| of == q.node);
                only(of, &q.unrelated())
            }
            "list" | "watch" => {
                let why = "can only list/watch podcertificaterequests with nodeName field selector";
                only(q.selects_own("spec.nodeName"), why)
            }
            verb => Err(format!("nodes may not {verb} podcertificaterequests")),
        }
    }

    fn pod(&self, q: &Question<'_>) -> Verdict {
        match (q.subresource, q.verb) {
            ("", "list" | "watch") if q.selects_own("spec.nodeName") => Ok(()),
            ("", "get" | "list" | "watch") if !q.name.is_empty() => {
                let graph = self.graph.read();
                only(graph.node_of(q.namespace, q.name) == Some(q.node), &q.unrelated())
            }
            ("", "list" | "watch") => {
                Err("can only list/watch pods with spec.nodeName field selector".to_owned())
            }
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => Ok(()),
            _ => Err(String::new()),
        }
    }
}

fn get(q: &Question<'_>, related: impl Fn(&Question<'_>) -> Verdict) -> Verdict {
    only(q.verb == "get", "can only get individual resources of this type")?;
    only(q.subresource.is_empty(), "cannot get subresource")?;
    related(q)
}

fn lease(q: &Question<'_>) -> Verdict {
    let verbs = ["get", "create", "update", "patch", "delete"];
    only(q.is(&verbs), "can only get, create, update, patch, or delete a node lease")?;
    only(q.namespace == LEASES, "can only access leases in the \"kube-node-lease\" system namespace")?;
    let why = "can only access node lease with the same name as the requesting node";
    only(q.verb == "create" || q.name == q.node, why)
}

fn csi_node(q: &Question<'_>) -> Verdict {
    let verbs = ["get", "create", "update", "patch", "delete"];
    only(q.is(&verbs), "can only get, create, update, patch, or delete a CSINode")?;
    only(q.subresource.is_empty(), "cannot authorize CSINode subresources")?;
    let why = "can only access CSINode with the same name as the requesting node";
    only(q.verb == "create" || q.name == q.node, why)
}

/// A node reads itself alone; what it may write of itself and of others is admission's to say.
fn own_node(q: &Question<'_>) -> Verdict {
    match (q.subresource, q.verb) {
        ("", "create" | "update" | "patch") | ("status", "update" | "patch") => Ok(()),
        ("", "get" | "list" | "watch") if q.name == q.node => Ok(()),
        ("", "get" | "list" | "watch") if q.name.is_empty() => {
            Err(format!("node '{}' cannot read all nodes, only its own Node object", q.node))
        }
        ("", "get" | "list" | "watch") => {
            Err(format!("node '{}' cannot read '{}', only its own Node object", q.node, q.name))
        }
        _ => Err(String::new()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).expect("an object")
    }

    fn pod(node: &str) -> Pod {
        object(json!({
            "metadata": {"namespace": "ns", "name": "p"},
            "spec": {
                "nodeName": node, "serviceAccountName": "default", "containers": [],
                "volumes": [
                    {"name": "v", "configMap": {"name": "page"}},
                    {"name": "data", "persistentVolumeClaim": {"claimName": "claim"}},
                    {"name": "own", "ephemeral": {}},
                ],
                "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "t"}],
            },
            "status": {"resourceClaimStatuses": [{"name": "gpu", "resourceClaimName": "p-gpu"}]},
        }))
    }

    struct Nodes(NodeAuthorizer);

    impl Nodes {
        fn told(&self, user: &str, verb: &str, place: &str, fields: &str) -> Verdict {
            let mut parts = place.split(' ');
            let mut next = || parts.next().unwrap_or_default();
            let (group, resource, subresource, namespace, name) = (next(), next(), next(), next(), next());
            let target = Target::Resource { group, resource, subresource, namespace, name };
            let groups = [GROUP.to_owned(), "system:authenticated".to_owned()];
            self.0.decide(&Ask { user, groups: &groups, verb, target, fields, ..Ask::default() })
        }

        fn may(&self, node: &str, verb: &str, place: &str) -> bool {
            self.told(&format!("system:node:{node}"), verb, place, "").is_ok()
        }
    }

    #[test]
    fn a_node_reads_what_its_pods_refer_to_and_only_while_they_are_there() {
        let nodes = Nodes(NodeAuthorizer::default());
        assert!(!nodes.may("a", "get", " configmaps  ns page"));
        nodes.0.set_pod(&pod("a"));
        assert!(nodes.may("a", "get", " configmaps  ns page"));
        assert!(nodes.may("a", "create", " serviceaccounts token ns default"));
        assert!(
            nodes.may("a", "get", " persistentvolumeclaims  ns p-own"),
            "the claim of an ephemeral volume"
        );
        assert!(nodes.may("a", "get", "resource.k8s.io resourceclaims  ns p-gpu"));
        assert!(!nodes.may("a", "list", "resource.k8s.io resourceclaims  ns p-gpu"));
        assert!(!nodes.may("a", "get", " configmaps  ns other"));
        assert!(!nodes.may("b", "get", " configmaps  ns page"));
        assert!(nodes.told("jane", "get", " configmaps  ns page", "").is_err());
        nodes.0.forget_pod("ns", "p");
        let told = METRICS.registry().gather();
        assert_eq!(told[0].name(), "node_authorizer_graph_actions_duration_seconds");
        assert!(!nodes.may("a", "get", " configmaps  ns page"));
    }

    #[test]
    fn a_node_reads_the_volumes_of_its_pods_and_what_opens_them() {
        let nodes = Nodes(NodeAuthorizer::default());
        let volume: PersistentVolume = object(json!({
            "metadata": {"name": "pv"},
            "spec": {
                "claimRef": {"namespace": "ns", "name": "claim"},
                "csi": {"driver": "d", "volumeHandle": "h", "nodeStageSecretRef": {"namespace": "keys", "name": "stage"},
                    "controllerPublishSecretRef": {"namespace": "keys", "name": "controller"}},
            },
        }));
        nodes.0.set_volume("pv", Some(&volume));
        assert!(!nodes.may("a", "get", " persistentvolumes   pv"));
        nodes.0.set_pod(&pod("a"));
        assert!(nodes.may("a", "get", " persistentvolumes   pv"));
        assert!(nodes.may("a", "get", " secrets  keys stage"));
        assert!(!nodes.may("a", "get", " secrets  keys controller"), "that is the controllers'");
        assert!(!nodes.may("b", "get", " persistentvolumes   pv"));
        nodes.0.set_volume("pv", None);
        assert!(!nodes.may("a", "get", " secrets  keys stage"));
        let attachment: VolumeAttachment = object(json!({
            "metadata": {"name": "va"}, "spec": {"attacher": "d", "nodeName": "a", "source": {}}}));
        nodes.0.set_attachment("va", Some(&attachment));
        assert!(nodes.may("a", "get", "storage.k8s.io volumeattachments   va"));
        assert!(!nodes.may("b", "get", "storage.k8s.io volumeattachments   va"));
    }

    #[test]
    fn a_node_asks_for_certificates_of_its_own_pods_once_there_are_such() {
        let request: PodCertificateRequest = object(json!({
            "metadata": {"namespace": "ns", "name": "r"}, "spec": {"signerName": "a.test/b", "nodeName": "a"}}));
        let requests = "certificates.k8s.io podcertificaterequests";
        let nodes = Nodes(NodeAuthorizer::default());
        nodes.0.set_request("ns", "r", Some(&request));
        assert_eq!(nodes.told("system:node:a", "get", &format!("{requests}  ns r"), ""), Err(String::new()));
        assert!(!nodes.may("a", "list", "certificates.k8s.io clustertrustbundles"));
        let gates = "ClusterTrustBundle=true,PodCertificateRequest=true";
        let nodes = Nodes(NodeAuthorizer::new(&Features::parse([gates]).expect("sound")));
        nodes.0.set_request("ns", "r", Some(&request));
        assert!(nodes.may("a", "list", "certificates.k8s.io clustertrustbundles"));
        for (node, verb, place, fields, told) in [
            ("a", "create", "  ns", "", None),
            ("a", "get", "  ns r", "", None),
            ("a", "list", "", "spec.nodeName=a", None),
            ("a", "watch", "  ns", "spec.nodeName=a", None),
            ("b", "get", "  ns r", "", Some("no relationship found between node 'b' and this object")),
            ("a", "get", "  ns", "", Some("No Object name found")),
            (
                "a",
                "list",
                "",
                "spec.nodeName=b",
                Some("can only list/watch podcertificaterequests with nodeName field selector"),
            ),
            (
                "a",
                "update",
                " status ns r",
                "",
                Some("nodes may not access the status subresource of PodCertificateRequests"),
            ),
            ("a", "delete", "  ns r", "", Some("nodes may not delete podcertificaterequests")),
        ] {
            let verdict =
                nodes.told(&format!("system:node:{node}"), verb, &format!("{requests}{place}"), fields);
            assert_eq!(verdict.err().as_deref(), told, "{node} {verb} {place} {fields}");
        }
        nodes.0.set_request("ns", "r", None);
        assert!(!nodes.may("a", "get", &format!("{requests}  ns r")));
    }

    #[test]
    fn a_node_sees_its_own_pods_slices_and_itself() {
        let nodes = Nodes(NodeAuthorizer::default());
        nodes.0.set_pod(&pod("a"));
        let told = |verb: &str, place: &str, fields: &str| nodes.told("system:node:a", verb, place, fields);
        assert!(told("list", " pods", "spec.nodeName=a").is_ok());
        assert_eq!(
            told("list", " pods", "spec.nodeName=b"),
            Err("can only list/watch pods with spec.nodeName field selector".to_owned())
        );
        assert!(told("watch", " pods  ns p", "metadata.name=p").is_ok());
        assert!(told("get", " pods  ns p", "").is_ok());
        assert!(!nodes.may("b", "get", " pods  ns p"));
        assert!(!nodes.may("a", "get", " pods  ns unbound"));
        assert!(told("get", " nodes   a", "").is_ok());
        assert_eq!(
            told("list", " nodes", ""),
            Err("node 'a' cannot read all nodes, only its own Node object".to_owned())
        );
        assert!(nodes.may("a", "patch", " nodes status  a"));
        let slice: ResourceSlice = object(json!({
            "metadata": {"name": "s"},
            "spec": {"driver": "d", "nodeName": "a", "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}}}));
        nodes.0.set_slice("s", Some(&slice));
        let slices = "resource.k8s.io resourceslices";
        assert!(told("get", &format!("{slices}   s"), "").is_ok());
        assert!(!nodes.may("b", "delete", &format!("{slices}   s")));
        assert!(told("list", slices, "spec.nodeName=a").is_ok());
        assert!(told("list", slices, "").is_err());
        assert!(nodes.may("a", "update", "coordination.k8s.io leases  kube-node-lease a"));
        assert!(!nodes.may("a", "update", "coordination.k8s.io leases  kube-node-lease b"));
    }
}
