//! `krate apiserver`: the API server alone, for whoever brings the other components. It takes upstream's flags, and its
//! keys, certificates and store are those of the data directory.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Result;
use krate_apiserver::options::Options;
use tokio_util::sync::CancellationToken;

use crate::apiserver;
use crate::cli::Up;
use crate::datadir::DataDir;
use crate::kubeconfig;
use crate::up::{GRACE, Parts, asked_to_stop, preflight, settings};

/// Runs until it is asked to stop.
///
/// # Errors
/// It cannot start, or has ended.
pub async fn run(dir: &DataDir, options: &Options) -> Result<()> {
    let serving = &options.serving;
    let address = serving.bind_address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let wanted = settings::of(
        dir,
        &Up {
            bind: Some(SocketAddr::new(address, serving.secure_port.unwrap_or(6443))),
            service_cidr: serving.service_cluster_ip_range,
            no_node: true,
            ..Up::default()
        },
    )?;
    let _claim = dir.claim()?;
    crate::log::to_stderr(&options.logs);
    let listener = preflight::listen(&wanted)?;
    dir.save_settings(&wanted)?;

    let shutdown = CancellationToken::new();
    let (parts, mut faults) = Parts::new();
    let backend = apiserver::store(dir).await?;
    let started = apiserver::start(dir, &wanted, options, backend, listener, &shutdown, &parts).await?;
    kubeconfig::keep(dir, &started, None)?;
    tracing::info!(url = started.url, "the API server is ready");

    let ended = tokio::select! {
        () = asked_to_stop() => Ok(()),
        Some(fault) = faults.recv() => Err(fault),
    };
    shutdown.cancel();
    let grace = GRACE.max(started.server.stopping());
    if tokio::time::timeout(grace, parts.ended()).await.is_err() {
        tracing::warn!("the API server did not stop in time");
    }
    ended
}
