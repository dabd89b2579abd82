//! Volumes that are directories: empty ones, in memory or on disk, and the host's own.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, HostPathVolumeSource, Volume};
use krate_api::Quantity;
use nix::mount::{MsFlags, mount};

use super::ownership::{self, Policy};
use super::{Context, Mounted, Plugin, VolumeError};
use crate::blocking::blocking;
use crate::resources;

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

pub fn is_mount_point(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let parent = path.parent().unwrap_or(path);
    Ok(fs::metadata(path)?.dev() != fs::metadata(parent)?.dev())
}

/// Makes a directory that everybody may use, unless it is there.
pub fn make_directory(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    // What is there under its name is whole, whenever the work breaks off.
    let made = path.with_extension("making");
    fs::create_dir_all(&made)?;
    fs::set_permissions(&made, Permissions::from_mode(0o777))?;
    fs::rename(made, path)
}

/// Mounts pages of a size at `path`, unless that is done. `size` in bytes; both are.
fn mount_huge_pages(path: &Path, page: i64, size: i64) -> io::Result<()> {
    fs::create_dir_all(path)?;
    if is_mount_point(path)? {
        return Ok(());
    }
    let options = format!("pagesize={page},size={size},mode=777");
    mount(Some("nodev"), path, Some("hugetlbfs"), MsFlags::empty(), Some(options.as_str()))?;
    Ok(())
}

/// The size of the pages that a pod's limits name, if they name one, and how many bytes of them they allow.
fn huge_pages(context: &Context<'_>, medium: &str) -> Result<(i64, i64), VolumeError> {
    let spec = context.pod.spec.as_ref();
    let inits = spec.and_then(|s| s.init_containers.as_ref()).into_iter().flatten();
    let containers = inits.chain(spec.into_iter().flat_map(|s| &s.containers));
    let limits = containers.filter_map(|c| c.resources.as_ref()?.limits.as_ref());
    let mut allowed: BTreeMap<String, i64> = BTreeMap::new();
    for (name, amount) in limits.flatten() {
        if let Some(page) = name.strip_prefix("hugepages-") {
            let amount = Quantity::parse(&amount.0).map_or(0, |q| q.value());
            *allowed.entry(page.to_owned()).or_default() += amount;
        }
    }
    let wanted = medium.strip_prefix("HugePages-").map(str::to_owned);
    let chosen = match (&wanted, allowed.len()) {
        (Some(page), _) => page.clone(),
        (None, 1) => allowed.keys().next().cloned().unwrap_or_default(),
        (None, 0) => {
            return Err(VolumeError::Missing("no hugepages requests found in pod spec".to_owned()));
        }
        (None, _) => {
            return Err(VolumeError::Missing(
                "medium \"HugePages\" can't be used if container requests multiple huge page sizes"
                    .to_owned(),
            ));
        }
    };
    let Some(size) = allowed.get(&chosen) else {
        return Err(VolumeError::Missing(format!(
            "medium {medium:?}: no container of the pod asks for pages of {chosen}"
        )));
    };
    let page = Quantity::parse(&chosen).map_err(|e| VolumeError::Missing(e.to_string()))?.value();
    Ok((page, *size))
}

/// What an empty directory lies in. Sizes are in bytes.
enum Medium {
    Disk,
    Memory { size: Option<i64> },
    HugePages { page: i64, size: i64 },
}

impl Medium {
    fn of(context: &Context<'_>, source: &EmptyDirVolumeSource) -> Result<Self, VolumeError> {
        match source.medium.as_deref().unwrap_or_default() {
            "" => Ok(Medium::Disk),
            "Memory" => {
                let limit = source.size_limit.as_ref().and_then(|q| Quantity::parse(&q.0).ok());
                // As much as the pod may use, or less where it says so.
                let bounds = [
                    Some(context.node.memory),
                    resources::pod(context.pod).memory_limit,
                    limit.map(|q| q.value()),
                ];
                let size = bounds.into_iter().flatten().filter(|bytes| *bytes > 0).min();
                Ok(Medium::Memory { size })
            }
            medium if medium == "HugePages" || medium.starts_with("HugePages-") => {
                let (page, size) = huge_pages(context, medium)?;
                Ok(Medium::HugePages { page, size })
            }
            other => Err(VolumeError::Missing(format!("unknown storage medium {other:?}"))),
        }
    }

    /// Makes a directory of it at `path`, unless that is done.
    fn make(&self, path: &Path) -> io::Result<()> {
        match *self {
            Medium::Disk => make_directory(path),
            Medium::Memory { size } => mount_memory(path, size),
            Medium::HugePages { page, size } => mount_huge_pages(path, page, size),
        }
    }
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
        let medium = Medium::of(context, &volume.empty_dir.clone().unwrap_or_default())?;
        let (place, group) = (path.to_owned(), context.fs_group());
        let made = blocking(move || {
            medium.make(&place)?;
            ownership::give(&place, group, false, Policy::OnRootMismatch)
        });
        made.await.map_err(VolumeError::file(format!("making {}", path.display())))?;
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
        blocking(move || host_path(&source)).await
    }
}

/// Checks that the host has at a path what is asked for, or makes it where that is asked for.
pub fn host_path(source: &HostPathVolumeSource) -> Result<Mounted, VolumeError> {
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

fn spoken(kind: &str) -> &'static str {
    match kind {
        "Directory" | "DirectoryOrCreate" => "directory",
        "Socket" => "socket file",
        "CharDevice" => "character device",
        "BlockDevice" => "block device",
        _ => "file",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_must_have_what_is_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name).display().to_string();
        fs::write(at("file"), "").unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        for (name, kind, lacks) in [
            ("file", "File", ""),
            ("file", "Directory", "directory"),
            ("none", "Directory", "directory"),
            ("none", "File", "file"),
            ("socket", "Socket", ""),
            ("file", "Socket", "socket file"),
            ("file", "CharDevice", "character device"),
            ("file", "BlockDevice", "block device"),
            ("file", "DirectoryOrCreate", "directory"),
            ("made", "DirectoryOrCreate", ""),
            ("made-file", "FileOrCreate", ""),
            ("none", "", ""),
        ] {
            let source = HostPathVolumeSource { path: at(name), type_: Some(kind.to_owned()) };
            match host_path(&source) {
                Ok(_) => assert_eq!(lacks, "", "{name} as {kind}"),
                Err(error) => assert_eq!(
                    error.to_string(),
                    format!("hostPath type check failed: {} is not a {lacks}", at(name))
                ),
            }
        }
        assert!(directory.path().join("made").is_dir() && directory.path().join("made-file").is_file());
        assert!(!directory.path().join("none").exists());
    }
}
