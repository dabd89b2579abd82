//! Where a pod's files come from.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, KeyToPath, PersistentVolumeClaimSpec, PodSpec, Volume,
};
use krate_api::{FieldErrors, FieldPath};
use serde_json::Value;

use super::containers::{field_ref, resource_field};
use super::projected::projected;
use super::resources::{amount, resource_name};
use crate::registry::quantities::{is_negative, is_zero};
use crate::registry::rules::{
    config_key, dns_label, dns_subdomain, each, label_name, label_selector, one_of,
};

pub fn volumes(spec: &PodSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let mut names = BTreeSet::new();
    for (i, v) in spec.volumes.iter().flatten().enumerate() {
        let at = at.child("volumes").index(i);
        let before = errors.len();
        if v.name.is_empty() {
            errors.required(&at.child("name"), "");
        } else {
            dns_label(&v.name, &at.child("name"), errors);
        }
        if names.contains(v.name.as_str()) {
            errors.duplicate(&at.child("name"), &v.name);
        }
        sources(v, &at, errors);
        if errors.len() == before {
            names.insert(v.name.as_str());
        }
    }
}

/// The names that a mount may use.
pub fn names(spec: &PodSpec) -> BTreeSet<&str> {
    spec.volumes.iter().flatten().map(|v| v.name.as_str()).collect()
}

fn sources(v: &Volume, at: &FieldPath, errors: &mut FieldErrors) {
    // The set sources in the order in which the typed struct writes them.
    let given: Vec<String> = match serde_json::to_value(v) {
        Ok(Value::Object(map)) => {
            map.into_iter().filter(|(k, v)| k != "name" && !v.is_null()).map(|(k, _)| k).collect()
        }
        _ => Vec::new(),
    };
    if given.is_empty() {
        errors.required(at, "must specify a volume type");
    }
    for extra in given.iter().skip(1) {
        errors.forbidden(&at.child(extra), "may not specify more than 1 volume type");
    }
    if let Some(s) = &v.empty_dir {
        let at = at.child("emptyDir");
        if s.size_limit.as_ref().is_some_and(is_negative) {
            errors.forbidden(&at.child("sizeLimit"), "SizeLimit field must be a valid resource quantity");
        }
    }
    if let Some(s) = &v.host_path {
        let at = at.child("hostPath");
        if s.path.is_empty() {
            errors.required(&at.child("path"), "");
        } else {
            no_back_steps(&s.path, &at.child("path"), errors);
        }
        if let Some(kind) = s.type_.as_deref() {
            one_of(
                kind,
                &[
                    "",
                    "BlockDevice",
                    "CharDevice",
                    "Directory",
                    "DirectoryOrCreate",
                    "File",
                    "FileOrCreate",
                    "Socket",
                ],
                &at.child("type"),
                errors,
            );
        }
    }
    if let Some(s) = &v.secret {
        let at = at.child("secret");
        if s.secret_name.as_deref().is_none_or(str::is_empty) {
            errors.required(&at.child("secretName"), "");
        }
        mode(s.default_mode, &at.child("defaultMode"), errors);
        items(s.items.as_deref(), &at.child("items"), errors);
    }
    if let Some(s) = &v.config_map {
        let at = at.child("configMap");
        if s.name.is_empty() {
            errors.required(&at.child("name"), "");
        }
        mode(s.default_mode, &at.child("defaultMode"), errors);
        items(s.items.as_deref(), &at.child("items"), errors);
    }
    if let Some(s) = &v.downward_api {
        let at = at.child("downwardAPI");
        mode(s.default_mode, &at.child("defaultMode"), errors);
        for file in s.items.iter().flatten() {
            // Upstream names no place in the list here.
            downward_file(file, &at, errors);
        }
    }
    if let Some(s) = &v.projected {
        projected(s, &at.child("projected"), errors);
    }
    if let Some(s) = &v.persistent_volume_claim
        && s.claim_name.is_empty()
    {
        errors.required(&at.child("persistentVolumeClaim").child("claimName"), "");
    }
    if let Some(s) = &v.nfs {
        let at = at.child("nfs");
        if s.server.is_empty() {
            errors.required(&at.child("server"), "");
        }
        if s.path.is_empty() {
            errors.required(&at.child("path"), "");
        } else if !s.path.starts_with('/') {
            errors.invalid(&at.child("path"), &s.path, "must be an absolute path");
        }
    }
    if let Some(s) = &v.csi {
        driver_name(&s.driver, &at.child("csi").child("driver"), errors);
        if s.node_publish_secret_ref.as_ref().is_some_and(|r| r.name.is_empty()) {
            errors.required(&at.child("csi").child("nodePublishSecretRef").child("name"), "");
        }
    }
    if let Some(s) = &v.image {
        let at = at.child("image");
        if s.reference.as_deref().is_none_or(str::is_empty) {
            errors.required(&at.child("reference"), "");
        }
        if let Some(policy) = &s.pull_policy {
            one_of(policy, &["Always", "IfNotPresent", "Never"], &at.child("pullPolicy"), errors);
        }
    }
    if let Some(s) = &v.ephemeral {
        let at = at.child("ephemeral").child("volumeClaimTemplate");
        match &s.volume_claim_template {
            None => errors.required(&at, ""),
            Some(template) => claim(&template.spec, &at.child("spec"), errors),
        }
    }
}

/// The name of a CSI driver.
pub fn driver_name(name: &str, at: &FieldPath, errors: &mut FieldErrors) {
    if name.is_empty() {
        errors.required(at, "");
        return;
    }
    if name.len() > 63 {
        errors.too_long(at, 63);
    }
    dns_subdomain(&name.to_lowercase(), at, errors);
}

pub fn mode(mode: Option<i32>, at: &FieldPath, errors: &mut FieldErrors) {
    if let Some(mode) = mode
        && !(0..=0o777).contains(&mode)
    {
        errors.invalid(at, mode, "must be a number between 0 and 0777 (octal), both inclusive");
    }
}

pub fn items(items: Option<&[KeyToPath]>, at: &FieldPath, errors: &mut FieldErrors) {
    for (i, item) in items.unwrap_or_default().iter().enumerate() {
        let at = at.index(i);
        if item.key.is_empty() {
            errors.required(&at.child("key"), "");
        } else {
            each(config_key(&item.key), &item.key, &at.child("key"), errors);
        }
        if item.path.is_empty() {
            errors.required(&at.child("path"), "");
        } else {
            file_path(&item.path, &at.child("path"), errors);
        }
        mode(item.mode, &at.child("mode"), errors);
    }
}

pub fn downward_file(file: &DownwardAPIVolumeFile, at: &FieldPath, errors: &mut FieldErrors) {
    if file.path.is_empty() {
        errors.required(&at.child("path"), "");
    } else {
        file_path(&file.path, &at.child("path"), errors);
    }
    match (&file.field_ref, &file.resource_field_ref) {
        (Some(_), Some(_)) => {
            errors.invalid(
                at,
                "resource",
                "fieldRef and resourceFieldRef can not be specified simultaneously",
            );
        }
        (Some(f), None) => field_ref(
            &f.field_path,
            &[
                "metadata.annotations",
                "metadata.labels",
                "metadata.name",
                "metadata.namespace",
                "metadata.uid",
            ],
            &at.child("fieldRef").child("fieldPath"),
            errors,
        ),
        (None, Some(r)) => {
            let at = at.child("resourceFieldRef");
            if r.container_name.as_deref().is_none_or(str::is_empty) {
                errors.required(&at.child("containerName"), "");
            }
            resource_field(&r.resource, &at.child("resource"), errors);
        }
        (None, None) => errors.required(at, "one of fieldRef and resourceFieldRef is required"),
    }
    mode(file.mode, &at.child("mode"), errors);
}

/// The path of a file that the kubelet puts into a volume: its own begin with two dots.
pub fn file_path(path: &str, at: &FieldPath, errors: &mut FieldErrors) {
    local_path(path, at, errors);
    if path.starts_with("..") && path != ".." && !path.starts_with("../") {
        errors.invalid(at, path, "must not start with '..'");
    }
}

/// A path inside a volume: relative, and never upwards.
pub fn local_path(path: &str, at: &FieldPath, errors: &mut FieldErrors) {
    if path.starts_with('/') {
        errors.invalid(at, path, "must be a relative path");
    }
    no_back_steps(path, at, errors);
}

pub fn no_back_steps(path: &str, at: &FieldPath, errors: &mut FieldErrors) {
    if path.split('/').any(|part| part == "..") {
        errors.invalid(at, path, "must not contain '..'");
    }
}

/// A claim for storage, on its own or as a template.
pub fn claim(spec: &PersistentVolumeClaimSpec, at: &FieldPath, errors: &mut FieldErrors) {
    const MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
    let modes = spec.access_modes.as_deref().unwrap_or_default();
    if modes.is_empty() {
        errors.required(&at.child("accessModes"), "at least 1 access mode is required");
    }
    if let Some(selector) = &spec.selector {
        label_selector(selector, &at.child("selector"), errors);
    }
    for mode in modes {
        one_of(mode, MODES, &at.child("accessModes"), errors);
    }
    if modes.len() > 1 && modes.iter().any(|m| m == "ReadWriteOncePod") {
        errors.forbidden(&at.child("accessModes"), "may not use ReadWriteOncePod with other access modes");
    }
    let resources = at.child("resources");
    let requests = spec.resources.as_ref().and_then(|r| r.requests.as_ref());
    match requests.and_then(|r| r.get("storage")) {
        None => errors.required(&resources.key("storage"), ""),
        Some(size) => {
            resource_name("storage", &resources.child("requests").key("storage"), errors);
            if is_negative(size) || is_zero(size) {
                errors.invalid(
                    &resources.child("requests").key("storage"),
                    &size.0,
                    "must be greater than zero",
                );
            } else {
                amount("storage", size, &resources.child("requests").key("storage"), errors);
            }
        }
    }
    if let Some(name) = spec.storage_class_name.as_deref().filter(|n| !n.is_empty()) {
        dns_subdomain(name, &at.child("storageClassName"), errors);
    }
    if let Some(mode) = &spec.volume_mode {
        one_of(mode, &["Block", "Filesystem"], &at.child("volumeMode"), errors);
    }
    if let Some(source) = &spec.data_source {
        let at = at.child("dataSource");
        if source.name.is_empty() {
            errors.required(&at.child("name"), "");
        }
        if source.kind.is_empty() {
            errors.required(&at.child("kind"), "");
        }
        if source.api_group.as_deref().is_none_or(str::is_empty) && source.kind != "PersistentVolumeClaim" {
            errors.invalid(
                &at,
                &source.kind,
                "must be 'PersistentVolumeClaim' when referencing the default apiGroup",
            );
        }
    }
    if let Some(name) = spec.volume_attributes_class_name.as_deref().filter(|n| !n.is_empty()) {
        each(
            krate_api::names::is_dns1123_subdomain(name),
            name,
            &at.child("volumeAttributesClassName"),
            errors,
        );
    }
}

/// The claims for devices that containers may name.
pub fn resource_claims(spec: &PodSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let mut names = BTreeSet::new();
    for (i, claim) in spec.resource_claims.iter().flatten().enumerate() {
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
                claim,
                "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`",
            ),
            (Some(_), Some(_)) => errors.invalid(
                &at,
                claim,
                "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified",
            ),
            (Some(name), None) => dns_subdomain(name, &at.child("resourceClaimName"), errors),
            (None, Some(name)) => dns_subdomain(name, &at.child("resourceClaimTemplateName"), errors),
        }
    }
}

/// Labels that say where something is.
pub fn topology_key(key: &str, at: &FieldPath, errors: &mut FieldErrors) {
    if key.is_empty() {
        errors.required(at, "can not be empty");
    }
    label_name(key, at, errors);
}

/// A share of the decision between 1 and 100.
pub fn weight(weight: i32, at: &FieldPath, errors: &mut FieldErrors) {
    if !(1..=100).contains(&weight) {
        errors.invalid(at, weight, "must be in the range 1-100");
    }
}
