//! Which pods come first.

pub mod priority_class;
