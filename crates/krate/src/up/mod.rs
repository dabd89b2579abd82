//! `krate up`: a whole cluster in one process. Components are started in the order in which they need one another, and
//! meet only through the API.

mod control_plane;
mod detach;
mod parts;
pub mod preflight;
mod progress;
pub mod settings;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::cli::Up;
use crate::datadir::DataDir;
use crate::kubeconfig;
use crate::node;
pub use control_plane::ControlPlane;
pub use detach::run as detached;
pub use parts::Parts;
pub use progress::Progress;

/// How long components may take to end once they are asked to; the API server says for itself.
pub const GRACE: Duration = Duration::from_secs(10);

/// Runs a cluster until it is asked to stop. The node's components run on threads of their own: they wait for disks and
/// the kernel, which may take long, and the API goes on meanwhile.
///
/// # Errors
/// It cannot start, or a component has ended.
pub async fn run(dir: &DataDir, args: &Up, node_threads: &Handle) -> Result<()> {
    let progress = Progress::start(dir);
    let wanted = settings::of(dir, args)?;
    let options = settings::flags(&args.kube_apiserver_arg)?;
    let kubelet = node::Kubelet::configured(args)?;
    preflight::check(dir, &wanted)?;
    let _claim = dir.claim()?;
    crate::log::to_file(&dir.log(), &options.logs)?;
    let listener = preflight::listen(&wanted)?;
    dir.save_settings(&wanted)?;

    let shutdown = CancellationToken::new();
    let (parts, mut faults) = Parts::new();
    let signing = args.cluster_signing_duration;
    let plane =
        control_plane::start(dir, &wanted, &options, listener, signing, &progress, &shutdown, &parts).await?;
    let plane = Arc::new(plane);
    let merged = kubeconfig::users_own().filter(|_| !args.no_kubeconfig);
    kubeconfig::keep(dir, &plane, merged.as_deref())?;
    if wanted.node {
        let (dir, wanted, plane) = (dir.clone(), wanted.clone(), Arc::clone(&plane));
        let (progress, shutdown, parts) = (progress.clone(), shutdown.clone(), parts.clone());
        let node = node_threads.spawn(async move {
            node::start(&dir, &wanted, kubelet, &plane, &progress, &shutdown, &parts).await
        });
        tokio::select! {
            started = node => started??,
            Some(fault) = faults.recv() => return Err(fault),
            () = asked_to_stop() => return Ok(()),
        }
    }
    progress.done(dir, merged.as_deref(), wanted.node);

    let ended = tokio::select! {
        () = asked_to_stop() => Ok(()),
        Some(fault) = faults.recv() => Err(fault),
    };
    shutdown.cancel();
    let grace = GRACE.max(plane.server.stopping());
    if tokio::time::timeout(grace, parts.ended()).await.is_err() {
        tracing::warn!("some components did not stop in time");
    }
    ended
}

/// Waits for the signal that ends a process.
pub async fn asked_to_stop() {
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}
