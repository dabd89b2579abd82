//! DaemonSet: a pod on each node.

use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use super::{Missing, pod_spec, workload};
use crate::registry::column::{
    age, container_images, container_names, integer, labels, name, selector, text, wide,
};
use crate::registry::prepare::{differ, first_generation, next_generation};
use crate::registry::rules::{IMMUTABLE, count_or_percent, not_more_than_all, not_negative, one_of, percent};
use crate::registry::{Column, Context, Strategy};

/// The count of the template's changes, in the annotation where older clients look for it.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

impl Strategy for DaemonSet {
    const KIND: &'static Kind = &kinds::DAEMON_SET;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        integer("Desired", "io.k8s.api.apps.v1.DaemonSetStatus.desiredNumberScheduled", |d| {
            d.status.as_ref().map_or(0, |s| s.desired_number_scheduled).into()
        }),
        integer("Current", "io.k8s.api.apps.v1.DaemonSetStatus.currentNumberScheduled", |d| {
            d.status.as_ref().map_or(0, |s| s.current_number_scheduled).into()
        }),
        integer("Ready", "io.k8s.api.apps.v1.DaemonSetStatus.numberReady", |d| {
            d.status.as_ref().map_or(0, |s| s.number_ready).into()
        }),
        integer("Up-to-date", "io.k8s.api.apps.v1.DaemonSetStatus.updatedNumberScheduled", |d| {
            d.status.as_ref().and_then(|s| s.updated_number_scheduled).unwrap_or(0).into()
        }),
        integer("Available", "io.k8s.api.apps.v1.DaemonSetStatus.numberAvailable", |d| {
            d.status.as_ref().and_then(|s| s.number_available).unwrap_or(0).into()
        }),
        text("Node Selector", "io.k8s.api.core.v1.PodSpec.nodeSelector", |d| {
            let spec = d.spec.as_ref().and_then(|s| s.template.spec.as_ref());
            labels(spec.and_then(|s| s.node_selector.as_ref()))
        }),
        age(),
        wide("Containers", "Names of each container in the template.", |d| {
            container_names(d.spec.as_ref().map(|s| &s.template))
        }),
        wide("Images", "Images referenced by each container in the template.", |d| {
            container_images(d.spec.as_ref().map(|s| &s.template))
        }),
        wide("Selector", "io.k8s.api.apps.v1.DaemonSetSpec.selector", |d| {
            selector(d.spec.as_ref().map(|s| &s.selector))
        }),
    ];

    crate::registry::prepare::pod_spec_at!(spec? template spec?);

    fn default(&mut self) {
        let spec = self.spec.get_or_insert_default();
        let strategy = spec.update_strategy.get_or_insert_default();
        if strategy.type_.as_deref().is_none_or(str::is_empty) {
            strategy.type_ = Some("RollingUpdate".to_owned());
        }
        if strategy.type_.as_deref() == Some("RollingUpdate") {
            let rolling = strategy.rolling_update.get_or_insert_default();
            rolling.max_unavailable.get_or_insert(IntOrString::Int(1));
            rolling.max_surge.get_or_insert(IntOrString::Int(0));
        }
        spec.revision_history_limit.get_or_insert(10);
        pod_spec::default_template(&mut spec.template);
        self.status.get_or_insert_default();
        let annotations = self.metadata.annotations.get_or_insert_default();
        annotations.entry(TEMPLATE_GENERATION.to_owned()).or_insert_with(|| "0".to_owned());
    }

    fn prepare_for_create(&mut self, _: &Context) {
        self.status = None;
        self.status.get_or_insert_default();
        first_generation(&mut self.metadata);
        let annotations = self.metadata.annotations.get_or_insert_default();
        annotations.insert(TEMPLATE_GENERATION.to_owned(), "1".to_owned());
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context) {
        self.status.clone_from(&old.status);
        let template = |d: &Self| d.spec.as_ref().map(|s| s.template.clone());
        let count = |d: &Self| -> i64 {
            d.metadata
                .annotations
                .as_ref()
                .and_then(|a| a.get(TEMPLATE_GENERATION)?.parse().ok())
                .unwrap_or(0)
        };
        let changed = differ(&template(self), &template(old));
        let annotations = self.metadata.annotations.get_or_insert_default();
        annotations.insert(TEMPLATE_GENERATION.to_owned(), (count(old) + i64::from(changed)).to_string());
        next_generation(&mut self.metadata, &old.metadata, differ(&self.spec, &old.spec));
    }

    fn prepare_for_status_update(&mut self, old: &Self, _: &Context) {
        self.spec.clone_from(&old.spec);
    }

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec");
        let Some(spec) = &self.spec else { return };
        workload(&spec.selector, &spec.template, &Missing::Silent, &at, errors);
        not_negative(spec.min_ready_seconds.unwrap_or(0), &at.child("minReadySeconds"), errors);
        strategy(spec, &at.child("updateStrategy"), errors);
        if let Some(limit) = spec.revision_history_limit {
            not_negative(limit, &at.child("revisionHistoryLimit"), errors);
        }
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        let selector = |d: &Self| d.spec.as_ref().map(|s| s.selector.clone()).unwrap_or_default();
        if differ(&selector(self), &selector(old)) {
            errors.invalid(&at.child("spec").child("selector"), selector(self), IMMUTABLE);
        }
    }

    fn validate_status_update(&self, _: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("status");
        let status = self.status.clone().unwrap_or_default();
        for (name, value) in [
            ("currentNumberScheduled", status.current_number_scheduled),
            ("numberMisscheduled", status.number_misscheduled),
            ("desiredNumberScheduled", status.desired_number_scheduled),
            ("numberReady", status.number_ready),
            ("updatedNumberScheduled", status.updated_number_scheduled.unwrap_or(0)),
            ("numberAvailable", status.number_available.unwrap_or(0)),
            ("numberUnavailable", status.number_unavailable.unwrap_or(0)),
        ] {
            not_negative(value, &at.child(name), errors);
        }
    }
}

fn strategy(spec: &DaemonSetSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(strategy) = &spec.update_strategy else { return };
    match strategy.type_.as_deref().unwrap_or_default() {
        "OnDelete" => {}
        "RollingUpdate" => {
            let at = at.child("rollingUpdate");
            let Some(rolling) = &strategy.rolling_update else {
                errors.required(&at, "");
                return;
            };
            let none = IntOrString::Int(0);
            let unavailable = rolling.max_unavailable.as_ref().unwrap_or(&none);
            let surge = rolling.max_surge.as_ref().unwrap_or(&none);
            for (name, value) in [("maxUnavailable", unavailable), ("maxSurge", surge)] {
                count_or_percent(value, &at.child(name), errors);
                not_more_than_all(value, &at.child(name), errors);
            }
            let some = |v: &IntOrString| match v {
                IntOrString::Int(n) => *n != 0,
                IntOrString::String(text) => percent(text) != Some(0),
            };
            match (some(unavailable), some(surge)) {
                (true, true) => {
                    errors.invalid(
                        &at.child("maxSurge"),
                        surge,
                        "may not be set when maxUnavailable is non-zero",
                    );
                }
                (false, false) => {
                    errors.required(&at.child("maxUnavailable"), "cannot be 0 when maxSurge is 0");
                }
                _ => {}
            }
        }
        other => one_of(other, &["OnDelete", "RollingUpdate"], &at.child("type"), errors),
    }
}
