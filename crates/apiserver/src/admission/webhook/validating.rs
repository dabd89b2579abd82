//! ValidatingAdmissionWebhook: all at once.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use futures::future::join_all;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use krate_api::StatusError;

use super::{GROUP, Hook, Refusal, Said, ask, asked_as};
use crate::admission::lookup::Prepared;
use crate::admission::matching::is_exempt;
use crate::admission::metrics::{Metrics, Phase, Said as Told};
use crate::admission::{Admit, Attributes};
use crate::auth::Authorizer;
use crate::elsewhere;
use crate::kinds::Kinds;
use crate::registry::erased::Object;

pub struct ValidatingWebhooks {
    kinds: Arc<Kinds>,
    authorizer: Authorizer,
    hooks: Prepared<Vec<Hook>>,
    metrics: Arc<Metrics>,
}

fn prepare(configuration: ValidatingWebhookConfiguration) -> Vec<Hook> {
    let name = configuration.metadata.name.unwrap_or_default();
    let webhooks = configuration.webhooks.unwrap_or_default().into_iter();
    webhooks
        .map(|w| {
            let said = Said {
                name: w.name,
                client: w.client_config,
                rules: w.rules,
                match_policy: w.match_policy,
                namespaces: w.namespace_selector,
                objects: w.object_selector,
                conditions: w.match_conditions,
                failure_policy: w.failure_policy,
                side_effects: w.side_effects,
                versions: w.admission_review_versions,
                timeout: w.timeout_seconds,
                reinvocation: None,
            };
            Hook::new(&name, said)
        })
        .collect()
}

impl ValidatingWebhooks {
    pub fn new(kinds: Arc<Kinds>, authorizer: Authorizer, metrics: Arc<Metrics>) -> Self {
        ValidatingWebhooks { kinds, authorizer, hooks: Prepared::default(), metrics }
    }
}

#[async_trait]
impl Admit for ValidatingWebhooks {
    async fn validate(
        &self,
        attributes: &Attributes,
        object: Option<&dyn Object>,
        old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        if is_exempt(attributes) {
            return Ok(());
        }
        let all = self.hooks.all(&self.kinds, GROUP, "validatingwebhookconfigurations", prepare).await?;
        let mut asked = Vec::new();
        for hook in all.iter().flat_map(|hooks| hooks.iter()) {
            let counts = (&*self.metrics, Phase::Validate);
            let kind = asked_as(hook, &self.kinds, &self.authorizer, attributes, object, old, counts).await?;
            asked.extend(kind.map(|kind| (hook, kind)));
        }
        let asking = asked.iter().map(|&(hook, kind)| async move {
            let since = Instant::now();
            let answer = ask(hook, &self.kinds, (attributes, kind), object, old, false).await;
            let said = answer.as_ref().map_or_else(|refusal| refusal.said(hook), |_| Told::Yes);
            self.metrics.webhook(&hook.name, Phase::Validate, attributes.operation, said, since.elapsed());
            answer
        });
        let answers = elsewhere::spent(join_all(asking)).await;
        let mut refused = None;
        for (i, ((hook, _), answer)) in asked.iter().zip(answers).enumerate() {
            match answer {
                Ok(_) => {}
                Err(Refusal::Calling { why, .. }) if !hook.fails => {
                    tracing::warn!(
                        webhook = hook.name,
                        why,
                        "a webhook failed; the write goes on without it"
                    );
                    let key = format!("failed-open.validating.webhook.admission.k8s.io/round_0_index_{i}");
                    attributes.annotate(&key, hook.name.clone());
                }
                Err(refusal) => {
                    refused.get_or_insert_with(|| refusal.status(hook));
                }
            }
        }
        refused.map_or(Ok(()), Err)
    }
}
