//! RuntimeClass: a way to run containers.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Toleration;
use k8s_openapi::api::node::v1::RuntimeClass;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};
use serde::Serialize;

use crate::registry::column::{age, name, text};
use crate::registry::core::pod_spec::{overhead, toleration};
use crate::registry::node_labels::deprecated;
use crate::registry::rules::{IMMUTABLE, dns_label, labels};
use crate::registry::{Column, Strategy};

impl Strategy for RuntimeClass {
    const KIND: &'static Kind = &kinds::RUNTIME_CLASS;
    const COLUMNS: &'static [Column<Self>] =
        &[name(), text("Handler", "", |c| c.handler.as_str().into()), age()];
    const ALLOW_CREATE_ON_UPDATE: bool = true;
    const ALLOW_UNCONDITIONAL_UPDATE: bool = false;

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
            let tolerations = scheduling.tolerations.as_deref().unwrap_or_default();
            check_tolerations(tolerations, &at.child("tolerations"), errors);
        }
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        if self.handler != old.handler {
            errors.invalid(&at.child("handler"), &self.handler, IMMUTABLE);
        }
    }

    fn warnings(&self, _: Option<&Self>) -> Vec<String> {
        let selector = self.scheduling.iter().flat_map(|s| s.node_selector.iter().flatten());
        let told = selector.filter_map(|(key, _)| deprecated(key));
        told.map(|why| format!("scheduling.nodeSelector: {why}")).collect()
    }
}

fn check_tolerations(tolerations: &[Toleration], at: &FieldPath, errors: &mut FieldErrors) {
    for (i, t) in tolerations.iter().enumerate() {
        toleration(t, &at.index(i), errors);
    }
    let mut seen = BTreeSet::new();
    for (i, t) in tolerations.iter().enumerate() {
        let texts = [&t.key, &t.operator, &t.value, &t.effect];
        if !seen.insert(texts.map(|text| text.as_deref().unwrap_or_default())) {
            errors.duplicate(&at.index(i), InMemory::of(t));
        }
    }
}

/// A toleration as upstream shows it: with the names that its fields have in memory.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct InMemory<'a> {
    key: &'a str,
    operator: &'a str,
    value: &'a str,
    effect: &'a str,
    toleration_seconds: Option<i64>,
}

impl<'a> InMemory<'a> {
    fn of(t: &'a Toleration) -> Self {
        let text = |text: &'a Option<String>| text.as_deref().unwrap_or_default();
        InMemory {
            key: text(&t.key),
            operator: text(&t.operator),
            value: text(&t.value),
            effect: text(&t.effect),
            toleration_seconds: t.toleration_seconds,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::erased::{Registry, Typed};
    use serde_json::{Value, json};

    fn class(scheduling: Value) -> RuntimeClass {
        let class = json!({"metadata": {"name": "c"}, "handler": "h", "scheduling": scheduling});
        serde_json::from_value(class).expect("a class")
    }

    #[test]
    fn each_toleration_is_given_once() {
        let one = json!({"key": "a", "operator": "Exists", "effect": "NoExecute"});
        let mut other = one.clone();
        other["tolerationSeconds"] = json!(5);
        let mut errors = FieldErrors::new();
        class(json!({"tolerations": [one, other]})).validate(&FieldPath::new(""), &mut errors);
        assert_eq!(
            errors.aggregate(),
            "scheduling.tolerations[1]: Duplicate value: {\"Key\":\"a\",\"Operator\":\"Exists\",\"Value\":\"\",\
             \"Effect\":\"NoExecute\",\"TolerationSeconds\":5}"
        );
    }

    #[test]
    fn old_labels_of_nodes_are_warned_of() {
        let old =
            class(json!({"nodeSelector": {"beta.kubernetes.io/os": "linux", "kubernetes.io/os": "linux"}}));
        assert_eq!(
            old.warnings(None),
            ["scheduling.nodeSelector: deprecated since v1.14; use \"kubernetes.io/os\" instead"]
        );
    }

    #[test]
    fn a_class_is_put_in_its_place_and_updated_with_its_version() {
        let classes = <Typed<RuntimeClass> as Default>::default();
        assert!(classes.allows_create_on_update() && !classes.allows_unconditional_update());
    }
}
