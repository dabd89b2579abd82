//! The kubelet's side of the talk with one CSI driver.

use std::path::Path;
use std::time::{Duration, Instant};

use prost::Message;
use tonic::{Code, Status};

use super::api::{NodeGetInfoRequest, NodeGetInfoResponse};
use crate::histogram::{Histograms, OF_STORAGE};
use crate::socket::Caller;

/// How long a driver may take for one thing (upstream's).
const PATIENCE: Duration = Duration::from_mins(2);

/// How long drivers take, and what becomes of that.
pub static OPERATIONS: Histograms = Histograms::new(
    "csi_operations_seconds",
    "[ALPHA] Container Storage Interface operation duration with gRPC error code status total",
    &["driver_name", "method_name", "grpc_status_code", "migrated"],
    OF_STORAGE,
);

/// A driver that has announced itself.
#[derive(Clone, Debug)]
pub struct Driver {
    pub name: String,
    caller: Caller,
}

impl Driver {
    pub fn new(name: &str, endpoint: &Path) -> Self {
        Driver { name: name.to_owned(), caller: Caller::new(endpoint) }
    }

    async fn call<Q, A>(&self, method: &'static str, request: Q) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let began = Instant::now();
        let answer = self.caller.call(method, request, PATIENCE).await;
        let code = answer.as_ref().map_or_else(Status::code, |_| Code::Ok);
        let code = if code == Code::Ok { "OK".to_owned() } else { format!("{code:?}") };
        OPERATIONS.observe(&[&self.name, method, &code, "false"], began.elapsed());
        answer
    }

    pub async fn info(&self) -> Result<NodeGetInfoResponse, Status> {
        self.call("/csi.v1.Node/NodeGetInfo", NodeGetInfoRequest {}).await
    }
}
