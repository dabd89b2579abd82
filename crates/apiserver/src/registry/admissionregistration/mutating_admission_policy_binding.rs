//! MutatingAdmissionPolicyBinding: where a policy changes writes, with which parameters.

use k8s_openapi::api::admissionregistration::v1::MutatingAdmissionPolicyBinding;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use super::matching::{
    default_match, matching, mutable, name_warnings, param_ref, param_ref_text, policy_name,
};
use crate::registry::column::{age, name, text};
use crate::registry::prepare::counted;
use crate::registry::{Column, Strategy};

impl Strategy for MutatingAdmissionPolicyBinding {
    const KIND: &'static Kind = &kinds::MUTATING_ADMISSION_POLICY_BINDING;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text(
            "PolicyName",
            "PolicyName indicates the policy definition which the policy binding binded to",
            |b| b.spec.as_ref().and_then(|s| s.policy_name.as_deref()).unwrap_or_default().into(),
        ),
        text("ParamRef", "ParamRef indicates the param resource which sets the configuration param", |b| {
            param_ref_text(b.spec.as_ref().and_then(|s| s.param_ref.as_ref()))
        }),
        age(),
    ];
    const ALLOW_UNCONDITIONAL_UPDATE: bool = false;

    fn default(&mut self) {
        default_match(self.spec.get_or_insert_default().match_resources.as_mut());
    }

    counted!(spec);

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec");
        let Some(spec) = &self.spec else { return };
        policy_name(spec.policy_name.as_deref().unwrap_or_default(), &at.child("policyName"), errors);
        param_ref(spec.param_ref.as_ref(), &at.child("paramRef"), errors);
        if let Some(m) = &spec.match_resources {
            matching(m, &at.child("matchResources"), errors);
            mutable(m, &at.child("matchResources"), errors);
        }
    }

    fn warnings(&self, _: Option<&Self>) -> Vec<String> {
        name_warnings(self.metadata.name.as_deref())
    }
}
