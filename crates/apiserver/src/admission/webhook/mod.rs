//! MutatingAdmissionWebhook and ValidatingAdmissionWebhook: others are asked about a write, over HTTPS. Shared by both:
//! whether a webhook is asked, and what is made of its answer.

mod client;
pub mod mutating;
mod response;
pub mod validating;

use std::time::{Duration, Instant};

use base64::Engine as _;
use k8s_openapi::api::admissionregistration::v1::{MatchCondition, RuleWithOperations, WebhookClientConfig};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Status};
use krate_api::{Kind, Reason, StatusError};
use serde_json::{Value as Json, json};
use uuid::Uuid;

pub use self::client::Client;
use self::response::Failure;
use super::matching::{Rule, selected};
use super::metrics::{Conditions, Metrics, Phase, Said as Told};
use super::policy::seen::Seen;
use super::policy::{Compiled, Input, Scope, compile_conditions};
use super::versions::{meant, told};
use super::{Attributes, review};
use crate::auth::Authorizer;
use crate::cel::Value;
use crate::kinds::Kinds;
use crate::registry::erased::Object;
use crate::spans;

const GROUP: &str = "admissionregistration.k8s.io";
const TIMEOUT: i32 = 10;

/// A webhook, ready to be asked.
pub struct Hook {
    configuration: String,
    name: String,
    rules: Vec<RuleWithOperations>,
    /// Whether the rules mean other versions of what they name too.
    equivalent: bool,
    namespaces: Option<LabelSelector>,
    objects: Option<LabelSelector>,
    conditions: Vec<Compiled>,
    fails: bool,
    side_effects: String,
    versions: Vec<String>,
    again: bool,
    timeout: Duration,
    client: Client,
}

/// What configurations of both sorts say of a webhook.
struct Said {
    name: String,
    client: WebhookClientConfig,
    rules: Option<Vec<RuleWithOperations>>,
    match_policy: Option<String>,
    namespaces: Option<LabelSelector>,
    objects: Option<LabelSelector>,
    conditions: Option<Vec<MatchCondition>>,
    failure_policy: Option<String>,
    side_effects: String,
    versions: Vec<String>,
    timeout: Option<i32>,
    reinvocation: Option<String>,
}

impl Hook {
    fn new(configuration: &str, said: Said) -> Self {
        let seconds = said.timeout.unwrap_or(TIMEOUT).clamp(1, 30);
        Hook {
            configuration: configuration.to_owned(),
            name: said.name,
            rules: said.rules.unwrap_or_default(),
            equivalent: said.match_policy.as_deref() == Some("Equivalent"),
            namespaces: said.namespaces,
            objects: said.objects,
            conditions: compile_conditions(said.conditions.as_deref(), &Seen::dynamic(false).declared()),
            fails: said.failure_policy.as_deref() != Some("Ignore"),
            side_effects: said.side_effects,
            versions: said.versions,
            again: said.reinvocation.as_deref() == Some("IfNeeded"),
            timeout: Duration::from_secs(seconds.unsigned_abs().into()),
            client: Client::new(said.client),
        }
    }

    /// What it is known by among all.
    fn id(&self) -> String {
        format!("{}/{}", self.configuration, self.name)
    }
}

/// A webhook's answer that lets a write pass.
struct Answer {
    /// A JSON patch.
    patch: Option<Vec<u8>>,
}

/// Why a webhook's answer does not.
enum Refusal {
    /// It could not be asked, or did not answer as it should; its failure policy decides what that means. With the code
    /// by which this is counted.
    Calling {
        why: String,
        code: u16,
    },
    /// What it is asked, or what it answers, cannot be had from this server.
    Unable(StatusError),
    Rejected(StatusError),
}

impl Refusal {
    /// Of an answer that is none.
    fn invalid(why: String) -> Self {
        Refusal::Calling { why, code: Reason::ServiceUnavailable.code() }
    }

    fn status(self, hook: &Hook) -> StatusError {
        match self {
            Refusal::Calling { why, .. } => {
                StatusError::internal(format!("failed calling webhook {:?}: {why}", hook.name))
            }
            Refusal::Unable(status) | Refusal::Rejected(status) => status,
        }
    }

    /// As it is counted.
    fn said(&self, hook: &Hook) -> Told {
        match self {
            Refusal::Calling { code, .. } => Told::Failed { refuses: hook.fails, code: (*code).into() },
            Refusal::Unable(_) => Told::Unable,
            Refusal::Rejected(status) => Told::No(status.code().into()),
        }
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        let code = failure.code.unwrap_or(Reason::ServiceUnavailable.code());
        Refusal::Calling { why: format!("failed to call webhook: {}", failure.why), code }
    }
}

/// The kind as which a webhook is to be asked about a request; `None` if it is not to be asked.
async fn asked_as(
    hook: &Hook,
    kinds: &Kinds,
    authorizer: &Authorizer,
    attributes: &Attributes,
    object: Option<&dyn Object>,
    old: Option<&dyn Object>,
    (metrics, phase): (&Metrics, Phase),
) -> Result<Option<&'static Kind>, StatusError> {
    let Some(kind) = meant(kinds, attributes, hook.rules.iter().map(Rule::from), hook.equivalent) else {
        return Ok(None);
    };
    let selectors = (hook.namespaces.as_ref(), hook.objects.as_ref());
    if !selected(kinds, attributes, selectors, object, old).await? {
        return Ok(None);
    }
    if hook.conditions.is_empty() {
        return Ok(Some(kind));
    }
    let input = Input::new(kinds, authorizer, attributes, kind, (object, old)).await?;
    let began = Instant::now();
    let holds = Scope::new(&input, &Value::Null, &[]).conditions(&hook.conditions);
    let conditions = Conditions { of: &hook.name, kind: "webhook", sort: phase.of_webhook() };
    metrics.matched(&conditions, attributes.operation, holds.as_ref(), began.elapsed());
    match holds {
        Ok(holds) => Ok(holds.then_some(kind)),
        Err(_) if !hook.fails => Ok(None),
        Err(why) => Err(attributes.forbidden(why)),
    }
}

/// Asks one webhook, as if the request were about objects of `kind`.
async fn ask(
    hook: &Hook,
    kinds: &Kinds,
    (attributes, kind): (&Attributes, &Kind),
    object: Option<&dyn Object>,
    old: Option<&dyn Object>,
    mutates: bool,
) -> Result<Answer, Refusal> {
    if attributes.dry_run && !matches!(hook.side_effects.as_str(), "None" | "NoneOnDryRun") {
        let why = format!("admission webhook {:?} does not support dry run", hook.name);
        return Err(Refusal::Unable(StatusError::bad_request(why)));
    }
    let version = hook.versions.iter().find(|v| matches!(v.as_str(), "v1" | "v1beta1"));
    let version = version.ok_or_else(|| {
        let why = "webhook does not accept known AdmissionReview versions (v1, v1beta1)";
        let code = Reason::BadRequest.code();
        Refusal::Calling { why: format!("could not create admission objects: {why}"), code }
    })?;
    let uid = Uuid::new_v4().to_string();
    let api_version = format!("admission.k8s.io/{version}");
    let mut request = review::request(attributes, kind);
    request["uid"] = uid.clone().into();
    request["object"] = match &attributes.options {
        Some(options) => options.clone(),
        None => told(kinds, attributes, kind, object).await.map_err(Refusal::Unable)?,
    };
    request["oldObject"] = told(kinds, attributes, kind, old).await.map_err(Refusal::Unable)?;
    let review = json!({"kind": "AdmissionReview", "apiVersion": api_version, "request": request});
    let described = || {
        vec![
            ("configuration", hook.configuration.as_str().into()),
            ("webhook", hook.name.as_str().into()),
            ("resource", attributes.kind.qualified_resource().as_str().into()),
            ("subresource", attributes.subresource.as_str().into()),
            ("operation", attributes.operation.name().into()),
            ("UID", uid.as_str().into()),
        ]
    };
    let named = if mutates { "Call mutating webhook" } else { "Call validating webhook" };
    let answer = spans::within(named, described, hook.client.ask(kinds, &review, hook.timeout)).await?;
    let invalid = |why: String| Refusal::invalid(format!("received invalid webhook response: {why}"));
    let response = answer.get("response").filter(|r| r.is_object());
    let response = response.ok_or_else(|| invalid("webhook response was absent".to_owned()))?;
    if version == "v1" {
        verify(&answer, response, &uid, mutates).map_err(invalid)?;
    }
    let strings = |key: &str| response.get(key).and_then(Json::as_object).into_iter().flatten();
    for (key, value) in strings("auditAnnotations") {
        attributes.annotate(&format!("{}/{key}", hook.name), value.as_str().unwrap_or_default().to_owned());
    }
    for warning in response.get("warnings").and_then(Json::as_array).into_iter().flatten() {
        attributes.warn(warning.as_str().unwrap_or_default().to_owned());
    }
    if response.get("allowed").and_then(Json::as_bool) != Some(true) {
        return Err(Refusal::Rejected(rejection(&hook.name, response.get("status"))));
    }
    let patch = match response.get("patch").and_then(Json::as_str).filter(|p| mutates && !p.is_empty()) {
        None => None,
        Some(text) => {
            let decoded = base64::engine::general_purpose::STANDARD.decode(text);
            Some(decoded.map_err(|error| invalid(error.to_string()))?)
        }
    };
    let kind = response.get("patchType").and_then(Json::as_str).unwrap_or("JSONPatch");
    if patch.is_some() && kind != "JSONPatch" {
        return Err(Refusal::invalid(format!("unsupported patch type {kind:?}")));
    }
    Ok(Answer { patch })
}

/// Whether an answer is one to what was asked.
fn verify(answer: &Json, response: &Json, uid: &str, mutates: bool) -> Result<(), String> {
    let text = |value: &Json, key: &str| value.get(key).and_then(Json::as_str).unwrap_or_default().to_owned();
    let said = text(response, "uid");
    if said != uid {
        return Err(format!("expected response.uid={uid:?}, got {said:?}"));
    }
    let (version, kind) = (text(answer, "apiVersion"), text(answer, "kind"));
    if version != "admission.k8s.io/v1" || kind != "AdmissionReview" {
        let expected = "admission.k8s.io/v1, Kind=AdmissionReview";
        return Err(format!("expected webhook response of {expected}, got {version}, Kind={kind}"));
    }
    let (patch, patch_type) =
        (!text(response, "patch").is_empty(), response.get("patchType").is_some_and(|t| !t.is_null()));
    match (mutates, patch, patch_type) {
        (true, true, false) => Err("webhook returned response.patch but not response.patchType".to_owned()),
        (true, false, true) => Err("webhook returned response.patchType but not response.patch".to_owned()),
        (false, true, _) => Err("validating webhook may not return response.patch".to_owned()),
        (false, _, true) => Err("validating webhook may not return response.patchType".to_owned()),
        _ => Ok(()),
    }
}

/// What a client is told when a webhook says no.
fn rejection(name: &str, status: Option<&Json>) -> StatusError {
    let status = status.cloned().unwrap_or_default();
    let mut status: Status = serde_json::from_value(status).unwrap_or_default();
    let denied = format!("admission webhook {name:?} denied the request");
    let filled = |text: &Option<String>| text.clone().filter(|t| !t.is_empty());
    status.message = Some(match (filled(&status.message), filled(&status.reason)) {
        (Some(why), _) | (None, Some(why)) => format!("{denied}: {why}"),
        (None, None) => format!("{denied} without explanation"),
    });
    if status.code.is_none_or(|code| code < 400) {
        status.code = Some(Reason::BadRequest.code().into());
    }
    if status.status.as_deref().is_none_or(|s| s.is_empty() || s == "Success") {
        status.status = Some("Failure".to_owned());
    }
    StatusError(Box::new(status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rejection_is_told_with_its_webhook() {
        let refused = rejection("w.example.com", Some(&json!({"message": "no", "code": 403})));
        assert_eq!(
            (refused.code(), refused.to_string().as_str()),
            (403, "admission webhook \"w.example.com\" denied the request: no")
        );
        let refused = rejection("w", None);
        assert_eq!(
            (refused.code(), refused.to_string().as_str()),
            (400, "admission webhook \"w\" denied the request without explanation")
        );
    }

    #[test]
    fn an_answer_to_another_question_is_none() {
        let answer = |response: Json| json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
        let verified =
            |response: Json, mutates: bool| verify(&answer(response.clone()), &response, "u", mutates);
        assert!(verified(json!({"uid": "u", "allowed": true}), false).is_ok());
        assert!(verified(json!({"uid": "other"}), false).is_err());
        assert!(verified(json!({"uid": "u", "patch": "W10="}), false).is_err());
        assert!(verified(json!({"uid": "u", "patch": "W10="}), true).is_err(), "a patch has a type");
        assert!(verified(json!({"uid": "u", "patch": "W10=", "patchType": "JSONPatch"}), true).is_ok());
    }
}
