//! Taints of devices, what tolerates them, and the conditions that a device waits for before its pod is bound.

use std::collections::BTreeSet;

use k8s_openapi::api::resource::v1::{DeviceTaint, DeviceToleration};
use krate_api::{FieldErrors, FieldPath};

use super::lists::all;
use crate::registry::rules::{each, label_name, label_value, one_of};

const EFFECTS: [&str; 3] = ["NoExecute", "NoSchedule", "None"];
const MOST_TAINTS: usize = 16;
const MOST_CONDITIONS: usize = 4;

/// Fills in how tolerations compare.
pub fn default_tolerations(tolerations: &mut Option<Vec<DeviceToleration>>) {
    for operator in tolerations.iter_mut().flatten().map(|t| &mut t.operator) {
        if operator.as_deref().is_none_or(str::is_empty) {
            *operator = Some("Equal".to_owned());
        }
    }
}

pub fn tolerations(list: Option<&[DeviceToleration]>, at: &FieldPath, errors: &mut FieldErrors) {
    for (i, toleration) in list.unwrap_or_default().iter().enumerate() {
        let at = at.index(i);
        if let Some(key) = toleration.key.as_deref().filter(|key| !key.is_empty()) {
            label_name(key, &at.child("key"), errors);
        }
        let value = toleration.value.as_deref().unwrap_or_default();
        match toleration.operator.as_deref().unwrap_or_default() {
            "Exists" if value.is_empty() => {}
            "Exists" => {
                errors.invalid(&at.child("value"), value, "must be empty for operator `Exists`");
            }
            "Equal" => each(label_value(value), value, &at.child("value"), errors),
            "" => errors.required(&at.child("operator"), ""),
            other => errors.not_supported(&at.child("operator"), other, &["Equal", "Exists"]),
        }
        if let Some(effect) = toleration.effect.as_deref().filter(|effect| !effect.is_empty()) {
            one_of(effect, &EFFECTS, &at.child("effect"), errors);
        }
    }
}

pub fn taints(list: Option<&[DeviceTaint]>, at: &FieldPath, errors: &mut FieldErrors) {
    all(list, MOST_TAINTS, at, errors, |taint, at, errors| {
        label_name(&taint.key, &at.child("key"), errors);
        if let Some(value) = taint.value.as_deref() {
            each(label_value(value), value, &at.child("value"), errors);
        }
        if taint.effect.is_empty() {
            errors.required(&at.child("effect"), "");
        } else {
            one_of(&taint.effect, &EFFECTS, &at.child("effect"), errors);
        }
    });
}

/// Conditions that let a pod be bound, and those that forbid it: both or none.
pub fn binding_conditions(
    good: Option<&[String]>,
    bad: Option<&[String]>,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    let (at_good, at_bad) = (at.child("bindingConditions"), at.child("bindingFailureConditions"));
    let name = |name: &String, at: &FieldPath, errors: &mut FieldErrors| label_name(name, at, errors);
    all(good, MOST_CONDITIONS, &at_good, errors, name);
    all(bad, MOST_CONDITIONS, &at_bad, errors, name);
    let (good, bad) = (good.unwrap_or_default(), bad.unwrap_or_default());
    let mut known = BTreeSet::new();
    for (i, condition) in good.iter().enumerate() {
        if !known.insert(condition) {
            errors.duplicate(&at_good.index(i), condition);
        }
    }
    let mut failures = BTreeSet::new();
    for (i, condition) in bad.iter().enumerate() {
        let at = at_bad.index(i);
        if !failures.insert(condition) {
            errors.duplicate(&at, condition);
        }
        if known.contains(condition) {
            errors.invalid(
                &at,
                condition,
                "bindingFailureConditions must not overlap with bindingConditions",
            );
        }
    }
    if good.is_empty() && !bad.is_empty() {
        let why = "bindingConditions are required to use bindingFailureConditions";
        errors.invalid(&at_good, (), why);
    }
    if bad.is_empty() && !good.is_empty() {
        let why = "bindingFailureConditions are required to use bindingConditions";
        errors.invalid(&at_bad, (), why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(check: impl Fn(&FieldPath, &mut FieldErrors)) -> Vec<String> {
        let mut errors = FieldErrors::new();
        check(&FieldPath::new("x"), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn tolerations_compare_as_they_say() {
        let toleration = |operator: &str, value: &str, effect: &str| {
            [DeviceToleration {
                operator: Some(operator.to_owned()),
                value: Some(value.to_owned()),
                effect: Some(effect.to_owned()),
                ..Default::default()
            }]
        };
        let judge = |list: [DeviceToleration; 1]| told(|at, errors| tolerations(Some(&list), at, errors));
        assert_eq!(judge(toleration("Equal", "v", "None")), [""; 0]);
        assert_eq!(judge(toleration("", "", "")), ["x[0].operator: Required value"]);
        assert_eq!(
            judge(toleration("Exists", "v", "")),
            ["x[0].value: Invalid value: \"v\": must be empty for operator `Exists`"]
        );
        assert_eq!(
            judge(toleration("Like", "v", "Perhaps")),
            [
                "x[0].operator: Unsupported value: \"Like\": supported values: \"Equal\", \"Exists\"",
                "x[0].effect: Unsupported value: \"Perhaps\": supported values: \"NoExecute\", \"NoSchedule\", \
                 \"None\""
            ]
        );
        let mut list = Some(vec![DeviceToleration::default()]);
        default_tolerations(&mut list);
        assert_eq!(list.expect("some")[0].operator.as_deref(), Some("Equal"));
    }

    #[test]
    fn a_taint_has_a_key_and_an_effect() {
        let told = told(|at, errors| taints(Some(&[DeviceTaint::default()]), at, errors));
        assert!(
            told[0].starts_with("x[0].key: Invalid value: \"\": name part must be non-empty"),
            "{told:?}"
        );
        assert_eq!(told.last().map(String::as_str), Some("x[0].effect: Required value"));
    }

    #[test]
    fn conditions_are_of_two_sorts() {
        let names = |all: &[&str]| all.iter().map(|name| (*name).to_owned()).collect::<Vec<String>>();
        let judge = |good: &[&str], bad: &[&str]| {
            told(|at, errors| binding_conditions(Some(&names(good)), Some(&names(bad)), at, errors))
        };
        assert_eq!(judge(&[], &[]), [""; 0]);
        assert_eq!(judge(&["a"], &["b"]), [""; 0]);
        assert_eq!(
            judge(&["a", "a"], &["a"]),
            [
                "x.bindingConditions[1]: Duplicate value: \"a\"",
                "x.bindingFailureConditions[0]: Invalid value: \"a\": bindingFailureConditions must not overlap \
                 with bindingConditions"
            ]
        );
        assert_eq!(
            judge(&["a"], &[]),
            [
                "x.bindingFailureConditions: Invalid value: null: bindingFailureConditions are required to use \
                 bindingConditions"
            ]
        );
    }
}
