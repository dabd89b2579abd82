//! ControllerRevision: an earlier state of a workload, kept to go back to.

use k8s_openapi::api::apps::v1::ControllerRevision;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};
use serde_json::Value;

use crate::registry::column::{age, name, text};
use crate::registry::rules::{IMMUTABLE, not_negative};
use crate::registry::{Column, Strategy};

impl Strategy for ControllerRevision {
    const KIND: &'static Kind = &kinds::CONTROLLER_REVISION;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text("Controller", "Controller of the object", |r| {
            let owners = r.metadata.owner_references.iter().flatten();
            match owners.into_iter().find(|o| o.controller == Some(true)) {
                Some(owner) => {
                    let group =
                        owner.api_version.split_once('/').map_or(String::new(), |(g, _)| format!(".{g}"));
                    format!("{}{group}/{}", owner.kind.to_lowercase(), owner.name).into()
                }
                None => "<none>".into(),
            }
        }),
        text("Revision", "io.k8s.api.apps.v1.ControllerRevision.revision", |r| r.revision.into()),
        age(),
    ];

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        not_negative(self.revision, &at.child("revision"), errors);
    }

    fn validate_new(&self, at: &FieldPath, errors: &mut FieldErrors) {
        match self.data.as_ref().map(|d| &d.0) {
            None | Some(Value::Null) => errors.required(&at.child("data"), "data is mandatory"),
            Some(Value::Object(_)) => {}
            Some(_) => errors.required(&at.child("data"), "data must be a valid JSON object"),
        }
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        // Upstream finds the data of an update changed whenever its encoding is, which a patch's always is.
        if self.data != old.data {
            errors.invalid(&at.child("data"), &self.data, IMMUTABLE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_new_revision_keeps_an_object() {
        for (data, said) in [
            (json!(null), "data: Required value: data is mandatory"),
            (json!([1]), "data: Required value: data must be a valid JSON object"),
            (json!({"spec": {}}), "[]"),
        ] {
            let revision: ControllerRevision =
                serde_json::from_value(json!({"metadata": {"name": "r"}, "revision": 1, "data": data}))
                    .expect("a revision");
            let mut errors = FieldErrors::new();
            revision.validate_new(&FieldPath::new(""), &mut errors);
            assert_eq!(errors.aggregate(), said);
        }
    }
}
