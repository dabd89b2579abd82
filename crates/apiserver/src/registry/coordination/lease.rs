//! Lease: who holds something, and since when it was last heard of.

use k8s_openapi::api::coordination::v1::Lease;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use crate::registry::column::{age, name, text};
use crate::registry::rules::{label_name, not_negative, one_of, positive};
use crate::registry::{Column, Context, Strategy};

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
        let strategy = spec.strategy.as_deref();
        if let Some(strategy) = strategy {
            // Upstream names the field below itself.
            check_strategy(strategy, &at.child("strategy").child("strategy"), errors);
        }
        let preferred = spec.preferred_holder.as_deref().is_some_and(|holder| !holder.is_empty());
        if preferred && strategy.is_none_or(str::is_empty) {
            errors.forbidden(&at.child("preferredHolder"), "may only be specified if `strategy` is defined");
        }
    }

    fn prepare_for_create(&mut self, _: &Context) {
        drop_coordination(self, None);
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context) {
        drop_coordination(self, Some(old));
    }
}

/// The feature that would bring it, CoordinatedLeaderElection, is off; who has it keeps it.
fn drop_coordination(lease: &mut Lease, old: Option<&Lease>) {
    let Some(spec) = &mut lease.spec else { return };
    let old = old.and_then(|old| old.spec.as_ref());
    if old.is_none_or(|old| old.strategy.is_none()) {
        spec.strategy = None;
    }
    if old.is_none_or(|old| old.preferred_holder.is_none()) {
        spec.preferred_holder = None;
    }
}

fn check_strategy(strategy: &str, at: &FieldPath, errors: &mut FieldErrors) {
    if strategy.contains('/') {
        label_name(strategy, at, errors);
    } else {
        one_of(strategy, &["OldestEmulationVersion"], at, errors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn lease(spec: Value) -> Lease {
        serde_json::from_value(json!({"metadata": {"name": "l"}, "spec": spec})).expect("a lease")
    }

    #[test]
    fn nobody_is_elected_by_strategy() {
        let wish =
            json!({"holderIdentity": "a", "strategy": "OldestEmulationVersion", "preferredHolder": "b"});
        let mut new = lease(wish.clone());
        new.prepare_for_create(&Context::default());
        assert_eq!(new, lease(json!({"holderIdentity": "a"})));
        let mut new = lease(wish.clone());
        new.prepare_for_update(&lease(wish.clone()), &Context::default());
        assert_eq!(new, lease(wish));
    }

    #[test]
    fn a_strategy_is_a_known_one_or_somebodys_own() {
        for (spec, wanted) in [
            (json!({"strategy": "acme.io/foo"}), "[]"),
            (
                json!({"strategy": "Odd"}),
                "spec.strategy.strategy: Unsupported value: \"Odd\": supported values: \"OldestEmulationVersion\"",
            ),
            (
                json!({"preferredHolder": "a"}),
                "spec.preferredHolder: Forbidden: may only be specified if `strategy` is defined",
            ),
        ] {
            let mut errors = FieldErrors::new();
            lease(spec).validate(&FieldPath::new(""), &mut errors);
            assert_eq!(errors.aggregate(), wanted);
        }
    }
}
