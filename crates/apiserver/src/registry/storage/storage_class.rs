//! StorageClass: a kind of storage, and who makes it.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{TopologySelectorLabelRequirement, TopologySelectorTerm};
use k8s_openapi::api::storage::v1::StorageClass;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use super::parameters::{parameters, provisioner};
use crate::registry::column::{age, name, text};
use crate::registry::node_labels::deprecated;
use crate::registry::rules::{IMMUTABLE, immutable, label_name, one_of};
use crate::registry::{Column, Strategy};

/// That a class is the default one, now and of old.
const IS_DEFAULT: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];

impl Strategy for StorageClass {
    const KIND: &'static Kind = &kinds::STORAGE_CLASS;
    const COLUMNS: &'static [Column<Self>] = &[
        Column {
            cell: |c| {
                let name = c.metadata.name.as_deref().unwrap_or_default();
                let annotations = c.metadata.annotations.iter().flatten();
                let mut annotations = annotations.filter(|(key, _)| IS_DEFAULT.contains(&key.as_str()));
                let is_default = annotations.any(|(_, value)| value == "true");
                if is_default { format!("{name} (default)").into() } else { name.into() }
            },
            ..name()
        },
        text("Provisioner", "io.k8s.api.storage.v1.StorageClass.provisioner", |c| {
            c.provisioner.as_str().into()
        }),
        text("ReclaimPolicy", "io.k8s.api.storage.v1.StorageClass.reclaimPolicy", |c| {
            c.reclaim_policy.as_deref().unwrap_or("Delete").into()
        }),
        text("VolumeBindingMode", "io.k8s.api.storage.v1.StorageClass.volumeBindingMode", |c| {
            c.volume_binding_mode.as_deref().unwrap_or("Immediate").into()
        }),
        text("AllowVolumeExpansion", "io.k8s.api.storage.v1.StorageClass.allowVolumeExpansion", |c| {
            c.allow_volume_expansion.unwrap_or(false).into()
        }),
        age(),
    ];

    fn default(&mut self) {
        self.reclaim_policy.get_or_insert_with(|| "Delete".to_owned());
        self.volume_binding_mode.get_or_insert_with(|| "Immediate".to_owned());
    }

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        provisioner(&self.provisioner, &at.child("provisioner"), errors);
        parameters(self.parameters.as_ref(), &at.child("parameters"), errors);
        if let Some(policy) = self.reclaim_policy.as_deref().filter(|policy| !policy.is_empty()) {
            one_of(policy, &["Delete", "Retain"], &at.child("reclaimPolicy"), errors);
        }
        let mode = self.volume_binding_mode.as_deref().unwrap_or_default();
        one_of(mode, &["Immediate", "WaitForFirstConsumer"], &at.child("volumeBindingMode"), errors);
        topologies(self.allowed_topologies.as_deref(), &at.child("allowedTopologies"), errors);
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        if self.parameters.clone().unwrap_or_default() != old.parameters.clone().unwrap_or_default() {
            errors.invalid(&at.child("parameters"), &self.parameters, IMMUTABLE);
        }
        immutable(&self.provisioner, &old.provisioner, &at.child("provisioner"), errors);
        immutable(&self.reclaim_policy, &old.reclaim_policy, &at.child("reclaimPolicy"), errors);
        immutable(
            &self.volume_binding_mode,
            &old.volume_binding_mode,
            &at.child("volumeBindingMode"),
            errors,
        );
    }

    fn warnings(&self, _: Option<&Self>) -> Vec<String> {
        let mut warnings = Vec::new();
        for (i, term) in self.allowed_topologies.iter().flatten().enumerate() {
            for (j, rule) in term.match_label_expressions.iter().flatten().enumerate() {
                if let Some(why) = deprecated(&rule.key) {
                    warnings.push(format!("allowedTopologies[{i}].matchLabelExpressions[{j}].key: {why}"));
                }
            }
        }
        warnings
    }
}

/// A term by its keys, each with its values.
type Meant<'a> = BTreeMap<&'a str, BTreeSet<&'a String>>;

fn topologies(terms: Option<&[TopologySelectorTerm]>, at: &FieldPath, errors: &mut FieldErrors) {
    let terms = terms.unwrap_or_default();
    // Upstream compares each term with as many empty ones as there are terms, besides those before it.
    let mut known = BTreeMap::from([(Meant::new(), terms.len())]);
    for (i, term) in terms.iter().enumerate() {
        let at = at.index(i).child("matchLabelExpressions");
        let before = known.entry(term_of(term, &at, errors)).or_default();
        for _ in 0..*before {
            errors.duplicate(&at, "");
        }
        *before += 1;
    }
}

fn term_of<'a>(term: &'a TopologySelectorTerm, at: &FieldPath, errors: &mut FieldErrors) -> Meant<'a> {
    let mut meant = Meant::new();
    for (i, rule) in term.match_label_expressions.iter().flatten().enumerate() {
        let at = at.index(i);
        let values = values_of(rule, &at, errors);
        if meant.insert(rule.key.as_str(), values).is_some() {
            errors.duplicate(&at.child("key"), &rule.key);
        }
    }
    meant
}

fn values_of<'a>(
    rule: &'a TopologySelectorLabelRequirement,
    at: &FieldPath,
    errors: &mut FieldErrors,
) -> BTreeSet<&'a String> {
    let at_values = at.child("values");
    if rule.values.is_empty() {
        errors.required(&at_values, "");
    }
    let mut values = BTreeSet::new();
    for (i, value) in rule.values.iter().enumerate() {
        if !values.insert(value) {
            errors.duplicate(&at_values.index(i), value);
        }
    }
    label_name(&rule.key, &at.child("key"), errors);
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn class(change: Value) -> StorageClass {
        let mut all = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "c"},
            "provisioner": "example.com/a", "reclaimPolicy": "Delete", "volumeBindingMode": "Immediate"});
        for (key, value) in change.as_object().expect("fields") {
            all[key] = value.clone();
        }
        serde_json::from_value(all).expect("a class")
    }

    fn texts(errors: &FieldErrors) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_makes_volumes_does_not_change() {
        let mut errors = FieldErrors::new();
        let new = class(
            json!({"provisioner": "example.com/b", "reclaimPolicy": "Retain", "parameters": {"a": "1"}}),
        );
        new.validate_update(&class(json!({})), &FieldPath::new(""), &mut errors);
        assert_eq!(
            texts(&errors),
            [
                "parameters: Invalid value: {\"a\":\"1\"}: field is immutable",
                "provisioner: Invalid value: \"example.com/b\": field is immutable",
                "reclaimPolicy: Invalid value: \"Retain\": field is immutable",
            ]
        );
    }

    #[test]
    fn topologies_are_judged() {
        let rule = |key: &str, values: &[&str]| json!({"key": key, "values": values});
        let term = |rules: &[Value]| json!({"matchLabelExpressions": rules});
        let told = |terms: Value| {
            let mut errors = FieldErrors::new();
            class(json!({"allowedTopologies": terms})).validate(&FieldPath::new(""), &mut errors);
            texts(&errors)
        };
        assert_eq!(told(json!([term(&[rule("a", &["1"])]), term(&[rule("a", &["2"])])])), [""; 0]);
        assert_eq!(
            told(json!([term(&[rule("a", &["1", "1"]), rule("a", &[])])])),
            [
                "allowedTopologies[0].matchLabelExpressions[0].values[1]: Duplicate value: \"1\"",
                "allowedTopologies[0].matchLabelExpressions[1].values: Required value",
                "allowedTopologies[0].matchLabelExpressions[1].key: Duplicate value: \"a\"",
            ]
        );
        let same = term(&[rule("a", &["1"])]);
        assert_eq!(
            told(json!([same, same])),
            ["allowedTopologies[1].matchLabelExpressions: Duplicate value: \"\""]
        );
        let old = term(&[rule("failure-domain.beta.kubernetes.io/zone", &["1"])]);
        assert_eq!(
            class(json!({"allowedTopologies": [old]})).warnings(None),
            ["allowedTopologies[0].matchLabelExpressions[0].key: deprecated since v1.17; use \
                 \"topology.kubernetes.io/zone\" instead"]
        );
    }
}
