//! The seam between kubelet and container runtime is CRI and nothing else: the same kubelet runs its pods on Debian's
//! containerd and runc, connected by CNI plugins to the same network.

mod support;

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use krate_testkit::{Child, Host, eventually};
use serde_json::Value;

use support::{Cluster, image};

const SOON: Duration = Duration::from_mins(2);
const CONTAINERD: &str = "/usr/bin/containerd";
const PLUGINS: &str = "/usr/lib/cni";
const IMAGE: &str = "docker.io/library/busybox:latest";
const PAUSE: &str = "krate.test/pause:1";

/// containerd with directories and sockets of its own below `dir`, on the test's host.
struct Containerd {
    socket: String,
    process: Child,
}

impl Containerd {
    fn start(host: &Host, dir: &Path) -> Self {
        let at = |name: &str| dir.join(name).display().to_string();
        let socket = at("containerd.sock");
        let config = format!(
            r#"
version = 2
root = "{root}"
state = "{state}"
[grpc]
  address = "{socket}"
[ttrpc]
  address = "{socket}.ttrpc"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{PLUGINS}"
    conf_dir = "{cni}"
"#,
            root = at("containerd"),
            state = at("containerd-state"),
            cni = at("cni"),
        );
        std::fs::write(dir.join("containerd.toml"), config).expect("written");
        let log = std::fs::File::create(dir.join("containerd.log")).expect("a log");
        let mut command = host.command(CONTAINERD);
        command.arg("--config").arg(dir.join("containerd.toml"));
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        let process = Child::spawn(&mut command).expect("containerd starts");
        let containerd = Self { socket, process };
        eventually("containerd answers", SOON, || {
            let version = containerd.ctr(host, &["version"]).output().expect("ctr runs");
            version.status.success().then_some(())
        });
        containerd
    }

    fn ctr(&self, host: &Host, args: &[&str]) -> std::process::Command {
        let mut command = host.command("ctr");
        command.args(["--address", &self.socket, "--namespace", "k8s.io"]).args(args);
        command
    }

    fn import(&self, host: &Host, file: &Path) {
        let file = file.display().to_string();
        let out = self.ctr(host, &["images", "import", &file]).output().expect("ctr runs");
        assert!(out.status.success(), "{out:?}");
    }
}

/// The cluster ends first: its pods go while there is a runtime to take them away.
struct Both {
    cluster: Cluster,
    containerd: Containerd,
}

fn rolled_out(cluster: &Cluster) {
    let said = cluster.kubectl("-n hello rollout status deploy/hello --timeout=180s");
    assert!(said.contains("successfully rolled out"), "{said}");
}

#[test]
fn the_same_kubelet_runs_pods_on_containerd() {
    let (true, Some(kubectl), Some(busybox)) =
        (krate_testkit::available(), support::kubectl(), image::busybox())
    else {
        return;
    };
    if !Path::new(CONTAINERD).exists() || !Path::new(PLUGINS).is_dir() {
        eprintln!("SKIPPED: no containerd; apt-get install containerd runc containernetworking-plugins");
        return;
    }
    let cluster = Cluster::prepare(kubectl, &[]);
    let dir = cluster.dir.clone();
    std::fs::create_dir_all(&dir).expect("a directory");
    let containerd = Containerd::start(&cluster.host, &dir);
    let mut both = Both { cluster, containerd };
    let Both { cluster, containerd } = &mut both;
    let pause = dir.join("pause.tar");
    image::write_running(&busybox, PAUSE, PAUSE, &["/bin/sleep", "1000000"], &pause);
    let latest = dir.join("latest.tar");
    image::write(&busybox, IMAGE, IMAGE, &latest);
    containerd.import(&cluster.host, &pause);
    containerd.import(&cluster.host, &latest);

    cluster.args = vec![
        format!("--container-runtime-endpoint=unix://{}", containerd.socket),
        format!("--cni-conf-dir={}", dir.join("cni").display()),
    ];
    cluster.up();
    let runtime =
        cluster.kubectl("get nodes -o jsonpath={.items[0].status.nodeInfo.containerRuntimeVersion}");
    assert!(runtime.starts_with("containerd://"), "{runtime}");

    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/hello.yaml");
    cluster.kubectl(&format!("apply -f {}", example.display()));
    rolled_out(cluster);
    let ip = cluster.kubectl("-n hello get svc hello -o jsonpath={.spec.clusterIP}");
    let url = format!("http://{ip}/");
    let page = eventually("the Service answers", SOON, || cluster.curl(&url).ok());
    assert!(page.starts_with("Hello from Krate, pod hello-"), "{page}");
    let page =
        cluster.kubectl("-n hello exec deploy/hello -- wget -qO- http://hello.hello.svc.cluster.local/");
    assert!(page.starts_with("Hello from Krate, pod hello-"), "{page}");
    let logs = cluster.kubectl("-n hello logs deploy/hello");
    assert!(logs.contains("serving as hello-") && logs.contains("on port 8080"), "{logs}");

    // What runs outlives the kubelet, and is found by the next one.
    let ids = |cluster: &Cluster| {
        let list: Value = serde_json::from_str(&cluster.kubectl("-n hello get pods -o json")).expect("json");
        let items = list["items"].as_array().expect("items");
        let mut ids: Vec<String> = items
            .iter()
            .map(|pod| pod["status"]["containerStatuses"][0]["containerID"].to_string())
            .collect();
        ids.sort();
        ids
    };
    let running = ids(cluster);
    assert!(running.iter().all(|id| id.starts_with("\"containerd://")), "{running:?}");
    cluster.kill();
    cluster.up();
    rolled_out(cluster);
    assert_eq!(ids(cluster), running, "nothing was restarted or replaced");

    // An end is seen, told and mended. Whoever brings it about may not be told how his own command ended, as it ends with
    // the container: he is not waited for.
    let mut end = cluster.kubectl_command("-n hello exec deploy/hello --");
    end.args(["/bin/sh", "-c", "kill 1"]);
    let _end = Child::spawn(&mut end).expect("kubectl runs");
    eventually("the container is started again", SOON, || {
        let restarts = cluster
            .kubectl("-n hello get pods -o jsonpath={.items[*].status.containerStatuses[*].restartCount}");
        restarts.contains('1').then_some(())
    });
    rolled_out(cluster);
    cluster.kubectl("delete ns hello --timeout=120s");
    let left = containerd.ctr(&cluster.host, &["containers", "ls", "-q"]).output().expect("ctr runs");
    assert!(left.stdout.trim_ascii().is_empty(), "{left:?}");

    cluster.kubectl(&format!("apply -f {}", example.display()));
    rolled_out(cluster);
    cluster.krate_says(&["down"]);
    let left = containerd.ctr(&cluster.host, &["containers", "ls", "-q"]).output().expect("ctr runs");
    assert!(left.stdout.trim_ascii().is_empty(), "{left:?}");
    containerd.process.signal(nix::sys::signal::Signal::SIGTERM).expect("asked to end");
    containerd.process.wait_within(SOON).expect("ended");
}
