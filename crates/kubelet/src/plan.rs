//! What is to be done for a pod, from what it asks and what there is: a function, level-triggered, of upstream's rules.

use std::collections::{HashMap, HashSet};

use k8s_cri::v1::ContainerState;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use crate::naming::is_host_network;
use crate::observed::{ContainerSeen, Observed, on_host_network};
use crate::spec::{restarts, restarts_all};
use crate::{names, resize};

/// What probes have found of the containers, by container id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdicts {
    /// The liveness probe has failed.
    pub dead: HashSet<String>,
    /// The startup probe has failed.
    pub never_started: HashSet<String>,
    /// The startup probe has succeeded, or there is none.
    pub started: HashSet<String>,
    /// The readiness probe succeeds, or there is none.
    pub ready: HashSet<String>,
}

/// Why a container is killed, in upstream's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kill {
    pub id: String,
    pub name: String,
    pub message: String,
    /// For a failed probe, which one.
    pub probe: Option<&'static str>,
    /// It gets other resources, and is started again at once.
    pub is_resize: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The number of the sandbox to be made first, if one is.
    pub new_sandbox: Option<u32>,
    /// All that runs must go: the sandbox is of no use, or nothing is left to do in it.
    pub kill_pod: bool,
    /// Containers to start, by name, in this order.
    pub start: Vec<String>,
    pub kill: Vec<Kill>,
    /// Containers to stop and remove, by id, in this order, so that the pod begins afresh in its sandbox.
    pub reset: Vec<String>,
}

pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// Whether a container that is as it is should be started (again).
pub fn should_start(spec: &PodSpec, container: &Container, seen: Option<&ContainerSeen>) -> bool {
    match seen.map(ContainerSeen::state) {
        None | Some(ContainerState::ContainerUnknown | ContainerState::ContainerCreated) => true,
        Some(ContainerState::ContainerRunning) => false,
        Some(ContainerState::ContainerExited) => {
            seen.is_some_and(|s| restarts(spec, container, s.status.exit_code))
        }
    }
}

/// Whether the sandbox must be made (again), and as which attempt.
fn sandbox(pod: &Pod, seen: &Observed) -> Option<u32> {
    let Some(latest) = seen.sandbox() else { return Some(0) };
    let next = latest.metadata.as_ref().map_or(0, |m| m.attempt) + 1;
    let Some(ready) = seen.ready_sandbox() else { return Some(next) };
    let host = is_host_network(pod);
    let has_address = ready.network.as_ref().is_some_and(|n| !n.ip.is_empty());
    let is_good = on_host_network(ready) == host && (host || has_address);
    (!is_good).then_some(next)
}

/// What is to be done now. Back-off is not looked at here: a container to start may have to wait.
pub fn plan(pod: &Pod, seen: &Observed, verdicts: &Verdicts) -> Plan {
    let Some(spec) = &pod.spec else { return Plan::default() };
    let reset = reset(spec, seen);
    let mut plan = Plan { reset, ..Plan::default() };
    if !plan.reset.is_empty() {
        return plan;
    }
    let inits = spec.init_containers.as_deref().unwrap_or_default();
    if let Some(attempt) = sandbox(pod, seen) {
        plan.kill_pod = seen.sandbox().is_some();
        let wanted: Vec<String> = spec
            .containers
            .iter()
            .filter(|c| should_start(spec, c, seen.latest(&c.name).filter(|s| !s.is_running())))
            .map(|c| c.name.clone())
            .collect();
        let policy = spec.restart_policy.as_deref().unwrap_or("Always");
        let has_run = attempt != 0 && !seen.containers.is_empty();
        let init_failed = inits
            .iter()
            .any(|c| !is_sidecar(c) && seen.latest(&c.name).is_some_and(|s| is_final_failure(spec, c, s)));
        if wanted.is_empty() || init_failed || (policy == "Never" && has_run) {
            return plan;
        }
        plan.new_sandbox = Some(attempt);
        plan.start = inits.first().map_or(wanted, |first| vec![first.name.clone()]);
        return plan;
    }
    // Who looks inside need not wait until all is ready.
    let added = spec.ephemeral_containers.iter().flatten().filter(|e| seen.latest(&e.name).is_none());
    let added: Vec<String> = added.map(|e| e.name.clone()).collect();
    if !init_containers(spec, seen, verdicts, &mut plan) {
        if !plan.kill_pod {
            plan.start.splice(0..0, added);
        }
        return plan;
    }
    let mut kept = 0;
    for container in &spec.containers {
        let current = seen.current(&container.name);
        match current {
            Some(running) if running.is_running() => {
                plan.kill.extend(kill(container, running, verdicts));
                kept += 1;
            }
            _ if should_start(spec, container, current) => plan.start.push(container.name.clone()),
            _ => {}
        }
    }
    if kept == 0 && plan.start.is_empty() && !spec.containers.is_empty() {
        plan.kill_pod = true;
        plan.start.clear();
    } else {
        // Sidecars that have ended run again as long as the pod does.
        let ended = inits.iter().filter(|c| is_sidecar(c)).filter(|c| {
            !plan.start.contains(&c.name) && !seen.current(&c.name).is_some_and(ContainerSeen::is_running)
        });
        let again: Vec<String> = ended.map(|c| c.name.clone()).collect();
        plan.start.splice(0..0, added.into_iter().chain(again));
    }
    plan
}

/// All containers, if one of them has ended so that all begin afresh; those that caused it last, so that the cause is
/// known until all else is done.
pub fn reset(spec: &PodSpec, seen: &Observed) -> Vec<String> {
    let (mut victims, mut causes) = (Vec::new(), Vec::new());
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        for one in seen.containers.iter().filter(|c| c.name() == container.name) {
            let is_cause = one.is_exited() && restarts_all(container, one.status.exit_code);
            if is_cause { &mut causes } else { &mut victims }.push(one.id().to_owned());
        }
    }
    if causes.is_empty() { Vec::new() } else { [victims, causes].concat() }
}

/// Adds what the init containers need; whether they are all done, so that the others may run.
fn init_containers(spec: &PodSpec, seen: &Observed, verdicts: &Verdicts, plan: &mut Plan) -> bool {
    let inits = spec.init_containers.as_deref().unwrap_or_default();
    let initialized = spec.containers.iter().any(|c| seen.current(&c.name).is_some());
    for init in inits {
        let current = seen.current(&init.name);
        if is_sidecar(init) {
            match current {
                Some(running) if running.is_running() => {
                    plan.kill.extend(kill(init, running, verdicts));
                    if !initialized && !verdicts.started.contains(running.id()) {
                        return false;
                    }
                }
                _ if initialized => {}
                _ => {
                    plan.start.push(init.name.clone());
                    return false;
                }
            }
            continue;
        }
        if initialized {
            continue;
        }
        match current {
            Some(done) if done.is_exited() && done.status.exit_code == 0 => {}
            Some(running) if running.is_running() => return false,
            Some(failed) if is_final_failure(spec, init, failed) => {
                plan.kill_pod = true;
                return false;
            }
            _ => {
                plan.start.push(init.name.clone());
                return false;
            }
        }
    }
    true
}

/// Whether an init container has failed for good.
fn is_final_failure(spec: &PodSpec, init: &Container, seen: &ContainerSeen) -> bool {
    let code = seen.status.exit_code;
    seen.is_exited() && code != 0 && !restarts(spec, init, code)
}

/// Whether a container that runs must not go on, and why.
fn kill(container: &Container, running: &ContainerSeen, verdicts: &Verdicts) -> Option<Kill> {
    let name = &container.name;
    let (message, probe) = if running.hash() != names::container_hash(container) {
        (format!("Container {name} definition changed, will be restarted"), None)
    } else if verdicts.dead.contains(running.id()) {
        (format!("Container {name} failed liveness probe, will be restarted"), Some("Liveness"))
    } else if verdicts.never_started.contains(running.id()) {
        (format!("Container {name} failed startup probe, will be restarted"), Some("Startup"))
    } else if resize::needs_restart(container, running) {
        let message = format!("Container {name} resize requires restart");
        return Some(Kill {
            id: running.id().to_owned(),
            name: name.clone(),
            message,
            probe: None,
            is_resize: true,
        });
    } else {
        return None;
    };
    Some(Kill { id: running.id().to_owned(), name: name.clone(), message, probe, is_resize: false })
}

/// The order in which a pod's containers are stopped: the ordinary ones together, then its sidecars, the last first.
pub fn stop_order(spec: &PodSpec, seen: &Observed) -> Vec<Vec<ContainerSeen>> {
    let inits = spec.init_containers.as_deref().unwrap_or_default();
    let place: HashMap<&str, usize> = inits
        .iter()
        .enumerate()
        .filter(|(_, c)| is_sidecar(c))
        .map(|(i, c)| (c.name.as_str(), i + 1))
        .collect();
    let mut groups: Vec<(usize, Vec<ContainerSeen>)> = Vec::new();
    for container in seen.containers.iter().filter(|c| !c.is_exited()) {
        let at = place.get(container.name()).copied().unwrap_or(usize::MAX);
        match groups.iter_mut().find(|(place, _)| *place == at) {
            Some((_, group)) => group.push(container.clone()),
            None => groups.push((at, vec![container.clone()])),
        }
    }
    groups.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    groups.into_iter().map(|(_, group)| group).collect()
}

#[cfg(test)]
mod tests;
