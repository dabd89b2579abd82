//! MutatingAdmissionPolicy: how a write is changed, in CEL.

use k8s_openapi::api::admissionregistration::v1::MutatingAdmissionPolicy;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use super::expressions;
use super::matching::{
    conditions, default_failure_policy, default_match, matching, param_kind, param_kind_text, variables,
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
            }
        }
        conditions(spec.match_conditions.as_deref(), &at.child("matchConditions"), errors);
        variables(spec.variables.as_deref(), &at.child("variables"), errors);
        let has_params = spec.param_kind.is_some();
        let composed = spec.variables.as_deref().unwrap_or_default();
        expressions::conditions(
            spec.match_conditions.as_deref(),
            has_params,
            &at.child("matchConditions"),
            errors,
        );
        let composed = expressions::variables(composed, has_params, &at.child("variables"), errors);
        let declared = composed.seen_by(Seen::dynamic(has_params).declared()).making_objects();
        match spec.reinvocation_policy.as_deref().unwrap_or_default() {
            "" => errors.required(&at.child("reinvocationPolicy"), ""),
            policy => one_of(policy, &["IfNeeded", "Never"], &at.child("reinvocationPolicy"), errors),
        }
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
            if other.is_some() {
                errors.forbidden(
                    &at.child(other_field),
                    format!("must not be set when patchType is {}", mutation.patch_type),
                );
            }
            match wanted {
                None => errors.required(
                    &at.child(field),
                    format!("must be specified when patchType is {}", mutation.patch_type),
                ),
                Some("") => {
                    errors.required(&at.child(field).child("expression"), "expression is not specified");
                }
                Some(source) => {
                    let wanted = match field {
                        "jsonPatch" => Type::list(Type::anything("JSONPatch")),
                        _ => Type::anything("Object"),
                    };
                    let at = at.child(field).child("expression");
                    expressions::expression(source, &declared, &[wanted], &at, errors);
                }
            }
        }
    }
}
