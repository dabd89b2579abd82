//! ResourceClaim: devices that are asked for.

use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimStatus};
use krate_api::{FieldErrors, FieldPath, Kind, kinds};
use serde_json::Value;

use super::claim_status;
use super::devices::{default_spec, validate_spec};
use super::taints::default_tolerations;
use crate::registry::column::{age, name, text};
use crate::registry::prepare::{differ, keep_metadata};
use crate::registry::rules::IMMUTABLE;
use crate::registry::{Column, Context, Strategy};

impl Strategy for ResourceClaim {
    const KIND: &'static Kind = &kinds::RESOURCE_CLAIM;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text("State", "A summary of the current state (allocated, pending, reserved, etc.).", state),
        age(),
    ];

    fn default(&mut self) {
        default_spec(&mut self.spec);
        let status = self.status.get_or_insert_default();
        let devices = status.allocation.iter_mut().flat_map(|allocation| allocation.devices.iter_mut());
        for result in devices.flat_map(|devices| devices.results.iter_mut().flatten()) {
            default_tolerations(&mut result.tolerations);
        }
    }

    fn prepare_for_create(&mut self, _: &Context) {
        self.status = Some(ResourceClaimStatus::default());
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context) {
        self.status.clone_from(&old.status);
    }

    fn prepare_for_status_update(&mut self, old: &Self, _: &Context) {
        self.spec.clone_from(&old.spec);
        keep_metadata(&mut self.metadata, &old.metadata);
        if let (Some(new), Some(old)) = (&mut self.status, &old.status) {
            claim_status::drop_deallocated(new, old);
        }
    }

    fn validate(&self, _: &FieldPath, _: &mut FieldErrors) {}

    fn validate_new(&self, at: &FieldPath, errors: &mut FieldErrors) {
        validate_spec(&self.spec, &at.child("spec"), errors);
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        if differ(&self.spec, &old.spec) {
            errors.invalid(&at.child("spec"), &self.spec, IMMUTABLE);
        }
    }

    fn validate_status_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        claim_status::validate(self, old, &at.child("status"), errors);
    }
}

fn state(claim: &ResourceClaim) -> Value {
    let status = claim.status.as_ref();
    let mut words = Vec::new();
    if claim.metadata.deletion_timestamp.is_some() {
        words.push("deleted");
    }
    if status.is_some_and(|s| s.allocation.is_some()) {
        words.push("allocated");
        if status.and_then(|s| s.reserved_for.as_ref()).is_some_and(|r| !r.is_empty()) {
            words.push("reserved");
        }
    } else if words.is_empty() {
        words.push("pending");
    }
    words.join(",").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn claim(label: &str, class: &str) -> ResourceClaim {
        serde_json::from_value(json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
            "metadata": {"name": "c", "namespace": "n", "labels": {"a": label}},
            "spec": {"devices": {"requests": [{"name": "one", "exactly": {"deviceClassName": class}}]}},
            "status": {"allocation": {"devices": {"results": [
                {"request": "one", "driver": "d", "pool": "p", "device": "a", "tolerations": [{}]}]}}}}))
        .expect("a claim")
    }

    #[test]
    fn a_claim_is_asked_for_once() {
        let told = |new: &ResourceClaim, old: &ResourceClaim| {
            let mut errors = FieldErrors::new();
            new.validate_update(old, &FieldPath::new(""), &mut errors);
            errors.iter().map(|error| error.detail.clone()).collect::<Vec<_>>()
        };
        assert_eq!(told(&claim("a", "c"), &claim("b", "c")), [""; 0]);
        assert_eq!(told(&claim("a", "Not a name"), &claim("a", "c")), [IMMUTABLE]);
    }

    #[test]
    fn who_writes_the_status_writes_nothing_else() {
        let (mut new, old) = (claim("new", "d"), claim("old", "c"));
        new.metadata.finalizers = Some(vec!["example.com/a".to_owned()]);
        new.default();
        new.prepare_for_status_update(&old, &Context::default());
        assert_eq!(new.spec, old.spec);
        assert_eq!(new.metadata, old.metadata);
        let devices = new.status.and_then(|s| s.allocation).and_then(|a| a.devices).expect("devices");
        let tolerations = devices.results.expect("results")[0].tolerations.clone().expect("tolerations");
        assert_eq!(tolerations[0].operator.as_deref(), Some("Equal"));
    }
}
