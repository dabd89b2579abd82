//! What may stand in an object's metadata, and what of it may change: upstream's
//! `k8s.io/apimachinery/pkg/api/validation`.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta, OwnerReference};

use crate::field::{FieldErrors, FieldPath};
use crate::kind::Scope;
use crate::names::{self, NameRule};

/// How many bytes the annotations of an object may have, keys and values together.
pub const ANNOTATIONS_MAX: usize = 256 * 1024;
/// How many bytes a field manager's name may have.
pub const MANAGER_MAX: usize = 128;
/// What is said of a field that may not change.
pub const IMMUTABLE: &str = "field is immutable";

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

/// The metadata of a new object, after its name was made from `generateName`.
pub fn validate_new(
    meta: &ObjectMeta,
    scope: Scope,
    rule: NameRule,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    if let Some(prefix) = text(meta.generate_name.as_ref()) {
        for wrong in rule.check(prefix, true) {
            errors.invalid(&at.child("generateName"), prefix, wrong);
        }
    }
    match text(meta.name.as_ref()) {
        None => errors.required(&at.child("name"), "name or generateName is required"),
        Some(name) => {
            for wrong in rule.check(name, false) {
                errors.invalid(&at.child("name"), name, wrong);
            }
        }
    }
    let namespace = at.child("namespace");
    match (scope, text(meta.namespace.as_ref())) {
        (Scope::Namespaced, None) => errors.required(&namespace, ""),
        (Scope::Namespaced, Some(name)) => {
            for wrong in names::is_dns1123_label(name) {
                errors.invalid(&namespace, name, wrong);
            }
        }
        (Scope::Cluster, Some(_)) => errors.forbidden(&namespace, "not allowed on this type"),
        (Scope::Cluster, None) => {}
    }
    if let Some(generation) = meta.generation.filter(|g| *g < 0) {
        errors.invalid(&at.child("generation"), generation, "must be greater than or equal to 0");
    }
    common(meta, true, at, errors);
}

/// The metadata of an object that replaces another. `old` must be what is stored.
pub fn validate_update(new: &ObjectMeta, old: &ObjectMeta, at: &FieldPath, errors: &mut FieldErrors) {
    if old.deletion_timestamp.is_some() {
        validate_no_new_finalizers(new, old, &at.child("finalizers"), errors);
    }
    if text(new.resource_version.as_ref()).is_none() {
        errors.invalid(&at.child("resourceVersion"), "", "must be specified for an update");
    }
    if new.generation.unwrap_or(0) < old.generation.unwrap_or(0) {
        errors.invalid(&at.child("generation"), new.generation.unwrap_or(0), "must not be decremented");
    }
    let texts = [
        ("name", &new.name, &old.name),
        ("namespace", &new.namespace, &old.namespace),
        ("uid", &new.uid, &old.uid),
    ];
    for (name, new, old) in texts {
        immutable(&text(new.as_ref()), &text(old.as_ref()), at, name, errors);
    }
    immutable(&new.creation_timestamp, &old.creation_timestamp, at, "creationTimestamp", errors);
    immutable(&new.deletion_timestamp, &old.deletion_timestamp, at, "deletionTimestamp", errors);
    let (new_grace, old_grace) = (&new.deletion_grace_period_seconds, &old.deletion_grace_period_seconds);
    immutable(new_grace, old_grace, at, "deletionGracePeriodSeconds", errors);
    common(new, false, at, errors);
}

/// Says that a field of what is at `at` changed which may not. Its path is made only where it is told.
fn immutable<T: PartialEq + serde::Serialize>(
    new: &T,
    old: &T,
    at: &FieldPath,
    field: &str,
    errors: &mut FieldErrors,
) {
    if new != old {
        errors.invalid(&at.child(field), new, IMMUTABLE);
    }
}

/// What is asked of a new object and of a changed one alike, in upstream's order.
fn common(meta: &ObjectMeta, is_new: bool, at: &FieldPath, errors: &mut FieldErrors) {
    if let Some(labels) = &meta.labels {
        validate_labels(labels, &at.child("labels"), errors);
    }
    if let Some(annotations) = &meta.annotations {
        validate_annotations(annotations, &at.child("annotations"), errors);
    }
    let owners = meta.owner_references.as_deref().unwrap_or_default();
    validate_owner_references(owners, &at.child("ownerReferences"), errors);
    if is_new {
        let finalizers = meta.finalizers.as_deref().unwrap_or_default();
        validate_finalizers(finalizers, &at.child("finalizers"), errors);
    }
    let managed = meta.managed_fields.as_deref().unwrap_or_default();
    validate_managed_fields(managed, &at.child("managedFields"), errors);
}

pub fn validate_labels(labels: &BTreeMap<String, String>, at: &FieldPath, errors: &mut FieldErrors) {
    for (key, value) in labels {
        for wrong in names::is_qualified_name(key) {
            errors.invalid(at, key, wrong);
        }
        for wrong in names::is_label_value(value) {
            errors.invalid(at, value, wrong);
        }
    }
}

/// Keys are qualified names in which case does not matter; all together are bounded.
pub fn validate_annotations(
    annotations: &BTreeMap<String, String>,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    for key in annotations.keys() {
        for wrong in names::is_qualified_name(&key.to_lowercase()) {
            errors.invalid(at, key, wrong);
        }
    }
    if annotations.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>() > ANNOTATIONS_MAX {
        errors.too_long(at, ANNOTATIONS_MAX);
    }
}

/// Owners are named in full, no Event owns anything, and one at most is the controller.
pub fn validate_owner_references(owners: &[OwnerReference], at: &FieldPath, errors: &mut FieldErrors) {
    let mut controller: Option<String> = None;
    for owner in owners {
        let version = owner.api_version.rsplit('/').next().unwrap_or_default();
        if version.is_empty() || owner.api_version.matches('/').count() > 1 {
            errors.invalid(&at.child("apiVersion"), &owner.api_version, "version must not be empty");
        }
        for (field, value) in [("kind", &owner.kind), ("name", &owner.name), ("uid", &owner.uid)] {
            if value.is_empty() {
                errors.invalid(&at.child(field), value, "must not be empty");
            }
        }
        if owner.api_version == "v1" && owner.kind == "Event" {
            errors.invalid(at, owner, "/v1, Kind=Event is disallowed from being an owner");
        }
        if owner.controller == Some(true) {
            let this = format!("{}/{}", owner.kind, owner.name);
            match &controller {
                Some(first) => errors.invalid(
                    at,
                    owners,
                    format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} \
                         and {this}"
                    ),
                ),
                None => controller = Some(this),
            }
        }
    }
}

pub fn validate_finalizers(finalizers: &[String], at: &FieldPath, errors: &mut FieldErrors) {
    for finalizer in finalizers {
        for wrong in names::is_qualified_name(finalizer) {
            errors.invalid(at, finalizer, wrong);
        }
    }
    let has = |name: &str| finalizers.iter().any(|f| f == name);
    if has(ORPHAN) && has(FOREGROUND) {
        let detail = format!("finalizer {FOREGROUND} and {ORPHAN} cannot be both set");
        errors.invalid(at, finalizers, detail);
    }
}

fn validate_no_new_finalizers(new: &ObjectMeta, old: &ObjectMeta, at: &FieldPath, errors: &mut FieldErrors) {
    let known = old.finalizers.as_deref().unwrap_or_default();
    let mut added: Vec<&String> = new.finalizers.iter().flatten().filter(|f| !known.contains(f)).collect();
    added.sort();
    added.dedup();
    if !added.is_empty() {
        let shown = added.iter().map(|f| format!("{f:?}")).collect::<Vec<_>>().join(", ");
        errors.forbidden(
            at,
            format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers \
                 []string{{{shown}}}"
            ),
        );
    }
}

pub fn validate_managed_fields(entries: &[ManagedFieldsEntry], at: &FieldPath, errors: &mut FieldErrors) {
    for (i, entry) in entries.iter().enumerate() {
        let at = at.index(i);
        let operation = entry.operation.as_deref().unwrap_or_default();
        if !matches!(operation, "Apply" | "Update") {
            errors.invalid(&at.child("operation"), operation, "must be `Apply` or `Update`");
        }
        if let Some(t) = text(entry.fields_type.as_ref()).filter(|t| *t != "FieldsV1") {
            errors.invalid(&at.child("fieldsType"), t, "must be `FieldsV1`");
        }
        validate_manager(entry.manager.as_deref().unwrap_or_default(), &at.child("manager"), errors);
        if entry.subresource.as_deref().unwrap_or_default().len() > 256 {
            errors.too_long(&at.child("subresource"), 256);
        }
    }
}

/// A field manager's name: short and printable.
pub fn validate_manager(manager: &str, at: &FieldPath, errors: &mut FieldErrors) {
    if manager.len() > MANAGER_MAX {
        errors.too_long(at, MANAGER_MAX);
    }
    for (i, c) in manager.char_indices().filter(|(_, c)| !is_print(*c)) {
        errors.invalid(at, manager, format!("invalid character U+{:04X} (at position {i})", u32::from(c)));
    }
}

/// Whether a character is shown as it is, as Go has it.
pub fn is_print(c: char) -> bool {
    if c.is_ascii() {
        return c == ' ' || c.is_ascii_graphic();
    }
    // Alone, or at the beginning, a mark that joins what is before it would be escaped too.
    ["a", &*c.encode_utf8(&mut [0; 4])].concat().escape_debug().count() == 2
}

/// A text that is there and not empty.
fn text(s: Option<&String>) -> Option<&str> {
    s.map(String::as_str).filter(|s| !s.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn meta(value: serde_json::Value) -> ObjectMeta {
        serde_json::from_value(value).expect("metadata")
    }

    fn faults(check: impl FnOnce(&FieldPath, &mut FieldErrors)) -> Vec<String> {
        let mut errors = FieldErrors::new();
        check(&FieldPath::new("metadata"), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn new_metadata_is_judged_in_upstreams_words() {
        let new = |m: serde_json::Value, scope| {
            faults(|at, errors| validate_new(&meta(m), scope, NameRule::Subdomain, at, errors))
        };
        assert_eq!(
            new(json!({"namespace": "n"}), Scope::Namespaced),
            ["metadata.name: Required value: name or generateName is required"]
        );
        assert_eq!(
            new(json!({"name": "a", "namespace": "n"}), Scope::Cluster),
            ["metadata.namespace: Forbidden: not allowed on this type"]
        );
        assert_eq!(new(json!({"name": "a"}), Scope::Namespaced), ["metadata.namespace: Required value"]);
        let all = new(
            json!({
                "name": "a", "generateName": "A_-", "finalizers": ["orphan", "foregroundDeletion"],
                "annotations": {"Big": "x".repeat(ANNOTATIONS_MAX)}, "generation": -1,
                "labels": {"a": "v v"},
                "ownerReferences": [
                    {"apiVersion": "v1", "kind": "Event", "name": "e", "uid": "", "controller": true},
                    {"apiVersion": "", "kind": "Pod", "name": "p", "uid": "2", "controller": true}],
                "managedFields": [{"operation": "Odd", "manager": "a\u{1}"}],
            }),
            Scope::Cluster,
        );
        let starts = [
            "metadata.generateName: Invalid value: \"A_-\": a lowercase RFC 1123 subdomain",
            "metadata.generation: Invalid value: -1: must be greater than or equal to 0",
            "metadata.labels: Invalid value: \"v v\": a valid label",
            "metadata.annotations: Too long: may not be more than 262144 bytes",
            "metadata.ownerReferences.uid: Invalid value: \"\": must not be empty",
            "metadata.ownerReferences: Invalid value: {",
            "metadata.ownerReferences.apiVersion: Invalid value: \"\": version must not be empty",
            "metadata.ownerReferences: Invalid value: [",
            "metadata.finalizers: Invalid value: [\"orphan\",\"foregroundDeletion\"]: finalizer",
            "metadata.managedFields[0].operation: Invalid value: \"Odd\": must be `Apply` or `Update`",
            "metadata.managedFields[0].manager: Invalid value: \"a\\u0001\": invalid character U+0001 (at position 1)",
        ];
        assert_eq!(all.len(), starts.len(), "{all:#?}");
        for (fault, start) in all.iter().zip(starts) {
            assert!(fault.starts_with(start), "{fault} does not start with {start}");
        }
    }

    #[test]
    fn what_go_prints_is_printable() {
        for c in ['a', '~', ' ', '"', '\'', '\\', '\u{e9}', '\u{4e2d}', '\u{301}', '\u{1f600}'] {
            assert!(is_print(c), "{c:?}");
        }
        for c in ['\u{1}', '\u{7f}', '\u{a0}', '\u{ad}', '\u{200b}', '\u{2028}', '\u{e000}', '\u{378}'] {
            assert!(!is_print(c), "{c:?}");
        }
        let faults = faults(|at, errors| validate_manager("a\u{200b}", at, errors));
        assert_eq!(
            faults,
            ["metadata: Invalid value: \"a\u{200b}\": invalid character U+200B (at position 1)"]
        );
    }

    #[test]
    fn changed_metadata_keeps_what_is_immutable() {
        let old = json!({"name": "a", "namespace": "n", "uid": "1", "generation": 2, "resourceVersion": "5",
            "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["a.b/c"]});
        let mut new = old.clone();
        let update = |new: &serde_json::Value| {
            faults(|at, errors| validate_update(&meta(new.clone()), &meta(old.clone()), at, errors))
        };
        assert_eq!(update(&new), Vec::<String>::new());
        new["uid"] = json!("x");
        new["generation"] = json!(1);
        new["resourceVersion"] = json!("");
        new["finalizers"] = json!(["a.b/d"]);
        assert_eq!(
            update(&new),
            [
                "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found \
                 new finalizers []string{\"a.b/d\"}",
                "metadata.resourceVersion: Invalid value: \"\": must be specified for an update",
                "metadata.generation: Invalid value: 1: must not be decremented",
                "metadata.uid: Invalid value: \"x\": field is immutable",
            ]
        );
    }
}
