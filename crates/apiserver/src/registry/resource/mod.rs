//! Devices, and who asks for them.

mod capacity;
mod claim_status;
mod config;
mod device;
pub mod device_class;
mod devices;
mod lists;
mod names;
pub mod resource_claim;
pub mod resource_claim_template;
pub mod resource_slice;
mod selector;
mod taints;
