//! A container runtime that runs nothing: it keeps what it is told to run, and tells of it as a real one would.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use k8s_cri::v1::image_service_server::{ImageService, ImageServiceServer};
use k8s_cri::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use k8s_cri::v1::*;
use tokio::net::UnixListener;
use tokio::sync::{broadcast, watch};
use tokio_stream::wrappers::{BroadcastStream, UnixListenerStream};
use tonic::{Request, Response, Status};

struct Box_ {
    status: PodSandboxStatus,
    config: PodSandboxConfig,
}

struct Held {
    sandbox: String,
    status: ContainerStatus,
    config: ContainerConfig,
}

struct State {
    sandboxes: BTreeMap<String, Box_>,
    containers: BTreeMap<String, Held>,
    images: Vec<String>,
    events: broadcast::Sender<ContainerEventResponse>,
    clock: i64,
    calls: Vec<String>,
    /// How often somebody has looked at a container.
    looks: watch::Sender<u64>,
    /// Whether whoever asks for all containers has to wait.
    is_held: watch::Sender<bool>,
}

#[derive(Clone)]
pub struct Runtime(Arc<Mutex<State>>);

impl Default for Runtime {
    fn default() -> Self {
        Runtime(Arc::new(Mutex::new(State {
            sandboxes: BTreeMap::new(),
            containers: BTreeMap::new(),
            images: vec!["there:1".to_owned()],
            events: broadcast::Sender::new(1024),
            clock: 0,
            calls: Vec::new(),
            looks: watch::Sender::default(),
            is_held: watch::Sender::default(),
        })))
    }
}

impl State {
    fn now(&mut self) -> i64 {
        self.clock += 1;
        k8s_openapi::jiff::Timestamp::now().as_nanosecond() as i64 + self.clock
    }

    fn emit(&self, sandbox: &str, id: &str, kind: ContainerEventType) {
        let _ = self.events.send(ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind as i32,
            created_at: 0,
            pod_sandbox_status: self.sandboxes.get(sandbox).map(|s| s.status.clone()),
            containers_statuses: vec![],
        });
    }

    fn exit(&mut self, id: &str, code: i32) {
        let now = self.now();
        let Some(held) = self.containers.get_mut(id) else { return };
        if held.status.state() == ContainerState::ContainerExited {
            return;
        }
        held.status.state = ContainerState::ContainerExited as i32;
        held.status.exit_code = code;
        held.status.finished_at = now;
        if code == 0 { "Completed" } else { "Error" }.clone_into(&mut held.status.reason);
        let sandbox = held.sandbox.clone();
        self.emit(&sandbox, id, ContainerEventType::ContainerStoppedEvent);
    }
}

impl Runtime {
    /// Serves on a socket for as long as the test runs.
    pub fn serve(self, socket: PathBuf) {
        let listener = UnixListener::bind(socket).unwrap();
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(RuntimeServiceServer::new(self.clone()))
                .add_service(ImageServiceServer::new(self))
                .serve_with_incoming(UnixListenerStream::new(listener)),
        );
    }

    /// The container of this name that was made last: id and configuration.
    pub fn container(&self, name: &str) -> Option<(String, ContainerConfig)> {
        let state = self.0.lock().unwrap();
        let of_name =
            state.containers.values().filter(|c| c.config.metadata.as_ref().is_some_and(|m| m.name == name));
        of_name.max_by_key(|c| c.status.created_at).map(|c| (c.status.id.clone(), c.config.clone()))
    }

    pub fn sandbox(&self) -> Option<PodSandboxConfig> {
        self.0.lock().unwrap().sandboxes.values().next().map(|s| s.config.clone())
    }

    pub fn is_empty(&self) -> bool {
        let state = self.0.lock().unwrap();
        state.sandboxes.is_empty() && state.containers.is_empty()
    }

    /// Whoever asks for all containers has to wait from now on, or no more.
    pub fn hold(&self, is_held: bool) {
        self.0.lock().unwrap().is_held.send_replace(is_held);
    }

    /// A container ends by itself.
    pub fn end(&self, id: &str, code: i32) {
        self.0.lock().unwrap().exit(id, code);
    }

    /// What was asked that changes something.
    pub fn calls(&self) -> Vec<String> {
        self.0.lock().unwrap().calls.clone()
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl RuntimeService for Runtime {
    async fn version(&self, _: Request<VersionRequest>) -> Answer<VersionResponse> {
        Ok(Response::new(VersionResponse {
            version: "0.1.0".into(),
            runtime_name: "fake".into(),
            runtime_version: "1".into(),
            runtime_api_version: "v1".into(),
        }))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Answer<StatusResponse> {
        let condition =
            |kind: &str| RuntimeCondition { r#type: kind.into(), status: true, ..Default::default() };
        let conditions = vec![condition("RuntimeReady"), condition("NetworkReady")];
        let features = RuntimeHandlerFeatures { user_namespaces: true, ..Default::default() };
        let handler = RuntimeHandler { features: Some(features), ..Default::default() };
        Ok(Response::new(StatusResponse {
            status: Some(RuntimeStatus { conditions }),
            runtime_handlers: vec![handler],
            ..Default::default()
        }))
    }

    async fn run_pod_sandbox(&self, request: Request<RunPodSandboxRequest>) -> Answer<RunPodSandboxResponse> {
        let config = request.into_inner().config.unwrap();
        let mut state = self.0.lock().unwrap();
        let now = state.now();
        let id = format!("sandbox{}", state.clock);
        let status = PodSandboxStatus {
            id: id.clone(),
            metadata: config.metadata.clone(),
            state: PodSandboxState::SandboxReady as i32,
            created_at: now,
            network: Some(PodSandboxNetworkStatus { ip: "10.0.0.7".into(), additional_ips: vec![] }),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            ..Default::default()
        };
        state.calls.push("run sandbox".into());
        state.sandboxes.insert(id.clone(), Box_ { status, config });
        state.emit(&id, &id, ContainerEventType::ContainerStartedEvent);
        Ok(Response::new(RunPodSandboxResponse { pod_sandbox_id: id }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<StopPodSandboxRequest>,
    ) -> Answer<StopPodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let mut state = self.0.lock().unwrap();
        state.calls.push("stop sandbox".into());
        let inside: Vec<String> =
            state.containers.values().filter(|c| c.sandbox == id).map(|c| c.status.id.clone()).collect();
        for container in &inside {
            state.exit(container, 137);
        }
        if let Some(sandbox) = state.sandboxes.get_mut(&id) {
            sandbox.status.state = PodSandboxState::SandboxNotready as i32;
        }
        state.emit(&id, &id, ContainerEventType::ContainerStoppedEvent);
        Ok(Response::new(StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<RemovePodSandboxRequest>,
    ) -> Answer<RemovePodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let mut state = self.0.lock().unwrap();
        state.sandboxes.remove(&id);
        state.containers.retain(|_, c| c.sandbox != id);
        Ok(Response::new(RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Answer<PodSandboxStatusResponse> {
        let state = self.0.lock().unwrap();
        let found = state.sandboxes.get(&request.into_inner().pod_sandbox_id);
        let status = found.map(|s| s.status.clone()).ok_or_else(|| Status::not_found("sandbox"))?;
        Ok(Response::new(PodSandboxStatusResponse { status: Some(status), ..Default::default() }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<ListPodSandboxRequest>,
    ) -> Answer<ListPodSandboxResponse> {
        let wanted = request.into_inner().filter.unwrap_or_default().label_selector;
        let state = self.0.lock().unwrap();
        let statuses = state.sandboxes.values().map(|s| &s.status);
        let items = statuses
            .filter(|s| wanted.iter().all(|(k, v)| s.labels.get(k) == Some(v)))
            .map(|s| PodSandbox {
                id: s.id.clone(),
                metadata: s.metadata.clone(),
                state: s.state,
                created_at: s.created_at,
                labels: s.labels.clone(),
                ..Default::default()
            })
            .collect();
        Ok(Response::new(ListPodSandboxResponse { items }))
    }

    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Answer<CreateContainerResponse> {
        let request = request.into_inner();
        let config = request.config.unwrap();
        let mut state = self.0.lock().unwrap();
        let now = state.now();
        let id = format!("container{}", state.clock);
        let name = config.metadata.as_ref().map(|m| m.name.clone()).unwrap_or_default();
        let log = state.sandboxes[&request.pod_sandbox_id].config.log_directory.clone();
        let status = ContainerStatus {
            id: id.clone(),
            metadata: config.metadata.clone(),
            state: ContainerState::ContainerCreated as i32,
            created_at: now,
            image: config.image.clone(),
            image_ref: "sha256:there".into(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            mounts: config.mounts.clone(),
            resources: Some(ContainerResources {
                linux: config.linux.as_ref().and_then(|l| l.resources.clone()),
                windows: None,
            }),
            log_path: format!("{log}/{}", config.log_path),
            ..Default::default()
        };
        state.calls.push(format!("create {name}"));
        state.containers.insert(id.clone(), Held { sandbox: request.pod_sandbox_id, status, config });
        Ok(Response::new(CreateContainerResponse { container_id: id }))
    }

    async fn start_container(
        &self,
        request: Request<StartContainerRequest>,
    ) -> Answer<StartContainerResponse> {
        let id = request.into_inner().container_id;
        let mut looks = {
            let mut state = self.0.lock().unwrap();
            let now = state.now();
            let held = state.containers.get_mut(&id).ok_or_else(|| Status::not_found("container"))?;
            held.status.state = ContainerState::ContainerRunning as i32;
            held.status.started_at = now;
            let is_brief = held.config.command == ["brief"];
            let sandbox = held.sandbox.clone();
            state.emit(&sandbox, &id, ContainerEventType::ContainerStartedEvent);
            if !is_brief {
                return Ok(Response::new(StartContainerResponse {}));
            }
            state.exit(&id, 0);
            state.looks.subscribe()
        };
        // The answer comes after its end was seen, and whatever follows from that had time to.
        for _ in 0..2 {
            let _ = tokio::time::timeout(Duration::from_millis(300), looks.changed()).await;
        }
        Ok(Response::new(StartContainerResponse {}))
    }

    async fn stop_container(&self, request: Request<StopContainerRequest>) -> Answer<StopContainerResponse> {
        let request = request.into_inner();
        let mut state = self.0.lock().unwrap();
        state.calls.push(format!("stop within {}", request.timeout));
        state.exit(&request.container_id, 143);
        Ok(Response::new(StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<RemoveContainerRequest>,
    ) -> Answer<RemoveContainerResponse> {
        self.0.lock().unwrap().containers.remove(&request.into_inner().container_id);
        Ok(Response::new(RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Answer<ListContainersResponse> {
        let wanted = request.into_inner().filter.unwrap_or_default().label_selector;
        if wanted.is_empty() {
            let mut is_held = self.0.lock().unwrap().is_held.subscribe();
            let _ = is_held.wait_for(|is_held| !is_held).await;
        }
        let state = self.0.lock().unwrap();
        let containers = state
            .containers
            .values()
            .filter(|c| wanted.iter().all(|(k, v)| c.status.labels.get(k) == Some(v)))
            .map(|c| Container {
                id: c.status.id.clone(),
                pod_sandbox_id: c.sandbox.clone(),
                metadata: c.status.metadata.clone(),
                state: c.status.state,
                created_at: c.status.created_at,
                labels: c.status.labels.clone(),
                ..Default::default()
            })
            .collect();
        Ok(Response::new(ListContainersResponse { containers }))
    }

    async fn container_status(
        &self,
        request: Request<ContainerStatusRequest>,
    ) -> Answer<ContainerStatusResponse> {
        let state = self.0.lock().unwrap();
        state.looks.send_modify(|looks| *looks += 1);
        let found = state.containers.get(&request.into_inner().container_id);
        let status = found.map(|c| c.status.clone()).ok_or_else(|| Status::not_found("container"))?;
        Ok(Response::new(ContainerStatusResponse { status: Some(status), ..Default::default() }))
    }

    type GetContainerEventsStream =
        Pin<Box<dyn Stream<Item = Result<ContainerEventResponse, Status>> + Send>>;

    async fn get_container_events(
        &self,
        _: Request<GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        let events = BroadcastStream::new(self.0.lock().unwrap().events.subscribe());
        let stream = events.map(|event| event.map_err(|_| Status::data_loss("too slow")));
        Ok(Response::new(Box::pin(stream)))
    }

    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Answer<UpdateContainerResourcesResponse> {
        let request = request.into_inner();
        let mut state = self.0.lock().unwrap();
        let held = state.containers.get_mut(&request.container_id);
        let held = held.ok_or_else(|| Status::not_found("container"))?;
        held.status.resources = Some(ContainerResources { linux: request.linux, windows: None });
        let name = held.config.metadata.as_ref().map(|m| m.name.clone()).unwrap_or_default();
        state.calls.push(format!("update {name}"));
        Ok(Response::new(UpdateContainerResourcesResponse {}))
    }

    async fn reopen_container_log(
        &self,
        _: Request<ReopenContainerLogRequest>,
    ) -> Answer<ReopenContainerLogResponse> {
        Err(Status::unimplemented("reopen_container_log"))
    }

    async fn exec_sync(&self, _: Request<ExecSyncRequest>) -> Answer<ExecSyncResponse> {
        Err(Status::unimplemented("exec_sync"))
    }

    async fn exec(&self, _: Request<ExecRequest>) -> Answer<ExecResponse> {
        Err(Status::unimplemented("exec"))
    }

    async fn attach(&self, _: Request<AttachRequest>) -> Answer<AttachResponse> {
        Err(Status::unimplemented("attach"))
    }

    async fn port_forward(&self, _: Request<PortForwardRequest>) -> Answer<PortForwardResponse> {
        Err(Status::unimplemented("port_forward"))
    }

    async fn container_stats(&self, _: Request<ContainerStatsRequest>) -> Answer<ContainerStatsResponse> {
        Err(Status::unimplemented("container_stats"))
    }

    async fn list_container_stats(
        &self,
        _: Request<ListContainerStatsRequest>,
    ) -> Answer<ListContainerStatsResponse> {
        Err(Status::unimplemented("list_container_stats"))
    }

    async fn pod_sandbox_stats(&self, _: Request<PodSandboxStatsRequest>) -> Answer<PodSandboxStatsResponse> {
        Err(Status::unimplemented("pod_sandbox_stats"))
    }

    async fn list_pod_sandbox_stats(
        &self,
        _: Request<ListPodSandboxStatsRequest>,
    ) -> Answer<ListPodSandboxStatsResponse> {
        Err(Status::unimplemented("list_pod_sandbox_stats"))
    }

    async fn update_runtime_config(
        &self,
        _: Request<UpdateRuntimeConfigRequest>,
    ) -> Answer<UpdateRuntimeConfigResponse> {
        Err(Status::unimplemented("update_runtime_config"))
    }

    async fn checkpoint_container(
        &self,
        _: Request<CheckpointContainerRequest>,
    ) -> Answer<CheckpointContainerResponse> {
        Err(Status::unimplemented("checkpoint_container"))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<ListMetricDescriptorsRequest>,
    ) -> Answer<ListMetricDescriptorsResponse> {
        Err(Status::unimplemented("list_metric_descriptors"))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<ListPodSandboxMetricsRequest>,
    ) -> Answer<ListPodSandboxMetricsResponse> {
        Err(Status::unimplemented("list_pod_sandbox_metrics"))
    }

    async fn runtime_config(&self, _: Request<RuntimeConfigRequest>) -> Answer<RuntimeConfigResponse> {
        Err(Status::unimplemented("runtime_config"))
    }
}

#[tonic::async_trait]
impl ImageService for Runtime {
    async fn list_images(&self, _: Request<ListImagesRequest>) -> Answer<ListImagesResponse> {
        Ok(Response::new(ListImagesResponse { images: vec![] }))
    }

    async fn image_status(&self, request: Request<ImageStatusRequest>) -> Answer<ImageStatusResponse> {
        let name = request.into_inner().image.unwrap_or_default().image;
        let is_there = self.0.lock().unwrap().images.contains(&name);
        let image = is_there.then(|| Image { id: format!("sha256:{name}"), size: 7, ..Default::default() });
        Ok(Response::new(ImageStatusResponse { image, ..Default::default() }))
    }

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Answer<PullImageResponse> {
        let name = request.into_inner().image.unwrap_or_default().image;
        if name.starts_with("missing") {
            return Err(Status::not_found(format!("{name}: not found")));
        }
        self.0.lock().unwrap().images.push(name.clone());
        Ok(Response::new(PullImageResponse { image_ref: name }))
    }

    async fn remove_image(&self, _: Request<RemoveImageRequest>) -> Answer<RemoveImageResponse> {
        Ok(Response::new(RemoveImageResponse {}))
    }

    async fn image_fs_info(&self, _: Request<ImageFsInfoRequest>) -> Answer<ImageFsInfoResponse> {
        Err(Status::unimplemented("image_fs_info"))
    }
}
