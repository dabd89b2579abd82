//! How full volumes are, as their drivers say.

use std::sync::LazyLock;
use std::time::Instant;

use jiff::Timestamp;
use krate_metrics::Stability::Alpha;
use prometheus::{DEFAULT_BUCKETS, HistogramVec};

use super::api::{Capability, Unit};
use super::state::{Csi, Given};
use crate::instruments::FAMILIES;

/// How long it takes to find out.
static COLLECTION: LazyLock<HistogramVec> = LazyLock::new(|| {
    FAMILIES.histograms(
        Alpha,
        "kubelet_volume_metric_collection_duration_seconds",
        "Duration in seconds to calculate volume stats",
        &["metric_source"],
        DEFAULT_BUCKETS,
    )
});

/// How full a volume is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeStats {
    /// The volume's name in its pod, and the claim that led to it.
    pub volume: String,
    pub claim: Option<String>,
    pub at: Timestamp,
    /// In bytes.
    pub capacity: i64,
    pub available: i64,
    pub used: i64,
    pub inodes: i64,
    pub inodes_free: i64,
    pub inodes_used: i64,
}

/// What was found out of a pod's volumes.
pub type Kept = Vec<VolumeStats>;

impl Csi {
    /// How full a pod's volumes are, as far as their drivers say that; what was found out a moment ago is told again.
    pub async fn volume_stats(&self, uid: &str) -> Vec<VolumeStats> {
        let Some(age) = self.times.stats else { return Vec::new() };
        let kept =
            self.stats.lock().get(uid).filter(|(at, _)| at.elapsed() < age).map(|(_, kept)| kept.clone());
        if let Some(kept) = kept {
            return kept;
        }
        let given: Vec<Given> = self
            .given
            .lock()
            .iter()
            .filter(|((of, _), _)| of == uid)
            .map(|(_, given)| given.clone())
            .collect();
        if given.is_empty() {
            return Vec::new();
        }
        let all = futures::future::join_all(given.iter().map(|given| self.of(given))).await;
        let found: Kept = all.into_iter().flatten().collect();
        self.stats.lock().insert(uid.to_owned(), (Instant::now(), found.clone()));
        found
    }

    async fn of(&self, given: &Given) -> Option<VolumeStats> {
        let began = Instant::now();
        let asked = async {
            let driver = self.drivers.get(&given.driver).ok()?;
            if !driver.capabilities().await.ok()?.has(Capability::GetVolumeStats) {
                return None;
            }
            driver.stats(&given.handle, &given.path).await.ok()
        };
        let answer = asked.await;
        COLLECTION.with_label_values(&[&given.driver]).observe(began.elapsed().as_secs_f64());
        let answer = answer.filter(|answer| !answer.usage.is_empty())?;
        let mut stats = VolumeStats {
            volume: given.volume.clone(),
            claim: given.claim.clone(),
            at: Timestamp::now(),
            capacity: 0,
            available: 0,
            used: 0,
            inodes: 0,
            inodes_free: 0,
            inodes_used: 0,
        };
        for usage in answer.usage {
            match usage.unit() {
                Unit::Bytes => {
                    (stats.capacity, stats.available, stats.used) =
                        (usage.total, usage.available, usage.used);
                }
                Unit::Inodes => {
                    (stats.inodes, stats.inodes_free, stats.inodes_used) =
                        (usage.total, usage.available, usage.used);
                }
                Unit::Unknown => tracing::debug!(driver = given.driver, "a driver counts what is unknown"),
            }
        }
        Some(stats)
    }
}
