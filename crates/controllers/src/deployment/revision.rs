//! Which ReplicaSet is the new one, what its name is, and the annotations that `kubectl rollout history` and `undo`
//! read.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::rollout::{Set, desired, max_surge};
use crate::meta::{Labels, controller_reference, name, safe_hash};

pub const REVISION: &str = "deployment.kubernetes.io/revision";
pub const HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub const MAX: &str = "deployment.kubernetes.io/max-replicas";
pub const HASH: &str = "pod-template-hash";
/// Annotations of a deployment that are not its sets'.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];
/// How long the annotation of former revisions may be.
const HISTORY_CHARACTERS: usize = 2000;

/// An annotation that is a number.
pub fn number(rs: &ReplicaSet, key: &str) -> Option<i32> {
    rs.metadata.annotations.as_ref()?.get(key)?.parse().ok()
}

pub fn revision(annotations: Option<&Labels>) -> i64 {
    annotations.and_then(|a| a.get(REVISION)).and_then(|r| r.parse().ok()).unwrap_or(0)
}

fn without_hash(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(meta) = &mut template.metadata {
        if let Some(labels) = &mut meta.labels {
            labels.remove(HASH);
        }
        if meta.labels.as_ref().is_some_and(BTreeMap::is_empty) {
            meta.labels = None;
        }
    }
    template
}

fn template(d: &Deployment) -> PodTemplateSpec {
    d.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default()
}

/// Splits a deployment's sets into the one with its template, the oldest if there are more, and all others.
pub fn split(d: &Deployment, sets: &[Set]) -> (Option<Set>, Vec<Set>) {
    let wanted = without_hash(&template(d));
    let mut sorted = sets.to_vec();
    sorted.sort_by_key(|rs| (rs.metadata.creation_timestamp.as_ref().map(|t| t.0), rs.metadata.name.clone()));
    let is_new = |rs: &Set| {
        rs.spec.as_ref().and_then(|s| s.template.as_ref()).is_some_and(|t| without_hash(t) == wanted)
    };
    let new = sorted.iter().position(is_new).map(|at| sorted.remove(at));
    (new, sorted)
}

/// What the new set's name and label say of the template. The count tells apart templates whose hashes are equal.
pub fn hash(d: &Deployment) -> String {
    let template = serde_json::to_vec(&template(d)).unwrap_or_default();
    let collisions = d.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0);
    let salt = if collisions == 0 { Vec::new() } else { collisions.to_le_bytes().to_vec() };
    safe_hash(&[&template, &salt])
}

/// The new set of a deployment, with no replicas yet.
pub fn new_set(d: &Deployment, revision: i64) -> ReplicaSet {
    let spec = d.spec.clone().unwrap_or_default();
    let hash = hash(d);
    let mut template = spec.template;
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH.to_owned(), hash.clone());
    let labels = labels.clone();
    let mut selector: LabelSelector = spec.selector;
    selector.match_labels.get_or_insert_default().insert(HASH.to_owned(), hash.clone());
    let mut rs = ReplicaSet {
        spec: Some(ReplicaSetSpec {
            replicas: Some(0),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        ..ReplicaSet::default()
    };
    rs.metadata.name = Some(format!("{}-{hash}", name(d)));
    rs.metadata.namespace.clone_from(&d.metadata.namespace);
    rs.metadata.labels = Some(labels);
    rs.metadata.owner_references = Some(vec![controller_reference(d)]);
    annotate(d, &mut rs, revision);
    annotate_size(d, &mut rs);
    rs
}

/// The revision that the new set should have: one more than that of any old one.
pub fn next(old: &[Set]) -> i64 {
    old.iter().map(|rs| revision(rs.metadata.annotations.as_ref())).max().unwrap_or(0) + 1
}

/// Gives the set the deployment's annotations and the revision, if it is higher than the one it has, which then
/// becomes history. Whether something has changed.
pub fn annotate(d: &Deployment, rs: &mut ReplicaSet, revision: i64) -> bool {
    let before = rs.metadata.annotations.clone();
    let annotations = rs.metadata.annotations.get_or_insert_default();
    for (key, value) in d.metadata.annotations.iter().flatten() {
        if !NOT_COPIED.contains(&key.as_str()) {
            annotations.insert(key.clone(), value.clone());
        }
    }
    let had = annotations.get(REVISION).cloned();
    if had.as_deref().and_then(|r| r.parse::<i64>().ok()).unwrap_or(0) < revision {
        annotations.insert(REVISION.to_owned(), revision.to_string());
        if let Some(had) = had {
            let history = annotations.entry(HISTORY.to_owned()).or_default();
            *history = append(history, &had);
        }
    }
    rs.metadata.annotations != before
}

fn append(history: &str, revision: &str) -> String {
    let mut history = if history.is_empty() { revision.to_owned() } else { format!("{history},{revision}") };
    while history.len() > HISTORY_CHARACTERS {
        match history.split_once(',') {
            Some((_, rest)) => history = rest.to_owned(),
            None => break,
        }
    }
    history
}

/// Writes down for what size of the deployment the set was sized. Whether something has changed.
pub fn annotate_size(d: &Deployment, rs: &mut ReplicaSet) -> bool {
    let before = rs.metadata.annotations.clone();
    let annotations = rs.metadata.annotations.get_or_insert_default();
    annotations.insert(DESIRED.to_owned(), desired(d).to_string());
    annotations.insert(MAX.to_owned(), (desired(d) + max_surge(d)).to_string());
    rs.metadata.annotations != before
}

/// The old sets that are not kept for `rollout undo`: the lowest revisions beyond the limit, if they have no pods.
pub fn forgotten(d: &Deployment, old: &[Set]) -> Vec<Set> {
    let limit = d.spec.as_ref().and_then(|s| s.revision_history_limit).unwrap_or(10);
    let mut alive: Vec<Set> =
        old.iter().filter(|rs| rs.metadata.deletion_timestamp.is_none()).map(Arc::clone).collect();
    alive.sort_by_key(|rs| revision(rs.metadata.annotations.as_ref()));
    let surplus = alive.len().saturating_sub(usize::try_from(limit).unwrap_or(usize::MAX));
    alive.truncate(surplus);
    alive.retain(|rs| {
        let status = rs.status.clone().unwrap_or_default();
        status.replicas == 0
            && rs.spec.as_ref().and_then(|s| s.replicas) == Some(0)
            && rs.metadata.generation <= status.observed_generation
    });
    alive
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn deployment(image: &str) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "uid": "u", "annotations": {"note": "x", REVISION: "7"}},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"a": "b"}},
                "template": {"metadata": {"labels": {"a": "b"}},
                    "spec": {"containers": [{"name": "c", "image": image}]}}}}))
        .expect("a deployment")
    }

    #[test]
    fn the_new_set_is_found_again_by_its_template() {
        let (one, two) = (deployment("one"), deployment("two"));
        let set_one = Arc::new(new_set(&one, 1));
        let set_two = Arc::new(new_set(&two, 2));
        assert_ne!(set_one.metadata.name, set_two.metadata.name);
        let all = [Arc::clone(&set_one), Arc::clone(&set_two)];
        let (new, old) = split(&one, &all);
        assert_eq!(new.map(|rs| rs.metadata.name.clone()), Some(set_one.metadata.name.clone()));
        assert_eq!(old.len(), 1);
        assert_eq!(next(&old), 3, "going back makes a new revision");
    }

    #[test]
    fn annotations_tell_revisions_and_their_history() {
        let d = deployment("one");
        let mut rs = new_set(&d, 1);
        let of =
            |rs: &ReplicaSet, key: &str| rs.metadata.annotations.as_ref().and_then(|a| a.get(key)).cloned();
        assert_eq!(of(&rs, "note").as_deref(), Some("x"));
        assert_eq!((number(&rs, DESIRED), number(&rs, MAX)), (Some(3), Some(4)));
        assert!(!annotate(&d, &mut rs, 1), "nothing has changed");
        assert!(annotate(&d, &mut rs, 3));
        assert!(annotate(&d, &mut rs, 5));
        assert_eq!((of(&rs, REVISION).as_deref(), of(&rs, HISTORY).as_deref()), (Some("5"), Some("1,3")));
    }

    #[test]
    fn a_collision_gives_another_name() {
        let mut d = deployment("one");
        let before = hash(&d);
        d.status.get_or_insert_default().collision_count = Some(1);
        assert_ne!(hash(&d), before);
    }

    #[test]
    fn only_empty_sets_beyond_the_limit_are_forgotten() {
        let mut d = deployment("one");
        d.spec.get_or_insert_default().revision_history_limit = Some(1);
        let set = |n: i64, replicas: i32| {
            let mut rs = new_set(&deployment(&n.to_string()), n);
            rs.status.get_or_insert_default().replicas = replicas;
            Arc::new(rs)
        };
        let gone = forgotten(&d, &[set(3, 0), set(1, 0), set(2, 1)]);
        assert_eq!(gone.iter().map(|rs| revision(rs.metadata.annotations.as_ref())).collect::<Vec<_>>(), [1]);
    }
}
