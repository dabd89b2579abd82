//! As many pods as it takes.

pub mod horizontal_pod_autoscaler;
mod metrics;
mod v1;
