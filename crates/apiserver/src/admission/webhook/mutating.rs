//! MutatingAdmissionWebhook: one after another, in the order of their configurations' names.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use krate_api::StatusError;
use krate_api::patch::JsonPatch;
use serde_json::json;

use super::{GROUP, Hook, Refusal, Said, ask, is_asked};
use crate::admission::lookup::Prepared;
use crate::admission::matching::is_exempt;
use crate::admission::metrics::{Metrics, Phase, Said as Told};
use crate::admission::{Admit, Attributes, put, review};
use crate::auth::Authorizer;
use crate::elsewhere;
use crate::kinds::Kinds;
use crate::registry::erased::Object;

pub struct MutatingWebhooks {
    kinds: Arc<Kinds>,
    authorizer: Authorizer,
    hooks: Prepared<Vec<Hook>>,
    metrics: Arc<Metrics>,
}

fn prepare(configuration: MutatingWebhookConfiguration) -> Vec<Hook> {
    let name = configuration.metadata.name.unwrap_or_default();
    let webhooks = configuration.webhooks.unwrap_or_default().into_iter();
    webhooks
        .map(|w| {
            let said = Said {
                name: w.name,
                client: w.client_config,
                rules: w.rules,
                namespaces: w.namespace_selector,
                objects: w.object_selector,
                conditions: w.match_conditions,
                failure_policy: w.failure_policy,
                side_effects: w.side_effects,
                versions: w.admission_review_versions,
                timeout: w.timeout_seconds,
                reinvocation: w.reinvocation_policy,
            };
            Hook::new(&name, said)
        })
        .collect()
}

impl MutatingWebhooks {
    pub fn new(kinds: Arc<Kinds>, authorizer: Authorizer, metrics: Arc<Metrics>) -> Self {
        MutatingWebhooks { kinds, authorizer, hooks: Prepared::default(), metrics }
    }

    /// Asks a webhook and does as it says. Whether the object is another now.
    async fn apply(
        &self,
        hook: &Hook,
        attributes: &Attributes,
        object: &mut dyn Object,
        old: Option<&dyn Object>,
    ) -> Result<bool, Refusal> {
        let answer = ask(hook, &self.kinds, attributes, Some(object), old, true).await?;
        let Some(patch) = answer.patch else { return Ok(false) };
        let patch = JsonPatch::decode(&patch).map_err(|error| {
            Refusal::Calling(format!("received undecodable patch in webhook response: {error}"))
        })?;
        let before = object.to_json();
        let mut json = review::object_json(Some(object));
        let internal = |error: String| Refusal::Rejected(StatusError::internal(error));
        patch.apply(&mut json).map_err(|error| internal(error.to_string()))?;
        put(&self.kinds, attributes, object, &json).map_err(Refusal::Rejected)?;
        Ok(object.to_json() != before)
    }
}

#[async_trait]
impl Admit for MutatingWebhooks {
    async fn mutate(
        &self,
        attributes: &Attributes,
        object: &mut dyn Object,
        old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        if is_exempt(attributes) {
            return Ok(());
        }
        let all = self.hooks.all(&self.kinds, GROUP, "mutatingwebhookconfigurations", prepare).await?;
        if all.is_empty() {
            return Ok(());
        }
        let round = attributes.round();
        attributes.webhooks_begin(&object.to_json());
        for (i, hook) in all.iter().flat_map(|hooks| hooks.iter()).enumerate() {
            if round > 0 && !attributes.webhook_is_due(&hook.id()) {
                continue;
            }
            if !is_asked(hook, &self.kinds, &self.authorizer, attributes, Some(object), old).await? {
                continue;
            }
            let place = format!("round_{round}_index_{i}");
            let since = Instant::now();
            let answer = elsewhere::spent(self.apply(hook, attributes, object, old)).await;
            let said = answer.as_ref().map_or_else(|refusal| refusal.said(hook), |_| Told::Yes);
            self.metrics.webhook(&hook.name, Phase::Mutate, attributes.operation, said, since.elapsed());
            let changed = matches!(answer, Ok(true));
            attributes.annotate(
                &format!("mutation.webhook.admission.k8s.io/{place}"),
                json!({"configuration": hook.configuration, "webhook": hook.name, "mutated": changed})
                    .to_string(),
            );
            attributes.webhook_was_asked(&hook.id(), changed, hook.again);
            match answer {
                Ok(_) => {}
                Err(Refusal::Calling(why)) if !hook.fails => {
                    tracing::warn!(
                        webhook = hook.name,
                        why,
                        "a webhook failed; the write goes on without it"
                    );
                    let key = format!("failed-open.mutation.webhook.admission.k8s.io/{place}");
                    attributes.annotate(&key, hook.name.clone());
                }
                Err(refusal) => return Err(refusal.status(hook)),
            }
        }
        attributes.webhooks_end(object.to_json());
        Ok(())
    }
}
