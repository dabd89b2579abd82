//! VolumeAttributesClass: attributes of volumes that may be changed while they are in use.

use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use super::parameters::{parameters, provisioner};
use crate::registry::column::{age, name, text};
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

    fn validate(&self, _: &FieldPath, _: &mut FieldErrors) {}

    fn validate_new(&self, at: &FieldPath, errors: &mut FieldErrors) {
        provisioner(&self.driver_name, &at.child("driverName"), errors);
        parameters(self.parameters.as_ref(), &at.child("parameters"), errors);
        if self.parameters.as_ref().is_none_or(std::collections::BTreeMap::is_empty) {
            errors.required(&at.child("parameters"), "must contain at least one key/value pair");
        }
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        if self.driver_name != old.driver_name {
            errors.forbidden(&at.child("driverName"), "updates to driverName are forbidden.");
        }
        if self.parameters.clone().unwrap_or_default() != old.parameters.clone().unwrap_or_default() {
            errors.forbidden(&at.child("parameters"), "updates to parameters are forbidden.");
        }
        self.validate_new(at, errors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_of_one_driver_for_ever() {
        let class = |driver: &str| VolumeAttributesClass {
            driver_name: driver.to_owned(),
            parameters: Some([("a".to_owned(), "1".to_owned())].into()),
            ..Default::default()
        };
        let mut errors = FieldErrors::new();
        class("example.com/a").validate_update(&class("example.com/b"), &FieldPath::new(""), &mut errors);
        assert_eq!(errors.aggregate(), "driverName: Forbidden: updates to driverName are forbidden.");
    }
}
