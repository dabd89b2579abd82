//! ValidatingWebhookConfiguration: webhooks that may refuse a write.

use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use super::matching::name_warnings;
use super::webhook::{default_webhook, said, validate};
use crate::registry::column::{age, integer, name};
use crate::registry::prepare::counted;
use crate::registry::{Column, Strategy};

impl Strategy for ValidatingWebhookConfiguration {
    const KIND: &'static Kind = &kinds::VALIDATING_WEBHOOK_CONFIGURATION;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        integer(
            "Webhooks",
            "Webhooks indicates the number of webhooks registered in this configuration",
            |c| c.webhooks.as_ref().map_or(0, Vec::len).into(),
        ),
        age(),
    ];
    const ALLOW_UNCONDITIONAL_UPDATE: bool = false;

    fn default(&mut self) {
        for hook in self.webhooks.iter_mut().flatten() {
            default_webhook!(hook);
        }
    }

    counted!(webhooks);

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("webhooks");
        validate(self.webhooks.iter().flatten().map(|hook| said!(hook)), &at, errors);
    }

    fn warnings(&self, _: Option<&Self>) -> Vec<String> {
        name_warnings(self.metadata.name.as_deref())
    }
}
