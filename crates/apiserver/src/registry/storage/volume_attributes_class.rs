//! VolumeAttributesClass: attributes of volumes that may be changed while they are in use.

use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use crate::registry::column::{age, name, text};
use crate::registry::core::pod_spec::driver_name;
use crate::registry::{Column, Context, Strategy};

const PROTECTION: &str = "kubernetes.io/vac-protection";

impl Strategy for VolumeAttributesClass {
    const KIND: &'static Kind = &kinds::VOLUME_ATTRIBUTES_CLASS;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text("DriverName", "io.k8s.api.storage.v1.VolumeAttributesClass.driverName", |c| {
            c.driver_name.as_str().into()
        }),
        age(),
    ];

    fn prepare_for_create(&mut self, _: &Context) {
        let finalizers = self.metadata.finalizers.get_or_insert_default();
        if !finalizers.iter().any(|f| f == PROTECTION) {
            finalizers.push(PROTECTION.to_owned());
        }
    }

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        driver_name(&self.driver_name, &at.child("driverName"), errors);
        if self.parameters.as_ref().is_none_or(std::collections::BTreeMap::is_empty) {
            errors.required(&at.child("parameters"), "must contain at least one key/value pair");
        }
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        if self.driver_name != old.driver_name {
            errors.invalid(&at.child("driverName"), &self.driver_name, crate::registry::rules::IMMUTABLE);
        }
        if self.parameters.clone().unwrap_or_default() != old.parameters.clone().unwrap_or_default() {
            errors.forbidden(&at.child("parameters"), "updates to parameters are forbidden.");
        }
    }
}
