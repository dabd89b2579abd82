//! A pod in one line: how many containers are ready, and what it is doing.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod, PodStatus};
use serde_json::Value;

use crate::registry::column::{or_none, since_at};

pub struct Summary {
    pub ready: String,
    pub status: String,
    pub restarts: String,
}

fn condition<'a>(status: &'a PodStatus, name: &str) -> Option<&'a str> {
    status.conditions.iter().flatten().find(|c| c.type_ == name).map(|c| c.status.as_str())
}

fn ended(t: &ContainerStateTerminated, prefix: &str) -> String {
    match (t.reason.as_deref().unwrap_or_default(), t.signal.unwrap_or(0)) {
        ("", 0) => format!("{prefix}ExitCode:{}", t.exit_code),
        ("", signal) => format!("{prefix}Signal:{signal}"),
        (reason, _) => format!("{prefix}{reason}"),
    }
}

fn last_end(c: &ContainerStatus) -> Option<Timestamp> {
    c.last_state.as_ref()?.terminated.as_ref()?.finished_at.as_ref().map(|t| t.0)
}

/// Containers that are ready, the word for the pod's state, and restarts: what upstream's printer makes of a status.
pub fn summary(pod: &Pod) -> Summary {
    let (no_spec, no_status) = Default::default();
    let spec = pod.spec.as_ref().unwrap_or(&no_spec);
    let status: &PodStatus = pod.status.as_ref().unwrap_or(&no_status);
    let sidecar = |name: &str| {
        spec.init_containers
            .iter()
            .flatten()
            .any(|c| c.name == name && c.restart_policy.as_deref() == Some("Always"))
    };
    let init = spec.init_containers.as_deref().unwrap_or_default();
    let total = spec.containers.len() + init.iter().filter(|c| sidecar(&c.name)).count();
    let phase = status.phase.as_deref().unwrap_or_default();
    let mut reason = status.reason.clone().filter(|r| !r.is_empty()).unwrap_or_else(|| phase.to_owned());
    let gated = status
        .conditions
        .iter()
        .flatten()
        .any(|c| c.type_ == "PodScheduled" && c.reason.as_deref() == Some("SchedulingGated"));
    if gated {
        "SchedulingGated".clone_into(&mut reason);
    }

    let (mut ready, mut restarts, mut side_restarts) = (0, 0, 0);
    let (mut last, mut side_last) = (None, None);
    let mut initializing = false;
    for (i, c) in status.init_container_statuses.iter().flatten().enumerate() {
        let state = c.state.clone().unwrap_or_default();
        restarts += c.restart_count;
        last = last.max(last_end(c));
        if sidecar(&c.name) {
            side_restarts += c.restart_count;
            side_last = side_last.max(last_end(c));
        }
        match (&state.terminated, &state.waiting) {
            (Some(t), _) if t.exit_code == 0 => continue,
            _ if sidecar(&c.name) && c.started == Some(true) => {
                ready += usize::from(c.ready);
                continue;
            }
            (Some(t), _) => reason = ended(t, "Init:"),
            (_, Some(w)) if w.reason.as_deref().is_some_and(|r| !r.is_empty() && r != "PodInitializing") => {
                reason = format!("Init:{}", w.reason.as_deref().unwrap_or_default());
            }
            _ => reason = format!("Init:{i}/{}", init.len()),
        }
        initializing = true;
        break;
    }

    if !initializing || condition(status, "Initialized") == Some("True") {
        restarts = side_restarts;
        last = side_last;
        let mut running = false;
        let mut failure = None;
        for c in status.container_statuses.iter().flatten().rev() {
            let state = c.state.clone().unwrap_or_default();
            restarts += c.restart_count;
            last = last.max(last_end(c));
            let waiting = state.waiting.and_then(|w| w.reason).filter(|r| !r.is_empty());
            if let Some(waiting) = waiting {
                reason = waiting;
            } else if let Some(t) = &state.terminated {
                reason = ended(t, "");
                if t.exit_code != 0 {
                    failure = Some(reason.clone());
                }
            } else if c.ready && state.running.is_some() {
                running = true;
                ready += 1;
            }
        }
        if reason == "Completed" {
            if running && condition(status, "Ready") == Some("True") {
                "Running".clone_into(&mut reason);
            } else if let Some(failure) = failure {
                reason = failure;
            } else if running {
                "NotReady".clone_into(&mut reason);
            }
        }
    }

    if pod.metadata.deletion_timestamp.is_some() {
        if status.reason.as_deref() == Some("NodeLost") {
            "Unknown".clone_into(&mut reason);
        } else if !matches!(phase, "Succeeded" | "Failed") {
            "Terminating".clone_into(&mut reason);
        }
    }
    let restarts = match last.filter(|_| restarts != 0) {
        Some(last) => format!("{restarts} ({} ago)", since_at(last, Timestamp::now())),
        None => restarts.to_string(),
    };
    Summary { ready: format!("{ready}/{total}"), status: reason, restarts }
}

pub fn ip(pod: &Pod) -> Value {
    let status = pod.status.as_ref();
    or_none(
        status.and_then(|s| s.pod_ips.iter().flatten().map(|i| i.ip.as_str()).next().or(s.pod_ip.as_deref())),
    )
}

pub fn node(pod: &Pod) -> Value {
    or_none(pod.spec.as_ref().and_then(|s| s.node_name.as_deref()))
}

pub fn nominated_node(pod: &Pod) -> Value {
    or_none(pod.status.as_ref().and_then(|s| s.nominated_node_name.as_deref()))
}

pub fn readiness_gates(pod: &Pod) -> Value {
    let gates = pod.spec.as_ref().and_then(|s| s.readiness_gates.as_deref()).unwrap_or_default();
    if gates.is_empty() {
        return "<none>".into();
    }
    let met = gates
        .iter()
        .filter(|g| pod.status.as_ref().and_then(|s| condition(s, &g.condition_type)) == Some("True"))
        .count();
    format!("{met}/{}", gates.len()).into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_status_is_the_most_telling_word() {
        let cases = [
            (json!({"phase": "Pending"}), "0/1", "Pending", "0"),
            (
                json!({"phase": "Running", "containerStatuses": [{"name": "c", "ready": true, "restartCount": 0,
                       "image": "", "imageID": "", "state": {"running": {}}}]}),
                "1/1",
                "Running",
                "0",
            ),
            (
                json!({"phase": "Running", "containerStatuses": [{"name": "c", "ready": false, "restartCount": 2,
                       "image": "", "imageID": "", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}),
                "0/1",
                "CrashLoopBackOff",
                "2",
            ),
            (
                json!({"phase": "Failed", "containerStatuses": [{"name": "c", "ready": false, "restartCount": 0,
                       "image": "", "imageID": "", "state": {"terminated": {"exitCode": 3}}}]}),
                "0/1",
                "ExitCode:3",
                "0",
            ),
            (
                json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "ready": false, "restartCount": 0,
                       "image": "", "imageID": "", "state": {"running": {}}}]}),
                "0/1",
                "Init:0/1",
                "0",
            ),
        ];
        for (status, ready, word, restarts) in cases {
            let pod: Pod = serde_json::from_value(json!({
                "spec": {"containers": [{"name": "c"}], "initContainers": [{"name": "i"}]}, "status": status,
            }))
            .expect("pod");
            let line = summary(&pod);
            assert_eq!(
                (line.ready.as_str(), line.status.as_str(), line.restarts.as_str()),
                (ready, word, restarts)
            );
        }
    }

    #[test]
    fn what_failed_tells_more_than_what_is_done() {
        let done = json!({"name": "a", "ready": false, "restartCount": 0, "image": "", "imageID": "",
            "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}});
        let other = |state: serde_json::Value| json!({"name": "b", "ready": true, "restartCount": 0, "image": "", "imageID": "", "state": state});
        for (state, ready, word) in [
            (json!({"terminated": {"exitCode": 1, "reason": "Error"}}), "False", "Error"),
            (json!({"terminated": {"exitCode": 0, "reason": "Completed"}}), "False", "Completed"),
            (json!({"running": {}}), "False", "NotReady"),
            (json!({"running": {}}), "True", "Running"),
        ] {
            let pod: Pod = serde_json::from_value(json!({
                "spec": {"containers": [{"name": "a"}, {"name": "b"}]},
                "status": {"phase": "Running", "containerStatuses": [done, other(state)],
                    "conditions": [{"type": "Ready", "status": ready}]},
            }))
            .expect("pod");
            assert_eq!(summary(&pod).status, word);
        }
    }
}
