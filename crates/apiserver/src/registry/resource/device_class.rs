//! DeviceClass: a kind of devices.

use k8s_openapi::api::resource::v1::DeviceClass;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use super::devices::selectors;
use crate::registry::column::{age, name};
use crate::registry::prepare::counted;
use crate::registry::{Column, Strategy};

impl Strategy for DeviceClass {
    const KIND: &'static Kind = &kinds::DEVICE_CLASS;
    const COLUMNS: &'static [Column<Self>] = &[name(), age()];

    counted!(spec);

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        selectors(self.spec.selectors.as_deref(), &at.child("spec").child("selectors"), errors);
    }
}
