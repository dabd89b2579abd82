//! MutatingAdmissionPolicy.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingAdmissionPolicy, MutatingAdmissionPolicyBinding, MutatingAdmissionPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::StatusCause;
use krate_api::{Kind, Reason, StatusError};

use super::change::{applied, patched};
use super::seen::{Composed, Seen};
use super::validating::error_type;
use super::{Compiled, Counts, Input, Scope, compile, compile_conditions, param_source, params};
use crate::admission::lookup::Prepared;
use crate::admission::matching::{constrained, is_exempt};
use crate::admission::metrics::Metrics;
use crate::admission::versions::{put, told};
use crate::admission::{Admit, Asked, Attributes};
use crate::auth::Authorizer;
use crate::cel::{Budget, PER_POLICY, Value};
use crate::kinds::Kinds;
use crate::registry::erased::Object;

const GROUP: &str = "admissionregistration.k8s.io";

pub struct MutatingPolicies {
    kinds: Arc<Kinds>,
    authorizer: Authorizer,
    policies: Prepared<Policy>,
    bindings: Prepared<MutatingAdmissionPolicyBinding>,
    metrics: Arc<Metrics>,
}

struct Policy {
    name: String,
    spec: MutatingAdmissionPolicySpec,
    conditions: Vec<Compiled>,
    variables: Vec<(String, Compiled)>,
    /// Each with whether it is a JSON patch.
    mutations: Vec<(bool, Compiled)>,
}

impl Policy {
    fn new(policy: MutatingAdmissionPolicy) -> Self {
        let spec = policy.spec.unwrap_or_default();
        let has_params = spec.param_kind.is_some();
        let variables = spec.variables.clone().unwrap_or_default();
        let composed = Composed::new(&variables, Seen::dynamic(has_params).declared());
        let declared = composed.seen_by(Seen::dynamic(has_params).declared());
        let making = declared.clone().making_objects();
        let mutations = spec.mutations.iter().flatten().map(|m| {
            let apply = m.apply_configuration.as_ref().and_then(|a| a.expression.as_deref());
            let patch = m.json_patch.as_ref().and_then(|p| p.expression.as_deref());
            (m.patch_type == "JSONPatch", compile(apply.or(patch).unwrap_or_default(), &making))
        });
        Policy {
            name: policy.metadata.name.unwrap_or_default(),
            conditions: compile_conditions(spec.match_conditions.as_deref(), &declared),
            variables: composed.compiled,
            mutations: mutations.collect(),
            spec,
        }
    }

    fn fails(&self) -> bool {
        self.spec.failure_policy.as_deref() != Some("Ignore")
    }
}

/// A policy that is to change an object, by one of its bindings and with one of its parameters.
struct Invocation<'a> {
    policy: &'a Policy,
    binding: &'a str,
    /// As which the object is told.
    kind: &'static Kind,
    param: Value,
    /// What it is known by among all.
    id: String,
}

/// Why a policy does not change an object.
#[derive(Debug, PartialEq, Eq)]
struct Fault {
    message: String,
    /// None where it could not be asked.
    reason: Option<Reason>,
}

/// What is wrong, as far as policies do not say that it is to be passed over.
#[derive(Default)]
struct Faults(Vec<Fault>);

impl Faults {
    fn configuration(&mut self, policy: &Policy, binding: Option<&str>, why: impl std::fmt::Display) {
        let what = if binding.is_some() { "binding" } else { "policy" };
        self.add(policy, binding, &format!("failed to configure {what}: {why}"), None);
    }

    fn add(&mut self, policy: &Policy, binding: Option<&str>, why: &str, reason: Option<Reason>) {
        if !policy.fails() {
            return;
        }
        let message = match binding {
            Some(binding) => {
                format!("policy '{}' with binding '{binding}' denied request: {why}", policy.name)
            }
            None => format!("policy {:?} denied request: {why}", policy.name),
        };
        self.0.push(Fault { message, reason });
    }

    /// The refusal that they are the reason of; the first of them says it.
    fn refusal(&self, attributes: &Attributes) -> Result<(), StatusError> {
        let Some(first) = self.0.first() else { return Ok(()) };
        let mut refused = attributes.forbidden("");
        refused.0.message = Some(first.message.clone());
        if let Some(reason) = first.reason {
            // As upstream, the code stays that of what is forbidden.
            refused.0.reason = Some(reason.as_str().to_owned());
        }
        if let Some(details) = &mut refused.0.details {
            let cause = |fault: &Fault| StatusCause {
                message: Some(fault.message.clone()),
                ..StatusCause::default()
            };
            details.causes = Some(self.0.iter().map(cause).collect());
        }
        Err(refused)
    }
}

/// Why a mutation is not made.
enum Failed {
    /// The failure policy decides what it means.
    Policy(String),
    Always(StatusError),
}

impl MutatingPolicies {
    pub fn new(kinds: Arc<Kinds>, authorizer: Authorizer, metrics: Arc<Metrics>) -> Self {
        let (policies, bindings) = (Prepared::default(), Prepared::default());
        MutatingPolicies { kinds, authorizer, policies, bindings, metrics }
    }

    /// Who is to change an object, as it is before anyone has changed it.
    async fn invocations<'a>(
        &self,
        attributes: &Attributes,
        (policies, bindings): (&'a [Arc<Policy>], &'a [Arc<MutatingAdmissionPolicyBinding>]),
        object: &dyn Object,
        old: Option<&dyn Object>,
        faults: &mut Faults,
    ) -> Vec<Invocation<'a>> {
        let kinds = &*self.kinds;
        let mut all = Vec::new();
        for policy in policies {
            let specs = bindings.iter().filter_map(|binding| Some((binding, binding.spec.as_ref()?)));
            let bound: Vec<_> =
                specs.filter(|(_, spec)| spec.policy_name.as_ref() == Some(&policy.name)).collect();
            if bound.is_empty() {
                continue;
            }
            let constraints = policy.spec.match_constraints.as_ref();
            let kind = match constrained(kinds, attributes, constraints, Some(object), old).await {
                Ok(Some(kind)) => kind,
                Ok(None) => continue,
                Err(why) => {
                    faults.configuration(policy, None, why);
                    continue;
                }
            };
            let source = match param_source(kinds, policy.spec.param_kind.as_ref()) {
                Ok(source) => source,
                Err(why) => {
                    faults.configuration(policy, None, why);
                    continue;
                }
            };
            for (binding, spec) in bound {
                let name = binding.metadata.name.as_deref().unwrap_or_default();
                let constraints = spec.match_resources.as_ref();
                match constrained(kinds, attributes, constraints, Some(object), old).await {
                    Ok(Some(_)) => {}
                    Ok(None) => continue,
                    Err(why) => {
                        faults.configuration(policy, Some(name), why);
                        continue;
                    }
                }
                match params(source.as_deref(), spec.param_ref.as_ref(), attributes).await {
                    Ok(found) => all.extend(found.into_iter().enumerate().map(|(i, param)| {
                        let id = format!("{}/{name}/{i}", policy.name);
                        Invocation { policy, binding: name, kind, param, id }
                    })),
                    Err(why) => faults.configuration(policy, Some(name), why),
                }
            }
        }
        all
    }

    /// Makes one mutation.
    async fn change(
        &self,
        attributes: &Attributes,
        invocation: &Invocation<'_>,
        (is_patch, program): (bool, &Compiled),
        input: &Input,
        object: &mut dyn Object,
    ) -> Result<(), Failed> {
        let (kinds, kind) = (&*self.kinds, invocation.kind);
        let mut budget = Budget::new(PER_POLICY);
        let made = Scope::new(input, &invocation.param, &invocation.policy.variables)
            .evaluate(program, &mut budget)
            .map_err(Failed::Policy)?;
        let json = told(kinds, attributes, kind, Some(object)).await.map_err(Failed::Always)?;
        let new = if is_patch {
            patched(&json, &made).map_err(Failed::Policy)?
        } else {
            let storage = kinds.at(kind.group, kind.version, kind.plural);
            let schema = match attributes.body {
                Some(body) => krate_api::schema::of(body.kind),
                None => storage.as_ref().and_then(|storage| storage.registry.schema()),
            };
            Some(applied(&json, &made, schema).map_err(Failed::Policy)?)
        };
        let Some(new) = new else { return Ok(()) };
        put(kinds, attributes, kind, object, &new)
            .await
            .map_err(|error| if is_patch { Failed::Always(error) } else { Failed::Policy(error.to_string()) })
    }

    /// Lets one policy change an object. Whether any of its mutations was made.
    async fn apply(
        &self,
        attributes: &Attributes,
        invocation: &Invocation<'_>,
        input: &mut Input,
        object: &mut dyn Object,
        faults: &mut Faults,
    ) -> Result<bool, StatusError> {
        let (kinds, kind, policy) = (&*self.kinds, invocation.kind, invocation.policy);
        let counts = Counts { metrics: &self.metrics, operation: attributes.operation };
        let holds = {
            let scope = Scope::new(input, &invocation.param, &policy.variables);
            counts.conditions(&scope, &policy.name, &policy.conditions)
        };
        match holds {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(why) => {
                faults.add(policy, Some(invocation.binding), &why, Some(Reason::Invalid));
                return Ok(false);
            }
        }
        if attributes.round() > 0 && !attributes.is_due(Asked::Policies, &invocation.id) {
            return Ok(false);
        }
        let before = object.to_json();
        let mut is_made = false;
        for (is_patch, program) in &policy.mutations {
            let since = Instant::now();
            let made = self.change(attributes, invocation, (*is_patch, program), input, object).await;
            let error = match &made {
                Ok(()) => "no_error",
                Err(Failed::Policy(why)) => error_type(why),
                Err(Failed::Always(_)) => "invalid_error",
            };
            self.metrics.mutated(&policy.name, invocation.binding, error, since.elapsed());
            match made {
                Ok(()) => {
                    is_made = true;
                    *input = input.with_object(&told(kinds, attributes, kind, Some(object)).await?);
                }
                Err(Failed::Policy(why)) => {
                    faults.add(policy, Some(invocation.binding), &why, Some(Reason::Invalid));
                }
                Err(Failed::Always(refused)) => return Err(refused),
            }
        }
        let wants_again = policy.spec.reinvocation_policy.as_deref() == Some("IfNeeded");
        attributes.was_asked(Asked::Policies, &invocation.id, object.to_json() != before, wants_again);
        Ok(is_made)
    }
}

#[async_trait]
impl Admit for MutatingPolicies {
    async fn mutate(
        &self,
        attributes: &Attributes,
        object: &mut dyn Object,
        old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        if is_exempt(attributes) {
            return Ok(());
        }
        let kinds = &*self.kinds;
        let policies = self.policies.all(kinds, GROUP, "mutatingadmissionpolicies", Policy::new).await?;
        if policies.is_empty() {
            return Ok(());
        }
        let make = |binding: MutatingAdmissionPolicyBinding| binding;
        let bindings = self.bindings.all(kinds, GROUP, "mutatingadmissionpolicybindings", make).await?;
        let mut faults = Faults::default();
        let all = (policies.as_slice(), bindings.as_slice());
        let invocations = self.invocations(attributes, all, &*object, old, &mut faults).await;
        if !invocations.is_empty() {
            if attributes.round() > 0 {
                attributes.begin(Asked::Policies, &object.to_json());
            }
            let (mut is_made, mut known) = (false, None);
            for invocation in &invocations {
                let kind = invocation.kind;
                let mut input = match known.take() {
                    Some((of, input)) if of == kind.gvk() => input,
                    _ => {
                        let objects = (Some(&*object), old);
                        Input::new(kinds, &self.authorizer, attributes, kind, objects).await?
                    }
                };
                is_made |= self.apply(attributes, invocation, &mut input, object, &mut faults).await?;
                known = Some((kind.gvk(), input));
            }
            attributes.end(Asked::Policies, object.to_json(), is_made);
        }
        faults.refusal(attributes)
    }
}

#[cfg(test)]
mod tests {
    use krate_api::kinds;
    use serde_json::json;

    use super::*;
    use crate::admission::Operation;

    fn policy(failure: &str) -> Policy {
        let policy = json!({"metadata": {"name": "p"}, "spec": {"failurePolicy": failure}});
        Policy::new(serde_json::from_value(policy).expect("a policy"))
    }

    #[test]
    fn all_that_is_wrong_is_told_and_the_first_of_it_says_why() {
        let attributes = Attributes::for_test(Operation::Create, &kinds::POD, "", "ns", "x");
        let mut faults = Faults::default();
        faults.add(&policy("Ignore"), Some("b"), "nobody minds", Some(Reason::Invalid));
        assert!(faults.refusal(&attributes).is_ok());
        faults.add(&policy("Fail"), Some("b"), "no", Some(Reason::Invalid));
        faults.configuration(&policy("Fail"), None, "nothing known");
        let refused = faults.refusal(&attributes).expect_err("a refusal");
        let first = "policy 'p' with binding 'b' denied request: no";
        assert_eq!(refused.to_string(), first);
        assert_eq!((refused.code(), refused.0.reason.as_deref()), (403, Some("Invalid")));
        let causes = refused.0.details.and_then(|details| details.causes).unwrap_or_default();
        let messages: Vec<_> = causes.into_iter().filter_map(|cause| cause.message).collect();
        let second = "policy \"p\" denied request: failed to configure policy: nothing known";
        assert_eq!(messages, [first, second]);
    }
}
