//! ValidatingAdmissionPolicy.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding, ValidatingAdmissionPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::StatusCause;
use krate_api::{Kind, StatusError};
use serde_json::json;

use super::seen::{Composed, Seen};
use super::{Compiled, Counts, Input, Scope, compile, compile_conditions, param_source, params};
use crate::admission::lookup::Prepared;
use crate::admission::matching::{constrained, is_exempt};
use crate::admission::metrics::Metrics;
use crate::admission::{Admit, Attributes};
use crate::auth::Authorizer;
use crate::cel::{Budget, PER_POLICY, Value};
use crate::kinds::Kinds;
use crate::registry::erased::Object;

const GROUP: &str = "admissionregistration.k8s.io";
/// The longest message that an expression may make, in bytes.
const LONGEST_MESSAGE: usize = 5 * 1024;
/// The longest audit annotation, in bytes.
const LONGEST_ANNOTATION: usize = 10 * 1024;
const FAILURES: &str = "validation.policy.admission.k8s.io/validation_failure";

pub struct ValidatingPolicies {
    kinds: Arc<Kinds>,
    authorizer: Authorizer,
    policies: Prepared<Policy>,
    bindings: Prepared<ValidatingAdmissionPolicyBinding>,
    metrics: Arc<Metrics>,
}

/// A policy with its expressions compiled.
struct Policy {
    name: String,
    spec: ValidatingAdmissionPolicySpec,
    conditions: Vec<Compiled>,
    variables: Vec<(String, Compiled)>,
    /// Each with its messageExpression.
    validations: Vec<(Compiled, Option<Compiled>)>,
    annotations: Vec<Compiled>,
}

impl Policy {
    fn new(policy: ValidatingAdmissionPolicy) -> Self {
        let spec = policy.spec.unwrap_or_default();
        let has_params = spec.param_kind.is_some();
        let variables = spec.variables.clone().unwrap_or_default();
        let composed = Composed::new(&variables, Seen::dynamic(has_params).declared());
        let declared = composed.seen_by(Seen::dynamic(has_params).declared());
        let told = Seen { authorizer: false, ..Seen::dynamic(has_params) };
        let told = composed.seen_by(told.declared());
        let validations = spec.validations.as_deref().unwrap_or_default();
        let annotations = spec.audit_annotations.as_deref().unwrap_or_default();
        Policy {
            name: policy.metadata.name.unwrap_or_default(),
            conditions: compile_conditions(spec.match_conditions.as_deref(), &declared),
            variables: composed.compiled,
            validations: validations
                .iter()
                .map(|v| {
                    let message = v.message_expression.as_deref().filter(|m| !m.is_empty());
                    (compile(&v.expression, &declared), message.map(|m| compile(m, &told)))
                })
                .collect(),
            annotations: annotations.iter().map(|a| compile(&a.value_expression, &declared)).collect(),
            spec,
        }
    }

    fn fails(&self) -> bool {
        self.spec.failure_policy.as_deref() != Some("Ignore")
    }
}

/// Why a validation is not satisfied.
struct Denial {
    message: String,
    /// `Invalid` where the policy says nothing.
    reason: Option<String>,
    validation: usize,
    /// What sort of error it is, if it is one, and what it took to find that out: as both are counted.
    error: &'static str,
    took: Duration,
}

impl Denial {
    /// Of a policy as a whole, which could not be asked.
    fn of_policy(message: String) -> Self {
        Denial { message, reason: None, validation: 0, error: "invalid_error", took: Duration::ZERO }
    }
}

/// What a policy says of a request.
#[derive(Default)]
struct Verdict {
    denials: Vec<Denial>,
    /// What could not be told and is let pass, for the policy ignores failures.
    ignored: Vec<Denial>,
    /// Keys and values for the audit log.
    annotations: Vec<(String, String)>,
    /// Audit annotations that have no value, which refuse whatever the binding's actions are.
    errors: Vec<String>,
}

impl Verdict {
    /// It could not be told whether a validation is satisfied.
    fn failed(&mut self, policy: &Policy, message: String, validation: usize, took: Duration) {
        let error = error_type(&message);
        let denials = if policy.fails() { &mut self.denials } else { &mut self.ignored };
        denials.push(Denial { message, reason: None, validation, error, took });
    }
}

fn judge(policy: &Policy, input: &Input, params: &Value, counts: Counts<'_>) -> Verdict {
    let scope = Scope::new(input, params, &policy.variables);
    let mut verdict = Verdict::default();
    let mut began = Instant::now();
    match counts.conditions(&scope, &policy.name, &policy.conditions) {
        Ok(true) => {}
        Ok(false) => return verdict,
        Err(error) => {
            verdict.failed(policy, error, 0, began.elapsed());
            return verdict;
        }
    }
    let mut budget = Budget::new(PER_POLICY);
    let validations = policy.spec.validations.as_deref().unwrap_or_default();
    for (i, ((program, message), validation)) in policy.validations.iter().zip(validations).enumerate() {
        let value = scope.evaluate(program, &mut budget);
        let now = Instant::now();
        let took = now - began;
        began = now;
        match value {
            Ok(Value::Bool(true)) => {}
            Ok(_) => {
                let said = match message.as_ref().map(|m| scope.evaluate(m, &mut budget)) {
                    Some(Err(error)) if budget.left() == 0 => {
                        verdict.failed(policy, format!("failed messageExpression: {error}"), i, took);
                        continue;
                    }
                    said => said.and_then(Result::ok),
                };
                let said = said.as_ref().and_then(Value::as_str).map(str::trim).map(str::to_owned);
                let said = said.filter(|m| !m.is_empty() && m.len() <= LONGEST_MESSAGE && !m.contains('\n'));
                let own = validation.message.as_deref().map(str::trim).filter(|m| !m.is_empty());
                let message = said
                    .or_else(|| own.map(str::to_owned))
                    .unwrap_or_else(|| format!("failed expression: {}", validation.expression.trim()));
                let reason = validation.reason.clone();
                verdict.denials.push(Denial { message, reason, validation: i, error: "invalid_error", took });
            }
            // What was said before it counts for nothing then.
            Err(error) if budget.left() == 0 => {
                verdict = Verdict::default();
                verdict.failed(policy, error, 0, took);
                return verdict;
            }
            Err(error) => verdict.failed(policy, error, i, took),
        }
    }
    let mut budget = Budget::new(PER_POLICY);
    let annotations = policy.spec.audit_annotations.as_deref().unwrap_or_default();
    for (program, annotation) in policy.annotations.iter().zip(annotations) {
        match scope.evaluate(program, &mut budget) {
            Ok(Value::String(value)) if !value.trim().is_empty() => {
                let mut value = value.trim().to_owned();
                let end = (0..=LONGEST_ANNOTATION.min(value.len())).rev().find(|i| value.is_char_boundary(*i));
                value.truncate(end.unwrap_or(0));
                verdict.annotations.push((annotation.key.clone(), value));
            }
            Ok(Value::String(_) | Value::Null) => {}
            Ok(other) => verdict.errors.push(format!(
                "valueExpression '{}' resulted in unsupported return type: {}. Return type must be either string or \
                 null.",
                annotation.value_expression,
                other.type_name()
            )),
            Err(error) if policy.fails() => verdict.errors.push(error),
            Err(_) => {}
        }
    }
    verdict
}

/// What sort of error it is that an expression has no value.
pub(super) fn error_type(message: &str) -> &'static str {
    match message {
        _ if message.contains("compilation") => "compile_error",
        _ if message.contains("out of cost budget") || message.contains("budget exceeded") => "out_of_budget",
        _ => "invalid_error",
    }
}

impl ValidatingPolicies {
    pub fn new(kinds: Arc<Kinds>, authorizer: Authorizer, metrics: Arc<Metrics>) -> Self {
        let (policies, bindings) = (Prepared::default(), Prepared::default());
        ValidatingPolicies { kinds, authorizer, policies, bindings, metrics }
    }
}

/// The refusal that a policy is the reason of.
fn refusal(attributes: &Attributes, policy: &str, binding: Option<&str>, denial: &Denial) -> StatusError {
    let by = binding.map(|b| format!(" with binding '{b}'")).unwrap_or_default();
    let message = format!("ValidatingAdmissionPolicy '{policy}'{by} denied request: {}", denial.message);
    let mut refused = attributes.forbidden(&message);
    let reason = denial.reason.clone().unwrap_or_else(|| "Invalid".to_owned());
    refused.0.code = Some(match reason.as_str() {
        "Forbidden" => 403,
        "Unauthorized" => 401,
        "RequestEntityTooLarge" => 413,
        _ => 422,
    });
    refused.0.reason = Some(reason);
    if let Some(details) = &mut refused.0.details {
        let cause = StatusCause { message: Some(message), ..StatusCause::default() };
        details.causes.get_or_insert_default().push(cause);
    }
    refused
}

#[async_trait]
impl Admit for ValidatingPolicies {
    async fn validate(
        &self,
        attributes: &Attributes,
        object: Option<&dyn Object>,
        old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        if is_exempt(attributes) {
            return Ok(());
        }
        let kinds = &*self.kinds;
        let policies = self.policies.all(kinds, GROUP, "validatingadmissionpolicies", Policy::new).await?;
        if policies.is_empty() {
            return Ok(());
        }
        let bindings = self
            .bindings
            .all(kinds, GROUP, "validatingadmissionpolicybindings", |b: ValidatingAdmissionPolicyBinding| b)
            .await?;
        let (mut refused, mut failures) = (None, Vec::new());
        let mut input: Option<(&'static Kind, Input)> = None;
        for policy in &policies {
            let constraints = policy.spec.match_constraints.as_ref();
            let bound =
                || bindings.iter().map(|b| (b, &b.spec)).filter(|(_, spec)| spec.policy_name == policy.name);
            if bound().next().is_none() {
                continue;
            }
            let Some(kind) = constrained(kinds, attributes, constraints, object, old).await? else {
                continue;
            };
            let source = match param_source(kinds, policy.spec.param_kind.as_ref()) {
                Ok(source) => source,
                Err(why) => {
                    let denial = Denial::of_policy(format!("failed to configure policy: {why}"));
                    let refusal = || refusal(attributes, &policy.name, None, &denial);
                    refused = refused.or_else(|| policy.fails().then(refusal));
                    continue;
                }
            };
            let mut notes: BTreeMap<String, Vec<String>> = BTreeMap::new();
            for (binding, spec) in bound() {
                let constraints = spec.match_resources.as_ref();
                if constrained(kinds, attributes, constraints, object, old).await?.is_none() {
                    continue;
                }
                let name = binding.metadata.name.as_deref().unwrap_or_default();
                let all = match params(source.as_deref(), spec.param_ref.as_ref(), attributes).await {
                    Ok(all) => all,
                    Err(_) if !policy.fails() => continue,
                    Err(why) => {
                        let denial = Denial::of_policy(format!("failed to configure binding: {why}"));
                        refused.get_or_insert_with(|| refusal(attributes, &policy.name, Some(name), &denial));
                        continue;
                    }
                };
                if input.as_ref().is_none_or(|(known, _)| known.gvk() != kind.gvk()) {
                    let new = Input::new(kinds, &self.authorizer, attributes, kind, (object, old)).await?;
                    input = Some((kind, new));
                }
                let Some((_, input)) = &input else { continue };
                let counts = Counts { metrics: &self.metrics, operation: attributes.operation };
                for given in &all {
                    let verdict = judge(policy, input, given, counts);
                    let counted = |denial: &Denial, action: &str| {
                        self.metrics.validated(&policy.name, name, denial.error, action, denial.took);
                    };
                    for ignored in &verdict.ignored {
                        counted(ignored, "allow");
                    }
                    for denial in verdict.denials {
                        for action in &spec.validation_actions {
                            counted(&denial, &action.to_ascii_lowercase());
                            match action.as_str() {
                                "Deny" => {
                                    refused.get_or_insert_with(|| {
                                        refusal(attributes, &policy.name, Some(name), &denial)
                                    });
                                }
                                "Warn" => attributes.warn(format!(
                                    "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{name}': {}",
                                    policy.name, denial.message
                                )),
                                "Audit" => failures.push(json!({
                                    "message": denial.message, "policy": policy.name, "binding": name,
                                    "expressionIndex": denial.validation,
                                    "validationActions": spec.validation_actions,
                                })),
                                _ => {}
                            }
                        }
                    }
                    for message in verdict.errors {
                        let denial = Denial::of_policy(message);
                        counted(&denial, "deny");
                        refused.get_or_insert_with(|| refusal(attributes, &policy.name, Some(name), &denial));
                    }
                    for (key, value) in verdict.annotations {
                        let values = notes.entry(key).or_default();
                        if !values.contains(&value) {
                            values.push(value);
                        }
                    }
                }
            }
            for (key, values) in notes {
                attributes.annotate(&format!("{}/{key}", policy.name), values.join(", "));
            }
        }
        if !failures.is_empty() {
            attributes.annotate(FAILURES, json!(failures).to_string());
        }
        refused.map_or(Ok(()), Err)
    }
}
