//! Turning a layer's tar into a directory that overlayfs can use. Nothing in the archive is trusted: every path is
//! resolved by the kernel inside the layer's directory.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmodat, fstatat, futimens, makedev, mkdirat, mknodat,
    utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, LinkatFlags, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};
use tar::{Entry, EntryType};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error("the archive is damaged: {0}")]
    Archive(#[from] io::Error),
    #[error("{path}: {source}")]
    Entry { path: String, source: io::Error },
    #[error("{0} leads out of the image")]
    Escapes(String),
}

/// Unpacks the tar `archive` into `directory`, which must be empty. Returns how many bytes of files it holds.
pub fn unpack(archive: impl Read, directory: &Path) -> Result<u64, UnpackError> {
    let root =
        openat(AT_FDCWD, directory, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(io::Error::from)?;
    let mut layer = Layer { root, parents: HashMap::new(), directories: Vec::new(), bytes: 0 };
    let mut archive = tar::Archive::new(archive);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = PathBuf::from(OsString::from_vec(entry.path_bytes().into_owned()));
        layer.entry(&mut entry, &path)?;
    }
    layer.finish();
    // What follows the last entry belongs to the digest all the same.
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    Ok(layer.bytes)
}

struct Layer {
    root: OwnedFd,
    /// Directories that entries were put into lately.
    parents: HashMap<PathBuf, OwnedFd>,
    /// Times of directories, which are set last because filling them changes them.
    directories: Vec<(PathBuf, TimeSpec)>,
    bytes: u64,
}

impl Layer {
    fn entry<R: Read>(&mut self, entry: &mut Entry<'_, R>, path: &Path) -> Result<(), UnpackError> {
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader | EntryType::XHeader) {
            return Ok(());
        }
        let path = inside(path)?;
        let Some(name) = path.file_name().map(OsStr::to_owned) else {
            // The root itself.
            return self.directory_metadata(entry, Path::new(".")).map_err(|e| at(&path, e));
        };
        let parent_path = path.parent().unwrap_or(Path::new("")).to_owned();
        let parent = self.parent(&parent_path).map_err(|e| at(&path, e))?;
        if name.as_bytes() == OPAQUE {
            return set_opaque(&parent).map_err(|e| at(&path, e));
        }
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            if hidden.is_empty() || hidden == b"." || hidden == b".." {
                return Err(UnpackError::Escapes(path.display().to_string()));
            }
            return self.whiteout(&parent, OsStr::from_bytes(hidden)).map_err(|e| at(&path, e));
        }
        self.write(entry, kind, &parent, &name, &path)
    }

    fn write<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        kind: EntryType,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
    ) -> Result<(), UnpackError> {
        let fail = |error: io::Error| at(path, error);
        if kind.is_dir() {
            match mkdirat(parent, name, Mode::from_bits_truncate(0o755)) {
                Ok(()) => {}
                Err(Errno::EEXIST) if is_directory(parent, name) => {}
                Err(Errno::EEXIST) => {
                    self.remove(parent, name).map_err(fail)?;
                    mkdirat(parent, name, Mode::from_bits_truncate(0o755)).map_err(|e| fail(e.into()))?;
                }
                Err(error) => return Err(fail(error.into())),
            }
            return self.directory_metadata(entry, path).map_err(fail);
        }
        self.remove(parent, name).map_err(fail)?;
        match kind {
            EntryType::Symlink => {
                let target = link_name(entry)?;
                symlinkat(target.as_os_str(), parent, name).map_err(|e| fail(e.into()))?;
                own(entry, parent, name).map_err(fail)?;
                let time = time(entry);
                utimensat(parent, name, &time, &time, UtimensatFlags::NoFollowSymlink)
                    .map_err(|e| fail(e.into()))?;
            }
            EntryType::Link => {
                let target = inside(Path::new(&link_name(entry)?))?;
                let Some(target_name) = target.file_name() else {
                    return Err(UnpackError::Escapes(path.display().to_string()));
                };
                let target_parent = target.parent().unwrap_or(Path::new(""));
                let source = self.open(target_parent).map_err(|e| fail(e.into()))?;
                linkat(&source, target_name, parent, name, LinkatFlags::empty())
                    .map_err(|e| fail(e.into()))?;
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                let flag = match kind {
                    EntryType::Char => SFlag::S_IFCHR,
                    EntryType::Block => SFlag::S_IFBLK,
                    _ => SFlag::S_IFIFO,
                };
                let header = entry.header();
                let device = makedev(
                    u64::from(header.device_major()?.unwrap_or(0)),
                    u64::from(header.device_minor()?.unwrap_or(0)),
                );
                // The device 0:0 is overlayfs's own whiteout, not an image's to make.
                if kind == EntryType::Char && device == 0 {
                    return Err(UnpackError::Escapes(path.display().to_string()));
                }
                mknodat(parent, name, flag, Mode::empty(), device).map_err(|e| fail(e.into()))?;
                own(entry, parent, name).map_err(fail)?;
                fchmodat(parent, name, mode(entry)?, FchmodatFlags::FollowSymlink)
                    .map_err(|e| fail(e.into()))?;
            }
            // All else is a file, whatever it calls itself.
            _ => self.file(entry, parent, name).map_err(fail)?,
        }
        Ok(())
    }

    fn file<R: Read>(&mut self, entry: &mut Entry<'_, R>, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut file = std::fs::File::from(openat(parent, name, flags, Mode::from_bits_truncate(0o600))?);
        self.bytes += io::copy(entry, &mut file)?;
        own(entry, parent, name)?;
        nix::sys::stat::fchmod(&file, mode(entry)?)?;
        extended(entry, &file)?;
        let time = time(entry);
        futimens(&file, &time, &time)?;
        Ok(())
    }

    fn directory_metadata<R: Read>(&mut self, entry: &mut Entry<'_, R>, path: &Path) -> io::Result<()> {
        let fd = openat2(
            &self.root,
            path,
            OpenHow::new()
                .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
                .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS),
        )?;
        let directory = std::fs::File::from(fd);
        nix::unistd::fchown(&directory, Some(uid(entry)?), Some(gid(entry)?))?;
        nix::sys::stat::fchmod(&directory, mode(entry)?)?;
        extended(entry, &directory)?;
        self.directories.push((path.to_owned(), time(entry)));
        Ok(())
    }

    /// What the layer hides of those below it.
    fn whiteout(&mut self, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
        self.remove(parent, name)?;
        mknodat(parent, name, SFlag::S_IFCHR, Mode::empty(), 0)?;
        Ok(())
    }

    /// Opens a directory of the layer; what is missing of it is made.
    fn parent(&mut self, path: &Path) -> io::Result<OwnedFd> {
        if let Some(fd) = self.parents.get(path) {
            return fd.try_clone();
        }
        let fd = match self.open(path) {
            Ok(fd) => fd,
            Err(Errno::ENOENT) => {
                let above = self.parent(path.parent().unwrap_or(Path::new("")))?;
                let name = path.file_name().ok_or(Errno::EINVAL)?;
                match mkdirat(&above, name, Mode::from_bits_truncate(0o755)) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                self.open(path)?
            }
            Err(error) => return Err(error.into()),
        };
        if self.parents.len() > 64 {
            self.parents.clear();
        }
        self.parents.insert(path.to_owned(), fd.try_clone()?);
        Ok(fd)
    }

    fn open(&self, path: &Path) -> nix::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        openat2(&self.root, path, how)
    }

    /// Makes room for an entry that replaces an earlier one.
    fn remove(&mut self, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
        match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(Errno::EISDIR) => {
                self.parents.clear();
                let parent = format!("/proc/self/fd/{}", parent.as_raw_fd());
                std::fs::remove_dir_all(Path::new(&parent).join(name))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn finish(&mut self) {
        for (path, time) in self.directories.iter().rev() {
            if let Ok(fd) = self.open(path) {
                let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
                let _ = utimensat(AT_FDCWD, path.as_str(), time, time, UtimensatFlags::FollowSymlink);
            }
        }
    }
}

/// The path below the root; one that climbs is refused.
fn inside(path: &Path) -> Result<PathBuf, UnpackError> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(UnpackError::Escapes(path.display().to_string()));
            }
        }
    }
    Ok(clean)
}

fn link_name<R: Read>(entry: &Entry<'_, R>) -> Result<OsString, UnpackError> {
    let name = entry.link_name_bytes().ok_or_else(|| io::Error::other("a link without a target"))?;
    Ok(OsString::from_vec(name.into_owned()))
}

fn set_opaque(directory: &OwnedFd) -> io::Result<()> {
    let readable =
        openat(directory, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    xattr::FileExt::set_xattr(&std::fs::File::from(readable), "trusted.overlay.opaque", b"y")
}

fn is_directory(parent: &OwnedFd, name: &OsStr) -> bool {
    fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR)
}

fn own<R: Read>(entry: &Entry<'_, R>, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    fchownat(parent, name, Some(uid(entry)?), Some(gid(entry)?), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    Ok(())
}

fn uid<R: Read>(entry: &Entry<'_, R>) -> io::Result<Uid> {
    // A field left blank means zero.
    Ok(Uid::from_raw(u32::try_from(entry.header().uid().unwrap_or(0)).map_err(io::Error::other)?))
}

fn gid<R: Read>(entry: &Entry<'_, R>) -> io::Result<Gid> {
    Ok(Gid::from_raw(u32::try_from(entry.header().gid().unwrap_or(0)).map_err(io::Error::other)?))
}

fn mode<R: Read>(entry: &Entry<'_, R>) -> io::Result<Mode> {
    Ok(Mode::from_bits_truncate(entry.header().mode()? & 0o7777))
}

fn time<R: Read>(entry: &Entry<'_, R>) -> TimeSpec {
    TimeSpec::new(entry.header().mtime().unwrap_or(0).cast_signed(), 0)
}

/// Extended attributes, but for those by which an image could give orders to overlayfs.
fn extended<R: Read>(entry: &mut Entry<'_, R>, file: &std::fs::File) -> io::Result<()> {
    let Some(extensions) = entry.pax_extensions()? else { return Ok(()) };
    for extension in extensions {
        let extension = extension?;
        let Some(name) = extension.key().ok().and_then(|key| key.strip_prefix("SCHILY.xattr.")) else {
            continue;
        };
        if name.starts_with("trusted.overlay.") || name.starts_with("user.overlay.") {
            continue;
        }
        match xattr::FileExt::set_xattr(file, name, extension.value_bytes()) {
            Ok(()) => {}
            // A file system or a user without them can still hold the image.
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EPERM | libc::EINVAL)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn at(path: &Path, source: io::Error) -> UnpackError {
    UnpackError::Entry { path: path.display().to_string(), source }
}

#[cfg(test)]
mod tests;
