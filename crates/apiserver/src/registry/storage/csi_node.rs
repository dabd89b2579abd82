//! CSINode: which storage drivers a node has.

use std::collections::BTreeSet;

use k8s_openapi::api::storage::v1::CSINode;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use crate::registry::column::{age, integer, name};
use crate::registry::core::pod_spec::driver_name;
use crate::registry::rules::{label_name, required};
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
            if !names.insert(&driver.name) {
                errors.duplicate(&at.child("name"), &driver.name);
            }
            let mut keys = BTreeSet::new();
            for key in driver.topology_keys.iter().flatten() {
                if !keys.insert(key) {
                    errors.duplicate(&at.child("topologyKeys"), key);
                }
                label_name(key, &at.child("topologyKeys"), errors);
            }
        }
    }
}
