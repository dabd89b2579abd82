//! The names by which sandboxes and containers are found again in the runtime: upstream's labels and annotations.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use kube::ResourceExt as _;

pub const POD_NAME: &str = "io.kubernetes.pod.name";
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub const POD_UID: &str = "io.kubernetes.pod.uid";
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
pub const HASH: &str = "io.kubernetes.container.hash";
pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
pub const TERMINATION_PATH: &str = "io.kubernetes.container.terminationMessagePath";
pub const TERMINATION_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
pub const GRACE_PERIOD: &str = "io.kubernetes.pod.terminationGracePeriod";
pub const CONFIG_SOURCE: &str = "kubernetes.io/config.source";

/// The UID of a pod; empty only for one that no server has seen.
pub fn uid(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
}

pub fn namespace(pod: &Pod) -> String {
    pod.metadata.namespace.clone().unwrap_or_else(|| "default".to_owned())
}

/// `name_namespace(uid)`, as upstream's messages have it.
pub fn full(pod: &Pod) -> String {
    format!("{}_{}({})", pod.name_any(), namespace(pod), uid(pod))
}

/// The labels by which everything of a pod is found.
pub fn pod_labels(pod: &Pod) -> HashMap<String, String> {
    HashMap::from([
        (POD_NAME.to_owned(), pod.name_any()),
        (POD_NAMESPACE.to_owned(), namespace(pod)),
        (POD_UID.to_owned(), uid(pod)),
    ])
}

/// What must stay the same for a container to go on running: its name and its image.
pub fn container_hash(container: &Container) -> String {
    let image = container.image.as_deref().unwrap_or_default();
    let mut hash: u32 = 0x811c_9dc5;
    for byte in container.name.bytes().chain([0]).chain(image.bytes()) {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    format!("{hash:x}")
}

/// The directory of a pod's logs below the log directory.
pub fn log_directory(pod: &Pod) -> String {
    format!("{}_{}_{}", namespace(pod), pod.name_any(), uid(pod))
}

/// A container's log below its pod's log directory.
pub fn log_path(container: &str, restarts: u32) -> String {
    format!("{container}/{restarts}.log")
}
