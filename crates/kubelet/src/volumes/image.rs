//! Images as volumes (KEP-4639): the runtime mounts them, so there is nothing of them on the kubelet's side.

use std::path::Path;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Volume;

use super::{Content, Context, Mounted, Plugin, VolumeError};

pub struct ImageVolume;

#[async_trait]
impl Plugin for ImageVolume {
    fn name(&self) -> &'static str {
        "kubernetes.io/image"
    }

    fn is_for(&self, volume: &Volume) -> bool {
        volume.image.is_some()
    }

    async fn set_up(&self, _: &Context<'_>, volume: &Volume, _: &Path) -> Result<Mounted, VolumeError> {
        let source = volume.image.clone().unwrap_or_default();
        let reference = source.reference.unwrap_or_default();
        let content = Content::Image { reference, pull_policy: source.pull_policy };
        Ok(Mounted { content, read_only: true, refresh_at: None })
    }
}
