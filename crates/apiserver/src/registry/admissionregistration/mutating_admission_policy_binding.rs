//! MutatingAdmissionPolicyBinding: where a policy changes writes, with which parameters.

use k8s_openapi::api::admissionregistration::v1::MutatingAdmissionPolicyBinding;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use super::matching::{default_match, matching, param_ref, param_ref_text};
use crate::registry::column::{age, name, text};
use crate::registry::prepare::counted;
use crate::registry::rules::required;
use crate::registry::{Column, Strategy};

impl Strategy for MutatingAdmissionPolicyBinding {
    const KIND: &'static Kind = &kinds::MUTATING_ADMISSION_POLICY_BINDING;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text("PolicyName", "The policy.", |b| {
            b.spec.as_ref().and_then(|s| s.policy_name.as_deref()).unwrap_or_default().into()
        }),
        text("ParamRef", "The object with its parameters.", |b| {
            param_ref_text(b.spec.as_ref().and_then(|s| s.param_ref.as_ref()))
        }),
        age(),
    ];

    fn default(&mut self) {
        default_match(self.spec.get_or_insert_default().match_resources.as_mut());
    }

    counted!(spec);

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec");
        let Some(spec) = &self.spec else { return };
        required(spec.policy_name.as_deref(), &at.child("policyName"), errors);
        param_ref(spec.param_ref.as_ref(), &at.child("paramRef"), errors);
        if let Some(m) = &spec.match_resources {
            matching(m, &at.child("matchResources"), errors);
        }
    }
}
