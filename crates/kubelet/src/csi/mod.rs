//! Volumes of CSI drivers: the drivers announce themselves and are listed in the node's `CSINode`, and make volumes ready
//! for the node and for its pods. What is done is written down beside the volumes, so that a kubelet that was started anew
//! finds it; what is not a driver's to do here (to attach, to provision) is waited for.

pub mod api;
mod attach;
mod block;
mod client;
mod drivers;
mod expand;
mod files;
mod inline;
mod node_info;
mod paths;
mod release;
mod state;
mod stats;
mod tokens;
mod wanted;

use std::sync::LazyLock;
use std::time::Instant;

use krate_metrics::Stability::Alpha;
use prometheus::HistogramVec;

use crate::instruments::{FAMILIES, OF_STORAGE};

pub use drivers::{CsiPlugins, Drivers};
pub use inline::Inline;
pub use state::{Csi, Times};
pub use stats::VolumeStats;
pub use wanted::Wanted;

/// What is done with volumes, and how long it takes.
static STORAGE: LazyLock<HistogramVec> = LazyLock::new(|| {
    FAMILIES.histograms(
        Alpha,
        "storage_operation_duration_seconds",
        "Storage operation duration",
        &["volume_plugin", "operation_name", "status", "migrated"],
        OF_STORAGE,
    )
});

/// How long volumes take until a pod has them, with all that is waited for.
static TOTAL: LazyLock<HistogramVec> = LazyLock::new(|| {
    FAMILIES.histograms(
        Alpha,
        "volume_operation_total_seconds",
        "Storage operation end to end duration in seconds",
        &["plugin_name", "operation_name"],
        OF_STORAGE,
    )
});

/// Notes how long it took to do something with a volume.
pub fn storage_took(plugin: &str, operation: &str, is_done: bool, began: Instant) {
    let status = if is_done { "success" } else { "fail-unknown" };
    let labels = [plugin, operation, status, "false"];
    STORAGE.with_label_values(&labels).observe(began.elapsed().as_secs_f64());
}
