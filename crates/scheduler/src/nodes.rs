//! The scheduler's cache: what is known of nodes, kept as columns, so that looking at a thousand nodes reads a few
//! arrays from one end to the other and allocates nothing. Pods that were given a node are counted at once, before
//! the API says so ("assumed").

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Taint};
use krate_api::placement::HostPort;

use crate::classes::{ClassId, Classes};
use crate::pod::{PodInfo, Resource, ResourceNames, amount};

/// The row of a node. It stays the same while the node, or a pod on it, is known.
pub type NodeId = usize;

/// A node that lacks the label of a topology.
pub const NOWHERE: u32 = u32::MAX;

/// One label key, seen as a partition of the nodes: the number of its value for each node.
#[derive(Default)]
pub struct Topology {
    pub domain: Vec<u32>,
    numbers: HashMap<String, u32>,
}

impl Topology {
    fn set(&mut self, id: NodeId, value: Option<&String>) {
        if self.domain.len() <= id {
            self.domain.resize(id + 1, NOWHERE);
        }
        self.domain[id] = match value {
            None => NOWHERE,
            Some(value) => {
                let next = self.numbers.len() as u32;
                // Most often the value is known: no copy of it is made then.
                match self.numbers.get(value) {
                    Some(&number) => number,
                    None => *self.numbers.entry(value.clone()).or_insert(next),
                }
            }
        };
    }

    /// How many values were ever seen: the length of an array that has a place for each.
    pub fn len(&self) -> usize {
        self.numbers.len()
    }
}

/// Where a pod is counted.
struct Placed {
    node: NodeId,
    class: ClassId,
    info: Arc<PodInfo>,
    /// Given by this scheduler and not yet seen bound.
    assumed: bool,
}

/// An image that some nodes have.
#[derive(Default)]
pub struct Image {
    pub size: i64,
    pub nodes: Vec<NodeId>,
}

#[derive(Default)]
pub struct Nodes {
    pub resources: ResourceNames,
    by_name: HashMap<Arc<str>, NodeId>,
    free: Vec<NodeId>,
    /// Rows of nodes that exist, so ordered that neighbours lie in different zones.
    order: Vec<NodeId>,
    // One column each from here on, by row.
    pub names: Vec<Arc<str>>,
    exists: Vec<bool>,
    /// By resource, then by row.
    pub allocatable: Vec<Vec<i64>>,
    pub requested: Vec<Vec<i64>>,
    /// Processor and memory as scoring counts them.
    pub scored: [Vec<i64>; 2],
    pub pods: Vec<i64>,
    pub allowed_pods: Vec<i64>,
    pub unschedulable: Vec<bool>,
    pub taints: Vec<Vec<Taint>>,
    pub labels: Vec<BTreeMap<String, String>>,
    pub ports: Vec<Vec<HostPort>>,
    image_names: Vec<Vec<String>>,
    // And what is known of them all.
    pub topologies: HashMap<String, Topology>,
    pub images: HashMap<String, Image>,
    pub classes: Classes,
    /// Nodes with a taint that asks to be avoided if possible.
    pub softly_tainted: usize,
    placed: HashMap<String, Placed>,
    /// How many of them are assumed.
    assumed: usize,
}

/// The labels that say in which region and zone a node is.
pub const ZONE: &str = "topology.kubernetes.io/zone";
pub const REGION: &str = "topology.kubernetes.io/region";
pub const HOSTNAME: &str = "kubernetes.io/hostname";

impl Nodes {
    /// The rows of all nodes that exist, neighbours in different zones.
    pub fn order(&self) -> &[NodeId] {
        &self.order
    }

    pub fn id(&self, name: &str) -> Option<NodeId> {
        self.by_name.get(name).copied().filter(|id| self.exists[*id])
    }

    /// What is left of a resource; nothing where a node does not offer it.
    pub fn allocatable(&self, resource: Resource, id: NodeId) -> i64 {
        self.allocatable.get(resource).and_then(|c| c.get(id)).copied().unwrap_or(0)
    }

    pub fn requested(&self, resource: Resource, id: NodeId) -> i64 {
        self.requested.get(resource).and_then(|c| c.get(id)).copied().unwrap_or(0)
    }

    fn row(&mut self, name: &str) -> NodeId {
        if let Some(&id) = self.by_name.get(name) {
            return id;
        }
        let name: Arc<str> = name.into();
        let id = self.free.pop().unwrap_or(self.names.len());
        if id == self.names.len() {
            self.names.push(Arc::clone(&name));
            self.exists.push(false);
            for column in &mut self.scored {
                column.push(0);
            }
            self.pods.push(0);
            self.allowed_pods.push(0);
            self.unschedulable.push(false);
            self.taints.push(Vec::new());
            self.labels.push(BTreeMap::new());
            self.ports.push(Vec::new());
            self.image_names.push(Vec::new());
        } else {
            self.names[id] = Arc::clone(&name);
        }
        self.by_name.insert(name, id);
        self.widen();
        id
    }

    /// A place for each row in each resource's column.
    fn widen(&mut self) {
        let (resources, rows) = (self.resources.len(), self.names.len());
        for columns in [&mut self.allocatable, &mut self.requested] {
            columns.resize_with(resources, Vec::new);
            for column in columns {
                column.resize(rows, 0);
            }
        }
    }

    /// Takes over what the API says of a node.
    pub fn put(&mut self, node: &Node) {
        let Some(name) = node.metadata.name.as_deref() else { return };
        let id = self.row(name);
        let none = BTreeMap::new();
        let status = node.status.as_ref();
        let allocatable = status.and_then(|s| s.allocatable.as_ref()).unwrap_or(&none);
        for name in allocatable.keys() {
            if name != "pods" {
                self.resources.number(name);
            }
        }
        self.widen();
        for column in &mut self.allocatable {
            column[id] = 0;
        }
        self.allowed_pods[id] = 0;
        for (name, quantity) in allocatable {
            let n = amount(name, quantity);
            if name == "pods" {
                self.allowed_pods[id] = n;
            } else {
                let resource = self.resources.number(name);
                self.allocatable[resource][id] = n;
            }
        }
        let spec = node.spec.clone().unwrap_or_default();
        self.unschedulable[id] = spec.unschedulable.unwrap_or(false);
        self.set_taints(id, spec.taints.unwrap_or_default());
        let labels = node.metadata.labels.clone().unwrap_or_default();
        let moved = !self.exists[id]
            || [REGION, ZONE].iter().any(|key| labels.get(*key) != self.labels[id].get(*key));
        self.exists[id] = true;
        for (key, topology) in &mut self.topologies {
            topology.set(id, labels.get(key));
        }
        self.labels[id] = labels;
        self.set_images(id, status.and_then(|s| s.images.as_deref()).unwrap_or_default());
        if moved {
            self.reorder();
        }
    }

    /// Forgets a node. Its row stays as long as pods are counted on it.
    pub fn remove(&mut self, name: &str) {
        let Some(id) = self.id(name) else { return };
        self.exists[id] = false;
        self.set_taints(id, Vec::new());
        self.set_images(id, &[]);
        self.labels[id] = BTreeMap::new();
        for topology in self.topologies.values_mut() {
            topology.set(id, None);
        }
        self.release(id);
        self.reorder();
    }

    fn release(&mut self, id: NodeId) {
        if !self.exists[id] && self.pods[id] == 0 {
            self.by_name.remove(&self.names[id]);
            self.free.push(id);
        }
    }

    fn set_taints(&mut self, id: NodeId, taints: Vec<Taint>) {
        let soft = |taints: &[Taint]| usize::from(taints.iter().any(|t| t.effect == "PreferNoSchedule"));
        self.softly_tainted = self.softly_tainted - soft(&self.taints[id]) + soft(&taints);
        self.taints[id] = taints;
    }

    fn set_images(&mut self, id: NodeId, images: &[k8s_openapi::api::core::v1::ContainerImage]) {
        for name in std::mem::take(&mut self.image_names[id]) {
            if let Some(image) = self.images.get_mut(&name) {
                image.nodes.retain(|n| *n != id);
                if image.nodes.is_empty() {
                    self.images.remove(&name);
                }
            }
        }
        for image in images {
            for name in image.names.iter().flatten() {
                let entry = self.images.entry(name.clone()).or_default();
                entry.size = image.size_bytes.unwrap_or(0);
                if !entry.nodes.contains(&id) {
                    entry.nodes.push(id);
                    self.image_names[id].push(name.clone());
                }
            }
        }
    }

    /// Zone after zone takes its turn, so that looking at only some nodes looks into every zone.
    fn reorder(&mut self) {
        let mut zones: BTreeMap<(Option<&String>, Option<&String>), Vec<NodeId>> = BTreeMap::new();
        let mut ids: Vec<NodeId> = (0..self.names.len()).filter(|id| self.exists[*id]).collect();
        ids.sort_by(|a, b| self.names[*a].cmp(&self.names[*b]));
        for id in &ids {
            let labels = &self.labels[*id];
            zones.entry((labels.get(REGION), labels.get(ZONE))).or_default().push(*id);
        }
        let longest = zones.values().map(Vec::len).max().unwrap_or(0);
        self.order =
            (0..longest).flat_map(|i| zones.values().filter_map(move |z| z.get(i)).copied()).collect();
    }

    /// Begins to number the values of a label.
    pub fn know_topology(&mut self, key: &str) {
        if self.topologies.contains_key(key) {
            return;
        }
        let mut topology = Topology::default();
        for (id, labels) in self.labels.iter().enumerate() {
            topology.set(id, labels.get(key));
        }
        self.topologies.insert(key.to_owned(), topology);
    }

    /// Counts a pod on a node: `assumed` if this scheduler has just decided so, else because the API says so.
    pub fn place(&mut self, info: Arc<PodInfo>, node: &str, assumed: bool) {
        if let Some(known) = self.placed.get(&info.uid) {
            // Nothing is counted twice when what was assumed comes true.
            let same = known.assumed
                && &*self.names[known.node] == node
                && known.info.requests == info.requests
                && known.info.labels == info.labels
                && !info.terminating;
            if same {
                if let Some(known) = self.placed.get_mut(&info.uid)
                    && !assumed
                {
                    known.assumed = false;
                    self.assumed -= 1;
                }
                return;
            }
            self.displace(&info.uid.clone());
        }
        let id = self.row(node);
        self.widen();
        for term in
            info.affinity.required.iter().chain(&info.affinity.required_anti).chain(&info.affinity.preferred)
        {
            self.know_topology(&term.topology_key);
        }
        self.count(id, &info, 1);
        self.ports[id].extend(info.ports.iter().cloned());
        let class = self.classes.enter(&info, id);
        self.assumed += usize::from(assumed);
        self.placed.insert(info.uid.clone(), Placed { node: id, class, info, assumed });
    }

    /// Takes a pod off the node that it is counted on.
    pub fn displace(&mut self, uid: &str) {
        let Some(Placed { node, class, info, assumed }) = self.placed.remove(uid) else { return };
        self.assumed -= usize::from(assumed);
        self.count(node, &info, -1);
        for port in &info.ports {
            if let Some(at) = self.ports[node].iter().position(|p| p == port) {
                self.ports[node].swap_remove(at);
            }
        }
        self.classes.leave(class, node);
        self.release(node);
    }

    /// How many nodes, pods on them, and pods that are assumed there are.
    pub fn counts(&self) -> [usize; 3] {
        [self.order.len(), self.placed.len(), self.assumed]
    }

    pub fn is_assumed(&self, uid: &str) -> bool {
        self.placed.get(uid).is_some_and(|p| p.assumed)
    }

    fn count(&mut self, id: NodeId, info: &PodInfo, sign: i64) {
        for (resource, n) in &info.requests {
            self.requested[*resource][id] += sign * n;
        }
        for (column, n) in self.scored.iter_mut().zip(info.scored) {
            column[id] += sign * n;
        }
        self.pods[id] += sign;
    }
}

#[cfg(test)]
pub mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pod::{CPU, MEMORY};

    pub fn node(name: &str, labels: Value) -> Node {
        let mut labels = labels;
        labels[HOSTNAME] = json!(name);
        serde_json::from_value(json!({
            "metadata": {"name": name, "labels": labels},
            "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}},
        }))
        .expect("a node")
    }

    pub fn pod(nodes: &mut Nodes, name: &str, labels: Value, spec: Value) -> Arc<PodInfo> {
        let pod = serde_json::from_value(
            json!({"metadata": {"name": name, "namespace": "d", "uid": name, "labels": labels}, "spec": spec}),
        );
        Arc::new(PodInfo::new(Arc::new(pod.expect("a pod")), &mut nodes.resources))
    }

    fn asking(nodes: &mut Nodes, name: &str) -> Arc<PodInfo> {
        let resources = json!({"requests": {"cpu": "500m", "memory": "1Gi", "example.com/x": "1"}});
        pod(nodes, name, json!({"a": "b"}), json!({"containers": [{"name": "c", "resources": resources}]}))
    }

    #[test]
    fn what_was_assumed_is_counted_once_when_it_comes_true() {
        let mut nodes = Nodes::default();
        nodes.put(&node("a", json!({})));
        let p = asking(&mut nodes, "p");
        nodes.place(Arc::clone(&p), "a", true);
        assert!(nodes.is_assumed("p"));
        nodes.place(p, "a", false);
        assert!(!nodes.is_assumed("p"));
        let id = nodes.id("a").expect("there");
        assert_eq!(
            (nodes.requested(CPU, id), nodes.requested(MEMORY, id), nodes.pods[id]),
            (500, 1 << 30, 1)
        );
        nodes.displace("p");
        assert_eq!((nodes.requested(CPU, id), nodes.requested(3, id), nodes.pods[id]), (0, 0, 0));
    }

    #[test]
    fn a_row_outlives_its_node_while_pods_are_on_it() {
        let mut nodes = Nodes::default();
        let p = asking(&mut nodes, "p");
        nodes.place(p, "late", false);
        assert_eq!((nodes.id("late"), nodes.order().len()), (None, 0));
        nodes.put(&node("late", json!({})));
        let id = nodes.id("late").expect("there");
        assert_eq!(nodes.requested(CPU, id), 500);
        nodes.remove("late");
        nodes.displace("p");
        nodes.put(&node("next", json!({})));
        assert_eq!(nodes.id("next"), Some(id), "the row is used again");
        assert_eq!((nodes.pods[id], nodes.requested(CPU, id)), (0, 0));
    }

    #[test]
    fn zones_take_turns() {
        let mut nodes = Nodes::default();
        for (name, zone) in [("a", "x"), ("b", "x"), ("c", "y"), ("d", "y")] {
            nodes.put(&node(name, json!({ZONE: zone})));
        }
        let order: Vec<_> = nodes.order().iter().map(|id| nodes.names[*id].to_string()).collect();
        assert_eq!(order, ["a", "c", "b", "d"]);
    }
}
