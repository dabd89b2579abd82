//! The end of a node: its pods are stopped through CRI, as the kubelet would, and their control groups go.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
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
    pods_of(&socket).await?;
    stop.cancel();
    serving.await?.context("stopping the container runtime")
}

/// Stops and removes all pods of the runtime that serves CRI at `socket`. A runtime has one kubelet, so they are all its.
pub async fn pods_of(socket: &Path) -> Result<()> {
    let mut runtime = RuntimeServiceClient::connect(format!("unix://{}", socket.display())).await?;
    let all = runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await?.into_inner().items;
    for sandbox in all {
        let id = sandbox.id;
        runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: id.clone() }).await?;
        runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id }).await?;
    }
    Ok(())
}

/// Takes away every mount below `dir`, the volumes of pods that are gone: the last made first.
///
/// # Errors
/// One is in use.
pub fn mounts(dir: &Path) -> Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let points: Vec<PathBuf> =
        table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescaped).collect();
    for point in points.iter().rev().filter(|point| point.starts_with(dir)) {
        nix::mount::umount(point).with_context(|| format!("unmounting {}", point.display()))?;
    }
    Ok(())
}

/// The kernel writes blanks and the like as three octal digits.
fn unescaped(path: &str) -> PathBuf {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = (*first == b'\\').then(|| after.get(..3)).flatten();
        let code = code.and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(byte) = code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            out.push(byte);
            rest = &after[3..];
        } else {
            out.push(*first);
            rest = after;
        }
    }
    PathBuf::from(OsString::from_vec(out))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_as_the_kernel_writes_them() {
        assert_eq!(unescaped("/a\\040b/c"), Path::new("/a b/c"));
        assert_eq!(unescaped("/a\\134"), Path::new("/a\\"));
        assert_eq!(unescaped("/a\\04"), Path::new("/a\\04"));
    }
}
