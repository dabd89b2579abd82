//! ValidatingAdmissionPolicy: what a write must satisfy, in CEL.

use std::collections::BTreeSet;

use k8s_openapi::api::admissionregistration::v1::{AuditAnnotation, ValidatingAdmissionPolicy, Validation};
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use super::expressions;
use super::matching::{
    conditions, default_failure_policy, default_match, matching, name_warnings, param_kind, param_kind_text,
};
use crate::admission::policy::seen::Seen;
use crate::cel::{Declared, Type};
use crate::registry::certificates;
use crate::registry::column::{age, integer, name, text};
use crate::registry::prepare::spec_and_status;
use crate::registry::rules::{each, one_of, qualified_name, required};
use crate::registry::{Column, Strategy};

const MOST_ANNOTATIONS: usize = 20;
/// The longest expression of an annotation's value, in bytes.
const LONGEST: usize = 5 * 1024;

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
    const ALLOW_UNCONDITIONAL_UPDATE: bool = false;

    fn default(&mut self) {
        let spec = self.spec.get_or_insert_default();
        default_failure_policy(&mut spec.failure_policy);
        default_match(spec.match_constraints.as_mut());
        self.status.get_or_insert_default();
    }

    spec_and_status!(generation, status alone);

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
        let has_params = spec.param_kind.is_some();
        conditions(spec.match_conditions.as_deref(), has_params, &at.child("matchConditions"), errors);
        let composed = spec.variables.as_deref().unwrap_or_default();
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
            self::validation(validation, &declared, &told, &at, errors);
        }
        let name = self.metadata.name.as_deref().unwrap_or_default();
        audit_annotations(annotations, name, &declared, &at.child("auditAnnotations"), errors);
    }

    fn validate_status_update(&self, _: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        let Some(status) = &self.status else { return };
        let at = at.child("status");
        let warnings = status.type_checking.as_ref().and_then(|checked| checked.expression_warnings.as_ref());
        let at_warnings = at.child("typeChecking").child("expressionWarnings");
        for (i, warning) in warnings.into_iter().flatten().enumerate() {
            let at = at_warnings.index(i);
            required(Some(&warning.warning), &at.child("warning"), errors);
            required(Some(warning.field_ref.trim()), &at.child("fieldRef"), errors);
        }
        let said = status.conditions.as_deref().unwrap_or_default();
        certificates::conditions(said, &at.child("conditions"), errors);
    }

    fn warnings(&self, _: Option<&Self>) -> Vec<String> {
        name_warnings(self.metadata.name.as_deref())
    }
}

/// `told`: what the expression of its message sees.
fn validation(
    it: &Validation,
    declared: &Declared,
    told: &Declared,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    if it.expression.trim().is_empty() {
        errors.required(&at.child("expression"), "expression is not specified");
    }
    expressions::expression(&it.expression, declared, &[Type::Bool], &at.child("expression"), errors);
    let blank = "must be non-empty if specified";
    if let Some(source) = it.message_expression.as_deref().filter(|source| !source.is_empty()) {
        let at = at.child("messageExpression");
        if source.trim().is_empty() {
            errors.invalid(&at, source, blank);
        }
        expressions::expression(source, told, &[Type::String], &at, errors);
    }
    if let Some(message) = it.message.as_deref().filter(|message| !message.is_empty()) {
        let at = at.child("message");
        if message.trim().is_empty() {
            errors.invalid(&at, message, blank);
        } else if message.trim().contains(['\n', '\r']) {
            errors.invalid(&at, message, "must not contain line breaks");
        }
    }
    if let Some(reason) = &it.reason {
        one_of(reason, &["Forbidden", "Invalid", "RequestEntityTooLarge"], &at.child("reason"), errors);
    }
}

/// `name`: the policy's, which stands before each key.
fn audit_annotations(
    all: &[AuditAnnotation],
    name: &str,
    declared: &Declared,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    if all.len() > MOST_ANNOTATIONS {
        errors.invalid(at, all, format!("must not have more than {MOST_ANNOTATIONS} auditAnnotations"));
    }
    let mut known = BTreeSet::new();
    for (i, annotation) in all.iter().enumerate() {
        let at = at.index(i);
        let at_key = at.child("key");
        if name.is_empty() {
            errors.invalid(&at_key, &annotation.key, "requires metadata.name be non-empty");
        } else {
            let key = format!("{name}/{}", annotation.key);
            each(qualified_name(&key), &key, &at_key, errors);
        }
        let at_value = at.child("valueExpression");
        let source = annotation.value_expression.trim();
        if source.is_empty() {
            errors.required(&at_value, "valueExpression is not specified");
        } else if source.len() > LONGEST {
            errors.required(&at_value, format!("must not exceed {LONGEST} bytes in length"));
        } else {
            let wanted = [Type::String, Type::Null];
            expressions::expression(source, declared, &wanted, &at_value, errors);
        }
        if !known.insert(&annotation.key) {
            errors.duplicate(&at_key, &annotation.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Context;
    use serde_json::{Value, json};

    fn policy(change: Value) -> ValidatingAdmissionPolicy {
        let mut spec = json!({"matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"],
            "operations": ["CREATE"], "resources": ["pods"]}]}});
        for (key, value) in change.as_object().expect("fields") {
            spec[key] = value.clone();
        }
        let all = json!({"metadata": {"name": "p", "labels": {"a": "1"}}, "spec": spec});
        let mut policy: ValidatingAdmissionPolicy = serde_json::from_value(all).expect("a policy");
        policy.default();
        policy
    }

    fn told(change: Value) -> Vec<String> {
        let mut errors = FieldErrors::new();
        policy(change).validate(&FieldPath::new(""), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_validation_says_what_it_says_in_a_line() {
        let with = |validation: Value| json!({"validations": [validation]});
        assert_eq!(told(with(json!({"expression": "true", "message": "no", "reason": "Invalid"}))), [""; 0]);
        let at = "spec.validations[0]";
        assert_eq!(
            told(with(json!({"expression": "true", "message": "a\nb", "messageExpression": " "}))),
            [
                format!("{at}.messageExpression: Invalid value: \" \": must be non-empty if specified"),
                format!("{at}.message: Invalid value: \"a\\nb\": must not contain line breaks"),
            ]
        );
        assert_eq!(
            told(with(json!({"expression": "true", "reason": "Unauthorized"}))),
            [format!(
                "{at}.reason: Unsupported value: \"Unauthorized\": supported values: \"Forbidden\", \"Invalid\", \
                 \"RequestEntityTooLarge\""
            )]
        );
    }

    #[test]
    fn audit_annotations_have_keys_of_their_own() {
        let annotation = |key: &str| json!({"key": key, "valueExpression": "'a'"});
        assert_eq!(told(json!({"auditAnnotations": [annotation("a"), annotation("b")]})), [""; 0]);
        assert_eq!(
            told(json!({"auditAnnotations": [annotation("a"), annotation("a")]})),
            ["spec.auditAnnotations[1].key: Duplicate value: \"a\""]
        );
        let long = json!({"key": "a", "valueExpression": format!("'{}'", "x".repeat(LONGEST))});
        assert_eq!(
            told(json!({"auditAnnotations": [long]})),
            [
                "spec.auditAnnotations[0].valueExpression: Required value: must not exceed 5120 bytes in length"
            ]
        );
    }

    #[test]
    fn who_writes_the_status_writes_nothing_else() {
        let (mut new, old) = (policy(json!({})), policy(json!({})));
        new.metadata.labels = None;
        let warnings = json!({"typeChecking": {"expressionWarnings": [{"fieldRef": " ", "warning": ""}]}});
        new.status = serde_json::from_value(warnings).expect("a status");
        new.prepare_for_status_update(&old, &Context::default());
        assert_eq!(new.metadata.labels, old.metadata.labels);
        let mut errors = FieldErrors::new();
        new.validate_status_update(&old, &FieldPath::new(""), &mut errors);
        let at = "status.typeChecking.expressionWarnings[0]";
        assert_eq!(
            errors.aggregate(),
            format!("[{at}.warning: Required value, {at}.fieldRef: Required value]")
        );
    }
}
