use k8s_cri::v1::{
    ContainerStatus, PodSandboxMetadata, PodSandboxNetworkStatus, PodSandboxState, PodSandboxStatus,
};
use serde_json::{Value, json};

use super::*;

fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec}))
        .unwrap()
}

fn sandboxed(ready: bool) -> Observed {
    let state = if ready { PodSandboxState::SandboxReady } else { PodSandboxState::SandboxNotready };
    Observed {
        sandboxes: vec![PodSandboxStatus {
            id: "s".into(),
            metadata: Some(PodSandboxMetadata::default()),
            state: state as i32,
            network: Some(PodSandboxNetworkStatus { ip: "10.0.0.2".into(), additional_ips: vec![] }),
            ..Default::default()
        }],
        containers: vec![],
    }
}

/// Adds a container: running, or with an exit code.
fn with(mut seen: Observed, pod: &Pod, name: &str, exit: Option<i32>) -> Observed {
    let spec = pod.spec.as_ref().unwrap();
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let hash = all.clone().find(|c| c.name == name).map(names::container_hash).unwrap_or_default();
    let state =
        if exit.is_some() { ContainerState::ContainerExited } else { ContainerState::ContainerRunning };
    seen.containers.push(ContainerSeen {
        sandbox: "s".into(),
        status: ContainerStatus {
            id: format!("{name}-id"),
            state: state as i32,
            exit_code: exit.unwrap_or(0),
            labels: HashMap::from([(names::CONTAINER_NAME.to_owned(), name.to_owned())]),
            annotations: HashMap::from([(names::HASH.to_owned(), hash)]),
            ..Default::default()
        },
    });
    seen
}

fn two(policy: &str) -> Pod {
    pod(
        json!({"restartPolicy": policy, "containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "i"}]}),
    )
}

#[test]
fn a_new_pod_gets_a_sandbox_and_its_containers() {
    let made = plan(&two("Always"), &Observed::default(), &Verdicts::default());
    assert_eq!((made.new_sandbox, made.kill_pod), (Some(0), false));
    assert_eq!(made.start, ["a", "b"]);
}

#[test]
fn what_runs_is_left_alone() {
    let pod = two("Always");
    let seen = with(with(sandboxed(true), &pod, "a", None), &pod, "b", None);
    assert_eq!(plan(&pod, &seen, &Verdicts::default()), Plan::default());
}

#[test]
fn policies_say_what_starts_again() {
    for (policy, exit, again) in [
        ("Always", 0, true),
        ("Always", 1, true),
        ("OnFailure", 0, false),
        ("OnFailure", 1, true),
        ("Never", 1, false),
    ] {
        let pod = two(policy);
        let seen = with(with(sandboxed(true), &pod, "a", Some(exit)), &pod, "b", None);
        let made = plan(&pod, &seen, &Verdicts::default());
        assert_eq!(made.start.contains(&"a".to_owned()), again, "{policy} {exit}");
        assert!(!made.kill_pod);
    }
}

#[test]
fn a_pod_whose_containers_are_done_is_over() {
    let pod = two("Never");
    let seen = with(with(sandboxed(true), &pod, "a", Some(0)), &pod, "b", Some(3));
    assert!(plan(&pod, &seen, &Verdicts::default()).kill_pod);
    let dead = with(with(sandboxed(false), &pod, "a", Some(0)), &pod, "b", Some(3));
    assert_eq!(plan(&pod, &dead, &Verdicts::default()).new_sandbox, None);
}

#[test]
fn a_dead_sandbox_is_made_again() {
    let pod = two("Always");
    let seen = with(with(sandboxed(false), &pod, "a", Some(137)), &pod, "b", Some(137));
    let made = plan(&pod, &seen, &Verdicts::default());
    assert_eq!((made.new_sandbox, made.kill_pod), (Some(1), true));
    assert_eq!(made.start, ["a", "b"]);
}

#[test]
fn init_containers_run_one_after_the_other() {
    let pod = pod(json!({"restartPolicy": "Always",
        "initContainers": [{"name": "one"}, {"name": "side", "restartPolicy": "Always"}, {"name": "two"}],
        "containers": [{"name": "main"}]}));
    let none = Verdicts::default();
    assert_eq!(plan(&pod, &Observed::default(), &none).start, ["one"]);
    let seen = with(sandboxed(true), &pod, "one", None);
    assert_eq!(plan(&pod, &seen, &none), Plan::default());
    let seen = with(sandboxed(true), &pod, "one", Some(1));
    assert_eq!(plan(&pod, &seen, &none).start, ["one"]);
    let seen = with(sandboxed(true), &pod, "one", Some(0));
    assert_eq!(plan(&pod, &seen, &none).start, ["side"]);
    let seen = with(seen, &pod, "side", None);
    assert_eq!(plan(&pod, &seen, &none), Plan::default(), "it has not started yet");
    let started = Verdicts { started: HashSet::from(["side-id".to_owned()]), ..Verdicts::default() };
    assert_eq!(plan(&pod, &seen, &started).start, ["two"]);
    let seen = with(seen, &pod, "two", Some(0));
    assert_eq!(plan(&pod, &seen, &started).start, ["main"]);
    let mut seen = with(seen, &pod, "main", None);
    assert_eq!(plan(&pod, &seen, &started), Plan::default());
    seen.containers.retain(|c| c.name() != "side");
    assert_eq!(plan(&pod, &with(seen, &pod, "side", Some(1)), &started).start, ["side"]);
}

#[test]
fn a_failed_init_container_ends_a_pod_that_never_restarts() {
    let pod = pod(
        json!({"restartPolicy": "Never", "initContainers": [{"name": "one"}], "containers": [{"name": "m"}]}),
    );
    let made = plan(&pod, &with(sandboxed(true), &pod, "one", Some(1)), &Verdicts::default());
    assert!(made.kill_pod && made.start.is_empty());
}

#[test]
fn changed_and_dead_containers_are_killed() {
    let mut changed = two("Always");
    let seen = with(with(sandboxed(true), &changed, "a", None), &changed, "b", None);
    let dead = Verdicts { dead: HashSet::from(["b-id".to_owned()]), ..Verdicts::default() };
    changed.spec.as_mut().unwrap().containers[0].image = Some("other".into());
    let made = plan(&changed, &seen, &dead);
    let messages: Vec<&str> = made.kill.iter().map(|k| k.message.as_str()).collect();
    assert_eq!(
        messages,
        [
            "Container a definition changed, will be restarted",
            "Container b failed liveness probe, will be restarted"
        ]
    );
    assert!(!made.kill_pod);
}

#[test]
fn sidecars_stop_last_and_in_reverse() {
    let pod = pod(json!({"initContainers": [
        {"name": "s1", "restartPolicy": "Always"}, {"name": "s2", "restartPolicy": "Always"}],
        "containers": [{"name": "m"}, {"name": "n"}]}));
    let mut seen = sandboxed(true);
    for name in ["s1", "m", "s2", "n"] {
        seen = with(seen, &pod, name, None);
    }
    let order: Vec<Vec<String>> = stop_order(pod.spec.as_ref().unwrap(), &seen)
        .iter()
        .map(|group| group.iter().map(|c| c.name().to_owned()).collect())
        .collect();
    assert_eq!(order, [vec!["m".to_owned(), "n".into()], vec!["s2".into()], vec!["s1".into()]]);
}

#[test]
fn who_looks_inside_starts_once_and_waits_for_nobody() {
    let pod = pod(json!({"initContainers": [{"name": "i"}], "containers": [{"name": "a"}],
        "ephemeralContainers": [{"name": "debug", "image": "d"}]}));
    assert_eq!(plan(&pod, &Observed::default(), &Verdicts::default()).start, ["i"], "the sandbox is first");
    let initializing = with(sandboxed(true), &pod, "i", None);
    assert_eq!(plan(&pod, &initializing, &Verdicts::default()).start, ["debug"]);
    let running = with(with(sandboxed(true), &pod, "i", Some(0)), &pod, "a", None);
    assert_eq!(plan(&pod, &running, &Verdicts::default()).start, ["debug"]);
    let looked = with(running, &pod, "debug", Some(1));
    assert_eq!(plan(&pod, &looked, &Verdicts::default()), Plan::default());
}

#[test]
fn a_containers_own_policy_and_rules_go_before_the_pods() {
    let again = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
    let pod = pod(json!({"restartPolicy": "Never", "containers": [
        {"name": "a", "restartPolicy": "Never", "restartPolicyRules": again},
        {"name": "b", "restartPolicy": "OnFailure"}]}));
    for (a, b, start, is_over) in [(42, 0, vec!["a"], false), (1, 1, vec!["b"], false), (1, 0, vec![], true)]
    {
        let seen = with(with(sandboxed(true), &pod, "a", Some(a)), &pod, "b", Some(b));
        let made = plan(&pod, &seen, &Verdicts::default());
        assert_eq!((made.start, made.kill_pod), (start.into_iter().map(str::to_owned).collect(), is_over));
    }
}

#[test]
fn a_container_can_have_all_begin_afresh() {
    let rule = json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [7]}}]);
    let pod = pod(json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [
        {"name": "a", "restartPolicy": "Never", "restartPolicyRules": rule}, {"name": "b"}]}));
    let ended = |code| {
        let seen = with(with(sandboxed(true), &pod, "i", Some(0)), &pod, "a", Some(code));
        with(seen, &pod, "b", None)
    };
    assert!(plan(&pod, &ended(1), &Verdicts::default()).reset.is_empty());
    let made = plan(&pod, &ended(7), &Verdicts::default());
    assert_eq!(
        (made.reset, made.start.len(), made.kill_pod),
        (["b-id", "i-id", "a-id"].map(str::to_owned).to_vec(), 0, false)
    );
    assert_eq!(plan(&pod, &sandboxed(true), &Verdicts::default()).start, ["i"], "and then from the first");
}
