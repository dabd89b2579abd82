//! A pod's status, from what it asks and what there is. Functions only: what is read comes in, the status goes out.

mod conditions;
mod containers;
mod phase;

use std::collections::HashMap;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{HostIP, Pod, PodIP, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::naming::is_host_network;
use crate::observed::Observed;
use crate::plan::Verdicts;
use crate::resources;
use crate::spec::{self, Kind};

/// Why a container waits: reason and message.
pub type Waiting = HashMap<String, (String, String)>;

/// An end that the kubelet decides: reason and message of a pod that failed as a whole.
pub type Verdict = (String, String);

/// How far a change of a pod's resources has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResizeConditions {
    /// It is not granted.
    pub pending: Option<ResizeCondition>,
    /// It is granted, and not yet done.
    pub progress: Option<ResizeCondition>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResizeCondition {
    pub reason: String,
    pub message: String,
    pub generation: i64,
}

/// What the status is made from.
#[derive(Debug)]
pub struct Inputs<'a> {
    pub pod: &'a Pod,
    pub seen: &'a Observed,
    pub verdicts: &'a Verdicts,
    pub waiting: &'a Waiting,
    pub runtime_name: &'a str,
    pub node_ip: IpAddr,
    /// What the containers left behind as their last words, by container id.
    pub last_words: &'a HashMap<String, String>,
    /// The pod has been told to go, or has ended: nothing starts again.
    pub is_ending: bool,
    pub failed: Option<&'a Verdict>,
    pub resize: &'a ResizeConditions,
    pub now: Timestamp,
}

/// The status to be told. Conditions of others stay as they are.
pub fn make(inputs: &Inputs<'_>) -> PodStatus {
    let old = inputs.pod.status.clone().unwrap_or_default();
    let default = k8s_openapi::api::core::v1::PodSpec::default();
    let spec = inputs.pod.spec.as_ref().unwrap_or(&default);
    let inits = containers::statuses(inputs, spec.init_containers.as_deref().unwrap_or_default(), Kind::Init);
    let own = containers::statuses(inputs, &spec.containers, Kind::Own);
    let added: Vec<_> = spec.ephemeral_containers.iter().flatten().map(spec::ephemeral).collect();
    let added = containers::statuses(inputs, &added, Kind::Ephemeral);
    let mut phase = phase::of(spec, &inits, &own, inputs.is_ending);
    if let Some(old) = old.phase.as_deref().filter(|p| is_over(p)) {
        phase = old;
    } else if inputs.failed.is_some() {
        phase = "Failed";
    }
    let known = old.phase.as_deref().unwrap_or("Pending").to_owned();
    let phase = if is_over(phase) && inputs.seen.any_running() { known } else { phase.to_owned() };

    let mut ips = inputs.seen.ips();
    if is_host_network(inputs.pod) && inputs.seen.ready_sandbox().is_some() {
        ips = vec![inputs.node_ip.to_string()];
    }
    // A pod keeps the address that it had once nothing runs in it.
    if ips.is_empty() && (inputs.is_ending || is_over(&phase)) {
        ips = old.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect();
    }
    let (reason, message) = match inputs.failed {
        Some((reason, message)) => (Some(reason.clone()), Some(message.clone())),
        None => (old.reason.clone(), old.message.clone()),
    };
    let mut made = PodStatus {
        observed_generation: inputs.pod.metadata.generation.or(old.observed_generation),
        phase: Some(phase),
        reason,
        message,
        host_ip: Some(inputs.node_ip.to_string()),
        host_ips: Some(vec![HostIP { ip: inputs.node_ip.to_string() }]),
        pod_ip: ips.first().cloned(),
        pod_ips: (!ips.is_empty()).then(|| ips.into_iter().map(|ip| PodIP { ip }).collect()),
        start_time: Some(old.start_time.clone().unwrap_or(Time(seconds(inputs.now)))),
        init_container_statuses: (!inits.is_empty()).then_some(inits),
        container_statuses: (!own.is_empty()).then_some(own),
        ephemeral_container_statuses: (!added.is_empty()).then_some(added),
        qos_class: Some(resources::qos(inputs.pod).name().to_owned()),
        ..old
    };
    made.conditions = Some(conditions::of(inputs, spec, &made));
    made
}

pub fn is_over(phase: &str) -> bool {
    matches!(phase, "Succeeded" | "Failed")
}

/// The API counts in whole seconds.
pub fn seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

#[cfg(test)]
mod tests;
