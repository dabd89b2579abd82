//! What a container's file system is put together from.

use std::path::{Component, Path, PathBuf};

use k8s_cri::v1::{IdMapping, Mount, MountPropagation};
use serde_json::{Value, json};

use crate::userns::{Ids, Range};

/// Files that the sandbox gives to each of its containers, unless they bring their own.
#[derive(Clone, Debug)]
pub struct SandboxFiles {
    pub hostname: Option<PathBuf>,
    pub hosts: PathBuf,
    pub resolv_conf: PathBuf,
    pub shm: PathBuf,
}

/// That a container's users are its pod's own.
#[derive(Clone, Copy, Debug)]
pub struct Users<'a> {
    pub ids: &'a Ids,
    /// While the network is the host's.
    pub host_network: bool,
}

/// Where a container sees its control groups.
pub const CGROUPS: &str = "/sys/fs/cgroup";

/// All mounts, in the order in which they are made: each after what it lies in. `views` are the places of version 1's
/// hierarchies below [`CGROUPS`], and what of the host's is seen there.
pub fn mounts(
    asked: &[Mount],
    files: &SandboxFiles,
    privileged: bool,
    readonly_rootfs: bool,
    views: Option<&[(String, PathBuf)]>,
    users: Option<Users<'_>>,
) -> Vec<Value> {
    let access = if privileged { "rw" } else { "ro" };
    let sys = if users.is_some_and(|users| users.host_network) {
        // A namespace of users may show only the networks that are its own.
        json!({ "destination": "/sys", "type": "bind", "source": "/sys",
                "options": ["rbind", "rslave", "nosuid", "noexec", "nodev", access] })
    } else {
        json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs",
                "options": ["nosuid", "noexec", "nodev", access] })
    };
    let mut all = vec![
        json!({ "destination": "/proc", "type": "proc", "source": "proc",
                "options": ["nosuid", "noexec", "nodev"] }),
        json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] }),
        json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] }),
        json!({ "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
                "options": ["nosuid", "noexec", "nodev"] }),
        sys,
    ];
    all.extend(cgroups(views, access));
    let brings = |path: &str| brings(asked, path);
    let writable = if readonly_rootfs { "ro" } else { "rw" };
    let shared: [(&str, Option<&PathBuf>, &str); 4] = [
        ("/etc/hostname", files.hostname.as_ref(), writable),
        ("/etc/hosts", Some(&files.hosts), writable),
        ("/etc/resolv.conf", Some(&files.resolv_conf), writable),
        ("/dev/shm", Some(&files.shm), "rw"),
    ];
    for (destination, source, access) in shared {
        if let Some(source) = source
            && !brings(destination)
        {
            let mut mount = json!({ "destination": destination, "type": "bind", "source": source,
                                    "options": ["rbind", "rprivate", access] });
            if let Some(Users { ids: Ids { users, groups }, .. }) = users {
                map(&mut mount, users, groups);
            }
            all.push(mount);
        }
    }
    // What a pod brings replaces what everybody has, and what would lie in it.
    let own_cgroups = brings(CGROUPS);
    all.retain(|mount| {
        let place = mount["destination"].as_str().unwrap_or_default();
        !(brings(place) || own_cgroups && place.starts_with(CGROUPS))
    });
    let mut own: Vec<&Mount> = asked.iter().collect();
    own.sort_by_key(|mount| clean(&mount.container_path).components().count());
    all.extend(own.into_iter().map(volume));
    all
}

/// Of version 1, each hierarchy's group of the container is bound to its place here, not by libcontainer: that looks for
/// itself among the host's processes, and finds another when the container is in the process namespace of a pod; and what
/// it binds can be written.
fn cgroups(views: Option<&[(String, PathBuf)]>, access: &str) -> Vec<Value> {
    let Some(views) = views else {
        return vec![json!({ "destination": CGROUPS, "type": "cgroup", "source": "cgroup",
                            "options": ["nosuid", "noexec", "nodev", "relatime", access] })];
    };
    // Written to only while the places are made in it.
    let mut all = vec![json!({ "destination": CGROUPS, "type": "tmpfs", "source": "tmpfs",
                               "options": ["nosuid", "noexec", "nodev", "relatime", "mode=755"] })];
    all.extend(views.iter().map(|(name, group)| {
        json!({ "destination": format!("{CGROUPS}/{name}"), "type": "bind", "source": group,
                "options": ["bind", "nosuid", "noexec", "nodev", "relatime", access] })
    }));
    all
}

fn volume(mount: &Mount) -> Value {
    let propagation = match mount.propagation() {
        MountPropagation::PropagationPrivate => "rprivate",
        MountPropagation::PropagationHostToContainer => "rslave",
        MountPropagation::PropagationBidirectional => "rshared",
    };
    let access = match (mount.readonly, mount.recursive_read_only) {
        (true, true) => "rro",
        (true, false) => "ro",
        (false, _) => "rw",
    };
    let mut volume = json!({ "destination": clean(&mount.container_path), "type": "bind",
                             "source": mount.host_path, "options": ["rbind", propagation, access] });
    let ranges = |all: &[IdMapping]| all.iter().map(Range::from).collect::<Vec<_>>();
    let (users, groups) = (ranges(&mount.uid_mappings), ranges(&mount.gid_mappings));
    if !(users.is_empty() && groups.is_empty()) {
        map(&mut volume, &users, &groups);
    }
    volume
}

/// The files of a mount belong to these ids of the host's.
fn map(mount: &mut Value, users: &[Range], groups: &[Range]) {
    mount["uidMappings"] = json!(users);
    mount["gidMappings"] = json!(groups);
}

/// Whether a pod itself says what is at a path.
pub fn brings(asked: &[Mount], path: &str) -> bool {
    asked.iter().any(|mount| clean(&mount.container_path) == Path::new(path))
}

/// How mounts of the container and the host reach each other, in the runtime specification's words.
pub fn rootfs_propagation(asked: &[Mount]) -> Option<&'static str> {
    let any = |wanted| asked.iter().any(|mount| mount.propagation() == wanted);
    if any(MountPropagation::PropagationBidirectional) {
        Some("shared")
    } else if any(MountPropagation::PropagationHostToContainer) {
        Some("slave")
    } else {
        None
    }
}

/// An absolute path without detours.
fn clean(path: &str) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            _ => {}
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> SandboxFiles {
        SandboxFiles {
            hostname: Some("/s/hostname".into()),
            hosts: "/s/hosts".into(),
            resolv_conf: "/s/resolv.conf".into(),
            shm: "/s/shm".into(),
        }
    }

    fn at<'a>(mounts: &'a [Value], path: &str) -> Vec<&'a Value> {
        mounts.iter().filter(|mount| mount["destination"] == path).collect()
    }

    #[test]
    fn a_pods_own_mount_replaces_the_common_one() {
        let own =
            Mount { container_path: "/etc/hosts/".into(), host_path: "/mine".into(), ..Default::default() };
        let made = mounts(&[own], &files(), false, false, None, None);
        assert_eq!(at(&made, "/etc/hosts").len(), 1);
        assert_eq!(at(&made, "/etc/hosts")[0]["source"], "/mine");
        assert_eq!(at(&made, "/etc/resolv.conf")[0]["source"], "/s/resolv.conf");
    }

    #[test]
    fn outer_before_inner_and_options_as_asked() {
        let mount = |path: &str, readonly, propagation: MountPropagation| Mount {
            container_path: path.into(),
            host_path: "/h".into(),
            readonly,
            propagation: propagation as i32,
            ..Default::default()
        };
        let asked = [
            mount("/data/inner", true, MountPropagation::PropagationHostToContainer),
            mount("/data", false, MountPropagation::PropagationPrivate),
        ];
        let made = mounts(&asked, &files(), false, false, None, None);
        let last: Vec<_> = made.iter().rev().take(2).map(|m| m["destination"].as_str().unwrap()).collect();
        assert_eq!(last, ["/data/inner", "/data"]);
        assert_eq!(at(&made, "/data/inner")[0]["options"], json!(["rbind", "rslave", "ro"]));
        assert_eq!(rootfs_propagation(&asked), Some("slave"));
    }

    #[test]
    fn the_groups_of_a_container_are_bound_read_only_unless_a_pod_brings_its_own() {
        let views = [("cpu".to_owned(), PathBuf::from("/sys/fs/cgroup/cpu,cpuacct/p/c"))];
        let made = mounts(&[], &files(), false, false, Some(&views), None);
        assert_eq!(at(&made, CGROUPS)[0]["type"], "tmpfs");
        let bound = at(&made, "/sys/fs/cgroup/cpu")[0];
        assert_eq!((&bound["type"], &bound["source"]), (&json!("bind"), &json!(views[0].1)));
        assert!(bound["options"].as_array().unwrap().contains(&json!("ro")));
        let own =
            Mount { container_path: format!("{CGROUPS}/"), host_path: "/h".into(), ..Default::default() };
        let made = mounts(&[own], &files(), false, false, Some(&views), None);
        assert_eq!((at(&made, CGROUPS).len(), at(&made, "/sys/fs/cgroup/cpu").len()), (1, 0));
    }
}
