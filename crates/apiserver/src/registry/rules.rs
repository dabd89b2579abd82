//! The rules that many kinds share, with upstream's wording (`k8s.io/apimachinery/pkg/util/validation` and
//! `pkg/apis/*/validation`).

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use krate_api::names::{is_dns1123_label, is_dns1123_subdomain};
use krate_api::{FieldErrors, FieldPath};
use serde::Serialize;

pub const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
pub const IMMUTABLE: &str = "field is immutable";
pub const NOT_AN_IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";

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

pub fn immutable<T: PartialEq + Serialize>(new: &T, old: &T, at: &FieldPath, errors: &mut FieldErrors) {
    if new != old {
        errors.invalid(at, new, IMMUTABLE);
    }
}

pub fn ip(value: &str, at: &FieldPath, errors: &mut FieldErrors) {
    if value.parse::<IpAddr>().is_err() {
        errors.invalid(at, value, NOT_AN_IP);
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

pub fn cidr(value: &str, at: &FieldPath, errors: &mut FieldErrors) {
    if parse_cidr(value).is_none() {
        errors.invalid(at, value, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)");
    }
}

fn alnum_ends(s: &str, inner: fn(u8) -> bool) -> bool {
    let b = s.as_bytes();
    matches!((b.first(), b.last()), (Some(f), Some(l)) if f.is_ascii_alphanumeric() && l.is_ascii_alphanumeric())
        && b.iter().all(|&c| c.is_ascii_alphanumeric() || inner(c))
}

/// A key of a label: `name` or `dns.prefix/name`.
pub fn qualified_name(value: &str) -> Vec<String> {
    const FORM: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
                        alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for \
                        validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
    let mut wrong = Vec::new();
    let name = match value.split('/').collect::<Vec<_>>()[..] {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                wrong.push("prefix part must be non-empty".to_owned());
            } else {
                wrong.extend(is_dns1123_subdomain(prefix).into_iter().map(|w| format!("prefix part {w}")));
            }
            name
        }
        _ => {
            wrong.push(format!(
                "a qualified name {FORM} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            ));
            return wrong;
        }
    };
    if name.is_empty() {
        wrong.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        wrong.push("name part must be no more than 63 bytes".to_owned());
    }
    if !alnum_ends(name, |c| matches!(c, b'-' | b'_' | b'.')) {
        wrong.push(format!("name part {FORM}"));
    }
    wrong
}

pub fn label_value(value: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if value.len() > 63 {
        wrong.push("must be no more than 63 bytes".to_owned());
    }
    if !value.is_empty() && !alnum_ends(value, |c| matches!(c, b'-' | b'_' | b'.')) {
        wrong.push(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must \
             start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for \
             validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
                .to_owned(),
        );
    }
    wrong
}

pub fn label_name(key: &str, at: &FieldPath, errors: &mut FieldErrors) {
    each(qualified_name(key), key, at, errors);
}

/// A map of labels, all of whose faults are shown at the map itself.
pub fn labels(labels: Option<&BTreeMap<String, String>>, at: &FieldPath, errors: &mut FieldErrors) {
    for (key, value) in labels.into_iter().flatten() {
        label_name(key, at, errors);
        each(label_value(value), value, at, errors);
    }
}

/// The keys of annotations; their values are free, their size together is not.
pub fn annotations(annotations: Option<&BTreeMap<String, String>>, at: &FieldPath, errors: &mut FieldErrors) {
    const MOST: usize = 256 * 1024;
    let mut size = 0;
    for (key, value) in annotations.into_iter().flatten() {
        each(qualified_name(&key.to_lowercase()), key, at, errors);
        size += key.len() + value.len();
    }
    if size > MOST {
        errors.too_long(at, MOST);
    }
}

/// The metadata of something that is not an object yet, as a pod template.
pub fn template_metadata(meta: Option<&ObjectMeta>, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(meta) = meta else { return };
    labels(meta.labels.as_ref(), &at.child("labels"), errors);
    annotations(meta.annotations.as_ref(), &at.child("annotations"), errors);
}

pub fn label_selector(selector: &LabelSelector, at: &FieldPath, errors: &mut FieldErrors) {
    labels(selector.match_labels.as_ref(), &at.child("matchLabels"), errors);
    for (i, rule) in selector.match_expressions.iter().flatten().enumerate() {
        let at = at.child("matchExpressions").index(i);
        let values = rule.values.as_deref().unwrap_or_default();
        match rule.operator.as_str() {
            "In" | "NotIn" => {
                if values.is_empty() {
                    errors.required(
                        &at.child("values"),
                        "must be specified when `operator` is 'In' or 'NotIn'",
                    );
                }
            }
            "Exists" | "DoesNotExist" => {
                if !values.is_empty() {
                    errors.forbidden(
                        &at.child("values"),
                        "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                    );
                }
            }
            other => errors.invalid(&at.child("operator"), other, "not a valid selector operator"),
        }
        label_name(&rule.key, &at.child("key"), errors);
        for (i, value) in values.iter().enumerate() {
            each(label_value(value), value, &at.child("values").index(i), errors);
        }
    }
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

/// A name of a port, as `IANA_SVC_NAME`s are (RFC 6335).
pub fn port_name(value: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if value.len() > 15 {
        wrong.push("must be no more than 15 characters".to_owned());
    }
    if !value.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-') {
        wrong.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !value.bytes().any(|c| c.is_ascii_lowercase()) {
        wrong.push("must contain at least one letter (a-z)".to_owned());
    }
    if value.contains("--") {
        wrong.push("must not contain consecutive hyphens".to_owned());
    }
    if value.starts_with('-') || value.ends_with('-') {
        wrong.push("must not begin or end with a hyphen".to_owned());
    }
    wrong
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

/// A key of a ConfigMap or a Secret, or the name of a file made from one.
pub fn config_key(value: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if value.len() > 253 {
        wrong.push("must be no more than 253 bytes".to_owned());
    }
    if value.is_empty()
        || !value.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
    {
        wrong.push(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or \
             'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
                .to_owned(),
        );
    }
    if value == "." {
        wrong.push("must not be '.'".to_owned());
    } else if value == ".." {
        wrong.push("must not be '..'".to_owned());
    } else if value.starts_with("..") {
        wrong.push("must not start with '..'".to_owned());
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qualified_names_have_at_most_one_prefix() {
        for good in ["a", "A_b.c-d", "example.com/x", "kubernetes.io/metadata.name"] {
            assert!(qualified_name(good).is_empty(), "{good}");
        }
        for bad in ["", "-a", "a b", "/x", "a/", "A.B/c", "a/b/c"] {
            assert!(!qualified_name(bad).is_empty(), "{bad}");
        }
    }

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
