//! VolumeAttachment: a volume that is to be attached to a node.

use k8s_openapi::api::storage::v1::{
    VolumeAttachment, VolumeAttachmentSpec, VolumeAttachmentStatus, VolumeError,
};
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use crate::registry::column::{age, boolean, name, text};
use crate::registry::core::pod_spec::driver_name;
use crate::registry::prepare::{differ, spec_and_status};
use crate::registry::rules::{IMMUTABLE, dns_subdomain, in_range};
use crate::registry::{Column, Context, Strategy};

/// The most that is said of an attachment and of what went wrong with it, in bytes.
const LARGEST: usize = 256 * 1024;
const LONGEST: usize = 1024;

impl Strategy for VolumeAttachment {
    const KIND: &'static Kind = &kinds::VOLUME_ATTACHMENT;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        Column {
            format: "name",
            ..text("Attacher", "io.k8s.api.storage.v1.VolumeAttachmentSpec.attacher", |a| {
                a.spec.attacher.as_str().into()
            })
        },
        text("PV", "io.k8s.api.storage.v1.VolumeAttachmentSource.persistentVolumeName", |a| {
            a.spec.source.persistent_volume_name.as_deref().unwrap_or_default().into()
        }),
        text("Node", "io.k8s.api.storage.v1.VolumeAttachmentSpec.nodeName", |a| {
            a.spec.node_name.as_str().into()
        }),
        boolean("Attached", "io.k8s.api.storage.v1.VolumeAttachmentStatus.attached", |a| {
            a.status.as_ref().is_some_and(|s| s.attached).into()
        }),
        age(),
    ];
    const ALLOW_UNCONDITIONAL_UPDATE: bool = false;

    fn default(&mut self) {
        self.status.get_or_insert_default();
    }

    fn prepare_for_create(&mut self, _: &Context) {
        self.status = Some(VolumeAttachmentStatus::default());
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context) {
        self.status.clone_from(&old.status);
    }

    spec_and_status!(status alone);

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        validate_spec(&self.spec, &at.child("spec"), errors);
        let status = self.status.as_ref();
        let at_status = at.child("status");
        let metadata = status.and_then(|status| status.attachment_metadata.as_ref()).into_iter().flatten();
        if metadata.map(|(key, value)| key.len() + value.len()).sum::<usize>() > LARGEST {
            errors.too_long(&at_status.child("attachmentMetadata"), LARGEST);
        }
        volume_error(status.and_then(|s| s.attach_error.as_ref()), &at_status.child("attachError"), errors);
        volume_error(status.and_then(|s| s.detach_error.as_ref()), &at_status.child("detachError"), errors);
        if let Some(volume) = &self.spec.source.persistent_volume_name {
            let at = at.child("spec").child("source").child("persistentVolumeName");
            dns_subdomain(volume, &at, errors);
        }
    }

    fn validate_status_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        self.validate(at, errors);
        self.validate_update(old, at, errors);
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        if differ(&self.spec, &old.spec) {
            errors.invalid(&at.child("spec"), &self.spec, IMMUTABLE);
        }
    }
}

fn validate_spec(spec: &VolumeAttachmentSpec, at: &FieldPath, errors: &mut FieldErrors) {
    driver_name(&spec.attacher, &at.child("attacher"), errors);
    let (source, at_source) = (&spec.source, at.child("source"));
    let one = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    match (source.persistent_volume_name.as_deref(), &source.inline_volume_spec) {
        (None, None) => errors.required(&at_source, one),
        (Some(_), Some(_)) => errors.forbidden(&at_source, one),
        (Some(""), None) => {
            let at = at_source.child("persistentVolumeName");
            errors.required(&at, "must specify non empty persistentVolumeName");
        }
        _ => {}
    }
    dns_subdomain(&spec.node_name, &at.child("nodeName"), errors);
}

fn volume_error(error: Option<&VolumeError>, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(error) = error else { return };
    if error.message.as_ref().is_some_and(|message| message.len() > LONGEST) {
        // Upstream tells another length than it allows.
        errors.too_long(&at.child("message"), LARGEST);
    }
    if let Some(code) = error.error_code {
        in_range(code, 0, i64::from(i32::MAX), &at.child("errorCode"), errors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn attachment(spec: Value, status: Value) -> VolumeAttachment {
        let all = json!({"metadata": {"name": "a", "labels": {"a": "1"}}, "spec": spec, "status": status});
        serde_json::from_value(all).expect("an attachment")
    }

    fn good() -> Value {
        json!({"attacher": "d.example.com", "nodeName": "n", "source": {"persistentVolumeName": "v"}})
    }

    #[test]
    fn a_volume_is_attached_by_a_driver_to_a_node() {
        let told = |spec: Value| {
            let mut errors = FieldErrors::new();
            attachment(spec, json!({"attached": false})).validate(&FieldPath::new(""), &mut errors);
            errors.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(told(good()), [""; 0]);
        let bad = json!({"attacher": "a b", "nodeName": "", "source": {"persistentVolumeName": "A",
            "inlineVolumeSpec": {}}});
        let told = told(bad);
        assert!(told[0].starts_with("spec.attacher: Invalid value: \"a b\": a lowercase RFC 1123 subdomain"));
        assert_eq!(
            told[1],
            "spec.source: Forbidden: must specify exactly one of inlineVolumeSpec and persistentVolumeName"
        );
        assert!(told[2].starts_with("spec.nodeName: Invalid value: \"\": a lowercase RFC 1123 subdomain"));
        assert!(told[3].starts_with("spec.source.persistentVolumeName: Invalid value: \"A\": a lowercase"));
    }

    #[test]
    fn what_went_wrong_is_told_briefly() {
        let failed = json!({"attached": false,
            "attachError": {"message": "x".repeat(1025)}, "detachError": {"errorCode": -1}});
        let old = attachment(good(), json!({"attached": false}));
        let mut new = attachment(good(), failed);
        new.metadata.labels = None;
        new.prepare_for_status_update(&old, &Context::default());
        assert_eq!(new.metadata.labels, old.metadata.labels);
        let mut errors = FieldErrors::new();
        new.validate_status_update(&old, &FieldPath::new(""), &mut errors);
        assert_eq!(
            errors.aggregate(),
            "[status.attachError.message: Too long: may not be more than 262144 bytes, status.detachError.errorCode: \
             Invalid value: -1: must be between 0 and 2147483647, inclusive]"
        );
    }
}
