//! The rules that many kinds share, with upstream's wording (`k8s.io/apimachinery/pkg/util/validation` and
//! `pkg/apis/*/validation`).

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use krate_api::field::{Fault, FieldError};
use krate_api::meta::{validate_annotations, validate_labels};
pub use krate_api::names::{
    is_config_map_key as config_key, is_label_value as label_value, is_port_name as port_name,
    is_qualified_name as qualified_name,
};
use krate_api::names::{is_dns1123_label, is_dns1123_subdomain, is_path_segment_name};
pub use krate_api::selector::validate_label_selector as label_selector;
use krate_api::{FieldErrors, FieldPath};
use serde::Serialize;

pub const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
pub const IMMUTABLE: &str = "field is immutable";

fn between(low: i64, high: i64) -> String {
    format!("must be between {low} and {high}, inclusive")
}

pub fn not_negative(value: impl Into<i64>, at: &FieldPath, errors: &mut FieldErrors) {
    let value = value.into();
    if value < 0 {
        errors.invalid(at, value, NOT_NEGATIVE);
    }
}

pub fn positive(value: impl Into<i64>, at: &FieldPath, errors: &mut FieldErrors) {
    let value = value.into();
    if value <= 0 {
        errors.invalid(at, value, "must be greater than 0");
    }
}

pub fn in_range(value: impl Into<i64>, low: i64, high: i64, at: &FieldPath, errors: &mut FieldErrors) {
    let value = value.into();
    if value < low || value > high {
        errors.invalid(at, value, between(low, high));
    }
}

pub fn port(value: impl Into<i64>, at: &FieldPath, errors: &mut FieldErrors) {
    in_range(value, 1, 65535, at, errors);
}

/// `values` in alphabetical order, as upstream lists them.
pub fn one_of(value: &str, values: &[&str], at: &FieldPath, errors: &mut FieldErrors) {
    if !values.contains(&value) {
        errors.not_supported(at, value, values);
    }
}

/// Requires a value, and one of these.
pub fn required_one_of(value: Option<&str>, values: &[&str], at: &FieldPath, errors: &mut FieldErrors) {
    match value.filter(|v| !v.is_empty()) {
        None => errors.required(at, ""),
        Some(value) => one_of(value, values, at, errors),
    }
}

pub fn required(value: Option<&str>, at: &FieldPath, errors: &mut FieldErrors) {
    if value.is_none_or(str::is_empty) {
        errors.required(at, "");
    }
}

pub fn each(wrong: Vec<String>, value: &str, at: &FieldPath, errors: &mut FieldErrors) {
    for text in wrong {
        errors.invalid(at, value, text);
    }
}

pub fn dns_label(value: &str, at: &FieldPath, errors: &mut FieldErrors) {
    each(is_dns1123_label(value), value, at, errors);
}

pub fn dns_subdomain(value: &str, at: &FieldPath, errors: &mut FieldErrors) {
    each(is_dns1123_subdomain(value), value, at, errors);
}

/// A name that has to be there, and that a path can hold.
pub fn path_segment(value: &str, at: &FieldPath, errors: &mut FieldErrors) {
    if value.is_empty() {
        errors.required(at, "");
    } else {
        each(is_path_segment_name(value, false), value, at, errors);
    }
}

/// What is wrong with something whose value is not shown.
pub fn invalid_unshown(at: &FieldPath, why: &str, errors: &mut FieldErrors) {
    errors.push(FieldError { fault: Fault::Invalid, field: at.clone(), value: None, detail: why.to_owned() });
}

pub fn immutable<T: PartialEq + Serialize>(new: &T, old: &T, at: &FieldPath, errors: &mut FieldErrors) {
    if new != old {
        errors.invalid(at, new, IMMUTABLE);
    }
}

/// An address with a prefix length: `10.0.0.0/8`.
pub fn parse_cidr(value: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = value.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let length: u8 = length.parse().ok()?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    (length <= most).then_some((address, length))
}

/// A map of labels, all of whose faults are shown at the map itself.
pub fn labels(labels: Option<&BTreeMap<String, String>>, at: &FieldPath, errors: &mut FieldErrors) {
    if let Some(labels) = labels {
        validate_labels(labels, at, errors);
    }
}

pub fn annotations(annotations: Option<&BTreeMap<String, String>>, at: &FieldPath, errors: &mut FieldErrors) {
    if let Some(annotations) = annotations {
        validate_annotations(annotations, at, errors);
    }
}

pub fn label_name(key: &str, at: &FieldPath, errors: &mut FieldErrors) {
    each(qualified_name(key), key, at, errors);
}

/// The metadata of something that is not an object yet, as a pod template.
pub fn template_metadata(meta: Option<&ObjectMeta>, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(meta) = meta else { return };
    labels(meta.labels.as_ref(), &at.child("labels"), errors);
    annotations(meta.annotations.as_ref(), &at.child("annotations"), errors);
}

pub fn is_empty_selector(selector: &LabelSelector) -> bool {
    selector.match_labels.as_ref().is_none_or(BTreeMap::is_empty)
        && selector.match_expressions.as_ref().is_none_or(Vec::is_empty)
}

/// Whether a selector takes these labels; an empty one takes all.
pub fn selects(selector: &LabelSelector, labels: Option<&BTreeMap<String, String>>) -> bool {
    let value = |key: &str| labels.and_then(|l| l.get(key));
    selector.match_labels.iter().flatten().all(|(k, v)| value(k) == Some(v))
        && selector.match_expressions.iter().flatten().all(|rule| {
            let held = value(&rule.key);
            let listed = held.is_some_and(|v| rule.values.iter().flatten().any(|w| w == v));
            match rule.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => held.is_some(),
                "DoesNotExist" => held.is_none(),
                _ => false,
            }
        })
}

/// A port by number or by name.
pub fn port_or_name(value: &IntOrString, at: &FieldPath, errors: &mut FieldErrors) {
    match value {
        IntOrString::Int(n) => port(*n, at, errors),
        IntOrString::String(name) => each(port_name(name), name, at, errors),
    }
}

/// A count or a percentage, neither below 0.
pub fn count_or_percent(value: &IntOrString, at: &FieldPath, errors: &mut FieldErrors) {
    match value {
        IntOrString::Int(n) => not_negative(*n, at, errors),
        IntOrString::String(text) => {
            if percent(text).is_none() {
                errors.invalid(
                    at,
                    text,
                    "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or \
                     '93%', regex used for validation is '[0-9]+%')",
                );
            }
        }
    }
}

/// The number of a percentage such as `25%`.
pub fn percent(text: &str) -> Option<i64> {
    let digits = text.strip_suffix('%')?;
    (!digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit())).then(|| digits.parse().ok())?
}

/// A percentage may not be more than 100.
pub fn not_more_than_all(value: &IntOrString, at: &FieldPath, errors: &mut FieldErrors) {
    if let IntOrString::String(text) = value
        && percent(text).is_some_and(|p| p > 100)
    {
        errors.invalid(at, text, "must not be greater than 100%");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_take_what_their_rules_say() {
        let selector: LabelSelector = serde_json::from_value(serde_json::json!({
            "matchLabels": {"a": "1"},
            "matchExpressions": [{"key": "b", "operator": "NotIn", "values": ["x"]},
                                 {"key": "c", "operator": "DoesNotExist"}],
        }))
        .expect("selector");
        let labels = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        assert!(selects(&selector, Some(&labels(&[("a", "1")]))));
        assert!(!selects(&selector, Some(&labels(&[("a", "1"), ("b", "x")]))));
        assert!(!selects(&selector, Some(&labels(&[("a", "1"), ("c", "")]))));
        assert!(!selects(&selector, None));
    }
}
