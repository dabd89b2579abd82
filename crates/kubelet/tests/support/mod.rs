//! What a kubelet needs around it: a runtime and an API server, each a small one in this process.

#![allow(dead_code, reason = "each test file uses a part")]

pub mod api;
pub mod csi;
pub mod disk;
pub mod dra;
pub mod plugin;
pub mod runtime;

use std::path::{Path, PathBuf};
use std::time::Duration;

use krate_client::{CancellationToken, Client};
use krate_kubelet::{Config, EvictionConfig, ImagePolicy, Serving, StaticPods};
use krate_pki::Source;
use tokio::task::JoinHandle;

pub const SOON: Duration = Duration::from_secs(30);

/// Waits until something holds.
pub async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + SOON;
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A kubelet with its surroundings, in directories of its own.
pub struct Node {
    pub api: api::Api,
    pub runtime: runtime::Runtime,
    pub base: tempfile::TempDir,
    kubelet: Option<(CancellationToken, JoinHandle<()>)>,
    /// Changes the kubelet's configuration.
    with: fn(&mut Config),
}

impl Node {
    pub fn start() -> Self {
        Self::start_with(|_| {})
    }

    pub fn start_with(with: fn(&mut Config)) -> Self {
        let base = tempfile::tempdir().unwrap();
        std::fs::create_dir(base.path().join("manifests")).unwrap();
        let runtime = runtime::Runtime::default();
        runtime.clone().serve(base.path().join("cri.sock"));
        let mut node = Node { api: api::Api::default(), runtime, base, kubelet: None, with };
        node.up();
        node
    }

    /// Starts the kubelet, again after [`Node::down`].
    pub fn up(&mut self) {
        let stop = CancellationToken::new();
        let client = self.api.client();
        let (mut config, token) = (self.config(), stop.clone());
        (self.with)(&mut config);
        let task = tokio::spawn(async move {
            krate_kubelet::run(client, config, None, token).await.unwrap();
        });
        self.kubelet = Some((stop, task));
    }

    /// Ends the kubelet, and nothing of what it runs.
    pub async fn down(&mut self) {
        let (stop, task) = self.kubelet.take().unwrap();
        stop.cancel();
        tokio::time::timeout(SOON, task).await.expect("the kubelet ends").unwrap();
    }

    fn config(&self) -> Config {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate =
            rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
        Config {
            cri_socket: self.base.path().join("cri.sock"),
            bind: "127.0.0.1".parse().unwrap(),
            port: 0,
            serving: Serving::From(Source::fixed(&certificate.pem(), &key.serialize_pem()).unwrap()),
            client_ca: certificate.pem(),
            cluster_dns: vec!["10.96.0.10".parse().unwrap()],
            cgroup_root: self.cgroup(),
            static_pods: StaticPods {
                path: Some(self.base.path().join("manifests")),
                look: Duration::from_secs(1),
                ..StaticPods::default()
            },
            eviction: EvictionConfig::of_a_shared_machine(),
            image_gc: ImagePolicy::keep_all(),
            ..Config::new("node", "127.0.0.1".parse().unwrap(), self.root())
        }
    }

    fn cgroup(&self) -> String {
        let name = self.base.path().file_name().unwrap().to_string_lossy().trim_start_matches('.').to_owned();
        format!("/krate-kubelet-test-{name}")
    }

    /// Writes a file of static pods, or removes it.
    pub fn describe(&self, name: &str, text: Option<&str>) {
        let path = self.base.path().join("manifests").join(name);
        match text {
            Some(text) => std::fs::write(path, text).unwrap(),
            None => std::fs::remove_file(path).unwrap(),
        }
    }

    pub fn root(&self) -> PathBuf {
        self.base.path().join("kubelet")
    }
}

/// Asks the kubelet's server, which must let in whoever asks.
pub async fn ask(node: &Node, path: &str) -> Result<String, kube::Error> {
    let port = node
        .api
        .until("its port is told", "/api/v1/nodes/node", |node| {
            node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_i64()
        })
        .await;
    let mut config = kube::Config::new(format!("https://127.0.0.1:{port}").parse().unwrap());
    config.accept_invalid_certs = true;
    let client = Client::try_from(config).unwrap();
    client.request_text(http::Request::get(path).body(Vec::new()).unwrap()).await
}

impl Drop for Node {
    /// Takes the control groups away, whatever the test has left in them.
    fn drop(&mut self) {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for line in table.lines().filter(|line| line.contains(" - cgroup")) {
            if let Some(point) = line.split(' ').nth(4) {
                remove(Path::new(&format!("{point}{}", self.cgroup())));
            }
        }
    }
}

fn remove(group: &Path) {
    for entry in std::fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(group);
}

/// Whether this process may make control groups; says aloud when not.
pub fn available() -> bool {
    let probe = PathBuf::from(format!("/sys/fs/cgroup/memory/krate-kubelet-probe-{}", std::process::id()));
    let unified = PathBuf::from(format!("/sys/fs/cgroup/krate-kubelet-probe-{}", std::process::id()));
    let works = [probe, unified]
        .iter()
        .any(|path| std::fs::create_dir(path).and_then(|()| std::fs::remove_dir(path)).is_ok());
    if !works {
        eprintln!("SKIPPED: no control groups can be made here");
    }
    works
}
