//! What the runtime holds that nobody needs: images that no container was made from for a while, and containers that
//! have ended.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_cri::v1::{self as cri, ContainerState, Image};
use krate_client::EventType;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::disks::{Fill, RuntimeDisks};
use crate::instruments::COLLECTED_IMAGES;
use crate::shared::{Shared, SharedRef};

/// How often the disk is looked at.
const LOOK: Duration = Duration::from_mins(5);

/// When images go, under the names of `KubeletConfiguration`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImagePolicy {
    /// Hundredths of the disk: from here on images are removed, until no more than the lower is used.
    pub high_threshold_percent: u8,
    pub low_threshold_percent: u8,
    /// One that came just now may be about to be used.
    pub minimum_age: Duration,
    /// One that was not used for so long goes in any case; zero: none does.
    pub maximum_age: Duration,
}

impl Default for ImagePolicy {
    fn default() -> Self {
        ImagePolicy {
            high_threshold_percent: 85,
            low_threshold_percent: 80,
            minimum_age: Duration::from_mins(2),
            maximum_age: Duration::ZERO,
        }
    }
}

impl ImagePolicy {
    /// No image goes by itself.
    pub fn keep_all() -> Self {
        ImagePolicy { high_threshold_percent: 100, ..ImagePolicy::default() }
    }
}

#[derive(Clone, Copy, Debug)]
struct Known {
    found: Instant,
    used: Option<Instant>,
}

/// What is known of images: when they came, and when they were used last.
#[derive(Debug, Default)]
pub struct ImageGarbage {
    known: Mutex<HashMap<String, Known>>,
}

impl ImageGarbage {
    /// Takes in what there is. Returns the images that nobody uses, the longest unused first.
    fn unused(&self, images: Vec<Image>, in_use: &HashSet<String>, now: Instant) -> Vec<(Image, Known)> {
        let mut known = self.known.lock();
        known.retain(|id, _| images.iter().any(|image| image.id == *id));
        let mut unused = Vec::new();
        for image in images {
            let entry = known.entry(image.id.clone()).or_insert(Known { found: now, used: None });
            if in_use.contains(&image.id) {
                entry.used = Some(now);
            } else if !image.pinned {
                unused.push((image, *entry));
            }
        }
        unused.sort_by_key(|(_, known)| (known.used, known.found));
        unused
    }

    async fn look(&self, shared: &Shared) -> Result<Vec<(Image, Known)>, tonic::Status> {
        let request = cri::ListImagesRequest { filter: None };
        let images = shared.cri.images().list_images(request).await?.into_inner().images;
        // Asked for after the images: whatever is in use by then is known to be.
        let in_use = in_use(shared).await?;
        Ok(self.unused(images, &in_use, Instant::now()))
    }

    /// Removes images until so many bytes are free again. Returns how many are.
    async fn free(&self, shared: &Shared, wanted: u64) -> Result<u64, tonic::Status> {
        let (mut freed, now) = (0, Instant::now());
        for (image, known) in self.look(shared).await? {
            if freed >= wanted {
                break;
            }
            if now.duration_since(known.found) < shared.config.image_gc.minimum_age {
                continue;
            }
            freed += remove(shared, &image, "space").await;
        }
        Ok(freed)
    }

    /// Removes all images that nobody uses.
    pub async fn remove_unused(&self, shared: &Shared) {
        if let Err(status) = self.free(shared, u64::MAX).await {
            tracing::debug!(%status, "images could not be removed");
        }
    }

    async fn remove_old(&self, shared: &Shared) -> Result<(), tonic::Status> {
        let (oldest, now) = (shared.config.image_gc.maximum_age, Instant::now());
        for (image, known) in self.look(shared).await? {
            if !oldest.is_zero() && now.duration_since(known.used.unwrap_or(known.found)) > oldest {
                remove(shared, &image, "age").await;
            }
        }
        Ok(())
    }

    /// Makes room on the disk when too much of it is used.
    async fn collect(&self, shared: &Shared) -> Result<(), tonic::Status> {
        self.remove_old(shared).await?;
        let disks = RuntimeDisks::ask(&shared.cri).await?;
        let Some(disk) = Fill::of(&disks.images.path) else { return Ok(()) };
        let (capacity, available) = (disk.capacity.unsigned_abs(), disk.available.unsigned_abs());
        let Some(wanted) = to_free(capacity, available, shared.config.image_gc) else { return Ok(()) };
        let freed = self.free(shared, wanted).await?;
        if freed < wanted {
            let message = format!(
                "Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, but only found \
                 {freed} bytes eligible to free."
            );
            shared.events.event(&shared.node_reference(), EventType::Warning, "FreeDiskSpaceFailed", message);
        }
        Ok(())
    }
}

/// Bytes that must be freed, when more than allowed are used.
fn to_free(capacity: u64, available: u64, policy: ImagePolicy) -> Option<u64> {
    let available = available.min(capacity);
    let used = 100 - (available * 100).checked_div(capacity)?;
    let kept = capacity * (100 - u64::from(policy.low_threshold_percent)) / 100;
    (used >= u64::from(policy.high_threshold_percent)).then(|| kept.saturating_sub(available))
}

/// The ids of the images that containers were made from, and that they mount.
async fn in_use(shared: &Shared) -> Result<HashSet<String>, tonic::Status> {
    let mut used = HashSet::new();
    for container in shared.cri.containers(None).await? {
        used.extend([container.image_id, container.image_ref]);
        used.extend(container.image.map(|image| image.image));
        if container.state != ContainerState::ContainerExited as i32 {
            let status = shared.cri.container_status(&container.id).await;
            let mounts = status.map(|s| s.mounts).unwrap_or_default();
            used.extend(mounts.into_iter().filter_map(|m| m.image).map(|image| image.image));
        }
    }
    Ok(used)
}

async fn remove(shared: &Shared, image: &Image, reason: &str) -> u64 {
    let spec = cri::ImageSpec { image: image.id.clone(), ..Default::default() };
    match shared.cri.images().remove_image(cri::RemoveImageRequest { image: Some(spec) }).await {
        Ok(_) => {
            tracing::info!(image = image.id, bytes = image.size, "an image that nobody uses was removed");
            COLLECTED_IMAGES.with_label_values(&[reason]).inc();
            image.size
        }
        Err(status) => {
            tracing::debug!(image = image.id, %status, "an image could not be removed");
            0
        }
    }
}

/// Removes the containers that have ended, but the last of each name: its end is still told.
pub async fn remove_dead_containers(shared: &Shared) {
    let Ok(mut all) = shared.cri.containers(None).await else { return };
    all.sort_by_key(|c| std::cmp::Reverse(c.created_at));
    let mut kept = HashSet::new();
    for container in all {
        let label = |name: &str| container.labels.get(name).cloned().unwrap_or_default();
        let is_last = kept.insert((label(crate::names::POD_UID), label(crate::names::CONTAINER_NAME)));
        if !is_last
            && container.state == ContainerState::ContainerExited as i32
            && let Err(status) = shared.cri.remove_container(&container.id).await
        {
            tracing::debug!(container = container.id, %status, "a dead container could not be removed");
        }
    }
}

/// Looks after images until the kubelet ends.
pub async fn run(shared: SharedRef, garbage: Arc<ImageGarbage>) {
    if shared.config.image_gc.high_threshold_percent == 100 && shared.config.image_gc.maximum_age.is_zero() {
        return;
    }
    loop {
        if let Err(status) = garbage.collect(&shared).await {
            tracing::debug!(%status, "images could not be looked at");
        }
        tokio::select! {
            () = shared.shutdown.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_made_down_to_the_low_threshold() {
        let policy = ImagePolicy::default();
        for (available, wanted) in [(200, None), (160, None), (150, Some(50)), (10, Some(190)), (2000, None)]
        {
            assert_eq!(to_free(1000, available, policy), wanted, "{available}");
        }
        assert_eq!(to_free(0, 0, policy), None);
    }

    #[test]
    fn the_longest_unused_go_first_and_those_in_use_stay() {
        let image = |id: &str, pinned| Image { id: id.into(), pinned, ..Default::default() };
        let all =
            || vec![image("used", false), image("once", false), image("never", false), image("kept", true)];
        let (garbage, start) = (ImageGarbage::default(), Instant::now());
        let used = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<HashSet<_>>();
        garbage.unused(all(), &used(&["used", "once"]), start);
        let later = start + Duration::from_secs(9);
        let left = garbage.unused(all(), &used(&["used"]), later);
        let ids: Vec<&str> = left.iter().map(|(image, _)| image.id.as_str()).collect();
        assert_eq!(ids, ["never", "once"]);
        assert_eq!(left[1].1.used, Some(start));
    }
}
