//! User namespaces of pods (KEP-127): which ids of the host the ids of a pod are, and views of directories in which files
//! belong to those.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use k8s_cri::v1::{IdMapping, NamespaceMode, UserNamespace};
use serde::{Deserialize, Serialize};

use crate::mount;

/// Ids that follow each other, in the form of the OCI runtime specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// The first of them, as it is seen inside.
    #[serde(rename = "containerID")]
    pub container: u32,
    /// The first of them, as the host knows it.
    #[serde(rename = "hostID")]
    pub host: u32,
    #[serde(rename = "size")]
    pub length: u32,
}

impl From<&IdMapping> for Range {
    fn from(mapping: &IdMapping) -> Self {
        Self { container: mapping.container_id, host: mapping.host_id, length: mapping.length }
    }
}

/// The users and groups of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ids {
    pub users: Vec<Range>,
    pub groups: Vec<Range>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IdsError {
    #[error("{0} mapping: only one mapping line supported, got {1} mapping lines")]
    Many(&'static str, usize),
    #[error("{0} mapping: invalid mapping length: {1}")]
    Length(&'static str, u32),
    #[error(
        "can't use user namespace mode \"NODE\" with mappings. Got {0} UID mappings and {1} GID mappings"
    )]
    OfHost(usize, usize),
    #[error("can't use user namespace mode \"POD\" without UID and GID mappings")]
    None,
    #[error("unsupported user namespace mode: {0:?}")]
    Mode(&'static str),
}

impl Ids {
    /// What a pod or container is asked to have: ids of its own, or the host's.
    pub fn asked(options: Option<&UserNamespace>) -> Result<Option<Self>, IdsError> {
        let Some(options) = options else { return Ok(None) };
        let users = one("UID", &options.uids)?;
        let groups = one("GID", &options.gids)?;
        match options.mode() {
            NamespaceMode::Node if users.is_empty() && groups.is_empty() => Ok(None),
            NamespaceMode::Node => Err(IdsError::OfHost(users.len(), groups.len())),
            NamespaceMode::Pod if users.is_empty() || groups.is_empty() => Err(IdsError::None),
            NamespaceMode::Pod => Ok(Some(Self { users, groups })),
            other => Err(IdsError::Mode(other.as_str_name())),
        }
    }

    /// What a user of the pod is on the host; none where the pod has no such user.
    pub fn host_user(&self, inside: u32) -> Option<u32> {
        on_host(&self.users, inside)
    }

    pub fn host_group(&self, inside: u32) -> Option<u32> {
        on_host(&self.groups, inside)
    }
}

fn one(what: &'static str, mappings: &[IdMapping]) -> Result<Vec<Range>, IdsError> {
    match mappings {
        [] => Ok(Vec::new()),
        [only] if only.length == 0 => Err(IdsError::Length(what, only.length)),
        [only] => Ok(vec![only.into()]),
        many => Err(IdsError::Many(what, many.len())),
    }
}

fn on_host(ranges: &[Range], inside: u32) -> Option<u32> {
    ranges.iter().find_map(|range| {
        let offset = inside.checked_sub(range.container).filter(|offset| *offset < range.length)?;
        range.host.checked_add(offset)
    })
}

/// Whether this host makes user namespaces, and views of all that pods see in them: of files in memory, as secrets are, since
/// Linux 6.3.
pub fn is_supported() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let most = std::fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    version(&release) >= (6, 3) && most.trim().parse::<u64>().is_ok_and(|most| most > 0)
}

/// The first two numbers of a kernel's release.
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|text| text.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Makes the files of a copied mount belong, for whoever comes through it, to the ids that their owners' are outside of the
/// namespace `users`. Mounts below it stay as they are.
///
/// # Errors
/// The kernel knows no such mounts, or none of this kind of file system.
pub fn map(mount: &OwnedFd, users: BorrowedFd<'_>) -> io::Result<()> {
    mount::change(mount, libc::MOUNT_ATTR_IDMAP, Some(users))
}

/// Shows `source` at `target` with the owners that its files have for a pod whose ids are those of the namespace `users`.
///
/// # Errors
/// As runc says it where the file system has no such view.
pub fn show(source: &Path, users: BorrowedFd<'_>, target: &Path) -> io::Result<()> {
    let view = mount::copy(source, false)?;
    map(&view, users).map_err(|error| refused(source, &error))?;
    mount::attach(&view, target)
}

/// That a mount's owners cannot be mapped, in runc's words.
pub fn refused(source: &Path, error: &io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        format!(
            "failed to set MOUNT_ATTR_IDMAP on {}: {error} (maybe the filesystem used doesn't support idmap mounts on this \
             kernel?)",
            source.display()
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(mode: NamespaceMode, uids: &[(u32, u32, u32)]) -> Result<Option<Ids>, String> {
        let uids: Vec<_> = uids
            .iter()
            .map(|&(container_id, host_id, length)| IdMapping { host_id, container_id, length })
            .collect();
        let options = UserNamespace { mode: mode as i32, gids: uids.clone(), uids };
        Ids::asked(Some(&options)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_pod_has_one_range_of_ids_or_the_hosts() {
        assert_eq!(Ids::asked(None), Ok(None));
        assert_eq!(asked(NamespaceMode::Node, &[]), Ok(None));
        let ids = asked(NamespaceMode::Pod, &[(0, 65536, 65536)]).unwrap().unwrap();
        assert_eq!((ids.host_user(0), ids.host_group(65535)), (Some(65536), Some(131_071)));
        assert_eq!(ids.host_user(65536), None);
        for (mode, uids, why) in [
            (
                NamespaceMode::Node,
                &[(0, 1, 2)][..],
                "can't use user namespace mode \"NODE\" with mappings. Got 1 UID mappings and 1 GID mappings",
            ),
            (NamespaceMode::Pod, &[], "can't use user namespace mode \"POD\" without UID and GID mappings"),
            (NamespaceMode::Pod, &[(0, 1, 0)], "UID mapping: invalid mapping length: 0"),
            (
                NamespaceMode::Pod,
                &[(0, 1, 1), (1, 9, 1)],
                "UID mapping: only one mapping line supported, got 2 mapping lines",
            ),
            (NamespaceMode::Target, &[(0, 1, 1)], "unsupported user namespace mode: \"TARGET\""),
        ] {
            assert_eq!(asked(mode, uids), Err(why.to_owned()));
        }
    }

    #[test]
    fn kernels_are_told_apart() {
        for (release, numbers) in
            [("6.18.44-fc-v669\n", (6, 18)), ("5.19", (5, 19)), ("6.3-rc1", (6, 3)), ("", (0, 0))]
        {
            assert_eq!(version(release), numbers, "{release}");
        }
    }

    #[test]
    fn ranges_are_written_as_the_specification_has_them() {
        let range = Range { container: 0, host: 65536, length: 10 };
        let text = serde_json::to_value(range).unwrap();
        assert_eq!(text, serde_json::json!({ "containerID": 0, "hostID": 65536, "size": 10 }));
    }
}
