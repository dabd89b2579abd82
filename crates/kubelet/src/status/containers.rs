//! The status of each container.

use k8s_cri::v1::ContainerState as Seen;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, ContainerUser, LinuxContainerUser, Pod, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::Inputs;
use crate::observed::{ContainerSeen, timestamp};
use crate::plan::{is_sidecar, should_start};
use crate::resize;
use crate::spec::{Kind, may_restart_all, restarts_all};

/// The reason of an end that came because all containers of the pod begin afresh (KEP-5532).
pub const RESTARTING_ALL: &str = "RestartingAllContainers";
/// The exit code of a container of whose end nothing is known.
const LOST: i32 = 137;

pub fn statuses(inputs: &Inputs<'_>, containers: &[Container], kind: Kind) -> Vec<ContainerStatus> {
    let mut all: Vec<_> = containers.iter().map(|container| one(inputs, container, kind)).collect();
    if kind != Kind::Init {
        // As upstream tells them, whatever order they are written in.
        all.sort_by(|a, b| a.name.cmp(&b.name));
    }
    all
}

fn one(inputs: &Inputs<'_>, container: &Container, kind: Kind) -> ContainerStatus {
    let (latest, before) = inputs.seen.last_two(&container.name);
    let mut status = match latest {
        Some(seen) => seen_status(inputs, container, seen, before),
        None => unseen(inputs, container, kind),
    };
    let spec = inputs.pod.spec.as_ref();
    let may_start = !inputs.is_ending && spec.is_some_and(|spec| should_start(spec, container, latest));
    if may_start && let Some((reason, message)) = inputs.waiting.get(&container.name) {
        let ended = status.state.take().filter(|s| s.terminated.is_some());
        if ended.is_some() {
            status.last_state = ended;
        }
        status.state = Some(waiting(reason, Some(message)));
    }
    // Upstream always writes it.
    status.last_state.get_or_insert_default();
    if kind == Kind::Ephemeral {
        // Nobody waits for it, and nothing is sent to it.
        return status;
    }
    let running = status.state.as_ref().and_then(|s| s.running.as_ref()).is_some();
    let is_known = |known: &std::collections::HashSet<String>| latest.is_some_and(|c| known.contains(c.id()));
    let started = running && is_known(&inputs.verdicts.started);
    status.started = Some(started);
    status.ready = if kind == Kind::Init && !is_sidecar(container) {
        let end = status.state.as_ref().and_then(|s| s.terminated.as_ref());
        end.is_some_and(|end| end.exit_code == 0)
    } else {
        // A container that is told to end serves what it has until it does.
        started && is_known(&inputs.verdicts.ready)
    };
    status
}

fn waiting(reason: &str, message: Option<&str>) -> ContainerState {
    let message = message.filter(|m| !m.is_empty()).map(str::to_owned);
    let waiting = ContainerStateWaiting { reason: Some(reason.to_owned()), message };
    ContainerState { waiting: Some(waiting), ..Default::default() }
}

/// A container that the runtime does not know: not made yet, or lost.
fn unseen(inputs: &Inputs<'_>, container: &Container, kind: Kind) -> ContainerStatus {
    let old_status = inputs.pod.status.as_ref();
    let old_list = old_status.and_then(|s| match kind {
        Kind::Init => s.init_container_statuses.as_ref(),
        Kind::Own => s.container_statuses.as_ref(),
        Kind::Ephemeral => s.ephemeral_container_statuses.as_ref(),
    });
    let old = old_list.into_iter().flatten().find(|s| s.name == container.name);
    let default = not_yet(inputs.pod);
    let mut status = ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        state: Some(default),
        ..Default::default()
    };
    if let Some(old) = old {
        status.restart_count = old.restart_count;
        status.last_state.clone_from(&old.last_state);
        status.container_id.clone_from(&old.container_id);
        status.image_id.clone_from(&old.image_id);
        let state = old.state.clone().unwrap_or_default();
        if is_afresh(inputs) && (state.terminated.is_some() || state.running.is_some()) {
            let message = "The container is removed because RestartAllContainers in place";
            let removed = ContainerStateTerminated {
                exit_code: LOST,
                reason: Some(RESTARTING_ALL.to_owned()),
                message: Some(message.to_owned()),
                container_id: old.container_id.clone(),
                ..Default::default()
            };
            // The end that is the cause is told as it was; what the others ended with, was not their doing.
            let ended =
                state.terminated.filter(|end| restarts_all(container, end.exit_code)).unwrap_or(removed);
            status.last_state = Some(ContainerState { terminated: Some(ended), ..Default::default() });
            status.state = Some(waiting(RESTARTING_ALL, Some(message)));
            return status;
        }
        if state.terminated.is_some() {
            let mut kept = old.clone();
            kept.ready = false;
            return kept;
        }
        if state.running.is_some() {
            let lost = ContainerStateTerminated {
                exit_code: LOST,
                reason: Some("ContainerStatusUnknown".to_owned()),
                message: Some("The container could not be located when the pod was terminated".to_owned()),
                container_id: old.container_id.clone(),
                ..Default::default()
            };
            let ended = ContainerState { terminated: Some(lost), ..Default::default() };
            if inputs.is_ending {
                status.state = Some(ended);
            } else {
                status.last_state = Some(ended);
            }
        }
    }
    status
}

fn seen_status(
    inputs: &Inputs<'_>,
    container: &Container,
    seen: &ContainerSeen,
    before: Option<&ContainerSeen>,
) -> ContainerStatus {
    let cri = &seen.status;
    let resources = Some(resize::had(container, seen));
    let allocated = container.resources.as_ref().and_then(|r| r.requests.clone()).filter(|r| !r.is_empty());
    let user = cri.user.as_ref().and_then(|u| u.linux.as_ref()).map(|user| ContainerUser {
        linux: Some(LinuxContainerUser {
            uid: user.uid,
            gid: user.gid,
            supplemental_groups: (!user.supplemental_groups.is_empty())
                .then(|| user.supplemental_groups.clone()),
        }),
    });
    let mounts: Vec<VolumeMountStatus> = container
        .volume_mounts
        .iter()
        .flatten()
        .map(|mount| VolumeMountStatus {
            volume_status: None,
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only: mount.read_only.filter(|r| *r),
            recursive_read_only: mount.read_only.filter(|r| *r).map(|_| {
                let is_made =
                    |m: &k8s_cri::v1::Mount| m.container_path == mount.mount_path && m.recursive_read_only;
                if cri.mounts.iter().any(is_made) { "Enabled" } else { "Disabled" }.to_owned()
            }),
        })
        .collect();
    let name = cri
        .image
        .as_ref()
        .map(|i| if i.user_specified_image.is_empty() { &i.image } else { &i.user_specified_image });
    ContainerStatus {
        name: container.name.clone(),
        image: name
            .filter(|n| !n.is_empty())
            .cloned()
            .or_else(|| container.image.clone())
            .unwrap_or_default(),
        image_id: cri.image_ref.clone(),
        container_id: Some(full_id(inputs.runtime_name, &cri.id)),
        restart_count: i32::try_from(seen.restarts()).unwrap_or(i32::MAX),
        state: Some(state(inputs, seen)),
        last_state: before
            .filter(|b| b.is_exited())
            .map(|b| state(inputs, b))
            .or_else(|| kept_last(inputs, container)),
        allocated_resources: allocated,
        resources,
        user: user.filter(|_| seen.is_running()),
        volume_mounts: (!mounts.is_empty()).then_some(mounts),
        ..Default::default()
    }
}

/// Whether the containers of a pod were removed so that it begins afresh.
fn is_afresh(inputs: &Inputs<'_>) -> bool {
    let may = inputs.pod.spec.as_ref().is_some_and(may_restart_all);
    may && !inputs.is_ending && inputs.seen.ready_sandbox().is_some()
}

/// What is known of the end before, where the runtime has forgotten it.
fn kept_last(inputs: &Inputs<'_>, container: &Container) -> Option<ContainerState> {
    let status = inputs.pod.status.as_ref()?;
    let all =
        status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten());
    let old = all.into_iter().find(|s| s.name == container.name)?;
    // The end of the container that was told before this one.
    let newest = inputs.seen.latest(&container.name).map(|c| full_id(inputs.runtime_name, c.id()));
    let ended = old.state.clone().filter(|s| s.terminated.is_some() && old.container_id != newest);
    ended.or_else(|| old.last_state.clone().filter(|s| s.terminated.is_some()))
}

fn full_id(runtime: &str, id: &str) -> String {
    format!("{runtime}://{id}")
}

fn time(nanoseconds: i64) -> Option<Time> {
    (nanoseconds > 0).then(|| Time(super::seconds(timestamp(nanoseconds))))
}

/// The state of a container that does not run yet.
fn not_yet(pod: &Pod) -> ContainerState {
    let inits = pod.spec.as_ref().and_then(|spec| spec.init_containers.as_ref());
    let has_inits = inits.is_some_and(|inits| !inits.is_empty());
    waiting(if has_inits { "PodInitializing" } else { "ContainerCreating" }, None)
}

fn state(inputs: &Inputs<'_>, seen: &ContainerSeen) -> ContainerState {
    let cri = &seen.status;
    match seen.state() {
        Seen::ContainerRunning => ContainerState {
            running: Some(ContainerStateRunning { started_at: time(cri.started_at) }),
            ..Default::default()
        },
        // Not yet more than a container that is still to be made.
        Seen::ContainerCreated => not_yet(inputs.pod),
        Seen::ContainerExited | Seen::ContainerUnknown => {
            let words = inputs.last_words.get(&cri.id).filter(|w| !w.is_empty());
            let message = words.cloned().or_else(|| Some(cri.message.clone()).filter(|m| !m.is_empty()));
            let ended = ContainerStateTerminated {
                exit_code: cri.exit_code,
                reason: Some(cri.reason.clone()).filter(|r| !r.is_empty()),
                message,
                started_at: time(cri.started_at),
                finished_at: time(cri.finished_at),
                container_id: Some(full_id(inputs.runtime_name, &cri.id)),
                ..Default::default()
            };
            ContainerState { terminated: Some(ended), ..Default::default() }
        }
    }
}
