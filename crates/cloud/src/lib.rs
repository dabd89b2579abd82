//! The cloud controller manager: what a cluster asks of the place where it runs, through one door, [`Provider`].
//!
//! Controllers here speak to the API and to the provider; a provider never speaks to the API. [`Local`] is the
//! provider of a cluster that runs on machines of its own.

mod local;
mod provider;
mod services;

pub use local::Local;
pub use provider::{Ingress, Instance, Instances, LoadBalancers, Provider, ProviderError, Route, Routes};

use std::sync::Arc;

use krate_client::{CancellationToken, Client, Informers};

/// Runs the controllers that the provider has use for, until `shutdown`.
pub async fn run(
    client: Client,
    informers: Informers,
    provider: Arc<dyn Provider>,
    shutdown: CancellationToken,
) {
    if provider.load_balancers().is_none() {
        shutdown.cancelled().await;
        return;
    }
    services::run(client, informers, provider, shutdown).await;
}
