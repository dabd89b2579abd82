//! Kinds that users define.

pub mod custom_resource_definition;
