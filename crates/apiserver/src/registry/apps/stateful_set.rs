//! StatefulSet: pods that keep their names and their storage.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{
    RollingUpdateStatefulSetStrategy, StatefulSet, StatefulSetSpec, StatefulSetStatus,
};
use k8s_openapi::api::core::v1::{PersistentVolumeClaimVolumeSource, PodTemplateSpec, Volume};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};
use serde::Serialize;

use super::{Rules, StrategyInMemory, is_none, never_decremented, pod_spec, warnings, workload};
use crate::registry::column::{age, container_images, container_names, name, text, wide};
use crate::registry::prepare::{differ, first_generation, next_generation};
use crate::registry::rules::{
    count_or_percent, dns_label, not_more_than_all, not_negative, one_of, template_metadata,
};
use crate::registry::{Column, Context, Strategy};

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
        if let (Some("RollingUpdate"), Some(rolling)) =
            (strategy.type_.as_deref(), &mut strategy.rolling_update)
        {
            rolling.partition.get_or_insert(0);
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

    fn prepare_for_create(&mut self, _: &Context) {
        self.status = Some(StatefulSetStatus { available_replicas: Some(0), ..StatefulSetStatus::default() });
        first_generation(&mut self.metadata);
        drop_max_unavailable(self, None);
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context) {
        self.status.clone_from(&old.status);
        drop_max_unavailable(self, Some(old));
        next_generation(&mut self.metadata, &old.metadata, differ(&self.spec, &old.spec));
    }

    fn prepare_for_status_update(&mut self, old: &Self, _: &Context) {
        self.spec.clone_from(&old.spec);
    }

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
                one_of(value.as_deref().unwrap_or_default(), &["Retain", "Delete"], &at.child(name), errors);
            }
        }
        not_negative(spec.replicas.unwrap_or(0), &at.child("replicas"), errors);
        not_negative(spec.min_ready_seconds.unwrap_or(0), &at.child("minReadySeconds"), errors);
        if let Some(ordinals) = &spec.ordinals {
            not_negative(ordinals.start.unwrap_or(0), &at.child("ordinals").child("start"), errors);
        }
        workload(&spec.selector, &template_of_pods(spec), Rules::Stateful, &at, errors);
        // Upstream looks at these a second time, as if the template were its metadata.
        template_metadata(spec.template.metadata.as_ref(), &at.child("template"), errors);
    }

    fn validate_new(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec");
        let Some(spec) = &self.spec else { return };
        let claims = at.child("volumeClaimTemplates");
        for (i, claim) in spec.volume_claim_templates.iter().flatten().enumerate() {
            pod_spec::claim(&claim.spec.clone().unwrap_or_default(), &claims.index(i).child("spec"), errors);
        }
        if let Some(service) = spec.service_name.as_deref().filter(|s| !s.is_empty()) {
            dns_label(service, &at.child("serviceName"), errors);
        }
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

    fn validate_status_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("status");
        let none = StatefulSetStatus::default();
        let status = self.status.as_ref().unwrap_or(&none);
        let ready = status.ready_replicas.unwrap_or(0);
        let available = status.available_replicas.unwrap_or(0);
        let parts = [
            ("readyReplicas", ready),
            ("currentReplicas", status.current_replicas.unwrap_or(0)),
            ("updatedReplicas", status.updated_replicas.unwrap_or(0)),
            ("availableReplicas", available),
        ];
        not_negative(status.replicas, &at.child("replicas"), errors);
        for (name, value) in parts {
            not_negative(value, &at.child(name), errors);
        }
        not_negative(status.observed_generation.unwrap_or(0), &at.child("observedGeneration"), errors);
        not_negative(status.collision_count.unwrap_or(0), &at.child("collisionCount"), errors);
        for (name, value) in parts {
            if value > status.replicas {
                errors.invalid(&at.child(name), value, "cannot be greater than status.replicas");
            }
        }
        if available > ready {
            errors.invalid(
                &at.child("availableReplicas"),
                available,
                "cannot be greater than status.readyReplicas",
            );
        }
        let was = old.status.as_ref().and_then(|s| s.collision_count);
        never_decremented(status.collision_count, was, &at, errors);
    }

    fn warnings(&self, old: Option<&Self>) -> Vec<String> {
        // Only an update of the status, of which nothing is said, changes it.
        if old.is_some_and(|old| old.status != self.status) {
            return Vec::new();
        }
        let template = self.spec.as_ref().map(|spec| &spec.template);
        let mut told = warnings(&self.metadata, old.map(|old| &old.metadata), template);
        if self.spec.as_ref().and_then(|s| s.revision_history_limit).is_some_and(|limit| limit < 0) {
            told.push(
                "spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is \
                 recommended"
                    .to_owned(),
            );
        }
        told
    }
}

fn rolling(set: &StatefulSet) -> Option<&RollingUpdateStatefulSetStrategy> {
    set.spec.as_ref()?.update_strategy.as_ref()?.rolling_update.as_ref()
}

/// The feature that would bring it, MaxUnavailableStatefulSet, is off; who has it keeps it.
fn drop_max_unavailable(set: &mut StatefulSet, old: Option<&StatefulSet>) {
    if old.and_then(rolling).is_some_and(|r| r.max_unavailable.is_some()) {
        return;
    }
    let strategy = set.spec.as_mut().and_then(|s| s.update_strategy.as_mut());
    if let Some(rolling) = strategy.and_then(|s| s.rolling_update.as_mut()) {
        rolling.max_unavailable = None;
    }
}

/// The template as the pods will have it: the controller gives them their host names, and a volume for each claim.
fn template_of_pods(spec: &StatefulSetSpec) -> Cow<'_, PodTemplateSpec> {
    let claims = spec.volume_claim_templates.as_deref().unwrap_or_default();
    let named =
        spec.template.spec.as_ref().is_some_and(|pod| pod.hostname.is_some() || pod.subdomain.is_some());
    if claims.is_empty() && !named {
        return Cow::Borrowed(&spec.template);
    }
    let mut template = spec.template.clone();
    let pod = template.spec.get_or_insert_default();
    pod.hostname = None;
    pod.subdomain = None;
    if !claims.is_empty() {
        let names = claims.iter().map(|claim| claim.metadata.name.clone().unwrap_or_default());
        let claimed: BTreeMap<String, Volume> =
            names.map(|name| (name.clone(), volume_of_claim(name))).collect();
        let others = pod.volumes.take().unwrap_or_default();
        let others = others.into_iter().filter(|volume| !claimed.contains_key(&volume.name));
        let others: Vec<Volume> = others.collect();
        pod.volumes = Some(claimed.into_values().chain(others).collect());
    }
    Cow::Owned(template)
}

fn volume_of_claim(name: String) -> Volume {
    let source = PersistentVolumeClaimVolumeSource { claim_name: name.clone(), read_only: None };
    Volume { name, persistent_volume_claim: Some(source), ..Volume::default() }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct PartInMemory<'a> {
    partition: i32,
    max_unavailable: Option<&'a IntOrString>,
}

fn in_memory(rolling: &RollingUpdateStatefulSetStrategy) -> PartInMemory<'_> {
    PartInMemory {
        partition: rolling.partition.unwrap_or(0),
        max_unavailable: rolling.max_unavailable.as_ref(),
    }
}

fn strategy(spec: &StatefulSetSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(strategy) = &spec.update_strategy else { return };
    let rolling = strategy.rolling_update.as_ref();
    match strategy.type_.as_deref().unwrap_or_default() {
        "" => errors.required(at, ""),
        "OnDelete" => {
            if let Some(rolling) = rolling {
                errors.invalid(
                    &at.child("rollingUpdate"),
                    in_memory(rolling),
                    "only allowed for updateStrategy 'RollingUpdate'",
                );
            }
        }
        "RollingUpdate" => {
            let at = at.child("rollingUpdate");
            not_negative(rolling.and_then(|r| r.partition).unwrap_or(0), &at.child("partition"), errors);
            if let Some(most) = rolling.and_then(|r| r.max_unavailable.as_ref()) {
                max_unavailable(most, &at.child("maxUnavailable"), errors);
            }
        }
        other => {
            let shown = StrategyInMemory { kind: other, rolling_update: rolling.map(in_memory) };
            errors.invalid(at, shown, "must be 'RollingUpdate' or 'OnDelete'");
        }
    }
}

fn max_unavailable(most: &IntOrString, at: &FieldPath, errors: &mut FieldErrors) {
    count_or_percent(most, at, errors);
    if is_none(most) {
        errors.invalid(at, most, "cannot be 0");
    }
    not_more_than_all(most, at, errors);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn set(spec: Value) -> StatefulSet {
        let mut set: StatefulSet =
            serde_json::from_value(json!({"metadata": {"name": "s"}, "spec": spec})).expect("a StatefulSet");
        Strategy::default(&mut set);
        set
    }

    fn with_claim(more: Value) -> Value {
        let mut spec = json!({
            "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {
                "containers": [{"name": "c", "image": "i", "volumeMounts": [{"name": "data", "mountPath": "/d"}]}]}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"},
                "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}],
        });
        if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
            spec.extend(more);
        }
        spec
    }

    fn said(spec: Value) -> String {
        let (set, mut errors) = (set(spec), FieldErrors::new());
        set.validate(&FieldPath::new(""), &mut errors);
        set.validate_new(&FieldPath::new(""), &mut errors);
        errors.aggregate()
    }

    #[test]
    fn a_container_may_mount_what_is_claimed_for_its_pod() {
        assert_eq!(said(with_claim(json!({}))), "[]");
        let taken = json!({"volumes": [{"name": "data"}], "hostname": "Not_A_Name", "containers": [
            {"name": "c", "image": "i", "volumeMounts": [{"name": "data", "mountPath": "/d"}]}]});
        let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": taken});
        assert_eq!(said(with_claim(json!({"template": template}))), "[]");
        let other = said(with_claim(json!({"volumeClaimTemplates": []})));
        assert!(other.contains("volumeMounts[0].name: Not found"), "{other}");
    }

    #[test]
    fn claims_and_the_name_of_the_service_are_checked_once() {
        let bad = json!({"serviceName": "No_Name",
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"]}}]});
        let said = said(with_claim(bad));
        assert!(said.contains("spec.serviceName: Invalid value"), "{said}");
        assert!(said.contains("spec.volumeClaimTemplates[0].spec.resources"), "{said}");
    }

    #[test]
    fn only_a_strategy_that_is_not_named_is_filled() {
        let rolling = |strategy: Value| {
            let set = set(with_claim(json!({"updateStrategy": strategy})));
            serde_json::to_value(set.spec.and_then(|s| s.update_strategy)).expect("JSON")
        };
        assert_eq!(rolling(json!({"type": "RollingUpdate"})), json!({"type": "RollingUpdate"}));
        let whole = json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0}});
        assert_eq!(rolling(json!({})), whole);
        assert_eq!(rolling(json!({"type": "RollingUpdate", "rollingUpdate": {}})), whole);
    }

    #[test]
    fn how_many_may_be_away_is_not_asked() {
        let asked = |most: Value| {
            set(with_claim(
                json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": most}}}),
            ))
        };
        let mut new = asked(json!(2));
        new.prepare_for_create(&Context::default());
        assert_eq!(rolling(&new).and_then(|r| r.max_unavailable.clone()), None);
        let mut new = asked(json!(2));
        new.prepare_for_update(&asked(json!(1)), &Context::default());
        assert_eq!(rolling(&new).and_then(|r| r.max_unavailable.clone()), Some(IntOrString::Int(2)));
        let mut errors = FieldErrors::new();
        asked(json!("0%")).validate(&FieldPath::new(""), &mut errors);
        assert_eq!(
            errors.aggregate(),
            "spec.updateStrategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": cannot be 0"
        );
    }

    #[test]
    fn the_counts_of_a_status_fit_each_other() {
        let with = |status: Value| -> StatefulSet {
            serde_json::from_value(json!({"metadata": {"name": "s"}, "status": status}))
                .expect("a StatefulSet")
        };
        let mut errors = FieldErrors::new();
        let new = with(
            json!({"replicas": 1, "readyReplicas": 2, "availableReplicas": 3, "observedGeneration": -1}),
        );
        new.validate_status_update(
            &with(json!({"replicas": 1, "collisionCount": 1})),
            &FieldPath::new(""),
            &mut errors,
        );
        let said = errors.aggregate();
        for wanted in [
            "status.readyReplicas: Invalid value: 2: cannot be greater than status.replicas",
            "status.availableReplicas: Invalid value: 3: cannot be greater than status.readyReplicas",
            "status.observedGeneration: Invalid value: -1: must be greater than or equal to 0",
            "status.collisionCount: Invalid value: 0: cannot be decremented",
        ] {
            assert!(said.contains(wanted), "{said}");
        }
    }

    #[test]
    fn keeping_all_revisions_is_told_of() {
        let new = set(with_claim(json!({"revisionHistoryLimit": -1})));
        assert_eq!(new.warnings(None).len(), 1);
        let mut status = new.clone();
        status.status.get_or_insert_default().replicas = 1;
        assert_eq!(status.warnings(Some(&new)), [""; 0]);
    }
}
