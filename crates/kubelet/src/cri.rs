//! The door to the container runtime: CRI v1 over a unix socket. Nothing here, or above, asks which runtime it is.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{self as cri};
use tokio::net::UnixStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::cri_calls::Counted;

/// Bytes of the largest answer that is taken (upstream: 16 MiB).
const LARGEST: usize = 16 << 20;

/// A client of the runtime. Clones share the connection, which is made when it is first needed and made again when it
/// is lost.
#[derive(Clone, Debug)]
pub struct Cri {
    channel: Channel,
    images: Channel,
    /// How long the runtime may take for what it should do at once (upstream's `runtimeRequestTimeout`).
    patience: Duration,
}

impl Cri {
    /// The runtime behind a socket, and its images behind another one, if they are.
    pub fn new(socket: &Path, images: Option<&Path>, patience: Duration) -> Self {
        let channel = channel(socket);
        Cri { images: images.map_or_else(|| channel.clone(), self::channel), channel, patience }
    }

    pub fn runtime(&self) -> RuntimeServiceClient<Counted> {
        RuntimeServiceClient::new(Counted(self.channel.clone())).max_decoding_message_size(LARGEST)
    }

    pub fn images(&self) -> ImageServiceClient<Counted> {
        ImageServiceClient::new(Counted(self.images.clone())).max_decoding_message_size(LARGEST)
    }

    pub async fn sandboxes(
        &self,
        filter: Option<cri::PodSandboxFilter>,
    ) -> Result<Vec<cri::PodSandbox>, Status> {
        Ok(self.runtime().list_pod_sandbox(cri::ListPodSandboxRequest { filter }).await?.into_inner().items)
    }

    pub async fn containers(
        &self,
        filter: Option<cri::ContainerFilter>,
    ) -> Result<Vec<cri::Container>, Status> {
        Ok(self
            .runtime()
            .list_containers(cri::ListContainersRequest { filter })
            .await?
            .into_inner()
            .containers)
    }

    pub async fn sandbox_status(&self, id: &str) -> Result<cri::PodSandboxStatus, Status> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        let answer = self.runtime().pod_sandbox_status(request).await?.into_inner();
        answer.status.ok_or_else(|| Status::not_found("the runtime told nothing of the sandbox"))
    }

    pub async fn container_status(&self, id: &str) -> Result<cri::ContainerStatus, Status> {
        let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let answer = self.runtime().container_status(request).await?.into_inner();
        answer.status.ok_or_else(|| Status::not_found("the runtime told nothing of the container"))
    }

    /// What the runtime knows of an image; `None` when it is not on the machine.
    pub async fn image(&self, image: &str) -> Result<Option<cri::Image>, Status> {
        let request = cri::ImageStatusRequest { image: Some(image_spec(image)), verbose: false };
        Ok(self.images().image_status(request).await?.into_inner().image)
    }

    /// Stops a container within `grace` seconds. One that is not there is stopped.
    pub async fn stop_container(&self, id: &str, grace: i64) -> Result<(), Status> {
        let request = cri::StopContainerRequest { container_id: id.to_owned(), timeout: grace };
        let patience = self.patience + Duration::from_secs(grace.max(0).unsigned_abs());
        forgiving(within(patience, self.runtime().stop_container(request)).await)
    }

    /// Gives other resources to a container that runs.
    pub async fn update_container(
        &self,
        id: &str,
        linux: cri::LinuxContainerResources,
    ) -> Result<(), Status> {
        let request = cri::UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(linux),
            ..Default::default()
        };
        within(self.patience, self.runtime().update_container_resources(request)).await.map(drop)
    }

    pub async fn remove_container(&self, id: &str) -> Result<(), Status> {
        let request = cri::RemoveContainerRequest { container_id: id.to_owned() };
        forgiving(within(self.patience, self.runtime().remove_container(request)).await)
    }

    pub async fn stop_sandbox(&self, id: &str) -> Result<(), Status> {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        forgiving(within(self.patience, self.runtime().stop_pod_sandbox(request)).await)
    }

    pub async fn remove_sandbox(&self, id: &str) -> Result<(), Status> {
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        forgiving(within(self.patience, self.runtime().remove_pod_sandbox(request)).await)
    }

    /// Runs a command in a container and waits for its end, for `timeout` seconds at most (0: for ever).
    pub async fn exec(
        &self,
        id: &str,
        command: Vec<String>,
        timeout: i64,
    ) -> Result<cri::ExecSyncResponse, Status> {
        let request = cri::ExecSyncRequest { container_id: id.to_owned(), cmd: command, timeout };
        Ok(self.runtime().exec_sync(request).await?.into_inner())
    }
}

fn channel(socket: &Path) -> Channel {
    let socket: PathBuf = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://cri").connect_with_connector_lazy(connector)
}

pub fn image_spec(image: &str) -> cri::ImageSpec {
    cri::ImageSpec { image: image.to_owned(), user_specified_image: image.to_owned(), ..Default::default() }
}

async fn within<T>(patience: Duration, ask: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let late = |_| Status::deadline_exceeded("the runtime did not answer in time");
    tokio::time::timeout(patience, ask).await.unwrap_or_else(|elapsed| Err(late(elapsed)))
}

fn forgiving<T>(answer: Result<T, Status>) -> Result<(), Status> {
    match answer {
        Err(status) if status.code() == tonic::Code::NotFound => Ok(()),
        other => other.map(drop),
    }
}

/// How upstream writes an error of the runtime into messages.
pub fn rpc_error(status: &Status) -> String {
    format!("rpc error: code = {:?} desc = {}", status.code(), status.message())
}
