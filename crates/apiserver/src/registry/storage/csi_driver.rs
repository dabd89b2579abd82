//! CSIDriver: what a storage driver can do, and wants.

use std::collections::BTreeSet;

use k8s_openapi::api::storage::v1::{CSIDriver, TokenRequest};
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use crate::registry::column::{age, boolean, name, or_none, text};
use crate::registry::prepare::{differ, next_generation};
use crate::registry::rules::{IMMUTABLE, one_of};
use crate::registry::{Column, Context, Strategy};

/// From here on a token lives too long, in seconds.
const LONG: i64 = (1 << 32) + 1;

const TOKENS_IN_THE_OPEN: &str = "spec.serviceAccountTokenInSecrets is unset; if supported by this CSI driver, set \
                                  to true to prevent possible logging of tokens in volume attributes";

impl Strategy for CSIDriver {
    const KIND: &'static Kind = &kinds::CSI_DRIVER;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        boolean("AttachRequired", "io.k8s.api.storage.v1.CSIDriverSpec.attachRequired", |d| {
            d.spec.attach_required.unwrap_or(true).into()
        }),
        boolean("PodInfoOnMount", "io.k8s.api.storage.v1.CSIDriverSpec.podInfoOnMount", |d| {
            d.spec.pod_info_on_mount.unwrap_or(false).into()
        }),
        boolean("StorageCapacity", "io.k8s.api.storage.v1.CSIDriverSpec.storageCapacity", |d| {
            d.spec.storage_capacity.unwrap_or(false).into()
        }),
        text("TokenRequests", "io.k8s.api.storage.v1.CSIDriverSpec.tokenRequests", |d| {
            match &d.spec.token_requests {
                None => "<unset>".into(),
                Some(list) => list.iter().map(|t| t.audience.clone()).collect::<Vec<_>>().join(",").into(),
            }
        }),
        boolean("RequiresRepublish", "io.k8s.api.storage.v1.CSIDriverSpec.requiresRepublish", |d| {
            d.spec.requires_republish.unwrap_or(false).into()
        }),
        text("Modes", "io.k8s.api.storage.v1.CSIDriverSpec.volumeLifecycleModes", |d| {
            or_none(Some(&d.spec.volume_lifecycle_modes.clone().unwrap_or_default().join(",")))
        }),
        age(),
    ];
    const ALLOW_UNCONDITIONAL_UPDATE: bool = false;

    fn default(&mut self) {
        let spec = &mut self.spec;
        spec.attach_required.get_or_insert(true);
        spec.pod_info_on_mount.get_or_insert(false);
        spec.storage_capacity.get_or_insert(false);
        spec.requires_republish.get_or_insert(false);
        spec.se_linux_mount.get_or_insert(false);
        spec.fs_group_policy.get_or_insert_with(|| "ReadWriteOnceWithFSType".to_owned());
        if spec.volume_lifecycle_modes.as_ref().is_none_or(Vec::is_empty) {
            spec.volume_lifecycle_modes = Some(vec!["Persistent".to_owned()]);
        }
    }

    fn prepare_for_create(&mut self, _: &Context) {
        self.spec.prevent_pod_scheduling_if_missing = None;
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context) {
        // It belongs to a feature that is not there yet (VolumeLimitScaling).
        if old.spec.prevent_pod_scheduling_if_missing.is_none() {
            self.spec.prevent_pod_scheduling_if_missing = None;
        }
        let changed = differ(&self.spec, &old.spec);
        next_generation(&mut self.metadata, &old.metadata, changed);
    }

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec");
        let spec = &self.spec;
        if let Some(policy) = &spec.fs_group_policy {
            one_of(policy, &["File", "None", "ReadWriteOnceWithFSType"], &at.child("fsGroupPolicy"), errors);
        }
        let requests = spec.token_requests.as_deref().unwrap_or_default();
        token_requests(requests, &at.child("tokenRequests"), errors);
        for mode in spec.volume_lifecycle_modes.iter().flatten() {
            one_of(mode, &["Persistent", "Ephemeral"], &at.child("volumeLifecycleModes"), errors);
        }
        if let Some(period) = spec.node_allocatable_update_period_seconds.filter(|period| *period < 10) {
            let at = at.child("nodeAllocatableUpdatePeriodSeconds");
            errors.invalid(&at, period, "must be greater than or equal to 10 seconds");
        }
        if let Some(secret) = spec.service_account_token_in_secrets.filter(|_| requests.is_empty()) {
            let why = "serviceAccountTokenInSecrets is set but no tokenRequests are specified";
            errors.invalid(&at.child("serviceAccountTokenInSecrets"), secret, why);
        }
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec");
        if self.spec.attach_required != old.spec.attach_required {
            errors.invalid(&at.child("attachedRequired"), self.spec.attach_required, IMMUTABLE);
        }
        if self.spec.volume_lifecycle_modes != old.spec.volume_lifecycle_modes {
            errors.invalid(&at.child("volumeLifecycleModes"), &self.spec.volume_lifecycle_modes, IMMUTABLE);
        }
    }

    fn warnings(&self, old: Option<&Self>) -> Vec<String> {
        let requests = |driver: &Self| driver.spec.token_requests.clone().unwrap_or_default();
        let asked = requests(self);
        let as_before = old.is_some_and(|old| requests(old) == asked);
        if asked.is_empty() || as_before || self.spec.service_account_token_in_secrets.is_some() {
            return Vec::new();
        }
        vec![TOKENS_IN_THE_OPEN.to_owned()]
    }
}

fn token_requests(requests: &[TokenRequest], at: &FieldPath, errors: &mut FieldErrors) {
    let mut audiences = BTreeSet::new();
    for (i, request) in requests.iter().enumerate() {
        let at = at.index(i);
        if !audiences.insert(&request.audience) {
            errors.duplicate(&at.child("audience"), &request.audience);
            continue;
        }
        let why = match request.expiration_seconds {
            Some(..600) => "may not specify a duration less than 10 minutes",
            Some(LONG..) => "may not specify a duration larger than 2^32 seconds",
            _ => continue,
        };
        errors.invalid(&at.child("expirationSeconds"), request.expiration_seconds, why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn driver(spec: Value) -> CSIDriver {
        let mut driver: CSIDriver =
            serde_json::from_value(json!({"metadata": {"name": "d"}, "spec": spec})).expect("a driver");
        driver.default();
        driver
    }

    #[test]
    fn tokens_are_for_different_audiences_and_times_that_there_are() {
        let told = |spec: Value| {
            let mut errors = FieldErrors::new();
            driver(spec).validate(&FieldPath::new(""), &mut errors);
            errors.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let requests = json!([{"audience": "a", "expirationSeconds": 4294967296_i64},
            {"audience": "a", "expirationSeconds": 1}, {"audience": "b", "expirationSeconds": 4294967297_i64},
            {"audience": "c", "expirationSeconds": 599}]);
        assert_eq!(
            told(json!({"tokenRequests": requests})),
            [
                "spec.tokenRequests[1].audience: Duplicate value: \"a\"",
                "spec.tokenRequests[2].expirationSeconds: Invalid value: 4294967297: may not specify a duration larger \
                 than 2^32 seconds",
                "spec.tokenRequests[3].expirationSeconds: Invalid value: 599: may not specify a duration less than 10 \
                 minutes",
            ]
        );
        assert_eq!(
            told(json!({"serviceAccountTokenInSecrets": true, "nodeAllocatableUpdatePeriodSeconds": 9})),
            [
                "spec.nodeAllocatableUpdatePeriodSeconds: Invalid value: 9: must be greater than or equal to 10 \
                 seconds",
                "spec.serviceAccountTokenInSecrets: Invalid value: true: serviceAccountTokenInSecrets is set but no \
                 tokenRequests are specified",
            ]
        );
    }

    #[test]
    fn who_has_tokens_in_the_open_is_warned_once() {
        let open = driver(json!({"tokenRequests": [{"audience": "a"}]}));
        assert_eq!(open.warnings(None), [TOKENS_IN_THE_OPEN]);
        assert_eq!(open.warnings(Some(&open)), [""; 0]);
        assert_eq!(driver(json!({})).warnings(None), [""; 0]);
    }
}
