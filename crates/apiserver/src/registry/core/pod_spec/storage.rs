//! Kinds of storage whose rules are the same whether a pod has them as a volume or they are a volume of their own. `at`
//! is the place of what they are in.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use k8s_openapi::api::core::v1::{
    AWSElasticBlockStoreVolumeSource, AzureDiskVolumeSource, FCVolumeSource, FlockerVolumeSource,
    GCEPersistentDiskVolumeSource, HostPathVolumeSource, NFSVolumeSource, PhotonPersistentDiskVolumeSource,
    PortworxVolumeSource, QuobyteVolumeSource, VsphereVirtualDiskVolumeSource,
};
use krate_api::{FieldErrors, FieldPath};
use regex::Regex;

use super::volumes::no_back_steps;
use crate::registry::rules::{in_range, one_of, required};

/// A row for one of them in a table of sources: its name, its field, and its rules.
macro_rules! shared {
    ($name:literal, $field:ident, $check:path) => {
        source(
            $name,
            |of| of.$field.is_some(),
            |of, at, errors| {
                if let Some(s) = &of.$field {
                    $check(s, at, errors);
                }
            },
        )
    };
}
pub(crate) use shared;

pub fn host_path(s: &HostPathVolumeSource, at: &FieldPath, errors: &mut FieldErrors) {
    const TYPES: &[&str] = &[
        "",
        "BlockDevice",
        "CharDevice",
        "Directory",
        "DirectoryOrCreate",
        "File",
        "FileOrCreate",
        "Socket",
    ];
    let at = at.child("hostPath");
    if s.path.is_empty() {
        errors.required(&at.child("path"), "");
        return;
    }
    no_back_steps(&s.path, &at.child("path"), errors);
    if let Some(kind) = s.type_.as_deref() {
        one_of(kind, TYPES, &at.child("type"), errors);
    }
}

pub fn nfs(s: &NFSVolumeSource, at: &FieldPath, errors: &mut FieldErrors) {
    let at = at.child("nfs");
    required(Some(&s.server), &at.child("server"), errors);
    required(Some(&s.path), &at.child("path"), errors);
    if !s.path.starts_with('/') {
        errors.invalid(&at.child("path"), &s.path, "must be an absolute path");
    }
}

/// A partition's number; upstream says 1 and takes 0 for none.
fn partition(number: Option<i32>, at: &FieldPath, errors: &mut FieldErrors) {
    let number = number.unwrap_or(0);
    if !(0..=255).contains(&number) {
        errors.invalid(&at.child("partition"), number, "must be between 1 and 255, inclusive");
    }
}

pub fn gce_disk(s: &GCEPersistentDiskVolumeSource, at: &FieldPath, errors: &mut FieldErrors) {
    // Upstream calls it so here.
    let at = at.child("persistentDisk");
    required(Some(&s.pd_name), &at.child("pdName"), errors);
    partition(s.partition, &at, errors);
}

pub fn aws_disk(s: &AWSElasticBlockStoreVolumeSource, at: &FieldPath, errors: &mut FieldErrors) {
    let at = at.child("awsElasticBlockStore");
    required(Some(&s.volume_id), &at.child("volumeID"), errors);
    partition(s.partition, &at, errors);
}

pub fn flocker(s: &FlockerVolumeSource, at: &FieldPath, errors: &mut FieldErrors) {
    let at = at.child("flocker");
    let name = s.dataset_name.as_deref().unwrap_or_default();
    let uuid = s.dataset_uuid.as_deref().unwrap_or_default();
    match (name.is_empty(), uuid.is_empty()) {
        (true, true) => errors.required(&at, "one of datasetName and datasetUUID is required"),
        (false, false) => {
            let why = "datasetName and datasetUUID can not be specified simultaneously";
            errors.invalid(&at, "resource", why);
        }
        _ => {}
    }
    if name.contains('/') {
        errors.invalid(&at.child("datasetName"), name, "must not contain '/'");
    }
}

pub fn quobyte(s: &QuobyteVolumeSource, at: &FieldPath, errors: &mut FieldErrors) {
    const PAIRS: &str = "must be a host:port pair or multiple pairs separated by commas";
    let at = at.child("quobyte");
    if s.registry.is_empty() {
        errors.required(&at.child("registry"), PAIRS);
    } else if s.tenant.as_ref().is_some_and(|tenant| tenant.len() >= 65) {
        let why = "must be a UUID and may not exceed a length of 64 characters";
        errors.required(&at.child("tenant"), why);
    } else {
        for _ in s.registry.split(',').filter(|pair| !is_host_and_port(pair)) {
            errors.invalid(&at.child("registry"), &s.registry, PAIRS);
        }
    }
    required(Some(&s.volume), &at.child("volume"), errors);
}

/// A host with a port, an address of IPv6 in brackets.
fn is_host_and_port(pair: &str) -> bool {
    let Some((host, port)) = pair.rsplit_once(':') else { return false };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_clean = |text: &str| !text.contains(['[', ']']);
    bare.map_or(!host.contains(':') && is_clean(host), is_clean) && is_clean(port)
}

static IQN: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"iqn\.[0-9]{4}-[0-9]{2}\.([[:alnum:]\-.]+)(:[^,;*&$|\t\n\x0C\r ]+)$").ok());
static EUI_OR_NAA: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new("^(eui.[[:alnum:]]{16}|naa.[[:alnum:]]{32})$").ok());

/// Whether it is a name in one of the three ways that SCSI over networks has (RFC 3720).
pub fn is_scsi_name(name: &str) -> bool {
    let form = if name.starts_with("iqn") { &IQN } else { &EUI_OR_NAA };
    form.as_ref().is_some_and(|form| form.is_match(name))
}

pub fn fibre_channel(s: &FCVolumeSource, at: &FieldPath, errors: &mut FieldErrors) {
    let at = at.child("fc");
    let targets = s.target_wwns.as_deref().unwrap_or_default();
    let ids = s.wwids.as_deref().unwrap_or_default();
    if targets.is_empty() && ids.is_empty() {
        errors.required(&at.child("targetWWNs"), "must specify either targetWWNs or wwids, but not both");
    }
    if !targets.is_empty() && !ids.is_empty() {
        let why = "targetWWNs and wwids can not be specified simultaneously";
        errors.invalid(&at.child("targetWWNs"), targets, why);
    }
    if !targets.is_empty() {
        match s.lun {
            None => errors.required(&at.child("lun"), "lun is required if targetWWNs is specified"),
            Some(lun) => in_range(lun, 0, 255, &at.child("lun"), errors),
        }
    }
}

pub fn flex_volume(
    driver: &str,
    options: Option<&BTreeMap<String, String>>,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    let at = at.child("flexVolume");
    required(Some(driver), &at.child("driver"), errors);
    for option in options.into_iter().flatten().map(|(option, _)| option) {
        let namespace = option.split_once('/').map_or(option.as_str(), |(namespace, _)| namespace);
        let namespace = format!(".{}", namespace.to_lowercase());
        if namespace.ends_with(".kubernetes.io") || namespace.ends_with(".k8s.io") {
            let why = "kubernetes.io and k8s.io namespaces are reserved";
            errors.invalid(&at.child("options").key(option), option, why);
        }
    }
}

pub fn azure_disk(s: &AzureDiskVolumeSource, at: &FieldPath, errors: &mut FieldErrors) {
    const MANAGED: &str =
        "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}";
    const BLOB: &str = "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd";
    let at = at.child("azureDisk");
    required(Some(&s.disk_name), &at.child("diskName"), errors);
    required(Some(&s.disk_uri), &at.child("diskURI"), errors);
    if let Some(mode) = &s.caching_mode {
        one_of(mode, &["None", "ReadOnly", "ReadWrite"], &at.child("cachingMode"), errors);
    }
    let Some(kind) = s.kind.as_deref() else { return };
    one_of(kind, &["Dedicated", "Managed", "Shared"], &at.child("kind"), errors);
    let (begin, form) = if kind == "Managed" { ("/subscriptions/", MANAGED) } else { ("https://", BLOB) };
    if !s.disk_uri.starts_with(begin) {
        errors.not_supported(&at.child("diskURI"), &s.disk_uri, &[form]);
    }
}

pub fn vsphere(s: &VsphereVirtualDiskVolumeSource, at: &FieldPath, errors: &mut FieldErrors) {
    required(Some(&s.volume_path), &at.child("vsphereVolume").child("volumePath"), errors);
}

pub fn photon(s: &PhotonPersistentDiskVolumeSource, at: &FieldPath, errors: &mut FieldErrors) {
    required(Some(&s.pd_id), &at.child("photonPersistentDisk").child("pdID"), errors);
}

pub fn portworx(s: &PortworxVolumeSource, at: &FieldPath, errors: &mut FieldErrors) {
    required(Some(&s.volume_id), &at.child("portworxVolume").child("volumeID"), errors);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_stands_behind_a_host() {
        for (pair, is) in [("a:1", true), ("[::1]:1", true), ("::1", false), ("a", false), (":", true)] {
            assert_eq!(is_host_and_port(pair), is, "{pair}");
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
