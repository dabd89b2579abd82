//! The work of stopping: hooks, signals, patience; the ordinary containers first, then the sidecars, then the sandbox.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use krate_client::EventType;
use tokio::time::Instant;

use crate::cri::rpc_error;
use crate::observed::{ContainerSeen, Observed};
use crate::plan::stop_order;
use crate::shared::Shared;
use crate::{hooks, names, spec};

/// Seconds that a container has at least after its hook.
const LEAST: i64 = 2;

/// Stops one container, with its hook before. `grace` in seconds.
///
/// # Errors
/// The runtime could not.
pub async fn container(
    shared: &Shared,
    pod: &Pod,
    seen: &ContainerSeen,
    grace: i64,
    message: Option<&str>,
) -> Result<(), String> {
    let name = seen.name();
    let of_spec = pod.spec.as_ref().and_then(|s| spec::find(s, name)).map(|(_, container)| container);
    let said = message.map_or_else(|| format!("Stopping container {name}"), str::to_owned);
    shared.container_event(pod, name, EventType::Normal, "Killing", said);
    let mut left = grace;
    if let Some(container) = &of_spec
        && let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref())
        && grace > 0
        && seen.is_running()
    {
        let began = Instant::now();
        let ip = pod.status.as_ref().and_then(|s| s.pod_ip.clone()).unwrap_or_default();
        let running = hooks::run(shared, hook, pod, container, seen.id(), &ip);
        match tokio::time::timeout(Duration::from_secs(grace.unsigned_abs()), running).await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => {
                tracing::debug!(container = seen.id(), why, "a hook failed");
                let said = "PreStopHook failed";
                shared.container_event(pod, name, EventType::Warning, "FailedPreStopHook", said);
            }
            Err(_) => tracing::debug!(container = seen.id(), "the hook took all of the grace period"),
        }
        left = (grace - began.elapsed().as_secs() as i64).max(LEAST);
    }
    shared.cri.stop_container(seen.id(), left).await.map_err(|s| rpc_error(&s))
}

/// Stops all of a pod within `grace` seconds, and its sandbox.
///
/// # Errors
/// Something could not be stopped.
pub async fn pod(shared: Arc<Shared>, pod: Arc<Pod>, seen: Observed, grace: i64) -> Result<(), String> {
    let spec = pod.spec.clone().unwrap_or_default();
    let began = Instant::now();
    for group in stop_order(&spec, &seen) {
        let left = if grace == 0 { 0 } else { (grace - began.elapsed().as_secs() as i64).max(1) };
        let all = group.iter().map(|one| container(&shared, &pod, one, left, None));
        for outcome in join_all(all).await {
            outcome?;
        }
    }
    for sandbox in &seen.sandboxes {
        shared.cri.stop_sandbox(&sandbox.id).await.map_err(|s| rpc_error(&s))?;
    }
    // Before the API is told that the pod has ended: then its claims are others'.
    shared.dra.unprepare(&names::uid(&pod)).await
}
