//! Pods of every shape come and go while `krate` and the shims of pods are killed: each pod tells in the end what became of
//! it, and nothing of any is left. A few rounds each time; `KRATE_SOAK_SECONDS` asks for more, and `KRATE_SOAK_SEED` for
//! the same again.

mod support;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use krate_testkit::eventually;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};

use support::{Cluster, image, traces};

const IMAGE: &str = "docker.io/library/busybox:latest";
/// An orderly round, and one with kills.
const ROUNDS: u32 = 2;
/// Until every pod of a round has told the truth: times of back-off are among it.
const SETTLED: Duration = Duration::from_mins(4);
/// The longest that something lives before it is killed.
const LIFE: Duration = Duration::from_secs(3);

/// What becomes of a pod that is left in peace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Succeeds,
    Fails(i64),
    /// Runs on, is ready, and answers.
    Lasts,
    /// Is ended when its time is over.
    Overdue,
    /// Never starts, for this reason.
    Waits(&'static str),
}

/// What a pod looks like: its name, what becomes of it, and its specification.
type Shape = (&'static str, End, fn() -> Value);

const SHAPES: &[Shape] = &[
    ("done", End::Succeeds, || json!({"restartPolicy": "Never", "containers": [sh("echo done")]})),
    ("failed", End::Fails(3), || json!({"restartPolicy": "Never", "containers": [sh("exit 3")]})),
    ("again", End::Succeeds, || {
        let mut main = sh("[ -e /v/tried ] || { touch /v/tried; exit 1; }");
        main["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
        json!({"restartPolicy": "OnFailure", "containers": [main], "volumes": [{"name": "v", "emptyDir": {}}]})
    }),
    ("stages", End::Succeeds, || {
        let mut sidecar = sh("trap 'exit 0' TERM; while :; do sleep 0.1; done");
        sidecar["name"] = json!("beside");
        sidecar["restartPolicy"] = json!("Always");
        let mut first = sh("sleep 0.2");
        first["name"] = json!("first");
        json!({"restartPolicy": "Never", "initContainers": [first, sidecar], "containers": [sh("sleep 0.5")]})
    }),
    ("two", End::Lasts, || {
        let mut other = sh("while :; do echo line; sleep 0.2; done");
        other["name"] = json!("other");
        json!({"containers": [probed(sh(SLEEP)), other], "shareProcessNamespace": true})
    }),
    ("deaf", End::Lasts, || json!({"containers": [probed(sh("trap '' TERM; while :; do sleep 0.1; done"))]})),
    ("hooked", End::Lasts, || {
        let mut main = probed(sh(SLEEP));
        main["lifecycle"] =
            json!({"postStart": {"exec": {"command": ["true"]}}, "preStop": {"sleep": {"seconds": 1}}});
        json!({"containers": [main]})
    }),
    ("users", End::Lasts, || json!({"hostUsers": false, "containers": [probed(sh(SLEEP))]})),
    ("host", End::Lasts, || json!({"hostNetwork": true, "containers": [probed(sh(SLEEP))]})),
    ("late", End::Overdue, || json!({"activeDeadlineSeconds": 3, "containers": [sh(SLEEP)]})),
    ("nowhere", End::Waits("ErrImageNeverPull"), || {
        let mut main = sh("true");
        main["image"] = json!("docker.io/library/nowhere:latest");
        json!({"containers": [main]})
    }),
];

const SLEEP: &str = "exec sleep 100000";

fn sh(script: &str) -> Value {
    json!({"name": "main", "image": IMAGE, "imagePullPolicy": "Never", "command": ["/bin/sh", "-c", script]})
}

fn probed(mut container: Value) -> Value {
    container["readinessProbe"] = json!({"periodSeconds": 1, "exec": {"command": ["true"]}});
    container
}

fn pod((name, _, spec): &Shape) -> Value {
    let mut spec = spec();
    spec["terminationGracePeriodSeconds"] = json!(1);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
}

/// Whether a pod tells what became of it. One whose shim was killed may have failed by that, where it is not started again.
fn is_true(cluster: &Cluster, (name, end, _): &Shape, pod: &Value, shims_killed: bool) -> bool {
    let status = &pod["status"];
    let phase = status["phase"].as_str().unwrap_or_default();
    let of = |list: &str| status[list].as_array().map(Vec::as_slice).unwrap_or_default();
    let containers = of("containerStatuses");
    let code = |container: &Value| container["state"]["terminated"]["exitCode"].as_i64();
    let never = pod["spec"]["restartPolicy"] == "Never";
    match end {
        End::Succeeds | End::Fails(_) if shims_killed && never && phase == "Failed" => {
            let mut all = containers.iter().chain(of("initContainerStatuses"));
            // Cut short, or never begun.
            all.any(|container| code(container) != Some(0))
        }
        End::Succeeds => {
            phase == "Succeeded" && containers.iter().all(|container| code(container) == Some(0))
        }
        End::Fails(wanted) => phase == "Failed" && containers.iter().all(|c| code(c) == Some(*wanted)),
        End::Overdue => phase == "Failed" && status["reason"] == "DeadlineExceeded",
        End::Waits(reason) => {
            phase == "Pending" && containers.iter().all(|c| c["state"]["waiting"]["reason"] == **reason)
        }
        End::Lasts => {
            let conditions = status["conditions"].as_array().into_iter().flatten();
            let ready = conditions.filter(|c| c["type"] == "Ready").all(|c| c["status"] == "True");
            let started = containers.iter().all(|c| c["state"]["running"].is_object());
            phase == "Running" && ready && started && answers(cluster, name)
        }
    }
}

fn answers(cluster: &Cluster, pod: &str) -> bool {
    let said = cluster.kubectl_command(&format!("exec {pod} -c main -- echo here")).output();
    said.expect("kubectl runs").stdout == b"here\n"
}

/// Waits until each pod of a round tells the truth.
fn settle(cluster: &Cluster, shims_killed: bool) {
    let mut open: Vec<&Shape> = SHAPES.iter().collect();
    eventually("each pod tells what became of it", SETTLED, || {
        let pods = cluster.json("get pods -o json");
        let were = open.len();
        open.retain(|shape| {
            let found = pods["items"].as_array().into_iter().flatten();
            let mut found = found.filter(|pod| pod["metadata"]["name"] == shape.0);
            !found.next().is_some_and(|pod| is_true(cluster, shape, pod, shims_killed))
        });
        if open.len() < were {
            eprintln!("yet to tell: {:?}", open.iter().map(|shape| (shape.0, shape.1)).collect::<Vec<_>>());
        }
        open.is_empty().then_some(())
    });
    if !shims_killed {
        assert_eq!(cluster.kubectl("logs done"), "done\n");
    }
}

/// The processes that watch over the pods of a cluster: what they say goes into files of its directory.
fn shims(dir: &Path) -> Vec<Pid> {
    let processes = fs::read_dir("/proc").expect("listed").flatten();
    let of = |pid: &i32| {
        let said = fs::read_link(format!("/proc/{pid}/fd/2")).unwrap_or_default();
        said.starts_with(dir) && said.ends_with("shim.log")
    };
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(of).map(Pid::from_raw).collect()
}

#[test]
fn pods_tell_the_truth_whatever_is_killed() {
    let (true, Some(kubectl), Some(busybox)) =
        (krate_testkit::available(), support::kubectl(), image::busybox())
    else {
        return;
    };
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let until = Instant::now() + Duration::from_secs(number("KRATE_SOAK_SECONDS").unwrap_or_default());
    let seed = number("KRATE_SOAK_SEED").unwrap_or_else(rand::random);
    eprintln!("KRATE_SOAK_SEED={seed}");
    let mut dice = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::start(kubectl, &[]);
    cluster.import(&busybox, IMAGE, IMAGE);
    cluster.takes_pods("default");
    let before = traces::of(&cluster.host, &cluster.dir);
    let (mut killed, mut round) = ((0, 0), 0);
    while round < ROUNDS || Instant::now() < until {
        cluster.create(&SHAPES.iter().map(pod).collect::<Vec<_>>());
        let (kills_krate, kills_shims) = (round > 0 && dice.random(), round > 0 && dice.random());
        if kills_shims {
            std::thread::sleep(LIFE.mul_f64(dice.random()));
            for shim in shims(&cluster.dir).into_iter().filter(|_| dice.random()) {
                // It may have ended by now: nobody else has its number so soon.
                killed.0 += u32::from(kill(shim, Signal::SIGKILL).is_ok());
            }
        }
        if kills_krate || round == 1 {
            std::thread::sleep(LIFE.mul_f64(dice.random()));
            cluster.kill();
            cluster.up();
            killed.1 += 1;
        }
        settle(&cluster, kills_shims);
        cluster.kubectl("delete pods --all --timeout=240s");
        eventually("nothing of the pods is left", SETTLED, || {
            let left: Vec<String> =
                traces::of(&cluster.host, &cluster.dir).difference(&before).cloned().collect();
            let directories = fs::read_dir(cluster.dir.join("kubelet/pods")).map_or(0, Iterator::count);
            if !left.is_empty() || directories > 0 {
                eprintln!("still there: {directories} directories, {left:#?}");
            }
            (left.is_empty() && directories == 0).then_some(())
        });
        round += 1;
        eprintln!(
            "{round} rounds, {} pods; killed: {} shims, {} times krate",
            round as usize * SHAPES.len(),
            killed.0,
            killed.1
        );
    }
}
