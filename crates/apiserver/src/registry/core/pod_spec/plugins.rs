//! Volumes that drivers now serve which once were in Kubernetes itself. They may still be asked for, and are checked as
//! before.

use k8s_openapi::api::core::v1::{LocalObjectReference, Volume};
use krate_api::{FieldErrors, FieldPath};

use super::storage;
use super::volumes::local_path;
use crate::registry::rules::{dns_label, in_range, required};

/// Several fields that may not be empty.
fn all_required(fields: &[(&str, &str)], at: &FieldPath, errors: &mut FieldErrors) {
    for (field, value) in fields {
        required(Some(value), &at.child(field), errors);
    }
}

fn secret_has_name(secret: Option<&LocalObjectReference>, at: &FieldPath, errors: &mut FieldErrors) {
    if secret.is_some_and(|secret| secret.name.is_empty()) {
        errors.required(&at.child("secretRef").child("name"), "");
    }
}

pub fn git_repo(v: &Volume, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &v.git_repo else { return };
    let at = at.child("gitRepo");
    required(Some(&s.repository), &at.child("repository"), errors);
    local_path(s.directory.as_deref().unwrap_or_default(), &at.child("directory"), errors);
}

pub fn iscsi(v: &Volume, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &v.iscsi else { return };
    let at = at.child("iscsi");
    required(Some(&s.target_portal), &at.child("targetPortal"), errors);
    if s.iqn.is_empty() {
        errors.required(&at.child("iqn"), "");
    } else {
        initiator(&s.iqn, &at.child("iqn"), errors);
    }
    in_range(s.lun, 0, 255, &at.child("lun"), errors);
    let needs_secret = s.chap_auth_discovery == Some(true) || s.chap_auth_session == Some(true);
    if needs_secret && s.secret_ref.is_none() {
        errors.required(&at.child("secretRef"), "");
    }
    if let Some(name) = &s.initiator_name {
        initiator(name, &at.child("initiatorname"), errors);
    }
}

/// The name of either side of iSCSI.
fn initiator(name: &str, at: &FieldPath, errors: &mut FieldErrors) {
    if !storage::is_scsi_name(name) {
        let is_of_a_form = ["iqn", "eui", "naa"].into_iter().any(|form| name.starts_with(form));
        let which = if is_of_a_form { "" } else { " starting with iqn, eui, or naa" };
        errors.invalid(at, name, format!("must be valid format{which}"));
    }
}

/// What is told a target of who asks has room for so much.
pub fn iscsi_name(v: &Volume, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = v.iscsi.as_ref().filter(|s| s.initiator_name.is_some()) else { return };
    if v.name.len() + 1 + s.target_portal.len() > 64 {
        errors.invalid(
            &at.child("name"),
            &v.name,
            "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is \
             specified.",
        );
    }
}

pub fn glusterfs(v: &Volume, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &v.glusterfs else { return };
    let fields: [(&str, &str); 2] = [("endpoints", &s.endpoints), ("path", &s.path)];
    all_required(&fields, &at.child("glusterfs"), errors);
}

pub fn rbd(v: &Volume, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &v.rbd else { return };
    let at = at.child("rbd");
    if s.monitors.is_empty() {
        errors.required(&at.child("monitors"), "");
    }
    required(Some(&s.image), &at.child("image"), errors);
}

pub fn cinder(v: &Volume, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &v.cinder else { return };
    let at = at.child("cinder");
    required(Some(&s.volume_id), &at.child("volumeID"), errors);
    secret_has_name(s.secret_ref.as_ref(), &at, errors);
}

pub fn ceph_fs(v: &Volume, at: &FieldPath, errors: &mut FieldErrors) {
    if v.cephfs.as_ref().is_some_and(|s| s.monitors.is_empty()) {
        errors.required(&at.child("cephfs").child("monitors"), "");
    }
}

pub fn flex_volume(v: &Volume, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &v.flex_volume else { return };
    storage::flex_volume(&s.driver, s.options.as_ref(), at, errors);
}

pub fn azure_file(v: &Volume, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &v.azure_file else { return };
    let fields: [(&str, &str); 2] = [("secretName", &s.secret_name), ("shareName", &s.share_name)];
    all_required(&fields, &at.child("azureFile"), errors);
}

pub fn storage_os(v: &Volume, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &v.storageos else { return };
    let at = at.child("storageos");
    match s.volume_name.as_deref().unwrap_or_default() {
        "" => errors.required(&at.child("volumeName"), ""),
        name => dns_label(name, &at.child("volumeName"), errors),
    }
    if let Some(namespace) = s.volume_namespace.as_deref().filter(|n| !n.is_empty()) {
        dns_label(namespace, &at.child("volumeNamespace"), errors);
    }
    secret_has_name(s.secret_ref.as_ref(), &at, errors);
}

pub fn scale_io(v: &Volume, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &v.scale_io else { return };
    let name = s.volume_name.as_deref().unwrap_or_default();
    let fields: [(&str, &str); 3] = [("gateway", &s.gateway), ("system", &s.system), ("volumeName", name)];
    all_required(&fields, &at.child("scaleIO"), errors);
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::registry::core::pod_spec::volumes::volumes;

    fn said(kind: &str, source: Value) -> String {
        let spec = json!({"containers": [], "volumes": [{"name": "v", kind: source}]});
        let spec = serde_json::from_value(spec).expect("a spec");
        let mut errors = FieldErrors::new();
        volumes(&spec, None, &FieldPath::new("spec"), &mut errors);
        errors.aggregate()
    }

    #[test]
    fn old_kinds_of_volumes_are_still_checked() {
        let at = "spec.volumes[0]";
        for (kind, source, told) in [
            ("gitRepo", json!({"repository": "r", "directory": "d"}), "[]".to_owned()),
            (
                "gitRepo",
                json!({"repository": "r", "directory": "/d"}),
                format!("{at}.gitRepo.directory: Invalid value: \"/d\": must be a relative path"),
            ),
            (
                "gcePersistentDisk",
                json!({"pdName": "d", "partition": 256}),
                format!(
                    "{at}.persistentDisk.partition: Invalid value: 256: must be between 1 and 255, inclusive"
                ),
            ),
            (
                "iscsi",
                json!({"targetPortal": "t", "iqn": "iqn.2001-04.com.example:storage.disk1", "lun": 0}),
                "[]".to_owned(),
            ),
            (
                "iscsi",
                json!({"targetPortal": "t", "iqn": "iqn.2001-04", "lun": 256}),
                format!(
                    "[{at}.iscsi.iqn: Invalid value: \"iqn.2001-04\": must be valid format, {at}.iscsi.lun: Invalid \
                     value: 256: must be between 0 and 255, inclusive]"
                ),
            ),
            (
                "quobyte",
                json!({"registry": "host", "volume": "v"}),
                format!(
                    "{at}.quobyte.registry: Invalid value: \"host\": must be a host:port pair or multiple pairs \
                     separated by commas"
                ),
            ),
            (
                "flexVolume",
                json!({"driver": "d", "options": {"x.kubernetes.io/a": "b"}}),
                format!(
                    "{at}.flexVolume.options[x.kubernetes.io/a]: Invalid value: \"x.kubernetes.io/a\": kubernetes.io \
                     and k8s.io namespaces are reserved"
                ),
            ),
            ("storageos", json!({}), format!("{at}.storageos.volumeName: Required value")),
            ("rbd", json!({"monitors": [], "image": "i"}), format!("{at}.rbd.monitors: Required value")),
        ] {
            assert_eq!(said(kind, source), told);
        }
    }
}
