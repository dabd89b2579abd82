//! How containers are run.

pub mod runtime_class;
