//! StatefulSet: pods that keep their names and their storage.

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec};
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use super::{Missing, pod_spec, workload};
use crate::registry::column::{age, container_images, container_names, name, text, wide};
use crate::registry::prepare::{differ, spec_and_status};
use crate::registry::rules::{count_or_percent, not_more_than_all, not_negative, one_of};
use crate::registry::{Column, Strategy};

impl Strategy for StatefulSet {
    const KIND: &'static Kind = &kinds::STATEFUL_SET;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text("Ready", "Number of the pod with ready state", |s| {
            let ready = s.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0);
            format!("{ready}/{}", s.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0)).into()
        }),
        age(),
        wide("Containers", "Names of each container in the template.", |s| {
            container_names(s.spec.as_ref().map(|s| &s.template))
        }),
        wide("Images", "Images referenced by each container in the template.", |s| {
            container_images(s.spec.as_ref().map(|s| &s.template))
        }),
    ];

    crate::registry::prepare::pod_spec_at!(spec? template spec?);

    fn default(&mut self) {
        let spec = self.spec.get_or_insert_default();
        spec.pod_management_policy.get_or_insert_with(|| "OrderedReady".to_owned());
        let strategy = spec.update_strategy.get_or_insert_default();
        if strategy.type_.as_deref().is_none_or(str::is_empty) {
            strategy.type_ = Some("RollingUpdate".to_owned());
            strategy.rolling_update.get_or_insert_default();
        }
        if strategy.type_.as_deref() == Some("RollingUpdate") {
            strategy.rolling_update.get_or_insert_default().partition.get_or_insert(0);
        }
        let retention = spec.persistent_volume_claim_retention_policy.get_or_insert_default();
        retention.when_deleted.get_or_insert_with(|| "Retain".to_owned());
        retention.when_scaled.get_or_insert_with(|| "Retain".to_owned());
        spec.replicas.get_or_insert(1);
        spec.revision_history_limit.get_or_insert(10);
        pod_spec::default_template(&mut spec.template);
        for claim in spec.volume_claim_templates.iter_mut().flatten() {
            pod_spec::default_claim(claim.spec.get_or_insert_default());
            let status = claim.status.get_or_insert_default();
            status.phase.get_or_insert_with(|| "Pending".to_owned());
        }
        let status = self.status.get_or_insert_default();
        status.available_replicas.get_or_insert(0);
    }

    spec_and_status!(generation);

    /// Its name is the beginning of its pods' host names.
    fn validate_name(name: &str) -> Vec<String> {
        krate_api::names::is_dns1123_label(name)
    }

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec");
        let Some(spec) = &self.spec else { return };
        let management = spec.pod_management_policy.as_deref().unwrap_or_default();
        if management.is_empty() {
            errors.required(&at.child("podManagementPolicy"), "");
        } else if !["OrderedReady", "Parallel"].contains(&management) {
            errors.invalid(
                &at.child("podManagementPolicy"),
                management,
                "must be 'OrderedReady' or 'Parallel'",
            );
        }
        strategy(spec, &at.child("updateStrategy"), errors);
        if let Some(policy) = &spec.persistent_volume_claim_retention_policy {
            let at = at.child("persistentVolumeClaimRetentionPolicy");
            for (name, value) in [("whenDeleted", &policy.when_deleted), ("whenScaled", &policy.when_scaled)]
            {
                one_of(value.as_deref().unwrap_or_default(), &["Delete", "Retain"], &at.child(name), errors);
            }
        }
        not_negative(spec.replicas.unwrap_or(0), &at.child("replicas"), errors);
        not_negative(spec.min_ready_seconds.unwrap_or(0), &at.child("minReadySeconds"), errors);
        if let Some(ordinals) = &spec.ordinals {
            not_negative(ordinals.start.unwrap_or(0), &at.child("ordinals").child("start"), errors);
        }
        workload(&spec.selector, &spec.template, &Missing::Required, &at, errors);
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        let (Some(new), Some(was)) = (&self.spec, &old.spec) else { return };
        let rest = StatefulSetSpec {
            replicas: was.replicas,
            template: was.template.clone(),
            update_strategy: was.update_strategy.clone(),
            min_ready_seconds: was.min_ready_seconds,
            ordinals: was.ordinals.clone(),
            revision_history_limit: was.revision_history_limit,
            persistent_volume_claim_retention_policy: was.persistent_volume_claim_retention_policy.clone(),
            ..new.clone()
        };
        if differ(&rest, was) {
            errors.forbidden(
                &at.child("spec"),
                "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', \
                 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and \
                 'minReadySeconds' are forbidden",
            );
        }
    }
}

fn strategy(spec: &StatefulSetSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(strategy) = &spec.update_strategy else { return };
    let rolling = strategy.rolling_update.as_ref();
    match strategy.type_.as_deref().unwrap_or_default() {
        "" => errors.required(at, ""),
        "OnDelete" => {
            if rolling.is_some() {
                errors.invalid(
                    &at.child("rollingUpdate"),
                    rolling,
                    "only allowed for updateStrategy 'RollingUpdate'",
                );
            }
        }
        "RollingUpdate" => {
            let at = at.child("rollingUpdate");
            not_negative(rolling.and_then(|r| r.partition).unwrap_or(0), &at.child("partition"), errors);
            if let Some(most) = rolling.and_then(|r| r.max_unavailable.as_ref()) {
                count_or_percent(most, &at.child("maxUnavailable"), errors);
                not_more_than_all(most, &at.child("maxUnavailable"), errors);
            }
        }
        other => errors.invalid(at, other, "must be 'RollingUpdate' or 'OnDelete'"),
    }
}
