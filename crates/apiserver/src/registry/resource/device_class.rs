//! DeviceClass: a kind of devices.

use k8s_openapi::api::resource::v1::{DeviceClass, DeviceClassConfiguration, DeviceClassSpec};
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use super::config::configuration;
use super::lists::all;
use super::selector::selectors;
use crate::registry::column::{age, name};
use crate::registry::core::pod_spec::is_extended;
use crate::registry::prepare::{counted, differ};
use crate::registry::{Column, Strategy};

const MOST_CONFIGURATIONS: usize = 32;

impl Strategy for DeviceClass {
    const KIND: &'static Kind = &kinds::DEVICE_CLASS;
    const COLUMNS: &'static [Column<Self>] = &[name(), age()];

    counted!(spec);

    fn validate(&self, _: &FieldPath, _: &mut FieldErrors) {}

    fn validate_new(&self, at: &FieldPath, errors: &mut FieldErrors) {
        validate_spec(&self.spec, false, &at.child("spec"), errors);
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        let stored = !differ(&self.spec.config, &old.spec.config);
        validate_spec(&self.spec, stored, &at.child("spec"), errors);
    }
}

/// `stored`: its configurations are as they were.
fn validate_spec(spec: &DeviceClassSpec, stored: bool, at: &FieldPath, errors: &mut FieldErrors) {
    selectors(spec.selectors.as_deref(), &at.child("selectors"), errors);
    let judge = |it: &DeviceClassConfiguration, at: &FieldPath, errors: &mut FieldErrors| {
        configuration(it.opaque.as_ref(), stored, at, errors);
    };
    all(spec.config.as_deref(), MOST_CONFIGURATIONS, &at.child("config"), errors, judge);
    if let Some(name) = spec.extended_resource_name.as_deref().filter(|name| !is_extended(name)) {
        errors.invalid(&at.child("extendedResourceName"), name, "must be a valid extended resource name");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn class(spec: Value) -> DeviceClass {
        let all = json!({"apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": {"name": "c"},
            "spec": spec});
        serde_json::from_value(all).expect("a class")
    }

    #[test]
    fn a_class_selects_and_configures_devices() {
        let told = |spec: Value| {
            let mut errors = FieldErrors::new();
            class(spec).validate_new(&FieldPath::new(""), &mut errors);
            errors.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let good = json!({
            "selectors": [{"cel": {"expression": "device.driver == 'd.example.com'"}}],
            "config": [{"opaque": {"driver": "d.example.com", "parameters": {"a": 1}}}],
            "extendedResourceName": "example.com/gpu"});
        assert_eq!(told(good), [""; 0]);
        assert_eq!(
            told(json!({"selectors": [{}], "config": [{}], "extendedResourceName": "gpu"})),
            [
                "spec.selectors[0].cel: Required value",
                "spec.config[0].opaque: Required value",
                "spec.extendedResourceName: Invalid value: \"gpu\": must be a valid extended resource name",
            ]
        );
    }

    #[test]
    fn a_configuration_that_was_too_long_before_may_stay() {
        let with = |length: usize| {
            let parameters = json!({"a": "x".repeat(length)});
            class(json!({"config": [{"opaque": {"driver": "d", "parameters": parameters}}]}))
        };
        let count = |new: &DeviceClass, old: &DeviceClass| {
            let mut errors = FieldErrors::new();
            new.validate_update(old, &FieldPath::new(""), &mut errors);
            errors.len()
        };
        assert_eq!(count(&with(11 * 1024), &with(11 * 1024)), 0);
        assert_eq!(count(&with(11 * 1024), &with(10)), 1);
    }
}
