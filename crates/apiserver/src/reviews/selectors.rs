//! What a review says of selectors: that only a part of a list is asked for (KEP-4601). What is not understood is passed
//! over, which asks for more than was meant, and the answer says so.

use k8s_openapi::api::authorization::v1::{
    FieldSelectorAttributes, LabelSelectorAttributes, ResourceAttributes,
};
use krate_api::selector::{FieldTerm, Operator, Requirement};
use krate_api::{FieldErrors, FieldPath, FieldSelector, LabelSelector, names};

/// What is wrong with the selectors of a question.
pub fn check(asked: &ResourceAttributes, at: &FieldPath, errors: &mut FieldErrors) {
    if let Some(selector) = &asked.field_selector {
        check_fields(selector, &at.child("fieldSelector"), errors);
    }
    if let Some(selector) = &asked.label_selector {
        check_labels(selector, &at.child("labelSelector"), errors);
    }
}

fn check_fields(selector: &FieldSelectorAttributes, at: &FieldPath, errors: &mut FieldErrors) {
    let requirements = selector.requirements.as_deref().unwrap_or_default();
    check_form(selector.raw_selector.as_deref(), requirements.len(), at, errors);
    for (i, requirement) in requirements.iter().enumerate() {
        let at = at.child("requirements").index(i);
        if requirement.key.is_empty() {
            errors.required(&at.child("key"), "must be specified");
        }
        check_values(&requirement.operator, requirement.values.as_deref(), &at, errors);
    }
}

fn check_labels(selector: &LabelSelectorAttributes, at: &FieldPath, errors: &mut FieldErrors) {
    let requirements = selector.requirements.as_deref().unwrap_or_default();
    check_form(selector.raw_selector.as_deref(), requirements.len(), at, errors);
    for (i, requirement) in requirements.iter().enumerate() {
        let at = at.child("requirements").index(i);
        check_values(&requirement.operator, requirement.values.as_deref(), &at, errors);
        for wrong in names::is_qualified_name(&requirement.key) {
            errors.invalid(&at.child("key"), &requirement.key, wrong);
        }
        for (i, value) in requirement.values.iter().flatten().enumerate() {
            for wrong in names::is_label_value(value) {
                errors.invalid(&at.child("values").index(i), value, wrong);
            }
        }
    }
}

/// A selector is told as text or in its parts.
fn check_form(raw: Option<&str>, requirements: usize, at: &FieldPath, errors: &mut FieldErrors) {
    let raw = raw.unwrap_or_default();
    match (raw.is_empty(), requirements) {
        (true, 0) => errors.required(
            &at.child("requirements"),
            format!("when {at} is specified, requirements or rawSelector is required"),
        ),
        (false, 1..) => {
            let why = "may not specified at the same time as requirements";
            errors.invalid(&at.child("rawSelector"), raw, why);
        }
        _ => {}
    }
}

/// An operator that is not known may be a newer client's, and is no fault.
fn check_values(operator: &str, values: Option<&[String]>, at: &FieldPath, errors: &mut FieldErrors) {
    let is_empty = values.unwrap_or_default().is_empty();
    match operator {
        "In" | "NotIn" if is_empty => {
            errors.required(&at.child("values"), "must be specified when `operator` is 'In' or 'NotIn'");
        }
        "Exists" | "DoesNotExist" if !is_empty => {
            let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
            errors.forbidden(&at.child("values"), why);
        }
        _ => {}
    }
}

/// The field selector of a question, as authorizers are told it; and what is said of what was passed over.
pub fn fields(asked: &ResourceAttributes) -> (String, Option<String>) {
    let Some(selector) = &asked.field_selector else { return (String::new(), None) };
    let raw = selector.raw_selector.as_deref().unwrap_or_default();
    let requirements = selector.requirements.as_deref().unwrap_or_default();
    if requirements.is_empty() {
        let is_read = FieldSelector::parse(raw).is_ok();
        let text = if is_read { raw.to_owned() } else { String::new() };
        return (text, (!is_read).then(|| ignored("fieldSelector", false)));
    }
    let terms: Vec<String> = requirements
        .iter()
        .filter_map(|requirement| {
            let [value] = requirement.values.as_deref()? else { return None };
            let equal = match requirement.operator.as_str() {
                "In" => true,
                "NotIn" => false,
                _ => return None,
            };
            let term = FieldTerm { field: requirement.key.clone(), value: value.clone(), equal };
            Some(term.to_string())
        })
        .collect();
    let remark = (terms.len() < requirements.len()).then(|| ignored("fieldSelector", !terms.is_empty()));
    (terms.join(","), remark)
}

/// The label selector of a question, as [`fields`] tells the field selector.
pub fn labels(asked: &ResourceAttributes) -> (String, Option<String>) {
    let Some(selector) = &asked.label_selector else { return (String::new(), None) };
    let raw = selector.raw_selector.as_deref().unwrap_or_default();
    let requirements = selector.requirements.as_deref().unwrap_or_default();
    if requirements.is_empty() {
        let is_read = LabelSelector::parse(raw).is_ok();
        let text = if is_read { raw.to_owned() } else { String::new() };
        return (text, (!is_read).then(|| ignored("labelSelector", false)));
    }
    let terms: Vec<String> = requirements
        .iter()
        .filter_map(|requirement| {
            let operator = match requirement.operator.as_str() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                _ => return None,
            };
            let values = requirement.values.clone().unwrap_or_default();
            Some(Requirement::new(&requirement.key, operator, values).ok()?.to_string())
        })
        .collect();
    let remark = (terms.len() < requirements.len()).then(|| ignored("labelSelector", !terms.is_empty()));
    (terms.join(","), remark)
}

fn ignored(selector: &str, in_part: bool) -> String {
    let how = if in_part { "partially ignored" } else { "ignored" };
    format!("spec.resourceAttributes.{selector} {how} due to parse error")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn asked(of: Value) -> ResourceAttributes {
        serde_json::from_value(of).expect("attributes")
    }

    #[test]
    fn selectors_are_checked_by_their_parts() {
        let at = "spec.resourceAttributes";
        let both =
            json!({"rawSelector": "a=b", "requirements": [{"key": "a", "operator": "In", "values": ["b"]}]});
        let bare = json!({"requirements": [{"key": "", "operator": "In"}]});
        let odd = json!({"requirements": [{"key": "a b", "operator": "Exists", "values": ["-"]}]});
        for (of, told) in [
            (
                json!({"fieldSelector": both}),
                vec!["fieldSelector.rawSelector: Invalid value: \"a=b\": may not specified at the same time"],
            ),
            (
                json!({"labelSelector": {}}),
                vec![
                    "labelSelector.requirements: Required value: when spec.resourceAttributes.labelSelector is \
                     specified, requirements or rawSelector is required",
                ],
            ),
            (
                json!({"fieldSelector": bare}),
                vec![
                    "fieldSelector.requirements[0].key: Required value: must be specified",
                    "fieldSelector.requirements[0].values: Required value",
                ],
            ),
            (
                json!({"labelSelector": odd}),
                vec![
                    "labelSelector.requirements[0].values: Forbidden",
                    "labelSelector.requirements[0].key: Invalid value: \"a b\"",
                    "labelSelector.requirements[0].values[0]: Invalid value: \"-\"",
                ],
            ),
            (json!({"fieldSelector": {"requirements": [{"key": "a", "operator": "Newer"}]}}), vec![]),
        ] {
            let mut errors = FieldErrors::new();
            check(&asked(of.clone()), &FieldPath::new(at), &mut errors);
            let found: Vec<String> = errors.iter().map(ToString::to_string).collect();
            assert_eq!(found.len(), told.len(), "{of}: {found:?}");
            for (found, told) in found.iter().zip(told) {
                assert!(found.starts_with(&format!("{at}.{told}")), "{of}: {found}");
            }
        }
    }

    #[test]
    fn labels_are_told_by_their_selector() {
        let some =
            |operator: &str, values: &[&str]| json!({"key": "a", "operator": operator, "values": values});
        let parts = [some("In", &["b", "c"]), some("NotIn", &["d"]), some("Exists", &[]), some("Newer", &[])];
        for (of, text, in_part) in [
            (json!({"rawSelector": "a=b,!c"}), "a=b,!c", false),
            (json!({"requirements": parts}), "a in (b,c),a notin (d),a", true),
        ] {
            let (found, remark) = labels(&asked(json!({"labelSelector": of})));
            assert_eq!((found.as_str(), remark.is_some()), (text, in_part));
        }
    }

    #[test]
    fn what_is_not_understood_of_a_selector_is_passed_over_and_said() {
        let node = json!({"key": "spec.nodeName", "operator": "In", "values": ["x"]});
        let newer = json!({"key": "spec.a", "operator": "Newer"});
        for (of, text, remark) in [
            (json!({}), "", None),
            (json!({"fieldSelector": {"rawSelector": "spec.nodeName=x"}}), "spec.nodeName=x", None),
            (json!({"fieldSelector": {"rawSelector": "spec.nodeName"}}), "", Some("fieldSelector ignored")),
            (json!({"fieldSelector": {"requirements": [node]}}), "spec.nodeName=x", None),
            (
                json!({"fieldSelector": {"requirements": [node, newer]}}),
                "spec.nodeName=x",
                Some("fieldSelector partially ignored"),
            ),
            (json!({"fieldSelector": {"requirements": [newer]}}), "", Some("fieldSelector ignored")),
            (json!({"labelSelector": {"rawSelector": "a in"}}), "", Some("labelSelector ignored")),
        ] {
            let asked = asked(of.clone());
            let (fields, of_fields) = fields(&asked);
            let (labels, of_labels) = labels(&asked);
            let found = of_fields.or(of_labels);
            assert!(labels.is_empty(), "{of}");
            assert_eq!(fields, text, "{of}");
            let remark = remark.map(|what| format!("spec.resourceAttributes.{what} due to parse error"));
            assert_eq!(found, remark, "{of}");
        }
    }
}
