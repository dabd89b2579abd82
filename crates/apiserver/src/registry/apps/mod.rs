//! Workloads.

pub mod controller_revision;
pub mod daemon_set;
pub mod deployment;
pub mod replica_set;
pub mod stateful_set;

use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use krate_api::{FieldErrors, FieldPath};

use super::core::pod_spec;
use super::rules::{is_empty_selector, label_selector, one_of, selects};

/// How a faulty selector of a workload is named, which differs between the kinds.
enum Missing {
    /// `spec.selector: Required value`.
    Required,
    /// Nothing is said of it being absent.
    Silent,
}

/// The selector and the template that must fit it.
fn workload(
    selector: &LabelSelector,
    template: &PodTemplateSpec,
    missing: &Missing,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    let at_selector = at.child("selector");
    let empty = is_empty_selector(selector);
    if empty {
        if matches!(missing, Missing::Required) {
            errors.required(&at_selector, "");
        }
    } else {
        label_selector(selector, &at_selector, errors);
    }
    let at = at.child("template");
    let labels = template.metadata.as_ref().and_then(|m| m.labels.as_ref());
    // An absent selector takes nothing.
    if empty || !selects(selector, labels) {
        errors.invalid(
            &at.child("metadata").child("labels"),
            labels,
            "`selector` does not match template `labels`",
        );
    }
    pod_spec::template(template, &at, errors);
    let spec = template.spec.as_ref();
    let policy = spec.and_then(|s| s.restart_policy.as_deref()).unwrap_or_default();
    one_of(policy, &["Always"], &at.child("spec").child("restartPolicy"), errors);
    if spec.is_some_and(|s| s.active_deadline_seconds.is_some()) {
        errors.forbidden(
            &at.child("spec").child("activeDeadlineSeconds"),
            "activeDeadlineSeconds in ReplicaSet is not Supported",
        );
    }
}
