//! Who a container's processes are: numbers, or names that the image knows.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::path::Path;

use k8s_cri::v1::{LinuxContainerSecurityContext, SupplementalGroupsPolicy};
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::Mode;

#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// With the primary group first.
    pub groups: Vec<u32>,
    pub home: Option<String>,
}

/// What of `/etc/passwd` and `/etc/group` matters.
#[derive(Debug, Default)]
pub struct Accounts {
    passwd: String,
    group: String,
}

impl Accounts {
    /// Reads them from a root file system; what is missing is empty.
    pub fn read(rootfs: &Path) -> Self {
        Self {
            passwd: read_within(rootfs, "etc/passwd").unwrap_or_default(),
            group: read_within(rootfs, "etc/group").unwrap_or_default(),
        }
    }

    fn account(&self, wanted: &str) -> Option<Account<'_>> {
        let accounts = || self.passwd.lines().filter_map(Account::parse);
        accounts().find(|account| account.name == wanted).or_else(|| {
            wanted.parse().ok().and_then(|uid: u32| accounts().find(|account| account.uid == uid))
        })
    }

    fn group(&self, wanted: &str) -> Option<u32> {
        self.group.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let gid = fields.nth(1)?.parse().ok()?;
            (name == wanted).then_some(gid)
        })
    }

    fn groups_of<'a>(&'a self, user: &'a str) -> impl Iterator<Item = u32> + 'a {
        self.group.lines().filter_map(move |line| {
            let mut fields = line.split(':').skip(2);
            let gid = fields.next()?.parse().ok()?;
            fields.next()?.split(',').any(|member| member == user).then_some(gid)
        })
    }
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> Account<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1).unwrap_or("");
        Some(Self { name, uid, gid, home })
    }
}

/// A small file of the image, with links followed inside the image only.
fn read_within(rootfs: &Path, path: &str) -> io::Result<String> {
    let root =
        openat(AT_FDCWD, rootfs, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let file = std::fs::File::from(openat2(&root, path, how)?);
    let mut text = Vec::new();
    file.take(1 << 20).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UserError {
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
}

/// Who is asked for: by the pod, or else by the image (`user[:group]`).
pub fn resolve(
    security: &LinuxContainerSecurityContext,
    image_user: &str,
    accounts: &Accounts,
) -> Result<User, UserError> {
    let (mut user_name, mut group_name) = match image_user.split_once(':') {
        Some((user, group)) => (user.to_owned(), Some(group.to_owned())),
        None => (image_user.to_owned(), None),
    };
    if let Some(uid) = &security.run_as_user {
        (user_name, group_name) = (uid.value.to_string(), None);
    } else if !security.run_as_username.is_empty() {
        (user_name, group_name) = (security.run_as_username.clone(), None);
    }
    if user_name.is_empty() {
        user_name = "0".into();
    }
    let account = accounts.account(&user_name);
    let uid = match (&account, user_name.parse()) {
        (Some(account), _) => account.uid,
        (None, Ok(uid)) => uid,
        (None, Err(_)) => return Err(UserError::NoUser(user_name)),
    };
    let gid = match (&security.run_as_group, group_name) {
        (Some(gid), _) => u32::try_from(gid.value).unwrap_or(0),
        (None, Some(name)) if !name.is_empty() => match (accounts.group(&name), name.parse()) {
            (Some(gid), _) | (None, Ok(gid)) => gid,
            (None, Err(_)) => return Err(UserError::NoGroup(name)),
        },
        _ => account.as_ref().map_or(0, |account| account.gid),
    };
    let mut groups = vec![gid];
    let mut seen = BTreeSet::from([gid]);
    let merged: Vec<u32> = match (&account, security.supplemental_groups_policy()) {
        (Some(account), SupplementalGroupsPolicy::Merge) => accounts.groups_of(account.name).collect(),
        _ => Vec::new(),
    };
    let asked = security.supplemental_groups.iter().filter_map(|gid| u32::try_from(*gid).ok());
    groups.extend(merged.into_iter().chain(asked).filter(|gid| seen.insert(*gid)));
    let home = account.map(|account| account.home.to_owned()).filter(|home| !home.is_empty());
    Ok(User { uid, gid, groups, home })
}

#[cfg(test)]
mod tests {
    use k8s_cri::v1::Int64Value;

    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102:web:/srv:/bin/sh\n".into(),
            group: "root:x:0:\nweb:x:102:\nlogs:x:200:web,root\n".into(),
        }
    }

    fn who(
        image: &str,
        uid: Option<i64>,
        gid: Option<i64>,
        extra: &[i64],
    ) -> Result<(u32, u32, Vec<u32>), UserError> {
        let security = LinuxContainerSecurityContext {
            run_as_user: uid.map(|value| Int64Value { value }),
            run_as_group: gid.map(|value| Int64Value { value }),
            supplemental_groups: extra.to_vec(),
            ..Default::default()
        };
        resolve(&security, image, &accounts()).map(|user| (user.uid, user.gid, user.groups))
    }

    #[test]
    fn names_and_numbers() {
        assert_eq!(who("", None, None, &[]).unwrap(), (0, 0, vec![0, 200]));
        assert_eq!(who("web", None, None, &[]).unwrap(), (101, 102, vec![102, 200]));
        assert_eq!(who("101", None, None, &[7, 200]).unwrap(), (101, 102, vec![102, 200, 7]));
        assert_eq!(who("web:logs", None, None, &[]).unwrap(), (101, 200, vec![200]));
        assert_eq!(who("web", Some(5000), None, &[9]).unwrap(), (5000, 0, vec![0, 9]));
        assert_eq!(who("web", Some(5000), Some(6000), &[]).unwrap(), (5000, 6000, vec![6000]));
        assert_eq!(who("nobody-here", None, None, &[]), Err(UserError::NoUser("nobody-here".into())));
        assert_eq!(who("web:none", None, None, &[]), Err(UserError::NoGroup("none".into())));
    }
}
