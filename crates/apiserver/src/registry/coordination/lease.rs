//! Lease: who holds something, and since when it was last heard of.

use k8s_openapi::api::coordination::v1::Lease;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use crate::registry::column::{age, name, text};
use crate::registry::rules::{not_negative, positive};
use crate::registry::{Column, Strategy};

impl Strategy for Lease {
    const KIND: &'static Kind = &kinds::LEASE;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text("Holder", "io.k8s.api.coordination.v1.LeaseSpec.holderIdentity", |l| {
            l.spec.as_ref().and_then(|s| s.holder_identity.as_deref()).unwrap_or_default().into()
        }),
        age(),
    ];
    const ALLOW_CREATE_ON_UPDATE: bool = true;
    const ALLOW_UNCONDITIONAL_UPDATE: bool = false;

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec");
        let Some(spec) = &self.spec else { return };
        if let Some(seconds) = spec.lease_duration_seconds {
            positive(seconds, &at.child("leaseDurationSeconds"), errors);
        }
        if let Some(transitions) = spec.lease_transitions {
            not_negative(transitions, &at.child("leaseTransitions"), errors);
        }
        if let Some(strategy) = spec.strategy.as_deref() {
            if strategy.is_empty() {
                errors.invalid(&at.child("strategy"), strategy, "must not be empty if specified");
            }
        } else if spec.preferred_holder.as_deref().is_some_and(|p| !p.is_empty()) {
            errors.forbidden(&at.child("preferredHolder"), "must be nil if strategy is not set");
        }
    }
}
