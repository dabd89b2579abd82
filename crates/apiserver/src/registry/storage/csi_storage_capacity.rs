//! CSIStorageCapacity: how much room a kind of storage has in a part of the cluster.

use k8s_openapi::api::storage::v1::CSIStorageCapacity;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use crate::registry::column::{created_at, name};
use crate::registry::prepare::differ;
use crate::registry::quantities::is_negative;
use crate::registry::rules::{IMMUTABLE, NOT_NEGATIVE, dns_subdomain, label_selector};
use crate::registry::{Column, Strategy};

impl Strategy for CSIStorageCapacity {
    const KIND: &'static Kind = &kinds::CSI_STORAGE_CAPACITY;
    const COLUMNS: &'static [Column<Self>] = &[name(), created_at()];

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        if let Some(topology) = &self.node_topology {
            label_selector(topology, &at.child("nodeTopology"), errors);
        }
        dns_subdomain(&self.storage_class_name, &at.child("storageClassName"), errors);
        for (name, size) in [("capacity", &self.capacity), ("maximumVolumeSize", &self.maximum_volume_size)] {
            if let Some(size) = size.as_ref().filter(|s| is_negative(s)) {
                errors.invalid(&at.child(name), &size.0, NOT_NEGATIVE);
            }
        }
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        if differ(&self.node_topology, &old.node_topology) {
            errors.invalid(&at.child("nodeTopology"), &self.node_topology, IMMUTABLE);
        }
        if self.storage_class_name != old.storage_class_name {
            errors.invalid(&at.child("storageClassName"), &self.storage_class_name, IMMUTABLE);
        }
    }
}
