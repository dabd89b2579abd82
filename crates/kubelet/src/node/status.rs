//! The node's status, in upstream's words.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_cri::v1::Image;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures,
    NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use krate_api::quantity::Format;

use super::Conditions;
use super::machine::{self, Machine};
use crate::config::Config;
use crate::devices::is_extended;
use crate::fieldpath::Allocatable;
use crate::shared::Shared;
use crate::shutdown::NOT_READY;
use crate::status::seconds;

/// The version of the API that is spoken.
pub const VERSION: &str = "v1.36.2";
/// What a node may lack and this one has, in order (KEP-5328): schedulers keep pods that need it from others.
const DECLARED: [&str; 1] = ["RestartAllContainersOnContainerExits"];
/// Names of each image that are told.
const NAMES: usize = 5;

pub fn labels(config: &Config) -> BTreeMap<String, String> {
    let architecture = machine::architecture();
    let own = [
        ("beta.kubernetes.io/arch", architecture),
        ("beta.kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture),
        ("kubernetes.io/hostname", &config.node_name),
        ("kubernetes.io/os", "linux"),
    ];
    let mut labels = config.labels.clone();
    labels.extend(own.map(|(key, value)| (key.to_owned(), value.to_owned())));
    labels
}

pub fn annotations() -> BTreeMap<String, String> {
    BTreeMap::from([("volumes.kubernetes.io/controller-managed-attach-detach".to_owned(), "true".to_owned())])
}

pub fn make(
    shared: &Shared,
    port: u16,
    found: &Conditions,
    images: &[Image],
    old: Option<&NodeStatus>,
) -> NodeStatus {
    let config = &shared.config;
    let machine = &shared.machine;
    let mut amounts = amounts(machine, config);
    let mut allocatable = allocatable(shared.node, amounts.clone());
    extended(&shared.devices.amounts(), old, &mut amounts, &mut allocatable);
    let leaving = shared.node_shutdown.is_under_way();
    let conditions = conditions(&shared.evictions.pressure(), found, leaving, old);
    let address = |type_: &str, address: String| NodeAddress { type_: type_.to_owned(), address };
    NodeStatus {
        addresses: Some(vec![
            address("InternalIP", config.node_ip.to_string()),
            address("Hostname", config.node_name.clone()),
        ]),
        allocatable: Some(allocatable),
        capacity: Some(amounts),
        conditions: Some(conditions),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(port) }),
        }),
        images: Some(told_images(images, config.told_images.unwrap_or(usize::MAX))),
        volumes_in_use: Some(shared.csi.volumes_in_use()).filter(|names| !names.is_empty()),
        runtime_handlers: found.features.told_handlers(),
        features: Some(NodeFeatures {
            supplemental_groups_policy: Some(found.features.supplemental_groups_policy),
        }),
        declared_features: Some(DECLARED.map(str::to_owned).to_vec()),
        node_info: Some(NodeSystemInfo {
            architecture: machine.architecture.to_owned(),
            boot_id: machine.boot_id.clone(),
            container_runtime_version: shared.runtime_version.clone(),
            kernel_version: machine.kernel.clone(),
            kube_proxy_version: String::new(),
            kubelet_version: VERSION.to_owned(),
            machine_id: machine.machine_id.clone(),
            operating_system: "linux".to_owned(),
            os_image: machine.os_image.clone(),
            system_uuid: machine.system_uuid.clone(),
            ..Default::default()
        }),
        ..old.cloned().unwrap_or_default()
    }
}

fn amounts(machine: &Machine, config: &Config) -> BTreeMap<String, Quantity> {
    let kibi = |bytes: i64| Quantity(format!("{}Ki", bytes / 1024));
    let disk = Machine::disk(&config.root_dir).0;
    let told = |bytes| Quantity(krate_api::Quantity::new(bytes, Format::BinarySi).to_string());
    let huge = machine::huge_pages().into_iter().map(|(name, bytes)| (name, told(bytes)));
    let mut amounts = BTreeMap::from([
        ("cpu".to_owned(), Quantity(machine.cpus.to_string())),
        ("memory".to_owned(), kibi(machine.memory)),
        ("ephemeral-storage".to_owned(), kibi(disk)),
        ("pods".to_owned(), Quantity(config.max_pods.to_string())),
    ]);
    amounts.extend(huge);
    amounts
}

/// What pods may use of the amounts that there are.
fn allocatable(node: Allocatable, mut amounts: BTreeMap<String, Quantity>) -> BTreeMap<String, Quantity> {
    let told = |value: i64, format| Quantity(krate_api::Quantity::new(value, format).to_string());
    let cpu = krate_api::Quantity::from_milli(node.cpu_milli, Format::DecimalSi).to_string();
    amounts.insert("cpu".to_owned(), Quantity(cpu));
    amounts.insert("memory".to_owned(), Quantity(format!("{}Ki", node.memory / 1024)));
    amounts.insert("ephemeral-storage".to_owned(), told(node.ephemeral_storage, Format::DecimalSi));
    amounts
}

/// Adds resources of others: those of device plugins, and those that somebody has written into the status.
fn extended(
    devices: &[(String, usize, usize)],
    old: Option<&NodeStatus>,
    capacity: &mut BTreeMap<String, Quantity>,
    allocatable: &mut BTreeMap<String, Quantity>,
) {
    let written = old.and_then(|status| status.capacity.as_ref()).into_iter().flatten();
    for (name, amount) in written.filter(|(name, _)| is_extended(name)) {
        capacity.insert(name.clone(), amount.clone());
        allocatable.insert(name.clone(), amount.clone());
    }
    for (name, all, healthy) in devices {
        capacity.insert(name.clone(), Quantity(all.to_string()));
        allocatable.insert(name.clone(), Quantity(healthy.to_string()));
    }
}

fn conditions(
    short: &[&'static str],
    found: &Conditions,
    leaving: bool,
    old: Option<&NodeStatus>,
) -> Vec<NodeCondition> {
    let pressure = [
        (
            "MemoryPressure",
            ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
            ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ),
        (
            "DiskPressure",
            ("KubeletHasDiskPressure", "kubelet has disk pressure"),
            ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ),
        (
            "PIDPressure",
            ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
            ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ),
    ];
    let mut all: Vec<NodeCondition> = pressure
        .into_iter()
        .map(|(kind, yes, no)| {
            let is_so = short.contains(&kind);
            let (reason, message) = if is_so { yes } else { no };
            condition(kind, is_so, reason, message.to_owned(), old)
        })
        .collect();
    let mut failed: Vec<String> = match (&found.runtime, &found.network) {
        (Err(why), _) => vec![why.clone()],
        (Ok(()), Err(why)) => vec![format!("container runtime network not ready: {why}")],
        (Ok(()), Ok(())) => vec![],
    };
    failed.extend(leaving.then(|| NOT_READY.to_owned()));
    all.push(match failed.as_slice() {
        [] => condition("Ready", true, "KubeletReady", "kubelet is posting ready status".to_owned(), old),
        [only] => condition("Ready", false, "KubeletNotReady", only.clone(), old),
        several => condition("Ready", false, "KubeletNotReady", format!("[{}]", several.join(", ")), old),
    });
    // Conditions of others, such as of the network, are not the kubelet's to take away.
    let others = old.and_then(|s| s.conditions.clone()).unwrap_or_default();
    let others: Vec<NodeCondition> =
        others.into_iter().filter(|c| !all.iter().any(|a| a.type_ == c.type_)).collect();
    all.extend(others);
    all
}

fn condition(
    kind: &str,
    is_so: bool,
    reason: &str,
    message: String,
    old: Option<&NodeStatus>,
) -> NodeCondition {
    let status = if is_so { "True" } else { "False" };
    let now = Time(seconds(Timestamp::now()));
    let known = old.and_then(|s| s.conditions.as_ref()).and_then(|all| all.iter().find(|c| c.type_ == kind));
    let since = known.filter(|c| c.status == status).and_then(|c| c.last_transition_time.clone());
    NodeCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_heartbeat_time: Some(now.clone()),
        last_transition_time: Some(since.unwrap_or(now)),
    }
}

fn told_images(images: &[Image], most: usize) -> Vec<ContainerImage> {
    let mut sorted: Vec<&Image> = images.iter().collect();
    sorted.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
    sorted
        .into_iter()
        .take(most)
        .map(|image| {
            let names = image.repo_digests.iter().chain(&image.repo_tags).take(NAMES).cloned().collect();
            ContainerImage { names: Some(names), size_bytes: i64::try_from(image.size).ok() }
        })
        .collect()
}

/// Whether two statuses say the same, the times of their heartbeats aside.
pub fn is_same(old: &NodeStatus, new: &NodeStatus) -> bool {
    let quiet = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        if status.images.as_ref().is_some_and(Vec::is_empty) {
            status.images = None;
        }
        serde_json::to_value(status).ok()
    };
    quiet(old) == quiet(new)
}
