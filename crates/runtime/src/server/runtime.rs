//! CRI's `RuntimeService`.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use k8s_cri::v1::runtime_service_server::RuntimeService;
use k8s_cri::v1::{
    self as cri, CgroupDriver, ContainerEventResponse, LinuxRuntimeConfiguration, RuntimeCondition,
};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::BroadcastStream;
use tonic::{Request, Response, Status};

use super::node::Node;
use super::{container, exec, metrics, sandbox, stats, status};
use crate::shim::client;
use crate::shim::protocol;
use crate::streaming::Ask;
use crate::userns;

#[derive(Clone, Debug)]
pub struct Runtime(pub Arc<Node>);

type Answer<T> = Result<Response<T>, Status>;

// Every answer of the service is such a result.
#[allow(clippy::unnecessary_wraps)]
fn answer<T>(value: T) -> Answer<T> {
    Ok(Response::new(value))
}

impl Runtime {
    /// A change that goes on even when the caller gives up waiting: half of one helps nobody.
    async fn change<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Status>> + Send + 'static,
    ) -> Result<T, Status> {
        tokio::spawn(work).await.map_err(|e| Status::internal(format!("the request failed: {e}")))?
    }
}

#[tonic::async_trait]
impl RuntimeService for Runtime {
    async fn version(&self, _: Request<cri::VersionRequest>) -> Answer<cri::VersionResponse> {
        answer(cri::VersionResponse {
            version: "0.1.0".into(),
            runtime_name: "krate".into(),
            runtime_version: env!("CARGO_PKG_VERSION").into(),
            runtime_api_version: "v1".into(),
        })
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<cri::RunPodSandboxRequest>,
    ) -> Answer<cri::RunPodSandboxResponse> {
        let node = Arc::clone(&self.0);
        let request = request.into_inner();
        let pod_sandbox_id = self.change(async move { sandbox::run(&node, request).await }).await?;
        answer(cri::RunPodSandboxResponse { pod_sandbox_id })
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<cri::StopPodSandboxRequest>,
    ) -> Answer<cri::StopPodSandboxResponse> {
        let (node, id) = (Arc::clone(&self.0), request.into_inner().pod_sandbox_id);
        self.change(async move { sandbox::stop(&node, &id).await }).await?;
        answer(cri::StopPodSandboxResponse {})
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<cri::RemovePodSandboxRequest>,
    ) -> Answer<cri::RemovePodSandboxResponse> {
        let (node, id) = (Arc::clone(&self.0), request.into_inner().pod_sandbox_id);
        self.change(async move { sandbox::remove(&node, &id).await }).await?;
        answer(cri::RemovePodSandboxResponse {})
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<cri::PodSandboxStatusRequest>,
    ) -> Answer<cri::PodSandboxStatusResponse> {
        let request = request.into_inner();
        let found = self.0.sandbox(&request.pod_sandbox_id)?;
        let mut info = std::collections::HashMap::new();
        if request.verbose {
            let record = found.record.read();
            info.insert("info".to_owned(), serde_json::json!({ "pid": record.shim }).to_string());
        }
        let containers = self.0.containers_of(&found.id());
        answer(cri::PodSandboxStatusResponse {
            status: Some(status::sandbox(&found)),
            info,
            containers_statuses: containers.iter().map(|container| status::container(container)).collect(),
            timestamp: super::record::now(),
        })
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<cri::ListPodSandboxRequest>,
    ) -> Answer<cri::ListPodSandboxResponse> {
        let filter = request.into_inner().filter;
        let all = self.0.sandboxes.read();
        let items = all
            .values()
            .map(|sandbox| status::listed_sandbox(sandbox))
            .filter(|item| status::sandbox_matches(item, filter.as_ref()))
            .collect();
        answer(cri::ListPodSandboxResponse { items })
    }

    async fn create_container(
        &self,
        request: Request<cri::CreateContainerRequest>,
    ) -> Answer<cri::CreateContainerResponse> {
        let (node, request) = (Arc::clone(&self.0), request.into_inner());
        let container_id = self.change(async move { container::create(&node, request).await }).await?;
        answer(cri::CreateContainerResponse { container_id })
    }

    async fn start_container(
        &self,
        request: Request<cri::StartContainerRequest>,
    ) -> Answer<cri::StartContainerResponse> {
        let (node, id) = (Arc::clone(&self.0), request.into_inner().container_id);
        self.change(async move { container::start(&node, &id).await }).await?;
        answer(cri::StartContainerResponse {})
    }

    async fn stop_container(
        &self,
        request: Request<cri::StopContainerRequest>,
    ) -> Answer<cri::StopContainerResponse> {
        let (node, request) = (Arc::clone(&self.0), request.into_inner());
        self.change(async move { container::stop(&node, &request.container_id, request.timeout).await })
            .await?;
        answer(cri::StopContainerResponse {})
    }

    async fn remove_container(
        &self,
        request: Request<cri::RemoveContainerRequest>,
    ) -> Answer<cri::RemoveContainerResponse> {
        let (node, id) = (Arc::clone(&self.0), request.into_inner().container_id);
        self.change(async move { container::remove(&node, &id).await }).await?;
        answer(cri::RemoveContainerResponse {})
    }

    async fn list_containers(
        &self,
        request: Request<cri::ListContainersRequest>,
    ) -> Answer<cri::ListContainersResponse> {
        let filter = request.into_inner().filter;
        let all = self.0.containers.read();
        let containers = all
            .values()
            .map(|container| status::listed_container(container))
            .filter(|item| status::container_matches(item, filter.as_ref()))
            .collect();
        answer(cri::ListContainersResponse { containers })
    }

    async fn container_status(
        &self,
        request: Request<cri::ContainerStatusRequest>,
    ) -> Answer<cri::ContainerStatusResponse> {
        let request = request.into_inner();
        let found = self.0.container(&request.container_id)?;
        let mut info = std::collections::HashMap::new();
        if request.verbose {
            let record = found.record.read();
            let told = serde_json::json!({ "pid": record.pid, "sandboxID": record.sandbox });
            info.insert("info".to_owned(), told.to_string());
        }
        answer(cri::ContainerStatusResponse { status: Some(status::container(&found)), info })
    }

    async fn update_container_resources(
        &self,
        request: Request<cri::UpdateContainerResourcesRequest>,
    ) -> Answer<cri::UpdateContainerResourcesResponse> {
        container::update(&self.0, request.into_inner()).await?;
        answer(cri::UpdateContainerResourcesResponse {})
    }

    async fn reopen_container_log(
        &self,
        request: Request<cri::ReopenContainerLogRequest>,
    ) -> Answer<cri::ReopenContainerLogResponse> {
        let container = self.0.running(&request.into_inner().container_id)?;
        let reopen = protocol::Request::ReopenLog { id: container.id() };
        client::ask(&self.0.shim(&container.sandbox()), &reopen)
            .await
            .map_err(|e| Status::unknown(format!("failed to reopen the log: {e}")))?;
        answer(cri::ReopenContainerLogResponse {})
    }

    async fn exec_sync(&self, request: Request<cri::ExecSyncRequest>) -> Answer<cri::ExecSyncResponse> {
        answer(exec::sync(&self.0, request.into_inner()).await?)
    }

    async fn exec(&self, request: Request<cri::ExecRequest>) -> Answer<cri::ExecResponse> {
        let request = request.into_inner();
        self.0.running(&request.container_id)?;
        if request.tty && request.stderr {
            return Err(Status::invalid_argument("tty and stderr cannot both be true"));
        }
        if !(request.stdin || request.stdout || request.stderr) {
            return Err(Status::invalid_argument("one of stdin, stdout, or stderr must be set"));
        }
        answer(cri::ExecResponse { url: self.0.sessions.issue("exec", Ask::Exec(request)) })
    }

    async fn attach(&self, request: Request<cri::AttachRequest>) -> Answer<cri::AttachResponse> {
        let request = request.into_inner();
        self.0.running(&request.container_id)?;
        if request.tty && request.stderr {
            return Err(Status::invalid_argument("tty and stderr cannot both be true"));
        }
        if !(request.stdin || request.stdout || request.stderr) {
            return Err(Status::invalid_argument("one of stdin, stdout, and stderr must be set"));
        }
        answer(cri::AttachResponse { url: self.0.sessions.issue("attach", Ask::Attach(request)) })
    }

    async fn port_forward(
        &self,
        request: Request<cri::PortForwardRequest>,
    ) -> Answer<cri::PortForwardResponse> {
        let request = request.into_inner();
        if !self.0.sandbox(&request.pod_sandbox_id)?.is_ready() {
            return Err(Status::failed_precondition("the sandbox is not ready"));
        }
        answer(cri::PortForwardResponse {
            url: self.0.sessions.issue("portforward", Ask::PortForward(request)),
        })
    }

    async fn container_stats(
        &self,
        request: Request<cri::ContainerStatsRequest>,
    ) -> Answer<cri::ContainerStatsResponse> {
        let container = self.0.container(&request.into_inner().container_id)?;
        let node = Arc::clone(&self.0);
        let stats = blocking(move || stats::container(&node, &container)).await?;
        answer(cri::ContainerStatsResponse { stats: Some(stats) })
    }

    async fn list_container_stats(
        &self,
        request: Request<cri::ListContainerStatsRequest>,
    ) -> Answer<cri::ListContainerStatsResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let filter = cri::ContainerFilter {
            id: filter.id,
            pod_sandbox_id: filter.pod_sandbox_id,
            label_selector: filter.label_selector,
            state: None,
        };
        let node = Arc::clone(&self.0);
        let stats = blocking(move || {
            let all: Vec<_> = node.containers.read().values().cloned().collect();
            all.iter()
                .filter(|container| container.is_running())
                .filter(|c| status::container_matches(&status::listed_container(c), Some(&filter)))
                .map(|container| stats::container(&node, container))
                .collect()
        })
        .await?;
        answer(cri::ListContainerStatsResponse { stats })
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<cri::PodSandboxStatsRequest>,
    ) -> Answer<cri::PodSandboxStatsResponse> {
        let sandbox = self.0.sandbox(&request.into_inner().pod_sandbox_id)?;
        let node = Arc::clone(&self.0);
        let stats = blocking(move || stats::sandbox(&node, &sandbox)).await?;
        answer(cri::PodSandboxStatsResponse { stats: Some(stats) })
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<cri::ListPodSandboxStatsRequest>,
    ) -> Answer<cri::ListPodSandboxStatsResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let filter =
            cri::PodSandboxFilter { id: filter.id, label_selector: filter.label_selector, state: None };
        let node = Arc::clone(&self.0);
        let stats = blocking(move || {
            let all: Vec<_> = node.sandboxes.read().values().cloned().collect();
            all.iter()
                .filter(|sandbox| sandbox.is_ready())
                .filter(|s| status::sandbox_matches(&status::listed_sandbox(s), Some(&filter)))
                .map(|sandbox| stats::sandbox(&node, sandbox))
                .collect()
        })
        .await?;
        answer(cri::ListPodSandboxStatsResponse { stats })
    }

    async fn update_runtime_config(
        &self,
        _: Request<cri::UpdateRuntimeConfigRequest>,
    ) -> Answer<cri::UpdateRuntimeConfigResponse> {
        // The pod network learns its range from the API, not from here.
        answer(cri::UpdateRuntimeConfigResponse {})
    }

    async fn status(&self, _: Request<cri::StatusRequest>) -> Answer<cri::StatusResponse> {
        let network = self.0.config.network.status().await;
        let condition = |kind: &str, problem: Option<(&str, String)>| RuntimeCondition {
            r#type: kind.to_owned(),
            status: problem.is_none(),
            reason: problem.as_ref().map(|(reason, _)| (*reason).to_owned()).unwrap_or_default(),
            message: problem.map(|(_, message)| message).unwrap_or_default(),
        };
        let network = network.err().map(|error| ("NetworkPluginNotReady", error.to_string()));
        answer(cri::StatusResponse {
            status: Some(cri::RuntimeStatus {
                conditions: vec![condition("RuntimeReady", None), condition("NetworkReady", network)],
            }),
            info: std::collections::HashMap::new(),
            runtime_handlers: vec![cri::RuntimeHandler {
                name: String::new(),
                features: Some(cri::RuntimeHandlerFeatures {
                    recursive_read_only_mounts: true,
                    user_namespaces: userns::is_supported(),
                }),
            }],
            features: Some(cri::RuntimeFeatures { supplemental_groups_policy: true }),
        })
    }

    async fn checkpoint_container(
        &self,
        _: Request<cri::CheckpointContainerRequest>,
    ) -> Answer<cri::CheckpointContainerResponse> {
        Err(Status::unimplemented("checkpointing of containers is not supported by this runtime"))
    }

    type GetContainerEventsStream =
        Pin<Box<dyn Stream<Item = Result<ContainerEventResponse, Status>> + Send + 'static>>;

    async fn get_container_events(
        &self,
        _: Request<cri::GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        // One that falls too far behind must list anew, and is told so by the end of its stream.
        let events = BroadcastStream::new(self.0.events.subscribe())
            .map(|event| event.map_err(|lagged| Status::data_loss(lagged.to_string())));
        answer(Box::pin(events))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<cri::ListMetricDescriptorsRequest>,
    ) -> Answer<cri::ListMetricDescriptorsResponse> {
        answer(cri::ListMetricDescriptorsResponse { descriptors: metrics::descriptors() })
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<cri::ListPodSandboxMetricsRequest>,
    ) -> Answer<cri::ListPodSandboxMetricsResponse> {
        let node = Arc::clone(&self.0);
        let pod_metrics = blocking(move || {
            let all: Vec<_> = node.sandboxes.read().values().cloned().collect();
            let images = node
                .containers
                .read()
                .iter()
                .map(|(id, container)| (id.clone(), container.record.read().image_ref.clone()))
                .collect();
            all.iter()
                .filter(|sandbox| sandbox.is_ready())
                .map(|sandbox| metrics::of_sandbox(stats::sandbox(&node, sandbox), &images))
                .collect()
        })
        .await?;
        answer(cri::ListPodSandboxMetricsResponse { pod_metrics })
    }

    async fn runtime_config(
        &self,
        _: Request<cri::RuntimeConfigRequest>,
    ) -> Answer<cri::RuntimeConfigResponse> {
        answer(cri::RuntimeConfigResponse {
            linux: Some(LinuxRuntimeConfiguration { cgroup_driver: CgroupDriver::Cgroupfs as i32 }),
        })
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Status::internal(e.to_string()))
}
