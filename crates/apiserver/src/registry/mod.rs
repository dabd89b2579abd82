//! What is special to a kind, and only that: one file a kind under `registry/<group>/<kind>.rs`, one line in the
//! table of strategies.

pub mod admissionregistration;
pub mod apiextensions;
pub mod apiregistration;
pub mod apps;
pub mod autoscaling;
pub mod batch;
pub mod certificates;
pub mod column;
pub mod coordination;
pub mod core;
pub mod discovery;
pub mod encode;
pub mod erased;
pub mod events;
pub mod flowcontrol;
pub mod lifecycle;
pub mod networking;
pub mod node;
mod node_labels;
pub mod policy;
pub mod prepare;
pub mod quantities;
pub mod rbac;
pub mod resource;
pub mod rules;
pub mod scheduling;
pub mod storage;
pub mod strategy;
pub mod table;

pub use strategy::{Column, Context, Selectable, Strategy};
