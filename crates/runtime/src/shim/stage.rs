//! What a container is made of, put where the root of its own user namespace can reach it.
//!
//! That root is nobody on the host. It may neither walk the directories that bundles and volumes lie in, nor enter
//! namespaces by the processes that hold them, nor say whose the files of a mount are. So a process that may does all of this
//! beforehand, in a mount namespace of its own, and libcontainer reads a specification that names what is reached then.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

use super::users;
use crate::userns::{self, Ids, Range};

/// Every host has this directory, anybody may walk to it, and of all that a container is made of nothing is looked for in it.
const STAGE: &str = "/dev/pts";

/// A mount that is copied, and the place in the specification that names it.
struct Copied {
    mount: OwnedFd,
    name: String,
    is_directory: bool,
}

/// Changes, for this process and its children alone, what the specification in `bundle` says and where that lies. `own` is
/// the namespace of the container's users.
///
/// # Errors
/// A source is not there, or the owners of its files cannot be mapped, in runc's words.
pub fn set(bundle: &Path, own: BorrowedFd<'_>) -> io::Result<()> {
    let file = bundle.join("config.json");
    let mut spec: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    let mut copies = copy_mounts(&mut spec, own)?;
    copies.push(copy_root(&mut spec)?);
    name_namespaces(&mut spec, own)?;
    // Nothing of this is seen by others, while what the host mounts later still comes here.
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("stage"), STAGE, Some("tmpfs"), flags, Some("mode=0711"))?;
    for copied in copies {
        let place = staged(&copied.name);
        if copied.is_directory {
            DirBuilder::new().mode(0o711).create(&place)?;
        } else {
            File::create(&place)?;
        }
        crate::mount::attach(&copied.mount, &place)?;
    }
    let written = staged("config.json");
    std::fs::write(&written, serde_json::to_vec(&spec)?)?;
    Ok(mount(Some(&written), &file, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
}

fn staged(name: &str) -> PathBuf {
    Path::new(STAGE).join(name)
}

/// Copies what the container's mounts bind, with owners as each of them asks.
fn copy_mounts(spec: &mut Value, own: BorrowedFd<'_>) -> io::Result<Vec<Copied>> {
    let of_pod = ids(&spec["linux"]);
    let mut copies = Vec::new();
    for (number, wanted) in spec["mounts"].as_array_mut().into_iter().flatten().enumerate() {
        let Some(fields) = wanted.as_object_mut().filter(|fields| fields["type"] == "bind") else { continue };
        let source = PathBuf::from(fields["source"].as_str().unwrap_or_default());
        // Control groups are made only when the container is: anybody may walk to those.
        if !source.try_exists()? {
            continue;
        }
        let whole = fields["options"].as_array().is_some_and(|all| all.contains(&json!("rbind")));
        let mount = crate::mount::copy(&source, whole).map_err(|error| told(&source, &error))?;
        let mapped = ids(wanted);
        let Some(fields) = wanted.as_object_mut() else { continue };
        fields.remove("uidMappings");
        fields.remove("gidMappings");
        if let Some(mapped) = mapped {
            let outcome = if Some(&mapped) == of_pod.as_ref() {
                userns::map(&mount, own)
            } else {
                userns::map(&mount, users::make(&mapped, CloneFlags::empty())?.as_fd())
            };
            outcome.map_err(|error| userns::refused(&source, &error))?;
        }
        let name = format!("mount-{number}");
        wanted["source"] = json!(staged(&name));
        copies.push(Copied { mount, name, is_directory: source.is_dir() });
    }
    Ok(copies)
}

/// The ids that a part of the specification speaks of.
fn ids(part: &Value) -> Option<Ids> {
    let ranges = |name: &str| serde_json::from_value::<Vec<Range>>(part.get(name)?.clone()).ok();
    Some(Ids { users: ranges("uidMappings")?, groups: ranges("gidMappings")? })
}

fn copy_root(spec: &mut Value) -> io::Result<Copied> {
    let source = PathBuf::from(spec["root"]["path"].as_str().unwrap_or_default());
    let mount = crate::mount::copy(&source, true).map_err(|error| told(&source, &error))?;
    let name = "rootfs".to_owned();
    spec["root"]["path"] = json!(staged(&name));
    Ok(Copied { mount, name, is_directory: true })
}

/// Namespaces are entered by descriptors that this process holds from now on.
fn name_namespaces(spec: &mut Value, own: BorrowedFd<'_>) -> io::Result<()> {
    for namespace in spec["linux"]["namespaces"].as_array_mut().into_iter().flatten() {
        let held = match (namespace["type"].as_str(), namespace["path"].as_str()) {
            (Some("user"), None) => own.as_raw_fd(),
            (_, Some(path)) => File::open(path).map_err(|error| told(Path::new(path), &error))?.into_raw_fd(),
            _ => continue,
        };
        namespace["path"] = json!(format!("/proc/self/fd/{held}"));
    }
    Ok(())
}

fn told(what: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", what.display()))
}
