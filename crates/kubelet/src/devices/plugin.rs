//! The kubelet's side of the talk with one plugin.

use std::path::Path;
use std::time::Duration;

use prost::Message;
use tonic::{Status, Streaming};

use super::api::{
    AllocateRequest, AllocateResponse, ContainerAllocateRequest, ContainerAllocateResponse,
    ContainerPreferredAllocationRequest, DevicePluginOptions, Empty, ListAndWatchResponse,
    PreStartContainerRequest, PreferredAllocationRequest, PreferredAllocationResponse,
};
use crate::socket::Caller;

/// How long a plugin may take before a container starts (upstream's).
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
pub struct Plugin {
    caller: Caller,
    pub options: DevicePluginOptions,
}

impl Plugin {
    /// The plugin that listens at a socket.
    pub fn new(socket: &Path, options: DevicePluginOptions) -> Self {
        Plugin { caller: Caller::new(socket), options }
    }

    /// Asks the plugin at a socket what it wants to be asked.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn ask_options(socket: &Path) -> Result<DevicePluginOptions, Status> {
        let method = "/v1beta1.DevicePlugin/GetDevicePluginOptions";
        Caller::new(socket).call(method, Empty {}, PATIENCE).await
    }

    async fn call<Q, A>(&self, method: &'static str, request: Q) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        self.caller.call(method, request, PATIENCE).await
    }

    /// What it has, and each change of that.
    pub async fn list_and_watch(&self) -> Result<Streaming<ListAndWatchResponse>, Status> {
        self.caller.stream("/v1beta1.DevicePlugin/ListAndWatch", Empty {}).await
    }

    /// Which of the available devices it would have taken; whatever else it says is not heeded.
    pub async fn preferred(&self, available: &[String], must: &[String], size: usize) -> Vec<String> {
        let one = ContainerPreferredAllocationRequest {
            available_device_ids: available.to_vec(),
            must_include_device_ids: must.to_vec(),
            allocation_size: i32::try_from(size).unwrap_or(i32::MAX),
        };
        let request = PreferredAllocationRequest { container_requests: vec![one] };
        let answer: Result<PreferredAllocationResponse, Status> =
            self.call("/v1beta1.DevicePlugin/GetPreferredAllocation", request).await;
        let chosen = match answer {
            Ok(answer) => answer.container_responses.into_iter().next().map(|r| r.device_ids),
            Err(status) => {
                tracing::debug!(%status, "a device plugin does not say which devices it prefers");
                None
            }
        };
        chosen.unwrap_or_default().into_iter().filter(|id| available.contains(id)).collect()
    }

    pub async fn allocate(&self, ids: &[String]) -> Result<ContainerAllocateResponse, Status> {
        let one = ContainerAllocateRequest { devices_ids: ids.to_vec() };
        let request = AllocateRequest { container_requests: vec![one] };
        let answer: AllocateResponse = self.call("/v1beta1.DevicePlugin/Allocate", request).await?;
        let missing = || Status::internal("no containers return in allocation response");
        answer.container_responses.into_iter().next().ok_or_else(missing)
    }

    pub async fn before_start(&self, ids: &[String]) -> Result<(), Status> {
        let request = PreStartContainerRequest { devices_ids: ids.to_vec() };
        self.call::<_, Empty>("/v1beta1.DevicePlugin/PreStartContainer", request).await.map(drop)
    }
}
