//! What each signal of a disk means, by what lies on that disk: whose use of it counts, and what can be given back there.

use super::threshold::{Signal, Threshold};
use crate::disks::Layout;

/// What of a pod lies on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    /// What containers write beside their volumes.
    pub rootfs: bool,
    pub logs: bool,
    pub volumes: bool,
}

impl Parts {
    pub const ALL: Parts = Parts { rootfs: true, logs: true, volumes: true };
    const NONE: Parts = Parts { rootfs: false, logs: false, volumes: false };
}

/// What can be given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reclaim {
    pub containers: bool,
    pub images: bool,
}

/// The disk that a signal looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disk {
    Node,
    Images,
    Containers,
}

fn disk(signal: Signal) -> Option<Disk> {
    match signal {
        Signal::NodeFsAvailable | Signal::NodeFsInodesFree => Some(Disk::Node),
        Signal::ImageFsAvailable | Signal::ImageFsInodesFree => Some(Disk::Images),
        Signal::ContainerFsAvailable | Signal::ContainerFsInodesFree => Some(Disk::Containers),
        Signal::MemoryAvailable | Signal::PidAvailable => None,
    }
}

/// What pods have on the disk that a signal looks at.
pub fn parts(layout: Layout, signal: Signal) -> Parts {
    match (layout, disk(signal)) {
        (_, None) => Parts::NONE,
        (Layout::One, Some(_)) | (Layout::ImagesApart, Some(Disk::Node | Disk::Containers)) => Parts::ALL,
        (Layout::RuntimeApart, Some(Disk::Node)) => Parts { rootfs: false, ..Parts::ALL },
        (Layout::RuntimeApart, Some(Disk::Images | Disk::Containers)) => {
            Parts { rootfs: true, ..Parts::NONE }
        }
        (Layout::ImagesApart, Some(Disk::Images)) => Parts::NONE,
    }
}

/// What can be given back on the disk that a signal looks at.
pub fn reclaim(layout: Layout, signal: Signal) -> Reclaim {
    let (containers, images) = match (layout, disk(signal)) {
        (_, None) | (Layout::RuntimeApart, Some(Disk::Node)) => (false, false),
        (Layout::One, Some(_)) | (Layout::RuntimeApart, Some(Disk::Images | Disk::Containers)) => {
            (true, true)
        }
        (Layout::ImagesApart, Some(Disk::Images)) => (false, true),
        (Layout::ImagesApart, Some(Disk::Node | Disk::Containers)) => (true, false),
    };
    Reclaim { containers, images }
}

/// The thresholds with those of what containers write, which are never others than those of the disk that they lie on.
/// Also tells of those that were configured otherwise, in upstream's words.
pub fn with_containers(mut thresholds: Vec<Threshold>, layout: Layout) -> (Vec<Threshold>, Vec<String>) {
    let is_of_containers = |threshold: &Threshold| disk(threshold.signal) == Some(Disk::Containers);
    let configured = thresholds.extract_if(.., |threshold| is_of_containers(threshold));
    let ignored = configured.map(|threshold| {
        let strength = if threshold.grace.is_none() { "hard" } else { "soft" };
        format!("found {} for {strength} eviction. ignoring", threshold.signal.name())
    });
    let ignored = ignored.collect();
    let host = if layout == Layout::RuntimeApart { Disk::Images } else { Disk::Node };
    let added: Vec<Threshold> = thresholds
        .iter()
        .filter(|threshold| disk(threshold.signal) == Some(host))
        .map(|threshold| {
            let counts_inodes = threshold.signal.resource() == "inodes";
            let signal =
                if counts_inodes { Signal::ContainerFsInodesFree } else { Signal::ContainerFsAvailable };
            Threshold { signal, ..threshold.clone() }
        })
        .collect();
    thresholds.extend(added);
    (thresholds, ignored)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::threshold::{Amount, EvictionConfig};
    use super::*;

    fn configured(values: &[(&str, &str)]) -> Vec<Threshold> {
        let hard: BTreeMap<String, String> =
            values.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        EvictionConfig { hard, ..EvictionConfig::default() }.thresholds().unwrap()
    }

    #[test]
    fn what_containers_write_has_the_thresholds_of_its_disk() {
        let values = [
            ("nodefs.available", "10%"),
            ("nodefs.inodesFree", "5%"),
            ("imagefs.available", "15%"),
            ("containerfs.available", "50%"),
        ];
        for (layout, bytes, inodes) in [
            (Layout::One, 0.1, Some(0.05)),
            (Layout::ImagesApart, 0.1, Some(0.05)),
            (Layout::RuntimeApart, 0.15, None),
        ] {
            let (thresholds, ignored) = with_containers(configured(&values), layout);
            let of = |signal| thresholds.iter().find(|t| t.signal == signal).map(|t| t.value.clone());
            assert_eq!(of(Signal::ContainerFsAvailable), Some(Amount::Part(bytes)), "{layout:?}");
            assert_eq!(of(Signal::ContainerFsInodesFree), inodes.map(Amount::Part), "{layout:?}");
            assert_eq!(ignored, ["found containerfs.available for hard eviction. ignoring"]);
        }
    }

    #[test]
    fn a_disk_holds_what_lies_on_it() {
        let rootfs = Parts { rootfs: true, logs: false, volumes: false };
        let rest = Parts { rootfs: false, logs: true, volumes: true };
        let given = |containers, images| Reclaim { containers, images };
        for (layout, signal, on_it, back) in [
            (Layout::One, Signal::ImageFsAvailable, Parts::ALL, given(true, true)),
            (Layout::One, Signal::ContainerFsInodesFree, Parts::ALL, given(true, true)),
            (Layout::RuntimeApart, Signal::NodeFsAvailable, rest, given(false, false)),
            (Layout::RuntimeApart, Signal::ImageFsInodesFree, rootfs, given(true, true)),
            (Layout::RuntimeApart, Signal::ContainerFsAvailable, rootfs, given(true, true)),
            (Layout::ImagesApart, Signal::NodeFsInodesFree, Parts::ALL, given(true, false)),
            (Layout::ImagesApart, Signal::ImageFsAvailable, Parts::NONE, given(false, true)),
            (Layout::One, Signal::MemoryAvailable, Parts::NONE, given(false, false)),
        ] {
            assert_eq!(parts(layout, signal), on_it, "{layout:?} {signal:?}");
            assert_eq!(reclaim(layout, signal), back, "{layout:?} {signal:?}");
        }
    }
}
