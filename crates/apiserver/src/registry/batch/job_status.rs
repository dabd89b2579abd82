//! What may be said of how a Job goes, be it by a controller of somebody else (KEP-4368). A fault is one only if it comes
//! with this update: what was wrong before may stay until it is mended.

use std::collections::BTreeSet;

use k8s_openapi::api::batch::v1::{Job, JobSpec, JobStatus, UncountedTerminatedPods};
use krate_api::{FieldErrors, FieldPath};
use serde::Serialize;

use super::indexes;
use crate::registry::rules::{invalid_unshown, not_negative};

/// A status, and what it says in its conditions.
struct Said<'a> {
    status: &'a JobStatus,
    complete: bool,
    failed: bool,
    failing: bool,
    succeeding: bool,
    suspended: bool,
    resumed: bool,
}

impl<'a> Said<'a> {
    fn of(status: &'a JobStatus) -> Self {
        let is = |kind: &str, value: &str| {
            status.conditions.iter().flatten().any(|c| c.type_ == kind && c.status == value)
        };
        Said {
            complete: is("Complete", "True"),
            failed: is("Failed", "True"),
            failing: is("FailureTarget", "True"),
            succeeding: is("SuccessCriteriaMet", "True"),
            suspended: is("Suspended", "True"),
            resumed: is("Suspended", "False"),
            status,
        }
    }

    fn finished(&self) -> bool {
        self.complete || self.failed
    }

    fn completed_indexes(&self) -> &str {
        self.status.completed_indexes.as_deref().unwrap_or_default()
    }
}

pub fn validate_update(job: &Job, old: &Job, at: &FieldPath, errors: &mut FieldErrors) {
    let (no_spec, no_status) = (JobSpec::default(), JobStatus::default());
    let spec = job.spec.as_ref().unwrap_or(&no_spec);
    let new = Said::of(job.status.as_ref().unwrap_or(&no_status));
    let old = Said::of(old.status.as_ref().unwrap_or(&no_status));
    counts(new.status, at, errors);
    uncounted(new.status.uncounted_terminated_pods.as_ref(), &at.child("uncountedTerminatedPods"), errors);
    conditions(&new, &old, &at.child("conditions"), errors);
    times(&new, &old, spec, at, errors);
    finished(&new, &old, at, errors);
    completed(&new, &old, spec, at, errors);
    never_back(&new, &old, spec, at, errors);
    if new.succeeding && new.failed {
        let why = "cannot set SuccessCriteriaMet=True and Failed=true conditions";
        invalid_unshown(&at.child("conditions"), why, errors);
    }
    if new.succeeding && new.failing {
        let why = "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions";
        invalid_unshown(&at.child("conditions"), why, errors);
    }
    if spec.success_policy.is_some() && !new.succeeding && new.complete {
        let why = "cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True";
        invalid_unshown(&at.child("conditions"), why, errors);
    }
}

fn counts(status: &JobStatus, at: &FieldPath, errors: &mut FieldErrors) {
    for (name, value) in [
        ("active", status.active),
        ("succeeded", status.succeeded),
        ("failed", status.failed),
        ("ready", status.ready),
        ("terminating", status.terminating),
    ] {
        not_negative(value.unwrap_or(0), &at.child(name), errors);
    }
}

fn uncounted(pods: Option<&UncountedTerminatedPods>, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(pods) = pods else { return };
    let mut seen = BTreeSet::new();
    for (name, uids) in [("succeeded", &pods.succeeded), ("failed", &pods.failed)] {
        for (i, uid) in uids.iter().flatten().enumerate() {
            let at = at.child(name).index(i);
            if uid.is_empty() {
                errors.invalid(&at, uid, "must not be empty");
            } else if !seen.insert(uid) {
                errors.duplicate(&at, uid);
            }
        }
    }
}

fn conditions(new: &Said<'_>, old: &Said<'_>, at: &FieldPath, errors: &mut FieldErrors) {
    let completes = new.complete != old.complete;
    let fails = new.failed != old.failed;
    let failed_indexes = new.status.failed_indexes != old.status.failed_indexes;
    for (wrong, why) in [
        (
            (completes || fails) && new.complete && new.failed,
            "cannot set Complete=True and Failed=true conditions",
        ),
        (
            (completes || new.failing != old.failing) && new.complete && new.failing,
            "cannot set Complete=True and FailureTarget=true conditions",
        ),
        (
            (fails || failed_indexes) && new.failed && !new.failing,
            "cannot set Failed=True condition without the FailureTarget=true condition",
        ),
        (
            (completes || new.succeeding != old.succeeding) && new.complete && !new.succeeding,
            "cannot set Complete=True condition without the SuccessCriteriaMet=true condition",
        ),
        (old.failed && !new.failed, "cannot disable the terminal Failed=True condition"),
        (old.complete && !new.complete, "cannot disable the terminal Complete=True condition"),
        (old.failing && !new.failing, "cannot disable the terminal FailureTarget=True condition"),
        (old.succeeding && !new.succeeding, "cannot disable the SuccessCriteriaMet=True condition"),
        (
            old.complete && !old.succeeding && new.succeeding,
            "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions",
        ),
    ] {
        if wrong {
            invalid_unshown(at, why, errors);
        }
    }
}

fn times(new: &Said<'_>, old: &Said<'_>, spec: &JobSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let (start, end) = (&new.status.start_time, &new.status.completion_time);
    let starts = *start != old.status.start_time;
    let ends = *end != old.status.completion_time;
    let completes = new.complete != old.complete;
    let at_end = at.child("completionTime");
    if (completes || ends) && end.is_some() && !new.complete {
        errors.invalid(&at_end, end, "cannot set completionTime when there is no Complete=True condition");
    }
    if (completes || ends) && end.is_none() && new.complete {
        errors.required(&at_end, "completionTime is required for Complete jobs");
    }
    if (starts || ends)
        && let (Some(first), Some(last)) = (start, end)
        && last.0 < first.0
    {
        errors.invalid(&at_end, end, "must be equal to or after `startTime`");
    }
    if end.is_some() && old.status.completion_time.is_some() && ends {
        errors.invalid(&at_end, end, "field is immutable");
    }
    let at_start = at.child("startTime");
    let finishes = new.finished() != old.finished();
    let waits = spec.suspend == Some(true) && spec.completions == Some(0);
    if (finishes || starts) && !waits && start.is_none() && new.finished() {
        errors.required(&at_start, "startTime is required for finished job");
    }
    let resumes = old.suspended && new.resumed;
    if starts && !resumes && old.status.start_time.is_some() && spec.suspend != Some(true) {
        errors.invalid(&at_start, start, "field is immutable for unsuspended job once set");
    }
}

/// Pods as upstream shows them: with the names that the fields have in memory.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct PodsInMemory<'a> {
    succeeded: Option<&'a [String]>,
    failed: Option<&'a [String]>,
}

fn finished(new: &Said<'_>, old: &Said<'_>, at: &FieldPath, errors: &mut FieldErrors) {
    let (is, was) = (new.status, old.status);
    let finishes = new.finished() != old.finished();
    let active = is.active.unwrap_or(0);
    let other_active = active != was.active.unwrap_or(0);
    if new.finished() {
        if (finishes || other_active) && active > 0 {
            errors.invalid(&at.child("active"), active, "active>0 is invalid for finished job");
        }
        if (finishes || is.terminating != was.terminating) && is.terminating.unwrap_or(0) > 0 {
            errors.invalid(
                &at.child("terminating"),
                is.terminating,
                "terminating>0 is invalid for finished job",
            );
        }
        let pods = is.uncounted_terminated_pods.as_ref();
        let shown = pods.map(|pods| PodsInMemory {
            succeeded: pods.succeeded.as_deref(),
            failed: pods.failed.as_deref(),
        });
        let some = |list: Option<&[String]>| list.is_some_and(|list| !list.is_empty());
        let left = shown.as_ref().is_some_and(|pods| some(pods.succeeded) || some(pods.failed));
        let other = is.uncounted_terminated_pods != was.uncounted_terminated_pods;
        if (finishes || other) && left {
            errors.invalid(&at.child("uncountedTerminatedPods"), shown, "must be empty for finished job");
        }
    }
    if (other_active || is.ready != was.ready) && is.ready.is_some_and(|ready| ready > active) {
        errors.invalid(&at.child("ready"), is.ready, "cannot set more ready pods than active");
    }
}

fn completed(new: &Said<'_>, old: &Said<'_>, spec: &JobSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let done = new.completed_indexes();
    let failed = new.status.failed_indexes.as_deref();
    let other_done = done != old.completed_indexes();
    let other_failed = failed != old.status.failed_indexes.as_deref();
    let (at_done, at_failed) = (at.child("completedIndexes"), at.child("failedIndexes"));
    if let (true, Some(completions)) = (other_done, spec.completions)
        && let Err(why) = indexes::count(done, completions)
    {
        errors.invalid(&at_done, done, format!("error parsing completedIndexes: {why}"));
    }
    if other_failed
        && spec.backoff_limit_per_index.is_some()
        && let (Some(completions), Some(failed)) = (spec.completions, failed)
        && let Err(why) = indexes::count(failed, completions)
    {
        errors.invalid(&at_failed, failed, format!("error parsing failedIndexes: {why}"));
    }
    if other_done && !done.is_empty() && spec.completion_mode.as_deref() != Some("Indexed") {
        let why = "cannot set non-empty completedIndexes when non-indexed completion mode";
        errors.invalid(&at_done, done, why);
    }
    if other_failed && spec.backoff_limit_per_index.is_none() && failed.is_some() {
        let why = "cannot set non-null failedIndexes when backoffLimitPerIndex is null";
        errors.invalid(&at_failed, failed, why);
    }
    if (other_done || other_failed)
        && let (Some(completions), Some(failed)) = (spec.completions, failed)
        && let Some(index) = indexes::overlap(done, failed, completions)
    {
        let why = format!("failedIndexes and completedIndexes overlap at index: {index}");
        errors.invalid(&at_failed, failed, why);
    }
}

fn never_back(new: &Said<'_>, old: &Said<'_>, spec: &JobSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let failed = |said: &Said<'_>| said.status.failed.unwrap_or(0);
    if failed(new) < failed(old) {
        errors.invalid(&at.child("failed"), failed(new), "cannot decrease the failed counter");
    }
    // An Indexed Job of as many completions as pods may be made smaller.
    let elastic = spec.completion_mode.as_deref() == Some("Indexed") && spec.completions == spec.parallelism;
    let succeeded = |said: &Said<'_>| said.status.succeeded.unwrap_or(0);
    if !elastic && succeeded(new) < succeeded(old) {
        errors.invalid(&at.child("succeeded"), succeeded(new), "cannot decrease the succeeded counter");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn said_of(spec: &Value, new: Value, old: Value) -> Vec<String> {
        let job = |status: Value| -> Job {
            serde_json::from_value(json!({"metadata": {"name": "j"}, "spec": spec, "status": status}))
                .expect("a Job")
        };
        let mut errors = FieldErrors::new();
        validate_update(&job(new), &job(old), &FieldPath::new("status"), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    fn said(new: Value, old: Value) -> Vec<String> {
        said_of(&json!({"completions": 1, "parallelism": 1}), new, old)
    }

    fn conditions(kinds: &[&str]) -> Value {
        kinds.iter().map(|kind| json!({"type": kind, "status": "True"})).collect()
    }

    const START: &str = "2026-01-01T00:00:00Z";
    const END: &str = "2026-01-01T00:01:00Z";

    #[test]
    fn a_job_comes_to_its_end_in_order() {
        let done = json!({"succeeded": 1, "startTime": START, "completionTime": END,
            "conditions": conditions(&["SuccessCriteriaMet", "Complete"])});
        assert_eq!(said(done.clone(), json!({"startTime": START, "active": 1})), [""; 0]);
        assert_eq!(
            said(
                json!({"startTime": START, "active": 1, "conditions": conditions(&["Complete"])}),
                json!({})
            ),
            [
                "status.conditions: Invalid value: cannot set Complete=True condition without the \
                 SuccessCriteriaMet=true condition",
                "status.completionTime: Required value: completionTime is required for Complete jobs",
                "status.active: Invalid value: 1: active>0 is invalid for finished job",
            ]
        );
        assert_eq!(
            said(json!({"startTime": START}), done),
            [
                "status.conditions: Invalid value: cannot disable the terminal Complete=True condition",
                "status.conditions: Invalid value: cannot disable the SuccessCriteriaMet=True condition",
                "status.succeeded: Invalid value: 0: cannot decrease the succeeded counter",
            ]
        );
    }

    #[test]
    fn what_was_wrong_before_may_stay() {
        let odd = json!({"startTime": START, "conditions": conditions(&["Failed"])});
        assert_eq!(said(odd.clone(), odd), [""; 0]);
    }

    #[test]
    fn times_do_not_move() {
        let moved = said(json!({"startTime": END}), json!({"startTime": START}));
        let why = "field is immutable for unsuspended job once set";
        assert_eq!(moved, [format!("status.startTime: Invalid value: \"{END}\": {why}")]);
        let suspended = json!({"suspend": true});
        assert_eq!(said_of(&suspended, json!({}), json!({"startTime": START})), [""; 0]);
    }

    #[test]
    fn indexes_are_those_of_the_job() {
        let indexed = json!({"completionMode": "Indexed", "completions": 3, "parallelism": 3,
            "backoffLimitPerIndex": 1});
        assert_eq!(
            said_of(&indexed, json!({"completedIndexes": "0-1", "failedIndexes": "1,5"}), json!({})),
            [
                "status.failedIndexes: Invalid value: \"1,5\": error parsing failedIndexes: too large index: \"5\"",
                "status.failedIndexes: Invalid value: \"1,5\": failedIndexes and completedIndexes overlap at index: 1",
            ]
        );
        assert_eq!(
            said(json!({"completedIndexes": "0"}), json!({})),
            ["status.completedIndexes: Invalid value: \"0\": cannot set non-empty completedIndexes when \
                 non-indexed completion mode"]
        );
    }

    #[test]
    fn pods_are_counted_once() {
        assert_eq!(
            said(
                json!({"active": 0, "ready": 1, "uncountedTerminatedPods": {"succeeded": ["a"], "failed": ["a", ""]}}),
                json!({})
            ),
            [
                "status.uncountedTerminatedPods.failed[0]: Duplicate value: \"a\"",
                "status.uncountedTerminatedPods.failed[1]: Invalid value: \"\": must not be empty",
                "status.ready: Invalid value: 1: cannot set more ready pods than active",
            ]
        );
    }
}
