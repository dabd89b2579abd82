//! What happened, in the newer words.

pub mod event;
