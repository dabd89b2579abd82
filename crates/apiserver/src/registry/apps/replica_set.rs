//! ReplicaSet: so many pods of one template.

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use super::{Rules, named_warnings, pod_spec, workload};
use crate::registry::column::{age, container_images, container_names, integer, name, selector, wide};
use crate::registry::prepare::{differ, spec_and_status};
use crate::registry::rules::{IMMUTABLE, not_negative};
use crate::registry::{Column, Strategy};

impl Strategy for ReplicaSet {
    const KIND: &'static Kind = &kinds::REPLICA_SET;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        integer("Desired", "io.k8s.api.apps.v1.ReplicaSetSpec.replicas", |r| {
            r.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0).into()
        }),
        integer("Current", "io.k8s.api.apps.v1.ReplicaSetStatus.replicas", |r| {
            r.status.as_ref().map_or(0, |s| s.replicas).into()
        }),
        integer("Ready", "io.k8s.api.apps.v1.ReplicaSetStatus.readyReplicas", |r| {
            r.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0).into()
        }),
        age(),
        wide("Containers", "Names of each container in the template.", |r| {
            container_names(r.spec.as_ref().and_then(|s| s.template.as_ref()))
        }),
        wide("Images", "Images referenced by each container in the template.", |r| {
            container_images(r.spec.as_ref().and_then(|s| s.template.as_ref()))
        }),
        wide("Selector", "io.k8s.api.apps.v1.ReplicaSetSpec.selector", |r| {
            selector(r.spec.as_ref().map(|s| &s.selector))
        }),
    ];

    crate::registry::prepare::pod_spec_at!(spec? template? spec?);

    fn default(&mut self) {
        let spec = self.spec.get_or_insert_default();
        spec.replicas.get_or_insert(1);
        pod_spec::default_template(spec.template.get_or_insert_default());
        self.status.get_or_insert_default();
    }

    spec_and_status!(generation);

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec");
        let Some(spec) = &self.spec else { return };
        not_negative(spec.replicas.unwrap_or(0), &at.child("replicas"), errors);
        not_negative(spec.min_ready_seconds.unwrap_or(0), &at.child("minReadySeconds"), errors);
        match &spec.template {
            Some(template) => workload(&spec.selector, template, Rules::Replica, &at, errors),
            None => errors.required(&at.child("template"), ""),
        }
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        let selector = |r: &Self| r.spec.as_ref().map(|s| s.selector.clone()).unwrap_or_default();
        if differ(&selector(self), &selector(old)) {
            errors.invalid(&at.child("spec").child("selector"), selector(self), IMMUTABLE);
        }
    }

    fn validate_status_update(&self, _: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("status");
        let none = ReplicaSetStatus::default();
        let status = self.status.as_ref().unwrap_or(&none);
        let counts = [
            ("replicas", Some(status.replicas)),
            ("fullyLabeledReplicas", status.fully_labeled_replicas),
            ("readyReplicas", status.ready_replicas),
            ("availableReplicas", status.available_replicas),
        ];
        not_negative(status.observed_generation.unwrap_or(0), &at.child("observedGeneration"), errors);
        not_negative(status.terminating_replicas.unwrap_or(0), &at.child("terminatingReplicas"), errors);
        for (name, value) in counts {
            let value = value.unwrap_or(0);
            not_negative(value, &at.child(name), errors);
            if value > status.replicas {
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
    }

    fn warnings(&self, old: Option<&Self>) -> Vec<String> {
        let template = self.spec.as_ref().and_then(|spec| spec.template.as_ref());
        named_warnings(&self.metadata, old.map(|old| &old.metadata), template)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::erased::{Registry, Typed};
    use serde_json::json;

    #[test]
    fn no_count_of_a_status_is_negative() {
        let set: ReplicaSet = serde_json::from_value(json!({
            "metadata": {"name": "a"},
            "status": {"replicas": 0, "terminatingReplicas": -1, "observedGeneration": -1},
        }))
        .expect("a ReplicaSet");
        let mut errors = FieldErrors::new();
        set.validate_status_update(&set, &FieldPath::new(""), &mut errors);
        let said = errors.aggregate();
        assert!(
            said.contains("status.terminatingReplicas") && said.contains("status.observedGeneration"),
            "{said}"
        );
    }

    #[test]
    fn sets_are_selected_by_their_metadata_alone() {
        let sets = <Typed<ReplicaSet> as Default>::default();
        assert_eq!(sets.selectable_names(), ["metadata.name", "metadata.namespace"]);
    }
}
