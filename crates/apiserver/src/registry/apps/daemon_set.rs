//! DaemonSet: a pod on each node.

use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec, DaemonSetStatus};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use super::{
    RollingInMemory, Rules, StrategyInMemory, is_none, never_decremented, pod_spec, warnings, workload,
};
use crate::registry::column::{
    age, container_images, container_names, integer, labels, name, selector, text, wide,
};
use crate::registry::prepare::{differ, first_generation, next_generation};
use crate::registry::rules::{IMMUTABLE, count_or_percent, not_more_than_all, not_negative};
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
        let count = template_count(self).max(1);
        count_template(self, count);
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context) {
        self.status.clone_from(&old.status);
        let (new, was) = (self.spec.as_ref(), old.spec.as_ref());
        let changed = differ(&new.map(|s| &s.template), &was.map(|s| &s.template));
        count_template(self, template_count(old) + i64::from(changed));
        next_generation(&mut self.metadata, &old.metadata, differ(&self.spec, &old.spec));
    }

    fn prepare_for_status_update(&mut self, old: &Self, _: &Context) {
        self.spec.clone_from(&old.spec);
        // Upstream has the count in the spec, and in the annotation for clients alone.
        count_template(self, template_count(old));
    }

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec");
        let Some(spec) = &self.spec else { return };
        workload(&spec.selector, &spec.template, Rules::Daemon, &at, errors);
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

    fn validate_status_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("status");
        let none = DaemonSetStatus::default();
        let status = self.status.as_ref().unwrap_or(&none);
        not_negative(status.observed_generation.unwrap_or(0), &at.child("observedGeneration"), errors);
        for (name, value) in [
            ("currentNumberScheduled", status.current_number_scheduled),
            ("numberMisscheduled", status.number_misscheduled),
            ("desiredNumberScheduled", status.desired_number_scheduled),
            ("numberReady", status.number_ready),
            ("updatedNumberScheduled", status.updated_number_scheduled.unwrap_or(0)),
            ("numberAvailable", status.number_available.unwrap_or(0)),
            ("numberUnavailable", status.number_unavailable.unwrap_or(0)),
            ("collisionCount", status.collision_count.unwrap_or(0)),
        ] {
            not_negative(value, &at.child(name), errors);
        }
        let was = old.status.as_ref().and_then(|s| s.collision_count);
        never_decremented(status.collision_count, was, &at, errors);
    }

    fn warnings(&self, old: Option<&Self>) -> Vec<String> {
        if old.is_some_and(|old| template_count(old) == template_count(self)) {
            return Vec::new();
        }
        warnings(&self.metadata, None, self.spec.as_ref().map(|spec| &spec.template))
    }
}

fn template_count(set: &DaemonSet) -> i64 {
    let annotations = set.metadata.annotations.as_ref();
    annotations.and_then(|a| a.get(TEMPLATE_GENERATION)?.parse().ok()).unwrap_or(0)
}

fn count_template(set: &mut DaemonSet, count: i64) {
    let annotations = set.metadata.annotations.get_or_insert_default();
    annotations.insert(TEMPLATE_GENERATION.to_owned(), count.to_string());
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
            match (!is_none(unavailable), !is_none(surge)) {
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
        other => {
            let rolling = strategy.rolling_update.as_ref();
            let rolling_update =
                rolling.map(|r| RollingInMemory::new(r.max_unavailable.as_ref(), r.max_surge.as_ref()));
            let shown = StrategyInMemory { kind: other, rolling_update };
            errors.not_supported(at, shown, &["RollingUpdate", "OnDelete"]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn set(value: Value) -> DaemonSet {
        serde_json::from_value(value).expect("a DaemonSet")
    }

    #[test]
    fn changes_of_the_template_are_counted_from_where_they_are() {
        let counted =
            |count: &str| json!({"metadata": {"name": "d", "annotations": {TEMPLATE_GENERATION: count}}});
        for (given, kept) in [("-3", 1), ("0", 1), ("7", 7)] {
            let mut new = set(counted(given));
            new.prepare_for_create(&Context::default());
            assert_eq!(template_count(&new), kept, "{given}");
        }
        let mut status = set(json!({"metadata": {"name": "d"}}));
        Strategy::default(&mut status);
        status.prepare_for_status_update(&set(counted("7")), &Context::default());
        assert_eq!(template_count(&status), 7);
    }

    #[test]
    fn strategies_stand_in_upstreams_order() {
        let odd = set(json!({"spec": {"updateStrategy": {"type": "Odd"}}}));
        let mut errors = FieldErrors::new();
        strategy(&odd.spec.unwrap_or_default(), &FieldPath::new("s"), &mut errors);
        assert_eq!(
            errors.aggregate(),
            "s: Unsupported value: {\"Type\":\"Odd\",\"RollingUpdate\":null}: supported values: \"RollingUpdate\", \
             \"OnDelete\""
        );
    }

    #[test]
    fn collisions_are_counted_up() {
        let with = |status: Value| set(json!({"metadata": {"name": "d"}, "status": status}));
        let mut errors = FieldErrors::new();
        let old = with(json!({"collisionCount": 3}));
        with(json!({"observedGeneration": -1})).validate_status_update(
            &old,
            &FieldPath::new(""),
            &mut errors,
        );
        let said = errors.aggregate();
        assert!(said.contains("status.collisionCount: Invalid value: 0: cannot be decremented"), "{said}");
        assert!(said.contains("status.observedGeneration"), "{said}");
    }
}
