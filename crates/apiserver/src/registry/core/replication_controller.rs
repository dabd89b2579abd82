//! ReplicationController: the elder of ReplicaSet.

use k8s_openapi::api::core::v1::{ReplicationController, ReplicationControllerSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use super::pod_spec;
use crate::registry::apps::named_warnings;
use crate::registry::column::{age, container_images, container_names, integer, labels, name, wide};
use crate::registry::prepare::spec_and_status;
use crate::registry::rules::{is_empty_selector, not_negative, one_of, selects};
use crate::registry::{Column, Selectable, Strategy};

impl Strategy for ReplicationController {
    const KIND: &'static Kind = &kinds::REPLICATION_CONTROLLER;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        integer("Desired", "io.k8s.api.core.v1.ReplicationControllerSpec.replicas", |c| {
            c.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0).into()
        }),
        integer("Current", "io.k8s.api.core.v1.ReplicationControllerStatus.replicas", |c| {
            c.status.as_ref().map_or(0, |s| s.replicas).into()
        }),
        integer("Ready", "io.k8s.api.core.v1.ReplicationControllerStatus.readyReplicas", |c| {
            c.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0).into()
        }),
        age(),
        wide("Containers", "Names of each container in the template.", |c| {
            container_names(c.spec.as_ref().and_then(|s| s.template.as_ref()))
        }),
        wide("Images", "Images referenced by each container in the template.", |c| {
            container_images(c.spec.as_ref().and_then(|s| s.template.as_ref()))
        }),
        wide("Selector", "io.k8s.api.core.v1.ReplicationControllerSpec.selector", |c| {
            labels(c.spec.as_ref().and_then(|s| s.selector.as_ref()))
        }),
    ];

    crate::registry::prepare::pod_spec_at!(spec? template? spec?);

    fn default(&mut self) {
        let spec: &mut ReplicationControllerSpec = self.spec.get_or_insert_default();
        if let Some(template) = &mut spec.template {
            pod_spec::default_template(template);
            if let Some(labels) = template.metadata.as_ref().and_then(|m| m.labels.clone()) {
                if spec.selector.as_ref().is_none_or(std::collections::BTreeMap::is_empty) {
                    spec.selector = Some(labels.clone());
                }
                if self.metadata.labels.as_ref().is_none_or(std::collections::BTreeMap::is_empty) {
                    self.metadata.labels = Some(labels);
                }
            }
        }
        spec.replicas.get_or_insert(1);
        self.status.get_or_insert_default();
    }

    spec_and_status!(generation);

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec");
        let Some(spec) = &self.spec else { return };
        not_negative(spec.min_ready_seconds.unwrap_or(0), &at.child("minReadySeconds"), errors);
        let selector = spec.selector.clone().unwrap_or_default();
        if selector.is_empty() {
            errors.required(&at.child("selector"), "");
        }
        not_negative(spec.replicas.unwrap_or(0), &at.child("replicas"), errors);
        let Some(template) = &spec.template else {
            errors.required(&at.child("template"), "");
            return;
        };
        let labels = template.metadata.as_ref().and_then(|m| m.labels.as_ref());
        let selector = LabelSelector { match_labels: Some(selector), match_expressions: None };
        let at = at.child("template");
        if !is_empty_selector(&selector) && !selects(&selector, labels) {
            errors.invalid(
                &at.child("metadata").child("labels"),
                labels,
                "`selector` does not match template `labels`",
            );
        }
        pod_spec::template(template, &at, errors);
        let policy = template.spec.as_ref().and_then(|s| s.restart_policy.as_deref()).unwrap_or_default();
        one_of(policy, &["Always"], &at.child("spec").child("restartPolicy"), errors);
        if template.spec.as_ref().is_some_and(|s| s.active_deadline_seconds.is_some()) {
            errors.forbidden(
                &at.child("spec").child("activeDeadlineSeconds"),
                "activeDeadlineSeconds in ReplicationController is not Supported",
            );
        }
    }

    fn validate_status_update(&self, _: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        let Some(status) = &self.status else { return };
        let at = at.child("status");
        let ready = status.ready_replicas.unwrap_or(0);
        let available = status.available_replicas.unwrap_or(0);
        let counts = [
            ("fullyLabeledReplicas", status.fully_labeled_replicas.unwrap_or(0)),
            ("readyReplicas", ready),
            ("availableReplicas", available),
        ];
        not_negative(status.replicas, &at.child("replicas"), errors);
        for (name, count) in counts {
            not_negative(count, &at.child(name), errors);
        }
        not_negative(status.observed_generation.unwrap_or(0), &at.child("observedGeneration"), errors);
        for (name, count) in counts.into_iter().filter(|(_, count)| *count > status.replicas) {
            errors.invalid(&at.child(name), count, "cannot be greater than status.replicas");
        }
        if available > ready {
            errors.invalid(&at.child("availableReplicas"), available, "cannot be greater than readyReplicas");
        }
    }

    fn warnings(&self, old: Option<&Self>) -> Vec<String> {
        // Upstream looks at the template that was there before.
        let template = old.unwrap_or(self).spec.as_ref().and_then(|s| s.template.as_ref());
        named_warnings(&self.metadata, old.map(|old| &old.metadata), template)
    }

    fn selectable(&self) -> Selectable {
        vec![("status.replicas", self.status.as_ref().map_or(0, |s| s.replicas).to_string())]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn controller(spec: Value, status: Value) -> ReplicationController {
        let mut template = json!({"metadata": {"labels": {"a": "1"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]}});
        template["spec"]
            .as_object_mut()
            .expect("a map")
            .extend(spec.as_object().cloned().unwrap_or_default());
        let controller =
            json!({"metadata": {"name": "a.b"}, "spec": {"template": template}, "status": status});
        let mut controller: ReplicationController = serde_json::from_value(controller).expect("a controller");
        controller.default();
        controller
    }

    #[test]
    fn its_pods_have_no_deadline() {
        let said = |spec: Value| {
            let mut errors = FieldErrors::new();
            controller(spec, json!({"replicas": 0})).validate(&FieldPath::new(""), &mut errors);
            errors.aggregate()
        };
        assert_eq!(said(json!({})), "[]");
        assert_eq!(
            said(json!({"activeDeadlineSeconds": 5})),
            "spec.template.spec.activeDeadlineSeconds: Forbidden: activeDeadlineSeconds in ReplicationController is \
             not Supported"
        );
    }

    #[test]
    fn what_is_counted_is_part_of_all() {
        let said = |status: Value| {
            let mut errors = FieldErrors::new();
            let it = controller(json!({}), status);
            it.validate_status_update(&it, &FieldPath::new(""), &mut errors);
            errors.aggregate()
        };
        assert_eq!(said(json!({"replicas": 2, "readyReplicas": 2, "availableReplicas": 1})), "[]");
        assert_eq!(
            said(json!({"replicas": 1, "readyReplicas": 2, "availableReplicas": 1})),
            "status.readyReplicas: Invalid value: 2: cannot be greater than status.replicas"
        );
        assert_eq!(
            said(json!({"replicas": 2, "readyReplicas": 1, "availableReplicas": 2})),
            "status.availableReplicas: Invalid value: 2: cannot be greater than readyReplicas"
        );
    }

    #[test]
    fn its_name_becomes_part_of_those_of_pods() {
        let it = controller(json!({}), json!({"replicas": 0}));
        assert!(it.warnings(None)[0].starts_with("metadata.name: this is used in Pod names and hostnames, "));
        assert!(it.warnings(Some(&it)).is_empty());
    }
}
