//! Directories whose files change all at once: a hidden directory a version, a link `..data` to the one that counts,
//! and links through it under the names that the pod sees.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::Path;

use jiff::Timestamp;

const DATA: &str = "..data";
const DATA_NEXT: &str = "..data_tmp";

/// A file to be written, with its permission bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub data: Vec<u8>,
    pub mode: u32,
    /// Whom it belongs to, if not to root.
    pub user: Option<u32>,
}

impl File {
    pub fn new(data: Vec<u8>, mode: u32) -> Self {
        File { data, mode, user: None }
    }
}

/// What a group that is to read the files gets, whatever their permissions are.
const FOR_GROUP: u32 = 0o440;

pub type Payload = BTreeMap<String, File>;

/// Makes `directory` show exactly `payload`, owned by `group` if one is given. Whether anything changed.
///
/// # Errors
/// A path leads out of the directory, or the file system refuses.
pub fn write(directory: &Path, payload: &Payload, group: Option<u32>) -> io::Result<bool> {
    for path in payload.keys() {
        check(path)?;
    }
    let current = fs::read_link(directory.join(DATA)).ok();
    if let Some(current) = &current
        && shows(&directory.join(current), payload)
    {
        return Ok(false);
    }
    let version = format!("..{}.{}", Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S"), rand::random::<u32>());
    let next = directory.join(&version);
    fs::create_dir(&next)?;
    let directory_mode = if group.is_some() { 0o2755 } else { 0o755 };
    own(&next, directory_mode, None, group)?;
    for (path, file) in payload {
        let full = next.join(path);
        let mut parent = next.clone();
        for part in Path::new(path).parent().into_iter().flat_map(Path::components) {
            parent.push(part);
            if !parent.is_dir() {
                fs::create_dir(&parent)?;
                own(&parent, directory_mode, None, group)?;
            }
        }
        fs::write(&full, &file.data)?;
        let mode = if group.is_some() { file.mode | FOR_GROUP } else { file.mode };
        own(&full, mode, file.user, group)?;
    }
    let link = directory.join(DATA_NEXT);
    let _ = fs::remove_file(&link);
    symlink(&version, &link)?;
    fs::rename(&link, directory.join(DATA))?;

    let shown: BTreeSet<&str> = payload.keys().filter_map(|p| p.split('/').next()).collect();
    for name in &shown {
        let link = directory.join(name);
        if link.symlink_metadata().is_err() {
            symlink(Path::new(DATA).join(name), link)?;
        }
    }
    for entry in fs::read_dir(directory)?.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if !name.starts_with("..") && !shown.contains(name) {
            fs::remove_file(entry.path())?;
        } else if name.starts_with("..") && name != DATA && name != version {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(true)
}

fn own(path: &Path, mode: u32, user: Option<u32>, group: Option<u32>) -> io::Result<()> {
    if user.is_some() || group.is_some() {
        chown(path, user, group)?;
    }
    fs::set_permissions(path, Permissions::from_mode(mode))
}

fn check(path: &str) -> io::Result<()> {
    let is_bad = path.is_empty()
        || path.starts_with('/')
        || path.starts_with("..")
        || path.split('/').any(|p| p == "..");
    if is_bad {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("invalid path: {path:?}")));
    }
    Ok(())
}

/// Whether a version is what is asked for.
fn shows(version: &Path, payload: &Payload) -> bool {
    let same = payload.iter().all(|(path, file)| {
        let full = version.join(path);
        fs::read(&full).is_ok_and(|data| data == file.data)
            && fs::metadata(&full)
                .is_ok_and(|m| m.permissions().mode() & 0o7777 & !FOR_GROUP == file.mode & !FOR_GROUP)
    });
    same && count(version) == payload.len()
}

fn count(directory: &Path) -> usize {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|e| if e.path().is_dir() { count(&e.path()) } else { 1 }).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |data: &str| File::new(data.into(), 0o644);
        files.iter().map(|(path, data)| ((*path).to_owned(), file(data))).collect()
    }

    fn read(directory: &Path, path: &str) -> Option<String> {
        fs::read_to_string(directory.join(path)).ok()
    }

    #[test]
    fn files_change_all_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        assert!(write(at, &payload(&[("a", "1"), ("sub/b", "2")]), None).unwrap());
        assert_eq!((read(at, "a"), read(at, "sub/b")), (Some("1".into()), Some("2".into())));
        assert!(at.join("a").symlink_metadata().unwrap().is_symlink());
        let first = fs::read_link(at.join(DATA)).unwrap();
        assert!(!write(at, &payload(&[("a", "1"), ("sub/b", "2")]), None).unwrap(), "nothing to do");
        assert_eq!(fs::read_link(at.join(DATA)).unwrap(), first);

        assert!(write(at, &payload(&[("a", "3"), ("c", "4")]), None).unwrap());
        assert_eq!(
            (read(at, "a"), read(at, "c"), read(at, "sub/b")),
            (Some("3".into()), Some("4".into()), None)
        );
        assert!(!at.join("sub").exists() && at.join("sub").symlink_metadata().is_err());
        assert!(!at.join(first).exists(), "the old version is gone");
    }

    #[test]
    fn no_path_leads_out() {
        let directory = tempfile::tempdir().unwrap();
        for path in ["../x", "/x", "a/../../x", "..x", ""] {
            assert!(write(directory.path(), &payload(&[(path, "")]), None).is_err(), "{path}");
        }
    }

    #[test]
    fn permissions_are_those_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let mut files = payload(&[("a", "1")]);
        files.get_mut("a").unwrap().mode = 0o400;
        write(directory.path(), &files, None).unwrap();
        let mode = || fs::metadata(directory.path().join("a")).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(), 0o400);
        files.get_mut("a").unwrap().mode = 0o444;
        assert!(write(directory.path(), &files, None).unwrap());
        assert_eq!(mode(), 0o444);
    }
}
