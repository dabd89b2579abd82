//! PersistentVolumeClaim: storage that is asked for.

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimSpec};
use krate_api::{FieldErrors, FieldPath, Kind, kinds};
use serde_json::Value;

use super::persistent_volume::{access_modes, storage};
use super::pod_spec;
use crate::registry::column::{age, name, text, wide};
use crate::registry::prepare::differ;
use crate::registry::quantities::more;
use crate::registry::{Column, Context, Selectable, Strategy};

const PROTECTION: &str = "kubernetes.io/pvc-protection";
const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

impl Strategy for PersistentVolumeClaim {
    const KIND: &'static Kind = &kinds::PERSISTENT_VOLUME_CLAIM;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text("Status", "io.k8s.api.core.v1.PersistentVolumeClaimStatus.phase", phase),
        text("Volume", "io.k8s.api.core.v1.PersistentVolumeClaimSpec.volumeName", |c| {
            spec(c).volume_name.unwrap_or_default().into()
        }),
        text("Capacity", "io.k8s.api.core.v1.PersistentVolumeClaimStatus.capacity", |c| {
            if bound(c) { storage(c.status.as_ref().and_then(|s| s.capacity.as_ref())) } else { "".into() }
        }),
        text("Access Modes", "io.k8s.api.core.v1.PersistentVolumeClaimStatus.accessModes", |c| {
            let modes = c.status.as_ref().and_then(|s| s.access_modes.as_deref());
            if bound(c) { access_modes(modes) } else { "".into() }
        }),
        text("StorageClass", "StorageClass of the pvc", |c| {
            let beta = c.metadata.annotations.as_ref().and_then(|a| a.get(BETA_CLASS)).cloned();
            beta.or(spec(c).storage_class_name).unwrap_or_default().into()
        }),
        text("VolumeAttributesClass", "VolumeAttributesClass of the pvc", |c| {
            spec(c).volume_attributes_class_name.unwrap_or_else(|| "<unset>".to_owned()).into()
        }),
        age(),
        wide("VolumeMode", "io.k8s.api.core.v1.PersistentVolumeClaimSpec.volumeMode", |c| {
            spec(c).volume_mode.unwrap_or_else(|| "<unset>".to_owned()).into()
        }),
    ];

    fn default(&mut self) {
        pod_spec::default_claim(self.spec.get_or_insert_default());
        let status = self.status.get_or_insert_default();
        if status.phase.as_deref().is_none_or(str::is_empty) {
            status.phase = Some("Pending".to_owned());
        }
    }

    fn prepare_for_create(&mut self, _: &Context) {
        self.status = None;
        self.status.get_or_insert_default();
        if let Some(status) = &mut self.status {
            status.phase = Some("Pending".to_owned());
        }
        let finalizers = self.metadata.finalizers.get_or_insert_default();
        if !finalizers.iter().any(|f| f == PROTECTION) {
            finalizers.push(PROTECTION.to_owned());
        }
        same_source(self.spec.get_or_insert_default());
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context) {
        self.status.clone_from(&old.status);
        same_source(self.spec.get_or_insert_default());
    }

    fn prepare_for_status_update(&mut self, old: &Self, _: &Context) {
        self.spec.clone_from(&old.spec);
    }

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        if let Some(spec) = &self.spec {
            pod_spec::claim(spec, &at.child("spec"), errors);
        }
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec");
        let (new, was) = (spec(self), spec(old));
        let mut rest = new.clone();
        // A claim is bound once, may be enlarged once bound, and may be moved to other attributes.
        if was.volume_name.as_deref().is_none_or(str::is_empty) {
            rest.volume_name.clone_from(&was.volume_name);
        }
        let is_bound = bound(old);
        if is_bound && let (Some(rest), Some(was)) = (rest.resources.as_mut(), was.resources.as_ref()) {
            rest.requests.clone_from(&was.requests);
        }
        rest.volume_attributes_class_name.clone_from(&was.volume_attributes_class_name);
        if was.storage_class_name.is_none() {
            rest.storage_class_name = None;
        }
        if differ(&rest, &was) {
            errors.forbidden(
                &at,
                "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
            );
        }
        let size = |s: &PersistentVolumeClaimSpec| {
            s.resources.as_ref().and_then(|r| r.requests.as_ref()).and_then(|r| r.get("storage").cloned())
        };
        if let (true, Some(new), Some(old)) = (is_bound, size(&new), size(&was))
            && more(&old, &new)
        {
            errors.forbidden(
                &at.child("resources").child("requests").child("storage"),
                "field can not be less than status.capacity",
            );
        }
    }

    fn selectable(&self) -> Selectable {
        vec![("name", self.metadata.name.clone().unwrap_or_default())]
    }
}

fn spec(claim: &PersistentVolumeClaim) -> PersistentVolumeClaimSpec {
    claim.spec.clone().unwrap_or_default()
}

fn bound(claim: &PersistentVolumeClaim) -> bool {
    claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).is_some_and(|v| !v.is_empty())
}

fn phase(claim: &PersistentVolumeClaim) -> Value {
    if claim.metadata.deletion_timestamp.is_some() {
        return "Terminating".into();
    }
    claim.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default().into()
}

/// Both fields for the source of the contents say the same where either can.
fn same_source(spec: &mut PersistentVolumeClaimSpec) {
    use k8s_openapi::api::core::v1::{TypedLocalObjectReference, TypedObjectReference};
    match (&spec.data_source, &spec.data_source_ref) {
        (Some(source), None) => {
            spec.data_source_ref = Some(TypedObjectReference {
                api_group: source.api_group.clone(),
                kind: source.kind.clone(),
                name: source.name.clone(),
                namespace: None,
            });
        }
        (None, Some(source)) if source.namespace.as_deref().is_none_or(str::is_empty) => {
            let known = source.kind == "PersistentVolumeClaim" || source.kind == "VolumeSnapshot";
            if known {
                spec.data_source = Some(TypedLocalObjectReference {
                    api_group: source.api_group.clone(),
                    kind: source.kind.clone(),
                    name: source.name.clone(),
                });
            }
        }
        _ => {}
    }
}
