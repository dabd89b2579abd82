//! A node that joins with nothing but a bootstrap token: `krate kubelet` is given a certificate, renews it under load, and
//! serves one that was approved.

// The harness is our own, because the executable must be able to become a container runtime and its shims.
mod support;

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use krate_testkit::{Child, ControlGroup, eventually};
use libtest_mimic::{Arguments, Trial};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use support::{Cluster, image};

const KRATE: &str = env!("CARGO_BIN_EXE_krate");
const SOON: Duration = Duration::from_mins(3);
const IMAGE: &str = "docker.io/library/busybox:latest";
const NODE: &str = "worker";
const GROUP: &str = "system:bootstrappers:kubeadm:default-node-token";
const SERVING: &str = "kubernetes.io/kubelet-serving";
/// The internal command by which this executable becomes a container runtime.
const RUNTIME: &str = "__runtime";
/// How often the client certificate must have been renewed.
const RENEWALS: usize = 2;

fn main() {
    krate_runtime::reexec::dispatch();
    let args: Vec<String> = std::env::args().collect();
    if let [_, command, base] = args.as_slice()
        && command == RUNTIME
    {
        runtime(Path::new(base));
    }
    let trials = vec![Trial::test("a_node_joins_by_a_token_and_renews_what_it_shows", || {
        a_node_joins_by_a_token_and_renews_what_it_shows();
        Ok(())
    })];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

/// A container runtime until it is killed, whose pods have no network but the host's.
fn runtime(base: &Path) -> ! {
    let config = krate_runtime::Config {
        root: base.join("runtime"),
        state: base.join("runtime-state"),
        socket: base.join("cri.sock"),
        cgroup_parent: cgroup(base),
        instance: "join".to_owned(),
        streaming_address: "127.0.0.1:0".parse().expect("an address"),
        network: Arc::new(krate_runtime::Loopback),
        registries: krate_runtime::Registries::default(),
        cdi: Vec::new(),
    };
    let threads = tokio::runtime::Runtime::new().expect("threads");
    let ended = threads.block_on(krate_runtime::serve(config, CancellationToken::new(), None));
    eprintln!("the container runtime has ended: {ended:?}");
    std::process::exit(1);
}

/// A control group of this test alone.
fn cgroup(base: &Path) -> String {
    format!("/krate-join-{}", support::image::sha256(base.as_os_str().as_encoded_bytes()).split_at(6).0)
}

/// A machine that is to be a node: its files, its container runtime and its kubelet.
struct Machine {
    base: PathBuf,
    runtime: Child,
    kubelet: Option<Child>,
}

impl Machine {
    fn start(cluster: &Cluster, busybox: &Path) -> Self {
        let base = cluster.dir.join("machine");
        std::fs::create_dir_all(&base).expect("a directory");
        let archive = base.join("image.tar");
        image::write(busybox, IMAGE, "latest", &archive);
        let mut command = cluster.host.command("/proc/self/exe");
        command.arg(RUNTIME).arg(&base).stdin(Stdio::null());
        let runtime = Child::spawn(&mut command).expect("the runtime starts");
        let socket = base.join("cri.sock");
        eventually("the runtime listens", SOON, || socket.exists().then_some(()));
        krate_runtime::image::import(&base.join("runtime"), &[archive], &|_| ()).expect("imported");
        Machine { base, runtime, kubelet: None }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.base.join(name)
    }

    /// Starts the kubelet with what a machine is given to join.
    fn join(&mut self, cluster: &Cluster) {
        let configuration = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "rotateCertificates": true, "serverTLSBootstrap": true,
            "authentication": {"x509": {"clientCAFile": cluster.dir.join("pki/ca.crt")}},
            "containerRuntimeEndpoint": format!("unix://{}", self.at("cri.sock").display()),
            "podLogsDir": self.at("logs"), "cgroupRoot": cgroup(&self.base),
            "failSwapOn": false, "healthzPort": 0, "evictionHard": {}, "imageGCHighThresholdPercent": 100,
            "nodeStatusUpdateFrequency": "5s"});
        std::fs::write(self.at("kubelet.json"), configuration.to_string()).expect("written");
        let mut command = self.kubelet(cluster, NODE, "kubelet");
        command.arg("--config").arg(self.at("kubelet.json"));
        self.kubelet = Some(Child::spawn(&mut command).expect("the kubelet starts"));
    }

    /// A kubelet with directories of its own, which may join as this node.
    fn kubelet(&self, cluster: &Cluster, node: &str, dir: &str) -> Command {
        let own = self.at(dir);
        std::fs::create_dir_all(&own).expect("a directory");
        let flag = |name: &str, path: PathBuf| format!("--{name}={}", path.display());
        let log = std::fs::OpenOptions::new().create(true).append(true).open(own.join("log")).expect("a log");
        let mut command = cluster.host.command(KRATE);
        command
            .arg("kubelet")
            .arg(flag("kubeconfig", own.join("kubeconfig")))
            .arg(flag("bootstrap-kubeconfig", self.at("bootstrap.kubeconfig")))
            .arg(flag("cert-dir", own.join("pki")))
            .arg(flag("root-dir", own.join("root")))
            .arg(format!("--hostname-override={node}"))
            .arg(format!("--node-ip={}", cluster.host.address()))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log);
        command
    }

    /// Writes how the cluster is reached with a token.
    fn give_token(&self, cluster: &Cluster) {
        let authority = cluster.dir.join("pki/ca.crt");
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "k", "cluster": {
                "server": "https://127.0.0.1:6443", "certificate-authority": authority}}],
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "users": [{"name": "u", "user": {"token": "abcdef.0123456789abcdef"}}]});
        std::fs::write(self.at("bootstrap.kubeconfig"), kubeconfig.to_string()).expect("written");
    }

    /// The file of the client certificate that is in use.
    fn identity(&self) -> io::Result<PathBuf> {
        std::fs::read_link(self.at("kubelet/pki/kubelet-client-current.pem"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for of in ["kubelet", "other"] {
                let log = std::fs::read_to_string(self.base.join(of).join("log")).unwrap_or_default();
                eprintln!("{of}:\n{log}");
            }
        }
        drop(self.kubelet.take());
        let _ = self.runtime.signal(Signal::SIGKILL);
        let _ = self.runtime.wait_within(SOON);
        ControlGroup::new(&cgroup(&self.base)).clear();
    }
}

/// What kubeadm lets nodes do that join by a token, and a token.
fn let_nodes_join(cluster: &Cluster) {
    let binding = |name: &str, role: &str, group: &str| {
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": group}]})
    };
    let of_requests = |name: &str| format!("system:certificates.k8s.io:certificatesigningrequests:{name}");
    let token = json!({"apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": "bootstrap-token-abcdef", "namespace": "kube-system"},
        "stringData": {"token-id": "abcdef", "token-secret": "0123456789abcdef",
            "usage-bootstrap-authentication": "true", "auth-extra-groups": GROUP}});
    cluster.create(&[
        binding("kubeadm:kubelet-bootstrap", "system:node-bootstrapper", GROUP),
        binding("kubeadm:node-autoapprove-bootstrap", &of_requests("nodeclient"), GROUP),
        binding(
            "kubeadm:node-autoapprove-certificate-rotation",
            &of_requests("selfnodeclient"),
            "system:nodes",
        ),
        token,
    ]);
}

/// Approves what waits for it of the certificates that are served.
fn approve(cluster: &Cluster) {
    let all = cluster.json("get csr -o json");
    let is_open = |csr: &Value| csr["status"]["conditions"].as_array().is_none_or(Vec::is_empty);
    let waits = |csr: &&Value| csr["spec"]["signerName"] == SERVING && is_open(csr);
    for csr in all["items"].as_array().into_iter().flatten().filter(waits) {
        let name = csr["metadata"]["name"].as_str().expect("a name");
        assert_eq!(csr["spec"]["username"], format!("system:node:{NODE}"), "{csr:#}");
        cluster.kubectl(&format!("certificate approve {name}"));
    }
}

fn pod(name: &str, command: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
        "spec": {"nodeName": NODE, "hostNetwork": true, "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "main", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
                "command": ["sh", "-c", command]}]}})
}

fn runs(cluster: &Cluster, name: &str) {
    eventually(&format!("{name} runs"), SOON, || {
        let pod = cluster.json(&format!("get pod {name} -o json"));
        (pod["status"]["phase"] == "Running").then_some(())
    });
}

/// The condition Ready of the node.
fn ready(cluster: &Cluster) -> Option<Value> {
    let out = cluster.kubectl_command(&format!("get node {NODE} -o json")).output().expect("kubectl runs");
    let node: Value = serde_json::from_slice(&out.stdout).ok()?;
    let conditions = node["status"]["conditions"].as_array()?.clone();
    conditions.into_iter().find(|c| c["type"] == "Ready" && c["status"] == "True")
}

fn a_node_joins_by_a_token_and_renews_what_it_shows() {
    let (true, Some(kubectl), Some(busybox)) =
        (krate_testkit::available(), support::kubectl(), image::busybox())
    else {
        return;
    };
    // Dated back by five minutes, a certificate is to be renewed within a minute of being issued, or at once.
    let mut cluster = Cluster::prepare(kubectl, &["--no-node", "--cluster-signing-duration=100s"]);
    let authority = format!("kubelet-certificate-authority={}", cluster.dir.join("pki/ca.crt").display());
    for flag in ["enable-bootstrap-token-auth=true", authority.as_str()] {
        cluster.args.extend(["--kube-apiserver-arg".to_owned(), flag.to_owned()]);
    }
    cluster.up();
    let_nodes_join(&cluster);
    let mut machine = Machine::start(&cluster, &busybox);
    machine.give_token(&cluster);
    machine.join(&cluster);

    eventually("the node is ready", SOON, || ready(&cluster));
    assert!(machine.identity().expect("a link").starts_with(machine.at("kubelet/pki")));
    let written = std::fs::read_to_string(machine.at("kubelet/kubeconfig")).expect("written");
    assert!(written.contains("kubelet-client-current.pem") && !written.contains("abcdef"), "{written}");
    cluster.takes_pods("default");
    cluster.create(&[pod("first", "echo hello; sleep 1000")]);
    runs(&cluster, "first");

    // Nobody has approved what it is to serve yet.
    let logs = || cluster.kubectl_command("logs first").output().expect("kubectl runs");
    let refused = logs();
    assert!(!refused.status.success(), "{refused:?}");
    eventually("the log is read over a connection that is verified", SOON, || {
        approve(&cluster);
        let out = logs();
        out.status.success().then(|| assert_eq!(String::from_utf8_lossy(&out.stdout), "hello\n"))
    });

    renews_under_load(&cluster, &machine);
    waits_for_its_first(&cluster, &machine);

    // Whoever has a certificate needs no token.
    cluster.kubectl("-n kube-system delete secret bootstrap-token-abcdef");
    let mut kubelet = machine.kubelet.take().expect("it runs");
    kubelet.signal(Signal::SIGKILL).expect("killed");
    kubelet.wait_within(SOON).expect("gone");
    machine.join(&cluster);
    cluster.create(&[pod("last", "sleep 1000")]);
    runs(&cluster, "last");
    cluster.kubectl("delete pods --all --timeout=120s");
}

/// While pods come and go, the client certificate is renewed, and nothing is asked in vain.
fn renews_under_load(cluster: &Cluster, machine: &Machine) {
    let since = ready(cluster).expect("ready")["lastTransitionTime"].clone();
    let (mut seen, mut number, end) =
        (vec![machine.identity().expect("a link")], 0, Instant::now() + SOON * 2);
    while seen.len() <= RENEWALS {
        assert!(Instant::now() < end, "{seen:?}");
        approve(cluster);
        let name = format!("load-{number}");
        cluster.create(&[pod(&name, "sleep 1000")]);
        runs(cluster, &name);
        cluster.kubectl(&format!("delete pod {name} --timeout=120s"));
        number += 1;
        let newest = machine.identity().expect("a link");
        if seen.last() != Some(&newest) {
            seen.push(newest);
        }
    }
    assert_eq!(ready(cluster).expect("ready")["lastTransitionTime"], since, "it was ready throughout");
    approve(cluster);
    let metrics = eventually("figures are told", SOON, || {
        approve(cluster);
        let path = format!("/api/v1/nodes/{NODE}/proxy/metrics");
        let out = cluster.kubectl_command(&format!("get --raw {path}")).output().expect("kubectl runs");
        out.status.success().then(|| String::from_utf8_lossy(&out.stdout).into_owned())
    });
    let value = |name: &str| -> f64 {
        let line = metrics.lines().find(|line| line.starts_with(name) && !line.starts_with('#'));
        let value = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
        value.unwrap_or_else(|| panic!("{name}: {metrics}"))
    };
    assert!((1.0..=100.0).contains(&value("kubelet_certificate_manager_client_ttl_seconds")));
    assert!((1.0..=100.0).contains(&value("kubelet_certificate_manager_server_ttl_seconds")));
    assert!(value("kubelet_certificate_manager_client_expiration_renew_errors") < 1.0);
    let unknown = |line: &&str| {
        line.starts_with("rest_client_requests_total")
            && ["\"401\"", "<error>"].iter().any(|code| line.contains(code))
    };
    assert_eq!(metrics.lines().filter(unknown).collect::<Vec<_>>(), Vec::<&str>::new());
}

/// A kubelet that does not renew its certificate has it before it begins.
fn waits_for_its_first(cluster: &Cluster, machine: &Machine) {
    let mut command = machine.kubelet(cluster, "other", "other");
    command.arg("--container-runtime-endpoint=unix:///nowhere/cri.sock");
    let _kubelet = Child::spawn(&mut command).expect("the kubelet starts");
    let kubeconfig = machine.at("other/kubeconfig");
    eventually("the kubeconfig is written", SOON, || kubeconfig.exists().then_some(()));
    let written =
        std::fs::read_to_string(machine.at("other/pki/kubelet-client-current.pem")).expect("a pair");
    assert!(written.contains("BEGIN CERTIFICATE") && written.contains("PRIVATE KEY"));
    assert!(!machine.at("other/pki/kubelet-client.key.tmp").exists(), "the key is needed no more");
    let named = cluster.json("get csr -o json");
    let own =
        |csr: &&Value| csr["metadata"]["name"].as_str().is_some_and(|name| name.starts_with("node-csr-"));
    assert_eq!(named["items"].as_array().expect("a list").iter().filter(own).count(), 1);
}
