//! A CSI driver, as its maker would write one. Its volumes are directories of its own, which it mounts where it is told
//! to, or not at all; what it is called for is written down.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::future::Future;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use krate_kubelet::csi_api::*;
use krate_kubelet::plugin_registration::{
    InfoRequest, PluginInfo, REGISTRATION, RegistrationStatus, RegistrationStatusResponse,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::body::Body;
use tonic::{Code, Request, Response, Status};
use tonic_prost::ProstCodec;

use super::disk::Disk;

pub const NAME: &str = "csi.example.com";

struct State {
    calls: Vec<(String, Value)>,
    /// Whether it was told that it is registered, and why not.
    told: Vec<(bool, String)>,
    failures: HashMap<String, (Code, String)>,
    versions: Vec<String>,
    limit: i64,
    topology: BTreeMap<String, String>,
}

#[derive(Clone)]
pub struct Driver {
    capabilities: Arc<Vec<Capability>>,
    state: Arc<Mutex<State>>,
    /// Where its volumes are, and what it was called for is written; it mounts nothing without.
    directory: Option<PathBuf>,
    /// What its volumes are as devices.
    disk: Option<Arc<Disk>>,
}

impl Driver {
    /// One that mounts nothing.
    pub fn new(capabilities: &[Capability]) -> Self {
        let state = State {
            calls: Vec::new(),
            told: Vec::new(),
            failures: HashMap::new(),
            versions: vec!["1.0.0".to_owned()],
            limit: 0,
            topology: BTreeMap::new(),
        };
        let capabilities = Arc::new(capabilities.to_vec());
        Driver { capabilities, state: Arc::new(Mutex::new(state)), directory: None, disk: None }
    }

    /// One whose volumes are in a directory.
    pub fn at(directory: &Path, capabilities: &[Capability]) -> Self {
        let disk = Disk::make(directory).map(Arc::new);
        Driver { directory: Some(directory.to_owned()), disk, ..Driver::new(capabilities) }
    }

    pub fn describe(&self, limit: i64, topology: &[(&str, &str)]) {
        let mut state = self.state.lock().unwrap();
        state.limit = limit;
        state.topology = topology.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    }

    pub fn speaks(&self, versions: &[&str]) {
        self.state.lock().unwrap().versions = versions.iter().map(|v| (*v).to_owned()).collect();
    }

    /// Lets a method fail from now on, or no more.
    pub fn fails(&self, method: &str, with: Option<(Code, &str)>) {
        let mut state = self.state.lock().unwrap();
        match with {
            Some((code, why)) => drop(state.failures.insert(method.to_owned(), (code, why.to_owned()))),
            None => drop(state.failures.remove(method)),
        }
    }

    pub fn told(&self) -> Vec<(bool, String)> {
        self.state.lock().unwrap().told.clone()
    }

    /// What it was called for, in order, but for questions.
    pub fn calls(&self) -> Vec<(String, Value)> {
        self.state.lock().unwrap().calls.clone()
    }

    /// How often a method was called.
    pub fn count(&self, method: &str) -> usize {
        self.calls().iter().filter(|(called, _)| called == method).count()
    }

    /// Waits until a method was called so often, and returns the last of those calls.
    pub async fn called(&self, method: &str, times: usize) -> Value {
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
        loop {
            let calls = self.calls();
            if let Some((_, request)) = calls.iter().filter(|(m, _)| m == method).nth(times - 1) {
                return request.clone();
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "{method} was not called {times} times: {calls:#?}"
            );
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    /// Listens at a socket, announces itself and works there, until the task is aborted; the socket stays.
    pub fn start(&self, socket: &Path) -> JoinHandle<()> {
        let _ = std::fs::remove_file(socket);
        let directory = super::plugin::short(socket.parent().unwrap());
        let listener = UnixListener::bind(directory.join(socket.file_name().unwrap())).unwrap();
        let serving = tonic::transport::Server::builder()
            .add_service(Registrar(self.clone()))
            .add_service(Node(self.clone()));
        tokio::spawn(async move {
            let _ = serving.serve_with_incoming(UnixListenerStream::new(listener)).await;
        })
    }

    fn note(&self, method: &str, request: Value) -> Result<(), Status> {
        if let Some(directory) = &self.directory {
            let line = json!([method, request]).to_string() + "\n";
            let file = std::fs::OpenOptions::new().create(true).append(true).open(directory.join("calls"));
            file.unwrap().write_all(line.as_bytes()).unwrap();
        }
        let mut state = self.state.lock().unwrap();
        state.calls.push((method.to_owned(), request));
        match state.failures.get(method) {
            Some((code, why)) => Err(Status::new(*code, why.clone())),
            None => Ok(()),
        }
    }

    fn volume(&self, id: &str) -> Option<PathBuf> {
        let place = self.directory.as_ref()?.join("volumes").join(id);
        std::fs::create_dir_all(&place).unwrap();
        Some(place)
    }

    fn info(&self) -> NodeGetInfoResponse {
        let state = self.state.lock().unwrap();
        NodeGetInfoResponse {
            node_id: "here".to_owned(),
            max_volumes_per_node: state.limit,
            accessible_topology: Some(Topology { segments: state.topology.clone().into_iter().collect() }),
        }
    }

    fn stage(&self, r: NodeStageVolumeRequest) -> Result<(), Status> {
        self.note(
            "NodeStageVolume",
            json!({"volume": r.volume_id, "path": r.staging_target_path, "publishContext": r.publish_context,
                "capability": told(r.volume_capability.as_ref()), "secrets": r.secrets, "context": r.volume_context}),
        )?;
        let is_block = is_block(r.volume_capability.as_ref());
        if let Some(volume) = self.volume(&r.volume_id).filter(|_| !is_block) {
            bind(&volume, Path::new(&r.staging_target_path), false)?;
        }
        Ok(())
    }

    fn unstage(&self, r: NodeUnstageVolumeRequest) -> Result<(), Status> {
        self.note("NodeUnstageVolume", json!({"volume": r.volume_id, "path": r.staging_target_path}))?;
        if self.directory.is_some() {
            unbind(Path::new(&r.staging_target_path));
        }
        Ok(())
    }

    fn publish(&self, r: NodePublishVolumeRequest) -> Result<(), Status> {
        self.note(
            "NodePublishVolume",
            json!({"volume": r.volume_id, "path": r.target_path, "staged": r.staging_target_path,
                "publishContext": r.publish_context, "capability": told(r.volume_capability.as_ref()),
                "readonly": r.readonly, "secrets": r.secrets, "context": r.volume_context}),
        )?;
        let target = Path::new(&r.target_path);
        if is_block(r.volume_capability.as_ref()) {
            std::fs::write(target, "").unwrap();
            if let Some(disk) = &self.disk {
                mount(Some(&disk.device), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                    .map_err(|e| Status::internal(e.to_string()))?;
            }
            return Ok(());
        }
        std::fs::create_dir_all(target).unwrap();
        if let Some(volume) = self.volume(&r.volume_id) {
            let staged = Path::new(&r.staging_target_path);
            let from = if r.staging_target_path.is_empty() { volume.as_path() } else { staged };
            bind(from, target, r.readonly)?;
        }
        Ok(())
    }

    fn unpublish(&self, r: NodeUnpublishVolumeRequest) -> Result<(), Status> {
        self.note("NodeUnpublishVolume", json!({"volume": r.volume_id, "path": r.target_path}))?;
        let target = Path::new(&r.target_path);
        if self.directory.is_some() {
            unbind(target);
        }
        let _ = std::fs::remove_dir(target);
        let _ = std::fs::remove_file(target);
        Ok(())
    }

    fn expand(&self, r: NodeExpandVolumeRequest) -> Result<NodeExpandVolumeResponse, Status> {
        let bytes = r.capacity_range.unwrap_or_default().required_bytes;
        self.note(
            "NodeExpandVolume",
            json!({"volume": r.volume_id, "path": r.volume_path, "staged": r.staging_target_path, "bytes": bytes,
                "secrets": r.secrets, "capability": told(r.volume_capability.as_ref())}),
        )?;
        Ok(NodeExpandVolumeResponse { capacity_bytes: bytes })
    }

    fn stats(&self, r: &NodeGetVolumeStatsRequest) -> Result<NodeGetVolumeStatsResponse, Status> {
        self.note("NodeGetVolumeStats", json!({"volume": r.volume_id, "path": r.volume_path}))?;
        let usage =
            |unit: Unit, total, used| VolumeUsage { total, used, available: total - used, unit: unit as i32 };
        let usage = vec![usage(Unit::Bytes, 4096, 1024), usage(Unit::Inodes, 100, 7)];
        Ok(NodeGetVolumeStatsResponse { usage, volume_condition: None })
    }
}

fn is_block(capability: Option<&VolumeCapability>) -> bool {
    matches!(capability.and_then(|c| c.access_type.as_ref()), Some(AccessType::Block(_)))
}

fn told(capability: Option<&VolumeCapability>) -> Value {
    let mode = capability.and_then(|c| c.access_mode).map(|mode| format!("{:?}", mode.mode()));
    match capability.and_then(|c| c.access_type.clone()) {
        Some(AccessType::Mount(m)) => json!({"mode": mode, "fsType": m.fs_type, "options": m.mount_flags,
            "group": m.volume_mount_group}),
        Some(AccessType::Block(_)) => json!({"mode": mode, "block": true}),
        None => Value::Null,
    }
}

fn is_mounted(path: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|line| line.split(' ').nth(4) == path.to_str())
}

fn bind(from: &Path, to: &Path, read_only: bool) -> Result<(), Status> {
    if is_mounted(to) {
        return Ok(());
    }
    let failed = |e: nix::Error| Status::internal(e.to_string());
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(failed)?;
    if read_only {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, to, None::<&str>, flags, None::<&str>).map_err(failed)?;
    }
    Ok(())
}

fn unbind(path: &Path) {
    while is_mounted(path) {
        umount2(path, MntFlags::MNT_DETACH).unwrap();
    }
}

/// The driver as one that announces itself.
#[derive(Clone)]
struct Registrar(Driver);

/// The driver at work.
#[derive(Clone)]
struct Node(Driver);

impl tonic::server::NamedService for Registrar {
    const NAME: &'static str = REGISTRATION;
}

impl tonic::server::NamedService for Node {
    const NAME: &'static str = NODE;
}

macro_rules! unary {
    ($request:expr, $asked:ty, $answer:ty, $answered:expr) => {{
        let answer = tower::service_fn(move |request: Request<$asked>| {
            let answered: Result<$answer, Status> = $answered(request.into_inner());
            std::future::ready(answered.map(Response::new))
        });
        let mut grpc = tonic::server::Grpc::new(ProstCodec::<$answer, $asked>::default());
        grpc.unary(answer, $request).await
    }};
}

type Answering = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

impl tower::Service<http::Request<Body>> for Registrar {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let driver = self.0.clone();
        Box::pin(async move {
            Ok(if request.uri().path().ends_with("/GetInfo") {
                unary!(request, InfoRequest, PluginInfo, |_| Ok(PluginInfo {
                    kind: "CSIPlugin".to_owned(),
                    name: NAME.to_owned(),
                    endpoint: String::new(),
                    supported_versions: driver.state.lock().unwrap().versions.clone(),
                }))
            } else {
                unary!(request, RegistrationStatus, RegistrationStatusResponse, |r: RegistrationStatus| {
                    driver.state.lock().unwrap().told.push((r.plugin_registered, r.error));
                    Ok(RegistrationStatusResponse {})
                })
            })
        })
    }
}

impl tower::Service<http::Request<Body>> for Node {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let driver = self.0.clone();
        Box::pin(async move {
            let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
            Ok(match method.as_str() {
                "NodeGetInfo" => {
                    unary!(request, NodeGetInfoRequest, NodeGetInfoResponse, |_| Ok(driver.info()))
                }
                "NodeGetCapabilities" => {
                    unary!(request, NodeGetCapabilitiesRequest, NodeGetCapabilitiesResponse, |_| {
                        let one = |kind: &Capability| NodeServiceCapability {
                            rpc: Some(Rpc { kind: *kind as i32 }),
                        };
                        let capabilities = driver.capabilities.iter().map(one).collect();
                        Ok(NodeGetCapabilitiesResponse { capabilities })
                    })
                }
                "NodeStageVolume" => unary!(request, NodeStageVolumeRequest, (), |r| driver.stage(r)),
                "NodeUnstageVolume" => unary!(request, NodeUnstageVolumeRequest, (), |r| driver.unstage(r)),
                "NodePublishVolume" => unary!(request, NodePublishVolumeRequest, (), |r| driver.publish(r)),
                "NodeUnpublishVolume" => {
                    unary!(request, NodeUnpublishVolumeRequest, (), |r| driver.unpublish(r))
                }
                "NodeExpandVolume" => {
                    unary!(request, NodeExpandVolumeRequest, NodeExpandVolumeResponse, |r| driver.expand(r))
                }
                "NodeGetVolumeStats" => {
                    unary!(
                        request,
                        NodeGetVolumeStatsRequest,
                        NodeGetVolumeStatsResponse,
                        |r: NodeGetVolumeStatsRequest| driver.stats(&r)
                    )
                }
                _ => Status::unimplemented("no such method").into_http(),
            })
        })
    }
}
