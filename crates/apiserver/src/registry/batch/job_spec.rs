//! What a Job is to do, on its own or as a CronJob's template.

use k8s_openapi::api::batch::v1::JobSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use krate_api::{FieldErrors, FieldPath};

use super::policies;
use crate::registry::apps::POD_NAMES;
use crate::registry::core::pod_spec;
use crate::registry::networking::domain_path::domain_prefixed_path;
use crate::registry::rules::{not_negative, one_of};

const MAX_PARALLEL: i32 = 100_000;
const MAX_FAILED: i32 = 100_000;
/// Above so many completions, a Job that counts the failures of each index may have less of the rest.
const MANY_COMPLETIONS: i32 = 100_000;
const MAX_OF_MANY: i32 = 10_000;
const LONGEST_MANAGER: usize = 63;

pub fn validate(spec: &JobSpec, at: &FieldPath, errors: &mut FieldErrors) {
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
    if spec.max_failed_indexes.is_some() && spec.backoff_limit_per_index.is_none() {
        errors.required(&at.child("backoffLimitPerIndex"), "when maxFailedIndexes is specified");
    }
    if let Some(manager) = &spec.managed_by {
        let at = at.child("managedBy");
        domain_prefixed_path(manager, &at, errors);
        if manager.len() > LONGEST_MANAGER {
            errors.too_long(&at, LONGEST_MANAGER);
        }
    }
    if let Some(mode) = spec.completion_mode.as_deref() {
        one_of(mode, &["NonIndexed", "Indexed"], &at.child("completionMode"), errors);
    }
    match spec.completion_mode.as_deref() {
        Some("Indexed") => indexed(spec, at, errors),
        None | Some("NonIndexed") => not_indexed(spec, at, errors),
        Some(_) => {}
    }
    policies::failure(spec, &at.child("podFailurePolicy"), errors);
    policies::success(spec, &at.child("successPolicy"), errors);
    if let Some(policy) = &spec.pod_replacement_policy {
        let at = at.child("podReplacementPolicy");
        let allowed: &[&str] =
            if spec.pod_failure_policy.is_some() { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
        one_of(policy, allowed, &at, errors);
    }
    template(spec, &at.child("template"), errors);
}

fn indexed(spec: &JobSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let completions = spec.completions;
    if completions.is_none() {
        errors.required(&at.child("completions"), "when completion mode is Indexed");
    }
    let at_parallelism = at.child("parallelism");
    if let Some(parallelism) = spec.parallelism.filter(|p| *p > MAX_PARALLEL) {
        errors.invalid(
            &at_parallelism,
            parallelism,
            format!("must be less than or equal to {MAX_PARALLEL} when completion mode is Indexed"),
        );
    }
    let at_failed = at.child("maxFailedIndexes");
    if let Some(failed) = spec.max_failed_indexes {
        if completions.is_some_and(|n| failed > n) {
            errors.invalid(&at_failed, failed, "must be less than or equal to completions");
        }
        if failed > MAX_FAILED {
            errors.invalid(&at_failed, failed, format!("must be less than or equal to {MAX_FAILED}"));
        }
    }
    if completions.is_none_or(|n| n <= MANY_COMPLETIONS) || spec.backoff_limit_per_index.is_none() {
        return;
    }
    if spec.max_failed_indexes.is_none() {
        errors
            .required(&at_failed, format!("must be specified when completions is above {MANY_COMPLETIONS}"));
    }
    for (at, value) in [(&at_parallelism, spec.parallelism), (&at_failed, spec.max_failed_indexes)] {
        if let Some(value) = value.filter(|value| *value > MAX_OF_MANY) {
            errors.invalid(
                at,
                value,
                format!(
                    "must be less than or equal to {MAX_OF_MANY} when completions are above {MANY_COMPLETIONS} and \
                     used with backoff limit per index"
                ),
            );
        }
    }
}

fn not_indexed(spec: &JobSpec, at: &FieldPath, errors: &mut FieldErrors) {
    for (name, set) in [
        ("backoffLimitPerIndex", spec.backoff_limit_per_index),
        ("maxFailedIndexes", spec.max_failed_indexes),
    ] {
        if let Some(value) = set {
            errors.invalid(&at.child(name), value, "requires indexed completion mode");
        }
    }
}

fn template(spec: &JobSpec, at: &FieldPath, errors: &mut FieldErrors) {
    pod_spec::template(&spec.template, at, errors);
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

/// What is told of a Job, or of what makes Jobs, when it is new and when its spec changes.
pub fn warnings(
    meta: &ObjectMeta,
    old: Option<&ObjectMeta>,
    spec: Option<&JobSpec>,
    at: &FieldPath,
) -> Vec<String> {
    if old.is_some_and(|old| old.generation == meta.generation) {
        return Vec::new();
    }
    let mut warnings = Vec::new();
    if old.is_none() {
        warnings.extend(pod_spec::of_name(meta, POD_NAMES));
    }
    if let Some(spec) = spec {
        warnings.extend(warn_of_size(spec, at));
        warnings.extend(pod_spec::of_template(&spec.template, &at.child("template")));
    }
    warnings
}

/// The warning of a Job that may lose track of its indexes.
fn warn_of_size(spec: &JobSpec, at: &FieldPath) -> Option<String> {
    let indexed = spec.completion_mode.as_deref() == Some("Indexed");
    let many =
        spec.completions.unwrap_or(0) > MANY_COMPLETIONS && spec.parallelism.unwrap_or(0) > MAX_OF_MANY;
    (indexed && many).then(|| {
        format!(
            "{at}: In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, \
             Kubernetes might not be able to track completedIndexes when a big number of indexes fail"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(more: Value) -> JobSpec {
        let mut spec = json!({"template": {"spec": {"restartPolicy": "Never",
            "containers": [{"name": "c", "image": "i"}]}}});
        if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
            spec.extend(more);
        }
        let mut spec: JobSpec = serde_json::from_value(spec).expect("a spec");
        pod_spec::default_template(&mut spec.template);
        spec
    }

    fn said(more: Value) -> Vec<String> {
        let mut errors = FieldErrors::new();
        validate(&spec(more), &FieldPath::new("spec"), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn indexed_jobs_have_bounds_of_their_own() {
        assert_eq!(said(json!({"completionMode": "Indexed", "completions": 3, "parallelism": 3})), [""; 0]);
        assert_eq!(
            said(
                json!({"completionMode": "Indexed", "completions": 3, "maxFailedIndexes": 4, "parallelism": 100_001})
            ),
            [
                "spec.backoffLimitPerIndex: Required value: when maxFailedIndexes is specified",
                "spec.parallelism: Invalid value: 100001: must be less than or equal to 100000 when completion mode \
                 is Indexed",
                "spec.maxFailedIndexes: Invalid value: 4: must be less than or equal to completions",
            ]
        );
        assert_eq!(
            said(json!({"completionMode": "Indexed", "completions": 100_001, "backoffLimitPerIndex": 1,
                "parallelism": 10_001})),
            [
                "spec.maxFailedIndexes: Required value: must be specified when completions is above 100000",
                "spec.parallelism: Invalid value: 10001: must be less than or equal to 10000 when completions are \
                 above 100000 and used with backoff limit per index",
            ]
        );
    }

    #[test]
    fn modes_stand_in_upstreams_order() {
        assert_eq!(
            said(json!({"completionMode": "Odd"})),
            [
                "spec.completionMode: Unsupported value: \"Odd\": supported values: \"NonIndexed\", \"Indexed\""
            ]
        );
    }

    #[test]
    fn the_manager_is_named_by_its_domain() {
        assert_eq!(said(json!({"managedBy": "acme.io/foo"})), [""; 0]);
        let long = format!("acme.io/{}", "f".repeat(60));
        assert_eq!(
            said(json!({"managedBy": long})),
            ["spec.managedBy: Too long: may not be more than 63 bytes"]
        );
    }

    #[test]
    fn a_job_of_too_many_indexes_is_warned_of() {
        let many = json!({"completionMode": "Indexed", "completions": 100_001, "parallelism": 10_001});
        let warning = warn_of_size(&spec(many), &FieldPath::new("spec")).expect("a warning");
        assert!(warning.starts_with("spec: In Indexed Jobs with"), "{warning}");
        assert_eq!(warn_of_size(&spec(json!({})), &FieldPath::new("spec")), None);
    }
}
