//! A pod's conditions, in upstream's words.

use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Inputs, seconds};
use crate::plan::{is_sidecar, reset};
use crate::spec::may_restart_all;

/// Status, reason, message.
type Found = (bool, Option<&'static str>, Option<String>);

const TRUE: Found = (true, None, None);

/// The conditions that the kubelet answers for, in upstream's order, and then those of others.
pub fn of(inputs: &Inputs<'_>, spec: &PodSpec, status: &PodStatus) -> Vec<PodCondition> {
    let phase = status.phase.as_deref().unwrap_or_default();
    let own = status.container_statuses.as_deref().unwrap_or_default();
    let inits = status.init_container_statuses.as_deref().unwrap_or_default();
    let ready_to_start = inputs.seen.ready_sandbox().is_some() && status.pod_ip.is_some();
    let containers_ready = containers_ready(spec, phase, inits, own);
    let ready = ready(inputs, spec, &containers_ready);
    let old = inputs.pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let mut table: Vec<(&str, Found)> = vec![
        ("PodReadyToStartContainers", (ready_to_start, None, None)),
        ("Initialized", initialized(spec, phase, inits, own)),
        ("Ready", ready),
        ("ContainersReady", containers_ready),
        ("PodScheduled", TRUE),
    ];
    if may_restart_all(spec) {
        let found = match phase {
            "Succeeded" => (false, Some("PodCompleted"), None),
            "Failed" => (false, Some("PodFailed"), None),
            _ if reset(spec, inputs.seen).is_empty() => (false, None, None),
            _ => {
                let message = "container exited with restart policy rule".to_owned();
                (true, Some("RestartAllContainersStarted"), Some(message))
            }
        };
        table.push(("AllContainersRestarting", found));
    }
    let resizes = resizes(inputs, old);
    let is_own = |name: &str| table.iter().any(|(own, _)| *own == name) || RESIZES.contains(&name);
    let others = old.iter().filter(|c| !is_own(&c.type_)).cloned();
    let made = table.iter().map(|(name, found)| condition(inputs, old, name, found));
    resizes.into_iter().chain(made).chain(others).collect()
}

const RESIZES: [&str; 2] = ["PodResizePending", "PodResizeInProgress"];

fn resizes(inputs: &Inputs<'_>, old: &[PodCondition]) -> Vec<PodCondition> {
    let known = [&inputs.resize.pending, &inputs.resize.progress];
    let there = RESIZES.iter().zip(known).filter_map(|(name, known)| Some((name, known.as_ref()?)));
    there
        .map(|(name, known)| {
            let made = condition(inputs, old, name, &TRUE);
            PodCondition {
                reason: Some(known.reason.clone()).filter(|r| !r.is_empty()),
                message: Some(known.message.clone()).filter(|m| !m.is_empty()),
                observed_generation: Some(known.generation),
                ..made
            }
        })
        .collect()
}

fn condition(inputs: &Inputs<'_>, old: &[PodCondition], name: &str, found: &Found) -> PodCondition {
    let status = if found.0 { "True" } else { "False" };
    let before = old.iter().find(|c| c.type_ == name);
    let since = before.filter(|c| c.status == status).and_then(|c| c.last_transition_time.clone());
    PodCondition {
        type_: name.to_owned(),
        status: status.to_owned(),
        reason: found.1.map(str::to_owned),
        message: found.2.clone(),
        observed_generation: inputs.pod.metadata.generation,
        last_probe_time: before.and_then(|c| c.last_probe_time.clone()),
        last_transition_time: Some(since.unwrap_or(Time(seconds(inputs.now)))),
    }
}

fn initialized(spec: &PodSpec, phase: &str, inits: &[ContainerStatus], own: &[ContainerStatus]) -> Found {
    if phase == "Succeeded" {
        return (true, Some("PodCompleted"), None);
    }
    let has_begun = own.iter().any(|s| {
        s.state.as_ref().is_some_and(|s| s.running.is_some() || s.terminated.is_some())
            || s.last_state.as_ref().is_some_and(|l| l.terminated.is_some())
    });
    let mut incomplete = Vec::new();
    for container in spec.init_containers.iter().flatten() {
        let status = inits.iter().find(|s| s.name == container.name);
        let done =
            status.is_some_and(|s| if is_sidecar(container) { s.started == Some(true) } else { s.ready });
        if !done {
            incomplete.push(container.name.as_str());
        }
    }
    if incomplete.is_empty() || has_begun {
        return TRUE;
    }
    let message = format!("containers with incomplete status: [{}]", incomplete.join(" "));
    (false, Some("ContainersNotInitialized"), Some(message))
}

fn containers_ready(
    spec: &PodSpec,
    phase: &str,
    inits: &[ContainerStatus],
    own: &[ContainerStatus],
) -> Found {
    match phase {
        "Succeeded" => return (false, Some("PodCompleted"), None),
        "Failed" => return (false, Some("PodFailed"), None),
        _ => {}
    }
    let sidecars = spec.init_containers.iter().flatten().filter(|c| is_sidecar(c));
    let mut unready = Vec::new();
    for (container, all) in sidecars.map(|c| (c, inits)).chain(spec.containers.iter().map(|c| (c, own))) {
        if !all.iter().any(|s| s.name == container.name && s.ready) {
            unready.push(container.name.as_str());
        }
    }
    if unready.is_empty() {
        return TRUE;
    }
    (
        false,
        Some("ContainersNotReady"),
        Some(format!("containers with unready status: [{}]", unready.join(" "))),
    )
}

fn ready(inputs: &Inputs<'_>, spec: &PodSpec, containers: &Found) -> Found {
    if !containers.0 {
        return containers.clone();
    }
    let conditions = inputs.pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let mut unmet = Vec::new();
    for gate in spec.readiness_gates.iter().flatten() {
        let name = &gate.condition_type;
        match conditions.iter().find(|c| c.type_ == *name) {
            None => {
                unmet.push(format!("corresponding condition of pod readiness gate {name:?} does not exist."));
            }
            Some(c) if c.status != "True" => unmet
                .push(format!("the status of pod readiness gate {name:?} is not \"True\", but {}", c.status)),
            Some(_) => {}
        }
    }
    if unmet.is_empty() { TRUE } else { (false, Some("ReadinessGatesNotReady"), Some(unmet.join(", "))) }
}
