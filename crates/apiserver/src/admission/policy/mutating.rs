//! MutatingAdmissionPolicy.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingAdmissionPolicy, MutatingAdmissionPolicyBinding, MutatingAdmissionPolicySpec,
};
use krate_api::patch::{JsonPatch, merge};
use krate_api::{StatusError, schema};
use serde_json::{Value as Json, json};

use super::seen::{Composed, Seen};
use super::validating::error_type;
use super::{Compiled, Counts, Input, Scope, compile, compile_conditions, params};
use crate::admission::lookup::Prepared;
use crate::admission::matching::{constrained, is_exempt};
use crate::admission::metrics::Metrics;
use crate::admission::{Admit, Attributes, put, review};
use crate::auth::Authorizer;
use crate::cel::{Budget, PER_POLICY, Value};
use crate::kinds::Kinds;
use crate::registry::erased::Object;

const GROUP: &str = "admissionregistration.k8s.io";
/// How often the policies that ask for it see what the others have made of the object.
const ROUNDS: usize = 2;

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

impl MutatingPolicies {
    pub fn new(kinds: Arc<Kinds>, authorizer: Authorizer, metrics: Arc<Metrics>) -> Self {
        let (policies, bindings) = (Prepared::default(), Prepared::default());
        MutatingPolicies { kinds, authorizer, policies, bindings, metrics }
    }

    /// Applies one policy by one binding. Whether it was asked at all.
    async fn apply(
        &self,
        attributes: &Attributes,
        (policy, binding): (&Policy, &MutatingAdmissionPolicyBinding),
        object: &mut dyn Object,
        old: Option<&dyn Object>,
    ) -> Result<bool, String> {
        let said = |error: StatusError| error.to_string();
        let kinds = &*self.kinds;
        let spec = binding.spec.clone().unwrap_or_default();
        for constraints in [policy.spec.match_constraints.as_ref(), spec.match_resources.as_ref()] {
            if !constrained(kinds, attributes, constraints, Some(object), old).await.map_err(said)? {
                return Ok(false);
            }
        }
        let all = params(kinds, policy.spec.param_kind.as_ref(), spec.param_ref.as_ref(), attributes).await;
        let all = all.map_err(|why| format!("failed to configure binding: {why}"))?;
        let input = Input::new(kinds, &self.authorizer, attributes, Some(object), old).await.map_err(said)?;
        let mut asked = false;
        for given in &all {
            let mut input = input.with_object(object);
            let scope = Scope::new(&input, given, &policy.variables);
            let counts = Counts { metrics: &self.metrics, operation: attributes.operation };
            if !counts.conditions(&scope, &policy.name, &policy.conditions)? {
                continue;
            }
            asked = true;
            for (is_patch, program) in &policy.mutations {
                let mut budget = Budget::new(PER_POLICY);
                let made = Scope::new(&input, given, &policy.variables).evaluate(program, &mut budget)?;
                let mut json = review::object_json(Some(object));
                change(&mut json, attributes, *is_patch, &made)?;
                put(kinds, attributes, object, &json).map_err(said)?;
                input = input.with_object(object);
            }
        }
        Ok(asked)
    }
}

/// Changes an object as an expression says: by a JSON patch, or by the fields that an apply configuration names.
fn change(json: &mut Json, attributes: &Attributes, is_patch: bool, made: &Value) -> Result<(), String> {
    let wrong = || "the expression gives no JSON".to_owned();
    if is_patch {
        let operations = made.to_json().ok_or_else(wrong)?;
        let bytes = serde_json::to_vec(&operations).map_err(|error| error.to_string())?;
        let patch = JsonPatch::decode(&bytes).map_err(|error| error.to_string())?;
        return patch.apply(json).map_err(|error| format!("error applying JSON Patch: {error}"));
    }
    let Value::Map(map) = made else { return Err(wrong()) };
    if map.type_name.as_deref() != Some("Object") {
        return Err("the expression must evaluate to Object".to_owned());
    }
    let configuration = made.to_json().ok_or_else(wrong)?;
    for field in ["apiVersion", "kind"] {
        if configuration.get(field).is_some_and(|value| json.get(field) != Some(value)) {
            return Err(format!("{field} must not be changed"));
        }
    }
    if ["name", "namespace", "uid"].iter().any(|f| configuration.pointer(&format!("/metadata/{f}")).is_some())
    {
        return Err("metadata.name, metadata.namespace and metadata.uid must not be changed".to_owned());
    }
    // What is named is merged by its schema: lists by their keys, where they have some.
    let Some(schema) = schema::of(attributes.kind.gvk()) else {
        merge(json, configuration);
        return Ok(());
    };
    krate_api::patch::strategic(json, configuration, schema).map_err(|error| error.to_string())
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
        // Only who was asked in the first round is asked again, and only if others changed the object since.
        let mut seen: Vec<(usize, usize, Vec<u8>)> = Vec::new();
        for round in 0..ROUNDS {
            for (p, policy) in policies.iter().enumerate() {
                for (b, binding) in bindings.iter().enumerate() {
                    let of = binding.spec.as_ref().and_then(|spec| spec.policy_name.as_deref());
                    let before = seen.iter().position(|(sp, sb, _)| (*sp, *sb) == (p, b));
                    let again = policy.spec.reinvocation_policy.as_deref() == Some("IfNeeded")
                        && before.is_some_and(|i| seen[i].2 != object.to_json());
                    if of != Some(policy.name.as_str()) || (round > 0 && !again) {
                        continue;
                    }
                    let since = Instant::now();
                    let applied = self.apply(attributes, (policy, binding), object, old).await;
                    let name = binding.metadata.name.as_deref().unwrap_or_default();
                    let error = applied.as_ref().map_or_else(|why| error_type(why), |_| "no_error");
                    if applied != Ok(false) {
                        self.metrics.mutated(&policy.name, name, error, since.elapsed());
                    }
                    match applied {
                        Ok(false) => {}
                        Ok(true) => {
                            let left = object.to_json();
                            match before {
                                Some(i) => seen[i].2 = left,
                                None => seen.push((p, b, left)),
                            }
                        }
                        Err(_) if !policy.fails() => {}
                        Err(why) => return Err(refusal(attributes, &policy.name, name, &why)),
                    }
                }
            }
        }
        Ok(())
    }
}

fn refusal(attributes: &Attributes, policy: &str, binding: &str, why: &str) -> StatusError {
    let message = format!("policy '{policy}' with binding '{binding}' denied request: {why}");
    let mut refused = attributes.forbidden(&message);
    refused.0.message = Some(message.clone());
    if let Some(details) = &mut refused.0.details {
        let cause = serde_json::from_value(json!({"message": message})).unwrap_or_default();
        details.causes.get_or_insert_default().push(cause);
    }
    refused
}
