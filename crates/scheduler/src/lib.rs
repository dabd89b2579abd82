//! The scheduler: gives each new pod a node. A queue decides who is next, plugins filter and score the nodes, and the
//! choice is written as the pod's binding.
//!
//! It never starts, stops or evicts anything itself, and holds nothing that it could not rebuild from the API: the
//! cache of nodes comes from informers, and a pod that was decided on but not bound is simply decided on again.

mod classes;
mod cycle;
mod framework;
pub mod metrics;
mod nodes;
mod plugins;
mod pod;
mod queue;
mod scheduler;
mod siblings;

pub use framework::{Cycle, Filter, Plugin, Reasons, Score};
pub use scheduler::run;

/// The name that a pod has as its scheduler's when it names none.
pub const DEFAULT_SCHEDULER: &str = "default-scheduler";

/// What a scheduler is told at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Pods that name one of these as their scheduler are scheduled. Never empty; events come from the first.
    pub scheduler_names: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Config { scheduler_names: vec![DEFAULT_SCHEDULER.to_owned()] }
    }
}

/// Why the scheduler ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("a scheduler needs a name")]
    NoName,
}
