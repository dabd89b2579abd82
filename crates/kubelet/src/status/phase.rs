//! A pod's phase, from its containers' states.

use k8s_openapi::api::core::v1::{ContainerStatus, PodSpec};

use crate::plan::is_sidecar;

/// The phase. `is_ending`: nothing starts again.
pub fn of(
    spec: &PodSpec,
    inits: &[ContainerStatus],
    own: &[ContainerStatus],
    is_ending: bool,
) -> &'static str {
    let policy = spec.restart_policy.as_deref().unwrap_or("Always");
    let initialized = own.iter().any(has_begun);
    let (mut pending, mut failed) = (false, false);
    for container in spec.init_containers.iter().flatten() {
        let Some(status) = inits.iter().find(|s| s.name == container.name) else {
            pending = true;
            continue;
        };
        let state = status.state.clone().unwrap_or_default();
        if is_sidecar(container) {
            pending |= state.running.is_some() && status.started != Some(true);
            pending |= state.waiting.is_some() && !has_ended(status);
        } else if let Some(end) = state.terminated {
            failed |= end.exit_code != 0;
        } else {
            failed |= ended(status).is_some_and(|end| end.exit_code != 0) && policy == "Never";
            pending |= state.running.is_some() || state.waiting.is_some();
        }
    }
    let (mut unknown, mut running, mut waiting, mut stopped, mut succeeded) = (0, 0, 0, 0, 0);
    for container in &spec.containers {
        let Some(status) = own.iter().find(|s| s.name == container.name) else {
            unknown += 1;
            continue;
        };
        let state = status.state.clone().unwrap_or_default();
        if state.running.is_some() {
            running += 1;
        } else if let Some(end) = state.terminated {
            stopped += 1;
            succeeded += usize::from(end.exit_code == 0);
        } else if has_ended(status) {
            stopped += 1;
        } else {
            waiting += 1;
        }
    }
    if failed && policy == "Never" {
        return "Failed";
    }
    if pending && !initialized {
        return "Pending";
    }
    if waiting > 0 {
        return if is_ending && running == 0 { "Failed" } else { "Pending" };
    }
    if running > 0 && unknown == 0 {
        return "Running";
    }
    if running == 0 && stopped > 0 && unknown == 0 {
        return match policy {
            _ if is_ending => {
                if stopped == succeeded {
                    "Succeeded"
                } else {
                    "Failed"
                }
            }
            "Always" => "Running",
            _ if stopped == succeeded => "Succeeded",
            "Never" => "Failed",
            _ => "Running",
        };
    }
    "Pending"
}

fn ended(status: &ContainerStatus) -> Option<&k8s_openapi::api::core::v1::ContainerStateTerminated> {
    status.last_state.as_ref().and_then(|s| s.terminated.as_ref())
}

fn has_ended(status: &ContainerStatus) -> bool {
    ended(status).is_some()
}

fn has_begun(status: &ContainerStatus) -> bool {
    let state = status.state.as_ref();
    state.is_some_and(|s| s.running.is_some() || s.terminated.is_some()) || has_ended(status)
}
