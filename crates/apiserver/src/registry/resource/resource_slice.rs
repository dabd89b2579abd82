//! ResourceSlice: devices that are there.

use std::collections::BTreeMap;

use k8s_openapi::api::resource::v1::{CounterSet, Device, ResourceSlice, ResourceSliceSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use super::device::{counters, device, is_list};
use super::lists::distinct;
use super::names::{counter, driver, pool};
use crate::path::now;
use crate::registry::column::{age, name, text};
use crate::registry::core::pod_spec::node_selector;
use crate::registry::prepare::{differ, first_generation, next_generation};
use crate::registry::rules::{IMMUTABLE, dns_subdomain};
use crate::registry::{Column, Context, Selectable, Strategy};

const MAX_DEVICES: usize = 128;
/// Of devices that say more of themselves than what they are.
const MAX_COSTLY_DEVICES: usize = 64;
const MAX_COUNTER_SETS: usize = 8;

impl Strategy for ResourceSlice {
    const KIND: &'static Kind = &kinds::RESOURCE_SLICE;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text("Node", "io.k8s.api.resource.v1.ResourceSliceSpec.nodeName", |s| {
            match s.spec.node_name.as_deref().filter(|n| !n.is_empty()) {
                Some(node) => node.into(),
                None => "<unset>".into(),
            }
        }),
        text("Driver", "io.k8s.api.resource.v1.ResourceSliceSpec.driver", |s| s.spec.driver.as_str().into()),
        text("Pool", "io.k8s.api.resource.v1.ResourcePool.name", |s| s.spec.pool.name.as_str().into()),
        age(),
    ];

    fn default(&mut self) {
        for device in self.spec.devices.iter_mut().flatten() {
            for taint in device.taints.iter_mut().flatten() {
                taint.time_added.get_or_insert_with(now);
            }
            let mappings = device.node_allocatable_resource_mappings.iter_mut();
            for mapping in mappings.flat_map(BTreeMap::values_mut) {
                mapping.allocation_multiplier.get_or_insert_with(|| Quantity("1".to_owned()));
            }
        }
    }

    fn prepare_for_create(&mut self, _: &Context) {
        first_generation(&mut self.metadata);
        drop_disabled(&mut self.spec, None);
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context) {
        // What is dropped counts as a change, as it does upstream.
        next_generation(&mut self.metadata, &old.metadata, differ(&self.spec, &old.spec));
        drop_disabled(&mut self.spec, Some(&old.spec));
    }

    fn validate(&self, _: &FieldPath, _: &mut FieldErrors) {}

    fn validate_new(&self, at: &FieldPath, errors: &mut FieldErrors) {
        validate_spec(&self.spec, None, &at.child("spec"), errors);
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        validate_spec(&self.spec, Some(&old.spec), &at.child("spec"), errors);
    }

    fn warnings(&self, _: Option<&Self>) -> Vec<String> {
        let driver = &self.spec.driver;
        if *driver == driver.to_lowercase() {
            return Vec::new();
        }
        vec![format!(
            "spec.driver: driver names should be lowercase; {driver:?} contains uppercase characters"
        )]
    }

    fn selectable(&self) -> Selectable {
        vec![
            ("spec.nodeName", self.spec.node_name.clone().unwrap_or_default()),
            ("spec.driver", self.spec.driver.clone()),
        ]
    }
}

fn has_lists(spec: &ResourceSliceSpec) -> bool {
    let devices = spec.devices.iter().flatten();
    devices.flat_map(|device| device.attributes.iter().flatten()).any(|(_, attribute)| is_list(attribute))
}

fn has_mappings(spec: &ResourceSliceSpec) -> bool {
    let mappings = |device: &Device| {
        device.node_allocatable_resource_mappings.as_ref().is_some_and(|mappings| !mappings.is_empty())
    };
    spec.devices.iter().flatten().any(mappings)
}

/// Drops what belongs to features that are not there yet (DRAListTypeAttributes, DRANodeAllocatableResources), unless
/// it was there before.
fn drop_disabled(spec: &mut ResourceSliceSpec, old: Option<&ResourceSliceSpec>) {
    let (keep_lists, keep_mappings) = (old.is_some_and(has_lists), old.is_some_and(has_mappings));
    for device in spec.devices.iter_mut().flatten() {
        if !keep_mappings {
            device.node_allocatable_resource_mappings = None;
        }
        let attributes = device.attributes.iter_mut().flat_map(BTreeMap::values_mut);
        for attribute in attributes.filter(|_| !keep_lists) {
            attribute.bools = None;
            attribute.ints = None;
            attribute.strings = None;
            attribute.versions = None;
        }
    }
}

fn validate_spec(
    spec: &ResourceSliceSpec,
    old: Option<&ResourceSliceSpec>,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    driver(&spec.driver, &at.child("driver"), errors);
    validate_pool(spec, &at.child("pool"), errors);
    if let Some(old) = old {
        unchanged(spec, old, at, errors);
    }
    place(spec, at, errors);
    if spec.shared_counters.is_some() && spec.devices.is_some() {
        errors.invalid(at, "", "only one of `sharedCounters` or `devices` is allowed");
    }
    let costly = |device: &Device| {
        device.taints.as_ref().is_some_and(|taints| !taints.is_empty())
            || device.consumes_counters.as_ref().is_some_and(|consumed| !consumed.is_empty())
    };
    let is_costly = has_lists(spec) || spec.devices.iter().flatten().any(costly);
    let most = if is_costly { MAX_COSTLY_DEVICES } else { MAX_DEVICES };
    let own_place = spec.per_device_node_selection == Some(true);
    let before = |name: &str| old?.devices.iter().flatten().find(|device| device.name == name);
    let (devices, at_devices) = (spec.devices.as_deref(), at.child("devices"));
    distinct(
        devices,
        most,
        &at_devices,
        errors,
        |it| &it.name,
        |it, at, errors| {
            device(it, before(&it.name), own_place, at, errors);
        },
    );
    let (sets, at_sets) = (spec.shared_counters.as_deref(), at.child("sharedCounters"));
    distinct(sets, MAX_COUNTER_SETS, &at_sets, errors, |set| &set.name, counter_set);
}

fn validate_pool(spec: &ResourceSliceSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let it = &spec.pool;
    pool(&it.name, &at.child("name"), errors);
    if it.resource_slice_count <= 0 {
        let at = at.child("resourceSliceCount");
        errors.invalid(&at, it.resource_slice_count, "must be greater than zero");
    }
    if it.generation < 0 {
        errors.invalid(&at.child("generation"), it.generation, "must be greater than or equal to zero");
    }
}

fn unchanged(spec: &ResourceSliceSpec, old: &ResourceSliceSpec, at: &FieldPath, errors: &mut FieldErrors) {
    if spec.pool.name != old.pool.name {
        errors.invalid(&at.child("pool").child("name"), &spec.pool.name, IMMUTABLE);
    }
    if spec.driver != old.driver {
        errors.invalid(&at.child("driver"), &spec.driver, IMMUTABLE);
    }
    if spec.node_name != old.node_name {
        errors.invalid(&at.child("nodeName"), &spec.node_name, IMMUTABLE);
    }
}

/// From where the devices can be reached.
fn place(spec: &ResourceSliceSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let mut places = Vec::new();
    match spec.node_name.as_deref() {
        Some("") => {
            errors.invalid(&at.child("nodeName"), "", "must be either unset or set to a non-empty string");
        }
        Some(node) => {
            places.push("`nodeName`");
            dns_subdomain(node, &at.child("nodeName"), errors);
        }
        None => {}
    }
    if let Some(selector) = &spec.node_selector {
        places.push("`nodeSelector`");
        let (at, terms) = (at.child("nodeSelector"), &selector.node_selector_terms);
        node_selector(selector, &at, errors);
        if terms.len() != 1 {
            errors.invalid(&at.child("nodeSelectorTerms"), terms, "must have exactly one node selector term");
        }
    }
    for (field, said) in
        [("allNodes", spec.all_nodes), ("perDeviceNodeSelection", spec.per_device_node_selection)]
    {
        match said {
            Some(true) if field == "allNodes" => places.push("`allNodes`"),
            Some(true) => places.push("`perDeviceNodeSelection`"),
            Some(false) => errors.invalid(&at.child(field), false, "must be either unset or set to true"),
            None => {}
        }
    }
    let one = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    match places.len() {
        0 => errors.required(at, one),
        1 => {}
        _ => {
            let places = format!("{{{}}}", places.join(", "));
            errors.invalid(at, places, format!("{one}, but multiple fields are set"));
        }
    }
}

fn counter_set(set: &CounterSet, at: &FieldPath, errors: &mut FieldErrors) {
    counter(&set.name, &at.child("name"), errors);
    counters(&set.counters, &at.child("counters"), errors);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn slice(change: impl FnOnce(&mut Value)) -> ResourceSlice {
        let mut spec = json!({"driver": "d.example.com", "nodeName": "n",
            "pool": {"name": "p", "generation": 0, "resourceSliceCount": 1}});
        change(&mut spec);
        let all = json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": "s"},
            "spec": spec});
        serde_json::from_value(all).expect("a slice")
    }

    fn told(slice: &ResourceSlice) -> Vec<String> {
        let mut errors = FieldErrors::new();
        slice.validate_new(&FieldPath::new(""), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn devices_are_in_one_place() {
        assert_eq!(told(&slice(|_| ())), [""; 0]);
        assert_eq!(
            told(&slice(|spec| spec["allNodes"] = true.into())),
            [
                "spec: Invalid value: \"{`nodeName`, `allNodes`}\": exactly one of `nodeName`, `nodeSelector`, \
                 `allNodes`, `perDeviceNodeSelection` is required, but multiple fields are set"
            ]
        );
        let nowhere = slice(|spec| {
            spec["nodeName"] = "".into();
            spec["allNodes"] = false.into();
        });
        assert_eq!(
            told(&nowhere),
            [
                "spec.nodeName: Invalid value: \"\": must be either unset or set to a non-empty string",
                "spec.allNodes: Invalid value: false: must be either unset or set to true",
                "spec: Required value: exactly one of `nodeName`, `nodeSelector`, `allNodes`, \
                 `perDeviceNodeSelection` is required"
            ]
        );
    }

    #[test]
    fn devices_and_counters_are_judged() {
        let costly = slice(|spec| {
            let taints = json!([{"key": "a", "effect": "None"}]);
            spec["devices"] = (0..65).map(|i| json!({"name": format!("d{i}"), "taints": taints})).collect();
        });
        assert_eq!(told(&costly), ["spec.devices: Too many: 65: must have at most 64 items"]);
        let twice = slice(|spec| spec["devices"] = json!([{"name": "a"}, {"name": "a"}]));
        assert_eq!(told(&twice), ["spec.devices[1]: Duplicate value: \"a\""]);
        let counters = slice(|spec| {
            spec["sharedCounters"] = json!([{"name": "", "counters": {}}]);
            spec["devices"] = json!([{"name": "a"}]);
            spec["pool"]["generation"] = (-1).into();
        });
        assert_eq!(
            told(&counters),
            [
                "spec.pool.generation: Invalid value: -1: must be greater than or equal to zero",
                "spec: Invalid value: \"\": only one of `sharedCounters` or `devices` is allowed",
                "spec.sharedCounters[0].name: Required value",
                "spec.sharedCounters[0].counters: Required value",
            ]
        );
    }

    #[test]
    fn taints_are_dated_and_fields_of_features_that_are_off_are_dropped() {
        let mut slice = slice(|spec| {
            spec["devices"] = json!([{"name": "a", "taints": [{"key": "a", "effect": "None"}],
                "attributes": {"a": {"int": 1, "ints": [1, 2]}},
                "nodeAllocatableResourceMappings": {"cpu": {}}}]);
        });
        slice.default();
        slice.prepare_for_create(&Context::default());
        let device = &slice.spec.devices.as_deref().expect("devices")[0];
        assert!(device.taints.as_deref().expect("taints")[0].time_added.is_some());
        assert_eq!(device.node_allocatable_resource_mappings, None);
        assert_eq!(device.attributes.as_ref().expect("attributes")["a"].ints, None);
        assert_eq!(told(&slice), [""; 0]);
    }

    #[test]
    fn who_writes_a_driver_in_capitals_is_warned() {
        let slice = slice(|spec| spec["driver"] = "D.example.com".into());
        assert_eq!(
            slice.warnings(None),
            [
                "spec.driver: driver names should be lowercase; \"D.example.com\" contains uppercase characters"
            ]
        );
    }
}
