//! StorageClass: a kind of storage, and who makes it.

use k8s_openapi::api::storage::v1::StorageClass;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use crate::registry::column::{age, name, text};
use crate::registry::rules::{each, one_of, qualified_name};
use crate::registry::{Column, Strategy};

const IS_DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";

impl Strategy for StorageClass {
    const KIND: &'static Kind = &kinds::STORAGE_CLASS;
    const COLUMNS: &'static [Column<Self>] = &[
        Column {
            cell: |c| {
                let name = c.metadata.name.as_deref().unwrap_or_default();
                let is_default = c
                    .metadata
                    .annotations
                    .as_ref()
                    .and_then(|a| a.get(IS_DEFAULT))
                    .is_some_and(|v| v == "true");
                if is_default { format!("{name} (default)").into() } else { name.into() }
            },
            ..name()
        },
        text("Provisioner", "io.k8s.api.storage.v1.StorageClass.provisioner", |c| {
            c.provisioner.as_str().into()
        }),
        text("ReclaimPolicy", "io.k8s.api.storage.v1.StorageClass.reclaimPolicy", |c| {
            c.reclaim_policy.as_deref().unwrap_or("Delete").into()
        }),
        text("VolumeBindingMode", "io.k8s.api.storage.v1.StorageClass.volumeBindingMode", |c| {
            c.volume_binding_mode.as_deref().unwrap_or("Immediate").into()
        }),
        text("AllowVolumeExpansion", "io.k8s.api.storage.v1.StorageClass.allowVolumeExpansion", |c| {
            c.allow_volume_expansion.unwrap_or(false).into()
        }),
        age(),
    ];

    fn default(&mut self) {
        self.reclaim_policy.get_or_insert_with(|| "Delete".to_owned());
        self.volume_binding_mode.get_or_insert_with(|| "Immediate".to_owned());
    }

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        if self.provisioner.is_empty() {
            errors.required(&at.child("provisioner"), "");
        } else {
            each(
                qualified_name(&self.provisioner.to_lowercase()),
                &self.provisioner,
                &at.child("provisioner"),
                errors,
            );
        }
        let parameters = self.parameters.iter().flatten();
        if parameters.clone().count() > 512 {
            errors.too_long(&at.child("parameters"), 512);
        }
        for (key, _) in parameters {
            if key.is_empty() {
                errors.invalid(&at.child("parameters"), key, "field can not be empty.");
            }
        }
        let policy = self.reclaim_policy.as_deref().unwrap_or_default();
        one_of(policy, &["Delete", "Retain"], &at.child("reclaimPolicy"), errors);
        let mode = self.volume_binding_mode.as_deref().unwrap_or_default();
        one_of(mode, &["Immediate", "WaitForFirstConsumer"], &at.child("volumeBindingMode"), errors);
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        if self.parameters.clone().unwrap_or_default() != old.parameters.clone().unwrap_or_default() {
            errors.forbidden(&at.child("parameters"), "updates to parameters are forbidden.");
        }
        if self.provisioner != old.provisioner {
            errors.forbidden(&at.child("provisioner"), "updates to provisioner are forbidden.");
        }
        if self.reclaim_policy != old.reclaim_policy {
            errors.forbidden(&at.child("reclaimPolicy"), "updates to reclaimPolicy are forbidden.");
        }
        if self.volume_binding_mode != old.volume_binding_mode {
            errors.invalid(
                &at.child("volumeBindingMode"),
                &self.volume_binding_mode,
                crate::registry::rules::IMMUTABLE,
            );
        }
    }
}
