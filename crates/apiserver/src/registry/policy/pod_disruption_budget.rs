//! PodDisruptionBudget: how many of some pods may be away on purpose.

use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};
use serde::Serialize;
use serde_json::Value;

use crate::registry::certificates::conditions;
use crate::registry::column::{age, integer, name, text};
use crate::registry::prepare::spec_and_status;
use crate::registry::rules::{count_or_percent, label_selector, not_more_than_all, not_negative, one_of};
use crate::registry::{Column, Strategy};

impl Strategy for PodDisruptionBudget {
    const KIND: &'static Kind = &kinds::POD_DISRUPTION_BUDGET;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text("Min Available", "The minimum number of pods that must be available.", |b| {
            bound(b.spec.as_ref().and_then(|s| s.min_available.as_ref()))
        }),
        text("Max Unavailable", "The maximum number of pods that may be unavailable.", |b| {
            bound(b.spec.as_ref().and_then(|s| s.max_unavailable.as_ref()))
        }),
        integer(
            "Allowed Disruptions",
            "Calculated number of pods that may be disrupted at this time.",
            |b| b.status.as_ref().and_then(|s| s.disruptions_allowed).unwrap_or(0).into(),
        ),
        age(),
    ];
    const ALLOW_UNCONDITIONAL_UPDATE: bool = false;

    fn default(&mut self) {
        self.spec.get_or_insert_default();
        self.status.get_or_insert_default();
    }

    spec_and_status!(generation);

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec");
        let Some(spec) = &self.spec else { return };
        if spec.min_available.is_some() && spec.max_unavailable.is_some() {
            errors.invalid(&at, InMemory::of(spec), "minAvailable and maxUnavailable cannot be both set");
        }
        for (name, value) in
            [("minAvailable", &spec.min_available), ("maxUnavailable", &spec.max_unavailable)]
        {
            if let Some(value) = value {
                count_or_percent(value, &at.child(name), errors);
                not_more_than_all(value, &at.child(name), errors);
            }
        }
        if let Some(selector) = &spec.selector {
            label_selector(selector, &at.child("selector"), errors);
        }
        if let Some(policy) = &spec.unhealthy_pod_eviction_policy {
            one_of(
                policy,
                &["AlwaysAllow", "IfHealthyBudget"],
                &at.child("unhealthyPodEvictionPolicy"),
                errors,
            );
        }
    }

    fn validate_status_update(&self, _: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("status");
        let none = PodDisruptionBudgetStatus::default();
        let status = self.status.as_ref().unwrap_or(&none);
        conditions(status.conditions.as_deref().unwrap_or_default(), &at.child("conditions"), errors);
        for (name, value) in [
            ("disruptionsAllowed", status.disruptions_allowed),
            ("currentHealthy", status.current_healthy),
            ("desiredHealthy", status.desired_healthy),
            ("expectedPods", status.expected_pods),
        ] {
            not_negative(value.unwrap_or(0), &at.child(name), errors);
        }
    }
}

/// A budget as upstream shows it: with the names that its fields have in memory.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct InMemory<'a> {
    min_available: Option<&'a IntOrString>,
    selector: Option<&'a LabelSelector>,
    max_unavailable: Option<&'a IntOrString>,
    unhealthy_pod_eviction_policy: Option<&'a str>,
}

impl<'a> InMemory<'a> {
    fn of(spec: &'a PodDisruptionBudgetSpec) -> Self {
        InMemory {
            min_available: spec.min_available.as_ref(),
            selector: spec.selector.as_ref(),
            max_unavailable: spec.max_unavailable.as_ref(),
            unhealthy_pod_eviction_policy: spec.unhealthy_pod_eviction_policy.as_deref(),
        }
    }
}

fn bound(value: Option<&IntOrString>) -> Value {
    match value {
        Some(IntOrString::Int(n)) => n.to_string().into(),
        Some(IntOrString::String(text)) => text.as_str().into(),
        None => "N/A".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::erased::{Registry, Typed};
    use serde_json::json;

    fn budget(spec: Value, status: Value) -> PodDisruptionBudget {
        serde_json::from_value(json!({"metadata": {"name": "b"}, "spec": spec, "status": status}))
            .expect("a budget")
    }

    #[test]
    fn an_update_says_of_which_state_it_is() {
        assert!(!<Typed<PodDisruptionBudget> as Default>::default().allows_unconditional_update());
    }

    #[test]
    fn one_bound_is_given() {
        let mut errors = FieldErrors::new();
        budget(json!({"minAvailable": 1, "maxUnavailable": "5%"}), json!({}))
            .validate(&FieldPath::new(""), &mut errors);
        assert_eq!(
            errors.aggregate(),
            "spec: Invalid value: {\"MinAvailable\":1,\"Selector\":null,\"MaxUnavailable\":\"5%\",\
             \"UnhealthyPodEvictionPolicy\":null}: minAvailable and maxUnavailable cannot be both set"
        );
    }

    #[test]
    fn conditions_have_reasons() {
        let condition = json!({"type": "DisruptionAllowed", "status": "Odd", "reason": "", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let new = budget(json!({}), json!({"conditions": [condition]}));
        let mut errors = FieldErrors::new();
        new.validate_status_update(&new, &FieldPath::new(""), &mut errors);
        let said = errors.aggregate();
        for wanted in
            ["status.conditions[0].status: Unsupported value", "status.conditions[0].reason: Required value"]
        {
            assert!(said.contains(wanted), "{said}");
        }
    }
}
