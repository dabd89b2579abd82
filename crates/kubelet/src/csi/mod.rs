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

use crate::histogram::{Histograms, OF_STORAGE};

pub use drivers::{CsiPlugins, Drivers};
pub use inline::Inline;
pub use state::{Csi, Times};
pub use stats::VolumeStats;
pub use wanted::Wanted;

/// What is done with volumes, and how long it takes.
pub static STORAGE: Histograms = Histograms::new(
    "storage_operation_duration_seconds",
    "[ALPHA] Storage operation duration",
    &["volume_plugin", "operation_name", "status", "migrated"],
    OF_STORAGE,
);

/// How long volumes take until a pod has them, with all that is waited for.
static TOTAL: Histograms = Histograms::new(
    "volume_operation_total_seconds",
    "[ALPHA] Storage operation end to end duration in seconds",
    &["plugin_name", "operation_name"],
    OF_STORAGE,
);

/// Writes the figures of volumes' operations.
pub fn write_figures(out: &mut String) {
    for histograms in [&client::OPERATIONS, &STORAGE, &TOTAL, &stats::COLLECTION] {
        histograms.write(out);
    }
}
