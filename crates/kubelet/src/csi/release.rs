//! The end of a pod's volumes: the driver takes each out of the pod, and off the node when no other pod has it.

use std::fs;
use std::path::Path;
use std::time::Instant;

use super::api::Capability;
use super::paths::{self, PLUGIN, VolumeData, unique};
use super::state::Csi;
use super::storage_took;
use crate::blocking::blocking;
use crate::cri::rpc_error;
use crate::volumes::loops;

impl Csi {
    /// Takes all volumes out of a pod that is no more, and off the node those that no other pod has. What is done is found
    /// to be done.
    ///
    /// # Errors
    /// A driver refuses, or is not there; in upstream's words.
    pub async fn release(&self, uid: &str) -> Result<(), String> {
        for (path, data) in self.root.all_published(uid) {
            let lock = self.lock(&unique(&data.driver_name, &data.volume_handle));
            let _one = lock.lock().await;
            // Somebody else may have done it meanwhile.
            if VolumeData::load(&path).is_ok_and(|found| found.is_some()) {
                self.timed(&data, "volume_unmount", self.unpublish(&path, &data)).await?;
            }
            self.forget_given(uid, &data.spec_vol_id);
        }
        for name in self.root.linked(uid) {
            self.release_device(uid, &name).await?;
        }
        for name in self.used_by(uid) {
            let lock = self.lock(&name);
            let _one = lock.lock().await;
            if !self.is_shared(&name, uid) {
                self.clear(&name).await?;
            }
        }
        self.tokens.lock().retain(|(of, ..), _| of != uid);
        self.stats.lock().remove(uid);
        self.let_go(uid);
        Ok(())
    }

    async fn release_device(&self, uid: &str, name: &str) -> Result<(), String> {
        let place = self.root.device_data(name);
        let found = VolumeData::load(&place).map_err(|e| format!("{}: {e}", place.display()))?;
        let link = self.root.links(uid).join(name);
        // Without what was written down the device is gone, and the link leads nowhere.
        if let Some(data) = found {
            let lock = self.lock(&unique(&data.driver_name, &data.volume_handle));
            let _one = lock.lock().await;
            if link.is_symlink() {
                self.timed(&data, "unmap_volume", self.unpublish_device(uid, name, &data)).await?;
            }
        }
        paths::absent(fs::remove_file(&link)).map_err(|e| format!("{}: {e}", link.display()))?;
        self.forget_given(uid, name);
        Ok(())
    }

    /// Takes a volume off the node, as files and as a device.
    async fn clear(&self, name: &str) -> Result<(), String> {
        let is_it = |data: &VolumeData| unique(&data.driver_name, &data.volume_handle) == name;
        for (path, data) in self.root.all_staged().into_iter().filter(|(_, data)| is_it(data)) {
            self.timed(&data, "unmount_device", self.unstage(&path, &data)).await?;
        }
        for (volume, data) in self.root.all_devices().into_iter().filter(|(_, data)| is_it(data)) {
            self.timed(&data, "unmap_device", self.unstage_device(&volume, &data)).await?;
        }
        self.staged.lock().remove(name);
        Ok(())
    }

    /// Takes volumes off the node that no pod has: those of pods that went while no kubelet ran, or between two steps.
    pub async fn release_unused(&self) {
        for name in self.unused() {
            let lock = self.lock(&name);
            let _one = lock.lock().await;
            if !self.is_unused(&name) {
                continue;
            }
            match self.clear(&name).await {
                Ok(()) => self.forget_unused(&name),
                Err(error) => {
                    tracing::debug!(volume = name, error, "a volume that nobody has is still on the node");
                }
            }
        }
    }

    async fn timed(
        &self,
        data: &VolumeData,
        operation: &str,
        work: impl Future<Output = Result<(), String>>,
    ) -> Result<(), String> {
        let began = Instant::now();
        let done = work.await;
        storage_took(&format!("{PLUGIN}:{}", data.driver_name), operation, done.is_ok(), began);
        done
    }

    fn forget_given(&self, uid: &str, name: &str) {
        self.given.lock().remove(&(uid.to_owned(), name.to_owned()));
    }

    async fn unpublish(&self, path: &Path, data: &VolumeData) -> Result<(), String> {
        let failed = |what: &str, why: String| format!("{PLUGIN}: Unmounter.TearDownAt failed{what}: {why}");
        let driver = self.drivers.get(&data.driver_name).map_err(|why| failed(" to get CSI client", why))?;
        let unpublished = driver.unpublish(&data.volume_handle, path).await;
        unpublished.map_err(|status| failed("", rpc_error(&status)))?;
        let place = format!(" to clean mount dir [{}]", path.display());
        paths::forget(path).map_err(|e| failed(&place, e.to_string()))?;
        if path.exists() {
            return Err(failed(&place, "it is still mounted".to_owned()));
        }
        Ok(())
    }

    /// What is not written down is not there.
    async fn unstage(&self, path: &Path, data: &VolumeData) -> Result<(), String> {
        let failed = |why: String| format!("{PLUGIN}: attacher.UnmountDevice failed: {why}");
        let found = VolumeData::load(path).map_err(|e| failed(e.to_string()))?;
        if found.is_some() {
            let driver = self.drivers.get(&data.driver_name).map_err(|why| {
                format!("{PLUGIN}: attacher.UnmountDevice failed to create newCsiDriverClient: {why}")
            })?;
            let able = driver.capabilities().await.map_err(|status| failed(rpc_error(&status)))?;
            if able.has(Capability::StageUnstageVolume) {
                let unstaged = driver.unstage(&data.volume_handle, path).await;
                unstaged.map_err(|status| failed(rpc_error(&status)))?;
            }
            paths::forget(path)
                .map_err(|e| format!("{PLUGIN}: failed to clean up global mount {}: {e}", path.display()))?;
        }
        Ok(())
    }

    async fn unpublish_device(&self, uid: &str, name: &str, data: &VolumeData) -> Result<(), String> {
        let driver = self
            .drivers
            .get(&data.driver_name)
            .map_err(|why| format!("{PLUGIN}: blockMapper.UnmapPodDevice failed to get CSI client: {why}"))?;
        let path = self.root.device_published(name, uid);
        // What is held, the driver cannot unmount.
        let held = path.clone();
        blocking(move || loops::release(&held)).await.map_err(|error| {
            let place = path.parent().unwrap_or(&path).display();
            format!("blkUtil.DetachFileDevice failed. globalUnmapPath:{place}, podUID: {uid}: {error}")
        })?;
        driver.unpublish(&data.volume_handle, &path).await.map_err(|status| {
            format!("{PLUGIN}: blockMapper.unpublishVolumeForBlock failed: {}", rpc_error(&status))
        })
    }

    async fn unstage_device(&self, name: &str, data: &VolumeData) -> Result<(), String> {
        let path = self.root.device_staged(name);
        if path.exists() {
            let driver = self.drivers.get(&data.driver_name).map_err(|why| {
                format!("{PLUGIN}: blockMapper.TearDownDevice failed to get CSI client: {why}")
            })?;
            driver.unstage(&data.volume_handle, &path).await.map_err(|status| {
                format!("{PLUGIN}: blockMapper.unstageVolumeForBlock failed: {}", rpc_error(&status))
            })?;
        }
        self.root
            .forget_device(name)
            .map_err(|e| format!("{PLUGIN}: failed to clean up the device of {name}: {e}"))?;
        Ok(())
    }
}
