//! ResourceClaim: devices that are asked for.

use k8s_openapi::api::resource::v1::ResourceClaim;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};
use serde_json::Value;

use super::devices::{default_spec, validate_spec};
use crate::registry::column::{age, name, text};
use crate::registry::prepare::{differ, spec_and_status};
use crate::registry::rules::IMMUTABLE;
use crate::registry::{Column, Strategy};

impl Strategy for ResourceClaim {
    const KIND: &'static Kind = &kinds::RESOURCE_CLAIM;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text("State", "A summary of the current state (allocated, pending, reserved, etc.).", state),
        age(),
    ];

    fn default(&mut self) {
        default_spec(&mut self.spec);
        self.status.get_or_insert_default();
    }

    spec_and_status!(uncounted);

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        validate_spec(&self.spec, &at.child("spec"), errors);
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        if differ(&self.spec, &old.spec) {
            errors.invalid(&at.child("spec"), &self.spec, IMMUTABLE);
        }
    }
}

fn state(claim: &ResourceClaim) -> Value {
    let status = claim.status.as_ref();
    let mut words = Vec::new();
    if claim.metadata.deletion_timestamp.is_some() {
        words.push("deleted");
    }
    if status.is_some_and(|s| s.allocation.is_some()) {
        words.push("allocated");
        if status.and_then(|s| s.reserved_for.as_ref()).is_some_and(|r| !r.is_empty()) {
            words.push("reserved");
        }
    } else if words.is_empty() {
        words.push("pending");
    }
    words.join(",").into()
}
