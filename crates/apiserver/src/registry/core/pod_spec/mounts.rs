//! Where a container has the volumes of its pod: as folders, or as devices.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, Volume, VolumeMount};
use krate_api::{FieldErrors, FieldPath};

use super::volumes::{is_back_step, local_path};
use crate::registry::rules::one_of;

/// The sound volumes of a pod, by their names.
pub type Volumes<'a> = BTreeMap<&'a str, &'a Volume>;

pub fn mounts(c: &Container, volumes: &Volumes<'_>, at: &FieldPath, errors: &mut FieldErrors) {
    let mut paths = BTreeSet::new();
    let devices: BTreeMap<&str, &str> =
        c.volume_devices.iter().flatten().map(|d| (d.name.as_str(), d.device_path.as_str())).collect();
    for (i, m) in c.volume_mounts.iter().flatten().enumerate() {
        let place = at.index(i);
        if m.name.is_empty() {
            errors.required(&place.child("name"), "");
        }
        if !volumes.contains_key(m.name.as_str()) {
            errors.not_found(&place.child("name"), &m.name);
        }
        if m.mount_path.is_empty() {
            errors.required(&place.child("mountPath"), "");
        }
        if !paths.insert(m.mount_path.as_str()) {
            errors.invalid(&place.child("mountPath"), &m.mount_path, "must be unique");
        }
        if devices.contains_key(m.name.as_str()) {
            errors.invalid(&place.child("name"), &m.name, "must not already exist in volumeDevices");
        }
        if devices.values().any(|path| *path == m.mount_path) {
            errors.invalid(
                &place.child("mountPath"),
                &m.mount_path,
                "must not already exist as a path in volumeDevices",
            );
        }
        sub_path(m, at, &place, errors);
        propagation(m, c, at, errors);
    }
}

/// Upstream names the list for most of what is wrong here, without the place in it.
fn sub_path(m: &VolumeMount, at: &FieldPath, place: &FieldPath, errors: &mut FieldErrors) {
    let path = m.sub_path.as_deref().unwrap_or_default();
    let expression = m.sub_path_expr.as_deref().unwrap_or_default();
    if !path.is_empty() {
        local_path(path, &at.child("subPath"), errors);
    }
    if !expression.is_empty() {
        if !path.is_empty() {
            errors.invalid(
                &place.child("subPathExpr"),
                expression,
                "subPathExpr and subPath are mutually exclusive",
            );
        }
        local_path(expression, &at.child("subPathExpr"), errors);
    }
}

/// As for paths below, upstream names the list.
fn propagation(m: &VolumeMount, c: &Container, at: &FieldPath, errors: &mut FieldErrors) {
    if let Some(mode) = &m.mount_propagation {
        let at = at.child("mountPropagation");
        let privileged = c.security_context.as_ref().and_then(|s| s.privileged) == Some(true);
        one_of(mode, &["Bidirectional", "HostToContainer", "None"], &at, errors);
        if mode == "Bidirectional" && !privileged {
            let why = "Bidirectional mount propagation is available only to privileged containers";
            errors.forbidden(&at, why);
        }
    }
    let at = at.child("recursiveReadOnly");
    match m.recursive_read_only.as_deref() {
        None | Some("Disabled") => {}
        Some("Enabled" | "IfPossible") => {
            if m.read_only != Some(true) {
                errors.forbidden(&at, "may only be specified when readOnly is true");
            }
            if m.mount_propagation.as_deref().is_some_and(|p| p != "None") {
                errors.forbidden(&at, "may only be specified when mountPropagation is None or not specified");
            }
        }
        Some(other) => errors.not_supported(&at, other, &["Disabled", "Enabled", "IfPossible"]),
    }
}

pub fn devices(c: &Container, volumes: &Volumes<'_>, at: &FieldPath, errors: &mut FieldErrors) {
    let (mut names, mut paths) = (BTreeSet::new(), BTreeSet::new());
    let mounts: BTreeMap<&str, &str> =
        c.volume_mounts.iter().flatten().map(|m| (m.name.as_str(), m.mount_path.as_str())).collect();
    for (i, d) in c.volume_devices.iter().flatten().enumerate() {
        let (name, path) = (d.name.as_str(), d.device_path.as_str());
        let (at_name, at_path) = (at.index(i).child("name"), at.index(i).child("devicePath"));
        if name.is_empty() {
            errors.required(&at_name, "");
        }
        if names.contains(name) {
            errors.invalid(&at_name, name, "must be unique");
        }
        match volumes.get(name) {
            None => errors.not_found(&at_name, name),
            Some(v) if v.persistent_volume_claim.is_some() || v.ephemeral.is_some() => {}
            Some(_) => {
                let why =
                    "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                errors.invalid(&at_name, name, why);
            }
        }
        if path.is_empty() {
            errors.required(&at_path, "");
        }
        if paths.contains(path) {
            errors.invalid(&at_path, path, "must be unique");
        }
        if is_back_step(path) {
            errors.invalid(&at_path, path, "can not contain backsteps ('..')");
        } else {
            paths.insert(path);
        }
        if mounts.contains_key(name) {
            errors.invalid(&at_name, name, "must not already exist in volumeMounts");
        }
        if mounts.values().any(|mount| *mount == path) {
            errors.invalid(&at_path, path, "must not already exist as a path in volumeMounts");
        }
        if !name.is_empty() {
            names.insert(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn said(container: Value) -> String {
        let container: Container = serde_json::from_value(container).expect("a container");
        let volumes: Vec<Volume> = serde_json::from_value(json!([
            {"name": "files", "emptyDir": {}}, {"name": "disk", "persistentVolumeClaim": {"claimName": "c"}}]))
        .expect("volumes");
        let volumes = volumes.iter().map(|v| (v.name.as_str(), v)).collect();
        let mut errors = FieldErrors::new();
        mounts(&container, &volumes, &FieldPath::new("m"), &mut errors);
        devices(&container, &volumes, &FieldPath::new("d"), &mut errors);
        errors.aggregate()
    }

    #[test]
    fn a_device_is_a_claim_and_nothing_else_at_the_same_time() {
        let device = |name: &str, path: &str| {
            said(json!({"name": "c", "volumeDevices": [
            {"name": name, "devicePath": path}], "volumeMounts": [{"name": "files", "mountPath": "/files"}]}))
        };
        assert_eq!(device("disk", "/dev/x"), "[]");
        for (name, path, told) in [
            ("files", "/dev/x", "d[0].name: Invalid value: \"files\": can only use volume source type of"),
            (
                "files",
                "/dev/x",
                "d[0].name: Invalid value: \"files\": must not already exist in volumeMounts",
            ),
            (
                "disk",
                "/files",
                "d[0].devicePath: Invalid value: \"/files\": must not already exist as a path in",
            ),
            (
                "disk",
                "/a/../b",
                "d[0].devicePath: Invalid value: \"/a/../b\": can not contain backsteps ('..')",
            ),
            ("none", "/dev/x", "d[0].name: Not found: \"none\""),
        ] {
            assert!(device(name, path).contains(told), "{}", device(name, path));
        }
    }

    #[test]
    fn what_is_mounted_read_only_is_so_all_through() {
        let mount = |rest: Value| {
            let mut mount = json!({"name": "files", "mountPath": "/files"});
            mount.as_object_mut().expect("a map").extend(rest.as_object().cloned().unwrap_or_default());
            said(json!({"name": "c", "volumeMounts": [mount]}))
        };
        assert_eq!(mount(json!({"readOnly": true, "recursiveReadOnly": "Enabled"})), "[]");
        assert_eq!(
            mount(json!({"recursiveReadOnly": "Enabled"})),
            "m.recursiveReadOnly: Forbidden: may only be specified when readOnly is true"
        );
        assert_eq!(
            mount(json!({"recursiveReadOnly": "X"})),
            "m.recursiveReadOnly: Unsupported value: \"X\": supported values: \"Disabled\", \"Enabled\", \"IfPossible\""
        );
        assert_eq!(
            mount(json!({"mountPropagation": "Bidirectional"})),
            "m.mountPropagation: Forbidden: Bidirectional mount propagation is available only to privileged containers"
        );
    }
}
