//! Namespace: a scope for names.

use k8s_openapi::api::core::v1::{Namespace, NamespaceSpec, NamespaceStatus};
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use crate::registry::column::{age, name, text};
use crate::registry::rules::label_name;
use crate::registry::{Column, Context, Selectable, Strategy};

const NAME_LABEL: &str = "kubernetes.io/metadata.name";
const FINALIZER: &str = "kubernetes";

fn phase(namespace: &Namespace) -> &str {
    namespace.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

impl Strategy for Namespace {
    const KIND: &'static Kind = &kinds::NAMESPACE;
    const COLUMNS: &'static [Column<Self>] =
        &[name(), text("Status", "The status of the namespace", |n| phase(n).into()), age()];

    fn default(&mut self) {
        if let Some(name) = self.metadata.name.clone().filter(|n| !n.is_empty()) {
            self.metadata.labels.get_or_insert_default().insert(NAME_LABEL.to_owned(), name);
        }
        let status = self.status.get_or_insert_default();
        if status.phase.as_deref().is_none_or(str::is_empty) {
            status.phase = Some("Active".to_owned());
        }
    }

    fn prepare_for_create(&mut self, _: &Context) {
        self.status =
            Some(NamespaceStatus { phase: Some("Active".to_owned()), ..NamespaceStatus::default() });
        // Taken away by the controller that empties the namespace.
        let finalizers =
            self.spec.get_or_insert_with(NamespaceSpec::default).finalizers.get_or_insert_default();
        if !finalizers.iter().any(|f| f == FINALIZER) {
            finalizers.push(FINALIZER.to_owned());
        }
    }

    fn prepare_for_update(&mut self, old: &Self, context: &Context) {
        self.status.clone_from(&old.status);
        if context.subresource != "finalize" {
            self.spec.clone_from(&old.spec);
        }
    }

    fn prepare_for_status_update(&mut self, old: &Self, _: &Context) {
        self.spec.clone_from(&old.spec);
    }

    fn validate_name(name: &str) -> Vec<String> {
        krate_api::names::is_dns1123_label(name)
    }

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let finalizers = self.spec.iter().flat_map(|s| s.finalizers.iter().flatten());
        for (i, finalizer) in finalizers.enumerate() {
            let at = at.child("spec").child("finalizers").index(i);
            label_name(finalizer, &at, errors);
            if !finalizer.contains('/') && finalizer != FINALIZER {
                errors.invalid(
                    &at,
                    finalizer,
                    "name is neither a standard finalizer name nor is it fully qualified",
                );
            }
        }
    }

    fn validate_status_update(&self, _: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("status").child("Phase");
        if self.metadata.deletion_timestamp.is_none() {
            if phase(self) != "Active" {
                errors.invalid(&at, phase(self), "may only be 'Active' if `deletionTimestamp` is empty");
            }
        } else if phase(self) != "Terminating" {
            errors.invalid(&at, phase(self), "may only be 'Terminating' if `deletionTimestamp` is not empty");
        }
    }

    fn selectable(&self) -> Selectable {
        vec![
            ("name", self.metadata.name.clone().unwrap_or_default()),
            ("status.phase", phase(self).to_owned()),
        ]
    }
}
