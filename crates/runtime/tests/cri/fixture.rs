//! A runtime server in a process of its own, over directories and control groups of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, ContainerStatus, CreateContainerRequest, IdMapping, ImageSpec,
    LinuxContainerConfig, LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext,
    NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata, RunPodSandboxRequest,
    StartContainerRequest, UserNamespace,
};
use krate_runtime::{Config, Loopback, Registries};
use krate_testkit::ControlGroup;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

/// The internal command by which this executable becomes a server.
const SERVER: &str = "__server";

/// Turns this process into a server if its arguments say so.
pub fn dispatch() {
    let args: Vec<String> = std::env::args().collect();
    let [_, command, base] = args.as_slice() else { return };
    if command != SERVER {
        return;
    }
    let base = PathBuf::from(base);
    let config = Config {
        root: base.join("root"),
        state: base.join("state"),
        socket: base.join("cri.sock"),
        cgroup_parent: cgroup_of(&base),
        instance: "test".into(),
        streaming_address: "127.0.0.1:0".parse().unwrap(),
        network: Arc::new(Loopback),
        registries: Registries { directories: vec![base.join("certs.d")], ..Registries::default() },
        cdi: vec![base.join("cdi")],
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let outcome = runtime.block_on(krate_runtime::serve(config, CancellationToken::new(), None));
    if let Err(error) = outcome {
        eprintln!("the server failed: {error}");
        std::process::exit(1);
    }
    std::process::exit(0);
}

fn cgroup_of(base: &Path) -> String {
    format!("/krate-test-{}", base.file_name().unwrap().to_string_lossy().trim_start_matches('.'))
}

pub struct Node {
    pub base: tempfile::TempDir,
    server: Option<Child>,
    runtime: tokio::runtime::Runtime,
    channel: Option<Channel>,
}

impl Node {
    pub fn start() -> Self {
        let base = tempfile::tempdir().unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let mut node = Self { base, server: None, runtime, channel: None };
        node.up();
        node
    }

    /// Starts the server, again after `kill`.
    pub fn up(&mut self) {
        let child = Command::new("/proc/self/exe")
            .args([SERVER.as_ref(), self.base.path().as_os_str()])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        self.server = Some(child);
        let socket = self.base.path().join("cri.sock");
        let deadline = Instant::now() + Duration::from_mins(1);
        let channel = self.runtime.block_on(async {
            loop {
                let socket = socket.clone();
                let connector = tower::service_fn(move |_| {
                    let socket = socket.clone();
                    async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
                });
                match Endpoint::from_static("http://cri").connect_with_connector(connector).await {
                    Ok(channel) => break channel,
                    Err(error) => assert!(Instant::now() < deadline, "no server: {error}"),
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        self.channel = Some(channel);
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        let mut server = self.server.take().unwrap();
        server.kill().unwrap();
        server.wait().unwrap();
    }

    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        let limited = async { tokio::time::timeout(Duration::from_mins(2), work).await };
        self.runtime.block_on(limited).expect("it took too long")
    }

    /// Does `work` beside the test.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        self.runtime.spawn(work)
    }

    /// How many descriptors the server has open.
    pub fn descriptors(&self) -> usize {
        let pid = self.server.as_ref().unwrap().id();
        std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
    }

    /// How many children the server has.
    pub fn children(&self) -> usize {
        let pid = self.server.as_ref().unwrap().id();
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        let listed = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
        listed.map(|pids| pids.split_whitespace().count()).sum()
    }

    pub fn cri(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone().unwrap())
    }

    pub fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone().unwrap())
    }

    pub fn root(&self) -> PathBuf {
        self.base.path().join("root")
    }

    pub fn cgroup(&self) -> String {
        cgroup_of(self.base.path())
    }

    pub fn import_busybox(&self) {
        let archive = self.base.path().join("busybox.tar");
        super::image::busybox(&archive);
        krate_runtime::image::import(&self.root(), &[archive], &|_| ()).unwrap();
    }

    pub fn pod(&self, name: &str) -> PodSandboxConfig {
        self.pod_with(name, NamespaceMode::Container)
    }

    pub fn pod_with(&self, name: &str, pid: NamespaceMode) -> PodSandboxConfig {
        let security =
            LinuxSandboxSecurityContext { namespace_options: Some(options(pid)), ..Default::default() };
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                uid: format!("{name}-uid"),
                namespace: "default".into(),
                attempt: 0,
            }),
            hostname: name.into(),
            log_directory: self.base.path().join("logs").join(name).display().to_string(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("{}/pod-{name}", self.cgroup()),
                security_context: Some(security),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    pub fn run_pod(&self, config: &PodSandboxConfig) -> String {
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        self.block_on(self.cri().run_pod_sandbox(request)).unwrap().into_inner().pod_sandbox_id
    }

    pub fn create(&self, pod: &str, sandbox: &PodSandboxConfig, config: ContainerConfig) -> String {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.into(),
            config: Some(config),
            sandbox_config: Some(sandbox.clone()),
        };
        self.block_on(self.cri().create_container(request)).unwrap().into_inner().container_id
    }

    pub fn start_container(&self, id: &str) {
        let request = StartContainerRequest { container_id: id.into() };
        self.block_on(self.cri().start_container(request)).unwrap();
    }

    pub fn run(&self, pod: &str, sandbox: &PodSandboxConfig, config: ContainerConfig) -> String {
        let id = self.create(pod, sandbox, config);
        self.start_container(&id);
        id
    }

    pub fn status(&self, id: &str) -> ContainerStatus {
        let request = k8s_cri::v1::ContainerStatusRequest { container_id: id.into(), verbose: false };
        self.block_on(self.cri().container_status(request)).unwrap().into_inner().status.unwrap()
    }

    /// Waits until `done` says so of what the container's status is.
    pub fn wait(&self, id: &str, done: impl Fn(&ContainerStatus) -> bool) -> ContainerStatus {
        let deadline = Instant::now() + Duration::from_mins(1);
        loop {
            let status = self.status(id);
            if done(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "still {status:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn exec(&self, id: &str, command: &[&str]) -> (i32, String, String) {
        let request = k8s_cri::v1::ExecSyncRequest {
            container_id: id.into(),
            cmd: command.iter().map(|s| (*s).to_owned()).collect(),
            timeout: 30,
        };
        let answer = self.block_on(self.cri().exec_sync(request)).unwrap().into_inner();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (answer.exit_code, text(answer.stdout), text(answer.stderr))
    }

    pub fn remove_pod(&self, pod: &str) {
        let request = k8s_cri::v1::RemovePodSandboxRequest { pod_sandbox_id: pod.into() };
        self.block_on(self.cri().remove_pod_sandbox(request)).unwrap();
    }

    /// Fails if anything of a pod is still on the machine.
    pub fn assert_nothing_left(&self) {
        let base = self.base.path().display().to_string();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        // The state directory itself is in memory while the server runs.
        let state = self.base.path().join("state").display().to_string();
        let of_pods =
            |line: &&str| line.contains(&base) && line.split(' ').nth(4).is_some_and(|point| point != state);
        let ours: Vec<&str> = mounts.lines().filter(of_pods).collect();
        assert!(ours.is_empty(), "mounts are left: {ours:#?}");
        for kind in ["root/sandboxes", "root/containers", "state/sandboxes", "state/containers"] {
            let left: Vec<_> = std::fs::read_dir(self.base.path().join(kind)).unwrap().flatten().collect();
            assert!(left.is_empty(), "files are left: {left:?}");
        }
        let left = ControlGroup::new(&self.cgroup()).below();
        assert!(left.is_empty(), "control groups are left: {left:?}");
        // What was killed while it started something ends with it, but in its own time.
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.shims().is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        let left: Vec<_> = self.shims().into_iter().map(described).collect();
        assert!(left.is_empty(), "processes are left: {left:#?}");
    }

    /// Shims with a log below our directory.
    pub fn shims(&self) -> Vec<i32> {
        let base = self.base.path();
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        processes
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid: &i32| {
                std::fs::read_link(format!("/proc/{pid}/fd/2")).is_ok_and(|path| path.starts_with(base))
            })
            .collect()
    }
}

impl Drop for Node {
    /// Whatever a failed test left running.
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
        for shim in self.shims() {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::Signal::SIGKILL);
        }
        ControlGroup::new(&self.cgroup()).clear();
        let base = self.base.path().display().to_string();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for line in mounts.lines().rev() {
            if let Some(point) = line.split(' ').nth(4).filter(|point| point.starts_with(&base)) {
                let _ = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
            }
        }
    }
}

/// A process, for who wonders why it is still there.
fn described(pid: i32) -> String {
    let read = |what: &str| std::fs::read_to_string(format!("/proc/{pid}/{what}")).unwrap_or_default();
    let status = read("status");
    let of = |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    format!("{pid} {} {} {} in {}", of("Name:"), of("State:"), of("PPid:"), read("wchan"))
}

/// Users and groups for a pod or container to have to itself: as many as upstream's kubelet gives, from the host's `first`.
pub fn users(first: u32) -> UserNamespace {
    let range = IdMapping { host_id: first, container_id: 0, length: 65536 };
    UserNamespace { mode: NamespaceMode::Pod as i32, uids: vec![range], gids: vec![range] }
}

/// Gives a pod users of its own.
pub fn own_users(pod: &mut PodSandboxConfig, first: u32) {
    let security = pod.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    security.namespace_options.as_mut().unwrap().userns_options = Some(users(first));
}

/// A container of such a pod.
pub fn of_users(mut container: ContainerConfig, first: u32) -> ContainerConfig {
    let security = container.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    security.namespace_options.as_mut().unwrap().userns_options = Some(users(first));
    container
}

fn options(pid: NamespaceMode) -> NamespaceOption {
    NamespaceOption { pid: pid as i32, ..Default::default() }
}

/// A container of busybox that runs a script.
pub fn shell(name: &str, script: &str) -> ContainerConfig {
    container(name, &["/bin/sh", "-c", script], NamespaceMode::Container)
}

pub fn container(name: &str, command: &[&str], pid: NamespaceMode) -> ContainerConfig {
    let security =
        LinuxContainerSecurityContext { namespace_options: Some(options(pid)), ..Default::default() };
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
        image: Some(ImageSpec { image: "krate.test/busybox:1".into(), ..Default::default() }),
        command: command.iter().map(|s| (*s).to_owned()).collect(),
        log_path: format!("{name}.log"),
        linux: Some(LinuxContainerConfig { security_context: Some(security), resources: None }),
        ..Default::default()
    }
}
