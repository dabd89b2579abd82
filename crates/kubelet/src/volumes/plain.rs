//! Volumes that are directories: empty ones, in memory or on disk, and the host's own.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _, chown};
use std::path::Path;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Volume;
use krate_api::Quantity;
use nix::mount::{MsFlags, mount};

use super::{Context, Mounted, Plugin, VolumeError};

/// Mounts memory at `path`, unless that is done. `size` in bytes.
pub fn mount_memory(path: &Path, size: Option<i64>) -> io::Result<()> {
    fs::create_dir_all(path)?;
    if is_mount_point(path)? {
        return Ok(());
    }
    let options = size.map(|bytes| format!("size={bytes}"));
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), options.as_deref())?;
    Ok(())
}

fn is_mount_point(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let parent = path.parent().unwrap_or(path);
    Ok(fs::metadata(path)?.dev() != fs::metadata(parent)?.dev())
}

/// A directory that lives as long as its pod.
pub struct EmptyDir;

#[async_trait]
impl Plugin for EmptyDir {
    fn name(&self) -> &'static str {
        "kubernetes.io/empty-dir"
    }

    fn is_for(&self, volume: &Volume) -> bool {
        volume.empty_dir.is_some()
    }

    async fn set_up(
        &self,
        context: &Context<'_>,
        volume: &Volume,
        path: &Path,
    ) -> Result<Mounted, VolumeError> {
        let source = volume.empty_dir.clone().unwrap_or_default();
        let limit = source.size_limit.as_ref().and_then(|q| Quantity::parse(&q.0).ok()).map(|q| q.value());
        let is_new = !path.exists();
        let failed = || VolumeError::file(format!("making {}", path.display()));
        match source.medium.as_deref() {
            None | Some("") => fs::create_dir_all(path).map_err(failed())?,
            Some("Memory") => {
                let size = limit.filter(|l| *l > 0).unwrap_or(context.node.memory);
                mount_memory(path, Some(size).filter(|s| *s > 0)).map_err(failed())?;
            }
            Some(other) => return Err(VolumeError::Missing(format!("unknown storage medium {other:?}"))),
        }
        if is_new {
            let mode = if let Some(group) = context.fs_group() {
                chown(path, None, Some(group)).map_err(failed())?;
                0o2777
            } else {
                0o777
            };
            fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed())?;
        }
        Ok(Mounted::at(path.to_owned()))
    }
}

/// A file or directory of the node.
pub struct HostPath;

#[async_trait]
impl Plugin for HostPath {
    fn name(&self) -> &'static str {
        "kubernetes.io/host-path"
    }

    fn is_for(&self, volume: &Volume) -> bool {
        volume.host_path.is_some()
    }

    async fn set_up(&self, _: &Context<'_>, volume: &Volume, _: &Path) -> Result<Mounted, VolumeError> {
        let source = volume.host_path.clone().unwrap_or_default();
        let path = Path::new(&source.path);
        let kind = source.type_.as_deref().unwrap_or_default();
        let failed = || VolumeError::file(format!("making {}", path.display()));
        let found = fs::metadata(path).ok().map(|m| m.file_type());
        let wrong = || {
            Err(VolumeError::Missing(format!(
                "hostPath type check failed: {} is not a {}",
                path.display(),
                spoken(kind)
            )))
        };
        match (kind, found) {
            ("", _) => {}
            ("DirectoryOrCreate", None) => {
                fs::create_dir_all(path).map_err(failed())?;
                fs::set_permissions(path, Permissions::from_mode(0o755)).map_err(failed())?;
            }
            ("FileOrCreate", None) => {
                fs::OpenOptions::new().create(true).append(true).open(path).map_err(failed())?;
                fs::set_permissions(path, Permissions::from_mode(0o644)).map_err(failed())?;
            }
            ("Directory" | "DirectoryOrCreate", Some(t)) if t.is_dir() => {}
            ("File" | "FileOrCreate", Some(t)) if t.is_file() => {}
            ("Socket", Some(t)) if t.is_socket() => {}
            ("CharDevice", Some(t)) if t.is_char_device() => {}
            ("BlockDevice", Some(t)) if t.is_block_device() => {}
            _ => return wrong(),
        }
        Ok(Mounted::at(path.to_owned()))
    }
}

fn spoken(kind: &str) -> &'static str {
    match kind {
        "Directory" | "DirectoryOrCreate" => "directory",
        "Socket" => "socket file",
        "CharDevice" => "character device",
        "BlockDevice" => "block device",
        _ => "file",
    }
}
