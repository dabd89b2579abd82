//! What a pod wants by claims: which they are, whether it may use them, and which container has what of them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodResourceClaim};
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::ResourceExt as _;

use super::claims::{Claim, DriverState};
use crate::names;

fn of_spec(pod: &Pod) -> &[PodResourceClaim] {
    pod.spec.as_ref().and_then(|s| s.resource_claims.as_deref()).unwrap_or_default()
}

/// The claim that the scheduler has made for extended resources of a pod that devices stand behind (KEP-5004).
fn of_extended(pod: &Pod) -> Option<&str> {
    let status = pod.status.as_ref()?.extended_resource_claim_status.as_ref()?;
    Some(status.resource_claim_name.as_str())
}

pub fn is_none(pod: &Pod) -> bool {
    of_spec(pod).is_empty() && of_extended(pod).is_none()
}

/// The name of the claim behind one of a pod's, if it has one, and whether it must have been made for the pod.
fn name(pod: &Pod, claim: &PodResourceClaim) -> Result<Option<(String, bool)>, String> {
    if let Some(name) = &claim.resource_claim_name {
        return Ok(Some((name.clone(), false)));
    }
    let of = format!("pod \"{}/{}\"", names::namespace(pod), pod.name_any());
    if claim.resource_claim_template_name.is_none() {
        return Err(format!(
            "{of}, spec.resourceClaim {:?}: none of the supported fields are set",
            claim.name
        ));
    }
    let mut statuses = pod.status.iter().flat_map(|s| s.resource_claim_statuses.iter().flatten());
    let status = statuses.find(|status| status.name == claim.name);
    let status = status.ok_or_else(|| format!("{of}: ResourceClaim not created yet"))?;
    // It may be that none was needed.
    Ok(status.resource_claim_name.clone().map(|name| (name, true)))
}

/// The name of the claim behind the pod's claim of this name.
pub fn named(pod: &Pod, claim: &str) -> Option<String> {
    let found = of_spec(pod).iter().find(|known| known.name == claim)?;
    name(pod, found).ok()?.map(|(name, _)| name)
}

/// All claims of a pod, and whether each must have been made for it.
///
/// # Errors
/// One is not known yet.
pub fn claims(pod: &Pod) -> Result<Vec<(String, bool)>, String> {
    let mut all = Vec::new();
    for claim in of_spec(pod) {
        all.extend(name(pod, claim)?);
    }
    all.extend(of_extended(pod).map(|name| (name.to_owned(), false)));
    Ok(all)
}

/// The requests that a container has of each claim; an empty one stands for all of a claim.
///
/// # Errors
/// A claim is not known yet.
pub fn of_container(pod: &Pod, container: &Container) -> Result<BTreeMap<String, Vec<String>>, String> {
    let resources = container.resources.clone().unwrap_or_default();
    let asked = resources.claims.unwrap_or_default();
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for claim in of_spec(pod) {
        let requests = asked.iter().filter(|asked| asked.name == claim.name);
        let requests: Vec<String> = requests.map(|a| a.request.clone().unwrap_or_default()).collect();
        if requests.is_empty() {
            continue;
        }
        if let Some((name, _)) = name(pod, claim)? {
            found.entry(name).or_default().extend(requests);
        }
    }
    let status = pod.status.as_ref().and_then(|s| s.extended_resource_claim_status.as_ref());
    if let Some(status) = status {
        let wants = |resource: &str| {
            let amount = resources.requests.as_ref().and_then(|r| r.get(resource));
            amount.and_then(|q| krate_api::Quantity::parse(&q.0).ok()).is_some_and(|q| q.value() > 0)
        };
        for mapped in &status.request_mappings {
            if mapped.container_name == container.name && wants(&mapped.resource_name) {
                let requests = found.entry(status.resource_claim_name.clone()).or_default();
                requests.push(mapped.request_name.clone());
            }
        }
    }
    Ok(found)
}

/// Whether a pod may use a claim. Returns what is to be known of it.
///
/// # Errors
/// It may not, or the claim has nothing yet.
pub fn usable(pod: &Pod, claim: &ResourceClaim, must_own: bool) -> Result<Claim, String> {
    let (uid, name) = (names::uid(pod), claim.name_any());
    let mut owners = claim.metadata.owner_references.iter().flatten();
    if must_own && !owners.any(|owner| owner.controller == Some(true) && owner.uid == uid) {
        let namespace = names::namespace(pod);
        return Err(format!(
            "ResourceClaim {namespace}/{name} was not created for pod {namespace}/{} (pod is not owner)",
            pod.name_any()
        ));
    }
    let status = claim.status.clone().unwrap_or_default();
    if !status.reserved_for.iter().flatten().any(|user| user.uid == uid) {
        return Err(format!(
            "pod {} ({uid}) is not allowed to use ResourceClaim {name} ({})",
            pod.name_any(),
            claim.uid().unwrap_or_default()
        ));
    }
    let Some(allocation) = status.allocation else {
        return Err(format!("ResourceClaim {name}: not allocated"));
    };
    let results = allocation.devices.and_then(|devices| devices.results).unwrap_or_default();
    Ok(Claim {
        claim_uid: claim.uid().unwrap_or_default(),
        claim_name: name,
        namespace: claim.namespace().unwrap_or_default(),
        driver_state: results.into_iter().map(|r| (r.driver, DriverState::default())).collect(),
        ..Claim::default()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(status: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [], "resourceClaims": [{"name": "own", "resourceClaimTemplateName": "t"},
                {"name": "shared", "resourceClaimName": "c"}]},
            "status": status}))
        .unwrap()
    }

    #[test]
    fn claims_are_found_by_their_names() {
        let waiting = pod(json!({}));
        assert_eq!(claims(&waiting).unwrap_err(), "pod \"n/p\": ResourceClaim not created yet");
        let ready = pod(json!({"resourceClaimStatuses": [{"name": "own", "resourceClaimName": "p-own"}],
            "extendedResourceClaimStatus": {"resourceClaimName": "ext", "requestMappings": [
                {"containerName": "c", "resourceName": "example.com/gpu", "requestName": "r0"}]}}));
        let all = claims(&ready).unwrap();
        assert_eq!(all, [("p-own".into(), true), ("c".into(), false), ("ext".into(), false)]);
        let unneeded = pod(json!({"resourceClaimStatuses": [{"name": "own"}]}));
        assert_eq!(claims(&unneeded).unwrap(), [("c".into(), false)]);

        let container = |resources: Value| -> Container {
            serde_json::from_value(json!({"name": "c", "resources": resources})).unwrap()
        };
        let asks = container(json!({"claims": [{"name": "own", "request": "gpu"}, {"name": "shared"}],
            "requests": {"example.com/gpu": "1"}}));
        let expected = BTreeMap::from([
            ("p-own".to_owned(), vec!["gpu".to_owned()]),
            ("c".to_owned(), vec![String::new()]),
            ("ext".to_owned(), vec!["r0".to_owned()]),
        ]);
        assert_eq!(of_container(&ready, &asks).unwrap(), expected);
        assert!(of_container(&ready, &container(json!({}))).unwrap().is_empty());
    }

    #[test]
    fn a_claim_is_used_by_those_it_is_reserved_for() {
        let allocation = json!({"devices": {"results": [
            {"request": "gpu", "driver": "d", "pool": "p", "device": "0"}]}});
        let claim = |owner: &str, status: Value| -> ResourceClaim {
            serde_json::from_value(json!({"metadata": {"name": "c", "namespace": "n", "uid": "cu",
                "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": owner, "controller": true}]},
                "spec": {}, "status": status}))
            .unwrap()
        };
        let reserved = json!([{"resource": "pods", "name": "p", "uid": "u"}]);
        let pod = pod(json!({}));
        for (claim, must_own, said) in [
            (claim("u", json!({"allocation": allocation, "reservedFor": reserved})), true, None),
            (
                claim("other", json!({"allocation": allocation, "reservedFor": reserved})),
                true,
                Some("ResourceClaim n/c was not created for pod n/p (pod is not owner)"),
            ),
            (claim("other", json!({"allocation": allocation, "reservedFor": reserved})), false, None),
            (
                claim("u", json!({"allocation": allocation})),
                true,
                Some("pod p (u) is not allowed to use ResourceClaim c (cu)"),
            ),
            (claim("u", json!({"reservedFor": reserved})), true, Some("ResourceClaim c: not allocated")),
        ] {
            let found = usable(&pod, &claim, must_own);
            assert_eq!(found.as_ref().err().map(String::as_str), said);
            if let Ok(found) = found {
                assert_eq!(found.driver_state.keys().collect::<Vec<_>>(), ["d"]);
            }
        }
    }
}
