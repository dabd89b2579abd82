//! The Node authorizer: a kubelet may read what the pods of its node refer to, and write what is its own.
//!
//! It is told of pods by whoever watches them. Everything that is not about a single node's objects is as the role
//! `system:node` says.

use std::collections::{HashMap, HashSet};

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::api::rbac::v1::PolicyRule;
use parking_lot::RwLock;

use crate::rbac::{self, Ask, Target, matches};

const USER_PREFIX: &str = "system:node:";
const GROUP: &str = "system:nodes";
const LEASES: &str = "kube-node-lease";

/// What a pod may refer to by name in its namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Referent {
    ConfigMap,
    Secret,
    Claim,
    ServiceAccount,
}

type Key = (String, String);
pub type Reference = (Referent, String);

/// The name of the node that a user is, if he is one; it may be empty.
pub fn node_of<'a>(user: &'a str, groups: &[String]) -> Option<&'a str> {
    user.strip_prefix(USER_PREFIX).filter(|_| groups.iter().any(|group| group == GROUP))
}

#[derive(Default)]
struct Graph {
    /// The node of a bound pod, and what the pod refers to.
    pods: HashMap<Key, (String, HashSet<Reference>)>,
    /// How many pods of each node refer to an object.
    uses: HashMap<(Referent, Key), HashMap<String, usize>>,
}

/// The authorizer.
pub struct NodeAuthorizer {
    graph: RwLock<Graph>,
    rules: Vec<PolicyRule>,
}

impl Default for NodeAuthorizer {
    fn default() -> Self {
        Self::new()
    }
}

impl NodeAuthorizer {
    pub fn new() -> Self {
        let role = rbac::bootstrap()
            .cluster_roles
            .into_iter()
            .find(|role| role.metadata.name.as_deref() == Some("system:node"));
        NodeAuthorizer { graph: RwLock::default(), rules: role.and_then(|r| r.rules).unwrap_or_default() }
    }

    pub fn set_pod(&self, pod: &Pod) {
        let key = (
            pod.metadata.namespace.clone().unwrap_or_default(),
            pod.metadata.name.clone().unwrap_or_default(),
        );
        let mut graph = self.graph.write();
        graph.forget(&key);
        let Some(spec) = &pod.spec else { return };
        let Some(node) = spec.node_name.clone().filter(|n| !n.is_empty()) else { return };
        graph.remember(key, node, references(spec));
    }

    pub fn forget_pod(&self, namespace: &str, name: &str) {
        self.graph.write().forget(&(namespace.to_owned(), name.to_owned()));
    }

    /// Whether it is allowed. Nobody but a node is allowed anything.
    pub fn allows(&self, ask: &Ask<'_>) -> bool {
        let Some(node) = node_of(ask.user, ask.groups).filter(|node| !node.is_empty()) else {
            return false;
        };
        let by_role = || self.rules.iter().any(|rule| matches(rule, ask));
        let Target::Resource { group, resource, subresource, namespace, name } = ask.target else {
            return by_role();
        };
        let reads = matches!(ask.verb, "get" | "list" | "watch");
        let refers = |what| self.refers(node, what, namespace, name);
        match (group, resource, subresource) {
            ("", "configmaps", "") => reads && refers(Referent::ConfigMap),
            ("", "secrets", "") => reads && refers(Referent::Secret),
            ("", "persistentvolumeclaims", "") => ask.verb == "get" && refers(Referent::Claim),
            ("", "persistentvolumeclaims", "status") => by_role() && refers(Referent::Claim),
            ("", "serviceaccounts", "token") => ask.verb == "create" && refers(Referent::ServiceAccount),
            ("", "serviceaccounts", "") => ask.verb == "get" && refers(Referent::ServiceAccount),
            ("", "pods", "") if ask.verb == "get" => self.has_pod(node, namespace, name),
            ("", "nodes", "" | "status") if !name.is_empty() => by_role() && name == node,
            ("coordination.k8s.io", "leases", "") => {
                by_role()
                    && namespace == LEASES
                    && (name == node || (ask.verb == "create" && name.is_empty()))
            }
            ("storage.k8s.io", "csinodes", "") => {
                by_role() && (name == node || (ask.verb == "create" && name.is_empty()))
            }
            _ => by_role(),
        }
    }

    fn refers(&self, node: &str, what: Referent, namespace: &str, name: &str) -> bool {
        let key = (what, (namespace.to_owned(), name.to_owned()));
        self.graph.read().uses.get(&key).is_some_and(|nodes| nodes.contains_key(node))
    }

    fn has_pod(&self, node: &str, namespace: &str, name: &str) -> bool {
        let graph = self.graph.read();
        graph.pods.get(&(namespace.to_owned(), name.to_owned())).is_none_or(|(on, _)| on == node)
    }
}

impl Graph {
    fn remember(&mut self, pod: Key, node: String, references: HashSet<Reference>) {
        for (what, name) in &references {
            let key = (*what, (pod.0.clone(), name.clone()));
            *self.uses.entry(key).or_default().entry(node.clone()).or_default() += 1;
        }
        self.pods.insert(pod, (node, references));
    }

    fn forget(&mut self, pod: &Key) {
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
        for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            add(Referent::ConfigMap, source.config_map.as_ref().map(|s| &s.name));
            add(Referent::Secret, source.secret.as_ref().map(|s| &s.name));
        }
    }
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    for (env, env_from) in containers.map(|c| (&c.env, &c.env_from)) {
        for source in env_from.iter().flatten() {
            add(Referent::ConfigMap, source.config_map_ref.as_ref().map(|r| &r.name));
            add(Referent::Secret, source.secret_ref.as_ref().map(|r| &r.name));
        }
        for source in env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
            add(Referent::ConfigMap, source.config_map_key_ref.as_ref().map(|r| &r.name));
            add(Referent::Secret, source.secret_key_ref.as_ref().map(|r| &r.name));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ConfigMapVolumeSource, Volume};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn pod(node: &str) -> Pod {
        Pod {
            metadata: ObjectMeta {
                namespace: Some("ns".into()),
                name: Some("p".into()),
                ..ObjectMeta::default()
            },
            spec: Some(PodSpec {
                node_name: Some(node.into()),
                service_account_name: Some("default".into()),
                volumes: Some(vec![Volume {
                    name: "v".into(),
                    config_map: Some(ConfigMapVolumeSource { name: "page".into(), ..Default::default() }),
                    ..Volume::default()
                }]),
                ..PodSpec::default()
            }),
            status: None,
        }
    }

    #[test]
    fn a_node_reads_what_its_pods_refer_to_and_only_while_they_are_there() {
        let nodes = NodeAuthorizer::new();
        let groups = [GROUP.to_owned(), "system:authenticated".to_owned()];
        let may = |user: &str, verb: &str, resource: &str, subresource: &str, name: &str| {
            let target = Target::Resource { group: "", resource, subresource, namespace: "ns", name };
            nodes.allows(&Ask { user, groups: &groups, verb, target, ..Ask::default() })
        };
        assert!(!may("system:node:a", "get", "configmaps", "", "page"));
        nodes.set_pod(&pod("a"));
        assert!(may("system:node:a", "get", "configmaps", "", "page"));
        assert!(may("system:node:a", "create", "serviceaccounts", "token", "default"));
        assert!(!may("system:node:a", "get", "configmaps", "", "other"));
        assert!(!may("system:node:b", "get", "configmaps", "", "page"));
        assert!(!may("jane", "get", "configmaps", "", "page"));
        assert!(may("system:node:a", "patch", "nodes", "status", "a"));
        assert!(!may("system:node:a", "patch", "nodes", "status", "b"));
        nodes.forget_pod("ns", "p");
        assert!(!may("system:node:a", "get", "configmaps", "", "page"));
    }
}
