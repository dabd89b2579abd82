//! Job: pods that run to their end.

use std::collections::BTreeMap;

use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};
use serde_json::Value;

use crate::registry::column::{
    age, container_images, container_names, human_duration, name, selector, text, wide,
};
use crate::registry::core::pod_spec;
use crate::registry::prepare::{differ, first_generation, next_generation};
use crate::registry::rules::{IMMUTABLE, in_range, label_selector, not_negative, one_of, selects};
use crate::registry::{Column, Context, Selectable, Strategy};

const UID: &str = "batch.kubernetes.io/controller-uid";
const NAME: &str = "batch.kubernetes.io/job-name";
const OLD_UID: &str = "controller-uid";
const OLD_NAME: &str = "job-name";
const MAX_PARALLEL: i64 = 100_000;

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
        let at = at.child("spec");
        let Some(spec) = &self.spec else { return };
        validate_spec(spec, &at, errors);
        let Some(selector) = &spec.selector else {
            errors.required(&at.child("selector"), "");
            return;
        };
        label_selector(selector, &at.child("selector"), errors);
        let labels = spec.template.metadata.as_ref().and_then(|m| m.labels.as_ref());
        if !selects(selector, labels) {
            errors.invalid(
                &at.child("template").child("metadata").child("labels"),
                labels,
                "`selector` does not match template `labels`",
            );
        }
        if spec.manual_selector != Some(true) {
            // Upstream expects the generated selector and nothing else.
            let uid = self.metadata.uid.clone().unwrap_or_default();
            let own = |key: &str| {
                selector.match_labels.as_ref().is_some_and(|l| l.len() == 1 && l.get(key) == Some(&uid))
            };
            if selector.match_expressions.is_some() || !(own(UID) || own(OLD_UID)) {
                errors.invalid(&at.child("selector"), selector, "`selector` not auto-generated");
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
            } else if new.completions != new.parallelism {
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
        let begun = old.status.as_ref().is_some_and(|s| s.start_time.is_some());
        let mut template = new.template.clone();
        if was.suspend == Some(true) && !begun {
            scheduling_may_change(&mut template, &was.template);
        }
        if differ(&template, &was.template) {
            errors.invalid(&at.child("template"), &new.template, IMMUTABLE);
        }
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

    fn selectable(&self) -> Selectable {
        let succeeded = self.status.as_ref().and_then(|s| s.succeeded).unwrap_or(0);
        vec![("status.successful", succeeded.to_string())]
    }
}

/// A Job that has not begun may still be sent elsewhere.
fn scheduling_may_change(
    new: &mut k8s_openapi::api::core::v1::PodTemplateSpec,
    old: &k8s_openapi::api::core::v1::PodTemplateSpec,
) {
    if let (Some(new), Some(old)) = (&mut new.spec, &old.spec) {
        new.node_selector.clone_from(&old.node_selector);
        new.affinity.clone_from(&old.affinity);
        new.tolerations.clone_from(&old.tolerations);
        new.scheduling_gates.clone_from(&old.scheduling_gates);
    }
    new.metadata.clone_from(&old.metadata);
}

trait OwnSelector {
    fn own_selector(&mut self);
}

impl OwnSelector for Job {
    /// Labels by which the Job knows its pods, made from its uid, so that no other Job takes them for its own.
    fn own_selector(&mut self) {
        let uid = self.metadata.uid.clone().unwrap_or_default();
        let name = self.metadata.name.clone().unwrap_or_default();
        let Some(spec) = &mut self.spec else { return };
        let labels = spec.template.metadata.get_or_insert_default().labels.get_or_insert_default();
        for (key, value) in [(UID, &uid), (OLD_UID, &uid), (NAME, &name), (OLD_NAME, &name)] {
            labels.insert(key.to_owned(), value.clone());
        }
        let selector: &mut LabelSelector = spec.selector.get_or_insert_default();
        selector.match_labels.get_or_insert_default().insert(UID.to_owned(), uid);
        if self.metadata.labels.as_ref().is_none_or(BTreeMap::is_empty) {
            self.metadata.labels = Some(labels.clone());
        }
    }
}

pub fn validate_spec(spec: &JobSpec, at: &FieldPath, errors: &mut FieldErrors) {
    for (name, value) in [
        ("parallelism", spec.parallelism.map(i64::from)),
        ("completions", spec.completions.map(i64::from)),
        ("activeDeadlineSeconds", spec.active_deadline_seconds),
        ("backoffLimit", spec.backoff_limit.map(i64::from)),
        ("ttlSecondsAfterFinished", spec.ttl_seconds_after_finished.map(i64::from)),
        ("backoffLimitPerIndex", spec.backoff_limit_per_index.map(i64::from)),
        ("maxFailedIndexes", spec.max_failed_indexes.map(i64::from)),
    ] {
        if let Some(value) = value {
            not_negative(value, &at.child(name), errors);
        }
    }
    let indexed = match spec.completion_mode.as_deref() {
        None => false,
        Some(mode) => {
            one_of(mode, &["Indexed", "NonIndexed"], &at.child("completionMode"), errors);
            mode == "Indexed"
        }
    };
    if indexed {
        if spec.completions.is_none() {
            errors.required(&at.child("completions"), "when completion mode is Indexed");
        }
        if let Some(parallelism) = spec.parallelism.map(i64::from).filter(|p| *p > MAX_PARALLEL) {
            in_range(parallelism, 0, MAX_PARALLEL, &at.child("parallelism"), errors);
        }
    } else {
        for (name, set) in [
            ("backoffLimitPerIndex", spec.backoff_limit_per_index),
            ("maxFailedIndexes", spec.max_failed_indexes),
        ] {
            if let Some(value) = set {
                errors.invalid(&at.child(name), value, "requires indexed completion mode");
            }
        }
        if spec.success_policy.is_some() {
            errors.invalid(
                &at.child("successPolicy"),
                &spec.success_policy,
                "requires indexed completion mode",
            );
        }
    }
    if let Some(manager) = &spec.managed_by
        && !manager.contains('/')
    {
        errors.invalid(
            &at.child("managedBy"),
            manager,
            "must be a domain-prefixed path (such as \"acme.io/foo\")",
        );
    }
    if let Some(policy) = &spec.pod_replacement_policy {
        let at = at.child("podReplacementPolicy");
        let allowed: &[&str] =
            if spec.pod_failure_policy.is_some() { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
        one_of(policy, allowed, &at, errors);
    }
    failure_policy(spec, &at.child("podFailurePolicy"), errors);
    let at = at.child("template");
    pod_spec::template(&spec.template, &at, errors);
    let at = at.child("spec").child("restartPolicy");
    match spec.template.spec.as_ref().and_then(|s| s.restart_policy.as_deref()).unwrap_or_default() {
        "" | "Always" => errors.required(&at, "valid values: \"OnFailure\", \"Never\""),
        policy if !["OnFailure", "Never"].contains(&policy) => {
            errors.not_supported(&at, policy, &["OnFailure", "Never"]);
        }
        "OnFailure" if spec.pod_failure_policy.is_some() => {
            errors.invalid(
                &at,
                "OnFailure",
                "only \"Never\" is supported when podFailurePolicy is specified",
            );
        }
        _ => {}
    }
}

fn failure_policy(spec: &JobSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(policy) = &spec.pod_failure_policy else { return };
    let at = at.child("rules");
    if policy.rules.len() > 20 {
        errors.too_many(&at, policy.rules.len(), 20);
    }
    for (i, rule) in policy.rules.iter().enumerate() {
        let at = at.index(i);
        if rule.action.is_empty() {
            errors.required(
                &at.child("action"),
                "valid values: [\"Count\" \"FailIndex\" \"FailJob\" \"Ignore\"]",
            );
        } else {
            one_of(&rule.action, &["Count", "FailIndex", "FailJob", "Ignore"], &at.child("action"), errors);
        }
        let patterns = rule.on_pod_conditions.as_ref().is_some_and(|p| !p.is_empty());
        match (&rule.on_exit_codes, patterns) {
            (Some(_), true) => {
                errors.invalid(&at, "", "specifying both OnExitCodes and OnPodConditions is not supported");
            }
            (None, false) => {
                errors.invalid(&at, "", "specifying one of OnExitCodes and OnPodConditions is required");
            }
            (Some(codes), false) => {
                let at = at.child("onExitCodes");
                one_of(&codes.operator, &["In", "NotIn"], &at.child("operator"), errors);
                if codes.values.is_empty() {
                    errors.invalid(&at.child("values"), &codes.values, "at least one value is required");
                }
                if codes.operator == "In" && codes.values.contains(&0) {
                    errors.invalid(&at.child("values").index(0), 0, "must not be 0 for the In operator");
                }
            }
            (None, true) => {}
        }
    }
}

fn condition(job: &Job, kind: &str) -> bool {
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
