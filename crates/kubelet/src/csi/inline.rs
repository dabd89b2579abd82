//! Volumes of CSI drivers that live as long as their pod (KEP-596).

use std::path::Path;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Volume;

use super::wanted::Wanted;
use crate::volumes::{Context, Mounted, Plugin, VolumeError};

pub struct Inline;

#[async_trait]
impl Plugin for Inline {
    fn name(&self) -> &'static str {
        super::paths::PLUGIN
    }

    fn is_for(&self, volume: &Volume) -> bool {
        volume.csi.is_some()
    }

    fn leads_elsewhere(&self) -> bool {
        true
    }

    async fn set_up(&self, context: &Context<'_>, volume: &Volume, _: &Path) -> Result<Mounted, VolumeError> {
        let source = volume.csi.clone().unwrap_or_default();
        context.csi.set_up(context, &Wanted::ephemeral(&volume.name, &source, context.pod)).await
    }
}
