//! Who may act.

pub mod lease;
