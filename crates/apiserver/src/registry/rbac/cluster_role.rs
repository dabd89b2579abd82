//! ClusterRole: permissions everywhere, or a set of them to be bound in a namespace.

use k8s_openapi::api::rbac::v1::ClusterRole;
use krate_api::names::is_path_segment_name;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};
use serde_json::Value;

use super::rule;
use crate::registry::column::{created_at, name};
use crate::registry::rules::label_selector;
use crate::registry::{Column, Strategy};

impl Strategy for ClusterRole {
    const KIND: &'static Kind = &kinds::CLUSTER_ROLE;
    const COLUMNS: &'static [Column<Self>] = &[name(), created_at()];
    const ALLOW_CREATE_ON_UPDATE: bool = true;

    fn validate_name(name: &str) -> Vec<String> {
        is_path_segment_name(name, false)
    }

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        for (i, r) in self.rules.iter().flatten().enumerate() {
            rule(r, false, &at.child("rules").index(i), errors);
        }
        if let Some(aggregation) = &self.aggregation_rule {
            let at = at.child("aggregationRule").child("clusterRoleSelectors");
            if aggregation.cluster_role_selectors.as_ref().is_none_or(Vec::is_empty) {
                errors
                    .required(&at, "at least one clusterRoleSelector required if aggregationRule is non-nil");
            }
            for (i, selector) in aggregation.cluster_role_selectors.iter().flatten().enumerate() {
                let before = errors.len();
                label_selector(selector, &at.index(i), errors);
                if errors.len() > before {
                    errors.invalid(&at.index(i), Value::Null, "invalid label selector.");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn selectors_that_cannot_be_read_are_told_of() {
        let role: ClusterRole = serde_json::from_value(json!({"metadata": {"name": "r"}, "rules": null,
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}, {"matchLabels": {"a b": "c"}}]}}))
        .expect("a role");
        let mut errors = FieldErrors::new();
        role.validate(&FieldPath::new(""), &mut errors);
        let told: Vec<&str> =
            errors.iter().map(|e| e.detail.as_str()).filter(|d| *d == "invalid label selector.").collect();
        assert_eq!(told.len(), 1);
    }
}
