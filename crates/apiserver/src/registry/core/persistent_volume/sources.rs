//! Where a volume's storage is: one place, each kind with rules of its own.

use std::sync::LazyLock;

use k8s_openapi::api::core::v1::{PersistentVolumeSpec, SecretReference};
use krate_api::{FieldErrors, FieldPath};
use regex::Regex;

use crate::registry::core::pod_spec::{driver_name, no_back_steps, of_quobyte, path_of_the_host};
use crate::registry::rules::{dns_label, dns_subdomain, in_range, one_of, required};

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
    source("hostPath", |s| s.host_path.is_some(), host_path),
    source("gcePersistentDisk", |s| s.gce_persistent_disk.is_some(), gce_disk),
    source("awsElasticBlockStore", |s| s.aws_elastic_block_store.is_some(), aws_disk),
    source("glusterfs", |s| s.glusterfs.is_some(), glusterfs),
    source("flocker", |s| s.flocker.is_some(), flocker),
    source("nfs", |s| s.nfs.is_some(), nfs),
    source("rbd", |s| s.rbd.is_some(), rbd),
    source("quobyte", |s| s.quobyte.is_some(), quobyte),
    source("cephFS", |s| s.cephfs.is_some(), ceph_fs),
    source("iscsi", |s| s.iscsi.is_some(), iscsi),
    source("cinder", |s| s.cinder.is_some(), cinder),
    source("fc", |s| s.fc.is_some(), fibre_channel),
    source(FLEX, |s| s.flex_volume.is_some(), flex),
    source("azureFile", |s| s.azure_file.is_some(), azure_file),
    source("vsphereVolume", |s| s.vsphere_volume.is_some(), vsphere),
    source("photonPersistentDisk", |s| s.photon_persistent_disk.is_some(), photon),
    source("portworxVolume", |s| s.portworx_volume.is_some(), portworx),
    source("azureDisk", |s| s.azure_disk.is_some(), azure_disk),
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

fn host_path(spec: &PersistentVolumeSpec, at: &FieldPath, errors: &mut FieldErrors) {
    if let Some(s) = &spec.host_path {
        path_of_the_host(s, &at.child("hostPath"), errors);
    }
}

fn partition(number: Option<i32>, at: &FieldPath, errors: &mut FieldErrors) {
    if let Some(number) = number
        && !(0..=255).contains(&number)
    {
        errors.invalid(&at.child("partition"), number, "must be between 1 and 255, inclusive");
    }
}

fn gce_disk(spec: &PersistentVolumeSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &spec.gce_persistent_disk else { return };
    let at = at.child("persistentDisk");
    required(Some(&s.pd_name), &at.child("pdName"), errors);
    partition(s.partition, &at, errors);
}

fn aws_disk(spec: &PersistentVolumeSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &spec.aws_elastic_block_store else { return };
    let at = at.child("awsElasticBlockStore");
    required(Some(&s.volume_id), &at.child("volumeID"), errors);
    partition(s.partition, &at, errors);
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

fn flocker(spec: &PersistentVolumeSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &spec.flocker else { return };
    let at = at.child("flocker");
    let (name, uuid) = (text(s.dataset_name.as_ref()), text(s.dataset_uuid.as_ref()));
    if name.is_empty() && uuid.is_empty() {
        errors.required(&at, "one of datasetName and datasetUUID is required");
    }
    if !name.is_empty() && !uuid.is_empty() {
        errors.invalid(&at, "resource", "datasetName and datasetUUID can not be specified simultaneously");
    }
    if name.contains('/') {
        errors.invalid(&at.child("datasetName"), name, "must not contain '/'");
    }
}

fn nfs(spec: &PersistentVolumeSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &spec.nfs else { return };
    let at = at.child("nfs");
    required(Some(&s.server), &at.child("server"), errors);
    required(Some(&s.path), &at.child("path"), errors);
    if !s.path.starts_with('/') {
        errors.invalid(&at.child("path"), &s.path, "must be an absolute path");
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

fn quobyte(spec: &PersistentVolumeSpec, at: &FieldPath, errors: &mut FieldErrors) {
    if let Some(s) = &spec.quobyte {
        of_quobyte(s, &at.child("quobyte"), errors);
    }
}

static IQN: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"iqn\.[0-9]{4}-[0-9]{2}\.([[:alnum:]\-.]+)(:[^,;*&$|\s]+)$").ok());
static EUI_OR_NAA: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new("^(eui.[[:alnum:]]{16}|naa.[[:alnum:]]{32})$").ok());

/// Whether it is a name in one of the three ways that SCSI over networks has.
fn is_scsi_name(name: &str) -> bool {
    let form = if name.starts_with("iqn") { &IQN } else { &EUI_OR_NAA };
    form.as_ref().is_some_and(|form| form.is_match(name))
}

fn iscsi(spec: &PersistentVolumeSpec, at: &FieldPath, errors: &mut FieldErrors) {
    const ODD: &str = "must be valid format";
    let Some(s) = &spec.iscsi else { return };
    let at = at.child("iscsi");
    required(Some(&s.target_portal), &at.child("targetPortal"), errors);
    if s.iqn.is_empty() {
        errors.required(&at.child("iqn"), "");
    } else if !is_scsi_name(&s.iqn) {
        errors.invalid(&at.child("iqn"), &s.iqn, ODD);
    }
    in_range(s.lun, 0, 255, &at.child("lun"), errors);
    let needs_secret = s.chap_auth_discovery == Some(true) || s.chap_auth_session == Some(true);
    match &s.secret_ref {
        None if needs_secret => errors.required(&at.child("secretRef"), ""),
        Some(secret) => required(secret.name.as_deref(), &at.child("secretRef").child("name"), errors),
        None => {}
    }
    if let Some(initiator) = s.initiator_name.as_ref().filter(|name| !is_scsi_name(name)) {
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

fn fibre_channel(spec: &PersistentVolumeSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &spec.fc else { return };
    let at = at.child("fc");
    let names = s.target_wwns.as_deref().unwrap_or_default();
    let ids = s.wwids.as_deref().unwrap_or_default();
    let at_names = at.child("targetWWNs");
    match (names, ids) {
        ([], []) => {
            errors.required(&at_names, "must specify either targetWWNs or wwids, but not both");
        }
        ([_, ..], [_, ..]) => {
            errors.invalid(&at_names, names, "targetWWNs and wwids can not be specified simultaneously");
        }
        _ => {}
    }
    if !names.is_empty() {
        match s.lun {
            None => errors.required(&at.child("lun"), "lun is required if targetWWNs is specified"),
            Some(lun) => in_range(lun, 0, 255, &at.child("lun"), errors),
        }
    }
}

fn flex(spec: &PersistentVolumeSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &spec.flex_volume else { return };
    let at = at.child(FLEX);
    required(Some(&s.driver), &at.child("driver"), errors);
    for key in s.options.iter().flatten().map(|(key, _)| key) {
        let domain = key.split_once('/').map_or(key.as_str(), |(domain, _)| domain);
        let domain = format!(".{}", domain.to_lowercase());
        if domain.ends_with(".kubernetes.io") || domain.ends_with(".k8s.io") {
            let why = "kubernetes.io and k8s.io namespaces are reserved";
            errors.invalid(&at.child("options").key(key), key, why);
        }
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

fn vsphere(spec: &PersistentVolumeSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &spec.vsphere_volume else { return };
    required(Some(&s.volume_path), &at.child("vsphereVolume").child("volumePath"), errors);
}

fn photon(spec: &PersistentVolumeSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &spec.photon_persistent_disk else { return };
    required(Some(&s.pd_id), &at.child("photonPersistentDisk").child("pdID"), errors);
}

fn portworx(spec: &PersistentVolumeSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &spec.portworx_volume else { return };
    required(Some(&s.volume_id), &at.child("portworxVolume").child("volumeID"), errors);
}

fn azure_disk(spec: &PersistentVolumeSpec, at: &FieldPath, errors: &mut FieldErrors) {
    const MANAGED: &str =
        "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}";
    const BLOB: &str = "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd";
    let Some(s) = &spec.azure_disk else { return };
    let at = at.child("azureDisk");
    required(Some(&s.disk_name), &at.child("diskName"), errors);
    required(Some(&s.disk_uri), &at.child("diskURI"), errors);
    if let Some(mode) = &s.caching_mode {
        one_of(mode, &["None", "ReadOnly", "ReadWrite"], &at.child("cachingMode"), errors);
    }
    let Some(kind) = &s.kind else { return };
    one_of(kind, &["Dedicated", "Managed", "Shared"], &at.child("kind"), errors);
    let (start, form) = if kind == "Managed" { ("/subscriptions/", MANAGED) } else { ("https://", BLOB) };
    if !s.disk_uri.starts_with(start) {
        errors.not_supported(&at.child("diskURI"), &s.disk_uri, &[form]);
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

    #[test]
    fn names_of_scsi_are_of_three_forms() {
        for (name, is) in [
            ("iqn.2015-02.example.com:test", true),
            ("iqn.2015-02.example.com", false),
            ("eui.0123456789abcdef", true),
            ("naa.0123456789abcdef0123456789abcdef", true),
            ("naa.0123456789abcdef", false),
        ] {
            assert_eq!(is_scsi_name(name), is, "{name}");
        }
    }
}
