//! ResourceQuota: how much a namespace may use in all.

use std::fmt::Write;

use k8s_openapi::api::core::v1::ResourceQuota;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};
use serde_json::Value;

use super::pod_spec::{amount, is_extended, is_standard};
use crate::registry::column::{age, name, text};
use crate::registry::prepare::spec_and_status;
use crate::registry::rules::{IMMUTABLE, each, one_of, qualified_name};
use crate::registry::{Column, Strategy};

const SCOPES: &[&str] = &[
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
    "VolumeAttributesClass",
];

impl Strategy for ResourceQuota {
    const KIND: &'static Kind = &kinds::RESOURCE_QUOTA;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text(
            "Request",
            "Request represents a minimum amount of cpu/memory that a container may consume.",
            |q| used(q, false),
        ),
        text(
            "Limit",
            "Limits control the maximum amount of cpu/memory that a container may use independent of contention on the node.",
            |q| used(q, true),
        ),
        age(),
    ];

    fn default(&mut self) {
        self.spec.get_or_insert_default();
        self.status.get_or_insert_default();
    }

    spec_and_status!(uncounted);

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec");
        let Some(spec) = &self.spec else { return };
        for (name, value) in spec.hard.iter().flatten() {
            let at = at.child("hard").key(name);
            each(qualified_name(name), name, &at, errors);
            let known = is_standard(name)
                || is_extended(name)
                || name.starts_with("hugepages-")
                || name.starts_with("requests.")
                || name.starts_with("limits.hugepages-")
                || name.starts_with("count/")
                || name.contains(".storageclass.storage.k8s.io/");
            if !known {
                errors.invalid(&at, name, "must be a standard resource for quota");
            }
            amount(name, value, &at, errors);
        }
        for scope in spec.scopes.iter().flatten() {
            if !SCOPES.contains(&scope.as_str()) {
                errors.invalid(&at.child("scopes"), &spec.scopes, "unsupported scope");
            }
        }
        for (i, rule) in
            spec.scope_selector.iter().flat_map(|s| s.match_expressions.iter().flatten()).enumerate()
        {
            let at = at.child("scopeSelector").child("matchExpressions").index(i);
            if !SCOPES.contains(&rule.scope_name.as_str()) {
                errors.invalid(&at.child("scopeName"), &rule.scope_name, "unsupported scope");
            }
            one_of(&rule.operator, &["DoesNotExist", "Exists", "In", "NotIn"], &at.child("operator"), errors);
        }
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        let scopes = |q: &Self| q.spec.as_ref().and_then(|s| s.scopes.clone()).unwrap_or_default();
        if scopes(self) != scopes(old) {
            errors.invalid(&at.child("spec").child("scopes"), scopes(self), IMMUTABLE);
        }
    }

    fn validate_status_update(&self, _: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        let Some(status) = &self.status else { return };
        for (field, amounts) in [("hard", &status.hard), ("used", &status.used)] {
            for (name, value) in amounts.iter().flatten() {
                amount(name, value, &at.child("status").child(field).key(name), errors);
            }
        }
    }
}

fn used(q: &ResourceQuota, limits: bool) -> Value {
    let Some(status) = &q.status else { return "".into() };
    let mut text = String::new();
    for (name, hard) in status.hard.iter().flatten().filter(|(n, _)| n.starts_with("limits") == limits) {
        let used = status.used.as_ref().and_then(|u| u.get(name)).map_or("0", |u| u.0.as_str());
        let comma = if text.is_empty() { "" } else { ", " };
        let _ = write!(text, "{comma}{name}: {used}/{}", hard.0);
    }
    text.into()
}
