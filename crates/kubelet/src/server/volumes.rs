//! Figures of volumes: how full each is, in the summary and in the kubelet's own metrics.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::Server;
use super::text_format::{Family, Labels};
use crate::csi::VolumeStats;
use crate::names;

/// A pod's volumes, as the summary tells them.
pub async fn of_pod(server: &Server, uid: &str, namespace: &str) -> Vec<Value> {
    let all = server.shared.csi.volume_stats(uid).await;
    all.iter().map(|stats| told(stats, namespace)).collect()
}

fn told(stats: &VolumeStats, namespace: &str) -> Value {
    let mut out = json!({"name": stats.volume, "time": stats.at.to_string(),
        "capacityBytes": stats.capacity, "availableBytes": stats.available, "usedBytes": stats.used,
        "inodes": stats.inodes, "inodesFree": stats.inodes_free, "inodesUsed": stats.inodes_used});
    if let Some(claim) = &stats.claim {
        out["pvcRef"] = json!({"name": claim, "namespace": namespace});
    }
    out
}

/// What is told of a volume.
type Figure = fn(&VolumeStats) -> i64;

/// The volumes of claims, each once.
pub async fn gauges(server: &Server, out: &mut String) {
    let mut rows: Vec<(Labels, VolumeStats)> = Vec::new();
    let mut seen = HashSet::new();
    for pod in server.shared.all_pods() {
        let namespace = names::namespace(&pod);
        for stats in server.shared.csi.volume_stats(&names::uid(&pod)).await {
            let Some(claim) = stats.claim.clone() else { continue };
            if seen.insert((namespace.clone(), claim.clone())) {
                rows.push((vec![("namespace", namespace.clone()), ("persistentvolumeclaim", claim)], stats));
            }
        }
    }
    let all: [(Family, Figure); 6] = [
        (
            Family::gauge(
                "kubelet_volume_stats_available_bytes",
                "[ALPHA] Number of available bytes in the volume",
            ),
            |s| s.available,
        ),
        (
            Family::gauge("kubelet_volume_stats_capacity_bytes", "[ALPHA] Capacity in bytes of the volume"),
            |s| s.capacity,
        ),
        (
            Family::gauge("kubelet_volume_stats_inodes", "[ALPHA] Maximum number of inodes in the volume"),
            |s| s.inodes,
        ),
        (
            Family::gauge("kubelet_volume_stats_inodes_free", "[ALPHA] Number of free inodes in the volume"),
            |s| s.inodes_free,
        ),
        (
            Family::gauge("kubelet_volume_stats_inodes_used", "[ALPHA] Number of used inodes in the volume"),
            |s| s.inodes_used,
        ),
        (
            Family::gauge("kubelet_volume_stats_used_bytes", "[ALPHA] Number of used bytes in the volume"),
            |s| s.used,
        ),
    ];
    for (family, figure) in all {
        family.rows(out, rows.iter().map(|(labels, stats)| (labels.clone(), figure(stats) as f64)));
    }
}
