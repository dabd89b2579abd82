//! One device as its driver describes it.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use k8s_openapi::api::resource::v1::{Counter, Device, DeviceAttribute, DeviceCounterConsumption};
use krate_api::{FieldErrors, FieldPath};
use regex::Regex;
use serde::Serialize;

use super::capacity::capacity;
use super::lists::{distinct, entries};
use super::names::{COUNTER, QUALIFIED, counter, qualified};
use super::taints::{binding_conditions, taints};
use crate::registry::core::pod_spec::node_selector;
use crate::registry::rules::{dns_label, dns_subdomain};

/// The most attributes and capacities of a device, values of attributes, counter sets that it takes from, counters of
/// one of these.
const MOST_ENTRIES: usize = 32;
const MOST_VALUES: usize = 48;
const MOST_COUNTER_SETS: usize = 2;
const MOST_COUNTERS: usize = 32;
/// The longest value of an attribute, in bytes.
const LONGEST: usize = 64;

const ONE_PLACE: &str = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when \
                         `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
const NO_PLACE: &str = "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is \
                        set to true in the ResourceSlice spec";

/// A version as semver.org has it, of whatever length.
static SEMVER: LazyLock<Regex> = LazyLock::new(|| {
    let number = "(0|[1-9][0-9]*)";
    let pre = "(0|[1-9][0-9]*|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*)";
    let build = "[0-9a-zA-Z-]+";
    let whole = format!(r"^{number}\.{number}\.{number}(-{pre}(\.{pre})*)?(\+{build}(\.{build})*)?$");
    Regex::new(&whole).expect("it is constant")
});

/// Judges a device beside what it was. `own_place`: each device of its slice says where it can be reached.
pub fn device(
    device: &Device,
    old: Option<&Device>,
    own_place: bool,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    dns_label(&device.name, &at.child("name"), errors);
    amounts(device, at, errors);
    entries(device.attributes.as_ref(), QUALIFIED, &at.child("attributes"), errors, qualified, attribute);
    let shared = device.allow_multiple_allocations == Some(true);
    let at_capacity = at.child("capacity");
    entries(device.capacity.as_ref(), QUALIFIED, &at_capacity, errors, qualified, |it, at, errors| {
        capacity(it, shared, at, errors);
    });
    let tainted = device.taints.as_deref().unwrap_or_default();
    if old.is_none_or(|old| old.taints.as_deref().unwrap_or_default() != tainted) {
        taints(Some(tainted), &at.child("taints"), errors);
    }
    distinct(
        device.consumes_counters.as_deref(),
        MOST_COUNTER_SETS,
        &at.child("consumesCounters"),
        errors,
        |consumed| &consumed.counter_set,
        consumption,
    );
    place(device, own_place, at, errors);
    binding_conditions(
        device.binding_conditions.as_deref(),
        device.binding_failure_conditions.as_deref(),
        at,
        errors,
    );
}

/// How much is said of a device.
fn amounts(device: &Device, at: &FieldPath, errors: &mut FieldErrors) {
    let attributes = device.attributes.as_ref().map_or(0, BTreeMap::len);
    let entries = attributes + device.capacity.as_ref().map_or(0, BTreeMap::len);
    if entries > MOST_ENTRIES {
        let why = format!("the total number of attributes and capacities must not exceed {MOST_ENTRIES}");
        errors.invalid(at, entries, why);
    }
    let values: usize = device.attributes.iter().flatten().map(|(_, a)| listed(a).max(1)).sum();
    if values > MOST_VALUES {
        let why = format!("the total number of attribute values must not exceed {MOST_VALUES}");
        errors.invalid(at, values, why);
    }
}

/// How many values an attribute lists.
fn listed(attribute: &DeviceAttribute) -> usize {
    let DeviceAttribute { bools, ints, strings, versions, .. } = attribute;
    bools.iter().flatten().count()
        + ints.iter().flatten().count()
        + strings.iter().flatten().count()
        + versions.iter().flatten().count()
}

/// Whether an attribute is a list (KEP-5491).
pub fn is_list(attribute: &DeviceAttribute) -> bool {
    attribute.bools.is_some()
        || attribute.ints.is_some()
        || attribute.strings.is_some()
        || attribute.versions.is_some()
}

/// An attribute by upstream's internal names, as which it is shown.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Shown<'a> {
    int_value: Option<i64>,
    bool_value: Option<bool>,
    string_value: Option<&'a str>,
    version_value: Option<&'a str>,
    int_values: Option<&'a [i64]>,
    bool_values: Option<&'a [bool]>,
    string_values: Option<&'a [String]>,
    version_values: Option<&'a [String]>,
}

impl<'a> Shown<'a> {
    fn new(attribute: &'a DeviceAttribute) -> Self {
        Shown {
            int_value: attribute.int,
            bool_value: attribute.bool,
            string_value: attribute.string.as_deref(),
            version_value: attribute.version.as_deref(),
            int_values: attribute.ints.as_deref(),
            bool_values: attribute.bools.as_deref(),
            string_values: attribute.strings.as_deref(),
            version_values: attribute.versions.as_deref(),
        }
    }
}

fn attribute(attribute: &DeviceAttribute, at: &FieldPath, errors: &mut FieldErrors) {
    if let Some(value) = &attribute.string {
        text(value, &at.child("string"), errors);
    }
    if let Some(value) = &attribute.version {
        version(value, &at.child("version"), errors);
    }
    for (i, value) in attribute.strings.iter().flatten().enumerate() {
        text(value, &at.child("strings").index(i), errors);
    }
    for (i, value) in attribute.versions.iter().flatten().enumerate() {
        version(value, &at.child("versions").index(i), errors);
    }
    let said = [
        attribute.bool.is_some(),
        attribute.int.is_some(),
        attribute.string.is_some(),
        attribute.version.is_some(),
        attribute.bools.is_some(),
        attribute.ints.is_some(),
        attribute.strings.is_some(),
        attribute.versions.is_some(),
    ];
    match said.iter().filter(|said| **said).count() {
        0 => errors.invalid(at, "", "exactly one value must be specified"),
        1 => {}
        _ => errors.invalid(at, Shown::new(attribute), "exactly one value must be specified"),
    }
}

fn text(value: &str, at: &FieldPath, errors: &mut FieldErrors) {
    if value.len() > LONGEST {
        errors.too_long(at, LONGEST);
    }
}

fn version(value: &str, at: &FieldPath, errors: &mut FieldErrors) {
    if !SEMVER.is_match(value) {
        errors.invalid(at, value, "must be a string compatible with semver.org spec 2.0.0");
    }
    text(value, at, errors);
}

fn consumption(consumed: &DeviceCounterConsumption, at: &FieldPath, errors: &mut FieldErrors) {
    counter(&consumed.counter_set, &at.child("counterSet"), errors);
    counters(&consumed.counters, &at.child("counters"), errors);
}

/// The counters of a set, or what a device takes from them.
pub fn counters(all: &BTreeMap<String, Counter>, at: &FieldPath, errors: &mut FieldErrors) {
    if all.is_empty() {
        errors.required(at, "");
    } else if all.len() > MOST_COUNTERS {
        errors.too_many(at, all.len(), MOST_COUNTERS);
    } else {
        entries(Some(all), COUNTER, at, errors, dns_label, |_, _, _| ());
    }
}

/// Where a device can be reached, if it and not its slice says so.
fn place(device: &Device, own_place: bool, at: &FieldPath, errors: &mut FieldErrors) {
    let Device { node_name, node_selector: selector, all_nodes, .. } = device;
    if !own_place {
        if node_name.is_some() || selector.is_some() || all_nodes.is_some() {
            errors.invalid(at, (), NO_PLACE);
        }
        return;
    }
    let mut places = Vec::new();
    match node_name.as_deref() {
        Some("") => errors.invalid(&at.child("nodeName"), "", "must not be empty"),
        Some(name) => {
            places.push("`nodeName`");
            dns_subdomain(name, &at.child("nodeName"), errors);
        }
        None => {}
    }
    if let Some(selector) = selector {
        places.push("`nodeSelector`");
        node_selector(selector, &at.child("nodeSelector"), errors);
    }
    match all_nodes {
        Some(true) => places.push("`allNodes`"),
        Some(false) => {
            errors.invalid(&at.child("allNodes"), false, "must be either unset or set to true");
        }
        None => {}
    }
    match places.len() {
        0 => errors.required(at, ONE_PLACE),
        1 => {}
        _ => errors.invalid(at, format!("{{{}}}", places.join(", ")), ONE_PLACE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn told(it: Value, own_place: bool) -> Vec<String> {
        let it: Device = serde_json::from_value(it).expect("a device");
        let mut errors = FieldErrors::new();
        device(&it, None, own_place, &FieldPath::new("x"), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_attribute_has_one_value() {
        let with = |attribute: Value| json!({"name": "a", "attributes": {"d.example.com/a": attribute}});
        for good in [json!({"bool": false}), json!({"version": "1.2.3-rc.1+b"}), json!({"string": ""})] {
            assert_eq!(told(with(good), false), [""; 0]);
        }
        let at = "x.attributes[d.example.com/a]";
        for (bad, why) in [
            (json!({}), ": Invalid value: \"\": exactly one value must be specified"),
            (
                json!({"int": 1, "bool": true}),
                ": Invalid value: {\"IntValue\":1,\"BoolValue\":true,\"StringValue\":null,\"VersionValue\":null,\
                 \"IntValues\":null,\"BoolValues\":null,\"StringValues\":null,\"VersionValues\":null}: exactly one \
                 value must be specified",
            ),
            (
                json!({"version": "1.2"}),
                ".version: Invalid value: \"1.2\": must be a string compatible with semver.org spec 2.0.0",
            ),
            (json!({"string": "a".repeat(65)}), ".string: Too long: may not be more than 64 bytes"),
        ] {
            assert_eq!(told(with(bad), false), [format!("{at}{why}")]);
        }
    }

    #[test]
    fn a_device_is_described_briefly() {
        let many: serde_json::Map<String, Value> =
            (0..33).map(|i| (format!("a{i}"), json!({"int": i}))).collect();
        assert_eq!(
            told(json!({"name": "a", "attributes": many}), false),
            ["x: Invalid value: 33: the total number of attributes and capacities must not exceed 32"]
        );
        let taken = json!({"counterSet": "a", "counters": {"memory": {"value": "1"}}});
        let twice = json!({"name": "a", "consumesCounters": [taken, taken]});
        assert_eq!(told(twice, false), ["x.consumesCounters[1]: Duplicate value: \"a\""]);
        assert_eq!(
            told(json!({"name": "a", "consumesCounters": [{"counterSet": "", "counters": {}}]}), false),
            [
                "x.consumesCounters[0].counterSet: Required value",
                "x.consumesCounters[0].counters: Required value"
            ]
        );
    }

    #[test]
    fn a_device_says_where_it_is_if_its_slice_does_not() {
        let here = json!({"name": "a", "nodeName": "here"});
        assert_eq!(told(here.clone(), true), [""; 0]);
        assert_eq!(told(here, false), [format!("x: Invalid value: null: {NO_PLACE}")]);
        assert_eq!(told(json!({"name": "a"}), true), [format!("x: Required value: {ONE_PLACE}")]);
        assert_eq!(
            told(json!({"name": "a", "nodeName": "here", "allNodes": true}), true),
            [format!("x: Invalid value: \"{{`nodeName`, `allNodes`}}\": {ONE_PLACE}")]
        );
    }

    #[test]
    fn taints_that_were_there_are_let_be() {
        let taints = json!([{"key": "a b", "effect": "NoSchedule"}]);
        let it: Device = serde_json::from_value(json!({"name": "a", "taints": taints})).expect("a device");
        let count = |old: Option<&Device>| {
            let mut errors = FieldErrors::new();
            device(&it, old, false, &FieldPath::new("x"), &mut errors);
            errors.len()
        };
        assert_eq!((count(None), count(Some(&it))), (1, 0));
    }
}
