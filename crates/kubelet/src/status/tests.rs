use std::collections::HashSet;

use k8s_cri::v1::{
    ContainerState as CriState, ContainerStatus as CriContainer, PodSandboxNetworkStatus, PodSandboxState,
    PodSandboxStatus,
};
use k8s_openapi::api::core::v1::ContainerState;
use serde_json::{Value, json};

use super::*;
use crate::names;
use crate::observed::ContainerSeen;

struct World {
    pod: Pod,
    seen: Observed,
    verdicts: Verdicts,
    waiting: Waiting,
    is_ending: bool,
    failed: Option<Verdict>,
    resize: ResizeConditions,
}

fn world(spec: Value) -> World {
    let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": 3}, "spec": spec});
    World {
        pod: serde_json::from_value(pod).unwrap(),
        seen: Observed::default(),
        verdicts: Verdicts::default(),
        waiting: Waiting::new(),
        is_ending: false,
        failed: None,
        resize: ResizeConditions::default(),
    }
}

impl World {
    fn sandboxed(mut self) -> Self {
        self.seen.sandboxes.push(PodSandboxStatus {
            id: "s".into(),
            state: PodSandboxState::SandboxReady as i32,
            network: Some(PodSandboxNetworkStatus { ip: "10.0.0.2".into(), additional_ips: vec![] }),
            ..Default::default()
        });
        self
    }

    /// A container that runs, or has ended with a code. The newest comes first.
    fn container(mut self, name: &str, restarts: u32, exit: Option<i32>) -> Self {
        let id = format!("{name}{restarts}");
        let state = if exit.is_some() { CriState::ContainerExited } else { CriState::ContainerRunning };
        let status = CriContainer {
            id: id.clone(),
            state: state as i32,
            exit_code: exit.unwrap_or(0),
            reason: exit.map(|code| if code == 0 { "Completed" } else { "Error" }).unwrap_or_default().into(),
            started_at: 1_000_000_000,
            finished_at: if exit.is_some() { 2_000_000_000 } else { 0 },
            labels: HashMap::from([(names::CONTAINER_NAME.to_owned(), name.to_owned())]),
            annotations: HashMap::from([(names::RESTART_COUNT.to_owned(), restarts.to_string())]),
            ..Default::default()
        };
        self.seen.containers.push(ContainerSeen { sandbox: "s".into(), status });
        if exit.is_none() {
            self.verdicts.started.insert(id.clone());
            self.verdicts.ready.insert(id);
        }
        self
    }

    fn status(&self) -> PodStatus {
        make(&Inputs {
            pod: &self.pod,
            seen: &self.seen,
            verdicts: &self.verdicts,
            waiting: &self.waiting,
            runtime_name: "krate",
            node_ip: "192.168.0.1".parse().unwrap(),
            last_words: &HashMap::from([("a1".to_owned(), "bye".to_owned())]),
            is_ending: self.is_ending,
            failed: self.failed.as_ref(),
            resize: &self.resize,
            now: Timestamp::from_second(1_000_000).unwrap(),
        })
    }
}

fn condition<'a>(status: &'a PodStatus, name: &str) -> (&'a str, Option<&'a str>, Option<&'a str>) {
    let found = status.conditions.iter().flatten().find(|c| c.type_ == name).unwrap();
    (&found.status, found.reason.as_deref(), found.message.as_deref())
}

fn two(policy: &str) -> World {
    world(json!({"restartPolicy": policy, "containers": [{"name": "a"}, {"name": "b"}]}))
}

#[test]
fn phases_follow_containers() {
    let ended = |policy: &str, a: i32, b: i32| {
        two(policy).sandboxed().container("a", 0, Some(a)).container("b", 0, Some(b))
    };
    let table = vec![
        (two("Always"), "Pending"),
        (two("Always").sandboxed().container("a", 0, None), "Pending"),
        (two("Always").sandboxed().container("a", 0, None).container("b", 0, None), "Running"),
        (two("Always").sandboxed().container("a", 0, Some(1)).container("b", 0, None), "Running"),
        (ended("Always", 1, 1), "Running"),
        (ended("Never", 0, 0), "Succeeded"),
        (ended("Never", 0, 1), "Failed"),
        (ended("OnFailure", 0, 0), "Succeeded"),
        (ended("OnFailure", 0, 1), "Running"),
    ];
    for (world, phase) in table {
        assert_eq!(world.status().phase.as_deref(), Some(phase), "{:?}", world.seen);
    }
}

#[test]
fn a_pod_that_ends_has_succeeded_or_failed_once_nothing_runs() {
    let mut world = two("Always").sandboxed().container("a", 0, Some(0)).container("b", 0, None);
    world.is_ending = true;
    world.pod.status = Some(PodStatus { phase: Some("Running".into()), ..Default::default() });
    assert_eq!(world.status().phase.as_deref(), Some("Running"));
    world.seen.containers[1].status.state = CriState::ContainerExited as i32;
    assert_eq!(world.status().phase.as_deref(), Some("Succeeded"));
    world.seen.containers[1].status.exit_code = 137;
    assert_eq!(world.status().phase.as_deref(), Some("Failed"));
}

#[test]
fn a_pod_that_ends_before_it_began_has_failed() {
    let mut world = world(json!({"restartPolicy": "Never", "containers": [{"name": "a"}],
        "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}]}));
    world = world.sandboxed().container("i", 0, None);
    assert_eq!(world.status().phase.as_deref(), Some("Pending"));
    world.is_ending = true;
    assert_eq!(world.status().phase.as_deref(), Some("Pending"), "something still runs");
    world.seen.containers[0].status.state = CriState::ContainerExited as i32;
    assert_eq!(world.status().phase.as_deref(), Some("Failed"));
}

#[test]
fn a_running_pod_is_told_in_full() {
    let status = two("Always").sandboxed().container("a", 0, None).container("b", 0, None).status();
    assert_eq!(status.pod_ip.as_deref(), Some("10.0.0.2"));
    assert_eq!(status.host_ip.as_deref(), Some("192.168.0.1"));
    assert_eq!((status.observed_generation, status.qos_class.as_deref()), (Some(3), Some("BestEffort")));
    let order: Vec<&str> = status.conditions.iter().flatten().map(|c| c.type_.as_str()).collect();
    assert_eq!(
        order,
        ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"]
    );
    assert!(
        status.conditions.iter().flatten().all(|c| c.status == "True" && c.observed_generation == Some(3))
    );
    let first = &status.container_statuses.as_ref().unwrap()[0];
    assert_eq!(first.container_id.as_deref(), Some("krate://a0"));
    assert!(
        first.ready && first.started == Some(true) && first.last_state == Some(ContainerState::default())
    );
}

#[test]
fn what_is_not_ready_is_named() {
    let mut world = two("Always").sandboxed().container("a", 0, None).container("b", 0, None);
    world.verdicts.ready = HashSet::from(["a0".to_owned()]);
    let status = world.status();
    let unready = ("False", Some("ContainersNotReady"), Some("containers with unready status: [b]"));
    assert_eq!(condition(&status, "ContainersReady"), unready);
    assert_eq!(condition(&status, "Ready"), unready);
}

#[test]
fn readiness_gates_are_others_to_open() {
    let mut world =
        world(json!({"containers": [{"name": "a"}], "readinessGates": [{"conditionType": "x/y"}]}))
            .sandboxed()
            .container("a", 0, None);
    let said = condition(&world.status(), "Ready").2.map(str::to_owned);
    assert_eq!(
        said.as_deref(),
        Some("corresponding condition of pod readiness gate \"x/y\" does not exist.")
    );
    world.pod.status =
        serde_json::from_value(json!({"conditions": [{"type": "x/y", "status": "True"}]})).unwrap();
    let status = world.status();
    assert_eq!(condition(&status, "Ready").0, "True");
    assert_eq!(condition(&status, "x/y").0, "True", "it is kept");
}

#[test]
fn init_containers_come_first() {
    let world = world(json!({"initContainers": [{"name": "i"}], "containers": [{"name": "a"}]}));
    let status = world.sandboxed().container("i", 0, None).status();
    let waiting = status.container_statuses.as_ref().unwrap()[0].state.as_ref().unwrap().waiting.as_ref();
    assert_eq!(waiting.unwrap().reason.as_deref(), Some("PodInitializing"));
    let incomplete = Some("containers with incomplete status: [i]");
    assert_eq!(condition(&status, "Initialized"), ("False", Some("ContainersNotInitialized"), incomplete));
}

#[test]
fn a_container_that_waits_tells_how_it_ended() {
    let mut world = two("Always")
        .sandboxed()
        .container("a", 1, Some(1))
        .container("a", 0, Some(2))
        .container("b", 0, None);
    let status = world.status();
    let first = &status.container_statuses.as_ref().unwrap()[0];
    let ended = first.state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!((ended.exit_code, ended.message.as_deref()), (1, Some("bye")));
    assert_eq!(first.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 2);
    world.waiting.insert("a".into(), ("CrashLoopBackOff".into(), "back-off 10s".into()));
    let status = world.status();
    let first = &status.container_statuses.as_ref().unwrap()[0];
    assert_eq!(first.restart_count, 1);
    let waiting = first.state.as_ref().unwrap().waiting.as_ref().unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("CrashLoopBackOff"));
    assert_eq!(first.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 1);
}

#[test]
fn a_pod_can_fail_as_a_whole() {
    let mut world = two("Always").sandboxed().container("a", 0, Some(143)).container("b", 0, Some(143));
    world.is_ending = true;
    world.failed = Some(("DeadlineExceeded".into(), "too long".into()));
    let status = world.status();
    assert_eq!(
        (status.phase.as_deref(), status.reason.as_deref()),
        (Some("Failed"), Some("DeadlineExceeded"))
    );
    assert_eq!(condition(&status, "Ready").1, Some("PodFailed"));
}

#[test]
fn a_resize_is_told_until_it_is_done() {
    let mut world = two("Always").sandboxed().container("a", 0, None).container("b", 0, None);
    world.resize.pending =
        Some(ResizeCondition { reason: "Deferred".into(), message: "no room".into(), generation: 2 });
    let status = world.status();
    assert_eq!(condition(&status, "PodResizePending"), ("True", Some("Deferred"), Some("no room")));
    let first = &status.conditions.as_ref().unwrap()[0];
    assert_eq!((first.type_.as_str(), first.observed_generation), ("PodResizePending", Some(2)));
    world.pod.status = Some(status);
    world.resize = ResizeConditions { pending: None, progress: Some(ResizeCondition::default()) };
    let status = world.status();
    assert_eq!(condition(&status, "PodResizeInProgress"), ("True", None, None));
    assert!(status.conditions.iter().flatten().all(|c| c.type_ != "PodResizePending"));
}

#[test]
fn transitions_keep_their_time() {
    let mut world = two("Always").sandboxed().container("a", 0, None).container("b", 0, None);
    let then = json!("2020-01-01T00:00:00Z");
    world.pod.status = serde_json::from_value(json!({"conditions": [
        {"type": "Ready", "status": "True", "lastTransitionTime": then},
        {"type": "Initialized", "status": "False", "lastTransitionTime": then}]}))
    .unwrap();
    let status = world.status();
    let since = |name: &str| {
        let found = status.conditions.iter().flatten().find(|c| c.type_ == name).unwrap();
        serde_json::to_value(&found.last_transition_time).unwrap()
    };
    assert_eq!(since("Ready"), then);
    assert_ne!(since("Initialized"), then);
}

#[test]
fn a_pod_that_begins_afresh_does_not_fail_on_the_way() {
    let rule = json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [7]}}]);
    let mut world =
        world(json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [
        {"name": "c", "restartPolicy": "Never", "restartPolicyRules": rule}, {"name": "d"}]}))
        .sandboxed();
    let empty = world.seen.containers.clone();
    type Seen = [(&'static str, Option<i32>)];
    let steps: [&Seen; 6] = [
        &[("i", Some(0)), ("c", None), ("d", None)],
        &[("i", Some(0)), ("c", Some(7)), ("d", None)],
        &[("i", Some(0)), ("c", Some(7)), ("d", Some(137))],
        &[("i", Some(0)), ("c", Some(7))],
        &[("c", Some(7))],
        &[],
    ];
    for step in steps {
        world.seen.containers.clone_from(&empty);
        for (name, exit) in step {
            world = world.container(name, 0, *exit);
        }
        let status = world.status();
        assert_eq!(status.phase.as_deref(), Some("Running"), "{step:?}");
        world.pod.status = Some(status);
    }
    let ends: Vec<_> = world.pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten()).collect();
    let last = |i: usize| ends[i].last_state.as_ref().and_then(|s| s.terminated.as_ref()).unwrap();
    assert_eq!((last(0).exit_code, last(0).reason.as_deref()), (7, Some("Error")));
    assert_eq!((last(1).exit_code, last(1).reason.as_deref()), (137, Some("RestartingAllContainers")));
}
