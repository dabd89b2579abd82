//! Volumes that pods see as block devices.

use std::path::{Path, PathBuf};

use krate_client::EventType;

use super::api::{Capability, NodePublishVolumeRequest, NodeStageVolumeRequest};
use super::client::{Use, capability, is_final, merged};
use super::files::Work;
use super::paths::{self, PLUGIN, VolumeData};
use super::state::Csi;
use super::wanted::Wanted;
use crate::blocking::blocking;
use crate::cri::rpc_error;
use crate::names;
use crate::volumes::{Content, Context, Mounted, VolumeError, loops, make_private_directory};

const SET_UP: &str = "MapVolume.SetUpDevice failed";
const MAP: &str = "MapVolume.MapPodDevice failed";
const MAP_BLOCK: &str = "MapVolume.MapBlockVolume failed";

impl Csi {
    pub(super) async fn device(
        &self,
        context: &Context<'_>,
        wanted: &Wanted<'_>,
    ) -> Result<Mounted, VolumeError> {
        let failed = |what: &'static str, why: String| VolumeError::Step {
            reason: "FailedMapVolume",
            what,
            volume: wanted.name.clone(),
            why,
        };
        let work = self.ready(context, wanted, SET_UP).await.map_err(|error| match error {
            VolumeError::Step { what, why, .. } => failed(what, why),
            other => other,
        })?;
        let uid = names::uid(context.pod);
        let lock = self.lock(&wanted.unique());
        let _one = lock.lock().await;
        let key = (uid.clone(), wanted.name.clone());
        let path = self.root.device_published(&wanted.name, &uid);
        let is_given = self.given.lock().contains_key(&key);
        let staged =
            work.able.has(Capability::StageUnstageVolume).then(|| self.root.device_staged(&wanted.name));
        if !is_given {
            self.stage_device(&work, staged.as_deref()).await.map_err(|why| failed(SET_UP, why))?;
            self.publish_device(context, &work, &path).await.map_err(|why| failed(MAP, why))?;
            let link = self.root.links(&uid).join(&wanted.name);
            linked(&path, &link).map_err(|e| failed(MAP_BLOCK, format!("{}: {e}", link.display())))?;
            let held = path.clone();
            blocking(move || loops::hold(&held)).await.map_err(|error| {
                let place = path.parent().unwrap_or(&path).display();
                let why = "blkUtil.AttachFileDevice failed";
                failed(MAP_BLOCK, format!("{why}. globalMapPath:{place}, podUID: {uid}: {error}"))
            })?;
            for (what, place) in [("globalMapPath", &path), ("volumeMapPath", &self.root.links(&uid))] {
                let message = format!(
                    "MapVolume.MapPodDevice succeeded for volume {:?} {what} {:?}",
                    wanted.name,
                    place.display().to_string()
                );
                let pod = krate_client::reference(context.pod);
                self.events.event(&pod, EventType::Normal, "SuccessfulMountVolume", message);
            }
        }
        let known = self.given.lock().get(&key).map(|given| given.size);
        let size = self.expand(context, &work, &path, staged.as_deref(), known).await?;
        self.given.lock().insert(key, wanted.given(path.clone(), size));
        let grows = work.able.has(Capability::ExpandVolume);
        Ok(Mounted {
            content: Content::Device(path),
            read_only: wanted.read_only,
            refresh_at: grows.then(|| self.next_look()),
        })
    }

    async fn stage_device(&self, work: &Work<'_>, staged: Option<&Path>) -> Result<(), String> {
        let wanted = work.wanted;
        if self.staged.lock().contains(&wanted.unique()) {
            return Ok(());
        }
        let data = VolumeData {
            attachment_id: paths::attachment(&wanted.handle, &wanted.driver, &self.node),
            driver_name: wanted.driver.clone(),
            node_name: self.node.clone(),
            spec_vol_id: wanted.name.clone(),
            volume_handle: wanted.handle.clone(),
            volume_lifecycle_mode: String::new(),
        };
        let place = self.root.device_data(&wanted.name);
        let was_there = VolumeData::load(&place).ok().flatten().is_some();
        paths::prepare(&place, false).and_then(|()| data.save(&place)).map_err(|e| {
            format!("{PLUGIN}: csi.NewBlockVolumeMapper failed to save volume info data: {e}")
        })?;
        if let Some(path) = staged {
            let secrets = self.secret(wanted.stage_secret.as_ref(), "NodeStageSecretRef").await?;
            make_private_directory(path).map_err(|e| {
                format!(
                    "{PLUGIN}: blockMapper.stageVolumeForBlock failed to create dir {}: {e}",
                    path.display()
                )
            })?;
            let request = NodeStageVolumeRequest {
                volume_id: wanted.handle.clone(),
                publish_context: work.attached.clone(),
                staging_target_path: path.display().to_string(),
                volume_capability: Some(capability(Use::Block, work.able.mode(wanted.access_mode()))),
                secrets,
                volume_context: wanted.attributes.clone(),
            };
            if let Err(status) = work.driver.stage(request).await {
                if is_final(&status)
                    && !was_there
                    && let Err(error) = self.root.forget_device(&wanted.name)
                {
                    tracing::debug!(volume = wanted.name, %error, "a place for a device is left");
                }
                return Err(rpc_error(&status));
            }
        }
        self.staged.lock().insert(wanted.unique());
        Ok(())
    }

    async fn publish_device(
        &self,
        context: &Context<'_>,
        work: &Work<'_>,
        path: &Path,
    ) -> Result<(), String> {
        let wanted = work.wanted;
        let mut attributes = wanted.attributes.clone();
        if work.object.as_ref().is_some_and(|driver| driver.spec.pod_info_on_mount == Some(true)) {
            attributes = merged(attributes, wanted.pod_info(context.pod));
        }
        let secrets = self.secret(wanted.publish_secret.as_ref(), "NodePublishSecretRef").await?;
        paths::prepare(path, false).map_err(|e| {
            format!(
                "{PLUGIN}: blockMapper.publishVolumeForBlock failed to create dir {}:  {e}",
                path.display()
            )
        })?;
        let request = NodePublishVolumeRequest {
            volume_id: wanted.handle.clone(),
            publish_context: work.attached.clone(),
            // Upstream names the place whether the driver stages or not.
            staging_target_path: self.root.device_staged(&wanted.name).display().to_string(),
            target_path: path.display().to_string(),
            volume_capability: Some(capability(Use::Block, work.able.mode(wanted.access_mode()))),
            readonly: wanted.read_only,
            secrets,
            volume_context: attributes,
        };
        work.driver.publish(request).await.map_err(|status| rpc_error(&status))
    }
}

/// Makes a link that leads to a device, by which the pod is known to have it.
fn linked(device: &Path, link: &PathBuf) -> std::io::Result<()> {
    if let Some(directory) = link.parent() {
        make_private_directory(directory)?;
    }
    match std::os::unix::fs::symlink(device, link) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}
