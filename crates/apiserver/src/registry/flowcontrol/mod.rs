//! Which requests wait for which others.

pub mod flow_schema;
mod mandatory;
pub mod priority_level_configuration;
