//! Deployment: pods of one template, replaced a few at a time.

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStatus, RollingUpdateDeployment};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use super::{
    RollingInMemory, Rules, StrategyInMemory, is_none, named_warnings, never_decremented, pod_spec, workload,
};
use crate::registry::column::{age, container_images, container_names, name, selector, text, wide};
use crate::registry::prepare::{differ, first_generation, keep_labels, next_generation};
use crate::registry::rules::{IMMUTABLE, count_or_percent, not_more_than_all, not_negative};
use crate::registry::{Column, Context, Strategy};

impl Strategy for Deployment {
    const KIND: &'static Kind = &kinds::DEPLOYMENT;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text("Ready", "Number of the pod with ready state", |d| {
            let ready = d.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0);
            format!("{ready}/{}", d.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0)).into()
        }),
        text("Up-to-date", "io.k8s.api.apps.v1.DeploymentStatus.updatedReplicas", |d| {
            d.status.as_ref().and_then(|s| s.updated_replicas).unwrap_or(0).into()
        }),
        text("Available", "io.k8s.api.apps.v1.DeploymentStatus.availableReplicas", |d| {
            d.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0).into()
        }),
        age(),
        wide("Containers", "Names of each container in the template.", |d| {
            container_names(d.spec.as_ref().map(|s| &s.template))
        }),
        wide("Images", "Images referenced by each container in the template.", |d| {
            container_images(d.spec.as_ref().map(|s| &s.template))
        }),
        wide("Selector", "io.k8s.api.apps.v1.DeploymentSpec.selector", |d| {
            selector(d.spec.as_ref().map(|s| &s.selector))
        }),
    ];

    crate::registry::prepare::pod_spec_at!(spec? template spec?);

    fn default(&mut self) {
        let spec = self.spec.get_or_insert_default();
        spec.replicas.get_or_insert(1);
        let strategy = spec.strategy.get_or_insert_default();
        if strategy.type_.as_deref().is_none_or(str::is_empty) {
            strategy.type_ = Some("RollingUpdate".to_owned());
        }
        if strategy.type_.as_deref() == Some("RollingUpdate") {
            let rolling: &mut RollingUpdateDeployment = strategy.rolling_update.get_or_insert_default();
            rolling.max_unavailable.get_or_insert_with(|| IntOrString::String("25%".to_owned()));
            rolling.max_surge.get_or_insert_with(|| IntOrString::String("25%".to_owned()));
        }
        spec.revision_history_limit.get_or_insert(10);
        spec.progress_deadline_seconds.get_or_insert(600);
        pod_spec::default_template(&mut spec.template);
        self.status.get_or_insert_default();
    }

    fn prepare_for_create(&mut self, _: &Context) {
        self.status = Some(DeploymentStatus::default());
        first_generation(&mut self.metadata);
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context) {
        self.status.clone_from(&old.status);
        // Annotations count too: the controller copies them to its ReplicaSets.
        let changed =
            differ(&self.spec, &old.spec) || differ(&self.metadata.annotations, &old.metadata.annotations);
        next_generation(&mut self.metadata, &old.metadata, changed);
    }

    fn prepare_for_status_update(&mut self, old: &Self, _: &Context) {
        self.spec.clone_from(&old.spec);
        keep_labels(&mut self.metadata, &old.metadata);
    }

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec");
        let Some(spec) = &self.spec else { return };
        not_negative(spec.replicas.unwrap_or(0), &at.child("replicas"), errors);
        workload(&spec.selector, &spec.template, Rules::Replica, &at, errors);
        strategy(spec, &at.child("strategy"), errors);
        let ready = spec.min_ready_seconds.unwrap_or(0);
        not_negative(ready, &at.child("minReadySeconds"), errors);
        if let Some(limit) = spec.revision_history_limit {
            not_negative(limit, &at.child("revisionHistoryLimit"), errors);
        }
        if let Some(deadline) = spec.progress_deadline_seconds {
            let at = at.child("progressDeadlineSeconds");
            not_negative(deadline, &at, errors);
            if deadline <= ready {
                errors.invalid(&at, deadline, "must be greater than minReadySeconds");
            }
        }
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        let selector = |d: &Self| d.spec.as_ref().map(|s| s.selector.clone()).unwrap_or_default();
        if differ(&selector(self), &selector(old)) {
            let said = selector(self);
            let said = (said != LabelSelector::default()).then_some(said);
            errors.invalid(&at.child("spec").child("selector"), said, IMMUTABLE);
        }
    }

    fn validate_status_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("status");
        let none = DeploymentStatus::default();
        let status = self.status.as_ref().unwrap_or(&none);
        let replicas = status.replicas.unwrap_or(0);
        not_negative(status.observed_generation.unwrap_or(0), &at.child("observedGeneration"), errors);
        for (name, value) in [
            ("replicas", status.replicas),
            ("updatedReplicas", status.updated_replicas),
            ("readyReplicas", status.ready_replicas),
            ("availableReplicas", status.available_replicas),
            ("unavailableReplicas", status.unavailable_replicas),
            ("terminatingReplicas", status.terminating_replicas),
            ("collisionCount", status.collision_count),
        ] {
            let value = value.unwrap_or(0);
            not_negative(value, &at.child(name), errors);
            if matches!(name, "updatedReplicas" | "readyReplicas" | "availableReplicas") && value > replicas {
                errors.invalid(&at.child(name), value, "cannot be greater than status.replicas");
            }
        }
        if status.available_replicas.unwrap_or(0) > status.ready_replicas.unwrap_or(0) {
            errors.invalid(
                &at.child("availableReplicas"),
                status.available_replicas,
                "cannot be greater than readyReplicas",
            );
        }
        let collisions = |d: &Self| d.status.as_ref().and_then(|s| s.collision_count);
        never_decremented(collisions(self), collisions(old), &at, errors);
    }

    fn warnings(&self, old: Option<&Self>) -> Vec<String> {
        let template = self.spec.as_ref().map(|spec| &spec.template);
        named_warnings(&self.metadata, old.map(|old| &old.metadata), template)
    }
}

fn strategy(spec: &DeploymentSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(strategy) = &spec.strategy else { return };
    match strategy.type_.as_deref().unwrap_or_default() {
        "Recreate" => {
            if strategy.rolling_update.is_some() {
                errors.forbidden(
                    &at.child("rollingUpdate"),
                    "may not be specified when strategy `type` is 'Recreate'",
                );
            }
        }
        "RollingUpdate" => {
            let at = at.child("rollingUpdate");
            let Some(rolling) = &strategy.rolling_update else {
                errors.required(&at, "this should be defaulted and never be nil");
                return;
            };
            let none = IntOrString::Int(0);
            let unavailable = rolling.max_unavailable.as_ref().unwrap_or(&none);
            let surge = rolling.max_surge.as_ref().unwrap_or(&none);
            count_or_percent(unavailable, &at.child("maxUnavailable"), errors);
            count_or_percent(surge, &at.child("maxSurge"), errors);
            if is_none(unavailable) && is_none(surge) {
                errors.invalid(&at.child("maxUnavailable"), unavailable, "may not be 0 when `maxSurge` is 0");
            }
            not_more_than_all(unavailable, &at.child("maxUnavailable"), errors);
        }
        other => {
            let rolling = strategy.rolling_update.as_ref();
            let rolling_update =
                rolling.map(|r| RollingInMemory::new(r.max_unavailable.as_ref(), r.max_surge.as_ref()));
            let shown = StrategyInMemory { kind: other, rolling_update };
            errors.not_supported(at, shown, &["Recreate", "RollingUpdate"]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn deployment(value: Value) -> Deployment {
        serde_json::from_value(value).expect("a Deployment")
    }

    #[test]
    fn an_update_of_the_status_leaves_the_labels_alone() {
        let old = deployment(json!({"metadata": {"name": "d", "labels": {"a": "1"}}}));
        let mut new =
            deployment(json!({"metadata": {"name": "d", "labels": {"a": "2"}}, "status": {"replicas": 1}}));
        new.prepare_for_status_update(&old, &Context::default());
        assert_eq!(new.metadata.labels, old.metadata.labels);
        assert_eq!(new.status.and_then(|s| s.replicas), Some(1));
    }

    #[test]
    fn a_strategy_of_no_known_type_is_shown_whole() {
        let mut errors = FieldErrors::new();
        let odd =
            deployment(json!({"spec": {"strategy": {"type": "Odd", "rollingUpdate": {"maxSurge": "5%"}}}}));
        strategy(&odd.spec.unwrap_or_default(), &FieldPath::new("spec").child("strategy"), &mut errors);
        assert_eq!(
            errors.aggregate(),
            "spec.strategy: Unsupported value: {\"Type\":\"Odd\",\"RollingUpdate\":{\"MaxUnavailable\":0,\
             \"MaxSurge\":\"5%\"}}: supported values: \"Recreate\", \"RollingUpdate\""
        );
    }

    #[test]
    fn collisions_are_counted_up() {
        let with = |status: Value| deployment(json!({"metadata": {"name": "d"}, "status": status}));
        let said = |new: Value, old: Value| {
            let mut errors = FieldErrors::new();
            with(new).validate_status_update(&with(old), &FieldPath::new(""), &mut errors);
            errors.aggregate()
        };
        assert_eq!(said(json!({"collisionCount": 2}), json!({"collisionCount": 1})), "[]");
        assert_eq!(
            said(json!({}), json!({"collisionCount": 1})),
            "status.collisionCount: Invalid value: 0: cannot be decremented"
        );
        assert!(said(json!({"terminatingReplicas": -1}), json!({})).contains("status.terminatingReplicas"));
    }
}
