//! Where a volume's storage is: one place, each kind with rules of its own.

use k8s_openapi::api::core::v1::{PersistentVolumeSpec, SecretReference};
use krate_api::{FieldErrors, FieldPath};

use crate::registry::core::pod_spec::storage::{self, shared};
use crate::registry::core::pod_spec::{driver_name, no_back_steps};
use crate::registry::rules::{dns_label, dns_subdomain, in_range, required};

/// A kind of storage: its field, whether a volume is of it, and what is to be said of it.
struct Source {
    field: &'static str,
    is_of: fn(&PersistentVolumeSpec) -> bool,
    check: fn(&PersistentVolumeSpec, &FieldPath, &mut FieldErrors),
}

const fn source(
    field: &'static str,
    is_of: fn(&PersistentVolumeSpec) -> bool,
    check: fn(&PersistentVolumeSpec, &FieldPath, &mut FieldErrors),
) -> Source {
    Source { field, is_of, check }
}

const FLEX: &str = "flexVolume";

/// In upstream's order: the first that is set is the volume's, and others are too many. Fields are spelt as upstream
/// spells them when it says so.
const SOURCES: [Source; 22] = [
    shared!("hostPath", host_path, storage::host_path),
    shared!("gcePersistentDisk", gce_persistent_disk, storage::gce_disk),
    shared!("awsElasticBlockStore", aws_elastic_block_store, storage::aws_disk),
    source("glusterfs", |s| s.glusterfs.is_some(), glusterfs),
    shared!("flocker", flocker, storage::flocker),
    shared!("nfs", nfs, storage::nfs),
    source("rbd", |s| s.rbd.is_some(), rbd),
    shared!("quobyte", quobyte, storage::quobyte),
    source("cephFS", |s| s.cephfs.is_some(), ceph_fs),
    source("iscsi", |s| s.iscsi.is_some(), iscsi),
    source("cinder", |s| s.cinder.is_some(), cinder),
    shared!("fc", fc, storage::fibre_channel),
    source(FLEX, |s| s.flex_volume.is_some(), flex),
    source("azureFile", |s| s.azure_file.is_some(), azure_file),
    shared!("vsphereVolume", vsphere_volume, storage::vsphere),
    shared!("photonPersistentDisk", photon_persistent_disk, storage::photon),
    shared!("portworxVolume", portworx_volume, storage::portworx),
    shared!("azureDisk", azure_disk, storage::azure_disk),
    source("scaleIO", |s| s.scale_io.is_some(), scale_io),
    source("local", |s| s.local.is_some(), local),
    source("storageos", |s| s.storageos.is_some(), storage_os),
    source("csi", |s| s.csi.is_some(), csi),
];

pub fn sources(name: &str, spec: &PersistentVolumeSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let mut count = 0;
    for source in SOURCES.iter().filter(|source| (source.is_of)(spec)) {
        // Upstream never said that of this one.
        if count > 0 && source.field != FLEX {
            errors.forbidden(&at.child(source.field), "may not specify more than 1 volume type");
            continue;
        }
        count += 1;
        (source.check)(spec, at, errors);
        if source.field == "iscsi" {
            portal_and_name(name, spec, at, errors);
        }
    }
    if count == 0 {
        errors.required(at, "must specify a volume type");
    }
}

fn text(value: Option<&String>) -> &str {
    value.map_or("", String::as_str)
}

fn glusterfs(spec: &PersistentVolumeSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &spec.glusterfs else { return };
    let at = at.child("glusterfs");
    required(Some(&s.endpoints), &at.child("endpoints"), errors);
    required(Some(&s.path), &at.child("path"), errors);
    let at = at.child("endpointsNamespace");
    match s.endpoints_namespace.as_deref() {
        Some("") => {
            let why = "if the endpointnamespace is set, it must be a valid namespace name";
            errors.invalid(&at, "", why);
        }
        Some(namespace) => dns_label(namespace, &at, errors),
        None => {}
    }
}

fn monitors(monitors: &[String], at: &FieldPath, errors: &mut FieldErrors) {
    if monitors.is_empty() {
        errors.required(&at.child("monitors"), "");
    }
}

fn rbd(spec: &PersistentVolumeSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &spec.rbd else { return };
    monitors(&s.monitors, &at.child("rbd"), errors);
    required(Some(&s.image), &at.child("rbd").child("image"), errors);
}

fn ceph_fs(spec: &PersistentVolumeSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &spec.cephfs else { return };
    monitors(&s.monitors, &at.child("cephfs"), errors);
}

fn iscsi(spec: &PersistentVolumeSpec, at: &FieldPath, errors: &mut FieldErrors) {
    const ODD: &str = "must be valid format";
    let Some(s) = &spec.iscsi else { return };
    let at = at.child("iscsi");
    required(Some(&s.target_portal), &at.child("targetPortal"), errors);
    if s.iqn.is_empty() {
        errors.required(&at.child("iqn"), "");
    } else if !storage::is_scsi_name(&s.iqn) {
        errors.invalid(&at.child("iqn"), &s.iqn, ODD);
    }
    in_range(s.lun, 0, 255, &at.child("lun"), errors);
    let needs_secret = s.chap_auth_discovery == Some(true) || s.chap_auth_session == Some(true);
    match &s.secret_ref {
        None if needs_secret => errors.required(&at.child("secretRef"), ""),
        Some(secret) => required(secret.name.as_deref(), &at.child("secretRef").child("name"), errors),
        None => {}
    }
    if let Some(initiator) = s.initiator_name.as_ref().filter(|name| !storage::is_scsi_name(name)) {
        errors.invalid(&at.child("initiatorname"), initiator, ODD);
    }
}

/// The two together name an interface, which has room for so much.
fn portal_and_name(name: &str, spec: &PersistentVolumeSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = spec.iscsi.as_ref().filter(|s| s.initiator_name.is_some()) else { return };
    if name.len() + 1 + s.target_portal.len() > 64 {
        errors.invalid(
            &at.child("iscsi").child("targetportal"),
            &s.target_portal,
            "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if \
             iscsi.initiatorName is specified.",
        );
    }
}

fn cinder(spec: &PersistentVolumeSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &spec.cinder else { return };
    let at = at.child("cinder");
    required(Some(&s.volume_id), &at.child("volumeID"), errors);
    if let Some(secret) = &s.secret_ref {
        let at = at.child("secretRef");
        required(secret.name.as_deref(), &at.child("name"), errors);
        required(secret.namespace.as_deref(), &at.child("namespace"), errors);
    }
}

fn flex(spec: &PersistentVolumeSpec, at: &FieldPath, errors: &mut FieldErrors) {
    if let Some(s) = &spec.flex_volume {
        storage::flex_volume(&s.driver, s.options.as_ref(), at, errors);
    }
}

fn azure_file(spec: &PersistentVolumeSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &spec.azure_file else { return };
    let at = at.child("azureFile");
    required(Some(&s.secret_name), &at.child("secretName"), errors);
    required(Some(&s.share_name), &at.child("shareName"), errors);
    if s.secret_namespace.is_some() {
        required(s.secret_namespace.as_deref(), &at.child("secretNamespace"), errors);
    }
}

fn scale_io(spec: &PersistentVolumeSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &spec.scale_io else { return };
    let at = at.child("scaleIO");
    required(Some(&s.gateway), &at.child("gateway"), errors);
    required(Some(&s.system), &at.child("system"), errors);
    required(s.volume_name.as_deref(), &at.child("volumeName"), errors);
}

fn local(spec: &PersistentVolumeSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &spec.local else { return };
    let at_path = at.child("local").child("path");
    if s.path.is_empty() {
        errors.required(&at_path, "");
    } else {
        no_back_steps(&s.path, &at_path, errors);
    }
    if spec.node_affinity.is_none() {
        errors.required(&at.child("nodeAffinity"), "Local volume requires node affinity");
    }
}

fn storage_os(spec: &PersistentVolumeSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &spec.storageos else { return };
    let at = at.child("storageos");
    match text(s.volume_name.as_ref()) {
        "" => errors.required(&at.child("volumeName"), ""),
        name => dns_label(name, &at.child("volumeName"), errors),
    }
    if let Some(namespace) = s.volume_namespace.as_deref().filter(|n| !n.is_empty()) {
        dns_label(namespace, &at.child("volumeNamespace"), errors);
    }
    if let Some(secret) = &s.secret_ref {
        let at = at.child("secretRef");
        required(secret.name.as_deref(), &at.child("name"), errors);
        required(secret.namespace.as_deref(), &at.child("namespace"), errors);
    }
}

fn csi(spec: &PersistentVolumeSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &spec.csi else { return };
    let at = at.child("csi");
    driver_name(&s.driver, &at.child("driver"), errors);
    required(Some(&s.volume_handle), &at.child("volumeHandle"), errors);
    for (field, secret) in [
        ("controllerPublishSecretRef", &s.controller_publish_secret_ref),
        ("controllerExpandSecretRef", &s.controller_expand_secret_ref),
        ("nodePublishSecretRef", &s.node_publish_secret_ref),
        ("nodeExpandSecretRef", &s.node_expand_secret_ref),
    ] {
        if let Some(secret) = secret {
            secret_reference(secret, &at.child(field), errors);
        }
    }
}

fn secret_reference(secret: &SecretReference, at: &FieldPath, errors: &mut FieldErrors) {
    match text(secret.name.as_ref()) {
        "" => errors.required(&at.child("name"), ""),
        name => dns_subdomain(name, &at.child("name"), errors),
    }
    match text(secret.namespace.as_ref()) {
        "" => errors.required(&at.child("namespace"), ""),
        namespace => dns_label(namespace, &at.child("namespace"), errors),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn wrong(spec: Value) -> Vec<String> {
        let spec: PersistentVolumeSpec = serde_json::from_value(spec).expect("a spec");
        let mut errors = FieldErrors::new();
        sources("v", &spec, &FieldPath::new("spec"), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_kind_of_storage_has_its_rules() {
        for (spec, texts) in [
            (json!({}), vec!["spec: Required value: must specify a volume type"]),
            (
                json!({"nfs": {"server": "", "path": "rel"}}),
                vec![
                    "spec.nfs.server: Required value",
                    "spec.nfs.path: Invalid value: \"rel\": must be an absolute path",
                ],
            ),
            (
                json!({"hostPath": {"path": "/a"}, "nfs": {"server": "", "path": ""}}),
                vec!["spec.nfs: Forbidden: may not specify more than 1 volume type"],
            ),
            (
                json!({"csi": {"driver": "d", "volumeHandle": "h", "nodePublishSecretRef": {"name": "a"}}}),
                vec!["spec.csi.nodePublishSecretRef.namespace: Required value"],
            ),
            (
                json!({"iscsi": {"targetPortal": "1.2.3.4", "iqn": "odd", "lun": 256, "chapAuthSession": true}}),
                vec![
                    "spec.iscsi.iqn: Invalid value: \"odd\": must be valid format",
                    "spec.iscsi.lun: Invalid value: 256: must be between 0 and 255, inclusive",
                    "spec.iscsi.secretRef: Required value",
                ],
            ),
            (
                json!({"local": {"path": "/a"}}),
                vec!["spec.nodeAffinity: Required value: Local volume requires node affinity"],
            ),
            (
                json!({"fc": {"targetWWNs": ["a"]}}),
                vec!["spec.fc.lun: Required value: lun is required if targetWWNs is specified"],
            ),
        ] {
            assert_eq!(wrong(spec), texts);
        }
    }
}
