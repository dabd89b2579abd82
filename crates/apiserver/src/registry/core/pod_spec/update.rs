//! What may change in a pod that exists: very little, since a node may already run it (`ValidatePodUpdate`).

use k8s_openapi::api::core::v1::{Affinity, Container, NodeSelectorTerm, PodSpec, Toleration};
use krate_api::{FieldErrors, FieldPath};

use super::containers::image_as_pods_name_it;
use super::scheduling::toleration;
use super::visit::inits;
use crate::registry::prepare::differ;
use crate::registry::rules::in_range;

const ONLY_THESE: &str = "pod updates may not change fields other than \
    `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` \
    (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was \
    previously negative)";

pub fn update(new: &PodSpec, old: &PodSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let lists = [
        ("containers", new.containers.as_slice(), old.containers.as_slice()),
        ("initContainers", inits(new), inits(old)),
    ];
    for (name, new, old) in lists {
        if !images(new, old, &at.child(name), errors) {
            return;
        }
    }
    if !deadline(
        new.active_deadline_seconds,
        old.active_deadline_seconds,
        &at.child("activeDeadlineSeconds"),
        errors,
    ) {
        return;
    }
    let gated = old.scheduling_gates.as_ref().is_some_and(|g| !g.is_empty());
    tolerations(new.tolerations.as_deref(), old.tolerations.as_deref(), &at.child("tolerations"), errors);
    gates(new, old, &at.child("schedulingGates"), errors);

    if new == old {
        return;
    }
    // Whatever may change is made as it was: what still differs may not.
    let mut rest = new.clone();
    rest.active_deadline_seconds = old.active_deadline_seconds;
    rest.tolerations.clone_from(&old.tolerations);
    rest.scheduling_gates.clone_from(&old.scheduling_gates);
    for (c, was) in rest.containers.iter_mut().zip(&old.containers) {
        c.image.clone_from(&was.image);
    }
    for (c, was) in rest.init_containers.iter_mut().flatten().zip(inits(old)) {
        c.image.clone_from(&was.image);
    }
    if new.termination_grace_period_seconds == Some(1)
        && old.termination_grace_period_seconds.is_some_and(|g| g < 0)
    {
        rest.termination_grace_period_seconds = old.termination_grace_period_seconds;
    }
    if gated {
        // A pod that is not yet offered to the scheduler may still be narrowed down.
        narrowed_selector(new, old, at, errors);
        rest.node_selector.clone_from(&old.node_selector);
        with_nodes_of(&mut rest.affinity, old.affinity.as_ref());
    }
    if differ(&rest, old) {
        errors.forbidden(at, ONLY_THESE);
    }
}

/// Images may change, and nothing may be added or go. Whether to go on comparing.
fn images(new: &[Container], old: &[Container], at: &FieldPath, errors: &mut FieldErrors) -> bool {
    if new.len() != old.len() {
        errors.forbidden(at, "pod updates may not add or remove containers");
        return false;
    }
    for (i, c) in new.iter().enumerate() {
        let at = at.index(i);
        if c.image.as_deref().is_none_or(str::is_empty) {
            errors.required(&at.child("image"), "");
        }
        image_as_pods_name_it(c, &at, errors);
    }
    true
}

/// The affinity with what it had to say of nodes before: pods it may not be narrowed by.
fn with_nodes_of(affinity: &mut Option<Affinity>, old: Option<&Affinity>) {
    let nodes = old.and_then(|old| old.node_affinity.clone());
    if affinity.is_some() || nodes.is_some() {
        affinity.get_or_insert_default().node_affinity = nodes;
    }
    if old.is_none() && affinity.as_ref() == Some(&Affinity::default()) {
        *affinity = None;
    }
}

/// A deadline may be set or brought forward. Whether to go on comparing.
fn deadline(new: Option<i64>, old: Option<i64>, at: &FieldPath, errors: &mut FieldErrors) -> bool {
    let Some(seconds) = new else {
        if old.is_some() {
            errors.invalid(at, new, "must not update from a positive integer to nil value");
        }
        return true;
    };
    let before = errors.len();
    in_range(seconds, 0, i64::from(i32::MAX), at, errors);
    if errors.len() == before && old.is_some_and(|old| old < seconds) {
        errors.invalid(at, seconds, "must be less than or equal to previous value");
    }
    errors.len() == before
}

/// Tolerations may only be added, or given another time.
fn tolerations(
    new: Option<&[Toleration]>,
    old: Option<&[Toleration]>,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    let same = |a: &Toleration, b: &Toleration| {
        (&a.key, &a.operator, &a.value, &a.effect) == (&b.key, &b.operator, &b.value, &b.effect)
    };
    for was in old.unwrap_or_default() {
        let kept = new.unwrap_or_default().iter().any(|t| same(t, was));
        if !kept {
            errors.forbidden(at, "existing toleration can not be modified except its tolerationSeconds");
            return;
        }
    }
    for (i, t) in new.unwrap_or_default().iter().enumerate() {
        toleration(t, &at.index(i), errors);
    }
}

fn gates(new: &PodSpec, old: &PodSpec, at: &FieldPath, errors: &mut FieldErrors) {
    for (i, gate) in new.scheduling_gates.iter().flatten().enumerate() {
        if !old.scheduling_gates.iter().flatten().any(|g| g.name == gate.name) {
            errors.forbidden(
                &at.index(i).child("name"),
                format!("only deletion is allowed, but found new scheduling gate '{}'", gate.name),
            );
        }
    }
}

fn narrowed_selector(new: &PodSpec, old: &PodSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let has = |k: &String, v: &String| new.node_selector.as_ref().and_then(|s| s.get(k)) == Some(v);
    if !old.node_selector.iter().flatten().all(|(k, v)| has(k, v)) {
        errors.invalid(
            &at.child("nodeSelector"),
            &new.node_selector,
            "only additions to spec.nodeSelector are allowed (no mutations or deletions)",
        );
    }
    let required = |s: &PodSpec| {
        s.affinity
            .as_ref()
            .and_then(|a| a.node_affinity.as_ref())
            .and_then(|n| n.required_during_scheduling_ignored_during_execution.clone())
    };
    let Some(was) = required(old).filter(|was| !was.node_selector_terms.is_empty()) else { return };
    let is = required(new).unwrap_or_default();
    let at = at
        .child("affinity")
        .child("nodeAffinity")
        .child("requiredDuringSchedulingIgnoredDuringExecution")
        .child("nodeSelectorTerms");
    if is.node_selector_terms.len() != was.node_selector_terms.len() {
        let why = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        errors.invalid(&at, &is.node_selector_terms, why);
        return;
    }
    for (i, (is, was)) in is.node_selector_terms.iter().zip(&was.node_selector_terms).enumerate() {
        if !only_adds(is, was) {
            errors.invalid(&at.index(i), is, "only additions are allowed (no mutations or deletions)");
        }
    }
}

/// Rules come after those that are there. A term without any selects nothing, and stays so.
fn only_adds(new: &NodeSelectorTerm, old: &NodeSelectorTerm) -> bool {
    let rules = [
        (new.match_expressions.as_deref(), old.match_expressions.as_deref()),
        (new.match_fields.as_deref(), old.match_fields.as_deref()),
    ];
    let mut rules = rules.into_iter().map(|(new, old)| (new.unwrap_or_default(), old.unwrap_or_default()));
    if rules.clone().all(|(_, old)| old.is_empty()) {
        return rules.all(|(new, _)| new.is_empty());
    }
    rules.all(|(new, old)| new.starts_with(old))
}

/// Ephemeral containers may be added, and neither changed nor removed.
pub fn ephemeral_update(new: &PodSpec, old: &PodSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let at = at.child("ephemeralContainers");
    for was in old.ephemeral_containers.iter().flatten() {
        match new.ephemeral_containers.iter().flatten().find(|c| c.name == was.name) {
            None => errors.forbidden(
                &at,
                format!("existing ephemeral containers \"{}\" may not be removed\n", was.name),
            ),
            Some(is) if differ(is, was) => {
                errors.forbidden(
                    &at,
                    format!("existing ephemeral containers \"{}\" may not be changed\n", was.name),
                );
            }
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(rest: &Value) -> PodSpec {
        let mut spec = json!({"containers": [{"name": "c", "image": "i"}]});
        spec.as_object_mut().expect("a map").extend(rest.as_object().cloned().unwrap_or_default());
        serde_json::from_value(spec).expect("a spec")
    }

    fn said(new: &Value, old: &Value) -> String {
        let mut errors = FieldErrors::new();
        update(&spec(new), &spec(old), &FieldPath::new("spec"), &mut errors);
        errors.aggregate()
    }

    #[test]
    fn a_deadline_comes_nearer_and_stays() {
        let at = "spec.activeDeadlineSeconds: Invalid value:";
        let of = |seconds: i64| json!({"activeDeadlineSeconds": seconds});
        assert_eq!(said(&of(5), &of(10)), "[]");
        assert_eq!(said(&of(20), &of(10)), format!("{at} 20: must be less than or equal to previous value"));
        assert_eq!(said(&of(-1), &of(10)), format!("{at} -1: must be between 0 and 2147483647, inclusive"));
        let none = "null: must not update from a positive integer to nil value";
        assert_eq!(said(&json!({}), &of(10)), format!("{at} {none}"));
    }

    #[test]
    fn any_toleration_may_be_given_another_time() {
        let of = |seconds: i64| {
            json!({"tolerations": [
                {"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}]})
        };
        assert_eq!(said(&of(5), &of(10)), "[]");
        assert!(
            said(&json!({"tolerations": []}), &of(10)).contains("existing toleration can not be modified")
        );
    }

    #[test]
    fn a_gated_pod_is_narrowed_by_nodes_alone() {
        let gates = json!([{"name": "g"}]);
        let nodes = |rules: &Value| {
            json!({"schedulingGates": gates, "affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": rules}]}}}})
        };
        let (a, b) = (json!({"key": "a", "operator": "Exists"}), json!({"key": "b", "operator": "Exists"}));
        let none = json!({"schedulingGates": gates});
        assert_eq!(said(&nodes(&json!([a])), &none), "[]");
        assert_eq!(said(&nodes(&json!([a, b])), &nodes(&json!([a]))), "[]");
        assert!(
            said(&nodes(&json!([b])), &nodes(&json!([a])))
                .contains("nodeSelectorTerms[0]: Invalid value: {\"matchExpressions\"")
        );
        let pods = json!({"schedulingGates": gates, "affinity": {"podAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "zone"}]}}});
        assert_eq!(said(&pods, &none), format!("spec: Forbidden: {ONLY_THESE}"));
        assert_eq!(
            said(&json!({"schedulingGates": [{"name": "g"}, {"name": "h"}]}), &none),
            "spec.schedulingGates[1].name: Forbidden: only deletion is allowed, but found new scheduling gate 'h'"
        );
    }
}
