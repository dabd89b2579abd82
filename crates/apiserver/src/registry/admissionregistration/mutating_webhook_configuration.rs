//! MutatingWebhookConfiguration: webhooks that may change a write.

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use super::matching::name_warnings;
use super::webhook::{default_webhook, said, validate};
use crate::registry::column::{age, integer, name};
use crate::registry::prepare::counted;
use crate::registry::rules::one_of;
use crate::registry::{Column, Strategy};

impl Strategy for MutatingWebhookConfiguration {
    const KIND: &'static Kind = &kinds::MUTATING_WEBHOOK_CONFIGURATION;
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
            hook.reinvocation_policy.get_or_insert_with(|| "Never".to_owned());
            default_webhook!(hook);
        }
    }

    counted!(webhooks);

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("webhooks");
        validate(self.webhooks.iter().flatten().map(|hook| said!(hook)), &at, errors);
        for (i, hook) in self.webhooks.iter().flatten().enumerate() {
            if let Some(policy) = &hook.reinvocation_policy {
                one_of(policy, &["IfNeeded", "Never"], &at.index(i).child("reinvocationPolicy"), errors);
            }
        }
    }

    fn warnings(&self, _: Option<&Self>) -> Vec<String> {
        name_warnings(self.metadata.name.as_deref())
    }
}
