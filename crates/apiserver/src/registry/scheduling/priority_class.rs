//! PriorityClass: a name for a priority.

use k8s_openapi::api::scheduling::v1::PriorityClass;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use crate::registry::column::{age, boolean, integer, name, text};
use crate::registry::rules::one_of;
use crate::registry::{Column, Context, Strategy};

/// The highest priority that a user may name; above are the system's own.
const HIGHEST: i32 = 1_000_000_000;

/// The classes of pods without which a cluster does not work.
pub const SYSTEM: [(&str, i32, &str); 2] = [
    (
        "system-node-critical",
        2_000_001_000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
    (
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
];

impl Strategy for PriorityClass {
    const KIND: &'static Kind = &kinds::PRIORITY_CLASS;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        integer("Value", "io.k8s.api.scheduling.v1.PriorityClass.value", |p| p.value.unwrap_or(0).into()),
        boolean("Global-Default", "io.k8s.api.scheduling.v1.PriorityClass.globalDefault", |p| {
            p.global_default.unwrap_or(false).into()
        }),
        age(),
        text("PreemptionPolicy", "io.k8s.api.scheduling.v1.PriorityClass.preemptionPolicy", |p| {
            p.preemption_policy.as_deref().unwrap_or_default().into()
        }),
    ];

    fn default(&mut self) {
        self.preemption_policy.get_or_insert_with(|| "PreemptLowerPriority".to_owned());
    }

    fn prepare_for_create(&mut self, _: &Context) {
        self.metadata.generation = Some(1);
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context) {
        self.metadata.generation = old.metadata.generation;
    }

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let name = self.metadata.name.as_deref().unwrap_or_default();
        let priority = self.value.unwrap_or(0);
        if name.starts_with("system-") {
            let known = SYSTEM.iter().any(|(n, value, _)| *n == name && *value == priority);
            if !known || self.global_default == Some(true) {
                errors.forbidden(
                    &at.child("metadata").child("name"),
                    "priority class names with 'system-' prefix are reserved for system use only",
                );
            }
        } else if priority > HIGHEST {
            errors.forbidden(
                &at.child("value"),
                format!("maximum allowed value of a user defined priority is {HIGHEST}"),
            );
        }
        if let Some(policy) = self.preemption_policy.as_deref() {
            one_of(policy, &["Never", "PreemptLowerPriority"], &at.child("preemptionPolicy"), errors);
        }
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        if self.value.unwrap_or(0) != old.value.unwrap_or(0) {
            errors.forbidden(&at.child("value"), "may not be changed in an update.");
        }
        if self.preemption_policy != old.preemption_policy {
            errors.invalid(
                &at.child("preemptionPolicy"),
                &self.preemption_policy,
                crate::registry::rules::IMMUTABLE,
            );
        }
    }
}
