//! Who may do what.

pub mod cluster_role;
pub mod cluster_role_binding;
pub mod role;
pub mod role_binding;

use k8s_openapi::api::rbac::v1::{PolicyRule, RoleRef, Subject};
use krate_api::{FieldErrors, FieldPath};
use serde_json::Value;

use super::rules::{one_of, path_segment, required};

const GROUP: &str = "rbac.authorization.k8s.io";

fn rule(rule: &PolicyRule, namespaced: bool, at: &FieldPath, errors: &mut FieldErrors) {
    let some = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|l| !l.is_empty());
    if rule.verbs.is_empty() {
        errors.required(&at.child("verbs"), "verbs must contain at least one value");
    }
    if some(&rule.non_resource_urls) {
        let at = at.child("nonResourceURLs");
        if namespaced {
            errors.invalid(
                &at,
                &rule.non_resource_urls,
                "namespaced rules cannot apply to non-resource URLs",
            );
        }
        if some(&rule.api_groups) || some(&rule.resources) || some(&rule.resource_names) {
            errors.invalid(
                &at,
                &rule.non_resource_urls,
                "rules cannot apply to both regular resources and non-resource URLs",
            );
        }
        return;
    }
    if !some(&rule.api_groups) {
        errors.required(&at.child("apiGroups"), "resource rules must supply at least one api group");
    }
    if !some(&rule.resources) {
        errors.required(&at.child("resources"), "resource rules must supply at least one resource");
    }
}

/// The group of a reference or a subject follows from its kind.
fn default_ref(reference: &mut RoleRef) {
    if reference.api_group.as_deref().is_none_or(str::is_empty) {
        reference.api_group = Some(GROUP.to_owned());
    }
}

fn default_subjects(subjects: Option<&mut Vec<Subject>>) {
    for subject in subjects.into_iter().flatten() {
        if subject.api_group.as_deref().is_none_or(str::is_empty) {
            subject.api_group = matches!(subject.kind.as_str(), "User" | "Group").then(|| GROUP.to_owned());
        }
    }
}

fn role_ref(reference: &RoleRef, kinds: &[&str], at: &FieldPath, errors: &mut FieldErrors) {
    let at = at.child("roleRef");
    if reference.api_group.as_deref() != Some(GROUP) {
        errors.not_supported(&at.child("apiGroup"), &reference.api_group, &[GROUP]);
    }
    // Upstream names the kinds in this order.
    one_of(&reference.kind, kinds, &at.child("kind"), errors);
    path_segment(&reference.name, &at.child("name"), errors);
}

/// The reference is shown as upstream holds it in memory.
fn role_ref_changed(reference: &RoleRef, at: &FieldPath, errors: &mut FieldErrors) {
    let text = |text: &str| serde_json::Value::from(text).to_string();
    let group = text(reference.api_group.as_deref().unwrap_or_default());
    errors.push(krate_api::field::FieldError {
        fault: krate_api::field::Fault::Invalid,
        field: at.clone(),
        value: Some(format!(
            "{{\"APIGroup\":{group},\"Kind\":{},\"Name\":{}}}",
            text(&reference.kind),
            text(&reference.name)
        )),
        detail: "cannot change roleRef".to_owned(),
    });
}

fn subjects(list: Option<&[Subject]>, namespaced: bool, at: &FieldPath, errors: &mut FieldErrors) {
    for (i, subject) in list.unwrap_or_default().iter().enumerate() {
        let at = at.child("subjects").index(i);
        required(Some(&subject.name), &at.child("name"), errors);
        let group = subject.api_group.as_deref().unwrap_or_default();
        match subject.kind.as_str() {
            "ServiceAccount" => {
                if !subject.name.is_empty() {
                    super::rules::dns_subdomain(&subject.name, &at.child("name"), errors);
                }
                if !group.is_empty() {
                    errors.not_supported(&at.child("apiGroup"), group, &[""]);
                }
                if !namespaced && subject.namespace.as_deref().is_none_or(str::is_empty) {
                    errors.required(&at.child("namespace"), "");
                }
            }
            "User" | "Group" => {
                if group != GROUP {
                    errors.not_supported(&at.child("apiGroup"), group, &[GROUP]);
                }
            }
            other => errors.not_supported(&at.child("kind"), other, &["ServiceAccount", "User", "Group"]),
        }
    }
}

/// The subjects of one kind, as `kubectl get -o wide` lists them.
fn named(list: Option<&[Subject]>, kind: &str) -> Value {
    let subjects = list.unwrap_or_default().iter().filter(|s| s.kind == kind);
    let names: Vec<String> = subjects
        .map(|s| match (kind, s.namespace.as_deref()) {
            ("ServiceAccount", namespace) => format!("{}/{}", namespace.unwrap_or_default(), s.name),
            _ => s.name.clone(),
        })
        .collect();
    names.join(", ").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn accounts_are_shown_with_their_namespace() {
        let subjects: Vec<Subject> = serde_json::from_value(json!([
            {"kind": "ServiceAccount", "name": "a", "namespace": "n"}, {"kind": "ServiceAccount", "name": "b"},
            {"kind": "User", "name": "u"},
        ]))
        .expect("subjects");
        assert_eq!(named(Some(&subjects), "ServiceAccount"), "n/a, /b");
        assert_eq!(named(Some(&subjects), "User"), "u");
    }
}
