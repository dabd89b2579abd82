//! Who owns whom, over all objects of the cluster. What happens to one object goes in; which others must be looked at
//! comes out. Nothing here decides to delete: that is decided on what the API says at that moment.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// The finalizer of an object whose dependents go before it.
pub const FOREGROUND: &str = "foregroundDeletion";
/// The finalizer of an object whose dependents stay.
pub const ORPHAN: &str = "orphan";
/// How many owners that are known to be gone are remembered.
const REMEMBERED: usize = 500;

pub type Uid = Arc<str>;

/// How an object is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// Many objects share it, as they share their kind.
    pub api_version: Arc<str>,
    pub kind: Arc<str>,
    pub namespace: String,
    pub name: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub uid: Uid,
    /// In the namespace of the object that names it; of cluster scope if its kind is.
    pub reach: Reach,
    /// Whether the owner, deleted in the foreground, waits for the object that names it.
    pub waits: bool,
}

/// What the graph keeps of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    pub uid: Uid,
    pub reach: Reach,
    pub owners: Vec<Owner>,
    pub deleting: bool,
    /// It waits for its dependents to be deleted.
    pub foreground: bool,
    /// It waits for its dependents to be let go.
    pub orphan: bool,
}

impl Object {
    pub fn new(api_version: &Arc<str>, kind: &Arc<str>, meta: &ObjectMeta) -> Object {
        let namespace = meta.namespace.clone().unwrap_or_default();
        let has = |finalizer: &str| meta.finalizers.iter().flatten().any(|f| f == finalizer);
        let deleting = meta.deletion_timestamp.is_some();
        let owners = meta.owner_references.iter().flatten().map(|o| Owner {
            uid: o.uid.as_str().into(),
            reach: Reach {
                api_version: o.api_version.as_str().into(),
                kind: o.kind.as_str().into(),
                namespace: namespace.clone(),
                name: o.name.clone(),
            },
            waits: o.block_owner_deletion.unwrap_or(false),
        });
        Object {
            uid: meta.uid.as_deref().unwrap_or_default().into(),
            owners: owners.collect(),
            reach: Reach {
                api_version: Arc::clone(api_version),
                kind: Arc::clone(kind),
                namespace,
                name: meta.name.clone().unwrap_or_default(),
            },
            deleting,
            foreground: deleting && has(FOREGROUND),
            orphan: deleting && has(ORPHAN),
        }
    }
}

/// An object to be looked at.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Work {
    /// It may have no owner any more, or wait for dependents that are gone, or not exist.
    Attempt(Uid),
    /// Its dependents are to be let go.
    Orphan(Uid),
}

struct Node {
    object: Object,
    /// Known only because a dependent names it.
    hearsay: bool,
    dependents: HashSet<Uid>,
}

#[derive(Default)]
pub struct Graph {
    nodes: HashMap<Uid, Node>,
    gone: HashSet<Uid>,
    gone_order: VecDeque<Uid>,
}

impl Graph {
    /// The object, whether it is known only by hearsay, and whether it has dependents.
    pub fn get(&self, uid: &str) -> Option<(Object, bool, bool)> {
        self.nodes.get(uid).map(|n| (n.object.clone(), n.hearsay, !n.dependents.is_empty()))
    }

    pub fn dependents(&self, uid: &str) -> Vec<Object> {
        let dependents = self.nodes.get(uid).into_iter().flat_map(|n| &n.dependents);
        dependents.filter_map(|d| self.nodes.get(d)).map(|n| n.object.clone()).collect()
    }

    /// Whether an owner of this uid is known to be gone. A uid never comes back.
    pub fn is_gone(&self, uid: &str) -> bool {
        self.gone.contains(uid)
    }

    /// An object is there, in this state.
    pub fn observe(&mut self, object: Object) -> Vec<Work> {
        let uid = Arc::clone(&object.uid);
        let mut work = Vec::new();
        let known = self.nodes.get_mut(&uid);
        let before = match known {
            // Most writes change nothing of this.
            Some(node) if !node.hearsay && node.object == object => return work,
            Some(node) => {
                let before = std::mem::replace(&mut node.object, object.clone());
                (!std::mem::take(&mut node.hearsay)).then_some(before)
            }
            None => {
                let node = Node { object: object.clone(), hearsay: false, dependents: HashSet::new() };
                self.nodes.insert(Arc::clone(&uid), node);
                None
            }
        };
        let had: Vec<Owner> = before.as_ref().map(|b| b.owners.clone()).unwrap_or_default();
        for owner in &had {
            if !object.owners.iter().any(|o| o.uid == owner.uid) {
                self.unlink(&owner.uid, &uid, &mut work);
            }
        }
        for owner in &object.owners {
            self.link(owner, &uid, &mut work);
            // An owner that waited for it may wait no longer.
            if had.iter().any(|h| h.uid == owner.uid && h.waits && !owner.waits) {
                work.push(Work::Attempt(Arc::clone(&owner.uid)));
            }
        }
        if object.orphan && !before.as_ref().is_some_and(|b| b.orphan) {
            work.push(Work::Orphan(Arc::clone(&uid)));
        }
        if object.foreground && !before.as_ref().is_some_and(|b| b.foreground) {
            work.push(Work::Attempt(Arc::clone(&uid)));
            work.extend(self.nodes[&uid].dependents.iter().cloned().map(Work::Attempt));
        }
        work
    }

    fn link(&mut self, owner: &Owner, dependent: &Uid, work: &mut Vec<Work>) {
        if let Some(node) = self.nodes.get_mut(&owner.uid) {
            let new = node.dependents.insert(Arc::clone(dependent));
            // The owner is in the midst of its deletion: the newcomer goes too.
            if new && node.object.foreground {
                work.push(Work::Attempt(Arc::clone(dependent)));
            }
            return;
        }
        if self.is_gone(&owner.uid) {
            work.push(Work::Attempt(Arc::clone(dependent)));
        }
        let object = Object {
            uid: Arc::clone(&owner.uid),
            reach: owner.reach.clone(),
            owners: Vec::new(),
            deleting: false,
            foreground: false,
            orphan: false,
        };
        let dependents = HashSet::from([Arc::clone(dependent)]);
        self.nodes.insert(Arc::clone(&owner.uid), Node { object, hearsay: true, dependents });
        work.push(Work::Attempt(Arc::clone(&owner.uid)));
    }

    fn unlink(&mut self, owner: &Uid, dependent: &Uid, work: &mut Vec<Work>) {
        let Some(node) = self.nodes.get_mut(owner) else { return };
        node.dependents.remove(dependent);
        if node.object.foreground {
            work.push(Work::Attempt(Arc::clone(owner)));
        } else if node.hearsay && node.dependents.is_empty() {
            self.nodes.remove(owner);
        }
    }

    /// An object is gone, or was never there.
    pub fn remove(&mut self, uid: &str) -> Vec<Work> {
        let mut work = Vec::new();
        let Some((uid, node)) = self.nodes.remove_entry(uid) else { return work };
        self.remember(&uid);
        for owner in &node.object.owners {
            self.unlink(&owner.uid, &uid, &mut work);
        }
        work.extend(node.dependents.into_iter().map(Work::Attempt));
        work
    }

    fn remember(&mut self, uid: &Uid) {
        if self.gone.insert(Arc::clone(uid)) {
            self.gone_order.push_back(Arc::clone(uid));
        }
        if self.gone_order.len() > REMEMBERED
            && let Some(oldest) = self.gone_order.pop_front()
        {
            self.gone.remove(&oldest);
        }
    }

    /// The objects of a kind that are known and not listed any more are gone.
    pub fn retain(&mut self, api_version: &str, kind: &str, listed: &HashSet<Uid>) -> Vec<Work> {
        let is_missing = |n: &&Node| {
            let reach = &n.object.reach;
            !n.hearsay
                && *reach.kind == *kind
                && *reach.api_version == *api_version
                && !listed.contains(&n.object.uid)
        };
        let gone: Vec<Uid> =
            self.nodes.values().filter(is_missing).map(|n| Arc::clone(&n.object.uid)).collect();
        gone.iter().flat_map(|uid| self.remove(uid)).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn object(uid: &str, owners: &[&str], more: Value) -> Object {
        let owners: Vec<_> = owners
            .iter()
            .map(|o| json!({"apiVersion": "v1", "kind": "Thing", "name": o, "uid": o, "blockOwnerDeletion": true}))
            .collect();
        let mut meta = json!({"name": uid, "namespace": "d", "uid": uid, "ownerReferences": owners});
        if let (Some(meta), Some(more)) = (meta.as_object_mut(), more.as_object()) {
            meta.extend(more.clone());
        }
        Object::new(&"v1".into(), &"Thing".into(), &serde_json::from_value(meta).expect("metadata"))
    }

    fn deleting(finalizer: &str) -> Value {
        json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [finalizer]})
    }

    fn sorted(mut work: Vec<Work>) -> Vec<Work> {
        work.sort();
        work
    }

    fn attempt(uid: &str) -> Work {
        Work::Attempt(uid.into())
    }

    #[test]
    fn dependents_are_looked_at_when_their_owner_goes() {
        let mut graph = Graph::default();
        assert!(graph.observe(object("owner", &[], json!({}))).is_empty());
        assert!(graph.observe(object("a", &["owner"], json!({}))).is_empty());
        assert!(graph.observe(object("b", &["owner"], json!({}))).is_empty());
        assert_eq!(sorted(graph.remove("owner")), [attempt("a"), attempt("b")]);
        assert!(graph.is_gone("owner"));
        let late = graph.observe(object("late", &["owner"], json!({})));
        assert!(late.contains(&attempt("late")), "who comes after the end is looked at, too");
    }

    #[test]
    fn an_owner_known_by_hearsay_is_verified() {
        let mut graph = Graph::default();
        assert_eq!(graph.observe(object("a", &["owner"], json!({}))), [attempt("owner")]);
        assert_eq!(graph.get("owner").map(|(_, hearsay, _)| hearsay), Some(true));
        assert!(graph.observe(object("owner", &[], json!({}))).is_empty());
        assert_eq!(
            graph.get("owner").map(|(_, hearsay, dependents)| (hearsay, dependents)),
            Some((false, true))
        );
    }

    #[test]
    fn a_foreground_deletion_waits_for_its_dependents() {
        let mut graph = Graph::default();
        graph.observe(object("owner", &[], json!({})));
        graph.observe(object("a", &["owner"], json!({})));
        let work = graph.observe(object("owner", &[], deleting(FOREGROUND)));
        assert_eq!(sorted(work), [attempt("a"), attempt("owner")]);
        assert_eq!(graph.remove("a"), [attempt("owner")], "it may be free now");
    }

    #[test]
    fn an_orphaning_deletion_is_told_once() {
        let mut graph = Graph::default();
        graph.observe(object("owner", &[], json!({})));
        let dying = object("owner", &[], deleting(ORPHAN));
        assert_eq!(graph.observe(dying.clone()), [Work::Orphan("owner".into())]);
        assert!(graph.observe(dying).is_empty());
    }

    #[test]
    fn what_is_not_listed_any_more_is_gone() {
        let mut graph = Graph::default();
        graph.observe(object("owner", &[], json!({})));
        graph.observe(object("a", &["owner"], json!({})));
        let listed = HashSet::from([Uid::from("a")]);
        assert_eq!(graph.retain("v1", "Thing", &listed), [attempt("a")]);
        assert!(graph.retain("v1", "Other", &HashSet::new()).is_empty(), "another kind's list says nothing");
    }
}
