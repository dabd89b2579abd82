//! The file systems that the node's things lie on: its own, that of the runtime's images, and that of what containers write
//! (KEP-4191). They may be one, or two.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use k8s_cri::v1::{FilesystemUsage, ImageFsInfoRequest};
use nix::sys::statvfs::statvfs;

use crate::cri::Cri;

/// How full a file system is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// Bytes: all, and those that are free for whoever has no privileges.
    pub capacity: i64,
    pub available: i64,
    /// Zero on file systems that do not count them.
    pub inodes: i64,
    pub inodes_free: i64,
}

impl Fill {
    /// Of the file system that a path is on, if it is there.
    pub fn of(path: &Path) -> Option<Self> {
        let found = statvfs(path).ok()?;
        let block = found.fragment_size() as i64;
        Some(Fill {
            capacity: found.blocks() as i64 * block,
            available: found.blocks_available() as i64 * block,
            inodes: found.files() as i64,
            inodes_free: found.files_available() as i64,
        })
    }
}

/// Where the runtime has something, and what it says to take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub path: PathBuf,
    /// Nanoseconds since 1970.
    pub at: i64,
    pub used: u64,
    pub inodes_used: Option<u64>,
}

/// Where the runtime keeps images, and what containers write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeDisks {
    pub images: Place,
    pub containers: Place,
}

impl RuntimeDisks {
    /// # Errors
    /// The runtime does not answer, or with nothing.
    pub async fn ask(cri: &Cri) -> Result<Self, tonic::Status> {
        let answer = cri.images().image_fs_info(ImageFsInfoRequest {}).await?.into_inner();
        let first = |all: Vec<FilesystemUsage>| all.into_iter().find_map(place);
        let images = first(answer.image_filesystems);
        let images = images.ok_or_else(|| tonic::Status::not_found("imageFs information is unavailable"))?;
        // Runtimes that tell of one only have all there.
        let containers = first(answer.container_filesystems).unwrap_or_else(|| images.clone());
        Ok(RuntimeDisks { images, containers })
    }
}

fn place(usage: FilesystemUsage) -> Option<Place> {
    Some(Place {
        path: PathBuf::from(usage.fs_id?.mountpoint),
        at: usage.timestamp,
        used: usage.used_bytes.map_or(0, |bytes| bytes.value),
        inodes_used: usage.inodes_used.map(|inodes| inodes.value),
    })
}

/// What lies together with what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// All is on the node's own.
    One,
    /// Images and what containers write are on another one.
    RuntimeApart,
    /// Images are on another one, what containers write is not with them.
    ImagesApart,
}

impl Layout {
    pub fn of(root: &Path, runtime: &RuntimeDisks) -> Self {
        let device = |path: &Path| std::fs::metadata(path).ok().map(|found| found.dev());
        Self::of_devices(device(root), device(&runtime.images.path), device(&runtime.containers.path))
    }

    fn of_devices(node: Option<u64>, images: Option<u64>, containers: Option<u64>) -> Self {
        if images != containers {
            Layout::ImagesApart
        } else if images.is_none() || images == node {
            Layout::One
        } else {
            Layout::RuntimeApart
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_cri::v1::{FilesystemIdentifier, UInt64Value};

    use super::*;

    #[test]
    fn devices_say_what_lies_together() {
        for (node, images, containers, layout) in [
            (Some(1), Some(1), Some(1), Layout::One),
            (Some(1), None, None, Layout::One),
            (Some(1), Some(2), Some(2), Layout::RuntimeApart),
            (Some(1), Some(2), Some(1), Layout::ImagesApart),
            (Some(1), Some(1), Some(2), Layout::ImagesApart),
        ] {
            assert_eq!(Layout::of_devices(node, images, containers), layout);
        }
    }

    #[test]
    fn a_place_is_what_the_runtime_says() {
        let usage = FilesystemUsage {
            timestamp: 5,
            fs_id: Some(FilesystemIdentifier { mountpoint: "/images".to_owned() }),
            used_bytes: Some(UInt64Value { value: 7 }),
            inodes_used: None,
        };
        let found = place(usage.clone()).unwrap();
        assert_eq!((found.path.as_path(), found.at, found.used), (Path::new("/images"), 5, 7));
        assert_eq!(place(FilesystemUsage { fs_id: None, ..usage }), None);
    }
}
