//! PodTemplate: a pod to be, kept for others to refer to.

use k8s_openapi::api::core::v1::PodTemplate;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use super::pod_spec;
use crate::registry::column::{container_images, container_names, labels, name, text};
use crate::registry::prepare::counted;
use crate::registry::{Column, Strategy};

impl Strategy for PodTemplate {
    const KIND: &'static Kind = &kinds::POD_TEMPLATE;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text("Containers", "Names of each container in the template.", |t| {
            container_names(t.template.as_ref())
        }),
        text("Images", "Images referenced by each container in the template.", |t| {
            container_images(t.template.as_ref())
        }),
        text("Pod Labels", "The labels for the pod template.", |t| {
            labels(t.template.as_ref().and_then(|t| t.metadata.as_ref()).and_then(|m| m.labels.as_ref()))
        }),
    ];

    crate::registry::prepare::pod_spec_at!(template? spec?);

    fn default(&mut self) {
        pod_spec::default_template(self.template.get_or_insert_default());
    }

    counted!(template);

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        if let Some(template) = &self.template {
            pod_spec::template(template, &at.child("template"), errors);
        }
    }

    fn warnings(&self, old: Option<&Self>) -> Vec<String> {
        let is_same = old.is_some_and(|old| old.metadata.generation == self.metadata.generation);
        let template = self.template.as_ref().filter(|_| !is_same);
        template.map(|t| pod_spec::of_template(t, &FieldPath::new("template"))).unwrap_or_default()
    }
}
