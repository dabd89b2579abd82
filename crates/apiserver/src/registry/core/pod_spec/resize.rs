//! A pod's resources may change while it runs, and nothing else through this door (KEP-1287, `ValidatePodResize`).

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use krate_api::{FieldErrors, FieldPath};

use super::{Amounts, qos_class};
use crate::registry::prepare::differ;

const MIRROR: &str = "kubernetes.io/config.mirror";
const ONLY_THESE: &str = "only cpu and memory resources are mutable";

/// Makes all but the resources of `new` what it was in `old`. Containers that are others are left for validation to
/// refuse.
pub fn keep_all_else(new: &mut PodSpec, old: &PodSpec) {
    if new.containers.len() != old.containers.len() || inits(new).len() != inits(old).len() {
        return;
    }
    let mut kept = old.clone();
    kept.resources.clone_from(&new.resources);
    merge(&mut kept.containers, &new.containers);
    if let Some(kept) = &mut kept.init_containers {
        merge(kept, inits(new));
    }
    *new = kept;
}

fn inits(spec: &PodSpec) -> &[Container] {
    spec.init_containers.as_deref().unwrap_or_default()
}

fn merge(kept: &mut Vec<Container>, new: &[Container]) {
    if kept.iter().zip(new).any(|(was, is)| was.name != is.name) {
        *kept = new.to_vec();
        return;
    }
    for (kept, new) in kept.iter_mut().zip(new) {
        kept.resources.clone_from(&new.resources);
        kept.resize_policy.clone_from(&new.resize_policy);
    }
}

pub fn resize(new: &Pod, old: &Pod, at: &FieldPath, errors: &mut FieldErrors) {
    let default = PodSpec::default();
    let (spec, was) = (new.spec.as_ref().unwrap_or(&default), old.spec.as_ref().unwrap_or(&default));
    if old.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(MIRROR)) {
        errors.forbidden(at, "static pods cannot be resized");
        return;
    }
    if was.os.as_ref().is_some_and(|os| os.name == "windows") {
        errors.forbidden(at, "windows pods cannot be resized");
        return;
    }
    let at = at.child("spec");
    let class = old.status.as_ref().and_then(|s| s.qos_class.as_deref());
    if class.unwrap_or(qos_class(was)) != qos_class(spec) {
        let said = new.status.as_ref().and_then(|s| s.qos_class.clone()).unwrap_or_default();
        errors.invalid(&at, said, "Pod QOS Class may not change as a result of resizing");
    }
    if !is_supported(old) {
        errors.forbidden(&at, "Pod running on node without support for resize");
    }
    if !same_containers(spec, was, &at, errors) {
        return;
    }
    let lists =
        [("initContainers", inits(spec), inits(was)), ("containers", &spec.containers, &was.containers)];
    let mut is_sound = true;
    for (list, new, old) in lists {
        for (i, (is, was)) in new.iter().zip(old).enumerate() {
            let place = at.child(list).index(i);
            is_sound &= kept(is, was, &place.child("resources"), errors);
            if differ(&without_amounts(is), &without_amounts(was)) {
                is_sound = false;
                if list == "containers" {
                    errors.forbidden(&at, ONLY_THESE);
                } else {
                    let only = "only cpu and memory resources for init or sidecar containers are mutable";
                    errors.forbidden(&place, only);
                }
            }
            let restarts = is.resize_policy.iter().flatten().any(|p| p.restart_policy == "RestartContainer");
            let is_sidecar = is.restart_policy.as_deref() == Some("Always");
            if list == "initContainers" && !is_sidecar && restarts && differ(is, was) {
                is_sound = false;
                let only =
                    "non-sidecar init containers with a resize policy of RestartContainer cannot be resized";
                errors.forbidden(&place, only);
            }
        }
    }
    let mut rest = spec.clone();
    rest.containers.clone_from(&was.containers);
    rest.init_containers.clone_from(&was.init_containers);
    rest.resources = rest.resources.map(only_others);
    let before = PodSpec { resources: was.resources.clone().map(only_others), ..was.clone() };
    if is_sound && differ(&rest, &before) {
        errors.forbidden(&at, ONLY_THESE);
    }
}

/// The first container that runs tells whether its node knows of resizing.
fn is_supported(pod: &Pod) -> bool {
    let all = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    let running = all.into_iter().find(|s| s.state.as_ref().is_some_and(|s| s.running.is_some()));
    running.is_none_or(|s| s.resources.is_some())
}

fn same_containers(new: &PodSpec, old: &PodSpec, at: &FieldPath, errors: &mut FieldErrors) -> bool {
    let mut same = true;
    for (list, new, old) in
        [("containers", &*new.containers, &*old.containers), ("initContainers", inits(new), inits(old))]
    {
        if new.len() != old.len() {
            errors.forbidden(&at.child(list), format!("{list} may not be added or removed on resize"));
            same = false;
            continue;
        }
        for (i, _) in new.iter().zip(old).enumerate().filter(|(_, (is, was))| is.name != was.name) {
            let at = at.child(list).index(i).child("name");
            errors.forbidden(&at, format!("{list} may not be renamed or reordered on resize"));
            same = false;
        }
    }
    same
}

type Side = fn(&ResourceRequirements) -> Option<&Amounts>;

/// What is asked for or limited may become another amount, and not none at all.
fn kept(new: &Container, old: &Container, at: &FieldPath, errors: &mut FieldErrors) -> bool {
    let side = |c: &Container, of: Side| c.resources.as_ref().and_then(of).cloned().unwrap_or_default();
    let sides: [(&str, Side); 2] = [("requests", |r| r.requests.as_ref()), ("limits", |r| r.limits.as_ref())];
    let mut all = true;
    for (name, of) in sides {
        let (is, was) = (side(new, of), side(old, of));
        if was.keys().any(|resource| !is.contains_key(resource)) {
            errors.forbidden(&at.child(name), format!("resource {name} cannot be removed"));
            all = false;
        }
    }
    all
}

fn only_others(mut resources: ResourceRequirements) -> ResourceRequirements {
    for side in [&mut resources.requests, &mut resources.limits] {
        if let Some(amounts) = side {
            amounts.retain(|name, _| name != "cpu" && name != "memory");
        }
        *side = side.take().filter(|amounts| !amounts.is_empty());
    }
    resources
}

fn without_amounts(container: &Container) -> Container {
    let resources = container.resources.clone().map(only_others);
    let resources = resources.filter(|r| *r != ResourceRequirements::default());
    Container { resources, resize_policy: None, ..container.clone() }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(resources: &Value, image: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"containers": [
            {"name": "c", "image": image, "resources": resources}]}}))
        .expect("a pod")
    }

    #[test]
    fn only_amounts_of_cpu_and_memory_change() {
        let old = pod(&json!({"requests": {"cpu": "100m"}, "limits": {"memory": "64Mi"}}), "a");
        for (resources, said) in [
            (json!({"requests": {"cpu": "200m"}, "limits": {"memory": "32Mi"}}), None),
            (
                json!({"requests": {"cpu": "200m", "memory": "1Mi"}, "limits": {"memory": "32Mi", "cpu": "1"}}),
                None,
            ),
            (json!({"limits": {"memory": "64Mi"}}), Some("resource requests cannot be removed")),
            (json!({"requests": {"cpu": "100m"}}), Some("resource limits cannot be removed")),
            (
                json!({"requests": {"cpu": "100m", "ephemeral-storage": "1Gi"}, "limits": {"memory": "64Mi"}}),
                Some(ONLY_THESE),
            ),
            (
                json!({"requests": {"cpu": "1", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "64Mi"}}),
                Some("Pod QOS Class may not change as a result of resizing"),
            ),
        ] {
            // An image that is changed at the same time stays what it was.
            let mut new = pod(&resources, "b");
            keep_all_else(new.spec.as_mut().expect("a spec"), old.spec.as_ref().expect("a spec"));
            assert_eq!(new.spec.as_ref().and_then(|s| s.containers[0].image.as_deref()), Some("a"));
            let mut errors = FieldErrors::new();
            resize(&new, &old, &FieldPath::new(""), &mut errors);
            let found = format!("{errors:?}");
            match said {
                None => assert!(errors.is_empty(), "{resources}: {found}"),
                Some(said) => assert!(errors.len() == 1 && found.contains(said), "{resources}: {found}"),
            }
        }
    }
}
