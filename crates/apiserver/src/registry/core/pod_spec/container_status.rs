//! What a node tells of a pod's containers besides how they go: who they run as, how their devices are, and from which
//! claim they have them (`validateContainerStatusUsers`, `validateContainerStatusAllocatedResourcesStatus`,
//! `validatePodExtendedResourceClaimStatus`).

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    Container, ContainerStatus, ContainerUser, PodSpec, PodStatus, ResourceClaim, ResourceHealth,
    ResourceStatus,
};
use krate_api::{FieldErrors, FieldPath};

use super::security::id;
use super::visit::inits;
use crate::registry::rules::{dns_label, dns_subdomain, one_of};

/// `at` is the status' place.
pub fn check(status: &PodStatus, spec: &PodSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let lists: [(_, &[ContainerStatus]); 3] = [
        (at.child("containerStatuses"), status.container_statuses.as_deref().unwrap_or_default()),
        (at.child("initContainerStatuses"), status.init_container_statuses.as_deref().unwrap_or_default()),
        (
            at.child("ephemeralContainerStatuses"),
            status.ephemeral_container_statuses.as_deref().unwrap_or_default(),
        ),
    ];
    let system = spec.os.as_ref().map_or("linux", |os| os.name.as_str());
    for (at, list) in &lists {
        for (i, c) in list.iter().enumerate() {
            if let Some(user) = &c.user {
                runs_as(user, system, &at.index(i).child("user").child("linux"), errors);
            }
        }
    }
    let [own, init, added] = &lists;
    for ((at, list), containers) in [(own, spec.containers.as_slice()), (init, inits(spec))] {
        for (i, c) in list.iter().enumerate() {
            let container = containers.iter().find(|container| container.name == c.name);
            let at = at.index(i).child("allocatedResourcesStatus");
            for (j, told) in c.allocated_resources_status.iter().flatten().enumerate() {
                devices(told, container, &at.index(j), errors);
            }
        }
    }
    let (at, list) = added;
    for (i, c) in list.iter().enumerate() {
        if c.allocated_resources_status.as_ref().is_some_and(|all| !all.is_empty()) {
            let at = at.index(i).child("allocatedResourcesStatus");
            errors.forbidden(&at, "must not be specified in container status");
        }
    }
}

fn runs_as(user: &ContainerUser, system: &str, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(user) = &user.linux else { return };
    if system == "windows" {
        errors.forbidden(at, "cannot be set for a windows pod");
    } else {
        id(Some(user.uid), &at.child("uid"), errors);
        id(Some(user.gid), &at.child("gid"), errors);
        for (i, group) in user.supplemental_groups.iter().flatten().enumerate() {
            id(Some(*group), &at.child("supplementalGroups").index(i), errors);
        }
    }
}

/// A container that the pod does not have may be told of.
fn devices(told: &ResourceStatus, container: Option<&Container>, at: &FieldPath, errors: &mut FieldErrors) {
    if let Some(container) = container {
        asked_for(&told.name, container, &at.child("name"), errors);
    }
    let mut seen = BTreeSet::new();
    for (i, device) in told.resources.iter().flatten().enumerate() {
        let at = at.child("resources").index(i);
        health(device, &at, errors);
        if !seen.insert(device.resource_id.as_str()) {
            errors.duplicate(&at.child("resourceID"), &device.resource_id);
        }
    }
}

fn asked_for(name: &str, container: &Container, at: &FieldPath, errors: &mut FieldErrors) {
    let resources = container.resources.as_ref();
    if let Some(claim) = name.strip_prefix("claim:") {
        let mut claims = resources.into_iter().flat_map(|r| r.claims.iter().flatten());
        let called = |c: &ResourceClaim| match c.request.as_deref().filter(|request| !request.is_empty()) {
            Some(request) => format!("{}/{request}", c.name),
            None => c.name.clone(),
        };
        if !claims.any(|c| called(c) == claim) {
            let why = "must match one of the container's resource claims in a format \
                'claim:<claimName>/<request>' or 'claim:<claimName>' if request is empty";
            errors.invalid(at, name, why);
        }
    } else if !requests(container, name) {
        errors.invalid(at, name, "must match one of the container's resource requests");
    }
}

fn requests(container: &Container, name: &str) -> bool {
    let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
    requests.is_some_and(|requests| requests.contains_key(name))
}

fn health(device: &ResourceHealth, at: &FieldPath, errors: &mut FieldErrors) {
    const LONGEST: usize = 1024;
    let health = device.health.as_deref().unwrap_or_default();
    one_of(health, &["Healthy", "Unhealthy", "Unknown"], &at.child("health"), errors);
    let at = at.child("message");
    match device.message.as_deref() {
        Some("") => errors.required(&at, "must be non-empty if specified"),
        Some(message) if message.len() > LONGEST => errors.too_long(&at, LONGEST),
        _ => {}
    }
}

/// The claim that was made for what a pod asks for by requests (KEP-5004).
pub fn extended_claim(status: &PodStatus, spec: &PodSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(claim) = &status.extended_resource_claim_status else { return };
    let at_all = at.child("requestMappings");
    if claim.request_mappings.is_empty() {
        errors.required(&at_all, "at least one request mapping is required");
    }
    let mut seen = BTreeSet::new();
    for (i, it) in claim.request_mappings.iter().enumerate() {
        let at_this = at_all.index(i);
        let mut containers = spec.containers.iter().chain(inits(spec));
        match containers.find(|c| c.name == it.container_name) {
            None => errors.invalid(
                &at_this.child("containerName"),
                &it.container_name,
                "must match the name of an entry in spec.initContainers.name or spec.containers.name",
            ),
            Some(c) if !requests(c, &it.resource_name) => errors.invalid(
                &at_this.child("resourceName"),
                &it.resource_name,
                "must match the extended resource name of an entry in spec.initContainers.resources.requests or \
                 spec.containers.resources.requests",
            ),
            Some(_) => {}
        }
        // Upstream says so of the status, whichever mapping it is.
        dns_label(&it.request_name, &at.child("requestName"), errors);
        if !seen.insert((&it.container_name, &it.resource_name, &it.request_name)) {
            errors.duplicate(&at_this.child("containerName"), &it.container_name);
            errors.duplicate(&at_this.child("resourceName"), &it.resource_name);
            errors.duplicate(&at_this.child("requestName"), &it.request_name);
        }
    }
    let at_name = at.child("resourceClaimName");
    if claim.resource_claim_name.is_empty() {
        errors.required(&at_name, "");
    } else {
        dns_subdomain(&claim.resource_claim_name, &at_name, errors);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(rest: Value) -> PodSpec {
        let mut spec = json!({"containers": [{"name": "c", "resources": {
            "requests": {"example.com/gpu": "1"},
            "claims": [{"name": "whole"}, {"name": "part", "request": "r"}]}}]});
        spec.as_object_mut().expect("a map").extend(rest.as_object().cloned().unwrap_or_default());
        serde_json::from_value(spec).expect("a spec")
    }

    fn container(rest: Value) -> Value {
        let mut status = json!({"name": "c", "ready": true, "restartCount": 0, "image": "", "imageID": ""});
        status.as_object_mut().expect("a map").extend(rest.as_object().cloned().unwrap_or_default());
        json!([status])
    }

    fn said(status: Value, spec: &PodSpec) -> String {
        let status = serde_json::from_value(status).expect("a status");
        let mut errors = FieldErrors::new();
        check(&status, spec, &FieldPath::new("status"), &mut errors);
        errors.aggregate()
    }

    #[test]
    fn who_a_container_runs_as_is_a_user() {
        let user = |uid: i64| {
            let linux = json!({"uid": uid, "gid": 0, "supplementalGroups": [1]});
            json!({"containerStatuses": container(json!({"user": {"linux": linux}}))})
        };
        assert_eq!(said(user(0), &spec(json!({}))), "[]");
        assert_eq!(
            said(user(-1), &spec(json!({}))),
            "status.containerStatuses[0].user.linux.uid: Invalid value: -1: must be between 0 and 2147483647, inclusive"
        );
        assert_eq!(
            said(user(0), &spec(json!({"os": {"name": "windows"}}))),
            "status.containerStatuses[0].user.linux: Forbidden: cannot be set for a windows pod"
        );
    }

    #[test]
    fn devices_are_what_the_container_asked_for() {
        let all = |list: &str, name: &str, resources: Value| {
            let told = json!([{"name": name, "resources": resources}]);
            json!({list: container(json!({"allocatedResourcesStatus": told}))})
        };
        let device = |rest: Value| {
            let mut device = json!({"resourceID": "d", "health": "Healthy"});
            device.as_object_mut().expect("a map").extend(rest.as_object().cloned().unwrap_or_default());
            device
        };
        let spec = spec(json!({}));
        for name in ["example.com/gpu", "claim:whole", "claim:part/r"] {
            assert_eq!(said(all("containerStatuses", name, json!([device(json!({}))])), &spec), "[]");
        }
        for (name, why) in [
            ("cpu", "must match one of the container's resource requests"),
            (
                "claim:part",
                "must match one of the container's resource claims in a format 'claim:<claimName>/<request>' or \
                 'claim:<claimName>' if request is empty",
            ),
        ] {
            assert_eq!(
                said(all("containerStatuses", name, json!([])), &spec),
                format!(
                    "status.containerStatuses[0].allocatedResourcesStatus[0].name: Invalid value: \"{name}\": {why}"
                )
            );
        }
        let at = "status.containerStatuses[0].allocatedResourcesStatus[0].resources";
        let twice = json!([device(json!({})), device(json!({"health": "Ill", "message": ""}))]);
        assert_eq!(
            said(all("containerStatuses", "claim:whole", twice), &spec),
            format!(
                "[{at}[1].health: Unsupported value: \"Ill\": supported values: \"Healthy\", \"Unhealthy\", \
                 \"Unknown\", {at}[1].message: Required value: must be non-empty if specified, {at}[1].resourceID: \
                 Duplicate value: \"d\"]"
            )
        );
        assert_eq!(
            said(all("ephemeralContainerStatuses", "cpu", json!([])), &spec),
            "status.ephemeralContainerStatuses[0].allocatedResourcesStatus: Forbidden: must not be specified in \
             container status"
        );
    }

    #[test]
    fn a_claim_for_requests_says_whose_they_are() {
        let said = |claim: Value| {
            let status = json!({"extendedResourceClaimStatus": claim});
            let status = serde_json::from_value(status).expect("a status");
            let mut errors = FieldErrors::new();
            extended_claim(&status, &spec(json!({})), &FieldPath::new("at"), &mut errors);
            errors.aggregate()
        };
        let mapping = |container: &str, resource: &str| json!({"containerName": container, "resourceName": resource, "requestName": "r"});
        let sound = mapping("c", "example.com/gpu");
        assert_eq!(said(json!({"requestMappings": [sound], "resourceClaimName": "a"})), "[]");
        assert_eq!(
            said(json!({"requestMappings": [], "resourceClaimName": ""})),
            "[at.requestMappings: Required value: at least one request mapping is required, at.resourceClaimName: \
             Required value]"
        );
        let odd = json!([mapping("d", "cpu"), mapping("c", "cpu")]);
        assert_eq!(
            said(json!({"requestMappings": odd, "resourceClaimName": "a"})),
            "[at.requestMappings[0].containerName: Invalid value: \"d\": must match the name of an entry in \
             spec.initContainers.name or spec.containers.name, at.requestMappings[1].resourceName: Invalid value: \
             \"cpu\": must match the extended resource name of an entry in spec.initContainers.resources.requests or \
             spec.containers.resources.requests]"
        );
        let twice = said(json!({"requestMappings": [sound, sound], "resourceClaimName": "a"}));
        assert_eq!(twice.matches("Duplicate value").count(), 3, "{twice}");
    }
}
