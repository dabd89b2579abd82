//! LimitRange: bounds and defaults for the resources of a namespace's pods.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{LimitRange, LimitRangeItem};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};
use uuid::Uuid;

use super::pod_spec::{Amounts, container_resource_name, resource_name};
use crate::registry::column::{created_at, name};
use crate::registry::quantities::more;
use crate::registry::rules::{each, qualified_name};
use crate::registry::{Column, Context, Strategy};

impl Strategy for LimitRange {
    const KIND: &'static Kind = &kinds::LIMIT_RANGE;
    const COLUMNS: &'static [Column<Self>] = &[name(), created_at()];
    const ALLOW_CREATE_ON_UPDATE: bool = true;

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
        let mut types = BTreeSet::new();
        for (i, item) in self.spec.iter().flat_map(|s| &s.limits).enumerate() {
            let at = at.child("spec").child("limits").index(i);
            kind(&item.type_, &at.child("type"), errors);
            if !types.insert(&item.type_) {
                errors.duplicate(&at.child("type"), &item.type_);
            }
            names(item, &at, errors);
            bounds(item, &at, errors);
        }
    }
}

fn kind(kind: &str, at: &FieldPath, errors: &mut FieldErrors) {
    let wrong = qualified_name(kind);
    if !wrong.is_empty() {
        each(wrong, kind, at, errors);
    } else if !kind.contains('/') && !["Pod", "Container", "PersistentVolumeClaim"].contains(&kind) {
        errors.invalid(at, kind, "must be a standard limit type or fully qualified");
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

/// What is limited, and whether it can be.
fn names(item: &LimitRangeItem, at: &FieldPath, errors: &mut FieldErrors) {
    let is_of_pod = item.type_ == "Pod";
    let check = if is_of_pod || item.type_ == "Container" { container_resource_name } else { resource_name };
    let mut named = |field: &str, amounts: &Option<Amounts>| {
        for name in amounts.iter().flatten().map(|(name, _)| name) {
            check(name, &at.child(field).key(name), errors);
        }
    };
    named("max", &item.max);
    named("min", &item.min);
    if !is_of_pod {
        named("default", &item.default);
        named("defaultRequest", &item.default_request);
    }
    named("maxLimitRequestRatio", &item.max_limit_request_ratio);
    for (field, amounts) in [("default", &item.default), ("defaultRequest", &item.default_request)] {
        if is_of_pod && amounts.as_ref().is_some_and(|amounts| !amounts.is_empty()) {
            errors.forbidden(&at.child(field), "may not be specified when `type` is 'Pod'");
        }
    }
    let has_storage = |amounts: &Option<Amounts>| amounts.as_ref().is_some_and(|a| a.contains_key("storage"));
    if item.type_ == "PersistentVolumeClaim" && !has_storage(&item.min) && !has_storage(&item.max) {
        let why = "either minimum or maximum storage value is required, but neither was provided";
        errors.required(&at.child("limits"), why);
    }
}

/// The amounts that an item has for one resource.
struct Amount<'a> {
    min: Option<&'a Quantity>,
    max: Option<&'a Quantity>,
    limit: Option<&'a Quantity>,
    request: Option<&'a Quantity>,
    ratio: Option<&'a Quantity>,
}

fn bounds(item: &LimitRangeItem, at: &FieldPath, errors: &mut FieldErrors) {
    let fields = [&item.min, &item.max, &item.default, &item.default_request, &item.max_limit_request_ratio];
    let names: BTreeSet<&String> =
        fields.into_iter().flat_map(|amounts| amounts.iter().flatten()).map(|(name, _)| name).collect();
    for name in names {
        let [min, max, limit, request, ratio] =
            fields.map(|amounts| amounts.as_ref().and_then(|amounts| amounts.get(name)));
        // A pod has none, and was told so.
        let (limit, request) = if item.type_ == "Pod" { (None, None) } else { (limit, request) };
        let amount = Amount { min, max, limit, request, ratio };
        in_order(&amount, name, at, errors);
        ratios(&amount, name, at, errors);
        let may_overcommit =
            (!name.contains('/') || name.contains("kubernetes.io/")) && !name.starts_with("hugepages-");
        if let (Some(limit), Some(request)) = (limit, request)
            && !may_overcommit
            && (more(limit, request) || more(request, limit))
        {
            let why = format!(
                "default value {} must equal to defaultRequest value {} in {name}",
                limit.0, request.0
            );
            errors.invalid(&at.child("defaultRequest").key(name), &request.0, why);
        }
    }
}

/// No bound is beyond another. A default limit that is out of them is told with the bound, other faults with what is
/// out of it.
fn in_order(amount: &Amount<'_>, name: &str, at: &FieldPath, errors: &mut FieldErrors) {
    let Amount { min, max, limit, request, .. } = *amount;
    for ((less, less_is), (greater, greater_is), field, shown) in [
        ((min, "min"), (max, "max"), "min", min),
        ((min, "min"), (request, "default request"), "defaultRequest", request),
        ((request, "default request"), (max, "max"), "defaultRequest", request),
        ((request, "default request"), (limit, "default limit"), "defaultRequest", request),
        ((min, "min"), (limit, "default"), "default", min),
        ((limit, "default"), (max, "max"), "default", max),
    ] {
        if let (Some(less), Some(greater), Some(shown)) = (less, greater, shown)
            && more(less, greater)
        {
            let why = format!("{less_is} value {} is greater than {greater_is} value {}", less.0, greater.0);
            errors.invalid(&at.child(field).key(name), &shown.0, why);
        }
    }
}

fn ratios(amount: &Amount<'_>, name: &str, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(ratio) = amount.ratio else { return };
    let at = at.child("maxLimitRequestRatio").key(name);
    if more(&Quantity("1".to_owned()), ratio) {
        errors.invalid(&at, &ratio.0, format!("ratio {} is less than 1", ratio.0));
    }
    let number = |q: &Quantity| krate_api::quantity::Quantity::parse(&q.0).map_or(0.0, |q| q.approximate());
    if let (Some(min), Some(max)) = (amount.min, amount.max) {
        let most = number(max) / number(min);
        if number(ratio) > most {
            let why = format!("ratio {} is greater than max/min = {most:.6}", ratio.0);
            errors.invalid(&at, &ratio.0, why);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn wrong(item: &Value) -> Vec<String> {
        let object = json!({"metadata": {"name": "l"}, "spec": {"limits": [item]}});
        let mut range: LimitRange = serde_json::from_value(object).expect("a range of limits");
        range.default();
        let mut errors = FieldErrors::new();
        range.validate(&FieldPath::new(""), &mut errors);
        errors.iter().map(|e| e.to_string().replace("spec.limits[0].", "")).collect()
    }

    #[test]
    fn limits_are_of_what_has_some() {
        for (item, texts) in [
            (json!({"type": "Pod", "max": {"cpu": "1"}}), vec![]),
            (
                json!({"type": "Odd"}),
                vec!["type: Invalid value: \"Odd\": must be a standard limit type or fully qualified"],
            ),
            (
                json!({"type": "Pod", "max": {"pods": "1"}}),
                vec!["max[pods]: Invalid value: \"pods\": must be a standard resource for containers"],
            ),
            (
                json!({"type": "PersistentVolumeClaim", "max": {"requests.storage": "1"}}),
                vec![
                    "limits: Required value: either minimum or maximum storage value is required, but neither was provided",
                ],
            ),
        ] {
            assert_eq!(wrong(&item), texts);
        }
    }

    #[test]
    fn bounds_are_in_order() {
        for (item, texts) in [
            (
                json!({"type": "Pod", "min": {"cpu": "2"}, "max": {"cpu": "1"}}),
                vec!["min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1"],
            ),
            (
                json!({"type": "Container", "max": {"cpu": "1"}, "default": {"cpu": "2"}, "defaultRequest": {"cpu": "1"}}),
                vec!["default[cpu]: Invalid value: \"1\": default value 2 is greater than max value 1"],
            ),
            (
                json!({"type": "Pod", "min": {"cpu": "1"}, "max": {"cpu": "2"}, "maxLimitRequestRatio": {"cpu": "3"}}),
                vec![
                    "maxLimitRequestRatio[cpu]: Invalid value: \"3\": ratio 3 is greater than max/min = 2.000000",
                ],
            ),
            (
                json!({"type": "Pod", "maxLimitRequestRatio": {"cpu": "500m"}}),
                vec!["maxLimitRequestRatio[cpu]: Invalid value: \"500m\": ratio 500m is less than 1"],
            ),
            (
                json!({"type": "Container", "default": {"a.b/c": "2"}, "defaultRequest": {"a.b/c": "1"}}),
                vec![
                    "defaultRequest[a.b/c]: Invalid value: \"1\": default value 2 must equal to defaultRequest value 1 in a.b/c",
                ],
            ),
        ] {
            assert_eq!(wrong(&item), texts);
        }
    }
}
