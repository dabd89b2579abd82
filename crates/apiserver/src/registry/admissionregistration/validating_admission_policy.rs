//! ValidatingAdmissionPolicy: what a write must satisfy, in CEL.

use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use super::expressions;
use super::matching::{
    conditions, default_failure_policy, default_match, matching, param_kind, param_kind_text, variables,
};
use crate::admission::policy::seen::Seen;
use crate::cel::Type;
use crate::registry::column::{age, integer, name, text};
use crate::registry::prepare::spec_and_status;
use crate::registry::rules::{each, one_of, qualified_name};
use crate::registry::{Column, Strategy};

impl Strategy for ValidatingAdmissionPolicy {
    const KIND: &'static Kind = &kinds::VALIDATING_ADMISSION_POLICY;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        integer(
            "Validations",
            "Validations indicates the number of validation rules defined in this configuration",
            |p| p.spec.as_ref().and_then(|s| s.validations.as_ref()).map_or(0, Vec::len).into(),
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
        self.status.get_or_insert_default();
    }

    spec_and_status!(generation);

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
        let declared = composed.seen_by(Seen::dynamic(has_params).declared());
        // Messages may not ask the authorizer.
        let told = Seen { authorizer: false, ..Seen::dynamic(has_params) };
        let told = composed.seen_by(told.declared());
        let validations = spec.validations.as_deref().unwrap_or_default();
        let annotations = spec.audit_annotations.as_deref().unwrap_or_default();
        if validations.is_empty() && annotations.is_empty() {
            let detail = "validations or auditAnnotations must contain at least one item";
            errors.required(&at.child("validations"), detail);
            errors.required(&at.child("auditAnnotations"), detail);
        }
        for (i, validation) in validations.iter().enumerate() {
            let at = at.child("validations").index(i);
            if validation.expression.trim().is_empty() {
                errors.required(&at.child("expression"), "expression is not specified");
            }
            let sources = [
                ("expression", Some(&validation.expression), &declared, Type::Bool),
                ("messageExpression", validation.message_expression.as_ref(), &told, Type::String),
            ];
            for (field, source, declared, wanted) in sources {
                let source = source.map(String::as_str).unwrap_or_default();
                expressions::expression(source, declared, &[wanted], &at.child(field), errors);
            }
            if validation.message.as_deref() == Some("") {
                errors.invalid(&at.child("message"), "", "message must be non-empty if specified");
            }
            if let Some(reason) = &validation.reason {
                one_of(
                    reason,
                    &["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"],
                    &at.child("reason"),
                    errors,
                );
            }
        }
        for (i, annotation) in annotations.iter().enumerate() {
            let at = at.child("auditAnnotations").index(i);
            if annotation.key.is_empty() {
                errors.required(&at.child("key"), "");
            } else {
                let key = format!("{}/{}", self.metadata.name.as_deref().unwrap_or_default(), annotation.key);
                each(qualified_name(&key), &key, &at.child("key"), errors);
            }
            let source = &annotation.value_expression;
            let wanted = [Type::String, Type::Null];
            expressions::expression(source, &declared, &wanted, &at.child("valueExpression"), errors);
            if annotation.value_expression.trim().is_empty() {
                errors.required(&at.child("valueExpression"), "valueExpression is not specified");
            }
        }
    }
}
