//! Pods that are alike to other pods' selectors (same namespace, labels and affinity) form a class. Spreading and
//! affinity ask once per class instead of once per pod: a Deployment of thousands is one question.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;
use std::sync::Arc;

use crate::nodes::NodeId;
use crate::pod::PodInfo;

pub type ClassId = usize;

pub struct Class {
    key: String,
    /// Any one of them: namespace, labels and affinity are the same for all.
    pub example: Arc<PodInfo>,
    /// How many of them each node has.
    pub on: HashMap<NodeId, i64>,
}

impl Class {
    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.example.labels
    }
}

#[derive(Default)]
pub struct Classes {
    all: Vec<Option<Class>>,
    free: Vec<ClassId>,
    by_key: HashMap<String, ClassId>,
    by_namespace: HashMap<String, BTreeSet<ClassId>>,
    with_affinity: BTreeSet<ClassId>,
}

fn key_of(info: &PodInfo) -> String {
    let mut key = String::with_capacity(128);
    key.push_str(&info.key.namespace);
    key.push(if info.terminating { '-' } else { '+' });
    for (name, value) in &info.labels {
        let _ = write!(key, "{name}={value},");
    }
    key.push_str(&info.affinity.text);
    key
}

impl Classes {
    pub fn enter(&mut self, info: &Arc<PodInfo>, node: NodeId) -> ClassId {
        let key = key_of(info);
        let id = self.by_key.get(&key).copied().unwrap_or_else(|| self.add(key, info));
        if let Some(class) = &mut self.all[id] {
            *class.on.entry(node).or_insert(0) += 1;
        }
        id
    }

    fn add(&mut self, key: String, info: &Arc<PodInfo>) -> ClassId {
        let id = self.free.pop().unwrap_or_else(|| {
            self.all.push(None);
            self.all.len() - 1
        });
        self.by_key.insert(key.clone(), id);
        self.by_namespace.entry(info.key.namespace.clone()).or_default().insert(id);
        if !info.affinity.text.is_empty() {
            self.with_affinity.insert(id);
        }
        self.all[id] = Some(Class { key, example: Arc::clone(info), on: HashMap::new() });
        id
    }

    pub fn leave(&mut self, id: ClassId, node: NodeId) {
        let Some(class) = &mut self.all[id] else { return };
        if let Some(count) = class.on.get_mut(&node) {
            *count -= 1;
            if *count == 0 {
                class.on.remove(&node);
            }
        }
        if class.on.is_empty() {
            self.by_key.remove(&class.key);
            if let Some(ids) = self.by_namespace.get_mut(&class.example.key.namespace) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.by_namespace.remove(&class.example.key.namespace);
                }
            }
            self.with_affinity.remove(&id);
            self.all[id] = None;
            self.free.push(id);
        }
    }

    /// The classes of pods in a namespace.
    pub fn of_namespace(&self, namespace: &str) -> impl Iterator<Item = &Class> {
        self.by_namespace.get(namespace).into_iter().flatten().filter_map(|id| self.all[*id].as_ref())
    }

    /// The classes of pods that care for other pods.
    pub fn with_affinity(&self) -> impl Iterator<Item = &Class> {
        self.with_affinity.iter().filter_map(|id| self.all[*id].as_ref())
    }

    pub fn iter(&self) -> impl Iterator<Item = &Class> {
        self.all.iter().flatten()
    }
}
