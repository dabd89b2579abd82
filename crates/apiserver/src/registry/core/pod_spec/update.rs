//! What may change in a pod that exists: very little, since a node may already run it (`ValidatePodUpdate`).

use k8s_openapi::api::core::v1::{PodSpec, Toleration};
use krate_api::{FieldErrors, FieldPath};

use crate::registry::prepare::differ;
use crate::registry::rules::NOT_NEGATIVE;

const ONLY_THESE: &str = "pod updates may not change fields other than \
    `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` \
    (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was \
    previously negative)";

pub fn update(new: &PodSpec, old: &PodSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let counts = |s: &PodSpec| (s.containers.len(), s.init_containers.as_ref().map_or(0, Vec::len));
    if counts(new) != counts(old) {
        let same = new.containers.len() == old.containers.len();
        let name = if same { "initContainers" } else { "containers" };
        errors.forbidden(&at.child(name), "pod updates may not add or remove containers");
        return;
    }
    let images = |s: &PodSpec| -> Vec<(Option<String>, &'static str)> {
        let init = s.init_containers.iter().flatten().map(|c| (c.image.clone(), "initContainers"));
        s.containers.iter().map(|c| (c.image.clone(), "containers")).chain(init).collect()
    };
    let mut places = [0usize; 2];
    for (image, list) in images(new) {
        let place = &mut places[usize::from(list == "initContainers")];
        if image.as_deref().is_none_or(str::is_empty) {
            errors.required(&at.child(list).index(*place).child("image"), "");
        }
        *place += 1;
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

    // Whatever may change is made as it was: what still differs may not.
    let mut rest = new.clone();
    rest.active_deadline_seconds = old.active_deadline_seconds;
    rest.tolerations.clone_from(&old.tolerations);
    rest.scheduling_gates.clone_from(&old.scheduling_gates);
    rest.ephemeral_containers.clone_from(&old.ephemeral_containers);
    for (c, was) in rest.containers.iter_mut().zip(&old.containers) {
        c.image.clone_from(&was.image);
    }
    for (c, was) in rest.init_containers.iter_mut().flatten().zip(old.init_containers.iter().flatten()) {
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
        rest.affinity.clone_from(&old.affinity);
    }
    if differ(&rest, old) {
        errors.forbidden(at, ONLY_THESE);
    }
}

/// A deadline may be set or brought forward. Whether to go on comparing.
fn deadline(new: Option<i64>, old: Option<i64>, at: &FieldPath, errors: &mut FieldErrors) -> bool {
    match (new, old) {
        (Some(new), _) if new < 0 => errors.invalid(at, new, NOT_NEGATIVE),
        (Some(new), Some(old)) if new > old => {
            errors.invalid(at, new, "must be less than or equal to previous value");
        }
        (None, Some(old)) => errors.invalid(at, old, "must not update from a positive integer to nil value"),
        _ => return true,
    }
    false
}

/// Tolerations may only be added, or given another time.
fn tolerations(
    new: Option<&[Toleration]>,
    old: Option<&[Toleration]>,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    let timeless = |t: &Toleration| Toleration { toleration_seconds: None, ..t.clone() };
    for was in old.unwrap_or_default() {
        let kept = new.unwrap_or_default().iter().any(|t| {
            timeless(t) == timeless(was)
                && (t.toleration_seconds == was.toleration_seconds
                    || was.effect.as_deref() == Some("NoExecute"))
        });
        if !kept {
            errors.forbidden(at, "existing toleration can not be modified except its tolerationSeconds");
            return;
        }
    }
}

fn gates(new: &PodSpec, old: &PodSpec, at: &FieldPath, errors: &mut FieldErrors) {
    for (i, gate) in new.scheduling_gates.iter().flatten().enumerate() {
        if !old.scheduling_gates.iter().flatten().any(|g| g.name == gate.name) {
            errors.forbidden(
                &at.index(i),
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
    if let Some(was) = required(old) {
        let is = required(new).unwrap_or_default();
        let at = at
            .child("affinity")
            .child("nodeAffinity")
            .child("requiredDuringSchedulingIgnoredDuringExecution")
            .child("nodeSelectorTerms");
        let narrowed = is.node_selector_terms.len() == was.node_selector_terms.len()
            && is.node_selector_terms.iter().zip(&was.node_selector_terms).all(|(new, old)| {
                let holds = |all: &Option<Vec<_>>, some: &Option<Vec<_>>| {
                    some.iter().flatten().all(|rule| all.iter().flatten().any(|r| r == rule))
                };
                holds(&new.match_expressions, &old.match_expressions)
                    && holds(&new.match_fields, &old.match_fields)
            });
        if !narrowed {
            errors.invalid(
                &at,
                &is.node_selector_terms,
                "no additions/deletions to non-empty NodeSelectorTerms list are allowed",
            );
        }
    }
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
