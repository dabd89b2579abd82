//! Pods and containers, from their making to their end.

use k8s_cri::v1::ContainerState;

use super::fixture::{Node, shell};

type Test = (&'static str, fn());

pub const TESTS: &[Test] = &[("a_pod_lives_and_leaves_nothing", a_pod_lives_and_leaves_nothing)];

fn a_pod_lives_and_leaves_nothing() {
    let node = Node::start();
    node.import_busybox();
    let config = node.pod("life");
    let t = std::time::Instant::now();
    let pod = node.run_pod(&config);
    eprintln!("run_pod {:?}", t.elapsed());
    let t = std::time::Instant::now();
    let id = node.run(&pod, &config, shell("main", "echo hello; echo oops >&2; trap 'exit 7' USR1; while :; do sleep 0.1; done"));
    eprintln!("run container {:?}", t.elapsed());
    assert_eq!(node.status(&id).state(), ContainerState::ContainerRunning);
    let t = std::time::Instant::now();
    assert_eq!(node.exec(&id, &["/bin/sh", "-c", "echo $IMAGE $HOSTNAME; pwd; exit 3"]), (3, "yes life\n/work\n".into(), String::new()));
    eprintln!("exec {:?}", t.elapsed());
    let stop = k8s_cri::v1::StopContainerRequest { container_id: id.clone(), timeout: 30 };
    node.block_on(node.cri().stop_container(stop)).unwrap();
    let status = node.status(&id);
    assert_eq!((status.state(), status.exit_code, status.reason.as_str()), (ContainerState::ContainerExited, 7, "Error"));
    let log = std::fs::read_to_string(&status.log_path).unwrap();
    assert!(log.contains(" stdout F hello\n") && log.contains(" stderr F oops\n"), "{log}");
    node.remove_pod(&pod);
    node.assert_nothing_left();
}
