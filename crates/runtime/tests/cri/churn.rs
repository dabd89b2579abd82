//! Pods that come and go while their server and their shims are killed: nothing of them may stay. A few rounds each time;
//! `KRATE_CHURN_ROUNDS` asks for more, and `KRATE_CHURN_SEED` for the same again.

use std::pin::Pin;
use std::time::Duration;

use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    ContainerConfig, CreateContainerRequest, ExecSyncRequest, ListPodSandboxRequest, NamespaceMode,
    PodSandboxConfig, RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest,
    StopContainerRequest,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tonic::transport::Channel;

use super::fixture::{Node, of_users, own_users, shell};

pub const TESTS: &[(&str, fn())] = &[
    ("nothing_leaks_when_servers_and_shims_are_killed", churn),
    ("a_shim_takes_little_memory", shim_memory),
];

const ROUNDS: u64 = 6;
/// Pods of a round, all at the same time.
const PODS: usize = 6;
/// The longest life of a server or of a pod before something is done to it.
const LIFE: Duration = Duration::from_millis(300);

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Scripts of containers of every shape: that end at once, fail, live, are deaf, or leave children behind.
const SCRIPTS: [&str; 6] = [
    "exit 0",
    "echo said; exit 3",
    "sleep 1000",
    "trap '' USR1 TERM; while :; do sleep 0.05; done",
    "(sleep 1000 &) ; (sleep 1000 &) ; exec sleep 1000",
    "while :; do echo line; sleep 0.01; done",
];

/// How long one call may take, whatever is killed meanwhile.
const ANSWERED: Duration = Duration::from_mins(1);

/// The answer to a call, which comes in any case, be it that the server is gone.
fn answer<'a, T: 'a>(
    what: String,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>> + Send + 'a,
) -> Pin<Box<dyn Future<Output = Result<T, tonic::Status>> + Send + 'a>> {
    Box::pin(async move {
        let answered = tokio::time::timeout(ANSWERED, call).await;
        Ok(answered.unwrap_or_else(|_| panic!("{what} is not answered"))?.into_inner())
    })
}

/// What is done with one pod; it may break off anywhere, for the server may be gone.
struct Life {
    config: PodSandboxConfig,
    containers: Vec<ContainerConfig>,
    /// Whether it is taken down in an orderly way.
    ends: bool,
    pause: Duration,
}

async fn live(mut cri: RuntimeServiceClient<Channel>, life: Life) -> Result<(), tonic::Status> {
    let request = RunPodSandboxRequest { config: Some(life.config.clone()), runtime_handler: String::new() };
    let name = life.config.metadata.clone().unwrap_or_default().name;
    let pod = answer(format!("RunPodSandbox of {name}"), cri.run_pod_sandbox(request)).await?.pod_sandbox_id;
    let mut ids = Vec::new();
    for config in life.containers {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.clone(),
            config: Some(config),
            sandbox_config: Some(life.config.clone()),
        };
        let created = answer(format!("CreateContainer in {pod}"), cri.create_container(request)).await?;
        let id = created.container_id;
        let request = StartContainerRequest { container_id: id.clone() };
        answer(format!("StartContainer of {id} in {pod}"), cri.start_container(request)).await?;
        let cmd = vec!["/bin/sh".to_owned(), "-c".to_owned(), "echo hi; sleep 0.02".to_owned()];
        // It may have ended already.
        let request = ExecSyncRequest { container_id: id.clone(), cmd, timeout: 1 };
        let _ = answer(format!("ExecSync in {id} of {pod}"), cri.exec_sync(request)).await;
        ids.push(id);
    }
    tokio::time::sleep(life.pause).await;
    if life.ends {
        for container_id in ids {
            let what = format!("StopContainer of {container_id} in {pod}");
            answer(what, cri.stop_container(StopContainerRequest { container_id, timeout: 0 })).await?;
        }
        let what = format!("RemovePodSandbox of {pod}");
        answer(what, cri.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: pod })).await?;
    }
    Ok(())
}

fn churn() {
    let seed = number("KRATE_CHURN_SEED").unwrap_or_else(rand::random);
    eprintln!("KRATE_CHURN_SEED={seed}");
    let mut dice = StdRng::seed_from_u64(seed);
    let mut node = Node::start();
    node.import_busybox();
    // The first round is an orderly one, after which a server has what it goes on to have.
    for round in 0..=number("KRATE_CHURN_ROUNDS").unwrap_or(ROUNDS) {
        let (kills_server, kills_shims) = (round > 0 && dice.random(), round > 0 && dice.random());
        let lives: Vec<_> = (0..PODS)
            .map(|pod| {
                let shared = if dice.random() { NamespaceMode::Pod } else { NamespaceMode::Container };
                let mut config = node.pod_with(&format!("p{round}-{pod}"), shared);
                let mut containers: Vec<_> = (0..dice.random_range(0..3))
                    .map(|n| shell(&format!("c{n}"), SCRIPTS[dice.random_range(0..SCRIPTS.len())]))
                    .collect();
                if dice.random() {
                    let first = 65536 * (1 + pod as u32);
                    own_users(&mut config, first);
                    containers = containers.into_iter().map(|c| of_users(c, first)).collect();
                }
                let pause = LIFE.mul_f64(dice.random());
                let life = Life { config, containers, ends: dice.random(), pause };
                node.spawn(live(node.cri(), life))
            })
            .collect();
        if kills_shims {
            std::thread::sleep(LIFE.mul_f64(dice.random()));
            for shim in node.shims().into_iter().filter(|_| dice.random()) {
                // Whichever it is by now: nobody of ours has another's number so soon.
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(shim),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
        }
        if kills_server {
            std::thread::sleep(LIFE.mul_f64(dice.random()));
            node.kill();
        }
        for life in lives {
            // Half of them break off; what counts is what is left.
            let ended = node.block_on(life);
            assert!(!ended.is_err_and(|error| error.is_panic()), "round {round}: a call is not answered");
        }
        if kills_server {
            node.up();
        }
        let pods = node.block_on(node.cri().list_pod_sandbox(ListPodSandboxRequest { filter: None }));
        for pod in pods.unwrap().into_inner().items {
            node.remove_pod(&pod.id);
        }
        node.assert_nothing_left();
        assert!(node.descriptors() < 64, "round {round}: {:?} descriptors are open", node.descriptors());
        assert_eq!(node.children(), 1, "round {round}: the server has children beside the zygote");
    }
}

/// What a pod costs beside its own processes: memory that is the shim's alone, in bytes.
fn shim_memory() {
    const FIRST: u32 = 40 * 65536;
    let node = Node::start();
    node.import_busybox();
    for own in [false, true] {
        let mut config = node.pod("small");
        let mut containers =
            [shell("main", "while :; do echo line; sleep 0.01; done"), shell("other", "sleep 1000")];
        if own {
            own_users(&mut config, FIRST);
            containers = containers.map(|container| of_users(container, FIRST));
        }
        let pod = node.run_pod(&config);
        for container in containers {
            node.run(&pod, &config, container);
        }
        let [shim] = node.shims()[..] else { panic!("not one shim: {:?}", node.shims()) };
        let rollup = std::fs::read_to_string(format!("/proc/{shim}/smaps_rollup")).unwrap();
        let private: u64 = rollup
            .lines()
            .filter(|line| line.starts_with("Private_"))
            .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
            .sum();
        eprintln!("a shim with two containers has {private} KiB of its own; users of its own: {own}");
        assert!(private < 2048, "{rollup}");
        node.remove_pod(&pod);
    }
}
