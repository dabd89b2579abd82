//! Job: pods that run to their end.

use std::collections::BTreeMap;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use krate_api::names::is_dns1123_label;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};
use serde_json::Value;

use super::{job_spec, job_status, job_template};
use crate::registry::column::{
    age, container_images, container_names, human_duration, name, selector, text, wide,
};
use crate::registry::core::pod_spec;
use crate::registry::prepare::{differ, first_generation, next_generation};
use crate::registry::rules::{IMMUTABLE, label_selector, selects};
use crate::registry::{Column, Context, Selectable, Strategy};

const UID: &str = "batch.kubernetes.io/controller-uid";
const NAME: &str = "batch.kubernetes.io/job-name";
const OLD_UID: &str = "controller-uid";
const OLD_NAME: &str = "job-name";

impl Strategy for Job {
    const KIND: &'static Kind = &kinds::JOB;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text("Status", "Status of the job.", |j| status(j).into()),
        text("Completions", "io.k8s.api.batch.v1.JobStatus.succeeded", completions),
        text("Duration", "Time required to complete the job.", duration),
        age(),
        wide("Containers", "Names of each container in the template.", |j| {
            container_names(j.spec.as_ref().map(|s| &s.template))
        }),
        wide("Images", "Images referenced by each container in the template.", |j| {
            container_images(j.spec.as_ref().map(|s| &s.template))
        }),
        wide("Selector", "io.k8s.api.batch.v1.JobSpec.selector", |j| {
            selector(j.spec.as_ref().and_then(|s| s.selector.as_ref()))
        }),
    ];

    crate::registry::prepare::pod_spec_at!(spec? template spec?);

    fn default(&mut self) {
        let spec = self.spec.get_or_insert_default();
        // One pod alone, unless a number is given: then that many successes.
        if spec.completions.is_none() && spec.parallelism.is_none() {
            spec.completions = Some(1);
            spec.parallelism = Some(1);
        }
        spec.parallelism.get_or_insert(1);
        if spec.backoff_limit.is_none() {
            spec.backoff_limit = Some(if spec.backoff_limit_per_index.is_some() { i32::MAX } else { 6 });
        }
        let labels = spec.template.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
        if !labels.is_empty() && self.metadata.labels.as_ref().is_none_or(BTreeMap::is_empty) {
            self.metadata.labels = Some(labels);
        }
        spec.completion_mode.get_or_insert_with(|| "NonIndexed".to_owned());
        spec.suspend.get_or_insert(false);
        spec.manual_selector.get_or_insert(false);
        pod_spec::default_template(&mut spec.template);
        if spec.pod_replacement_policy.is_none() {
            let policy = if spec.pod_failure_policy.is_some() { "Failed" } else { "TerminatingOrFailed" };
            spec.pod_replacement_policy = Some(policy.to_owned());
        }
        for rule in spec.pod_failure_policy.iter_mut().flat_map(|p| &mut p.rules) {
            for pattern in rule.on_pod_conditions.iter_mut().flatten() {
                pattern.status.get_or_insert_with(|| "True".to_owned());
            }
        }
        self.status.get_or_insert_default();
    }

    fn prepare_for_create(&mut self, _: &Context) {
        self.status = None;
        self.status.get_or_insert_default();
        first_generation(&mut self.metadata);
        if self.spec.as_ref().is_some_and(|s| s.manual_selector != Some(true)) {
            self.own_selector();
        }
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context) {
        self.status.clone_from(&old.status);
        next_generation(&mut self.metadata, &old.metadata, differ(&self.spec, &old.spec));
    }

    fn prepare_for_status_update(&mut self, old: &Self, _: &Context) {
        self.spec.clone_from(&old.spec);
    }

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let Some(spec) = &self.spec else { return };
        if spec.manual_selector != Some(true) {
            self.check_generated(at, errors);
        }
        let at_spec = at.child("spec");
        job_spec::validate(spec, &at_spec, errors);
        match &spec.selector {
            None => errors.required(&at_spec.child("selector"), ""),
            Some(selector) => {
                label_selector(selector, &at_spec.child("selector"), errors);
                let labels = spec.template.metadata.as_ref().and_then(|m| m.labels.as_ref());
                if !selects(selector, labels) {
                    errors.invalid(
                        &at_spec.child("template").child("metadata").child("labels"),
                        labels,
                        "`selector` does not match template `labels`",
                    );
                }
            }
        }
        let last = spec.completions.filter(|n| *n > 0 && spec.completion_mode.as_deref() == Some("Indexed"));
        if let (Some(last), Some(name)) = (last, &self.metadata.name) {
            let host = format!("{name}-{}", last - 1);
            if !is_dns1123_label(&host).is_empty() {
                errors.invalid(
                    &at.child("metadata").child("name"),
                    name,
                    format!("will not able to create pod with invalid DNS label: {host}"),
                );
            }
        }
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec");
        let (Some(new), Some(was)) = (&self.spec, &old.spec) else { return };
        if new.completions != was.completions {
            let indexed = new.completion_mode.as_deref() == Some("Indexed");
            if !indexed {
                errors.invalid(&at.child("completions"), new.completions, IMMUTABLE);
            } else if new.completions.is_some() && new.completions != new.parallelism {
                errors.invalid(
                    &at.child("completions"),
                    new.completions,
                    "can only be modified in tandem with spec.parallelism",
                );
            }
        }
        if differ(&new.selector, &was.selector) {
            errors.invalid(&at.child("selector"), &new.selector, IMMUTABLE);
        }
        job_template::validate_update(new, was, job_template::may_change(old), &at.child("template"), errors);
        for (name, changed) in [
            ("completionMode", new.completion_mode != was.completion_mode),
            ("podFailurePolicy", differ(&new.pod_failure_policy, &was.pod_failure_policy)),
            ("backoffLimitPerIndex", new.backoff_limit_per_index != was.backoff_limit_per_index),
            ("managedBy", new.managed_by != was.managed_by),
            ("successPolicy", differ(&new.success_policy, &was.success_policy)),
        ] {
            if changed {
                let value = serde_json::to_value(new).ok().and_then(|v| v.get(name).cloned());
                errors.invalid(&at.child(name), value.unwrap_or(Value::Null), IMMUTABLE);
            }
        }
    }

    fn validate_status_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        job_status::validate_update(self, old, &at.child("status"), errors);
    }

    fn warnings(&self, old: Option<&Self>) -> Vec<String> {
        let spec = self.spec.as_ref();
        job_spec::warnings(&self.metadata, old.map(|old| &old.metadata), spec, &FieldPath::new("spec"))
    }

    fn selectable(&self) -> Selectable {
        let succeeded = self.status.as_ref().and_then(|s| s.succeeded).unwrap_or(0);
        vec![("status.successful", succeeded.to_string())]
    }
}

trait OwnSelector {
    fn own_selector(&mut self);
    fn check_generated(&self, at: &FieldPath, errors: &mut FieldErrors);
}

impl OwnSelector for Job {
    /// Labels by which the Job knows its pods, made from its uid, so that no other Job takes them for its own. What the
    /// user has set of them stays, and is refused if it is not the same.
    fn own_selector(&mut self) {
        let own = own_labels(self);
        let Some(spec) = &mut self.spec else { return };
        let labels = spec.template.metadata.get_or_insert_default().labels.get_or_insert_default();
        for (key, value) in &own {
            labels.entry(key.clone()).or_insert_with(|| value.clone());
        }
        let selector: &mut LabelSelector = spec.selector.get_or_insert_default();
        let uid = self.metadata.uid.clone().unwrap_or_default();
        selector.match_labels.get_or_insert_default().entry(UID.to_owned()).or_insert(uid);
        if self.metadata.labels.as_ref().is_none_or(BTreeMap::is_empty) {
            self.metadata.labels = Some(labels.clone());
        }
    }

    fn check_generated(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let Some(spec) = &self.spec else { return };
        let Some(selector) = &spec.selector else { return };
        let own = own_labels(self);
        let at_labels = at.child("spec").child("template").child("metadata").child("labels");
        let labels = spec.template.metadata.as_ref().and_then(|m| m.labels.as_ref());
        for key in [OLD_UID, OLD_NAME, UID, NAME] {
            let wanted = &own[key];
            match labels.and_then(|labels| labels.get(key)) {
                Some(value) if value == wanted => {}
                Some(_) => errors.invalid(&at_labels.key(key), labels, format!("must be '{wanted}'")),
                None => errors.required(&at_labels.key(key), format!("must be '{wanted}'")),
            }
        }
        if !selects(selector, Some(&own)) {
            errors.invalid(&at.child("spec").child("selector"), selector, "`selector` not auto-generated");
        }
    }
}

fn own_labels(job: &Job) -> BTreeMap<String, String> {
    let uid = job.metadata.uid.as_deref().unwrap_or_default();
    let name = job.metadata.name.as_deref().unwrap_or_default();
    let pairs = [(UID, uid), (OLD_UID, uid), (NAME, name), (OLD_NAME, name)];
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

pub(super) fn condition(job: &Job, kind: &str) -> bool {
    let conditions = job.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == kind && c.status == "True")
}

fn status(job: &Job) -> &'static str {
    if condition(job, "Complete") {
        "Complete"
    } else if condition(job, "Failed") {
        "Failed"
    } else if job.metadata.deletion_timestamp.is_some() {
        "Terminating"
    } else if condition(job, "Suspended") {
        "Suspended"
    } else if condition(job, "FailureTarget") {
        "FailureTarget"
    } else if condition(job, "SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    }
}

fn completions(job: &Job) -> Value {
    let succeeded = job.status.as_ref().and_then(|s| s.succeeded).unwrap_or(0);
    let Some(spec) = &job.spec else { return "".into() };
    match (spec.completions, spec.parallelism.unwrap_or(0)) {
        (Some(n), _) => format!("{succeeded}/{n}").into(),
        (None, p) if p > 1 => format!("{succeeded}/1 of {p}").into(),
        (None, _) => format!("{succeeded}/1").into(),
    }
}

fn duration(job: &Job) -> Value {
    let Some(status) = &job.status else { return "".into() };
    let Some(start) = &status.start_time else { return "".into() };
    let end = status.completion_time.as_ref().map_or_else(jiff::Timestamp::now, |t| t.0);
    human_duration(end.as_second() - start.0.as_second()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn job(value: Value) -> Job {
        let mut job: Job = serde_json::from_value(value).expect("a Job");
        Strategy::default(&mut job);
        job
    }

    fn with_labels(name: &str, labels: Value, spec: Value) -> Job {
        let mut whole = json!({"template": {"metadata": {"labels": labels}, "spec": {"restartPolicy": "Never",
            "containers": [{"name": "c", "image": "i"}]}}});
        if let (Some(whole), Value::Object(spec)) = (whole.as_object_mut(), spec) {
            whole.extend(spec);
        }
        job(json!({"metadata": {"name": name, "uid": "u"}, "spec": whole}))
    }

    fn said(job: &Job) -> String {
        let mut errors = FieldErrors::new();
        job.validate(&FieldPath::new(""), &mut errors);
        errors.aggregate()
    }

    #[test]
    fn labels_of_others_are_refused_and_not_overwritten() {
        let mut own = with_labels("j", json!({"a": "b"}), json!({}));
        own.prepare_for_create(&Context::default());
        assert_eq!(said(&own), "[]");
        let mut other = with_labels("j", json!({"job-name": "k"}), json!({}));
        other.prepare_for_create(&Context::default());
        let said = said(&other);
        assert!(said.starts_with("spec.template.metadata.labels[job-name]: Invalid value: {"), "{said}");
        assert!(said.ends_with("must be 'j'"), "{said}");
    }

    #[test]
    fn an_indexed_job_gives_its_pods_host_names() {
        let indexed = |name: &str| {
            let mut job =
                with_labels(name, json!({}), json!({"completionMode": "Indexed", "completions": 11}));
            job.prepare_for_create(&Context::default());
            said(&job)
        };
        assert_eq!(indexed("j"), "[]");
        let said = indexed("j.k");
        assert!(said.contains("metadata.name: Invalid value: \"j.k\""), "{said}");
        assert!(said.contains("invalid DNS label: j.k-10"), "{said}");
    }

    #[test]
    fn a_new_job_is_warned_of_its_name() {
        let named = with_labels("j.k", json!({}), json!({}));
        assert_eq!(named.warnings(None).len(), 1);
        assert_eq!(named.warnings(Some(&named)).len(), 0);
    }
}
