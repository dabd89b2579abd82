//! ResourceClaimTemplate: a claim for each pod.

use k8s_openapi::api::resource::v1::ResourceClaimTemplate;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use super::devices::{default_spec, validate_spec};
use crate::registry::column::{age, name};
use crate::registry::prepare::differ;
use crate::registry::rules::{IMMUTABLE, template_metadata};
use crate::registry::{Column, Strategy};

impl Strategy for ResourceClaimTemplate {
    const KIND: &'static Kind = &kinds::RESOURCE_CLAIM_TEMPLATE;
    const COLUMNS: &'static [Column<Self>] = &[name(), age()];

    fn default(&mut self) {
        self.spec.metadata.get_or_insert_default();
        default_spec(&mut self.spec.spec);
    }

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec");
        template_metadata(self.spec.metadata.as_ref(), &at.child("metadata"), errors);
        validate_spec(&self.spec.spec, &at.child("spec"), errors);
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        if differ(&self.spec, &old.spec) {
            errors.invalid(&at.child("spec"), &self.spec, IMMUTABLE);
        }
    }
}
