//! What is asked for in a claim, whether the claim stands alone or is a template.

use std::collections::BTreeSet;

use k8s_openapi::api::resource::v1::{DeviceSelector, ResourceClaimSpec};
use krate_api::{FieldErrors, FieldPath};

use crate::registry::rules::{dns_label, dns_subdomain, one_of, positive};

const MOST: usize = 32;

pub fn default_spec(spec: &mut ResourceClaimSpec) {
    for request in spec.devices.iter_mut().flat_map(|d| d.requests.iter_mut().flatten()) {
        if let Some(exactly) = &mut request.exactly {
            default_count(&mut exactly.allocation_mode, &mut exactly.count);
            for t in exactly.tolerations.iter_mut().flatten() {
                t.operator.get_or_insert_with(|| "Equal".to_owned());
            }
        }
        for sub in request.first_available.iter_mut().flatten() {
            default_count(&mut sub.allocation_mode, &mut sub.count);
            for t in sub.tolerations.iter_mut().flatten() {
                t.operator.get_or_insert_with(|| "Equal".to_owned());
            }
        }
    }
}

fn default_count(mode: &mut Option<String>, count: &mut Option<i64>) {
    let mode = mode.get_or_insert_with(|| "ExactCount".to_owned());
    if mode == "ExactCount" && count.unwrap_or(0) == 0 {
        *count = Some(1);
    }
}

pub fn validate_spec(spec: &ResourceClaimSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(devices) = &spec.devices else { return };
    let at = at.child("devices").child("requests");
    let requests = devices.requests.as_deref().unwrap_or_default();
    if requests.len() > MOST {
        errors.too_many(&at, requests.len(), MOST);
    }
    let mut names = BTreeSet::new();
    for (i, request) in requests.iter().enumerate() {
        let at = at.index(i);
        name(&request.name, &mut names, &at, errors);
        match (&request.exactly, request.first_available.as_deref().unwrap_or_default()) {
            (None, []) => errors.required(&at, "exactly one of `exactly` or `firstAvailable` is required"),
            (Some(_), [_, ..]) => {
                errors.invalid(
                    &at,
                    "",
                    "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set",
                );
            }
            (Some(e), []) => {
                let at = at.child("exactly");
                class(&e.device_class_name, &at, errors);
                selectors(e.selectors.as_deref(), &at.child("selectors"), errors);
                count(e.allocation_mode.as_deref(), e.count, &at, errors);
            }
            (None, subs) => {
                let at = at.child("firstAvailable");
                if subs.len() > 8 {
                    errors.too_many(&at, subs.len(), 8);
                }
                let mut names = BTreeSet::new();
                for (j, sub) in subs.iter().enumerate() {
                    let at = at.index(j);
                    name(&sub.name, &mut names, &at, errors);
                    class(&sub.device_class_name, &at, errors);
                    selectors(sub.selectors.as_deref(), &at.child("selectors"), errors);
                    count(sub.allocation_mode.as_deref(), sub.count, &at, errors);
                }
            }
        }
    }
}

fn name<'a>(name: &'a str, names: &mut BTreeSet<&'a str>, at: &FieldPath, errors: &mut FieldErrors) {
    if name.is_empty() {
        errors.required(&at.child("name"), "");
    } else {
        dns_label(name, &at.child("name"), errors);
        if !names.insert(name) {
            errors.duplicate(&at.child("name"), name);
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

pub fn selectors(list: Option<&[DeviceSelector]>, at: &FieldPath, errors: &mut FieldErrors) {
    let list = list.unwrap_or_default();
    if list.len() > MOST {
        errors.too_many(at, list.len(), MOST);
    }
    for (i, selector) in list.iter().enumerate() {
        let at = at.index(i).child("cel");
        match &selector.cel {
            None => errors.required(&at, ""),
            Some(cel) if cel.expression.is_empty() => errors.required(&at.child("expression"), ""),
            Some(_) => {}
        }
    }
}

fn count(mode: Option<&str>, count: Option<i64>, at: &FieldPath, errors: &mut FieldErrors) {
    match mode.unwrap_or_default() {
        "ExactCount" => positive(count.unwrap_or(0), &at.child("count"), errors),
        "All" => {
            if let Some(n) = count.filter(|n| *n != 0) {
                errors.invalid(&at.child("count"), n, "must not be specified when allocationMode is 'All'");
            }
        }
        other => one_of(other, &["All", "ExactCount"], &at.child("allocationMode"), errors),
    }
}
