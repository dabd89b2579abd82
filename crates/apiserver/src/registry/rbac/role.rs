//! Role: permissions in one namespace.

use k8s_openapi::api::rbac::v1::Role;
use krate_api::names::is_path_segment_name;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use super::rule;
use crate::registry::column::{created_at, name};
use crate::registry::{Column, Strategy};

impl Strategy for Role {
    const KIND: &'static Kind = &kinds::ROLE;
    const COLUMNS: &'static [Column<Self>] = &[name(), created_at()];
    const ALLOW_CREATE_ON_UPDATE: bool = true;

    fn validate_name(name: &str) -> Vec<String> {
        is_path_segment_name(name, false)
    }

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        for (i, r) in self.rules.iter().flatten().enumerate() {
            rule(r, true, &at.child("rules").index(i), errors);
        }
    }
}
