//! LimitRange: bounds and defaults for the resources of a namespace's pods.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{LimitRange, LimitRangeItem};
use krate_api::{FieldErrors, FieldPath, Kind, kinds};
use uuid::Uuid;

use super::pod_spec::resource_name;
use crate::registry::column::{created_at, name};
use crate::registry::quantities::more;
use crate::registry::{Column, Context, Strategy};

impl Strategy for LimitRange {
    const KIND: &'static Kind = &kinds::LIMIT_RANGE;
    const COLUMNS: &'static [Column<Self>] = &[name(), created_at()];

    fn default(&mut self) {
        for item in &mut self.spec.get_or_insert_default().limits {
            fill(item);
        }
    }

    /// Nobody refers to it by its name, so it needs not be given one.
    fn prepare_for_create(&mut self, _: &Context) {
        if self.metadata.name.as_deref().is_none_or(str::is_empty) {
            self.metadata.name = Some(Uuid::new_v4().to_string());
        }
    }

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let mut types = std::collections::BTreeSet::new();
        for (i, item) in self.spec.iter().flat_map(|s| &s.limits).enumerate() {
            let at = at.child("spec").child("limits").index(i);
            if item.type_.is_empty() {
                errors.required(&at.child("type"), "");
            } else if !types.insert(&item.type_) {
                errors.duplicate(&at.child("type"), &item.type_);
            }
            bounds(item, &at, errors);
        }
    }
}

/// A container's missing defaults follow from the bounds: limit from max, request from limit, else from min.
fn fill(item: &mut LimitRangeItem) {
    if item.type_ != "Container" {
        return;
    }
    let limits = item.default.get_or_insert_default();
    for (name, value) in item.max.iter().flatten() {
        limits.entry(name.clone()).or_insert_with(|| value.clone());
    }
    let requests = item.default_request.get_or_insert_default();
    for (name, value) in limits.iter().chain(item.min.iter().flatten()) {
        requests.entry(name.clone()).or_insert_with(|| value.clone());
    }
}

fn bounds(item: &LimitRangeItem, at: &FieldPath, errors: &mut FieldErrors) {
    let none = BTreeMap::new();
    let of = |m: &'_ Option<_>| m.clone().unwrap_or_else(|| none.clone());
    let (min, max) = (of(&item.min), of(&item.max));
    let (limit, request, ratio) =
        (of(&item.default), of(&item.default_request), of(&item.max_limit_request_ratio));
    for (field, amounts) in [
        ("max", &max),
        ("min", &min),
        ("default", &limit),
        ("defaultRequest", &request),
        ("maxLimitRequestRatio", &ratio),
    ] {
        for name in amounts.keys() {
            resource_name(name, &at.child(field).key(name), errors);
        }
    }
    if item.type_ == "Pod" {
        for (field, amounts) in [("default", &limit), ("defaultRequest", &request)] {
            if !amounts.is_empty() {
                errors.forbidden(&at.child(field), "may not be specified when `type` is 'Pod'");
            }
        }
    }
    if item.type_ == "PersistentVolumeClaim" && !min.contains_key("storage") && !max.contains_key("storage") {
        errors.required(at, "either minimum or maximum storage value is required, but neither was provided");
    }
    let ordered = [
        ("min", &min, "max", &max, "min"),
        ("min", &min, "defaultRequest", &request, "defaultRequest"),
        ("defaultRequest", &request, "max", &max, "defaultRequest"),
        ("defaultRequest", &request, "default", &limit, "defaultRequest"),
        ("min", &min, "default", &limit, "default"),
        ("default", &limit, "max", &max, "default"),
    ];
    let words = |field: &str, other: &str| match (field, other) {
        ("default", "defaultRequest") => "default limit",
        ("default", _) => "default",
        ("defaultRequest", _) => "default request",
        ("min", _) => "min",
        _ => "max",
    };
    for (low_name, low, high_name, high, shown) in ordered {
        for (name, low_value) in low {
            let Some(high_value) = high.get(name).filter(|h| more(low_value, h)) else { continue };
            let detail = format!(
                "{} value {} is greater than {} value {}",
                words(low_name, high_name),
                low_value.0,
                words(high_name, low_name),
                high_value.0
            );
            // A default limit out of bounds is told with the bound, other faults with what is out of them.
            let of_field = if shown == low_name { low_value } else { high_value };
            let value = match (low_name, high_name) {
                ("min", "default") => low_value,
                ("default", "max") => high_value,
                _ => of_field,
            };
            errors.invalid(&at.child(shown).key(name), &value.0, detail);
        }
    }
}
