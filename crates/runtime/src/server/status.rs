//! What CRI is told of sandboxes and containers.

use k8s_cri::v1::{
    self as cri, ContainerFilter, ContainerResources, ContainerUser, ImageSpec, LinuxContainerUser,
    LinuxPodSandboxStatus, Namespace, PodIp, PodSandboxFilter, PodSandboxNetworkStatus, PodSandboxState,
    PodSandboxStatus,
};
use std::collections::HashMap;

use super::node::{Container, Sandbox};

fn state(sandbox: &Sandbox) -> PodSandboxState {
    if sandbox.is_ready() { PodSandboxState::SandboxReady } else { PodSandboxState::SandboxNotready }
}

pub fn sandbox(sandbox: &Sandbox) -> PodSandboxStatus {
    let state = state(sandbox);
    let record = sandbox.record.read();
    let mut ips = record.addresses.ips.iter().map(ToString::to_string);
    let options = record
        .config
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref())
        .and_then(|security| security.namespace_options.clone());
    PodSandboxStatus {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        state: state as i32,
        created_at: record.created_at,
        network: Some(PodSandboxNetworkStatus {
            ip: ips.next().unwrap_or_default(),
            additional_ips: ips.map(|ip| PodIp { ip }).collect(),
        }),
        linux: Some(LinuxPodSandboxStatus { namespaces: Some(Namespace { options }) }),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.runtime_handler.clone(),
    }
}

pub fn listed_sandbox(sandbox: &Sandbox) -> cri::PodSandbox {
    let state = state(sandbox);
    let record = sandbox.record.read();
    cri::PodSandbox {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        state: state as i32,
        created_at: record.created_at,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.runtime_handler.clone(),
    }
}

pub fn sandbox_matches(item: &cri::PodSandbox, filter: Option<&PodSandboxFilter>) -> bool {
    filter.is_none_or(|filter| {
        item.id.starts_with(&filter.id)
            && filter.state.as_ref().is_none_or(|wanted| wanted.state == item.state)
            && labels_match(&item.labels, &filter.label_selector)
    })
}

pub fn container(container: &Container) -> cri::ContainerStatus {
    let state = container.state();
    let exit = container.exit.borrow().clone();
    let record = container.record.read();
    let (reason, message) = match (&record.failure, &exit) {
        (Some(failure), _) => ("StartError", failure.clone()),
        (None, None) => ("", String::new()),
        (None, Some(exit)) if exit.oom_killed => ("OOMKilled", String::new()),
        (None, Some(exit)) if exit.code == 0 => ("Completed", String::new()),
        (None, Some(exit)) if exit.code == LOST => ("Unknown", String::new()),
        (None, Some(_)) => ("Error", String::new()),
    };
    let user = LinuxContainerUser {
        uid: i64::from(record.user.uid),
        gid: i64::from(record.user.gid),
        supplemental_groups: record.user.groups.iter().map(|gid| i64::from(*gid)).collect(),
    };
    let resources = record.config.linux.as_ref().and_then(|linux| linux.resources.clone());
    cri::ContainerStatus {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        state: state as i32,
        created_at: record.created_at,
        started_at: record.started_at,
        finished_at: exit.as_ref().map_or(0, |exit| exit.at),
        exit_code: exit.as_ref().map_or(0, |exit| exit.code),
        image: Some(image_spec(&record.config)),
        image_ref: record.image_ref.clone(),
        reason: reason.to_owned(),
        message,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        mounts: record.config.mounts.clone(),
        log_path: record.log_path.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
        resources: Some(ContainerResources { linux: resources, windows: None }),
        image_id: record.image_id.clone(),
        user: Some(ContainerUser { linux: Some(user) }),
    }
}

/// The exit code of a container whose end nobody saw (as containerd has it).
pub const LOST: i32 = 255;
/// The exit code of a container that could not be started.
pub const START_FAILED: i32 = 128;

/// The image under the name that the user gave.
fn image_spec(config: &cri::ContainerConfig) -> ImageSpec {
    let mut image = config.image.clone().unwrap_or_default();
    if !image.user_specified_image.is_empty() {
        image.image.clone_from(&image.user_specified_image);
    }
    image
}

pub fn listed_container(container: &Container) -> cri::Container {
    let state = container.state();
    let record = container.record.read();
    cri::Container {
        id: record.id.clone(),
        pod_sandbox_id: record.sandbox.clone(),
        metadata: record.config.metadata.clone(),
        image: Some(image_spec(&record.config)),
        image_ref: record.image_ref.clone(),
        state: state as i32,
        created_at: record.created_at,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        image_id: record.image_id.clone(),
    }
}

pub fn container_matches(item: &cri::Container, filter: Option<&ContainerFilter>) -> bool {
    filter.is_none_or(|filter| {
        item.id.starts_with(&filter.id)
            && item.pod_sandbox_id.starts_with(&filter.pod_sandbox_id)
            && filter.state.as_ref().is_none_or(|wanted| wanted.state == item.state)
            && labels_match(&item.labels, &filter.label_selector)
    })
}

pub fn labels_match(labels: &HashMap<String, String>, wanted: &HashMap<String, String>) -> bool {
    wanted.iter().all(|(name, value)| labels.get(name) == Some(value))
}
