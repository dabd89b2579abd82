//! PriorityClass: a name for a priority.

use k8s_openapi::api::scheduling::v1::PriorityClass;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use crate::registry::column::{age, boolean, integer, name, text};
use crate::registry::rules::required_one_of;
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

    fn validate(&self, _: &FieldPath, _: &mut FieldErrors) {}

    fn validate_new(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let name = self.metadata.name.as_deref().unwrap_or_default();
        let priority = self.value.unwrap_or(0);
        if name.starts_with("system-") {
            if let Some(why) = unlike_system(name, priority, self.global_default == Some(true)) {
                errors.forbidden(
                    &at.child("metadata").child("name"),
                    format!(
                        "priority class names with 'system-' prefix are reserved for system use only. error: {why}"
                    ),
                );
            }
        } else if priority > HIGHEST {
            errors.forbidden(
                &at.child("value"),
                format!("maximum allowed value of a user defined priority is {HIGHEST}"),
            );
        }
        if let Some(policy) = self.preemption_policy.as_deref() {
            let at = at.child("preemptionPolicy");
            required_one_of(Some(policy), &["PreemptLowerPriority", "Never"], &at, errors);
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

/// Why a class is none of the system's.
fn unlike_system(name: &str, value: i32, global_default: bool) -> Option<String> {
    let Some((_, own, _)) = SYSTEM.iter().find(|(known, ..)| *known == name) else {
        return Some(format!("{name} is not a known system priority class"));
    };
    if *own != value {
        return Some(format!("value of {name} PriorityClass must be {own}"));
    }
    global_default.then(|| format!("globalDefault of {name} PriorityClass must be false"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_system_are_its_own() {
        let critical = "system-cluster-critical";
        for (name, value, default, wanted) in [
            (critical, 2_000_000_000, false, None),
            (critical, 7, false, Some("value of system-cluster-critical PriorityClass must be 2000000000")),
            (
                critical,
                2_000_000_000,
                true,
                Some("globalDefault of system-cluster-critical PriorityClass must be false"),
            ),
            ("system-mine", 7, false, Some("system-mine is not a known system priority class")),
        ] {
            assert_eq!(unlike_system(name, value, default).as_deref(), wanted);
        }
    }
}
