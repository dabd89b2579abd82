//! Volumes whose files pods see: made ready for the node once, and published to each pod.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::api::storage::v1::CSIDriver;
use tonic::Status;

use super::api::{Capability, NodePublishVolumeRequest, NodeStageVolumeRequest};
use super::attach::NotAttached;
use super::client::{Capabilities, Driver, Use, capability, is_final, merged};
use super::paths::{self, PLUGIN, VolumeData};
use super::state::Csi;
use super::wanted::Wanted;
use super::{TOTAL, storage_took};
use crate::cri::rpc_error;
use crate::names;
use crate::volumes::{Content, Context, Mounted, VolumeError};

/// What is known when something is done with a volume.
pub(super) struct Work<'a> {
    pub wanted: &'a Wanted<'a>,
    pub driver: Driver,
    pub object: Option<Arc<CSIDriver>>,
    pub able: Capabilities,
    pub attached: HashMap<String, String>,
}

impl Csi {
    /// Brings a volume into a pod, or up to date there.
    ///
    /// # Errors
    /// In upstream's words.
    pub async fn set_up(&self, context: &Context<'_>, wanted: &Wanted<'_>) -> Result<Mounted, VolumeError> {
        let began = Instant::now();
        let is_block = wanted
            .from
            .and_then(|(pv, _)| pv.spec.as_ref())
            .is_some_and(|spec| spec.volume_mode.as_deref() == Some("Block"));
        let plugin = format!("{PLUGIN}:{}", wanted.driver);
        context.tally.wanted(&names::uid(context.pod), wanted.volume, plugin.clone());
        let is_new = !self.given.lock().contains_key(&(names::uid(context.pod), wanted.name.clone()));
        let done =
            if is_block { self.device(context, wanted).await } else { self.files(context, wanted).await };
        let operation = if is_block { "map_volume" } else { "volume_mount" };
        storage_took(&plugin, operation, done.is_ok(), began);
        if done.is_ok() && is_new {
            let operation = if is_block { "overall_volume_map" } else { "overall_volume_mount" };
            TOTAL.with_label_values(&[plugin.as_str(), operation]).observe(began.elapsed().as_secs_f64());
        }
        done
    }

    /// Waits for what must be there before a volume can be used.
    pub(super) async fn ready<'a>(
        &self,
        context: &Context<'_>,
        wanted: &'a Wanted<'_>,
        what: &'static str,
    ) -> Result<Work<'a>, VolumeError> {
        let object = self.drivers.object(&wanted.driver).await.map_err(|why| wanted.failed(what, why))?;
        let must_be_attached =
            object.as_ref().is_none_or(|driver| driver.spec.attach_required.unwrap_or(true));
        let mut attached = HashMap::new();
        if wanted.is_persistent() {
            self.wants(&wanted.unique(), &names::uid(context.pod));
            if must_be_attached {
                let outcome = self.attached(&wanted.driver, &wanted.handle, context.patience).await;
                attached = outcome.map_err(|not| match not {
                    NotAttached::Late => VolumeError::Unattached,
                    NotAttached::Failed(why) => wanted.failed("MountVolume.WaitForAttach failed", why),
                })?;
            }
        }
        let driver = self.drivers.get(&wanted.driver).map_err(|why| {
            let step = if wanted.is_persistent() && what != "MapVolume.SetUpDevice failed" {
                "attacher.MountDevice failed to create newCsiDriverClient"
            } else if wanted.is_persistent() {
                "blockMapper.SetUpDevice failed to get CSI client"
            } else {
                "mounter.SetUpAt failed to get CSI client"
            };
            wanted.failed(what, format!("{PLUGIN}: {step}: {why}"))
        })?;
        let able = driver.capabilities().await.map_err(|status| wanted.failed(what, rpc_error(&status)))?;
        Ok(Work { wanted, driver, object, able, attached })
    }

    async fn files(&self, context: &Context<'_>, wanted: &Wanted<'_>) -> Result<Mounted, VolumeError> {
        let first = if wanted.is_persistent() {
            "MountVolume.MountDevice failed"
        } else {
            "MountVolume.SetUp failed"
        };
        let work = self.ready(context, wanted, first).await?;
        let uid = names::uid(context.pod);
        let lock = self.lock(&wanted.unique());
        let _one = lock.lock().await;
        let staged = if wanted.is_persistent() {
            self.stage(context, &work).await.map_err(|why| wanted.failed(first, why))?
        } else {
            None
        };
        let path = self.root.published(&uid, &wanted.name);
        let republishes = work.object.as_ref().is_some_and(|d| d.spec.requires_republish == Some(true));
        let key = (uid, wanted.name.clone());
        let is_given = self.given.lock().contains_key(&key);
        if !is_given || republishes {
            let published = self.publish(context, &work, staged.as_ref()).await;
            published.map_err(|why| wanted.failed("MountVolume.SetUp failed", why))?;
        }
        let grows = wanted.is_persistent() && work.able.has(Capability::ExpandVolume);
        let known = self.given.lock().get(&key).map(|given| given.size);
        let size = self.expand(context, &work, &path, staged.as_deref(), known).await?;
        self.given.lock().insert(key, wanted.given(path.clone(), size));
        Ok(Mounted {
            content: Content::Files(path),
            read_only: wanted.read_only,
            refresh_at: (republishes || grows).then(|| self.next_look()),
        })
    }

    /// Makes a volume ready for the node, unless this kubelet has done so. Returns where, if the driver does such things.
    async fn stage(&self, context: &Context<'_>, work: &Work<'_>) -> Result<Option<PathBuf>, String> {
        let wanted = work.wanted;
        let does = work.able.has(Capability::StageUnstageVolume);
        let path = self.root.staged(&wanted.driver, &wanted.handle);
        if self.staged.lock().contains(&wanted.unique()) {
            return Ok(does.then_some(path));
        }
        let secrets = if does {
            self.secret(wanted.stage_secret.as_ref(), "NodeStageSecretRef").await?
        } else {
            HashMap::new()
        };
        let was_there = VolumeData::load(&path).ok().flatten().is_some();
        let failed = |what: &str, error: std::io::Error| {
            format!("{PLUGIN}: attacher.MountDevice failed to {what} {:?}:  {error}", path.display())
        };
        paths::prepare(&path, true).map_err(|e| failed("create dir", e))?;
        let data = VolumeData {
            driver_name: wanted.driver.clone(),
            volume_handle: wanted.handle.clone(),
            ..VolumeData::default()
        };
        data.save(&path).map_err(|e| failed("save volume info data", e))?;
        if does {
            let group = context.fs_group().filter(|_| work.able.has(Capability::VolumeMountGroup));
            let used = Use::Files { fs_type: wanted.fs_type.clone(), options: wanted.options.clone(), group };
            let request = NodeStageVolumeRequest {
                volume_id: wanted.handle.clone(),
                publish_context: work.attached.clone(),
                staging_target_path: path.display().to_string(),
                volume_capability: Some(capability(used, work.able.mode(wanted.access_mode()))),
                secrets,
                volume_context: wanted.attributes.clone(),
            };
            if let Err(status) = work.driver.stage(request).await {
                // What was there before this kubelet came may be in use.
                return Err(failed_at(&path, was_there, &status));
            }
        }
        self.staged.lock().insert(wanted.unique());
        Ok(does.then_some(path))
    }

    async fn publish(
        &self,
        context: &Context<'_>,
        work: &Work<'_>,
        staged: Option<&PathBuf>,
    ) -> Result<(), String> {
        let (wanted, pod) = (work.wanted, context.pod);
        let step = |what: &str, why: String| format!("{PLUGIN}: mounter.SetUpAt failed to {what}: {why}");
        let object = work.object.as_deref();
        wanted.check_lifecycle(object).map_err(|why| {
            format!("{PLUGIN}: mounter.SetupAt failed to check volume lifecycle mode: {why}")
        })?;
        let policy = object.and_then(|driver| driver.spec.fs_group_policy.as_deref());
        let policy = policy.filter(|policy| !policy.is_empty()).unwrap_or("ReadWriteOnceWithFSType");
        let path = self.root.published(&names::uid(pod), &wanted.name);
        let was_there = VolumeData::load(&path).ok().flatten().is_some();
        paths::prepare(&path, false)
            .map_err(|e| step(&format!("create dir {:?}", path.display()), e.to_string()))?;
        let mut secrets = self.secret(wanted.publish_secret.as_ref(), "NodePublishSecretRef").await?;
        let mut attributes = wanted.attributes.clone();
        if object.is_some_and(|driver| driver.spec.pod_info_on_mount == Some(true)) {
            attributes = merged(attributes, wanted.pod_info(pod));
        }
        let tokens = self.tokens(context, &wanted.driver, object).await;
        let tokens = tokens.map_err(|why| step("get service accoount token attributes", why))?;
        if object.is_some_and(|driver| driver.spec.service_account_token_in_secrets == Some(true)) {
            secrets = merged(secrets, tokens);
        } else {
            attributes = merged(attributes, tokens);
        }
        let data = VolumeData {
            attachment_id: paths::attachment(&wanted.handle, &wanted.driver, &self.node),
            driver_name: wanted.driver.clone(),
            node_name: self.node.clone(),
            spec_vol_id: wanted.name.clone(),
            volume_handle: wanted.handle.clone(),
            volume_lifecycle_mode: wanted.lifecycle().to_owned(),
        };
        data.save(&path).map_err(|e| step("save volume info data", e.to_string()))?;
        let delegates = work.able.has(Capability::VolumeMountGroup);
        let group = context.fs_group();
        let used = Use::Files {
            fs_type: wanted.fs_type.clone(),
            options: wanted.options.clone(),
            group: group.filter(|_| delegates),
        };
        let request = NodePublishVolumeRequest {
            volume_id: wanted.handle.clone(),
            publish_context: work.attached.clone(),
            staging_target_path: staged.map(|path| path.display().to_string()).unwrap_or_default(),
            target_path: path.display().to_string(),
            volume_capability: Some(capability(used, work.able.mode(wanted.access_mode()))),
            readonly: wanted.read_only,
            secrets,
            volume_context: attributes,
        };
        if let Err(status) = work.driver.publish(request).await {
            // What a pod sees already stays, whatever becomes of bringing it up to date.
            return Err(failed_at(&path, was_there, &status));
        }
        if !delegates && wanted.is_given_to_group(policy) {
            let began = Instant::now();
            let given = context.give(&path).await;
            let plugin = format!("{PLUGIN}:{}", wanted.driver);
            storage_took(&plugin, "volume_apply_access_control", given.is_ok(), began);
            given.map_err(|e| format!("applyFSGroup failed for vol {}: {e}", wanted.handle))?;
        }
        Ok(())
    }
}

/// Says why a driver failed, and takes away the place that was made for it, if nothing goes on there.
fn failed_at(path: &Path, was_there: bool, status: &Status) -> String {
    if is_final(status)
        && !was_there
        && let Err(error) = paths::forget(path)
    {
        tracing::debug!(path = %path.display(), %error, "a place for a volume is left");
    }
    rpc_error(status)
}
