//! What is asked for in a claim, whether the claim stands alone or is a template.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::resource::v1::{
    DeviceClaim, DeviceClaimConfiguration, DeviceConstraint, DeviceRequest, ResourceClaimSpec,
};
use krate_api::{FieldErrors, FieldPath};

use super::config::configuration;
use super::lists::{all, distinct};
use super::names::fully_qualified;
use super::selector::selectors;
use super::taints::{default_tolerations, tolerations};
use crate::registry::rules::{dns_label, dns_subdomain, one_of};

/// The most requests, constraints, configurations.
pub const MOST: usize = 32;
const MOST_ALTERNATIVES: usize = 8;
const NO_REQUEST: &str =
    "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";

pub fn default_spec(spec: &mut ResourceClaimSpec) {
    for request in spec.devices.iter_mut().flat_map(|d| d.requests.iter_mut().flatten()) {
        if let Some(exactly) = &mut request.exactly {
            default_count(&mut exactly.allocation_mode, &mut exactly.count);
            default_tolerations(&mut exactly.tolerations);
        }
        for sub in request.first_available.iter_mut().flatten() {
            default_count(&mut sub.allocation_mode, &mut sub.count);
            default_tolerations(&mut sub.tolerations);
        }
    }
}

fn default_count(mode: &mut Option<String>, count: &mut Option<i64>) {
    if mode.as_deref().is_none_or(str::is_empty) {
        *mode = Some("ExactCount".to_owned());
    }
    if mode.as_deref() == Some("ExactCount") && count.unwrap_or(0) == 0 {
        *count = Some(1);
    }
}

/// The names of a claim's requests, each with those of its alternatives.
pub struct Requests<'a>(BTreeMap<&'a str, BTreeSet<&'a str>>);

impl<'a> Requests<'a> {
    pub fn of(spec: &'a ResourceClaimSpec) -> Self {
        let requests = spec.devices.iter().flat_map(|d| d.requests.iter().flatten());
        let alternatives = |request: &'a DeviceRequest| {
            request.first_available.iter().flatten().map(|sub| sub.name.as_str()).collect()
        };
        Requests(requests.map(|request| (request.name.as_str(), alternatives(request))).collect())
    }

    fn has(&self, name: &str) -> bool {
        match name.split_once('/') {
            None => self.0.contains_key(name),
            Some((name, sub)) => self.0.get(name).is_some_and(|subs| subs.contains(sub)),
        }
    }

    /// Judges what names one of them.
    pub fn named(&self, name: &str, at: &FieldPath, errors: &mut FieldErrors) {
        if name.split('/').count() > 2 {
            errors.invalid(at, name, NO_REQUEST);
            return;
        }
        for part in name.split('/') {
            dns_label(part, at, errors);
        }
        if !self.has(name) {
            errors.invalid(at, name, NO_REQUEST);
        }
    }

    /// Judges what names some of them, each once.
    pub fn all_named(&self, names: Option<&[String]>, at: &FieldPath, errors: &mut FieldErrors) {
        distinct(names, MOST, at, errors, |name| name, |name, at, errors| self.named(name, at, errors));
    }
}

pub fn validate_spec(spec: &ResourceClaimSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(DeviceClaim { requests, constraints, config }) = &spec.devices else { return };
    let (at, named) = (at.child("devices"), Requests::of(spec));
    let key = |request: &DeviceRequest| request.name.clone();
    distinct(requests.as_deref(), MOST, &at.child("requests"), errors, key, request);
    all(constraints.as_deref(), MOST, &at.child("constraints"), errors, |it, at, errors| {
        constraint(it, &named, at, errors);
    });
    all(config.as_deref(), MOST, &at.child("config"), errors, |it: &DeviceClaimConfiguration, at, errors| {
        named.all_named(it.requests.as_deref(), &at.child("requests"), errors);
        configuration(it.opaque.as_ref(), false, at, errors);
    });
}

fn request(request: &DeviceRequest, at: &FieldPath, errors: &mut FieldErrors) {
    dns_label(&request.name, &at.child("name"), errors);
    match (&request.exactly, request.first_available.as_deref().unwrap_or_default()) {
        (None, []) => errors.required(at, "exactly one of `exactly` or `firstAvailable` is required"),
        (Some(_), [_, ..]) => errors.invalid(
            at,
            (),
            "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set",
        ),
        (Some(exactly), []) => {
            let at = at.child("exactly");
            class(&exactly.device_class_name, &at, errors);
            selectors(exactly.selectors.as_deref(), &at.child("selectors"), errors);
            count(exactly.allocation_mode.as_deref(), exactly.count, &at, errors);
            tolerations(exactly.tolerations.as_deref(), &at.child("tolerations"), errors);
        }
        (None, subs) => {
            let at = at.child("firstAvailable");
            distinct(
                Some(subs),
                MOST_ALTERNATIVES,
                &at,
                errors,
                |sub| &sub.name,
                |sub, at, errors| {
                    dns_label(&sub.name, &at.child("name"), errors);
                    class(&sub.device_class_name, at, errors);
                    selectors(sub.selectors.as_deref(), &at.child("selectors"), errors);
                    count(sub.allocation_mode.as_deref(), sub.count, at, errors);
                    tolerations(sub.tolerations.as_deref(), &at.child("tolerations"), errors);
                },
            );
        }
    }
}

fn class(class: &str, at: &FieldPath, errors: &mut FieldErrors) {
    if class.is_empty() {
        errors.required(&at.child("deviceClassName"), "");
    } else {
        dns_subdomain(class, &at.child("deviceClassName"), errors);
    }
}

fn count(mode: Option<&str>, count: Option<i64>, at: &FieldPath, errors: &mut FieldErrors) {
    let n = count.unwrap_or(0);
    match mode.unwrap_or_default() {
        "ExactCount" if n > 0 => {}
        "ExactCount" => errors.invalid(&at.child("count"), n, "must be greater than zero"),
        "All" if n == 0 => {}
        "All" => {
            errors.invalid(&at.child("count"), n, "must not be specified when allocationMode is 'All'");
        }
        other => one_of(other, &["All", "ExactCount"], &at.child("allocationMode"), errors),
    }
}

fn constraint(it: &DeviceConstraint, named: &Requests<'_>, at: &FieldPath, errors: &mut FieldErrors) {
    named.all_named(it.requests.as_deref(), &at.child("requests"), errors);
    match (&it.match_attribute, &it.distinct_attribute) {
        (Some(name), _) => fully_qualified(name, &at.child("matchAttribute"), errors),
        (None, Some(name)) => fully_qualified(name, &at.child("distinctAttribute"), errors),
        (None, None) => errors.required(
            at,
            "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn told(devices: Value) -> Vec<String> {
        let mut spec: ResourceClaimSpec =
            serde_json::from_value(json!({"devices": devices})).expect("a spec");
        default_spec(&mut spec);
        let mut errors = FieldErrors::new();
        validate_spec(&spec, &FieldPath::new("x"), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    fn one() -> Value {
        json!({"name": "one", "exactly": {"deviceClassName": "c"}})
    }

    fn either() -> Value {
        json!({"name": "two", "firstAvailable": [
            {"name": "big", "deviceClassName": "c"}, {"name": "small", "deviceClassName": "c"}]})
    }

    #[test]
    fn what_is_asked_for_names_its_requests() {
        let opaque = json!({"driver": "d.example.com", "parameters": {}});
        let good = json!({
            "requests": [one(), either()],
            "constraints": [{"requests": ["one", "two/big"], "matchAttribute": "example.com/numa"}],
            "config": [{"requests": ["two"], "opaque": opaque}]});
        assert_eq!(told(good), [""; 0]);
        let bad = json!({
            "requests": [one(), either()],
            "constraints": [{"requests": ["one/big", "one", "one"], "matchAttribute": "numa"}, {}],
            "config": [{"requests": ["a/b/c"]}]});
        assert_eq!(
            told(bad),
            [
                format!("x.devices.constraints[0].requests[0]: Invalid value: \"one/big\": {NO_REQUEST}"),
                "x.devices.constraints[0].requests[2]: Duplicate value: \"one\"".to_owned(),
                "x.devices.constraints[0].matchAttribute: Invalid value: \"numa\": a fully qualified name must be \
                 a domain and a name separated by a slash"
                    .to_owned(),
                "x.devices.constraints[1]: Required value: exactly one of \"matchAttribute\" or \
                 \"distinctAttribute\" is required, but multiple fields are set"
                    .to_owned(),
                format!("x.devices.config[0].requests[0]: Invalid value: \"a/b/c\": {NO_REQUEST}"),
                "x.devices.config[0].opaque: Required value".to_owned(),
            ]
        );
    }

    #[test]
    fn a_request_is_one_or_the_first_of_several() {
        let mut both = either();
        both["exactly"] = json!({"deviceClassName": "c"});
        let twice = json!({"name": "three", "firstAvailable": [
            {"name": "a", "deviceClassName": "c"}, {"name": "a", "deviceClassName": "c"}]});
        assert_eq!(
            told(json!({"requests": [one(), {"name": "none"}, both, one(), twice]})),
            [
                "x.devices.requests[1]: Required value: exactly one of `exactly` or `firstAvailable` is required",
                "x.devices.requests[2]: Invalid value: null: exactly one of `exactly` or `firstAvailable` is \
                 required, but multiple fields are set",
                "x.devices.requests[4].firstAvailable[1]: Duplicate value: \"a\"",
                "x.devices.requests[3]: Duplicate value: \"one\"",
            ]
        );
    }

    #[test]
    fn counts_are_as_their_mode_says() {
        let request = |exactly: Value| json!({"requests": [{"name": "one", "exactly": exactly}]});
        let at = "x.devices.requests[0].exactly";
        for (exactly, why) in [
            (
                json!({"deviceClassName": "c", "count": -1}),
                "count: Invalid value: -1: must be greater than zero",
            ),
            (
                json!({"deviceClassName": "c", "allocationMode": "All", "count": 2}),
                "count: Invalid value: 2: must not be specified when allocationMode is 'All'",
            ),
            (
                json!({"deviceClassName": "c", "allocationMode": "Some"}),
                "allocationMode: Unsupported value: \"Some\": supported values: \"All\", \"ExactCount\"",
            ),
            (json!({"deviceClassName": ""}), "deviceClassName: Required value"),
            (
                json!({"deviceClassName": "c", "tolerations": [{"operator": "Like"}]}),
                "tolerations[0].operator: Unsupported value: \"Like\": supported values: \"Equal\", \"Exists\"",
            ),
        ] {
            assert_eq!(told(request(exactly)), [format!("{at}.{why}")]);
        }
    }
}
