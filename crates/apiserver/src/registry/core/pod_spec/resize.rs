//! A pod's resources may change while it runs, and nothing else through this door (KEP-1287, `ValidatePodResize`).

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use krate_api::{FieldErrors, FieldPath};

use super::pod_level::{LIMITS, REQUESTS, Side};
use super::qos_class;
use super::visit::inits;
use crate::registry::prepare::differ;

/// The mark of a pod that a node has made known of its own.
pub const MIRROR: &str = "kubernetes.io/config.mirror";

/// Whether a pod is the image of a static one.
pub fn is_mirror(meta: &ObjectMeta) -> bool {
    meta.annotations.as_ref().is_some_and(|all| all.contains_key(MIRROR))
}
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
    if is_mirror(&old.metadata) {
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
    let mut is_sound = own_resources(spec, was, &at, errors);
    if !same_containers(spec, was, &at, errors) {
        return;
    }
    let lists =
        [("initContainers", inits(spec), inits(was)), ("containers", &spec.containers, &was.containers)];
    for (list, new, old) in lists {
        for (i, (is, was)) in new.iter().zip(old).enumerate() {
            let place = at.child(list).index(i);
            is_sound &= kept(is, was, &place.child("resources"), errors);
            if differ(&without_amounts(is, Claims::Gone), &without_amounts(was, Claims::Kept)) {
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
    rest.resources = own_rest(spec);
    let before = PodSpec { resources: own_rest(was), ..was.clone() };
    if is_sound && differ(&rest, &before) {
        errors.forbidden(&at, ONLY_THESE);
    }
}

/// What the pod asks for as a whole may become another amount as well (KEP-5419).
fn own_resources(new: &PodSpec, old: &PodSpec, at: &FieldPath, errors: &mut FieldErrors) -> bool {
    let place = at.child("resources");
    let is_set = |spec: &PodSpec| {
        let own = spec.resources.as_ref();
        own.is_some_and(|own| [REQUESTS, LIMITS].iter().any(|of| of(own).is_some_and(|of| !of.is_empty())))
    };
    if !is_set(new) && !is_set(old) {
        return true;
    }
    if new.resources.is_none() && old.resources.is_some() {
        errors.forbidden(&place, "pod-level resources cannot be removed");
        return false;
    }
    let mut is_sound = true;
    let sides: [(&str, Side); 2] = [("requests", REQUESTS), ("limits", LIMITS)];
    for (name, of) in sides {
        let (is, was) = (new.resources.as_ref().and_then(of), old.resources.as_ref().and_then(of));
        let is_kept = |resource: &String| is.is_some_and(|is| is.contains_key(resource));
        if !was.into_iter().flatten().all(|(resource, _)| is_kept(resource)) {
            errors.forbidden(&place.child(name), format!("pod-level resource {name} cannot be removed"));
            is_sound = false;
        }
    }
    if differ(&own_rest(new), &own_rest(old)) {
        errors.forbidden(at, "only cpu and memory resources are mutable at pod-level");
        is_sound = false;
    }
    is_sound
}

/// What a pod asks for as a whole besides cpu and memory.
fn own_rest(spec: &PodSpec) -> Option<ResourceRequirements> {
    spec.resources.clone().map(only_others).filter(|rest| *rest != ResourceRequirements::default())
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

/// What is asked for or limited may become another amount, and not none at all.
fn kept(new: &Container, old: &Container, at: &FieldPath, errors: &mut FieldErrors) -> bool {
    let side = |c: &Container, of: Side| c.resources.as_ref().and_then(of).cloned().unwrap_or_default();
    let sides: [(&str, Side); 2] = [("requests", REQUESTS), ("limits", LIMITS)];
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

/// Upstream forgets the claims of the new container when it compares, and so lets no container be resized that has some.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Claims {
    Kept,
    Gone,
}

fn without_amounts(container: &Container, claims: Claims) -> Container {
    let mut resources = container.resources.clone().map(only_others);
    if let Some(resources) = resources.as_mut().filter(|_| claims == Claims::Gone) {
        resources.claims = None;
    }
    let resources = resources.filter(|r| *r != ResourceRequirements::default());
    Container { resources, ..container.clone() }
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

    #[test]
    fn what_a_pod_asks_for_as_a_whole_changes_likewise() {
        let of = |own: Value, policy: &str| -> Pod {
            serde_json::from_value(
                json!({"metadata": {"name": "p"}, "spec": {"resources": own, "containers": [
                {"name": "c", "image": "a", "resizePolicy": [
                    {"resourceName": "cpu", "restartPolicy": policy}]}]}}),
            )
            .expect("a pod")
        };
        let old = of(json!({"requests": {"cpu": "1"}}), "NotRequired");
        let said = |new: &Pod| {
            let mut errors = FieldErrors::new();
            resize(new, &old, &FieldPath::new(""), &mut errors);
            errors.aggregate()
        };
        assert_eq!(said(&of(json!({"requests": {"cpu": "2"}}), "NotRequired")), "[]");
        assert!(
            said(&of(json!({"requests": {"memory": "1Gi"}}), "NotRequired")).contains(
                "spec.resources.requests: Forbidden: pod-level resource requests cannot be removed"
            )
        );
        let mut without = old.clone();
        without.spec.as_mut().expect("a spec").resources = None;
        assert!(said(&without).contains("spec.resources: Forbidden: pod-level resources cannot be removed"));
        assert_eq!(
            said(&of(json!({"requests": {"cpu": "1"}}), "RestartContainer")),
            format!("spec: Forbidden: {ONLY_THESE}"),
            "how a container takes a new amount is settled when it is made"
        );
    }
}
