//! PodDisruptionBudget: how many of some pods may be away on purpose.

use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};
use serde_json::Value;

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

    fn default(&mut self) {
        self.spec.get_or_insert_default();
        self.status.get_or_insert_default();
    }

    spec_and_status!(generation);

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec");
        let Some(spec) = &self.spec else { return };
        if spec.min_available.is_some() && spec.max_unavailable.is_some() {
            errors.invalid(&at, spec, "minAvailable and maxUnavailable cannot be both set");
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
        let status = self.status.clone().unwrap_or_default();
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

fn bound(value: Option<&IntOrString>) -> Value {
    match value {
        Some(IntOrString::Int(n)) => n.to_string().into(),
        Some(IntOrString::String(text)) => text.as_str().into(),
        None => "N/A".into(),
    }
}
