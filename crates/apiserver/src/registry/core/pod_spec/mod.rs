//! The pod: what is filled in and what is checked wherever its spec stands, in a pod or in a template of one.

mod containers;
mod defaults;
mod gates;
mod probes;
mod projected;
mod resize;
mod resources;
mod scheduling;
mod security;
mod update;
mod validate;
mod volumes;

pub use containers::field_ref;
pub use defaults::{
    claim as default_claim, pod_only as default_pod, spec as default_spec, template as default_template,
};
pub use gates::drop_disabled;
pub use resize::{keep_all_else, resize};
pub use resources::{Amounts, amount, is_extended, is_standard, overhead, qos_class, resource_name};
pub use scheduling::{node_selector, toleration};
pub use update::{ephemeral_update, update};
pub use validate::{ephemeral_containers, spec, template};
pub use volumes::{claim, driver_name, no_back_steps};
