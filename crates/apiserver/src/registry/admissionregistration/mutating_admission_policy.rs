//! MutatingAdmissionPolicy: how a write is changed, in CEL.

use k8s_openapi::api::admissionregistration::v1::MutatingAdmissionPolicy;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use super::expressions;
use super::matching::{
    conditions, default_failure_policy, default_match, matching, mutable, name_warnings, param_kind,
    param_kind_text,
};
use crate::admission::policy::seen::Seen;
use crate::cel::Type;
use crate::registry::column::{age, integer, name, text};
use crate::registry::prepare::counted;
use crate::registry::rules::one_of;
use crate::registry::{Column, Strategy};

impl Strategy for MutatingAdmissionPolicy {
    const KIND: &'static Kind = &kinds::MUTATING_ADMISSION_POLICY;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        integer(
            "Mutations",
            "Mutation indicates the number of mutations rules defined in this configuration",
            |p| p.spec.as_ref().and_then(|s| s.mutations.as_ref()).map_or(0, Vec::len).into(),
        ),
        text(
            "ParamKind",
            "ParamKind specifies the kind of resources used to parameterize this policy",
            |p| param_kind_text(p.spec.as_ref().and_then(|s| s.param_kind.as_ref())),
        ),
        age(),
    ];
    const ALLOW_UNCONDITIONAL_UPDATE: bool = false;

    fn default(&mut self) {
        let spec = self.spec.get_or_insert_default();
        default_failure_policy(&mut spec.failure_policy);
        default_match(spec.match_constraints.as_mut());
    }

    counted!(spec);

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec");
        let Some(spec) = &self.spec else { return };
        if let Some(policy) = &spec.failure_policy {
            one_of(policy, &["Fail", "Ignore"], &at.child("failurePolicy"), errors);
        }
        param_kind(spec.param_kind.as_ref(), &at.child("paramKind"), errors);
        match &spec.match_constraints {
            None => errors.required(&at.child("matchConstraints"), ""),
            Some(m) => {
                matching(m, &at.child("matchConstraints"), errors);
                if m.resource_rules.as_ref().is_none_or(Vec::is_empty) {
                    errors.required(&at.child("matchConstraints").child("resourceRules"), "");
                }
                mutable(m, &at.child("matchConstraints"), errors);
            }
        }
        let has_params = spec.param_kind.is_some();
        conditions(spec.match_conditions.as_deref(), has_params, &at.child("matchConditions"), errors);
        let composed = spec.variables.as_deref().unwrap_or_default();
        let composed = expressions::variables(composed, has_params, &at.child("variables"), errors);
        let declared = composed.seen_by(Seen::dynamic(has_params).declared()).making_objects();
        let mutations = spec.mutations.as_deref().unwrap_or_default();
        if mutations.is_empty() {
            errors.required(&at.child("mutations"), "mutations must contain at least one item");
        }
        for (i, mutation) in mutations.iter().enumerate() {
            let at = at.child("mutations").index(i);
            let apply =
                mutation.apply_configuration.as_ref().map(|a| a.expression.as_deref().unwrap_or_default());
            let patch = mutation.json_patch.as_ref().map(|p| p.expression.as_deref().unwrap_or_default());
            let (field, wanted, other_field, other) = match mutation.patch_type.as_str() {
                "ApplyConfiguration" => ("applyConfiguration", apply, "jsonPatch", patch),
                "JSONPatch" => ("jsonPatch", patch, "applyConfiguration", apply),
                "" => {
                    errors.required(&at.child("patchType"), "");
                    continue;
                }
                odd => {
                    one_of(odd, &["ApplyConfiguration", "JSONPatch"], &at.child("patchType"), errors);
                    continue;
                }
            };
            let at_expression = at.child(field).child("expression");
            match wanted.map(str::trim) {
                None => errors.required(
                    &at.child(field),
                    format!("must be specified when patchType is {}", mutation.patch_type),
                ),
                Some("") => errors.required(&at_expression, ""),
                Some(source) => {
                    let wanted = match field {
                        "jsonPatch" => Type::list(Type::anything("JSONPatch")),
                        _ => Type::anything("Object"),
                    };
                    expressions::expression(source, &declared, &[wanted], &at_expression, errors);
                }
            }
            if other.is_some() {
                errors.invalid(
                    &at.child(other_field),
                    format!("{{{other_field}}}"),
                    format!("must not be specified when patchType is {}", mutation.patch_type),
                );
            }
        }
        match spec.reinvocation_policy.as_deref().unwrap_or_default() {
            "" => errors.required(&at.child("reinvocationPolicy"), ""),
            policy => one_of(policy, &["IfNeeded", "Never"], &at.child("reinvocationPolicy"), errors),
        }
    }

    fn warnings(&self, _: Option<&Self>) -> Vec<String> {
        name_warnings(self.metadata.name.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_mutation_is_of_one_type_and_of_nothing_that_is_deleted() {
        let spec = json!({
            "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"],
                "operations": ["DELETE"], "resources": ["pods"]}]},
            "mutations": [{"patchType": "JSONPatch",
                "jsonPatch": {"expression": "[JSONPatch{op: 'remove', path: '/a'}]"},
                "applyConfiguration": {"expression": "Object{}"}}]});
        let mut policy: MutatingAdmissionPolicy =
            serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).expect("a policy");
        policy.default();
        let mut errors = FieldErrors::new();
        policy.validate(&FieldPath::new(""), &mut errors);
        let told: Vec<_> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 3, "{told:?}");
        assert_eq!(
            told[0],
            "spec.matchConstraints.resourceRules.operations: Unsupported value: \"DELETE\": supported values: \
             \"*\", \"CONNECT\", \"CREATE\", \"UPDATE\""
        );
        assert_eq!(
            told[1],
            "spec.mutations[0].applyConfiguration: Invalid value: \"{applyConfiguration}\": must not be specified \
             when patchType is JSONPatch"
        );
        assert_eq!(told[2], "spec.reinvocationPolicy: Required value");
    }
}
