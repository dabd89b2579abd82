//! What most kinds do before a write: the generation counts the changes of the spec, and the status is written
//! through its own door.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use krate_api::FieldPath;
use serde::Serialize;

use super::encode::part_to_vec;

/// The generation of a new object.
pub fn first_generation(meta: &mut ObjectMeta) {
    meta.generation = Some(1);
}

/// The generation after an update: one more if something changed that a controller must act on.
pub fn next_generation(meta: &mut ObjectMeta, old: &ObjectMeta, changed: bool) {
    let before = old.generation.unwrap_or(0);
    meta.generation = if changed { Some(before + 1) } else { old.generation };
}

/// Whether two values differ in what is written of them: an empty list is as good as none.
pub fn differ<T: PartialEq + Serialize>(new: &T, old: &T) -> bool {
    new != old && part_to_vec(new, "") != part_to_vec(old, "")
}

/// The metadata that an update of a status may not touch.
pub fn keep_labels(meta: &mut ObjectMeta, old: &ObjectMeta) {
    meta.labels.clone_from(&old.labels);
}

/// The same for a kind whose status says nothing of the metadata at all (upstream's `ResetObjectMetaForStatus`).
pub fn keep_metadata(meta: &mut ObjectMeta, old: &ObjectMeta) {
    meta.labels.clone_from(&old.labels);
    meta.annotations.clone_from(&old.annotations);
    meta.finalizers.clone_from(&old.finalizers);
    meta.owner_references.clone_from(&old.owner_references);
}

/// The rules of a kind with a spec and a status: the creator sets no status, an update of the object keeps it, an
/// update of the status changes nothing of the spec. With `generation`, changes of the spec are counted; with
/// `status alone`, an update of the status changes nothing of the metadata either.
macro_rules! spec_and_status {
    ($counted:ident) => {
        $crate::registry::prepare::spec_and_status!($counted object);
        $crate::registry::prepare::spec_and_status!(status only);
    };
    ($counted:ident, status alone) => {
        $crate::registry::prepare::spec_and_status!($counted object);
        $crate::registry::prepare::spec_and_status!(status alone);
    };
    (generation object) => {
        fn prepare_for_create(&mut self, _: &$crate::registry::Context) {
            self.status = Default::default();
            $crate::registry::prepare::first_generation(&mut self.metadata);
        }

        fn prepare_for_update(&mut self, old: &Self, _: &$crate::registry::Context) {
            self.status.clone_from(&old.status);
            $crate::registry::prepare::next_generation(&mut self.metadata, &old.metadata, $crate::registry::prepare::differ(&self.spec, &old.spec));
        }
    };
    (uncounted object) => {
        fn prepare_for_create(&mut self, _: &$crate::registry::Context) {
            self.status = Default::default();
        }

        fn prepare_for_update(&mut self, old: &Self, _: &$crate::registry::Context) {
            self.status.clone_from(&old.status);
        }
    };
    (status only) => {
        fn prepare_for_status_update(&mut self, old: &Self, _: &$crate::registry::Context) {
            self.spec.clone_from(&old.spec);
        }
    };
    (status alone) => {
        fn prepare_for_status_update(&mut self, old: &Self, _: &$crate::registry::Context) {
            self.spec.clone_from(&old.spec);
            $crate::registry::prepare::keep_metadata(&mut self.metadata, &old.metadata);
        }
    };
}

/// The rules of a kind that counts changes of some of its fields as generations, and has no status.
macro_rules! counted {
    ($($field:ident),*) => {
        fn prepare_for_create(&mut self, _: &$crate::registry::Context) {
            $crate::registry::prepare::first_generation(&mut self.metadata);
        }

        fn prepare_for_update(&mut self, old: &Self, _: &$crate::registry::Context) {
            let changed = $($crate::registry::prepare::differ(&self.$field, &old.$field))||*;
            $crate::registry::prepare::next_generation(&mut self.metadata, &old.metadata, changed);
        }
    };
}

/// A place that is given as fields of Rust, by the names that those who write it know.
pub fn place(parts: &[&str]) -> FieldPath {
    let fields = parts.iter().filter(|part| **part != "?");
    fields.fold(FieldPath::new(""), |at, field| at.child(&camel_case(field)))
}

fn camel_case(field: &str) -> String {
    let mut name = String::new();
    let mut upper = false;
    for c in field.chars() {
        if c == '_' {
            upper = true;
        } else {
            name.push(if upper { c.to_ascii_uppercase() } else { c });
            upper = false;
        }
    }
    name
}

/// Where a kind has the spec of its pod, field by field; `?` where one may be missing.
macro_rules! pod_spec_at {
    ($($path:tt)*) => {
        fn pod_spec(&self) -> Option<&k8s_openapi::api::core::v1::PodSpec> {
            $crate::registry::prepare::reach!(as_ref, self, $($path)*)
        }

        fn pod_spec_mut(&mut self) -> Option<&mut k8s_openapi::api::core::v1::PodSpec> {
            $crate::registry::prepare::reach!(as_mut, self, $($path)*)
        }

        fn pod_spec_place() -> krate_api::FieldPath {
            $crate::registry::prepare::place(&[$(stringify!($path)),*])
        }
    };
}

macro_rules! reach {
    ($get:ident, $at:expr,) => { Some($at) };
    ($get:ident, $at:expr, $field:ident ? $($rest:tt)*) => {
        $crate::registry::prepare::reach!($get, $at.$field.$get()?, $($rest)*)
    };
    ($get:ident, $at:expr, $field:ident $($rest:tt)*) => {
        $crate::registry::prepare::reach!($get, $at.$field, $($rest)*)
    };
}

pub(crate) use counted;
pub(crate) use pod_spec_at;
pub(crate) use reach;
pub(crate) use spec_and_status;

#[cfg(test)]
mod tests {
    use k8s_openapi::api::batch::v1::CronJob;
    use k8s_openapi::api::core::v1::Pod;

    use crate::registry::Strategy;

    #[test]
    fn a_pod_is_where_its_fields_lead() {
        assert_eq!(Pod::pod_spec_place().as_str(), "spec");
        assert_eq!(CronJob::pod_spec_place().as_str(), "spec.jobTemplate.spec.template.spec");
    }
}
