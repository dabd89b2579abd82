//! The pod: what is filled in and what is checked wherever its spec stands, in a pod or in a template of one.

mod annotations;
mod claims;
mod container_status;
mod containers;
mod defaults;
mod env;
mod gates;
mod merge_keys;
mod mounts;
mod os;
mod overlaps;
mod plugins;
mod pod_level;
mod probes;
mod projected;
mod resize;
mod resources;
mod scheduling;
mod security;
mod status;
pub mod storage;
mod update;
mod validate;
mod visit;
mod volumes;
mod warnings;

pub use annotations::{
    fill_app_armor, match_fields as annotations_match_fields, update as annotations_update,
};
pub use claims::{access_modes, claim};
pub use defaults::{
    claim as default_claim, pod_only as default_pod, spec as default_spec, template as default_template,
};
pub use gates::{drop_disabled, drop_disabled_status, refuse_disabled};
pub use merge_keys::merge_label_keys;
pub use resize::{MIRROR, is_mirror, keep_all_else, resize};
pub use resources::{
    Amounts, amount, container_resource_name, is_extended, is_native, is_standard, overhead, qos_class,
    resource_name,
};
pub use scheduling::{node_selector, toleration};
pub use status::{keep_observed_generations, status, status_warnings};
pub use update::{ephemeral_update, update};
pub use validate::{pod, template};
pub use volumes::{driver_name, no_back_steps};
pub use warnings::{of_name, of_pod, of_template};
