//! A pod's phase, from its containers' states.

use k8s_openapi::api::core::v1::{Container, ContainerStateTerminated, ContainerStatus, PodSpec};

use super::containers::RESTARTING_ALL;
use crate::plan::is_sidecar;
use crate::spec::restarts;

/// The phase. `is_ending`: nothing starts again.
pub fn of(
    spec: &PodSpec,
    inits: &[ContainerStatus],
    own: &[ContainerStatus],
    is_ending: bool,
) -> &'static str {
    let initialized = own.iter().any(has_begun);
    let (mut pending_inits, mut pending_sidecars, mut failed) = (false, false, false);
    let (mut unknown, mut running, mut waiting) = (0, 0, 0);
    for container in spec.init_containers.iter().flatten() {
        let status = inits.iter().find(|s| s.name == container.name);
        let state = status.and_then(|s| s.state.clone()).unwrap_or_default();
        if is_sidecar(container) {
            if state.running.is_some() {
                running += 1;
                pending_sidecars |= status.is_some_and(|s| s.started != Some(true));
            } else if state.waiting.is_some() && !status.is_some_and(has_ended) {
                waiting += 1;
                pending_sidecars = true;
            }
            continue;
        }
        let end = state.terminated.as_ref().or_else(|| status.and_then(ended));
        match end {
            Some(end) if state.running.is_none() => {
                failed |= end.exit_code != 0 && !goes_on(spec, container, end);
            }
            _ => pending_inits = true,
        }
    }
    let (mut stopped, mut for_good, mut succeeded) = (0, 0, 0);
    for container in &spec.containers {
        let Some(status) = own.iter().find(|s| s.name == container.name) else {
            unknown += 1;
            continue;
        };
        let state = status.state.clone().unwrap_or_default();
        if state.running.is_some() {
            running += 1;
            continue;
        }
        match state.terminated.as_ref().or_else(|| ended(status)) {
            Some(end) => {
                stopped += 1;
                for_good += usize::from(!goes_on(spec, container, end));
                succeeded += usize::from(end.exit_code == 0 && state.terminated.is_some());
            }
            None => waiting += 1,
        }
    }
    if failed {
        return "Failed";
    }
    if pending_inits || (pending_sidecars && !initialized) || waiting > 0 {
        // What has not begun by now never will.
        return if is_ending && running == 0 { "Failed" } else { "Pending" };
    }
    if running > 0 && unknown == 0 {
        return "Running";
    }
    if running == 0 && stopped > 0 && unknown == 0 {
        return match () {
            () if !is_ending && stopped != for_good => "Running",
            () if stopped == succeeded => "Succeeded",
            () => "Failed",
        };
    }
    "Pending"
}

/// Whether a container that ended so runs again: by its own rules, or because its pod begins afresh.
fn goes_on(spec: &PodSpec, container: &Container, end: &ContainerStateTerminated) -> bool {
    end.reason.as_deref() == Some(RESTARTING_ALL) || restarts(spec, container, end.exit_code)
}

fn ended(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    status.last_state.as_ref().and_then(|s| s.terminated.as_ref())
}

fn has_ended(status: &ContainerStatus) -> bool {
    ended(status).is_some()
}

fn has_begun(status: &ContainerStatus) -> bool {
    let state = status.state.as_ref();
    state.is_some_and(|s| s.running.is_some() || s.terminated.is_some()) || has_ended(status)
}
