//! HorizontalPodAutoscaler: how many replicas, by what is measured.

use k8s_openapi::api::autoscaling::v2::{
    HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscaler, HorizontalPodAutoscalerBehavior, MetricSpec,
    MetricTarget, ResourceMetricSource,
};
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use super::metrics;
use crate::registry::column::{age, name, text};
use crate::registry::prepare::spec_and_status;
use crate::registry::quantities::is_negative;
use crate::registry::rules::{NOT_NEGATIVE, not_negative, one_of};
use crate::registry::{Column, Strategy};

impl Strategy for HorizontalPodAutoscaler {
    const KIND: &'static Kind = &kinds::HORIZONTAL_POD_AUTOSCALER;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text("Reference", "io.k8s.api.autoscaling.v2.HorizontalPodAutoscalerSpec.scaleTargetRef", |h| {
            format!("{}/{}", h.spec.scale_target_ref.kind, h.spec.scale_target_ref.name).into()
        }),
        text("Targets", "io.k8s.api.autoscaling.v2.HorizontalPodAutoscalerSpec.metrics", metrics::shown),
        text("MinPods", "io.k8s.api.autoscaling.v1.HorizontalPodAutoscalerSpec.minReplicas", |h| {
            h.spec.min_replicas.map_or("<unset>".to_owned(), |n| n.to_string()).into()
        }),
        text("MaxPods", "io.k8s.api.autoscaling.v2.HorizontalPodAutoscalerSpec.maxReplicas", |h| {
            h.spec.max_replicas.into()
        }),
        text("Replicas", "io.k8s.api.autoscaling.v2.HorizontalPodAutoscalerStatus.currentReplicas", |h| {
            h.status.as_ref().and_then(|s| s.current_replicas).unwrap_or(0).into()
        }),
        age(),
    ];

    fn default(&mut self) {
        let spec = &mut self.spec;
        spec.min_replicas.get_or_insert(1);
        if spec.metrics.as_ref().is_none_or(Vec::is_empty) {
            spec.metrics = Some(vec![MetricSpec {
                type_: "Resource".to_owned(),
                resource: Some(ResourceMetricSource {
                    name: "cpu".to_owned(),
                    target: MetricTarget {
                        type_: "Utilization".to_owned(),
                        average_utilization: Some(80),
                        ..MetricTarget::default()
                    },
                }),
                ..MetricSpec::default()
            }]);
        }
        if let Some(behavior) = &mut spec.behavior {
            default_behavior(behavior);
        }
        self.status.get_or_insert_default();
    }

    spec_and_status!(uncounted);

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec");
        let spec = &self.spec;
        let min = spec.min_replicas.unwrap_or(1);
        if min < 1 {
            errors.invalid(&at.child("minReplicas"), min, "must be greater than or equal to 1");
        }
        match spec.max_replicas {
            0 => errors.required(&at.child("maxReplicas"), "must be set and greater than 0"),
            ..0 => {
                let why = "must be greater than or equal to 1";
                errors.invalid(&at.child("maxReplicas"), spec.max_replicas, why);
            }
            _ => {}
        }
        if spec.max_replicas < min {
            errors.invalid(
                &at.child("maxReplicas"),
                spec.max_replicas,
                "must be greater than or equal to `minReplicas`",
            );
        }
        let target = &spec.scale_target_ref;
        metrics::named(&target.kind, &target.name, &at.child("scaleTargetRef"), errors);
        metrics::validate(spec.metrics.as_deref().unwrap_or_default(), &at.child("metrics"), errors);
        if let Some(behavior) = &spec.behavior {
            let at = at.child("behavior");
            rules(behavior.scale_up.as_ref(), &at.child("scaleUp"), errors);
            rules(behavior.scale_down.as_ref(), &at.child("scaleDown"), errors);
        }
    }

    fn validate_new(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec").child("scaleTargetRef").child("apiVersion");
        let target = &self.spec.scale_target_ref;
        let version = target.api_version.as_deref().unwrap_or_default();
        // Of what can be scaled, one kind alone is of the group without a name.
        metrics::api_version(version, target.kind == "ReplicationController", &at, errors);
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        let (new, old) = (&self.spec.scale_target_ref, &old.spec.scale_target_ref);
        if new.kind != old.kind || new.api_version != old.api_version {
            self.validate_new(at, errors);
        }
    }

    fn validate_status_update(&self, _: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("status");
        let Some(status) = &self.status else { return };
        not_negative(status.current_replicas.unwrap_or(0), &at.child("currentReplicas"), errors);
        not_negative(status.desired_replicas, &at.child("desiredReplicas"), errors);
    }
}

fn policy(kind: &str, value: i32) -> HPAScalingPolicy {
    HPAScalingPolicy { type_: kind.to_owned(), value, period_seconds: 15 }
}

/// Up at once, by four or to the double; down as far as needed, by the highest wish of the last minutes.
fn default_behavior(behavior: &mut HorizontalPodAutoscalerBehavior) {
    let fill = |rules: &mut HPAScalingRules, window: Option<i32>, policies: Vec<HPAScalingPolicy>| {
        rules.select_policy.get_or_insert_with(|| "Max".to_owned());
        if rules.stabilization_window_seconds.is_none() {
            rules.stabilization_window_seconds = window;
        }
        rules.policies.get_or_insert(policies);
    };
    fill(behavior.scale_up.get_or_insert_default(), Some(0), vec![policy("Pods", 4), policy("Percent", 100)]);
    fill(behavior.scale_down.get_or_insert_default(), None, vec![policy("Percent", 100)]);
}

fn rules(rules: Option<&HPAScalingRules>, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(rules) = rules else { return };
    if let Some(window) = rules.stabilization_window_seconds {
        if window < 0 {
            errors.invalid(
                &at.child("stabilizationWindowSeconds"),
                window,
                "must be greater than or equal to zero",
            );
        } else if window > 3600 {
            errors.invalid(
                &at.child("stabilizationWindowSeconds"),
                window,
                "must be less than or equal to 3600",
            );
        }
    }
    if let Some(select) = &rules.select_policy {
        one_of(select, &["Disabled", "Max", "Min"], &at.child("selectPolicy"), errors);
    }
    let policies = rules.policies.as_deref().unwrap_or_default();
    if policies.is_empty() {
        errors.required(&at.child("policies"), "must specify at least one Policy");
    }
    for (i, policy) in policies.iter().enumerate() {
        let at = at.child("policies").index(i);
        one_of(&policy.type_, &["Percent", "Pods"], &at.child("type"), errors);
        if policy.value <= 0 {
            errors.invalid(&at.child("value"), policy.value, "must be greater than zero");
        }
        if policy.period_seconds <= 0 {
            errors.invalid(&at.child("periodSeconds"), policy.period_seconds, "must be greater than zero");
        } else if policy.period_seconds > 1800 {
            let why = "must be less than or equal to 1800";
            errors.invalid(&at.child("periodSeconds"), policy.period_seconds, why);
        }
    }
    if let Some(tolerance) = rules.tolerance.as_ref().filter(|tolerance| is_negative(tolerance)) {
        errors.invalid(&at.child("tolerance"), &tolerance.0, NOT_NEGATIVE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn scaler(target: Value, more: Value) -> HorizontalPodAutoscaler {
        let mut spec = json!({"maxReplicas": 3, "scaleTargetRef": target});
        if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
            spec.extend(more);
        }
        let mut scaler: HorizontalPodAutoscaler =
            serde_json::from_value(json!({"metadata": {"name": "h"}, "spec": spec})).expect("an autoscaler");
        Strategy::default(&mut scaler);
        scaler
    }

    fn said(scaler: &HorizontalPodAutoscaler, old: Option<&HorizontalPodAutoscaler>) -> Vec<String> {
        let mut errors = FieldErrors::new();
        scaler.validate(&FieldPath::new(""), &mut errors);
        match old {
            None => scaler.validate_new(&FieldPath::new(""), &mut errors),
            Some(old) => scaler.validate_update(old, &FieldPath::new(""), &mut errors),
        }
        errors.iter().map(ToString::to_string).collect()
    }

    fn target(version: &str, kind: &str) -> Value {
        json!({"apiVersion": version, "kind": kind, "name": "n"})
    }

    #[test]
    fn what_is_scaled_has_a_group_unless_it_never_had_one() {
        let why = "spec.scaleTargetRef.apiVersion: Invalid value: \"v1\": apiVersion must specify API group";
        assert_eq!(said(&scaler(target("apps/v1", "Deployment"), json!({})), None), [""; 0]);
        assert_eq!(said(&scaler(target("v1", "ReplicationController"), json!({})), None), [""; 0]);
        let odd = scaler(target("v1", "Deployment"), json!({}));
        assert_eq!(said(&odd, None), [why]);
        assert_eq!(said(&odd, Some(&odd)), [""; 0], "it was so before");
    }

    #[test]
    fn numbers_are_in_their_bounds() {
        let bad = json!({"maxReplicas": -1, "minReplicas": 1, "behavior": {"scaleUp": {"tolerance": "-1",
            "policies": [{"type": "Pods", "value": 1, "periodSeconds": 1801}]}}});
        assert_eq!(
            said(&scaler(target("apps/v1", "Deployment"), bad), None),
            [
                "spec.maxReplicas: Invalid value: -1: must be greater than or equal to 1",
                "spec.maxReplicas: Invalid value: -1: must be greater than or equal to `minReplicas`",
                "spec.behavior.scaleUp.policies[0].periodSeconds: Invalid value: 1801: must be less than or equal to \
                 1800",
                "spec.behavior.scaleUp.tolerance: Invalid value: \"-1\": must be greater than or equal to 0",
            ]
        );
    }

    #[test]
    fn no_count_of_a_status_is_negative() {
        let mut new = scaler(target("apps/v1", "Deployment"), json!({}));
        new.status.get_or_insert_default().desired_replicas = -1;
        let mut errors = FieldErrors::new();
        new.validate_status_update(&new, &FieldPath::new(""), &mut errors);
        assert_eq!(
            errors.aggregate(),
            "status.desiredReplicas: Invalid value: -1: must be greater than or equal to 0"
        );
    }
}
