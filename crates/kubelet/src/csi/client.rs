//! The kubelet's side of the talk with one CSI driver.

use std::collections::HashMap;
use std::path::Path;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use krate_metrics::Stability::Alpha;
use prometheus::HistogramVec;
use prost::Message;
use tonic::{Code, Status};

use super::api::{
    AccessMode, AccessType, BlockVolume, Capability, Mode, MountVolume, NodeExpandVolumeRequest,
    NodeExpandVolumeResponse, NodeGetCapabilitiesRequest, NodeGetCapabilitiesResponse, NodeGetInfoRequest,
    NodeGetInfoResponse, NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse, NodePublishVolumeRequest,
    NodeStageVolumeRequest, NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, VolumeCapability,
};
use crate::instruments::{FAMILIES, OF_STORAGE};
use crate::socket::Caller;

/// How long a driver may take for one thing (upstream's).
const PATIENCE: Duration = Duration::from_mins(2);

/// How long drivers take, and what becomes of that.
static OPERATIONS: LazyLock<HistogramVec> = LazyLock::new(|| {
    FAMILIES.histograms(
        Alpha,
        "csi_operations_seconds",
        "Container Storage Interface operation duration with gRPC error code status total",
        &["driver_name", "method_name", "grpc_status_code", "migrated"],
        OF_STORAGE,
    )
});

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
        let labels = [self.name.as_str(), method, &code, "false"];
        OPERATIONS.with_label_values(&labels).observe(began.elapsed().as_secs_f64());
        answer
    }

    pub async fn info(&self) -> Result<NodeGetInfoResponse, Status> {
        self.call("/csi.v1.Node/NodeGetInfo", NodeGetInfoRequest {}).await
    }

    /// What it can do.
    pub async fn capabilities(&self) -> Result<Capabilities, Status> {
        let answer: NodeGetCapabilitiesResponse =
            self.call("/csi.v1.Node/NodeGetCapabilities", NodeGetCapabilitiesRequest {}).await?;
        let kinds = answer.capabilities.into_iter().filter_map(|capability| capability.rpc);
        Ok(Capabilities(kinds.map(|rpc| rpc.kind()).collect()))
    }

    pub async fn stage(&self, request: NodeStageVolumeRequest) -> Result<(), Status> {
        self.call("/csi.v1.Node/NodeStageVolume", request).await
    }

    pub async fn unstage(&self, volume: &str, path: &Path) -> Result<(), Status> {
        let request = NodeUnstageVolumeRequest {
            volume_id: volume.to_owned(),
            staging_target_path: path.display().to_string(),
        };
        self.call("/csi.v1.Node/NodeUnstageVolume", request).await
    }

    pub async fn publish(&self, request: NodePublishVolumeRequest) -> Result<(), Status> {
        self.call("/csi.v1.Node/NodePublishVolume", request).await
    }

    pub async fn unpublish(&self, volume: &str, path: &Path) -> Result<(), Status> {
        let request = NodeUnpublishVolumeRequest {
            volume_id: volume.to_owned(),
            target_path: path.display().to_string(),
        };
        self.call("/csi.v1.Node/NodeUnpublishVolume", request).await
    }

    /// Makes the volume as large as is asked. Returns its size in bytes, as the driver says it.
    pub async fn expand(&self, request: NodeExpandVolumeRequest) -> Result<i64, Status> {
        let answer: NodeExpandVolumeResponse = self.call("/csi.v1.Node/NodeExpandVolume", request).await?;
        Ok(answer.capacity_bytes)
    }

    pub async fn stats(&self, volume: &str, path: &Path) -> Result<NodeGetVolumeStatsResponse, Status> {
        let request = NodeGetVolumeStatsRequest {
            volume_id: volume.to_owned(),
            volume_path: path.display().to_string(),
            staging_target_path: String::new(),
        };
        self.call("/csi.v1.Node/NodeGetVolumeStats", request).await
    }
}

/// What a driver can do.
#[derive(Clone, Debug, Default)]
pub struct Capabilities(Vec<Capability>);

impl Capabilities {
    pub fn has(&self, wanted: Capability) -> bool {
        self.0.contains(&wanted)
    }

    /// What the driver is told of an access mode: one that does not tell one pod from many on its node is asked for one
    /// node alone.
    pub fn mode(&self, access_mode: &str) -> Mode {
        let tells = self.has(Capability::SingleNodeMultiWriter);
        match access_mode {
            "ReadWriteOnce" if tells => Mode::SingleNodeMultiWriter,
            "ReadWriteOncePod" if tells => Mode::SingleNodeSingleWriter,
            "ReadWriteOnce" | "ReadWriteOncePod" => Mode::SingleNodeWriter,
            "ReadOnlyMany" => Mode::MultiNodeReaderOnly,
            "ReadWriteMany" => Mode::MultiNodeMultiWriter,
            _ => Mode::Unknown,
        }
    }
}

/// What a volume is used as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Use {
    Block,
    Files { fs_type: String, options: Vec<String>, group: Option<u32> },
}

/// How a volume is used, as the driver is told it.
pub fn capability(used: Use, mode: Mode) -> VolumeCapability {
    let access_type = match used {
        Use::Block => AccessType::Block(BlockVolume {}),
        Use::Files { fs_type, options, group } => AccessType::Mount(MountVolume {
            fs_type,
            mount_flags: options,
            volume_mount_group: group.map(|group| group.to_string()).unwrap_or_default(),
        }),
    };
    VolumeCapability { access_type: Some(access_type), access_mode: Some(AccessMode { mode: mode as i32 }) }
}

/// Whether nothing goes on after such a failure: the driver has done nothing, or has done with it.
pub fn is_final(status: &Status) -> bool {
    !matches!(
        status.code(),
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Unavailable
            | Code::ResourceExhausted
            | Code::Aborted
    )
}

/// The second over the first.
pub fn merged(
    mut first: HashMap<String, String>,
    second: impl IntoIterator<Item = (String, String)>,
) -> HashMap<String, String> {
    first.extend(second);
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_modes_are_told_as_far_as_a_driver_tells_them_apart() {
        let plain = Capabilities::default();
        let able = Capabilities(vec![Capability::SingleNodeMultiWriter]);
        for (mode, by_plain, by_able) in [
            ("ReadWriteOnce", Mode::SingleNodeWriter, Mode::SingleNodeMultiWriter),
            ("ReadWriteOncePod", Mode::SingleNodeWriter, Mode::SingleNodeSingleWriter),
            ("ReadOnlyMany", Mode::MultiNodeReaderOnly, Mode::MultiNodeReaderOnly),
            ("ReadWriteMany", Mode::MultiNodeMultiWriter, Mode::MultiNodeMultiWriter),
            ("Other", Mode::Unknown, Mode::Unknown),
        ] {
            assert_eq!((plain.mode(mode), able.mode(mode)), (by_plain, by_able), "{mode}");
        }
    }

    #[test]
    fn what_may_still_go_on_is_not_final() {
        for (code, expected) in [
            (Code::Internal, true),
            (Code::InvalidArgument, true),
            (Code::Unavailable, false),
            (Code::Aborted, false),
            (Code::DeadlineExceeded, false),
        ] {
            assert_eq!(is_final(&Status::new(code, "")), expected, "{code:?}");
        }
    }
}
