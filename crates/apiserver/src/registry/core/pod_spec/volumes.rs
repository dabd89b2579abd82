//! Where a pod's files come from.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, PodSpec, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use krate_api::{FieldErrors, FieldPath};
use serde_json::Value;

use super::claims::claim;
use super::containers::pull_policy;
use super::env::{field_ref, resource_field};
use super::mounts::Volumes;
use super::plugins;
use super::projected::projected;
use super::storage::{self, shared};
use crate::registry::quantities::is_negative;
use crate::registry::rules::{annotations, dns_label, dns_subdomain, each, label_name, labels, required};

/// Checks all volumes, and returns those that are sound: nothing may be mounted of others. `pod` is the metadata of a
/// pod; none for a template of one.
pub fn volumes<'a>(
    spec: &'a PodSpec,
    pod: Option<&ObjectMeta>,
    at: &FieldPath,
    errors: &mut FieldErrors,
) -> Volumes<'a> {
    let mut sound = Volumes::new();
    let claims: BTreeSet<String> = spec
        .volumes
        .iter()
        .flatten()
        .filter(|v| v.ephemeral.is_some())
        .filter_map(|v| claim_name(pod, &v.name))
        .collect();
    for (i, v) in spec.volumes.iter().flatten().enumerate() {
        let at = at.child("volumes").index(i);
        let before = errors.len();
        sources(v, pod, &at, errors);
        if v.name.is_empty() {
            errors.required(&at.child("name"), "");
        } else {
            dns_label(&v.name, &at.child("name"), errors);
        }
        if sound.contains_key(v.name.as_str()) {
            errors.duplicate(&at.child("name"), &v.name);
        }
        if errors.len() == before {
            sound.insert(v.name.as_str(), v);
        }
        if let Some(claim) = v.persistent_volume_claim.as_ref().filter(|c| claims.contains(&c.claim_name)) {
            errors.invalid(
                &at.child("persistentVolumeClaim").child("claimName"),
                &claim.claim_name,
                "must not reference a PVC that gets created for an ephemeral volume",
            );
        }
    }
    sound
}

/// What the claim is called that is made for a volume of a pod, where the pod's name is known.
fn claim_name(pod: Option<&ObjectMeta>, volume: &str) -> Option<String> {
    let pod = pod?.name.as_deref().filter(|name| !name.is_empty())?;
    (!volume.is_empty()).then(|| format!("{pod}-{volume}"))
}

/// One way to get files: its field, whether a volume has it, and what is to be said of it.
struct Source {
    field: &'static str,
    is_of: fn(&Volume) -> bool,
    check: fn(&Volume, &FieldPath, &mut FieldErrors),
}

const fn source(
    field: &'static str,
    is_of: fn(&Volume) -> bool,
    check: fn(&Volume, &FieldPath, &mut FieldErrors),
) -> Source {
    Source { field, is_of, check }
}

/// In upstream's order: the first that is set is the volume's, and others are too many. Fields are spelt as upstream
/// spells them when it says so.
static SOURCES: [Source; 30] = [
    source("emptyDir", |v| v.empty_dir.is_some(), empty_dir),
    shared!("hostPath", host_path, storage::host_path),
    source("gitRepo", |v| v.git_repo.is_some(), plugins::git_repo),
    shared!("gcePersistentDisk", gce_persistent_disk, storage::gce_disk),
    shared!("awsElasticBlockStore", aws_elastic_block_store, storage::aws_disk),
    source("secret", |v| v.secret.is_some(), secret),
    shared!("nfs", nfs, storage::nfs),
    source("iscsi", |v| v.iscsi.is_some(), plugins::iscsi),
    source("glusterfs", |v| v.glusterfs.is_some(), plugins::glusterfs),
    shared!("flocker", flocker, storage::flocker),
    source("persistentVolumeClaim", |v| v.persistent_volume_claim.is_some(), claimed),
    source("rbd", |v| v.rbd.is_some(), plugins::rbd),
    source("cinder", |v| v.cinder.is_some(), plugins::cinder),
    source("cephFS", |v| v.cephfs.is_some(), plugins::ceph_fs),
    shared!("quobyte", quobyte, storage::quobyte),
    source("downwarAPI", |v| v.downward_api.is_some(), downward_api),
    shared!("fc", fc, storage::fibre_channel),
    source("flexVolume", |v| v.flex_volume.is_some(), plugins::flex_volume),
    source("configMap", |v| v.config_map.is_some(), config_map),
    source("azureFile", |v| v.azure_file.is_some(), plugins::azure_file),
    shared!("vsphereVolume", vsphere_volume, storage::vsphere),
    shared!("photonPersistentDisk", photon_persistent_disk, storage::photon),
    shared!("portworxVolume", portworx_volume, storage::portworx),
    shared!("azureDisk", azure_disk, storage::azure_disk),
    source("storageos", |v| v.storageos.is_some(), plugins::storage_os),
    source("projected", |v| v.projected.is_some(), all_projected),
    source("scaleIO", |v| v.scale_io.is_some(), plugins::scale_io),
    source("csi", |v| v.csi.is_some(), csi),
    source("ephemeral", |v| v.ephemeral.is_some(), ephemeral),
    source("image", |v| v.image.is_some(), image),
];

fn sources(v: &Volume, pod: Option<&ObjectMeta>, at: &FieldPath, errors: &mut FieldErrors) {
    let mut given = SOURCES.iter().filter(|source| (source.is_of)(v));
    let Some(first) = given.next() else {
        errors.required(at, "must specify a volume type");
        return;
    };
    (first.check)(v, at, errors);
    for other in given {
        errors.forbidden(&at.child(other.field), "may not specify more than 1 volume type");
    }
    plugins::iscsi_name(v, at, errors);
    if first.field == "ephemeral"
        && let Some(claim) = claim_name(pod, &v.name)
    {
        for why in krate_api::names::is_dns1123_subdomain(&claim) {
            errors.invalid(&at.child("name"), &v.name, format!("PVC name \"{claim}\": {why}"));
        }
    }
    // A template may leave it to who makes pods of it.
    let has_reference = v.image.as_ref().and_then(|i| i.reference.as_deref()).is_some_and(|r| !r.is_empty());
    if first.field == "image" && pod.is_some() && !has_reference {
        errors.required(&at.child("image").child("reference"), "");
    }
}

fn empty_dir(v: &Volume, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &v.empty_dir else { return };
    if s.size_limit.as_ref().is_some_and(is_negative) {
        let why = "SizeLimit field must be a valid resource quantity";
        errors.forbidden(&at.child("emptyDir").child("sizeLimit"), why);
    }
}

fn secret(v: &Volume, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &v.secret else { return };
    let at = at.child("secret");
    required(s.secret_name.as_deref(), &at.child("secretName"), errors);
    mode(s.default_mode, &at.child("defaultMode"), errors);
    items(s.items.as_deref(), &at.child("items"), errors);
}

fn config_map(v: &Volume, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &v.config_map else { return };
    let at = at.child("configMap");
    required(Some(&s.name), &at.child("name"), errors);
    mode(s.default_mode, &at.child("defaultMode"), errors);
    items(s.items.as_deref(), &at.child("items"), errors);
}

fn downward_api(v: &Volume, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &v.downward_api else { return };
    let at = at.child("downwardAPI");
    mode(s.default_mode, &at.child("defaultMode"), errors);
    for file in s.items.iter().flatten() {
        // Upstream names no place in the list here.
        downward_file(file, &at, errors);
    }
}

fn all_projected(v: &Volume, at: &FieldPath, errors: &mut FieldErrors) {
    if let Some(s) = &v.projected {
        projected(s, &at.child("projected"), errors);
    }
}

fn claimed(v: &Volume, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &v.persistent_volume_claim else { return };
    required(Some(&s.claim_name), &at.child("persistentVolumeClaim").child("claimName"), errors);
}

fn csi(v: &Volume, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &v.csi else { return };
    let at = at.child("csi");
    driver_name(&s.driver, &at.child("driver"), errors);
    let Some(secret) = &s.node_publish_secret_ref else { return };
    if secret.name.is_empty() {
        errors.required(&at.child("nodePublishSecretRef").child("name"), "");
    } else {
        dns_subdomain(&secret.name, &at.child("name"), errors);
    }
}

fn image(v: &Volume, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &v.image else { return };
    pull_policy(s.pull_policy.as_deref(), &at.child("image").child("pullPolicy"), errors);
}

fn ephemeral(v: &Volume, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(s) = &v.ephemeral else { return };
    let at = at.child("ephemeral").child("volumeClaimTemplate");
    let Some(template) = &s.volume_claim_template else {
        errors.required(&at, "");
        return;
    };
    if let Some(meta) = &template.metadata {
        let at = at.child("metadata");
        annotations(meta.annotations.as_ref(), &at.child("annotations"), errors);
        labels(meta.labels.as_ref(), &at.child("labels"), errors);
        only_labels_and_annotations(meta, &at, errors);
    }
    claim(&template.spec, &at.child("spec"), errors);
}

/// Whoever sets more of a template's metadata would wait for it in vain.
fn only_labels_and_annotations(meta: &ObjectMeta, at: &FieldPath, errors: &mut FieldErrors) {
    let rest = ObjectMeta { labels: None, annotations: None, ..meta.clone() };
    let Ok(Value::Object(rest)) = serde_json::to_value(rest) else { return };
    for (field, _) in rest.iter().filter(|(_, value)| !value.is_null() && *value != "") {
        // Upstream names the field of its Go type.
        let name = if field == "uid" { "uID" } else { field.as_str() };
        errors.forbidden(&at.child(name), "cannot be set");
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
    each(krate_api::names::is_dns1123_subdomain(&name.to_lowercase()), name, at, errors);
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
        required(Some(&item.key), &at.child("key"), errors);
        if item.path.is_empty() {
            errors.required(&at.child("path"), "");
        } else {
            file_path(&item.path, &at.child("path"), errors);
        }
        mode(item.mode, &at.child("mode"), errors);
    }
}

pub fn downward_file(file: &DownwardAPIVolumeFile, at: &FieldPath, errors: &mut FieldErrors) {
    const FIELDS: &[&str] =
        &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
    if file.path.is_empty() {
        errors.required(&at.child("path"), "");
    } else {
        file_path(&file.path, &at.child("path"), errors);
    }
    match (&file.field_ref, &file.resource_field_ref) {
        (Some(f), resource) => {
            field_ref(f, FIELDS, &at.child("fieldRef"), errors);
            if resource.is_some() {
                let why = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errors.invalid(at, "resource", why);
            }
        }
        (None, Some(r)) => resource_field(r, true, &at.child("resourceFieldRef"), errors),
        (None, None) => errors.required(at, "one of fieldRef and resourceFieldRef is required"),
    }
    mode(file.mode, &at.child("mode"), errors);
}

/// The path of a file that the kubelet puts into a volume: its own begin with two dots.
pub fn file_path(path: &str, at: &FieldPath, errors: &mut FieldErrors) {
    local_path(path, at, errors);
    if path.starts_with("..") && !path.starts_with("../") {
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

/// Whether a path leads upwards somewhere.
pub fn is_back_step(path: &str) -> bool {
    path.split('/').any(|part| part == "..")
}

pub fn no_back_steps(path: &str, at: &FieldPath, errors: &mut FieldErrors) {
    if is_back_step(path) {
        errors.invalid(at, path, "must not contain '..'");
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(list: Value, pod: Option<&str>) -> String {
        let spec = json!({"containers": [], "volumes": list});
        let spec = serde_json::from_value(spec).expect("a spec");
        let pod = pod.map(|name| ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() });
        let mut errors = FieldErrors::new();
        volumes(&spec, pod.as_ref(), &FieldPath::new("spec"), &mut errors);
        errors.aggregate()
    }

    #[test]
    fn a_volume_is_of_one_kind() {
        let at = "spec.volumes[0]";
        for (volume, told) in [
            (json!({"name": "v"}), format!("{at}: Required value: must specify a volume type")),
            (
                json!({"name": "v", "configMap": {"name": ""}, "emptyDir": {}}),
                format!("{at}.configMap: Forbidden: may not specify more than 1 volume type"),
            ),
            (
                json!({"name": "v", "nfs": {"server": "s", "path": ""}}),
                format!(
                    "[{at}.nfs.path: Required value, {at}.nfs.path: Invalid value: \"\": must be an absolute path]"
                ),
            ),
            (
                json!({"name": "v", "image": {"pullPolicy": "Always"}}),
                format!("{at}.image.reference: Required value"),
            ),
            (
                json!({"name": "v", "configMap": {"name": "m", "items": [{"key": "a/b", "path": "p"}]}}),
                "[]".into(),
            ),
        ] {
            assert_eq!(said(json!([volume]), Some("p")), told);
        }
        assert_eq!(said(json!([{"name": "v", "image": {"pullPolicy": "Always"}}]), None), "[]");
    }

    #[test]
    fn the_claim_of_a_volume_is_the_pods_own() {
        let spec = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
        let own = json!({"name": "v", "ephemeral": {"volumeClaimTemplate": {"spec": spec}}});
        let other = json!({"name": "w", "persistentVolumeClaim": {"claimName": "p-v"}});
        assert_eq!(said(json!([own]), Some("p")), "[]");
        assert_eq!(
            said(json!([own, other]), Some("p")),
            "spec.volumes[1].persistentVolumeClaim.claimName: Invalid value: \"p-v\": must not reference a PVC that \
             gets created for an ephemeral volume"
        );
        let named = json!({"name": "v", "ephemeral": {"volumeClaimTemplate": {
            "metadata": {"name": "n", "labels": {"a": "b"}}, "spec": spec}}});
        assert_eq!(
            said(json!([named]), Some("p")),
            "spec.volumes[0].ephemeral.volumeClaimTemplate.metadata.name: Forbidden: cannot be set"
        );
    }

    #[test]
    fn what_is_wrong_with_a_volume_is_wrong_with_its_mounts() {
        let spec: PodSpec = serde_json::from_value(json!({"containers": [], "volumes": [
            {"name": "a", "emptyDir": {}}, {"name": "b", "secret": {}}, {"name": "a", "emptyDir": {}}]}))
        .expect("a spec");
        let mut errors = FieldErrors::new();
        let sound = volumes(&spec, None, &FieldPath::new("spec"), &mut errors);
        assert_eq!(sound.keys().copied().collect::<Vec<_>>(), ["a"]);
        assert_eq!(
            errors.aggregate(),
            "[spec.volumes[1].secret.secretName: Required value, spec.volumes[2].name: Duplicate value: \"a\"]"
        );
    }
}
