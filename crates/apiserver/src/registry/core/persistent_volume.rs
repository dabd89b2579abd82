//! PersistentVolume: storage that is there.

mod sources;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeSpec, VolumeNodeAffinity};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};
use serde_json::Value;
use std::collections::BTreeMap;

use super::pod_spec::{access_modes, node_selector};
use crate::path::now;
use crate::registry::column::{age, name, text, wide};
use crate::registry::node_labels::deprecated;
use crate::registry::prepare::differ;
use crate::registry::quantities::{is_negative, is_zero};
use crate::registry::rules::{IMMUTABLE, dns_subdomain, one_of};
use crate::registry::{Column, Context, Selectable, Strategy};

const PROTECTION: &str = "kubernetes.io/pv-protection";
const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const BETA_MOUNT_OPTIONS: &str = "volume.beta.kubernetes.io/mount-options";

impl Strategy for PersistentVolume {
    const KIND: &'static Kind = &kinds::PERSISTENT_VOLUME;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text("Capacity", "io.k8s.api.core.v1.PersistentVolumeSpec.capacity", |v| {
            storage(spec(v).capacity.as_ref())
        }),
        text("Access Modes", "io.k8s.api.core.v1.PersistentVolumeSpec.accessModes", |v| {
            initials(spec(v).access_modes.as_deref())
        }),
        text(
            "Reclaim Policy",
            "io.k8s.api.core.v1.PersistentVolumeSpec.persistentVolumeReclaimPolicy",
            |v| spec(v).persistent_volume_reclaim_policy.unwrap_or_default().into(),
        ),
        text("Status", "io.k8s.api.core.v1.PersistentVolumeStatus.phase", |v| {
            if v.metadata.deletion_timestamp.is_some() {
                return "Terminating".into();
            }
            v.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default().into()
        }),
        text("Claim", "io.k8s.api.core.v1.PersistentVolumeSpec.claimRef", |v| match spec(v).claim_ref {
            Some(r) => format!("{}/{}", r.namespace.unwrap_or_default(), r.name.unwrap_or_default()).into(),
            None => "".into(),
        }),
        text("StorageClass", "StorageClass of the pv", |v| {
            let beta = v.metadata.annotations.as_ref().and_then(|a| a.get(BETA_CLASS)).cloned();
            beta.or(spec(v).storage_class_name).unwrap_or_default().into()
        }),
        text("VolumeAttributesClass", "VolumeAttributesClass of the pv", |v| {
            spec(v).volume_attributes_class_name.unwrap_or_else(|| "<unset>".to_owned()).into()
        }),
        text("Reason", "io.k8s.api.core.v1.PersistentVolumeStatus.reason", |v| {
            v.status.as_ref().and_then(|s| s.reason.as_deref()).unwrap_or_default().into()
        }),
        age(),
        wide("VolumeMode", "io.k8s.api.core.v1.PersistentVolumeSpec.volumeMode", |v| {
            spec(v).volume_mode.unwrap_or_else(|| "<unset>".to_owned()).into()
        }),
    ];

    fn default(&mut self) {
        let spec = self.spec.get_or_insert_default();
        or_else(&mut spec.persistent_volume_reclaim_policy, "Retain");
        spec.volume_mode.get_or_insert_with(|| "Filesystem".to_owned());
        default_source(spec);
        let status = self.status.get_or_insert_default();
        or_else(&mut status.phase, "Pending");
    }

    fn prepare_for_create(&mut self, _: &Context) {
        self.status = None;
        let status = self.status.get_or_insert_default();
        status.phase = Some("Pending".to_owned());
        status.last_phase_transition_time = Some(now());
        let finalizers = self.metadata.finalizers.get_or_insert_default();
        if !finalizers.iter().any(|f| f == PROTECTION) {
            finalizers.push(PROTECTION.to_owned());
        }
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context) {
        self.status.clone_from(&old.status);
    }

    /// Since when it has its phase is told by the server, unless the client knows better (KEP-3762).
    fn prepare_for_status_update(&mut self, old: &Self, _: &Context) {
        self.spec.clone_from(&old.spec);
        let was = old.status.clone().unwrap_or_default();
        let status = self.status.get_or_insert_default();
        let (said, before) = (&status.last_phase_transition_time, &was.last_phase_transition_time);
        if status.phase == was.phase {
            if said.is_none() {
                status.last_phase_transition_time = was.last_phase_transition_time;
            }
        } else if said.is_none() || said == before {
            status.last_phase_transition_time = Some(now());
        }
    }

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        rules(self, at, errors);
        if mounts_without_options(&spec(self))
            && self.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(BETA_MOUNT_OPTIONS))
        {
            errors.forbidden(
                &at.child("metadata").child("annotations").child(BETA_MOUNT_OPTIONS),
                "may not specify mount options for this volume type",
            );
        }
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        // Upstream asks twice, and tells both answers.
        rules(self, at, errors);
        let (new, old) = (spec(self), spec(old));
        let at = at.child("spec");
        if differ(&without_later_secret(source_of(&new), &old), &source_of(&old)) {
            errors.forbidden(
                &at.child("persistentvolumesource"),
                "spec.persistentvolumesource is immutable after creation",
            );
        }
        if new.volume_mode != old.volume_mode {
            errors.invalid(&FieldPath::new("volumeMode"), &new.volume_mode, IMMUTABLE);
        }
        if old.node_affinity.is_some() && differ(&new.node_affinity, &with_new_labels(&old, &new)) {
            errors.invalid(
                &FieldPath::new("nodeAffinity"),
                &new.node_affinity,
                format!("{IMMUTABLE}, except for updating from beta label to GA"),
            );
        }
        if old.volume_attributes_class_name.is_some() && new.volume_attributes_class_name.is_none() {
            errors.forbidden(
                &at.child("volumeAttributesClassName"),
                "update from non-nil value to nil is forbidden",
            );
        }
    }

    fn warnings(&self, old: Option<&Self>) -> Vec<String> {
        // Who writes the status is told nothing.
        let is_of_status = old.is_some_and(|old| self.spec == old.spec && self.status != old.status);
        if is_of_status { Vec::new() } else { warnings(self) }
    }

    fn selectable(&self) -> Selectable {
        vec![("name", self.metadata.name.clone().unwrap_or_default())]
    }
}

fn spec(v: &PersistentVolume) -> PersistentVolumeSpec {
    v.spec.clone().unwrap_or_default()
}

/// The spec with nothing in it but where the storage is.
fn source_of(spec: &PersistentVolumeSpec) -> PersistentVolumeSpec {
    PersistentVolumeSpec {
        access_modes: None,
        capacity: None,
        claim_ref: None,
        mount_options: None,
        node_affinity: None,
        persistent_volume_reclaim_policy: None,
        storage_class_name: None,
        volume_attributes_class_name: None,
        volume_mode: None,
        ..spec.clone()
    }
}

fn or_else(field: &mut Option<String>, value: &str) {
    if field.as_deref().is_none_or(str::is_empty) {
        *field = Some(value.to_owned());
    }
}

fn default_source(spec: &mut PersistentVolumeSpec) {
    if let Some(s) = &mut spec.host_path {
        s.type_.get_or_insert_default();
    }
    if let Some(s) = &mut spec.rbd {
        or_else(&mut s.pool, "rbd");
        or_else(&mut s.user, "admin");
        or_else(&mut s.keyring, "/etc/ceph/keyring");
    }
    if let Some(s) = &mut spec.iscsi {
        or_else(&mut s.iscsi_interface, "default");
    }
    if let Some(s) = &mut spec.azure_disk {
        s.caching_mode.get_or_insert_with(|| "ReadWrite".to_owned());
        s.fs_type.get_or_insert_with(|| "ext4".to_owned());
        s.read_only.get_or_insert(false);
        s.kind.get_or_insert_with(|| "Shared".to_owned());
    }
    if let Some(s) = &mut spec.scale_io {
        or_else(&mut s.storage_mode, "ThinProvisioned");
        or_else(&mut s.fs_type, "xfs");
    }
}

fn rules(volume: &PersistentVolume, at: &FieldPath, errors: &mut FieldErrors) {
    let at = at.child("spec");
    let spec = spec(volume);
    let (modes, at_modes) = (spec.access_modes.as_deref().unwrap_or_default(), at.child("accessModes"));
    if modes.is_empty() {
        errors.required(&at_modes, "");
    }
    access_modes(modes, &at_modes, errors);
    capacity(&spec.capacity.clone().unwrap_or_default(), &at.child("capacity"), errors);
    let policy = spec.persistent_volume_reclaim_policy.as_deref().unwrap_or_default();
    let at_policy = at.child("persistentVolumeReclaimPolicy");
    if !policy.is_empty() {
        one_of(policy, &["Delete", "Recycle", "Retain"], &at_policy, errors);
    }
    if let Some(affinity) = &spec.node_affinity {
        let at = at.child("nodeAffinity").child("required");
        match &affinity.required {
            Some(selector) => node_selector(selector, &at, errors),
            None => errors.required(&at, "must specify required node constraints"),
        }
    }
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    sources::sources(name, &spec, &at, errors);
    if policy == "Recycle" && spec.host_path.as_ref().is_some_and(|host| is_root(&host.path)) {
        errors.forbidden(&at_policy, "may not be 'recycle' for a hostPath mount of '/'");
    }
    if let Some(class) = spec.storage_class_name.as_deref().filter(|c| !c.is_empty()) {
        dns_subdomain(class, &at.child("storageClassName"), errors);
    }
    if let Some(mode) = &spec.volume_mode {
        one_of(mode, &["Block", "Filesystem"], &at.child("volumeMode"), errors);
    }
    if let Some(class) = &spec.volume_attributes_class_name {
        let at_class = at.child("volumeAttributesClassName");
        if class.is_empty() {
            errors.required(&at_class, "an empty string is disallowed");
        } else {
            dns_subdomain(class, &at_class, errors);
        }
        if spec.csi.is_none() {
            errors.required(&at.child("csi"), "has to be specified when using volumeAttributesClassName");
        }
    }
}

fn capacity(amounts: &BTreeMap<String, Quantity>, at: &FieldPath, errors: &mut FieldErrors) {
    if amounts.is_empty() {
        errors.required(at, "");
    }
    if !amounts.contains_key("storage") || amounts.len() > 1 {
        // Upstream shows no map where there is none.
        let shown = (!amounts.is_empty()).then_some(amounts);
        errors.not_supported(at, shown, &["storage"]);
    }
    for (name, value) in amounts {
        let at = at.key(name);
        if is_negative(value) {
            let bytes = krate_api::quantity::Quantity::parse(&value.0).map_or(0, |q| q.value());
            if bytes < 0 {
                errors.invalid(&at, bytes, "must be a valid resource quantity");
            }
        }
        if is_negative(value) || is_zero(value) {
            errors.invalid(&at, &value.0, "must be greater than zero");
        }
    }
}

/// Whether a path is another way to write `/`.
fn is_root(path: &str) -> bool {
    let mut depth = 0_usize;
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => depth = depth.saturating_sub(1),
            _ => depth += 1,
        }
    }
    path.starts_with('/') && depth == 0
}

/// Whether its kind of storage knows nothing of options for mounts.
fn mounts_without_options(spec: &PersistentVolumeSpec) -> bool {
    let knows = [
        spec.gce_persistent_disk.is_some(),
        spec.aws_elastic_block_store.is_some(),
        spec.glusterfs.is_some(),
        spec.nfs.is_some(),
        spec.rbd.is_some(),
        spec.quobyte.is_some(),
        spec.iscsi.is_some(),
        spec.cinder.is_some(),
        spec.cephfs.is_some(),
        spec.azure_file.is_some(),
        spec.vsphere_volume.is_some(),
        spec.azure_disk.is_some(),
        spec.photon_persistent_disk.is_some(),
    ];
    !knows.contains(&true)
}

/// The old affinity by the names that its labels have in the new one, where these are their names by now.
fn with_new_labels(old: &PersistentVolumeSpec, new: &PersistentVolumeSpec) -> Option<VolumeNodeAffinity> {
    let mut affinity = old.node_affinity.clone();
    let old_terms = affinity.iter_mut().flat_map(|a| &mut a.required).map(|r| &mut r.node_selector_terms);
    let new_terms = new.node_affinity.iter().flat_map(|a| &a.required).map(|r| &r.node_selector_terms);
    for (old, new) in old_terms.flatten().zip(new_terms.flatten()) {
        let rules = old.match_expressions.iter_mut().flatten().zip(new.match_expressions.iter().flatten());
        for (old, new) in rules {
            if RENAMED.contains(&(old.key.as_str(), new.key.as_str())) {
                old.key.clone_from(&new.key);
            }
        }
    }
    affinity
}

const RENAMED: &[(&str, &str)] = &[
    ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"),
    ("beta.kubernetes.io/os", "kubernetes.io/os"),
    ("beta.kubernetes.io/arch", "kubernetes.io/arch"),
    ("beta.kubernetes.io/instance-type", "node.kubernetes.io/instance-type"),
];

/// The secret by which a volume is enlarged may come later.
fn without_later_secret(mut new: PersistentVolumeSpec, old: &PersistentVolumeSpec) -> PersistentVolumeSpec {
    let had_none = old.csi.as_ref().is_some_and(|csi| csi.controller_expand_secret_ref.is_none());
    if let Some(csi) = new.csi.as_mut().filter(|_| had_none) {
        csi.controller_expand_secret_ref = None;
    }
    new
}

fn warnings(volume: &PersistentVolume) -> Vec<String> {
    let mut warnings = Vec::new();
    let annotations = volume.metadata.annotations.as_ref();
    for (key, why) in [
        (BETA_CLASS, "deprecated since v1.8; use \"storageClassName\" attribute instead"),
        (BETA_MOUNT_OPTIONS, "deprecated since v1.31; use \"mountOptions\" attribute instead"),
    ] {
        if annotations.is_some_and(|annotations| annotations.contains_key(key)) {
            warnings.push(format!("metadata.annotations[{key}]: {why}"));
        }
    }
    let Some(spec) = &volume.spec else { return warnings };
    if spec.persistent_volume_reclaim_policy.as_deref() == Some("Recycle") {
        warnings.push(
            "spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the \
             recommended approach is to use dynamic provisioning."
                .to_owned(),
        );
    }
    let required = spec.node_affinity.as_ref().and_then(|affinity| affinity.required.as_ref());
    for (i, term) in required.iter().flat_map(|selector| &selector.node_selector_terms).enumerate() {
        for (j, rule) in term.match_expressions.iter().flatten().enumerate() {
            if let Some(why) = deprecated(&rule.key) {
                warnings.push(format!(
                    "spec.nodeAffinity.required.nodeSelectorTerms[{i}].matchExpressions[{j}].key: {} is {why}",
                    rule.key
                ));
            }
        }
    }
    for (given, field, why) in [
        (spec.cephfs.is_some(), "cephfs", "deprecated in v1.28, non-functional in v1.31+"),
        (
            spec.photon_persistent_disk.is_some(),
            "photonPersistentDisk",
            "deprecated in v1.11, non-functional in v1.16+",
        ),
        (spec.scale_io.is_some(), "scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
        (spec.storageos.is_some(), "storageOS", "deprecated in v1.22, non-functional in v1.25+"),
        (spec.glusterfs.is_some(), "glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
        (spec.rbd.is_some(), "rbd", "deprecated in v1.28, non-functional in v1.31+"),
    ] {
        if given {
            warnings.push(format!("spec.{field}: {why}"));
        }
    }
    warnings
}

/// `RWO,ROX`: the modes by their initials, each once, in upstream's order.
pub fn initials(modes: Option<&[String]>) -> Value {
    let has = |mode: &str| modes.unwrap_or_default().iter().any(|m| m == mode);
    let short = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let list: Vec<&str> = short.into_iter().filter(|(mode, _)| has(mode)).map(|(_, short)| short).collect();
    list.join(",").into()
}

pub fn storage(amounts: Option<&BTreeMap<String, Quantity>>) -> Value {
    amounts.and_then(|a| a.get("storage")).map_or("0", |q| q.0.as_str()).into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn volume(spec: &Value) -> PersistentVolume {
        let mut object = json!({"metadata": {"name": "v"}, "spec": {"capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/a"}}});
        for (field, value) in spec.as_object().into_iter().flatten() {
            object["spec"][field] = value.clone();
        }
        let mut volume: PersistentVolume = serde_json::from_value(object).expect("a volume");
        volume.default();
        volume
    }

    fn wrong(new: &PersistentVolume, old: Option<&PersistentVolume>) -> Vec<String> {
        let mut errors = FieldErrors::new();
        match old {
            None => new.validate(&FieldPath::new(""), &mut errors),
            Some(old) => new.validate_update(old, &FieldPath::new(""), &mut errors),
        }
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_volume_says_how_much_it_is_and_for_whom() {
        for (spec, texts) in [
            (json!({}), vec![]),
            (
                json!({"accessModes": ["ReadWriteOncePod", "ReadWriteOnce"]}),
                vec!["spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes"],
            ),
            (
                json!({"capacity": {"cpu": "1"}}),
                vec!["spec.capacity: Unsupported value: {\"cpu\":\"1\"}: supported values: \"storage\""],
            ),
            (
                json!({"capacity": {"storage": "0"}}),
                vec!["spec.capacity[storage]: Invalid value: \"0\": must be greater than zero"],
            ),
            (
                json!({"persistentVolumeReclaimPolicy": "Recycle", "hostPath": {"path": "/a/.."}}),
                vec![
                    "spec.hostPath.path: Invalid value: \"/a/..\": must not contain '..'",
                    "spec.persistentVolumeReclaimPolicy: Forbidden: may not be 'recycle' for a hostPath mount of '/'",
                ],
            ),
            (
                json!({"volumeAttributesClassName": ""}),
                vec![
                    "spec.volumeAttributesClassName: Required value: an empty string is disallowed",
                    "spec.csi: Required value: has to be specified when using volumeAttributesClassName",
                ],
            ),
        ] {
            assert_eq!(wrong(&volume(&spec), None), texts);
        }
        let mut volume = volume(&json!({}));
        volume.metadata.annotations = Some([(BETA_MOUNT_OPTIONS.to_owned(), "ro".to_owned())].into());
        assert_eq!(
            wrong(&volume, None),
            [
                "metadata.annotations.volume.beta.kubernetes.io/mount-options: Forbidden: may not specify mount \
              options for this volume type"
            ]
        );
    }

    fn reached_by(label: &str) -> Value {
        json!({"nodeAffinity": {"required": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": label, "operator": "Exists"}]}]}}})
    }

    #[test]
    fn where_a_volume_is_does_not_change() {
        let old = volume(&reached_by("beta.kubernetes.io/os"));
        assert_eq!(wrong(&volume(&reached_by("kubernetes.io/os")), Some(&old)), [""; 0]);
        let text = wrong(&volume(&reached_by("other")), Some(&old));
        assert!(text[0].starts_with("nodeAffinity: Invalid value"), "{text:?}");
        assert_eq!(wrong(&volume(&reached_by("other")), Some(&volume(&json!({})))), [""; 0]);
        let csi = |secret: Value| {
            let csi = json!({"driver": "d", "volumeHandle": "h", "controllerExpandSecretRef": secret});
            volume(&json!({"hostPath": null, "csi": csi}))
        };
        let secret = json!({"name": "a", "namespace": "b"});
        assert_eq!(wrong(&csi(secret.clone()), Some(&csi(Value::Null))), [""; 0]);
        assert_eq!(
            wrong(&csi(Value::Null), Some(&csi(secret))),
            [
                "spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation"
            ]
        );
    }

    #[test]
    fn since_when_it_has_its_phase_is_told() {
        let mut old = volume(&json!({}));
        old.prepare_for_create(&Context::default());
        let at = |v: &PersistentVolume| v.status.as_ref().and_then(|s| s.last_phase_transition_time.clone());
        assert!(at(&old).is_some());
        old.status.get_or_insert_default().last_phase_transition_time =
            serde_json::from_value(json!("1970-01-01T00:00:00Z")).expect("a time");
        let mut same = old.clone();
        same.status.get_or_insert_default().last_phase_transition_time = None;
        same.prepare_for_status_update(&old, &Context::default());
        assert_eq!(at(&same), at(&old));
        let mut bound = old.clone();
        bound.status.get_or_insert_default().phase = Some("Bound".to_owned());
        bound.prepare_for_status_update(&old, &Context::default());
        assert!(at(&bound).is_some() && at(&bound) != at(&old));
    }

    #[test]
    fn what_is_old_is_told() {
        let mut spec = reached_by("beta.kubernetes.io/os");
        spec["persistentVolumeReclaimPolicy"] = "Recycle".into();
        let told = volume(&spec).warnings(None);
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(
            told[0]
                .starts_with("spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated.")
        );
        assert_eq!(
            told[1],
            "spec.nodeAffinity.required.nodeSelectorTerms[0].matchExpressions[0].key: beta.kubernetes.io/os is \
             deprecated since v1.14; use \"kubernetes.io/os\" instead"
        );
    }

    #[test]
    fn storage_has_the_settings_that_it_usually_has() {
        let rbd = json!({"hostPath": null, "rbd": {"monitors": ["a"], "image": "i"}});
        let rbd = volume(&rbd).spec.and_then(|s| s.rbd).expect("rbd");
        assert_eq!((rbd.pool.as_deref(), rbd.user.as_deref()), (Some("rbd"), Some("admin")));
    }
}
