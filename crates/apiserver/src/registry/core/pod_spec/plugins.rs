//! Volumes that drivers now serve which once were in Kubernetes itself. They may still be asked for, and are checked as
//! before.

use k8s_openapi::api::core::v1::{LocalObjectReference, QuobyteVolumeSource, Volume};
use krate_api::{FieldErrors, FieldPath};

use super::volumes::local_path;
use crate::registry::rules::{dns_label, in_range, one_of, required};

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

/// A partition's number; upstream says 1 and takes 0 for none.
fn partition(number: Option<i32>, at: &FieldPath, errors: &mut FieldErrors) {
    let number = number.unwrap_or(0);
    if !(0..=255).contains(&number) {
        errors.invalid(&at.child("partition"), number, "must be between 1 and 255, inclusive");
    }
}

pub fn gce_disk(v: &Volume, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &v.gce_persistent_disk else { return };
    // Upstream calls it so here.
    let at = at.child("persistentDisk");
    required(Some(&s.pd_name), &at.child("pdName"), errors);
    partition(s.partition, &at, errors);
}

pub fn aws_disk(v: &Volume, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &v.aws_elastic_block_store else { return };
    let at = at.child("awsElasticBlockStore");
    required(Some(&s.volume_id), &at.child("volumeID"), errors);
    partition(s.partition, &at, errors);
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

/// The name of either side of iSCSI (RFC 3720).
fn initiator(name: &str, at: &FieldPath, errors: &mut FieldErrors) {
    let is_of_letters =
        |rest: &str, count| rest.len() == count && rest.bytes().all(|c| c.is_ascii_alphanumeric());
    let (kind, rest) = (name.get(..3).unwrap_or_default(), name.get(4..).unwrap_or_default());
    let is_sound = match kind {
        "iqn" => is_qualified(name),
        "eui" => is_of_letters(rest, 16),
        "naa" => is_of_letters(rest, 32),
        _ => {
            errors.invalid(at, name, "must be valid format starting with iqn, eui, or naa");
            return;
        }
    };
    if !is_sound {
        errors.invalid(at, name, "must be valid format");
    }
}

/// `iqn.2001-04.com.example:storage.disk1`
fn is_qualified(name: &str) -> bool {
    let parts = name.strip_prefix("iqn.").and_then(|rest| rest.split_once('.'));
    let Some((owner, own)) = parts.and_then(|(_, rest)| rest.split_once(':')) else { return false };
    let is_date = |date: &str| {
        date.len() == 7
            && date.bytes().enumerate().all(|(i, c)| if i == 4 { c == b'-' } else { c.is_ascii_digit() })
    };
    parts.is_some_and(|(date, _)| is_date(date))
        && !owner.is_empty()
        && owner.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'.')
        && !own.is_empty()
        && !own.contains([',', ';', '*', '&', '$', '|', ' ', '\t', '\n', '\r', '\x0c'])
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

pub fn flocker(v: &Volume, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &v.flocker else { return };
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

pub fn quobyte(v: &Volume, at: &FieldPath, errors: &mut FieldErrors) {
    if let Some(s) = &v.quobyte {
        of_quobyte(s, &at.child("quobyte"), errors);
    }
}

/// Storage of Quobyte, in a pod or as a volume of its own.
pub fn of_quobyte(s: &QuobyteVolumeSource, at: &FieldPath, errors: &mut FieldErrors) {
    const PAIRS: &str = "must be a host:port pair or multiple pairs separated by commas";
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

pub fn fibre_channel(v: &Volume, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &v.fc else { return };
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

pub fn flex_volume(v: &Volume, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &v.flex_volume else { return };
    let at = at.child("flexVolume");
    required(Some(&s.driver), &at.child("driver"), errors);
    for option in s.options.iter().flatten().map(|(option, _)| option) {
        let namespace = option.split_once('/').map_or(option.as_str(), |(namespace, _)| namespace);
        let namespace = format!(".{}", namespace.to_lowercase());
        if namespace.ends_with(".kubernetes.io") || namespace.ends_with(".k8s.io") {
            let why = "kubernetes.io and k8s.io namespaces are reserved";
            errors.invalid(&at.child("options").key(option), option, why);
        }
    }
}

pub fn azure_file(v: &Volume, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &v.azure_file else { return };
    let fields: [(&str, &str); 2] = [("secretName", &s.secret_name), ("shareName", &s.share_name)];
    all_required(&fields, &at.child("azureFile"), errors);
}

pub fn azure_disk(v: &Volume, at: &FieldPath, errors: &mut FieldErrors) {
    const MANAGED: &str =
        "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}";
    const BLOB: &str = "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd";
    let Some(s) = &v.azure_disk else { return };
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

pub fn vsphere(v: &Volume, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &v.vsphere_volume else { return };
    required(Some(&s.volume_path), &at.child("vsphereVolume").child("volumePath"), errors);
}

pub fn photon(v: &Volume, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &v.photon_persistent_disk else { return };
    required(Some(&s.pd_id), &at.child("photonPersistentDisk").child("pdID"), errors);
}

pub fn portworx(v: &Volume, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &v.portworx_volume else { return };
    required(Some(&s.volume_id), &at.child("portworxVolume").child("volumeID"), errors);
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

    #[test]
    fn a_port_stands_behind_a_host() {
        for (pair, is) in [("a:1", true), ("[::1]:1", true), ("::1", false), ("a", false), (":", true)] {
            assert_eq!(is_host_and_port(pair), is, "{pair}");
        }
    }
}
