//! Nodes: their pod ranges, their health as the cluster sees it, and what becomes of pods on unhealthy ones.

pub mod eviction;
pub mod ipam;
pub mod lifecycle;
mod ranges;
mod zones;
