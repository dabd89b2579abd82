//! ReplicationController: the elder of ReplicaSet.

use k8s_openapi::api::core::v1::{ReplicationController, ReplicationControllerSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use super::pod_spec;
use crate::registry::column::{age, container_images, container_names, integer, labels, name, wide};
use crate::registry::prepare::spec_and_status;
use crate::registry::rules::{not_negative, one_of, selects};
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
        if !selects(&selector, labels) {
            errors.invalid(
                &at.child("metadata").child("labels"),
                labels,
                "`selector` does not match template `labels`",
            );
        }
        pod_spec::template(template, &at, errors);
        let policy = template.spec.as_ref().and_then(|s| s.restart_policy.as_deref()).unwrap_or_default();
        one_of(policy, &["Always"], &at.child("spec").child("restartPolicy"), errors);
    }

    fn selectable(&self) -> Selectable {
        vec![("status.replicas", self.status.as_ref().map_or(0, |s| s.replicas).to_string())]
    }
}
