//! PersistentVolumeClaim: storage that is asked for.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimSpec, PersistentVolumeClaimStatus, TypedLocalObjectReference,
    TypedObjectReference,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};
use serde_json::Value;

use super::persistent_volume::{initials, storage};
use super::pod_spec;
use crate::registry::column::{age, name, text, wide};
use crate::registry::prepare::differ;
use crate::registry::quantities::{is_negative, is_whole, more};
use crate::registry::rules::{IMMUTABLE, each, qualified_name};
use crate::registry::{Column, Context, Selectable, Strategy};

const PROTECTION: &str = "kubernetes.io/pvc-protection";
const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

impl Strategy for PersistentVolumeClaim {
    const KIND: &'static Kind = &kinds::PERSISTENT_VOLUME_CLAIM;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text("Status", "io.k8s.api.core.v1.PersistentVolumeClaimStatus.phase", phase),
        text("Volume", "io.k8s.api.core.v1.PersistentVolumeClaimSpec.volumeName", |c| {
            spec(c).volume_name.unwrap_or_default().into()
        }),
        text("Capacity", "io.k8s.api.core.v1.PersistentVolumeClaimStatus.capacity", |c| {
            if bound(c) { storage(c.status.as_ref().and_then(|s| s.capacity.as_ref())) } else { "".into() }
        }),
        text("Access Modes", "io.k8s.api.core.v1.PersistentVolumeClaimStatus.accessModes", |c| {
            let modes = c.status.as_ref().and_then(|s| s.access_modes.as_deref());
            if bound(c) { initials(modes) } else { "".into() }
        }),
        text("StorageClass", "StorageClass of the pvc", |c| {
            beta_class(c).cloned().or(spec(c).storage_class_name).unwrap_or_default().into()
        }),
        text("VolumeAttributesClass", "VolumeAttributesClass of the pvc", |c| {
            spec(c).volume_attributes_class_name.unwrap_or_else(|| "<unset>".to_owned()).into()
        }),
        age(),
        wide("VolumeMode", "io.k8s.api.core.v1.PersistentVolumeClaimSpec.volumeMode", |c| {
            spec(c).volume_mode.unwrap_or_else(|| "<unset>".to_owned()).into()
        }),
    ];

    fn default(&mut self) {
        pod_spec::default_claim(self.spec.get_or_insert_default());
        let status = self.status.get_or_insert_default();
        if status.phase.as_deref().is_none_or(str::is_empty) {
            status.phase = Some("Pending".to_owned());
        }
    }

    fn prepare_for_create(&mut self, _: &Context) {
        self.status = None;
        self.status.get_or_insert_default();
        if let Some(status) = &mut self.status {
            status.phase = Some("Pending".to_owned());
        }
        let finalizers = self.metadata.finalizers.get_or_insert_default();
        if !finalizers.iter().any(|f| f == PROTECTION) {
            finalizers.push(PROTECTION.to_owned());
        }
        known_source(self.spec.get_or_insert_default(), None);
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context) {
        self.status.clone_from(&old.status);
        known_source(self.spec.get_or_insert_default(), old.spec.as_ref());
    }

    fn prepare_for_status_update(&mut self, old: &Self, _: &Context) {
        self.spec.clone_from(&old.spec);
    }

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        if let Some(spec) = &self.spec {
            pod_spec::claim(spec, &at.child("spec"), errors);
        }
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        let (new, was) = (spec(self), spec(old));
        if !is_moved_to_field(self, old) && beta_class(self) != beta_class(old) {
            errors.invalid(
                &at.child("metadata").child("annotations").child(BETA_CLASS),
                beta_class(self).map_or("", String::as_str),
                IMMUTABLE,
            );
        }
        let at = at.child("spec");
        if differ(&without_what_may_change(self, old), &was) {
            errors.forbidden(
                &at,
                "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
            );
        }
        let (status, none) = (old.status.clone().unwrap_or_default(), Quantity("0".to_owned()));
        let has = amount_of(status.capacity.as_ref()).unwrap_or(&none);
        let (wants, wanted) = (size(&new).unwrap_or(&none), size(&was).unwrap_or(&none));
        // One that is being enlarged may be asked to be less again, as long as that is more than it has.
        if more(wanted, wants) && !more(wants, has) {
            errors.forbidden(
                &at.child("resources").child("requests").child("storage"),
                "field can not be less than status.capacity",
            );
        }
        if new.volume_mode != was.volume_mode {
            errors.invalid(&FieldPath::new("volumeMode"), &new.volume_mode, IMMUTABLE);
        }
        if status.current_volume_attributes_class_name.is_some() {
            keeps_a_class(&new, &was, &at.child("volumeAttributesClassName"), errors);
        }
    }

    fn validate_status_update(&self, _: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        if let Some(status) = &self.status {
            self::status(status, &at.child("status"), errors);
        }
    }

    fn warnings(&self, old: Option<&Self>) -> Vec<String> {
        // Who writes the status is told nothing.
        if old.is_some_and(|old| self.spec == old.spec && self.status != old.status) {
            return Vec::new();
        }
        let mut warnings = Vec::new();
        if beta_class(self).is_some() {
            warnings.push(format!(
                "metadata.annotations[{BETA_CLASS}]: deprecated since v1.8; use \"storageClassName\" attribute instead"
            ));
        }
        let resources = self.spec.as_ref().and_then(|spec| spec.resources.as_ref());
        for (field, amounts) in [
            ("requests", resources.and_then(|r| r.requests.as_ref())),
            ("limits", resources.and_then(|r| r.limits.as_ref())),
        ] {
            if let Some(value) = amount_of(amounts).filter(|value| !is_whole(value)) {
                warnings.push(format!(
                    "spec.resources.{field}[storage]: fractional byte value {:?} is invalid, must be an integer",
                    value.0
                ));
            }
        }
        warnings
    }

    fn selectable(&self) -> Selectable {
        vec![("name", self.metadata.name.clone().unwrap_or_default())]
    }
}

fn spec(claim: &PersistentVolumeClaim) -> PersistentVolumeClaimSpec {
    claim.spec.clone().unwrap_or_default()
}

fn bound(claim: &PersistentVolumeClaim) -> bool {
    claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).is_some_and(|v| !v.is_empty())
}

fn phase(claim: &PersistentVolumeClaim) -> Value {
    if claim.metadata.deletion_timestamp.is_some() {
        return "Terminating".into();
    }
    claim.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default().into()
}

fn amount_of(amounts: Option<&BTreeMap<String, Quantity>>) -> Option<&Quantity> {
    amounts?.get("storage")
}

/// How much storage is asked for.
fn size(spec: &PersistentVolumeClaimSpec) -> Option<&Quantity> {
    amount_of(spec.resources.as_ref()?.requests.as_ref())
}

fn beta_class(claim: &PersistentVolumeClaim) -> Option<&String> {
    claim.metadata.annotations.as_ref()?.get(BETA_CLASS)
}

/// Whether the class goes from the annotation, which was there before the field, to the field.
fn is_moved_to_field(new: &PersistentVolumeClaim, old: &PersistentVolumeClaim) -> bool {
    let class = |claim: &PersistentVolumeClaim| spec(claim).storage_class_name;
    beta_class(old).is_some_and(|annotated| {
        class(old).is_none()
            && class(new).as_ref() == Some(annotated)
            && beta_class(new).is_none_or(|now| now == annotated)
    })
}

/// The new spec with what it was wherever that may change.
fn without_what_may_change(
    new: &PersistentVolumeClaim,
    old: &PersistentVolumeClaim,
) -> PersistentVolumeClaimSpec {
    let (mut rest, was) = (spec(new), spec(old));
    // A claim is bound once, may be enlarged once bound, and may be moved to other attributes.
    if was.volume_name.as_deref().is_none_or(str::is_empty) {
        rest.volume_name.clone_from(&was.volume_name);
    }
    let is_bound = new.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
    let is_same = |a: &Quantity, b: &Quantity| !more(a, b) && !more(b, a);
    if let (Some(wanted), Some(requests)) =
        (size(&was), rest.resources.as_mut().and_then(|r| r.requests.as_mut()))
        && let Some(wants) = requests.get_mut("storage")
        && (is_bound || is_same(wants, wanted))
    {
        wants.clone_from(wanted);
    }
    if is_bound {
        rest.volume_attributes_class_name.clone_from(&was.volume_attributes_class_name);
    }
    let comes_late = was.storage_class_name.is_none()
        && beta_class(old).is_none_or(|class| rest.storage_class_name.as_ref() == Some(class));
    if comes_late {
        rest.storage_class_name = None;
    }
    rest
}

/// Attributes that a volume has been given are not taken away, only exchanged.
fn keeps_a_class(
    new: &PersistentVolumeClaimSpec,
    was: &PersistentVolumeClaimSpec,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    let what = match new.volume_attributes_class_name.as_deref() {
        None if was.volume_attributes_class_name.is_some() => "nil",
        Some("") if was.volume_attributes_class_name.as_deref() != Some("") => "empty string",
        _ => return,
    };
    let why = "is forbidden when status.currentVolumeAttributesClassName is not nil";
    errors.forbidden(at, format!("update to {what} {why}"));
}

fn status(status: &PersistentVolumeClaimStatus, at: &FieldPath, errors: &mut FieldErrors) {
    const STATES: &[&str] = &[
        "ControllerResizeInProgress",
        "ControllerResizeInfeasible",
        "NodeResizeInProgress",
        "NodeResizeInfeasible",
        "NodeResizePending",
    ];
    for (name, value) in status.capacity.iter().flatten() {
        not_less_than_nothing(value, &at.child("capacity").key(name), errors);
    }
    let at_states = at.child("allocatedResourceStatuses");
    for (name, state) in status.allocated_resource_statuses.iter().flatten() {
        resource(name, &at_states, errors);
        if !STATES.contains(&state.as_str()) {
            let mut known = STATES.to_vec();
            known.sort_unstable();
            errors.not_supported(&at_states, name, &known);
        }
    }
    let at_amounts = at.child("allocatedResources");
    for (name, value) in status.allocated_resources.iter().flatten() {
        if resource(name, &at_amounts, errors) {
            not_less_than_nothing(value, &at_amounts.key(name), errors);
        }
    }
}

fn not_less_than_nothing(value: &Quantity, at: &FieldPath, errors: &mut FieldErrors) {
    if is_negative(value) {
        let bytes = krate_api::quantity::Quantity::parse(&value.0).map_or(0, |q| q.value());
        errors.invalid(at, bytes, "must be a valid resource quantity");
    }
}

/// Whether a claim may be given such a resource: of Kubernetes' own, storage alone.
fn resource(name: &str, at: &FieldPath, errors: &mut FieldErrors) -> bool {
    let wrong = qualified_name(name);
    if !wrong.is_empty() {
        each(wrong, name, at, errors);
        return false;
    }
    if pod_spec::is_native(name) && name != "storage" {
        errors.not_supported(at, name, &["storage"]);
        return false;
    }
    true
}

/// Both fields for the source of the contents say the same where either can. What the older one could never say is as
/// if it were not said (KEP-1495), and so is what no feature brings.
fn known_source(spec: &mut PersistentVolumeClaimSpec, was: Option<&PersistentVolumeClaimSpec>) {
    let had_ref = was.is_some_and(|was| was.data_source_ref.is_some());
    let is_elsewhere =
        |source: &TypedObjectReference| source.namespace.as_deref().is_some_and(|n| !n.is_empty());
    if !had_ref && spec.data_source_ref.as_ref().is_some_and(is_elsewhere) {
        spec.data_source_ref = None;
    }
    let had_some = had_ref || was.is_some_and(|was| was.data_source.is_some());
    if !had_some && spec.data_source_ref.is_none() && !spec.data_source.as_ref().is_some_and(is_of_old) {
        spec.data_source = None;
    }
    match (&spec.data_source, &spec.data_source_ref) {
        (Some(source), None) => {
            spec.data_source_ref = Some(TypedObjectReference {
                api_group: source.api_group.clone(),
                kind: source.kind.clone(),
                name: source.name.clone(),
                namespace: None,
            });
        }
        (None, Some(source)) if !is_elsewhere(source) => {
            spec.data_source = Some(TypedLocalObjectReference {
                api_group: source.api_group.clone(),
                kind: source.kind.clone(),
                name: source.name.clone(),
            });
        }
        _ => {}
    }
}

/// Whether it is one of the two that the older field was made for.
fn is_of_old(source: &TypedLocalObjectReference) -> bool {
    matches!(
        (source.api_group.as_deref().unwrap_or_default(), source.kind.as_str()),
        ("", "PersistentVolumeClaim") | ("snapshot.storage.k8s.io", "VolumeSnapshot")
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn claim(spec: &Value, status: &Value) -> PersistentVolumeClaim {
        let mut object = json!({"metadata": {"name": "c"}, "status": status, "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}}});
        for (field, value) in spec.as_object().into_iter().flatten() {
            object["spec"][field] = value.clone();
        }
        let mut claim: PersistentVolumeClaim = serde_json::from_value(object).expect("a claim");
        claim.default();
        claim
    }

    fn asking(size: &str) -> Value {
        json!({"resources": {"requests": {"storage": size}}})
    }

    fn wrong(new: &PersistentVolumeClaim, old: &PersistentVolumeClaim) -> Vec<String> {
        let mut errors = FieldErrors::new();
        new.validate_update(old, &FieldPath::new(""), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    const FIXED: &str = "spec: Forbidden: spec is immutable after creation except resources.requests and \
                         volumeAttributesClassName for bound claims";
    const TOO_LITTLE: &str =
        "spec.resources.requests.storage: Forbidden: field can not be less than status.capacity";

    #[test]
    fn a_claim_that_is_bound_may_grow_and_shrink_to_what_it_has() {
        let bound = json!({"phase": "Bound", "capacity": {"storage": "1Gi"}});
        let pending = json!({"phase": "Pending"});
        for (status, size, texts) in [
            (&bound, "3Gi", vec![]),
            (&bound, "1536Mi", vec![]),
            (&bound, "1Gi", vec![TOO_LITTLE]),
            (&pending, "3Gi", vec![FIXED]),
            (&pending, "2Gi", vec![]),
        ] {
            let (new, old) = (claim(&asking(size), status), claim(&json!({}), status));
            assert_eq!(wrong(&new, &old), texts, "{size}");
        }
    }

    #[test]
    fn classes_come_late_and_do_not_go() {
        let old = claim(&json!({}), &json!({}));
        let with_class = claim(&json!({"storageClassName": "a"}), &json!({}));
        assert_eq!(wrong(&with_class, &old), [""; 0]);
        assert_eq!(wrong(&old, &with_class), [FIXED]);
        let mut annotated = old.clone();
        annotated.metadata.annotations = Some([(BETA_CLASS.to_owned(), "a".to_owned())].into());
        assert_eq!(wrong(&with_class, &annotated), [""; 0], "it has moved to the field");
        assert_eq!(annotated.warnings(None).len(), 1);
        assert_eq!(
            wrong(&old, &annotated),
            [
                "metadata.annotations.volume.beta.kubernetes.io/storage-class: Invalid value: \"\": field is immutable"
            ]
        );
        let status = json!({"phase": "Bound", "currentVolumeAttributesClassName": "a"});
        assert_eq!(
            wrong(&claim(&json!({}), &status), &claim(&json!({"volumeAttributesClassName": "a"}), &status)),
            ["spec.volumeAttributesClassName: Forbidden: update to nil is forbidden when \
              status.currentVolumeAttributesClassName is not nil"]
        );
    }

    #[test]
    fn sources_that_are_not_known_are_as_if_not_said() {
        let made = |spec: Value| {
            let mut claim = claim(&spec, &json!({}));
            claim.prepare_for_create(&Context::default());
            let spec = claim.spec.expect("a spec");
            (spec.data_source.map(|s| s.kind), spec.data_source_ref.map(|s| s.kind))
        };
        let kind = |kind: &str| Some(kind.to_owned());
        let group = "example.com";
        for (spec, both) in [
            (json!({"dataSource": {"apiGroup": group, "kind": "Odd", "name": "x"}}), (None, None)),
            (
                json!({"dataSourceRef": {"apiGroup": group, "kind": "Odd", "name": "x"}}),
                (kind("Odd"), kind("Odd")),
            ),
            (
                json!({"dataSource": {"kind": "PersistentVolumeClaim", "name": "x"}}),
                (kind("PersistentVolumeClaim"), kind("PersistentVolumeClaim")),
            ),
            (
                json!({"dataSourceRef": {"kind": "PersistentVolumeClaim", "name": "x", "namespace": "other"}}),
                (None, None),
            ),
        ] {
            assert_eq!(made(spec), both);
        }
    }

    #[test]
    fn a_status_tells_of_storage_alone() {
        let status = json!({"allocatedResources": {"cpu": "1", "storage": "-1"},
                            "allocatedResourceStatuses": {"storage": "Odd"}});
        let claim = claim(&json!({}), &status);
        let mut errors = FieldErrors::new();
        claim.validate_status_update(&claim, &FieldPath::new(""), &mut errors);
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(texts.len(), 3, "{texts:?}");
        assert!(texts[0].starts_with("status.allocatedResourceStatuses: Unsupported value: \"storage\""));
        assert_eq!(
            texts[1],
            "status.allocatedResources: Unsupported value: \"cpu\": supported values: \"storage\""
        );
        assert_eq!(
            texts[2],
            "status.allocatedResources[storage]: Invalid value: -1: must be a valid resource quantity"
        );
    }
}
