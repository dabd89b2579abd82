//! What may change of the pods of a Job.

use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{Affinity, Container};
use krate_api::{FieldErrors, FieldPath};

use super::job::condition;
use crate::registry::prepare::differ;
use crate::registry::rules::IMMUTABLE;

/// Whether a Job is suspended and has no pods that run: those that it will have may be others.
pub fn may_change(job: &Job) -> bool {
    let status = job.status.as_ref();
    let begun = status.is_some_and(|s| s.start_time.is_some());
    let active = status.and_then(|s| s.active).unwrap_or(0) != 0;
    let is_suspended = condition(job, "Suspended");
    job.spec.as_ref().is_some_and(|s| s.suspend == Some(true)) && (!begun || is_suspended) && !active
}

/// With `may_change`, where pods run and what they are given of resources; without, nothing.
pub fn validate_update(
    new: &JobSpec,
    old: &JobSpec,
    may_change: bool,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    if !may_change {
        if differ(&new.template, &old.template) {
            errors.invalid(at, &new.template, IMMUTABLE);
        }
        return;
    }
    let pod = new.template.spec.clone().unwrap_or_default();
    let mut held = old.template.spec.clone().unwrap_or_default();
    held.node_selector.clone_from(&pod.node_selector);
    held.tolerations.clone_from(&pod.tolerations);
    held.scheduling_gates.clone_from(&pod.scheduling_gates);
    held.affinity = other_nodes(pod.affinity.as_ref(), held.affinity.take());
    other_resources(&pod.containers, &mut held.containers);
    other_resources(
        pod.init_containers.as_deref().unwrap_or_default(),
        held.init_containers.as_deref_mut().unwrap_or_default(),
    );
    if differ(&pod, &held) {
        errors.invalid(&at.child("spec"), &pod, IMMUTABLE);
    }
}

/// The old affinity with the new one's nodes.
fn other_nodes(new: Option<&Affinity>, old: Option<Affinity>) -> Option<Affinity> {
    let nodes = new.and_then(|affinity| affinity.node_affinity.clone());
    match (new, old) {
        (None, None) => None,
        (None, Some(old)) => {
            let rest = Affinity { node_affinity: None, ..old };
            (rest != Affinity::default()).then_some(rest)
        }
        (Some(_), old) => Some(Affinity { node_affinity: nodes, ..old.unwrap_or_default() }),
    }
}

/// Gives containers that are the same the resources of the new ones.
fn other_resources(new: &[Container], old: &mut [Container]) {
    if new.len() != old.len() {
        return;
    }
    for (new, old) in new.iter().zip(old).filter(|(new, old)| new.name == old.name) {
        old.resources.clone_from(&new.resources);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn job(status: Value) -> Job {
        let job =
            json!({"metadata": {"name": "j"}, "spec": {"suspend": true, "template": {}}, "status": status});
        serde_json::from_value(job).expect("a Job")
    }

    #[test]
    fn a_job_changes_its_pods_while_it_has_none() {
        let begun = "2026-01-01T00:00:00Z";
        let rests = json!([{"type": "Suspended", "status": "True"}]);
        for (status, wanted) in [
            (json!({}), true),
            (json!({"active": 1}), false),
            (json!({"startTime": begun}), false),
            (json!({"startTime": begun, "conditions": rests}), true),
        ] {
            assert_eq!(may_change(&job(status.clone())), wanted, "{status}");
        }
    }

    #[test]
    fn nodes_and_resources_are_what_may_change() {
        let spec = |pod: Value| -> JobSpec {
            serde_json::from_value(json!({"template": {"spec": pod}})).expect("a spec")
        };
        let said = |new: Value, may: bool| {
            let old = spec(json!({"containers": [{"name": "c", "image": "i"}]}));
            let mut errors = FieldErrors::new();
            validate_update(&spec(new), &old, may, &FieldPath::new("spec").child("template"), &mut errors);
            errors.iter().map(|e| e.field.to_string()).collect::<Vec<_>>()
        };
        let nodes = json!({"nodeSelector": {"a": "b"}, "affinity": {"nodeAffinity": {}},
            "containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "1"}}}]});
        assert_eq!(said(nodes.clone(), true), [""; 0]);
        assert_eq!(said(nodes, false), ["spec.template"]);
        assert_eq!(said(json!({"containers": [{"name": "c", "image": "j"}]}), true), ["spec.template.spec"]);
        let near = json!({"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "zone"}]});
        let pods = json!({"affinity": {"podAffinity": near}, "containers": [{"name": "c", "image": "i"}]});
        assert_eq!(said(pods, true), ["spec.template.spec"]);
    }
}
