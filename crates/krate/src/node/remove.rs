//! The end of a node: its pods are stopped through CRI, as the kubelet would, and their control groups go.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{ListPodSandboxRequest, RemovePodSandboxRequest, StopPodSandboxRequest};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// Stops and removes all pods.
pub async fn pods(config: krate_runtime::Config) -> Result<()> {
    let stop = CancellationToken::new();
    let _stops = stop.clone().drop_guard();
    let (ready, is_ready) = oneshot::channel();
    let socket = config.socket.clone();
    let serving = tokio::spawn(krate_runtime::serve(config, stop.clone(), Some(ready)));
    is_ready.await.context("the container runtime did not start")?;
    let mut runtime = RuntimeServiceClient::connect(format!("unix://{}", socket.display())).await?;
    let all = runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await?.into_inner().items;
    for sandbox in all {
        let id = sandbox.id;
        runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: id.clone() }).await?;
        runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id }).await?;
    }
    stop.cancel();
    serving.await?.context("stopping the container runtime")
}

/// Removes the control group of a cluster's pods from every hierarchy. One that still has processes stays.
pub fn control_groups(parent: &str) {
    let name = parent.trim_start_matches('/');
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    for hierarchy in hierarchies.chain([root.to_owned()]) {
        remove_tree(&hierarchy.join(name));
    }
}

/// A control group's directory goes once it has no groups below.
fn remove_tree(dir: &PathBuf) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _ = fs::remove_dir(dir);
}
