//! Pods and containers, from their making to their end.

use std::time::Duration;

use futures::StreamExt;
use k8s_cri::v1::{
    ContainerEventType, ContainerState, ExecSyncRequest, GetEventsRequest, ImageSpec, ImageStatusRequest,
    Int64Value, LinuxContainerResources, ListContainersRequest, ListPodSandboxRequest, NamespaceMode,
    PodSandboxState, ReopenContainerLogRequest, StartContainerRequest, StopContainerRequest,
    StopPodSandboxRequest,
};
use krate_testkit::eventually;

use super::fixture::{Node, container, shell};

type Test = (&'static str, fn());

pub const TESTS: &[Test] = &[
    ("a_pod_lives_and_leaves_nothing", a_pod_lives_and_leaves_nothing),
    ("pods_survive_the_servers_death", pods_survive_the_servers_death),
    ("what_cannot_be_started_says_why", what_cannot_be_started_says_why),
    ("a_container_out_of_memory_is_told_apart", a_container_out_of_memory_is_told_apart),
    ("processes_are_shared_when_asked", processes_are_shared_when_asked),
    ("changes_are_told_as_they_happen", changes_are_told_as_they_happen),
    ("users_and_rights_are_as_asked", users_and_rights_are_as_asked),
    ("a_dead_shim_ends_its_pod", a_dead_shim_ends_its_pod),
    ("shared_processes_end_with_their_pod", shared_processes_end_with_their_pod),
    ("a_dead_process_namespace_ends_its_pod", a_dead_process_namespace_ends_its_pod),
    ("logs_are_reopened_and_images_removed", logs_are_reopened_and_images_removed),
    ("a_stop_is_answered_whatever_goes_on_inside", a_stop_is_answered_whatever_goes_on_inside),
];

fn stop(node: &Node, id: &str, timeout: i64) {
    let request = StopContainerRequest { container_id: id.into(), timeout };
    node.block_on(node.cri().stop_container(request)).unwrap();
}

/// Containers that end by themselves, are being looked into, and are stopped, all at once.
fn a_stop_is_answered_whatever_goes_on_inside() {
    const PATIENCE: Duration = Duration::from_mins(1);
    let node = Node::start();
    node.import_busybox();
    let config = node.pod("busy");
    let pod = node.run_pod(&config);
    for round in 0..12 {
        let ids: Vec<String> = (0..4)
            .map(|i| {
                let script = match i {
                    0 => "sleep 1000",
                    1 => "while :; do sleep 0.01; done",
                    2 => "sleep 0.1; exit 42",
                    _ => "sleep 1000 & sleep 1000 & wait",
                };
                node.run(&pod, &config, shell(&format!("c{i}-{round}"), script))
            })
            .collect();
        let stopped = node.block_on(async {
            let (cri, ids) = (node.cri(), &ids);
            let looking = ids.iter().flat_map(|id| std::iter::repeat_n(id, 3)).map(|id| {
                let mut cri = cri.clone();
                async move {
                    // Whether one gets in before the end is chance.
                    for _ in 0..4 {
                        let request = ExecSyncRequest {
                            container_id: id.clone(),
                            cmd: vec!["/bin/sh".into(), "-c".into(), "sleep 0.02; exit 3".into()],
                            timeout: 30,
                        };
                        let _ = cri.exec_sync(request).await;
                    }
                }
            });
            let stopping = ids.iter().map(|id| {
                let mut cri = cri.clone();
                async move {
                    tokio::time::sleep(Duration::from_millis(20 * round)).await;
                    let request = StopContainerRequest { container_id: id.clone(), timeout: 0 };
                    tokio::time::timeout(PATIENCE, cri.stop_container(request)).await
                }
            });
            let (_, stopped) = tokio::time::timeout(PATIENCE * 2, async {
                tokio::join!(futures::future::join_all(looking), futures::future::join_all(stopping))
            })
            .await
            .expect("who looks inside gets an answer");
            stopped
        });
        for (id, outcome) in ids.iter().zip(stopped) {
            outcome.unwrap_or_else(|_| panic!("{id} of round {round} was not stopped in time")).unwrap();
            assert_eq!(node.status(id).state(), ContainerState::ContainerExited);
        }
    }
}

fn a_pod_lives_and_leaves_nothing() {
    let node = Node::start();
    node.import_busybox();
    let config = node.pod("life");
    let pod = node.run_pod(&config);
    let script = "echo hello; echo oops >&2; trap 'exit 7' USR1; while :; do sleep 0.1; done";
    let id = node.run(&pod, &config, shell("main", script));
    assert_eq!(node.status(&id).state(), ContainerState::ContainerRunning);
    let asked = "echo $IMAGE $HOSTNAME; pwd; exit 3";
    let said = (3, "yes life\n/work\n".to_owned(), String::new());
    assert_eq!(node.exec(&id, &["/bin/sh", "-c", asked]), said);
    node.wait(&id, |status| std::fs::read_to_string(&status.log_path).is_ok_and(|log| log.contains("oops")));
    // By the image's own signal, which the script turns into a 7.
    stop(&node, &id, 30);
    let status = node.status(&id);
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 7));
    assert_eq!(status.reason, "Error");
    let log = std::fs::read_to_string(&status.log_path).unwrap();
    assert!(log.contains(" stdout F hello\n") && log.contains(" stderr F oops\n"), "{log}");

    // Deaf to its signal: killed once its time is up.
    let deaf = node.run(&pod, &config, shell("deaf", "trap '' USR1; sleep 1000 & wait; wait"));
    let short = node.run(&pod, &config, shell("short", "exit 0"));
    let status = node.wait(&short, |status| status.state() == ContainerState::ContainerExited);
    assert_eq!((status.exit_code, status.reason.as_str()), (0, "Completed"));
    stop(&node, &deaf, 1);
    assert_eq!(node.status(&deaf).exit_code, 137);

    let late = ExecSyncRequest {
        container_id: node.run(&pod, &config, shell("late", "sleep 1000")),
        cmd: vec!["sleep".into(), "1000".into()],
        timeout: 1,
    };
    let error = node.block_on(node.cri().exec_sync(late)).unwrap_err();
    assert_eq!(error.code(), tonic::Code::DeadlineExceeded);

    node.block_on(node.cri().stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod.clone() }))
        .unwrap();
    let pods = node.block_on(node.cri().list_pod_sandbox(ListPodSandboxRequest { filter: None }));
    let pods = pods.unwrap().into_inner().items;
    assert_eq!((pods.len(), pods[0].state()), (1, PodSandboxState::SandboxNotready));
    node.remove_pod(&pod);
    node.remove_pod(&pod);
    node.assert_nothing_left();
}

fn pods_survive_the_servers_death() {
    let mut node = Node::start();
    node.import_busybox();
    let config = node.pod("survivor");
    let pod = node.run_pod(&config);
    let script = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done";
    let runs = node.run(&pod, &config, shell("runs", script));
    let ends = node.run(
        &pod,
        &config,
        shell("ends", "cat /tmp/go; while [ ! -e /tmp/go ]; do sleep 0.02; done; exit 4"),
    );
    let created = node.create(&pod, &config, shell("created", "exit 0"));
    let before = node.status(&runs);
    let (_, process, _) = node.exec(&runs, &["sh", "-c", "ls -di /proc/1/ns/net /proc/1"]);
    node.exec(&ends, &["sh", "-c", "(sleep 0.3; echo > /tmp/go) >/dev/null 2>&1 &"]);

    node.kill();
    // While nobody watches, one ends and the other goes on writing.
    let exit = node.root().join("containers").join(&ends).join("exit.json");
    eventually("it ends", Duration::from_secs(30), || exit.exists().then_some(()));
    let lines = || std::fs::read_to_string(&before.log_path).unwrap().lines().count();
    let at_death = lines();
    node.up();

    let after = node.status(&runs);
    assert_eq!(after.state(), ContainerState::ContainerRunning);
    assert_eq!((after.started_at, after.created_at), (before.started_at, before.created_at));
    assert_eq!(node.exec(&runs, &["sh", "-c", "ls -di /proc/1/ns/net /proc/1"]).1, process);
    node.wait(&runs, |_| lines() > at_death);
    let ended = node.status(&ends);
    assert_eq!((ended.state(), ended.exit_code), (ContainerState::ContainerExited, 4));
    // What was only prepared can still be started, and its end is heard.
    node.start_container(&created);
    let status = node.wait(&created, |status| status.state() == ContainerState::ContainerExited);
    assert_eq!(status.exit_code, 0);
    let request = ListPodSandboxRequest { filter: None };
    let pods = node.block_on(node.cri().list_pod_sandbox(request)).unwrap().into_inner().items;
    assert_eq!(pods[0].state(), PodSandboxState::SandboxReady);
    node.remove_pod(&pod);
    node.assert_nothing_left();
}

fn what_cannot_be_started_says_why() {
    let node = Node::start();
    node.import_busybox();
    let config = node.pod("failing");
    let pod = node.run_pod(&config);
    let missing = container("missing", &["/no/such/program"], NamespaceMode::Container);
    let id = node.create(&pod, &config, missing);
    let start = StartContainerRequest { container_id: id.clone() };
    let error = node.block_on(node.cri().start_container(start)).unwrap_err();
    let why = "exec: \"/no/such/program\": stat /no/such/program: no such file or directory";
    assert!(error.message().contains(why), "{error}");
    let status = node.status(&id);
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 128));
    assert_eq!(status.reason, "StartError");
    let mut unknown = shell("unknown", "exit 0");
    unknown.image = Some(ImageSpec { image: "krate.test/none:1".into(), ..Default::default() });
    let request = k8s_cri::v1::CreateContainerRequest {
        pod_sandbox_id: pod.clone(),
        config: Some(unknown),
        sandbox_config: None,
    };
    let error = node.block_on(node.cri().create_container(request)).unwrap_err();
    assert_eq!(error.code(), tonic::Code::NotFound);
    // An exec that cannot be done leaves the container alone.
    let id = node.run(&pod, &config, shell("fine", "sleep 1000"));
    let request = ExecSyncRequest { container_id: id.clone(), cmd: vec!["/none".into()], timeout: 10 };
    let error = node.block_on(node.cri().exec_sync(request)).unwrap_err();
    assert!(error.message().contains("/none"), "{error}");
    assert_eq!(node.exec(&id, &["true"]).0, 0);
    node.remove_pod(&pod);
    node.assert_nothing_left();
}

fn a_container_out_of_memory_is_told_apart() {
    let node = Node::start();
    node.import_busybox();
    let config = node.pod("hungry");
    let pod = node.run_pod(&config);
    let mut hungry = shell("hungry", "exec tail /dev/zero");
    let limits = LinuxContainerResources { memory_limit_in_bytes: 24 << 20, ..Default::default() };
    hungry.linux.as_mut().unwrap().resources = Some(limits);
    let id = node.run(&pod, &config, hungry);
    let status = node.wait(&id, |status| status.state() == ContainerState::ContainerExited);
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
    node.remove_pod(&pod);
    node.assert_nothing_left();
}

fn processes_are_shared_when_asked() {
    let node = Node::start();
    node.import_busybox();
    let config = node.pod_with("shared", NamespaceMode::Pod);
    let pod = node.run_pod(&config);
    let sleep = ["/bin/sh", "-c", "exec sleep 4321"];
    node.run(&pod, &config, container("one", &sleep, NamespaceMode::Pod));
    let two = node.run(&pod, &config, container("two", &["sleep", "1234"], NamespaceMode::Pod));
    let (_, seen, _) = node.exec(&two, &["ps"]);
    assert!(seen.contains("sleep 4321") && seen.contains("sleep 1234"), "{seen}");
    // By killing the first process of neither: what each container started ends with it.
    stop(&node, &two, 0);
    node.remove_pod(&pod);
    node.assert_nothing_left();
}

fn changes_are_told_as_they_happen() {
    let node = Node::start();
    node.import_busybox();
    let mut events =
        node.block_on(node.cri().get_container_events(GetEventsRequest {})).unwrap().into_inner();
    let config = node.pod("told");
    let pod = node.run_pod(&config);
    let id = node.run(&pod, &config, shell("main", "exit 2"));
    node.wait(&id, |status| status.state() == ContainerState::ContainerExited);
    node.remove_pod(&pod);
    let mut told = Vec::new();
    node.block_on(async {
        while told.last() != Some(&(pod.clone(), ContainerEventType::ContainerDeletedEvent)) {
            let event = events.next().await.unwrap().unwrap();
            let kind = event.container_event_type();
            if kind == ContainerEventType::ContainerStoppedEvent && event.container_id == id {
                assert_eq!(event.containers_statuses[0].exit_code, 2);
                assert_eq!(event.pod_sandbox_status.unwrap().id, pod);
            }
            told.push((event.container_id, kind));
        }
    });
    let of = |wanted: &str| -> Vec<ContainerEventType> {
        told.iter().filter(|(id, _)| id == wanted).map(|(_, kind)| *kind).collect()
    };
    let all = [
        ContainerEventType::ContainerCreatedEvent,
        ContainerEventType::ContainerStartedEvent,
        ContainerEventType::ContainerStoppedEvent,
        ContainerEventType::ContainerDeletedEvent,
    ];
    assert_eq!(of(&pod), all);
    assert_eq!(of(&id), all);
    node.assert_nothing_left();
}

fn users_and_rights_are_as_asked() {
    let node = Node::start();
    node.import_busybox();
    let config = node.pod("rights");
    let pod = node.run_pod(&config);
    let mut limited = shell("limited", "sleep 1000");
    let directory = node.base.path().join("volume");
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("file"), "mounted").unwrap();
    limited.mounts.push(k8s_cri::v1::Mount {
        container_path: "/data/volume".into(),
        host_path: directory.display().to_string(),
        readonly: true,
        ..Default::default()
    });
    let security = limited.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    security.run_as_user = Some(Int64Value { value: 101 });
    security.supplemental_groups = vec![7];
    security.readonly_rootfs = true;
    security.no_new_privs = true;
    let id = node.run(&pod, &config, limited);
    let (_, who, _) = node.exec(&id, &["id"]);
    assert!(
        who.starts_with("uid=101(web) gid=102(web)") && who.contains('7') && who.contains("200"),
        "{who}"
    );
    let (code, ..) = node.exec(&id, &["sh", "-c", "echo > /tmp/x"]);
    assert_ne!(code, 0);
    assert_eq!(node.exec(&id, &["cat", "/data/volume/file"]).1, "mounted");
    let (_, status, _) = node.exec(&id, &["cat", "/proc/1/status"]);
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    // Nothing of how the shim hears signals is left: neither in the first process nor in a further one.
    let (_, further, _) = node.exec(&id, &["cat", "/proc/self/status"]);
    for status in [status, further] {
        assert!(status.contains("SigBlk:\t0000000000000000\n"), "{status}");
        let ignored =
            status.lines().find_map(|line| line.strip_prefix("SigIgn:\t")).expect("what is ignored");
        // A shell has SIGQUIT ignored by itself.
        let pipe = 1 << (nix::sys::signal::Signal::SIGPIPE as u64 - 1);
        assert_eq!(u64::from_str_radix(ignored, 16).expect("a mask") & pipe, 0, "{status}");
    }
    let mut root = shell("root", "sleep 1000");
    root.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true;
    let id = node.run(&pod, &config, root);
    assert_eq!(node.exec(&id, &["sh", "-c", "echo > /data && head -c 1 /dev/zero | id -u"]).1, "0\n");
    node.remove_pod(&pod);
    node.assert_nothing_left();
}

fn a_dead_shim_ends_its_pod() {
    let node = Node::start();
    node.import_busybox();
    let config = node.pod("orphaned");
    let pod = node.run_pod(&config);
    let id = node.run(&pod, &config, shell("main", "sleep 1000"));
    for shim in node.shims() {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    let status = node.wait(&id, |status| status.state() == ContainerState::ContainerExited);
    assert_eq!((status.exit_code, status.reason.as_str()), (255, "Unknown"));
    node.remove_pod(&pod);
    node.assert_nothing_left();
}

/// Those too that were started in it later, of which nobody has heard yet.
fn shared_processes_end_with_their_pod() {
    const PATIENCE: Duration = Duration::from_mins(1);
    let node = Node::start();
    node.import_busybox();
    for round in 0..8 {
        let config = node.pod_with(&format!("shared-{round}"), NamespaceMode::Pod);
        let pod = node.run_pod(&config);
        let id = node.run(&pod, &config, container("main", &["sleep", "1000"], NamespaceMode::Pod));
        let looking: Vec<_> = (0..8)
            .map(|_| {
                let (mut cri, cmd) = (node.cri(), vec!["sleep".to_owned(), "1000".to_owned()]);
                let request = ExecSyncRequest { container_id: id.clone(), cmd, timeout: 0 };
                node.spawn(async move { cri.exec_sync(request).await.map(drop) })
            })
            .collect();
        node.wait(&id, |_| node.exec(&id, &["ps"]).1.matches("sleep 1000").count() > looking.len());
        let request = StopPodSandboxRequest { pod_sandbox_id: pod.clone() };
        let stopped = node.block_on(async {
            let mut cri = node.cri();
            tokio::time::timeout(PATIENCE, cri.stop_pod_sandbox(request)).await
        });
        stopped.expect("it is answered").unwrap();
        for looking in looking {
            let _ = node.block_on(looking);
        }
        node.remove_pod(&pod);
    }
    node.assert_nothing_left();
}

fn a_dead_process_namespace_ends_its_pod() {
    let node = Node::start();
    node.import_busybox();
    let config = node.pod_with("shared", NamespaceMode::Pod);
    let pod = node.run_pod(&config);
    let id = node.run(&pod, &config, container("main", &["sleep", "1000"], NamespaceMode::Pod));
    let name = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let first = node.shims().into_iter().find(|pid| name(pid) == "krate-pause\n").unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(first), nix::sys::signal::Signal::SIGKILL).unwrap();
    // Nothing can be started in it any more: who asked for it makes another.
    node.wait(&id, |status| status.state() == ContainerState::ContainerExited);
    node.wait(&id, |_| {
        let request = ListPodSandboxRequest { filter: None };
        let pods = node.block_on(node.cri().list_pod_sandbox(request)).unwrap().into_inner().items;
        pods[0].state() == PodSandboxState::SandboxNotready
    });
    node.remove_pod(&pod);
    node.assert_nothing_left();
}

fn logs_are_reopened_and_images_removed() {
    let node = Node::start();
    node.import_busybox();
    let config = node.pod("logging");
    let pod = node.run_pod(&config);
    let id = node.run(&pod, &config, shell("main", "while :; do echo tick; sleep 0.02; done"));
    let path = node.status(&id).log_path;
    let has = |path: &str| std::fs::read_to_string(path).is_ok_and(|log| log.contains("tick"));
    node.wait(&id, |_| has(&path));
    std::fs::rename(&path, format!("{path}.1")).unwrap();
    let request = ReopenContainerLogRequest { container_id: id.clone() };
    node.block_on(node.cri().reopen_container_log(request)).unwrap();
    node.wait(&id, |_| has(&path));

    let image = Some(ImageSpec { image: "krate.test/busybox:1".into(), ..Default::default() });
    let status = |node: &Node| {
        let request = ImageStatusRequest { image: image.clone(), verbose: false };
        node.block_on(node.images().image_status(request)).unwrap().into_inner().image
    };
    assert_eq!(status(&node).unwrap().repo_tags, ["krate.test/busybox:1"]);
    let request = k8s_cri::v1::RemoveImageRequest { image: image.clone() };
    node.block_on(node.images().remove_image(request)).unwrap();
    assert_eq!(status(&node), None);
    // The container stands on its layer all the same.
    assert_eq!(node.exec(&id, &["cat", "/etc/passwd"]).0, 0);
    let request = ListContainersRequest { filter: None };
    assert_eq!(node.block_on(node.cri().list_containers(request)).unwrap().into_inner().containers.len(), 1);
    node.remove_pod(&pod);
    node.assert_nothing_left();
}
