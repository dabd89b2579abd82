//! ResourceSlice: devices that are there.

use std::collections::BTreeSet;

use k8s_openapi::api::resource::v1::ResourceSlice;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use crate::registry::column::{age, name, text};
use crate::registry::core::pod_spec::{driver_name, node_selector};
use crate::registry::prepare::counted;
use crate::registry::rules::{IMMUTABLE, dns_label, dns_subdomain};
use crate::registry::{Column, Selectable, Strategy};

const MAX_DEVICES: usize = 128;

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

    counted!(spec);

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec");
        let spec = &self.spec;
        driver_name(&spec.driver, &at.child("driver"), errors);
        let pool = &at.child("pool");
        if spec.pool.name.is_empty() {
            errors.required(&pool.child("name"), "");
        } else {
            for part in spec.pool.name.split('/') {
                dns_subdomain(part, &pool.child("name"), errors);
            }
        }
        if spec.pool.resource_slice_count <= 0 {
            errors.invalid(
                &pool.child("resourceSliceCount"),
                spec.pool.resource_slice_count,
                "must be greater than zero",
            );
        }
        if spec.pool.generation < 0 {
            errors.invalid(
                &pool.child("generation"),
                spec.pool.generation,
                crate::registry::rules::NOT_NEGATIVE,
            );
        }
        let node = spec.node_name.as_deref().filter(|n| !n.is_empty());
        let places = [
            node.is_some(),
            spec.node_selector.is_some(),
            spec.all_nodes == Some(true),
            spec.per_device_node_selection == Some(true),
        ];
        match places.iter().filter(|p| **p).count() {
            1 => {}
            0 => errors.required(
                &at,
                "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required",
            ),
            _ => errors.invalid(
                &at,
                "",
                "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required, but \
                 multiple fields are set",
            ),
        }
        if let Some(node) = node {
            dns_subdomain(node, &at.child("nodeName"), errors);
        }
        if let Some(selector) = &spec.node_selector {
            node_selector(selector, &at.child("nodeSelector"), errors);
        }
        let devices = spec.devices.as_deref().unwrap_or_default();
        if devices.len() > MAX_DEVICES {
            errors.too_many(&at.child("devices"), devices.len(), MAX_DEVICES);
        }
        let mut names = BTreeSet::new();
        for (i, device) in devices.iter().enumerate() {
            let at = at.child("devices").index(i).child("name");
            if device.name.is_empty() {
                errors.required(&at, "");
            } else {
                dns_label(&device.name, &at, errors);
                if !names.insert(&device.name) {
                    errors.duplicate(&at, &device.name);
                }
            }
        }
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec");
        if self.spec.driver != old.spec.driver {
            errors.invalid(&at.child("driver"), &self.spec.driver, IMMUTABLE);
        }
        if self.spec.pool.name != old.spec.pool.name {
            errors.invalid(&at.child("pool").child("name"), &self.spec.pool.name, IMMUTABLE);
        }
        if self.spec.node_name != old.spec.node_name {
            errors.invalid(&at.child("nodeName"), &self.spec.node_name, IMMUTABLE);
        }
    }

    fn selectable(&self) -> Selectable {
        vec![
            ("spec.nodeName", self.spec.node_name.clone().unwrap_or_default()),
            ("spec.driver", self.spec.driver.clone()),
        ]
    }
}
