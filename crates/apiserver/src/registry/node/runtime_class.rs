//! RuntimeClass: a way to run containers.

use k8s_openapi::api::node::v1::RuntimeClass;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use crate::registry::column::{age, name, text};
use crate::registry::core::pod_spec::{overhead, toleration};
use crate::registry::rules::{IMMUTABLE, dns_label, labels};
use crate::registry::{Column, Strategy};

impl Strategy for RuntimeClass {
    const KIND: &'static Kind = &kinds::RUNTIME_CLASS;
    const COLUMNS: &'static [Column<Self>] =
        &[name(), text("Handler", "", |c| c.handler.as_str().into()), age()];

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        if self.handler.is_empty() {
            errors.required(&at.child("handler"), "");
        } else {
            dns_label(&self.handler, &at.child("handler"), errors);
        }
        if let Some(amounts) = self.overhead.as_ref().and_then(|o| o.pod_fixed.as_ref()) {
            overhead(amounts, &at.child("overhead").child("podFixed"), errors);
        }
        if let Some(scheduling) = &self.scheduling {
            let at = at.child("scheduling");
            labels(scheduling.node_selector.as_ref(), &at.child("nodeSelector"), errors);
            for (i, t) in scheduling.tolerations.iter().flatten().enumerate() {
                toleration(t, &at.child("tolerations").index(i), errors);
            }
        }
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        if self.handler != old.handler {
            errors.invalid(&at.child("handler"), &self.handler, IMMUTABLE);
        }
    }
}
