//! What is special to a kind, and only that: one file a kind under `registry/<group>/<kind>.rs`, one line in the
//! table of strategies.

pub mod strategy;

pub use strategy::{Column, Context, Selectable, Strategy};
