//! Containers' logs: files in CRI's format, rotated, read line by line, followed as they grow.

pub mod read;
pub mod rotate;
