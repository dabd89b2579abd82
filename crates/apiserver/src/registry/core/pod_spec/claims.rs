//! Claims of a pod: for storage, and for devices.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{PersistentVolumeClaimSpec, PodResourceClaim, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use krate_api::{FieldErrors, FieldPath};
use serde::Serialize;

use super::resize::is_mirror;
use super::resources::amount;
use crate::registry::quantities::{is_negative, is_zero};
use crate::registry::rules::{dns_label, dns_subdomain, each, label_selector, one_of, required};

/// In which ways a volume may be used, and a claim for one.
pub fn access_modes(modes: &[String], at: &FieldPath, errors: &mut FieldErrors) {
    const MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
    const ALONE: &str = "ReadWriteOncePod";
    for mode in modes {
        one_of(mode, MODES, at, errors);
    }
    let has_others = modes.iter().any(|mode| mode != ALONE && MODES.contains(&mode.as_str()));
    if has_others && modes.iter().any(|mode| mode == ALONE) {
        errors.forbidden(at, "may not use ReadWriteOncePod with other access modes");
    }
}

/// A claim for storage, on its own or as a template.
pub fn claim(spec: &PersistentVolumeClaimSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let modes = spec.access_modes.as_deref().unwrap_or_default();
    if modes.is_empty() {
        errors.required(&at.child("accessModes"), "at least 1 access mode is required");
    }
    if let Some(selector) = &spec.selector {
        label_selector(selector, &at.child("selector"), errors);
    }
    access_modes(modes, &at.child("accessModes"), errors);
    let size_at = at.child("resources").key("storage");
    let requests = spec.resources.as_ref().and_then(|r| r.requests.as_ref());
    match requests.and_then(|r| r.get("storage")) {
        None => errors.required(&size_at, ""),
        Some(size) if is_negative(size) || is_zero(size) => {
            errors.invalid(&size_at, &size.0, "must be greater than zero");
        }
        Some(size) => amount("storage", size, &size_at, errors),
    }
    if let Some(name) = spec.storage_class_name.as_deref().filter(|n| !n.is_empty()) {
        dns_subdomain(name, &at.child("storageClassName"), errors);
    }
    if let Some(mode) = &spec.volume_mode {
        one_of(mode, &["Block", "Filesystem"], &at.child("volumeMode"), errors);
    }
    data_sources(spec, at, errors);
    if let Some(name) = spec.volume_attributes_class_name.as_deref().filter(|n| !n.is_empty()) {
        each(
            krate_api::names::is_dns1123_subdomain(name),
            name,
            &at.child("volumeAttributesClassName"),
            errors,
        );
    }
}

/// What a claim's volume begins with: the older field of the two, and the newer (KEP-1495, KEP-3294).
fn data_sources(spec: &PersistentVolumeClaimSpec, at: &FieldPath, errors: &mut FieldErrors) {
    if let Some(s) = &spec.data_source {
        data_source(s.api_group.as_deref(), &s.kind, &s.name, &at.child("dataSource"), errors);
    }
    let Some(r) = &spec.data_source_ref else { return };
    let at_ref = at.child("dataSourceRef");
    data_source(r.api_group.as_deref(), &r.kind, &r.name, &at_ref, errors);
    let namespace = r.namespace.as_deref().filter(|n| !n.is_empty());
    if let Some(namespace) = namespace {
        dns_label(namespace, &at_ref.child("namespace"), errors);
    }
    let Some(s) = &spec.data_source else { return };
    // Upstream shows the path in place of a value, and that is nothing in JSON.
    let path = serde_json::json!({});
    if namespace.is_some() {
        errors.invalid(at, path, "may not be specified when dataSourceRef.namespace is specified");
    } else if (&s.api_group, &s.kind, &s.name) != (&r.api_group, &r.kind, &r.name) {
        errors.invalid(at, path, "must match dataSourceRef");
    }
}

fn data_source(group: Option<&str>, kind: &str, name: &str, at: &FieldPath, errors: &mut FieldErrors) {
    required(Some(name), &at.child("name"), errors);
    required(Some(kind), &at.child("kind"), errors);
    match group.filter(|group| !group.is_empty()) {
        Some(group) => dns_subdomain(group, &at.child("apiGroup"), errors),
        None if kind != "PersistentVolumeClaim" => {
            let why = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
            errors.invalid(at, kind, why);
        }
        None => {}
    }
}

/// The claims for devices that containers may name. `pod` is the metadata of a pod; none for a template of one.
pub fn resource_claims(spec: &PodSpec, pod: Option<&ObjectMeta>, at: &FieldPath, errors: &mut FieldErrors) {
    let is_static = pod.is_some_and(is_mirror);
    let mut names = BTreeSet::new();
    for (i, claim) in spec.resource_claims.iter().flatten().enumerate() {
        if is_static {
            errors.forbidden(&FieldPath::new(""), "static pods do not support resource claims");
            continue;
        }
        let at = at.child("resourceClaims").index(i);
        if claim.name.is_empty() {
            errors.required(&at.child("name"), "");
        } else if names.insert(&claim.name) {
            dns_label(&claim.name, &at.child("name"), errors);
        } else {
            errors.duplicate(&at.child("name"), &claim.name);
        }
        match (&claim.resource_claim_name, &claim.resource_claim_template_name) {
            (None, None) => errors.invalid(
                &at,
                GoClaim::of(claim),
                "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`",
            ),
            (Some(_), Some(_)) => errors.invalid(
                &at,
                GoClaim::of(claim),
                "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified",
            ),
            _ => {}
        }
        if let Some(name) = &claim.resource_claim_name {
            dns_subdomain(name, &at.child("resourceClaimName"), errors);
        }
        if let Some(name) = &claim.resource_claim_template_name {
            dns_subdomain(name, &at.child("resourceClaimTemplateName"), errors);
        }
    }
}

/// A claim as upstream shows it whole: its Go fields in their order.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct GoClaim<'a> {
    name: &'a str,
    resource_claim_name: Option<&'a str>,
    resource_claim_template_name: Option<&'a str>,
}

impl<'a> GoClaim<'a> {
    fn of(claim: &'a PodResourceClaim) -> Self {
        GoClaim {
            name: &claim.name,
            resource_claim_name: claim.resource_claim_name.as_deref(),
            resource_claim_template_name: claim.resource_claim_template_name.as_deref(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::MIRROR;
    use super::*;

    #[test]
    fn both_sources_of_a_claim_say_the_same() {
        let said = |rest: Value| {
            let mut spec = json!({"accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1Gi"}}});
            spec.as_object_mut().expect("a map").extend(rest.as_object().cloned().unwrap_or_default());
            let mut errors = FieldErrors::new();
            claim(&serde_json::from_value(spec).expect("a spec"), &FieldPath::new("spec"), &mut errors);
            errors.aggregate()
        };
        let source = json!({"kind": "PersistentVolumeClaim", "name": "a"});
        assert_eq!(said(json!({"dataSource": source, "dataSourceRef": source})), "[]");
        assert_eq!(
            said(
                json!({"dataSource": source, "dataSourceRef": {"kind": "PersistentVolumeClaim", "name": "b"}})
            ),
            "spec: Invalid value: {}: must match dataSourceRef"
        );
        assert!(said(json!({"dataSourceRef": {"apiGroup": "A_", "kind": "K", "name": "b"}})).starts_with(
            "spec.dataSourceRef.apiGroup: Invalid value: \"A_\": a lowercase RFC 1123 subdomain"
        ));
        assert_eq!(
            said(json!({"resources": {"requests": {"storage": "0"}}})),
            "spec.resources[storage]: Invalid value: \"0\": must be greater than zero"
        );
    }

    #[test]
    fn a_claim_for_devices_is_one_of_two_and_no_matter_for_static_pods() {
        let said = |claim: Value, annotations: Value| {
            let spec = serde_json::from_value(json!({"containers": [], "resourceClaims": [claim]}));
            let meta: ObjectMeta =
                serde_json::from_value(json!({"annotations": annotations})).expect("metadata");
            let mut errors = FieldErrors::new();
            let spec: PodSpec = spec.expect("a spec");
            resource_claims(&spec, Some(&meta), &FieldPath::new("spec"), &mut errors);
            errors.aggregate()
        };
        let sound = json!({"name": "c", "resourceClaimName": "a"});
        assert_eq!(said(sound.clone(), json!({})), "[]");
        assert_eq!(
            said(sound, json!({MIRROR: "x"})),
            ": Forbidden: static pods do not support resource claims"
        );
        assert_eq!(
            said(json!({"name": "c"}), json!({})),
            "spec.resourceClaims[0]: Invalid value: {\"Name\":\"c\",\"ResourceClaimName\":null,\
             \"ResourceClaimTemplateName\":null}: must specify one of: `resourceClaimName`, \
             `resourceClaimTemplateName`"
        );
    }
}
