//! Root file systems: an image's layers below, what the container writes above.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::userns;

/// What the views of layers below a root are called.
const BELOW: &str = "below";

/// Longest option text that the kernel takes, with a margin.
const MAX_OPTIONS: usize = 4000;

/// Whose the files of a pod with users of its own are.
#[derive(Clone, Copy, Debug)]
pub struct Owners<'a> {
    /// The namespace of its users.
    pub users: BorrowedFd<'a>,
    /// The user and group of the host's that its root is.
    pub root: (u32, u32),
}

/// Mounts `layers` (the lowest first) with a writable layer in `scratch` at `target`. What is written belongs to whoever
/// writes it, so that of a pod's own users only the layers below need to be told.
pub fn mount_writable(
    layers: &[PathBuf],
    scratch: &Path,
    target: &Path,
    owners: Option<Owners<'_>>,
) -> io::Result<()> {
    let (upper, work) = (scratch.join("upper"), scratch.join("work"));
    for directory in [&upper, &work, &target.to_owned()] {
        std::fs::create_dir_all(directory)?;
    }
    if let Some(Owners { root: (user, group), .. }) = owners {
        chown(&upper, Some(user), Some(group))?;
    }
    overlay(layers, Some((&upper, &work)), target, owners)
}

/// Writes a layer that goes over every image's: the places that something is mounted on in each container. Without
/// it, each container would make them anew in a layer of its own.
pub fn write_places(layer: &Path) -> io::Result<()> {
    for directory in ["etc", "dev", "proc", "sys"] {
        std::fs::create_dir_all(layer.join(directory))?;
    }
    for file in ["etc/hostname", "etc/hosts", "etc/resolv.conf"] {
        // One that is there may be in use, and is left alone.
        std::fs::File::options().append(true).create(true).open(layer.join(file))?;
    }
    Ok(())
}

/// Mounts `layers` at `target`, for reading only.
pub fn mount_readonly(layers: &[PathBuf], target: &Path, owners: Option<Owners<'_>>) -> io::Result<()> {
    std::fs::create_dir_all(target)?;
    if let [only] = layers {
        match owners {
            Some(owners) => userns::show(only, owners.users, target)?,
            None => mount(Some(only), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?,
        }
        let readonly = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        return Ok(mount(None::<&str>, target, None::<&str>, readonly, None::<&str>)?);
    }
    overlay(layers, None, target, owners)
}

fn overlay(
    layers: &[PathBuf],
    writable: Option<(&Path, &Path)>,
    target: &Path,
    owners: Option<Owners<'_>>,
) -> io::Result<()> {
    let empty;
    let layers = if layers.is_empty() {
        // An image without layers is an empty directory.
        let place = target.with_extension("empty");
        std::fs::create_dir_all(&place)?;
        empty = [place];
        &empty[..]
    } else {
        layers
    };
    // The overlay keeps copies of its own of these views, which are taken away again at the end.
    let views = owners.map(|owners| Views::new(layers, target, owners)).transpose()?;
    let layers = views.as_ref().map_or(layers, |views| &views.layers);
    let mut above = String::new();
    if let Some((upper, work)) = writable {
        above = format!(",upperdir={},workdir={}", upper.display(), work.display());
    }
    let join = |shown: &dyn Fn(&Path) -> String| {
        let lower: Vec<String> = layers.iter().rev().map(|layer| shown(layer)).collect();
        format!("lowerdir={}{above}", lower.join(":"))
    };
    let mut options = join(&|layer| layer.display().to_string());
    // Many layers fit when each is named through a descriptor of the directory that they share.
    let shared = layers.first().and_then(|layer| layer.parent());
    let directory = shared.map(std::fs::File::open).transpose()?;
    if let Some(directory) = &directory
        && options.len() > MAX_OPTIONS
    {
        let fd = directory.as_raw_fd();
        options = join(&|layer| {
            if layer.parent() != shared {
                return layer.display().to_string();
            }
            let name = layer.file_name().unwrap_or_default().to_string_lossy();
            format!("/proc/self/fd/{fd}/{name}")
        });
    }
    let with =
        |options: &str| mount(Some("overlay"), target, Some("overlay"), MsFlags::empty(), Some(options));
    // Nothing of a container's own layer must survive a crash of the host, so it need not be flushed.
    match with(&format!("{options},volatile")) {
        Err(Errno::EINVAL) => Ok(with(&options)?),
        outcome => Ok(outcome?),
    }
}

/// Layers as the users of a pod see them, for as long as this lives: a view of each directory that has some.
#[derive(Debug)]
struct Views {
    places: Vec<PathBuf>,
    layers: Vec<PathBuf>,
}

impl Views {
    fn new(layers: &[PathBuf], target: &Path, owners: Owners<'_>) -> io::Result<Self> {
        let mut views = Self { places: Vec::new(), layers: Vec::new() };
        let mut shown: Vec<&Path> = Vec::new();
        for layer in layers {
            let (Some(parent), Some(name)) = (layer.parent(), layer.file_name()) else {
                return Err(io::ErrorKind::InvalidFilename.into());
            };
            let number = shown.iter().position(|known| *known == parent).unwrap_or(shown.len());
            let place = target.with_extension(format!("{BELOW}-{number}"));
            if number == shown.len() {
                std::fs::create_dir_all(&place)?;
                views.places.push(place.clone());
                userns::show(parent, owners.users, &place)?;
                shown.push(parent);
            }
            views.layers.push(place.join(name));
        }
        Ok(views)
    }
}

impl Drop for Views {
    fn drop(&mut self) {
        for place in &self.places {
            // What stays is taken away with all that is mounted beside the target.
            let _ = unmount(place).and_then(|()| std::fs::remove_dir(place));
        }
    }
}

/// Unmounts whatever is mounted over the directories in `directory`.
pub fn unmount_within(directory: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type()?.is_dir() {
            unmount(&entry.path())?;
        }
    }
    Ok(())
}

/// Unmounts what is mounted at `target`, whoever still uses it.
pub fn unmount(target: &Path) -> io::Result<()> {
    loop {
        match umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // There may be more than one over another.
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// A memory file system for a pod's shared memory.
pub fn mount_shm(target: &Path, bytes: u64) -> io::Result<()> {
    std::fs::create_dir_all(target)?;
    let flags = MsFlags::MS_NOEXEC | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("shm"), target, Some("tmpfs"), flags, Some(format!("mode=1777,size={bytes}").as_str()))?;
    Ok(())
}

/// Bytes and inodes that a directory takes.
pub fn usage(directory: &Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    let (mut bytes, mut inodes) = (0, 0);
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            bytes += meta.blocks() * 512;
            inodes += 1;
            if meta.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    (bytes, inodes)
}
