//! How much a device has of something, and how much of it one claim may ask for (KEP-5075).

use k8s_openapi::api::resource::v1::{CapacityRequestPolicy, CapacityRequestPolicyRange, DeviceCapacity};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Raw;
use krate_api::quantity::Quantity;
use krate_api::quota::parsed;
use krate_api::{FieldErrors, FieldPath};

use super::lists::distinct;

const MOST_VALUES: usize = 10;

/// `shared`: the device is given to several claims at once.
pub fn capacity(it: &DeviceCapacity, shared: bool, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(policy) = &it.request_policy else { return };
    let at = at.child("requestPolicy");
    if shared {
        request_policy(policy, &parsed(&it.value), &at, errors);
    } else {
        errors.forbidden(&at, "allowMultipleAllocations must be true");
    }
}

fn request_policy(policy: &CapacityRequestPolicy, most: &Quantity, at: &FieldPath, errors: &mut FieldErrors) {
    let default = policy.default.as_ref().map(parsed);
    match (policy.valid_values.as_deref().unwrap_or_default(), &policy.valid_range) {
        ([_, ..], Some(_)) => errors.forbidden(
            at,
            "exactly one policy can be specified, cannot specify \"validValues\" and \"validRange\" at the same time",
        ),
        (values @ [_, ..], None) => match default {
            None => errors.required(&at.child("default"), "required when validValues is defined"),
            Some(default) => valid_values(values, &default, most, &at.child("validValues"), errors),
        },
        ([], Some(range)) => match default {
            None => errors.required(&at.child("default"), "required when validRange is defined"),
            Some(default) => valid_range(range, &default, most, &at.child("validRange"), errors),
        },
        ([], None) => {}
    }
}

fn valid_values(
    values: &[Raw],
    default: &Quantity,
    most: &Quantity,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    let amounts: Vec<Quantity> = values.iter().map(parsed).collect();
    for (i, pair) in amounts.windows(2).enumerate() {
        if let [before, after] = pair
            && before > after
        {
            errors.invalid(&at.index(i + 1), after.to_string(), "values must be sorted in ascending order");
        }
    }
    let key = |amount: &Quantity| amount.value().to_string();
    distinct(Some(amounts.as_slice()), MOST_VALUES, at, errors, key, |amount, at, errors| {
        if amount > most {
            let why = format!("option is larger than capacity value: {most}");
            errors.invalid(at, amount.to_string(), why);
        }
    });
    // What is too long is not looked into.
    if amounts.len() > MOST_VALUES || !amounts.contains(default) {
        let why = "default value is not valid according to the requestPolicy";
        errors.invalid(at, default.to_string(), why);
    }
}

fn valid_range(
    range: &CapacityRequestPolicyRange,
    default: &Quantity,
    most: &Quantity,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    let (at_min, at_max, at_step) = (at.child("min"), at.child("max"), at.child("step"));
    if range.min.0.is_empty() {
        errors.required(&at_min, "required when validRange is defined");
        return;
    }
    let min = parsed(&range.min);
    let mut wrong = |is_wrong: bool, at: &FieldPath, shown: &Quantity, why: String| {
        if is_wrong {
            errors.invalid(at, shown.to_string(), why);
        }
    };
    wrong(min > *most, &at_min, &min, format!("min is larger than capacity value: {most}"));
    wrong(*default < min, &at_min, default, format!("default is less than min: {min}"));
    let max = range.max.as_ref().map(parsed);
    if let Some(max) = &max {
        wrong(min > *max, &at_max, &min, format!("min is larger than max: {max}"));
        wrong(max > most, &at_max, max, format!("max is larger than capacity value: {most}"));
        wrong(default > max, &at_max, default, format!("default is more than max: {max}"));
    }
    let Some(step) = range.step.as_ref().map(parsed) else { return };
    let first = min.add(&step);
    wrong(first > *most, &at_step, &step, format!("one step {first} is larger than capacity value: {most}"));
    for value in [Some(default), max.as_ref()].into_iter().flatten() {
        let rest = value.value().wrapping_sub(min.value()).checked_rem(step.value());
        let why = format!("value is not a multiple of a given step ({step}) from ({min})");
        wrong(rest.is_some_and(|rest| rest != 0), &at_step, value, why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn told(policy: Value, shared: bool) -> Vec<String> {
        let it = json!({"value": "10Gi", "requestPolicy": policy});
        let it: DeviceCapacity = serde_json::from_value(it).expect("a capacity");
        let mut errors = FieldErrors::new();
        capacity(&it, shared, &FieldPath::new("x"), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn only_a_shared_device_says_how_much_may_be_asked_for() {
        assert_eq!(
            told(json!({}), false),
            ["x.requestPolicy: Forbidden: allowMultipleAllocations must be true"]
        );
        assert_eq!(told(json!({}), true), [""; 0]);
        assert_eq!(
            told(json!({"validValues": ["1Gi"]}), true),
            ["x.requestPolicy.default: Required value: required when validValues is defined"]
        );
        let both = json!({"validValues": ["1Gi"], "validRange": {"min": "1Gi"}});
        assert!(told(both, true)[0].starts_with("x.requestPolicy: Forbidden: exactly one policy"));
    }

    #[test]
    fn values_are_sorted_and_there() {
        let good = json!({"default": "1Gi", "validValues": ["1Gi", "2Gi"]});
        assert_eq!(told(good, true), [""; 0]);
        assert_eq!(
            told(json!({"default": "3Gi", "validValues": ["2Gi", "1Gi", "1Gi", "20Gi"]}), true),
            [
                "x.requestPolicy.validValues[1]: Invalid value: \"1Gi\": values must be sorted in ascending order",
                "x.requestPolicy.validValues[3]: Invalid value: \"20Gi\": option is larger than capacity value: \
                 10Gi",
                "x.requestPolicy.validValues[2]: Duplicate value: \"1073741824\"",
                "x.requestPolicy.validValues: Invalid value: \"3Gi\": default value is not valid according to the \
                 requestPolicy",
            ]
        );
    }

    #[test]
    fn a_range_goes_in_steps() {
        let good = json!({"default": "2Gi", "validRange": {"min": "1Gi", "max": "5Gi", "step": "1Gi"}});
        assert_eq!(told(good, true), [""; 0]);
        assert_eq!(
            told(json!({"default": "3Gi", "validRange": {"min": "2Gi", "max": "20Gi", "step": "2Gi"}}), true),
            [
                "x.requestPolicy.validRange.max: Invalid value: \"20Gi\": max is larger than capacity value: 10Gi",
                "x.requestPolicy.validRange.step: Invalid value: \"3Gi\": value is not a multiple of a given step \
                 (2Gi) from (2Gi)",
            ]
        );
        let none = json!({"default": "2Gi", "validRange": {"min": "2Gi", "step": "0"}});
        assert_eq!(told(none, true), [""; 0], "no step is no reason to panic");
    }
}
