//! Namespace: a scope for names.

use k8s_openapi::api::core::v1::{Namespace, NamespaceSpec, NamespaceStatus};
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use crate::registry::column::{age, name, text};
use crate::registry::rules::label_name;
use crate::registry::{Column, Context, Selectable, Strategy};

const NAME_LABEL: &str = "kubernetes.io/metadata.name";
const FINALIZER: &str = "kubernetes";
/// Finalizers whose names need no domain.
const STANDARD: &[&str] = &[FINALIZER, "orphan", "foregroundDeletion"];

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

    fn validate(&self, _: &FieldPath, _: &mut FieldErrors) {}

    fn validate_new(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec").child("finalizers");
        finalizers(self).for_each(|name| finalizer(name, &at, errors));
    }

    /// Only through `finalize` do they change, and only there it is told which of them is meant.
    fn validate_through(&self, _: &str, _: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec").child("finalizers");
        for (i, name) in finalizers(self).enumerate() {
            finalizer(name, &at.index(i), errors);
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

fn finalizers(namespace: &Namespace) -> impl Iterator<Item = &str> {
    namespace.spec.iter().flat_map(|s| s.finalizers.iter().flatten()).map(String::as_str)
}

fn finalizer(name: &str, at: &FieldPath, errors: &mut FieldErrors) {
    label_name(name, at, errors);
    if !name.contains('/') && !STANDARD.contains(&name) {
        errors.invalid(at, name, "name is neither a standard finalizer name nor is it fully qualified");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finalizer_is_known_or_of_a_domain() {
        let object = serde_json::json!({"metadata": {}, "spec": {"finalizers": ["orphan", "a.b/c", "odd"]}});
        let namespace: Namespace = serde_json::from_value(object).expect("a namespace");
        let told = |check: fn(&Namespace, &mut FieldErrors)| {
            let mut errors = FieldErrors::new();
            check(&namespace, &mut errors);
            errors.iter().map(|e| e.field.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(told(|n, errors| n.validate_new(&FieldPath::new(""), errors)), ["spec.finalizers"]);
        assert_eq!(
            told(|n, errors| n.validate_through("finalize", n, &FieldPath::new(""), errors)),
            ["spec.finalizers[2]"]
        );
    }
}
