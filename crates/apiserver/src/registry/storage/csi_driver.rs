//! CSIDriver: what a storage driver can do, and wants.

use k8s_openapi::api::storage::v1::CSIDriver;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use crate::registry::column::{age, boolean, name, text};
use crate::registry::rules::{IMMUTABLE, one_of};
use crate::registry::{Column, Context, Strategy};

impl Strategy for CSIDriver {
    const KIND: &'static Kind = &kinds::CSI_DRIVER;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        boolean("AttachRequired", "io.k8s.api.storage.v1.CSIDriverSpec.attachRequired", |d| {
            d.spec.attach_required.unwrap_or(true).into()
        }),
        boolean("PodInfoOnMount", "io.k8s.api.storage.v1.CSIDriverSpec.podInfoOnMount", |d| {
            d.spec.pod_info_on_mount.unwrap_or(false).into()
        }),
        boolean("StorageCapacity", "io.k8s.api.storage.v1.CSIDriverSpec.storageCapacity", |d| {
            d.spec.storage_capacity.unwrap_or(false).into()
        }),
        text("TokenRequests", "io.k8s.api.storage.v1.CSIDriverSpec.tokenRequests", |d| {
            match &d.spec.token_requests {
                None => "<unset>".into(),
                Some(list) => list.iter().map(|t| t.audience.clone()).collect::<Vec<_>>().join(",").into(),
            }
        }),
        boolean("RequiresRepublish", "io.k8s.api.storage.v1.CSIDriverSpec.requiresRepublish", |d| {
            d.spec.requires_republish.unwrap_or(false).into()
        }),
        text("Modes", "io.k8s.api.storage.v1.CSIDriverSpec.volumeLifecycleModes", |d| {
            d.spec.volume_lifecycle_modes.clone().unwrap_or_default().join(",").into()
        }),
        age(),
    ];

    fn default(&mut self) {
        let spec = &mut self.spec;
        spec.attach_required.get_or_insert(true);
        spec.pod_info_on_mount.get_or_insert(false);
        spec.storage_capacity.get_or_insert(false);
        spec.requires_republish.get_or_insert(false);
        spec.se_linux_mount.get_or_insert(false);
        spec.fs_group_policy.get_or_insert_with(|| "ReadWriteOnceWithFSType".to_owned());
        if spec.volume_lifecycle_modes.as_ref().is_none_or(Vec::is_empty) {
            spec.volume_lifecycle_modes = Some(vec!["Persistent".to_owned()]);
        }
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context) {
        let changed = crate::registry::prepare::differ(&self.spec, &old.spec);
        crate::registry::prepare::next_generation(&mut self.metadata, &old.metadata, changed);
    }

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec");
        let spec = &self.spec;
        if let Some(policy) = &spec.fs_group_policy {
            one_of(policy, &["File", "None", "ReadWriteOnceWithFSType"], &at.child("fsGroupPolicy"), errors);
        }
        for mode in spec.volume_lifecycle_modes.iter().flatten() {
            one_of(mode, &["Ephemeral", "Persistent"], &at.child("volumeLifecycleModes"), errors);
        }
        let mut audiences = std::collections::BTreeSet::new();
        for (i, request) in spec.token_requests.iter().flatten().enumerate() {
            let at = at.child("tokenRequests").index(i);
            if !audiences.insert(&request.audience) {
                errors.duplicate(&at.child("audience"), &request.audience);
            }
            if request.expiration_seconds.is_some_and(|s| s < 600) {
                errors.invalid(
                    &at.child("expirationSeconds"),
                    request.expiration_seconds,
                    "may not specify a duration less than 10 minutes",
                );
            }
        }
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec");
        if self.spec.attach_required != old.spec.attach_required {
            errors.invalid(&at.child("attachedRequired"), self.spec.attach_required, IMMUTABLE);
        }
        if self.spec.volume_lifecycle_modes != old.spec.volume_lifecycle_modes {
            errors.invalid(&at.child("volumeLifecycleModes"), &self.spec.volume_lifecycle_modes, IMMUTABLE);
        }
    }
}
