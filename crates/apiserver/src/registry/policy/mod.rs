//! How much may be away at once.

pub mod pod_disruption_budget;
