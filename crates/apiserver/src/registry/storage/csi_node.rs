//! CSINode: which storage drivers a node has.

use std::collections::BTreeSet;

use k8s_openapi::api::storage::v1::{CSINode, CSINodeDriver};
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use crate::registry::column::{age, integer, name};
use crate::registry::core::pod_spec::driver_name;
use crate::registry::prepare::differ;
use crate::registry::rules::{IMMUTABLE, label_name, not_negative, required};
use crate::registry::{Column, Strategy};

impl Strategy for CSINode {
    const KIND: &'static Kind = &kinds::CSI_NODE;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        integer("Drivers", "Drivers indicates the number of CSI drivers registered on the node", |n| {
            n.spec.drivers.len().into()
        }),
        age(),
    ];
    const ALLOW_UNCONDITIONAL_UPDATE: bool = false;

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec").child("drivers");
        let mut names = BTreeSet::new();
        for (i, driver) in self.spec.drivers.iter().enumerate() {
            let at = at.index(i);
            driver_name(&driver.name, &at.child("name"), errors);
            required(Some(&driver.node_id), &at.child("nodeID"), errors);
            if driver.node_id.len() > 256 {
                errors.invalid(&at.child("nodeID"), &driver.node_id, "must be 256 characters or less");
            }
            let allocatable = driver.allocatable.as_ref().and_then(|allocatable| allocatable.count);
            if let Some(count) = allocatable {
                not_negative(count, &at.child("allocatable").child("count"), errors);
            }
            if !names.insert(&driver.name) {
                errors.duplicate(&at.child("name"), &driver.name);
            }
            let mut keys = BTreeSet::new();
            for key in driver.topology_keys.iter().flatten() {
                if key.is_empty() {
                    errors.required(&at, "");
                }
                if !keys.insert(key) {
                    errors.duplicate(&at, key);
                }
                label_name(key, &at, errors);
            }
        }
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec").child("drivers");
        // How many volumes there may be changes.
        let kept = |driver: &CSINodeDriver| CSINodeDriver { allocatable: None, ..driver.clone() };
        for was in &old.spec.drivers {
            for driver in self.spec.drivers.iter().filter(|driver| driver.name == was.name) {
                if differ(&kept(driver), &kept(was)) {
                    errors.invalid(&at, kept(driver), IMMUTABLE);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn node(driver: Value) -> CSINode {
        serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": {"drivers": [driver]}}))
            .expect("a node")
    }

    #[test]
    fn of_a_driver_only_how_many_volumes_it_takes_changes() {
        let told = |new: Value| {
            let old = node(json!({"name": "d", "nodeID": "a", "allocatable": {"count": 1}}));
            let mut errors = FieldErrors::new();
            node(new).validate_update(&old, &FieldPath::new(""), &mut errors);
            errors.iter().map(|error| (error.field.to_string(), error.detail.clone())).collect::<Vec<_>>()
        };
        assert!(told(json!({"name": "d", "nodeID": "a", "allocatable": {"count": 2}})).is_empty());
        assert!(told(json!({"name": "e", "nodeID": "b"})).is_empty());
        let at = ("spec.drivers".to_owned(), IMMUTABLE.to_owned());
        assert_eq!(told(json!({"name": "d", "nodeID": "b"})), [at]);
    }

    #[test]
    fn faults_of_topology_keys_are_shown_at_their_driver() {
        let node = node(
            json!({"name": "d", "nodeID": "a", "allocatable": {"count": -1}, "topologyKeys": ["a", "a"]}),
        );
        let mut errors = FieldErrors::new();
        node.validate(&FieldPath::new(""), &mut errors);
        assert_eq!(
            errors.aggregate(),
            "[spec.drivers[0].allocatable.count: Invalid value: -1: must be greater than or equal to 0, \
             spec.drivers[0]: Duplicate value: \"a\"]"
        );
    }
}
