//! PersistentVolume: storage that is there.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};
use serde_json::Value;
use std::collections::BTreeMap;

use super::pod_spec::{amount, no_back_steps, node_selector};
use crate::registry::column::{age, name, text, wide};
use crate::registry::prepare::differ;
use crate::registry::rules::{dns_subdomain, one_of};
use crate::registry::{Column, Context, Selectable, Strategy};

const PROTECTION: &str = "kubernetes.io/pv-protection";

impl Strategy for PersistentVolume {
    const KIND: &'static Kind = &kinds::PERSISTENT_VOLUME;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text("Capacity", "io.k8s.api.core.v1.PersistentVolumeSpec.capacity", |v| {
            storage(spec(v).capacity.as_ref())
        }),
        text("Access Modes", "io.k8s.api.core.v1.PersistentVolumeSpec.accessModes", |v| {
            access_modes(spec(v).access_modes.as_deref())
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
            spec(v).storage_class_name.unwrap_or_default().into()
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
        spec.persistent_volume_reclaim_policy.get_or_insert_with(|| "Retain".to_owned());
        spec.volume_mode.get_or_insert_with(|| "Filesystem".to_owned());
        if let Some(host) = &mut spec.host_path {
            host.type_.get_or_insert_default();
        }
        let status = self.status.get_or_insert_default();
        status.phase.get_or_insert_with(|| "Pending".to_owned());
    }

    fn prepare_for_create(&mut self, _: &Context) {
        self.status = None;
        let status = self.status.get_or_insert_default();
        status.phase = Some("Pending".to_owned());
        let finalizers = self.metadata.finalizers.get_or_insert_default();
        if !finalizers.iter().any(|f| f == PROTECTION) {
            finalizers.push(PROTECTION.to_owned());
        }
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context) {
        self.status.clone_from(&old.status);
    }

    fn prepare_for_status_update(&mut self, old: &Self, _: &Context) {
        self.spec.clone_from(&old.spec);
    }

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec");
        let spec = spec(self);
        if spec.access_modes.as_ref().is_none_or(Vec::is_empty) {
            errors.required(&at.child("accessModes"), "");
        }
        for mode in spec.access_modes.iter().flatten() {
            one_of(
                mode,
                &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"],
                &at.child("accessModes"),
                errors,
            );
        }
        let capacity = spec.capacity.clone().unwrap_or_default();
        if capacity.is_empty() {
            errors.required(&at.child("capacity"), "");
        }
        if !capacity.contains_key("storage") || capacity.len() > 1 {
            let names: Vec<&String> = capacity.keys().collect();
            errors.not_supported(&at.child("capacity"), names, &["storage"]);
        }
        for (name, value) in &capacity {
            amount(name, value, &at.child("capacity").key(name), errors);
        }
        let policy = spec.persistent_volume_reclaim_policy.as_deref().unwrap_or_default();
        one_of(policy, &["Delete", "Recycle", "Retain"], &at.child("persistentVolumeReclaimPolicy"), errors);
        if let Some(required) = spec.node_affinity.as_ref().map(|a| &a.required) {
            match required {
                Some(selector) => {
                    node_selector(selector, &at.child("nodeAffinity").child("required"), errors);
                }
                None => errors.required(
                    &at.child("nodeAffinity").child("required"),
                    "must specify required node constraints",
                ),
            }
        }
        sources(&spec, &at, errors);
        if let Some(class) = spec.storage_class_name.as_deref().filter(|c| !c.is_empty()) {
            dns_subdomain(class, &at.child("storageClassName"), errors);
        }
        if let Some(mode) = &spec.volume_mode {
            one_of(mode, &["Block", "Filesystem"], &at.child("volumeMode"), errors);
        }
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec");
        if differ(&source_of(&spec(self)), &source_of(&spec(old))) {
            errors.forbidden(
                &at.child("persistentvolumesource"),
                "spec.persistentvolumesource is immutable after creation",
            );
        }
        if spec(self).volume_mode != spec(old).volume_mode {
            errors.invalid(
                &at.child("volumeMode"),
                spec(self).volume_mode,
                crate::registry::rules::IMMUTABLE,
            );
        }
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

fn sources(spec: &PersistentVolumeSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let given = match serde_json::to_value(source_of(spec)) {
        Ok(Value::Object(map)) => map.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, _)| k).collect(),
        _ => Vec::new(),
    };
    if given.is_empty() {
        errors.required(at, "must specify a volume type");
    }
    for extra in given.iter().skip(1) {
        errors.forbidden(&at.child(extra), "may not specify more than 1 volume type");
    }
    if let Some(host) = &spec.host_path {
        let at = at.child("hostPath").child("path");
        if host.path.is_empty() {
            errors.required(&at, "");
        } else {
            no_back_steps(&host.path, &at, errors);
        }
    }
    if let Some(csi) = &spec.csi {
        super::pod_spec::driver_name(&csi.driver, &at.child("csi").child("driver"), errors);
        if csi.volume_handle.is_empty() {
            errors.required(&at.child("csi").child("volumeHandle"), "");
        }
    }
    if let Some(local) = &spec.local {
        if local.path.is_empty() {
            errors.required(&at.child("local").child("path"), "");
        } else {
            no_back_steps(&local.path, &at.child("local").child("path"), errors);
        }
        if spec.node_affinity.as_ref().and_then(|a| a.required.as_ref()).is_none() {
            errors.required(&at.child("nodeAffinity"), "Local volume requires node affinity");
        }
    }
}

/// `RWO,ROX`: the modes by their initials, each once, in upstream's order.
pub fn access_modes(modes: Option<&[String]>) -> Value {
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
    amounts.and_then(|a| a.get("storage")).map_or("", |q| q.0.as_str()).into()
}
