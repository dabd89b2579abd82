//! How components speak to the API: a [`kube::Client`] over HTTPS or straight into the API server of this process,
//! informers that all components of a process share, work queues with back-off, and events.
//!
//! Nothing here knows which of the two transports is in use, and nothing here writes to a cache: what an informer
//! holds came from the API.

mod events;
mod informer;
pub mod metrics;
mod queue;
mod reconcile;
mod rotating;
mod slim;
mod transport;

pub use events::{EventRecorder, EventType, reference};
pub use informer::{Event, Informer, InformerObject, Informers, ObjectKey};
pub use kube::{Api, Client, Error};
pub use queue::WorkQueue;
pub use reconcile::{Reconcile, Requeue, is_conflict, is_not_found, message, run};
pub use rotating::rotating;
pub use slim::Slim;
pub use tokio_util::sync::CancellationToken;
pub use transport::{from_config, from_kubeconfig, in_process};
