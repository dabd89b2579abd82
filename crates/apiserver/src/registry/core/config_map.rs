//! ConfigMap: settings as text and bytes.

use k8s_openapi::api::core::v1::ConfigMap;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use crate::registry::column::{age, name, text};
use crate::registry::rules::{IMMUTABLE, config_key, each};
use crate::registry::{Column, Strategy};

/// All the values together, in bytes.
pub(super) const MAX_SIZE: usize = 1024 * 1024;

impl Strategy for ConfigMap {
    const KIND: &'static Kind = &kinds::CONFIG_MAP;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text("Data", "io.k8s.api.core.v1.ConfigMap.data", |m| {
            (m.data.as_ref().map_or(0, std::collections::BTreeMap::len)
                + m.binary_data.as_ref().map_or(0, std::collections::BTreeMap::len))
            .into()
        }),
        age(),
    ];

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let mut size = 0;
        for (key, value) in self.data.iter().flatten() {
            let at = at.child("data").key(key);
            each(config_key(key), key, &at, errors);
            if self.binary_data.as_ref().is_some_and(|b| b.contains_key(key)) {
                errors.invalid(&at, key, "duplicate of key present in binaryData");
            }
            size += value.len();
        }
        for (key, value) in self.binary_data.iter().flatten() {
            each(config_key(key), key, &at.child("binaryData").key(key), errors);
            size += value.0.len();
        }
        if size > MAX_SIZE {
            errors.too_long(at, MAX_SIZE);
        }
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        if old.immutable != Some(true) {
            return;
        }
        if self.immutable != Some(true) {
            errors.forbidden(&at.child("immutable"), "field is immutable when `immutable` is set");
        }
        let empty = |m: &Option<_>| m.clone().unwrap_or_default();
        if empty(&self.data) != empty(&old.data) {
            errors.forbidden(&at.child("data"), "field is immutable when `immutable` is set");
        }
        let empty = |m: &Option<_>| m.clone().unwrap_or_default();
        if empty(&self.binary_data) != empty(&old.binary_data) {
            errors.forbidden(&at.child("binaryData"), format!("{IMMUTABLE} when `immutable` is set"));
        }
    }
}
