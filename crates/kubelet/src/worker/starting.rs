//! How long a pod takes to start, as the SLI for that has it: from its creation until the API's watch tells that all its
//! containers run, without the time that pulls of images and its init containers took. Pods that were started before this
//! kubelet came, that had to wait for room, and static ones are none of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::{Desired, Worker};
use crate::instruments::{FIRST_POD_SLI_SECONDS, POD_START_SLI_SECONDS, POD_START_TOTAL_SECONDS};
use crate::naming::is_host_network;
use crate::observed::Observed;
use crate::plan::is_sidecar;
use crate::static_pods::is_static;
use crate::status::is_over;

/// Whether a pod of this process' kubelets has started that has an address of its own.
static HAS_FIRST: AtomicBool = AtomicBool::new(false);

/// The start of a pod that is followed.
#[derive(Debug, Default)]
pub(super) struct Starting {
    /// The API was told that all containers run.
    is_told: bool,
}

impl Starting {
    /// Of a pod that has just been heard of; none, when its start is not followed.
    pub fn of(pod: &Pod) -> Option<Self> {
        let has_begun = pod.status.as_ref().is_some_and(|status| status.start_time.is_some());
        (!has_begun && !is_static(pod) && !is_unschedulable(pod)).then(Self::default)
    }
}

impl Worker {
    /// The API has taken a status.
    pub(super) fn note_told(&mut self) {
        if let Some(starting) = &mut self.starting_up
            && all_run(&self.pod)
        {
            starting.is_told = true;
        }
    }

    /// The API's watch has told this of the pod.
    pub(super) fn note_heard(&mut self, desired: &Desired) {
        let Some(starting) = &self.starting_up else { return };
        let pod = &desired.pod;
        let is_given_up = is_unschedulable(pod)
            || pod.status.as_ref().and_then(|s| s.phase.as_deref()).is_some_and(is_over);
        let has_started = starting.is_told && all_run(pod);
        if !is_given_up && !has_started {
            return;
        }
        self.starting_up = None;
        let pulls = self.shared.images.pulls.take(&self.uid);
        let Some(created) = pod.metadata.creation_timestamp.as_ref().filter(|_| has_started && !is_given_up)
        else {
            return;
        };
        let total =
            Timestamp::now().duration_since(created.0).as_secs_f64() - desired.heard.elapsed().as_secs_f64();
        POD_START_TOTAL_SECONDS.observe(total.max(0.0));
        if is_stateful(pod) {
            return;
        }
        let own = total - pulls.as_secs_f64() - inits(pod, &self.seen).as_secs_f64();
        POD_START_SLI_SECONDS.observe(own.max(0.0));
        if !is_host_network(pod) && !HAS_FIRST.swap(true, Ordering::Relaxed) {
            FIRST_POD_SLI_SECONDS.set(own.max(0.0));
        }
    }
}

fn all_run(pod: &Pod) -> bool {
    let all = pod.status.as_ref().and_then(|s| s.container_statuses.as_deref()).unwrap_or_default();
    let runs = |state: &k8s_openapi::api::core::v1::ContainerState| {
        state.running.as_ref().is_some_and(|running| running.started_at.is_some())
    };
    !all.is_empty() && all.iter().all(|status| status.state.as_ref().is_some_and(runs))
}

/// Whether a scheduler did not find room for it at once.
fn is_unschedulable(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "PodScheduled" && condition.status == "False")
}

/// Whether it has volumes that others may have to bring.
fn is_stateful(pod: &Pod) -> bool {
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    volumes.iter().any(|v| {
        v.secret.is_none()
            && v.config_map.is_none()
            && v.downward_api.is_none()
            && v.empty_dir.is_none()
            && v.projected.is_none()
    })
}

/// How long init containers ran that have ended.
fn inits(pod: &Pod, seen: &Observed) -> Duration {
    let all = pod.spec.as_ref().and_then(|s| s.init_containers.as_deref()).unwrap_or_default();
    let is_one = |name: &str| all.iter().any(|init| init.name == name && !is_sidecar(init));
    let ended =
        seen.containers.iter().filter(|c| c.is_exited() && c.status.started_at > 0 && is_one(c.name()));
    let ran = |from: i64, until: i64| Duration::from_nanos(u64::try_from(until - from).unwrap_or_default());
    ended.map(|c| ran(c.status.started_at, c.status.finished_at)).sum()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use k8s_cri::v1::{ContainerState, ContainerStatus};
    use serde_json::{Value, json};

    use super::*;
    use crate::names;
    use crate::observed::ContainerSeen;

    fn pod(spec: Value, status: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec, "status": status})).unwrap()
    }

    #[test]
    fn only_new_pods_are_followed() {
        let of = |status: Value| Starting::of(&pod(json!({"containers": []}), status)).is_some();
        assert!(of(json!({"phase": "Pending"})));
        assert!(!of(json!({"startTime": "2026-01-01T00:00:00Z"})));
        assert!(!of(json!({"conditions": [{"type": "PodScheduled", "status": "False"}]})));
        let mut of_file = pod(json!({"containers": []}), json!({}));
        let annotations = of_file.metadata.annotations.get_or_insert_default();
        annotations.insert(names::CONFIG_SOURCE.to_owned(), "file".to_owned());
        assert!(Starting::of(&of_file).is_none());
    }

    #[test]
    fn a_pod_has_started_when_all_of_it_runs() {
        let running = json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}});
        let of = |states: &[&Value]| {
            let all: Vec<Value> = states
                .iter()
                .map(|state| json!({"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": state}))
                .collect();
            all_run(&pod(json!({"containers": []}), json!({"containerStatuses": all})))
        };
        assert!(of(&[&running, &running]));
        assert!(!of(&[&running, &json!({"waiting": {}})]));
        assert!(!of(&[&json!({"running": {}})]) && !of(&[]));
    }

    #[test]
    fn volumes_of_others_make_a_pod_stateful() {
        for (volume, expected) in [
            (json!({"name": "v", "emptyDir": {}}), false),
            (json!({"name": "v", "projected": {}}), false),
            (json!({"name": "v", "hostPath": {"path": "/"}}), true),
            (json!({"name": "v", "persistentVolumeClaim": {"claimName": "c"}}), true),
        ] {
            assert_eq!(
                is_stateful(&pod(json!({"containers": [], "volumes": [volume]}), json!({}))),
                expected
            );
        }
    }

    #[test]
    fn init_containers_count_as_long_as_they_ran() {
        let seen = |name: &str, state: ContainerState, started_at: i64, finished_at: i64| ContainerSeen {
            sandbox: String::new(),
            status: ContainerStatus {
                state: state as i32,
                started_at,
                finished_at,
                labels: HashMap::from([(names::CONTAINER_NAME.to_owned(), name.to_owned())]),
                ..ContainerStatus::default()
            },
        };
        let exited = ContainerState::ContainerExited;
        let containers = vec![
            seen("init", exited, 10, 15),
            seen("init", exited, 3, 4),
            seen("never", exited, 0, 9),
            seen("sidecar", exited, 1, 9),
            seen("own", exited, 1, 9),
            seen("init", ContainerState::ContainerRunning, 20, 0),
        ];
        let spec = json!({"containers": [{"name": "own"}],
            "initContainers": [{"name": "init"}, {"name": "never"}, {"name": "sidecar", "restartPolicy": "Always"}]});
        let seen = Observed { containers, ..Observed::default() };
        assert_eq!(inits(&pod(spec, json!({})), &seen), Duration::from_nanos(6));
    }
}
