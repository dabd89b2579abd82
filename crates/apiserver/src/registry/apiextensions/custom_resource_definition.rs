//! CustomResourceDefinition: a kind of one's own.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceConversion, CustomResourceDefinition, CustomResourceDefinitionStatus,
};
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use crate::apiextensions::{self, validation};
use crate::registry::column::{created_at, name};
use crate::registry::prepare::{differ, first_generation, next_generation};
use crate::registry::{Column, Context, Strategy};

impl Strategy for CustomResourceDefinition {
    const KIND: &'static Kind = &kinds::CUSTOM_RESOURCE_DEFINITION;
    const COLUMNS: &'static [Column<Self>] = &[name(), created_at()];
    const ALLOW_UNCONDITIONAL_UPDATE: bool = false;
    const CLEANUP_FINALIZER: Option<&'static str> = Some(apiextensions::CLEANUP);

    fn default(&mut self) {
        let names = &mut self.spec.names;
        let empty = |o: &Option<String>| o.as_deref().is_none_or(str::is_empty);
        if empty(&names.singular) {
            names.singular = Some(names.kind.to_lowercase());
        }
        if empty(&names.list_kind) && !names.kind.is_empty() {
            names.list_kind = Some(format!("{}List", names.kind));
        }
        let conversion = self.spec.conversion.get_or_insert_with(CustomResourceConversion::default);
        if conversion.strategy.is_empty() {
            "None".clone_into(&mut conversion.strategy);
        }
        if let Some(service) = conversion
            .webhook
            .as_mut()
            .and_then(|w| w.client_config.as_mut())
            .and_then(|c| c.service.as_mut())
        {
            service.port.get_or_insert(443);
        }
        self.status.get_or_insert_default();
    }

    fn prepare_for_create(&mut self, _: &Context) {
        first_generation(&mut self.metadata);
        // Objects are stored in that version from now on.
        let stored = self.spec.versions.iter().filter(|v| v.storage).map(|v| v.name.clone()).collect();
        self.status = Some(CustomResourceDefinitionStatus {
            stored_versions: Some(stored),
            ..CustomResourceDefinitionStatus::default()
        });
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context) {
        self.status.clone_from(&old.status);
        next_generation(&mut self.metadata, &old.metadata, differ(&self.spec, &old.spec));
        for version in self.spec.versions.iter().filter(|v| v.storage) {
            let stored = self.status.get_or_insert_default().stored_versions.get_or_insert_default();
            if !stored.contains(&version.name) {
                stored.push(version.name.clone());
            }
        }
    }

    fn prepare_for_status_update(&mut self, old: &Self, _: &Context) {
        self.spec.clone_from(&old.spec);
    }

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let spec = &self.spec;
        let wanted = format!("{}.{}", spec.names.plural, spec.group);
        let name = self.metadata.name.as_deref().unwrap_or_default();
        if name != wanted {
            errors.invalid(
                &at.child("metadata").child("name"),
                name,
                "must be spec.names.plural+\".\"+spec.group",
            );
        }
        // What is there already is held against what it was.
        if self.metadata.resource_version.is_none() {
            validation::check(self, None, at, errors);
        }
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        validation::check(self, Some(old), at, errors);
    }

    fn validate_status_update(&self, _: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        validation::status(self, &at.child("status"), errors);
    }

    fn warnings(&self, old: Option<&Self>) -> Vec<String> {
        let before = old.map(validation::warnings).unwrap_or_default();
        let mut now = validation::warnings(self);
        now.retain(|warning| !before.contains(warning));
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::erased::{Registry, Typed};

    #[test]
    fn who_replaces_a_definition_says_which_state_of_it() {
        assert!(!<Typed<CustomResourceDefinition> as Default>::default().allows_unconditional_update());
    }
}
