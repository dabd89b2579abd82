//! ValidatingAdmissionPolicyBinding: where a policy holds, with which parameters.

use std::collections::BTreeSet;

use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicyBinding;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use super::matching::{default_match, matching, name_warnings, param_ref, param_ref_text, policy_name};
use crate::registry::column::{age, name, text};
use crate::registry::prepare::counted;
use crate::registry::rules::one_of;
use crate::registry::{Column, Strategy};

impl Strategy for ValidatingAdmissionPolicyBinding {
    const KIND: &'static Kind = &kinds::VALIDATING_ADMISSION_POLICY_BINDING;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text(
            "PolicyName",
            "PolicyName indicates the policy definition which the policy binding binded to",
            |b| b.spec.policy_name.as_str().into(),
        ),
        text("ParamRef", "ParamRef indicates the param resource which sets the configuration param", |b| {
            param_ref_text(b.spec.param_ref.as_ref())
        }),
        age(),
    ];
    const ALLOW_UNCONDITIONAL_UPDATE: bool = false;

    fn default(&mut self) {
        default_match(self.spec.match_resources.as_mut());
    }

    counted!(spec);

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec");
        let spec = &self.spec;
        policy_name(&spec.policy_name, &at.child("policyName"), errors);
        param_ref(spec.param_ref.as_ref(), &at.child("paramRef"), errors);
        if let Some(m) = &spec.match_resources {
            matching(m, &at.child("matchResources"), errors);
        }
        let at = at.child("validationActions");
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        for (i, action) in spec.validation_actions.iter().enumerate() {
            one_of(action, &["Audit", "Deny", "Warn"], &at.index(i), errors);
            if !seen.insert(action.as_str()) {
                errors.duplicate(&at.index(i), action);
            }
        }
        if seen.contains("Deny") && seen.contains("Warn") {
            errors.invalid(
                &at,
                &spec.validation_actions,
                "must not contain both Deny and Warn (repeating the same validation failure information in the API \
                 response and headers serves no purpose)",
            );
        }
        if seen.is_empty() {
            errors.required(&at, "at least one validation action is required");
        }
    }

    fn warnings(&self, _: Option<&Self>) -> Vec<String> {
        name_warnings(self.metadata.name.as_deref())
    }
}
