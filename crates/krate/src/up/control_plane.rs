//! The control plane: store, API server, controllers, scheduler. Each component is a user of its own.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use krate_apiserver::options::Options;
use krate_apiserver::rbac::CONTROLLERS;
use krate_client::Informers;
use tokio_util::sync::CancellationToken;

use super::{Parts, Progress};
use crate::apiserver;
pub use crate::apiserver::Started as ControlPlane;
use crate::datadir::{DataDir, Settings};

#[allow(clippy::too_many_arguments, reason = "it is where everything meets")]
pub async fn start(
    dir: &DataDir,
    settings: &Settings,
    options: &Options,
    listener: TcpListener,
    signing: Duration,
    progress: &Progress,
    shutdown: &CancellationToken,
    parts: &Parts,
) -> Result<ControlPlane> {
    let backend = apiserver::store(dir).await?;
    progress.ready("store", &dir.store().display().to_string());
    let plane = apiserver::start(dir, settings, options, backend, listener, shutdown, parts).await?;
    progress.ready("API server", &format!("https://{}", plane.reached));
    components(settings, &plane, signing, shutdown, parts)?;
    progress.ready("controllers", "");
    progress.ready("scheduler", "");
    Ok(plane)
}

/// `signing` is how long certificates last at most that are asked for by requests.
fn components(
    settings: &Settings,
    plane: &ControlPlane,
    signing: Duration,
    shutdown: &CancellationToken,
    parts: &Parts,
) -> Result<()> {
    let client = plane.client("system:kube-controller-manager", &[CONTROLLERS]);
    // One copy of what both look at. Each writes as itself.
    let informers = Informers::new(client.clone(), shutdown.clone());
    // The controllers follow the API server, which is told by whoever starts the cluster.
    let is_on = |feature: &&str| plane.server.features.enabled(feature);
    let config = krate_controllers::Config {
        features: krate_controllers::FEATURES.into_iter().filter(is_on).collect(),
        root_ca_pem: plane.authority.certificate().to_owned(),
        signing: Some(Arc::new(plane.authority.signing()?)),
        signing_duration: signing,
        cluster_cidr: Some(settings.pod_cidr.into()),
        ..krate_controllers::Config::default()
    };
    let (seen, stop) = (informers.clone(), shutdown.clone());
    parts.spawn("controllers", async move { krate_controllers::run(client, seen, config, stop).await });

    let client = plane.client("system:kube-scheduler", &[]);
    let stop = shutdown.clone();
    let config = krate_scheduler::Config::default();
    parts.spawn("scheduler", krate_scheduler::run(client, informers, config, stop));
    Ok(())
}
