//! MutatingAdmissionWebhook: one after another, in the order of their configurations' names.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use krate_api::patch::JsonPatch;
use krate_api::{Kind, StatusError};
use serde_json::json;

use super::{GROUP, Hook, Refusal, Said, ask, asked_as};
use crate::admission::lookup::Prepared;
use crate::admission::matching::is_exempt;
use crate::admission::metrics::{Metrics, Phase, Said as Told};
use crate::admission::versions::{put, told};
use crate::admission::{Admit, Asked, Attributes};
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
                match_policy: w.match_policy,
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
        (attributes, kind): (&Attributes, &Kind),
        object: &mut dyn Object,
        old: Option<&dyn Object>,
    ) -> Result<bool, Refusal> {
        let answer = ask(hook, &self.kinds, (attributes, kind), Some(object), old, true).await?;
        let Some(patch) = answer.patch else { return Ok(false) };
        let patch = decoded(&patch)?;
        let before = object.to_json();
        let mut json = told(&self.kinds, attributes, kind, Some(object)).await.map_err(Refusal::Unable)?;
        let unable = |error: String| Refusal::Unable(StatusError::internal(error));
        patch.apply(&mut json).map_err(|error| unable(error.to_string()))?;
        put(&self.kinds, attributes, kind, object, &json).await.map_err(Refusal::Unable)?;
        Ok(object.to_json() != before)
    }
}

fn decoded(patch: &[u8]) -> Result<JsonPatch, Refusal> {
    JsonPatch::decode(patch)
        .map_err(|error| Refusal::invalid(format!("received undecodable patch in webhook response: {error}")))
}

/// Does with the options of a connection as a webhook says. Whether they are others now.
fn change_options(hook: &Hook, attributes: &mut Attributes, patch: Option<&[u8]>) -> Result<bool, Refusal> {
    let Some(patch) = patch else { return Ok(false) };
    let patch = decoded(patch)?;
    let unable = |error: String| Refusal::Unable(StatusError::internal(error));
    let Some(options) = attributes.options.as_mut() else {
        let why = format!(
            "admission webhook {:?} attempted to modify the object, which is not supported for this operation",
            hook.name
        );
        return Err(unable(why));
    };
    let before = options.clone();
    patch.apply(options).map_err(|error| unable(error.to_string()))?;
    Ok(*options != before)
}

/// Notes that a webhook was asked, for the audit log.
fn note(attributes: &Attributes, hook: &Hook, place: &str, changed: bool) {
    let told = json!({"configuration": hook.configuration, "webhook": hook.name, "mutated": changed});
    attributes.annotate(&format!("mutation.webhook.admission.k8s.io/{place}"), told.to_string());
}

/// What a webhook's refusal means: the write goes on where its failure is to be ignored.
fn pass_over(attributes: &Attributes, hook: &Hook, place: &str, refusal: Refusal) -> Result<(), StatusError> {
    match refusal {
        Refusal::Calling { why, .. } if !hook.fails => {
            tracing::warn!(webhook = hook.name, why, "a webhook failed; the write goes on without it");
            let key = format!("failed-open.mutation.webhook.admission.k8s.io/{place}");
            attributes.annotate(&key, hook.name.clone());
            Ok(())
        }
        refusal => Err(refusal.status(hook)),
    }
}

#[async_trait]
impl Admit for MutatingWebhooks {
    async fn consult(
        &self,
        attributes: &mut Attributes,
        old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        if is_exempt(attributes) {
            return Ok(());
        }
        let all = self.hooks.all(&self.kinds, GROUP, "mutatingwebhookconfigurations", prepare).await?;
        for (i, hook) in all.iter().flat_map(|hooks| hooks.iter()).enumerate() {
            let counts = (&*self.metrics, Phase::Mutate);
            let kind = asked_as(hook, &self.kinds, &self.authorizer, attributes, None, old, counts).await?;
            let Some(kind) = kind else { continue };
            let place = format!("round_0_index_{i}");
            let since = Instant::now();
            let answer = ask(hook, &self.kinds, (&*attributes, kind), None, old, true).await;
            let answer = answer.and_then(|answer| change_options(hook, attributes, answer.patch.as_deref()));
            let said = answer.as_ref().map_or_else(|refusal| refusal.said(hook), |_| Told::Yes);
            self.metrics.webhook(&hook.name, Phase::Mutate, attributes.operation, said, since.elapsed());
            note(attributes, hook, &place, matches!(answer, Ok(true)));
            if let Err(refusal) = answer {
                pass_over(attributes, hook, &place, refusal)?;
            }
        }
        Ok(())
    }

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
        let (round, mut asked) = (attributes.round(), false);
        if round > 0 {
            attributes.begin(Asked::Webhooks, &object.to_json());
        }
        for (i, hook) in all.iter().flat_map(|hooks| hooks.iter()).enumerate() {
            if round > 0 && !attributes.is_due(Asked::Webhooks, &hook.id()) {
                continue;
            }
            let counts = (&*self.metrics, Phase::Mutate);
            let kind =
                asked_as(hook, &self.kinds, &self.authorizer, attributes, Some(object), old, counts).await?;
            let Some(kind) = kind else { continue };
            asked = true;
            let place = format!("round_{round}_index_{i}");
            let since = Instant::now();
            let answer = elsewhere::spent(self.apply(hook, (attributes, kind), object, old)).await;
            let said = answer.as_ref().map_or_else(|refusal| refusal.said(hook), |_| Told::Yes);
            self.metrics.webhook(&hook.name, Phase::Mutate, attributes.operation, said, since.elapsed());
            let changed = matches!(answer, Ok(true));
            note(attributes, hook, &place, changed);
            attributes.was_asked(Asked::Webhooks, &hook.id(), changed, hook.again);
            if let Err(refusal) = answer {
                pass_over(attributes, hook, &place, refusal)?;
            }
        }
        // It is looked at in the second round alone, and only if somebody was asked.
        if asked && round == 0 {
            attributes.end(Asked::Webhooks, object.to_json(), false);
        }
        Ok(())
    }
}
