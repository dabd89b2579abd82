//! VolumeAttachment: a volume that is to be attached to a node.

use k8s_openapi::api::storage::v1::VolumeAttachment;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use crate::registry::column::{age, boolean, name, text};
use crate::registry::prepare::differ;
use crate::registry::rules::{IMMUTABLE, required};
use crate::registry::{Column, Context, Strategy};

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

    fn default(&mut self) {
        self.status.get_or_insert_default();
    }

    fn prepare_for_create(&mut self, _: &Context) {
        self.status = None;
        self.status.get_or_insert_default();
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context) {
        self.status.clone_from(&old.status);
    }

    fn prepare_for_status_update(&mut self, old: &Self, _: &Context) {
        self.spec.clone_from(&old.spec);
    }

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec");
        required(Some(&self.spec.attacher), &at.child("attacher"), errors);
        required(Some(&self.spec.node_name), &at.child("nodeName"), errors);
        let source = &self.spec.source;
        match (source.persistent_volume_name.as_deref(), &source.inline_volume_spec) {
            (None, None) => errors.required(
                &at.child("source"),
                "must specify exactly one of inlineVolumeSpec and persistentVolumeName",
            ),
            (Some(_), Some(_)) => {
                errors.invalid(
                    &at.child("source"),
                    source,
                    "must specify exactly one of inlineVolumeSpec and persistentVolumeName",
                );
            }
            (Some(""), None) => errors.required(
                &at.child("source").child("persistentVolumeName"),
                "must specify non empty persistentVolumeName",
            ),
            _ => {}
        }
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        if differ(&self.spec, &old.spec) {
            errors.invalid(&at.child("spec"), &self.spec, IMMUTABLE);
        }
    }
}
