//! Users of pods' own (KEP-127): a pod with `hostUsers: false` has a range of the host's user and group ids to itself, in which
//! its root is nobody. The ranges outlive the kubelet in a file of each pod's directory.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use k8s_cri::v1::{IdMapping, NamespaceMode, PodSandboxConfig, UserNamespace};
use k8s_openapi::api::core::v1::Pod;
use nix::errno::Errno;
use nix::unistd::User;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::checkpoint;
use crate::names;

/// The file in a pod's directory.
const FILE: &str = "userns";
/// Ids come in so many.
pub const UNIT: u32 = 65536;
/// Whose subordinate ids are used, if there is such a user.
const USER: &str = "kubelet";

/// A file, as upstream writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Mappings {
    uid_mappings: Vec<Range>,
    gid_mappings: Vec<Range>,
}

/// Ids of the host, and from which on they are seen in the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Range {
    host_id: u32,
    container_id: u32,
    length: u32,
}

/// Who has which ids.
#[derive(Debug)]
pub struct Users {
    /// The pods' directories.
    root: PathBuf,
    /// Ids of a pod.
    length: u32,
    /// The first range, and how many there are.
    first: u32,
    count: u32,
    given: Mutex<Given>,
}

#[derive(Debug, Default)]
struct Given {
    /// By the pod's UID, the number of its range.
    ranges: BTreeMap<String, u32>,
    /// The one that is tried next: who has gone is not followed at once.
    next: u32,
}

impl Users {
    /// Takes up what an earlier kubelet has given below `root`. `own` are the ids that may be given: the first, and how many.
    ///
    /// # Errors
    /// Upstream's message: there are not enough, or they do not come in whole ranges, or a file is not one of ours.
    pub fn new(root: &Path, length: u32, own: (u32, u64), most_pods: u32) -> Result<Self, String> {
        let (first, all) = own;
        let wide = u64::from(length);
        if length == 0 || !length.is_multiple_of(UNIT) {
            return Err(format!("kubelet user namespace length {length} is not a multiple of {UNIT}"));
        }
        if !first.is_multiple_of(length) {
            return Err(format!("kubelet user assigned ID {first} is not a multiple of {length}"));
        }
        if first < length {
            return Err(format!("kubelet user assigned ID {first} must be greater or equal to {length}"));
        }
        if !all.is_multiple_of(wide) {
            return Err(format!("kubelet user assigned IDs length {all} is not a multiple of {length}"));
        }
        if all / wide < u64::from(most_pods) {
            return Err(format!("kubelet user assigned IDs are not enough to support {most_pods} pods"));
        }
        let count = u32::try_from(all / wide).unwrap_or(u32::MAX);
        let users =
            Users { root: root.to_owned(), length, first: first / length, count, given: Mutex::default() };
        for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
            let Ok(uid) = entry.file_name().into_string() else { continue };
            if let Some(range) = users.written(&uid)? {
                let said = |why| format!("record pod mappings for existing pod {uid:?}: {why}");
                users.record(&mut users.given.lock(), &uid, range).map_err(said)?;
            }
        }
        Ok(users)
    }

    /// The namespace of a pod's users: its own, which it is given now if it has none, or the host's.
    ///
    /// # Errors
    /// There is none left, or it cannot be written down.
    pub fn of(&self, pod: &Pod) -> Result<UserNamespace, String> {
        if pod.spec.as_ref().and_then(|spec| spec.host_users) != Some(false) {
            return Ok(UserNamespace { mode: NamespaceMode::Node as i32, ..Default::default() });
        }
        let uid = names::uid(pod);
        let mut given = self.given.lock();
        let range = match self.written(&uid)? {
            Some(range) => {
                self.record(&mut given, &uid, range).map_err(|why| format!("user namespace: {why}"))?;
                range
            }
            None => self.create(&mut given, &uid).map_err(|why| format!("create user namespace: {why}"))?,
        };
        let ids = || {
            vec![IdMapping { host_id: range.host_id, container_id: range.container_id, length: range.length }]
        };
        Ok(UserNamespace { mode: NamespaceMode::Pod as i32, uids: ids(), gids: ids() })
    }

    fn create(&self, given: &mut Given, uid: &str) -> Result<Range, String> {
        let taken: HashSet<u32> = given.ranges.values().copied().collect();
        let mut places = (0..self.count).map(|step| (given.next % self.count + step) % self.count);
        let place = places
            .find(|place| !taken.contains(place))
            .ok_or("could not find an empty slot to allocate a user namespace")?;
        let host_id = (self.first + place) * self.length;
        let range = Range { host_id, container_id: 0, length: self.length };
        let mappings = Mappings { uid_mappings: vec![range], gid_mappings: vec![range] };
        let directory = self.root.join(uid);
        let write = || -> io::Result<()> {
            std::fs::create_dir_all(&directory)?;
            checkpoint::save(&directory.join(FILE), &mappings)?;
            std::fs::File::open(&directory)?.sync_all()
        };
        write().map_err(|error| error.to_string())?;
        given.ranges.insert(uid.to_owned(), place);
        given.next = place + 1;
        Ok(range)
    }

    /// What is written down of a pod, if anything.
    fn written(&self, uid: &str) -> Result<Option<Range>, String> {
        let text = match std::fs::read(self.root.join(uid).join(FILE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
            Ok(text) if text.is_empty() => return Ok(None),
            Ok(text) => text,
        };
        let mappings: Mappings = serde_json::from_slice(&text)
            .map_err(|error| format!("invalid user namespace mappings file: {error}"))?;
        let wrong = |why| Err(format!("invalid user namespace configuration: {why}"));
        match (mappings.uid_mappings.as_slice(), mappings.gid_mappings.as_slice()) {
            ([users], [groups]) if users != groups => wrong("GID and UID mapping should be identical"),
            ([range], [_]) if range.container_id != 0 => wrong("UID 0 must be mapped"),
            ([range], [_]) => Ok(Some(*range)),
            ([_], _) => wrong("GID and UID mappings should be identical."),
            _ => wrong("no more than one mapping allowed."),
        }
    }

    fn record(&self, given: &mut Given, uid: &str, range: Range) -> Result<(), String> {
        let Range { host_id, length, .. } = range;
        if length != self.length {
            return Err(format!("wrong user namespace length {length}"));
        }
        if !host_id.is_multiple_of(length) {
            return Err(format!("wrong user namespace offset specified {host_id}"));
        }
        let place = (host_id / length).checked_sub(self.first).filter(|place| *place < self.count);
        let Some(place) = place else { return Err(format!("id {host_id} is out of range")) };
        match given.ranges.get(uid) {
            Some(known) if *known == place => return Ok(()),
            Some(_) => {
                return Err(format!("different user namespace range already used by pod {uid:?}"));
            }
            None => {}
        }
        if given.ranges.values().any(|known| *known == place) {
            return Err(format!("range picked for pod {uid:?} already taken"));
        }
        given.ranges.insert(uid.to_owned(), place);
        Ok(())
    }

    /// The pod needs its ids no more.
    pub fn release(&self, uid: &str) {
        if self.given.lock().ranges.remove(uid).is_some() {
            let _ = std::fs::remove_file(self.root.join(uid).join(FILE));
        }
    }

    /// Whatever pods have that are not among these is free, as soon as nothing of them is left.
    pub fn keep(&self, known: &HashSet<String>) {
        let is_there = |uid: &String| known.contains(uid) || self.root.join(uid).exists();
        self.given.lock().ranges.retain(|uid, _| is_there(uid));
    }
}

/// The users' namespace that a sandbox is made with, if it is the pod's own.
pub fn own(sandbox: &PodSandboxConfig) -> Option<&UserNamespace> {
    let security = sandbox.linux.as_ref()?.security_context.as_ref()?;
    let users = security.namespace_options.as_ref()?.userns_options.as_ref();
    users.filter(|users| users.mode() == NamespaceMode::Pod)
}

/// The ids that may be given to pods, with so many for each: the subordinate ids of the user `kubelet`, if there is one and
/// `getsubids` is there to tell them, or else all but the first so many.
///
/// # Errors
/// They cannot be told, or users and groups have others.
pub fn range(length: u32) -> Result<(u32, u64), String> {
    let all = (length, (1 << 32) - u64::from(length));
    match User::from_name(USER) {
        Ok(Some(_)) => {}
        // The C library may tell of a user who is not there, or of no file of users at all, as an error of one of these.
        Ok(None) | Err(Errno::ENOENT | Errno::ESRCH | Errno::EBADF | Errno::EPERM) => return Ok(all),
        Err(error) => return Err(format!("kubelet mappings: error looking up user {USER:?}: {error}")),
    }
    let ask = |what: &str, more: &[&str]| {
        let out = Command::new("getsubids").args(more).arg(USER).output();
        match out {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Ok(out) if out.status.success() => Ok(Some(String::from_utf8_lossy(&out.stdout).into_owned())),
            Ok(out) => Err(format!(
                "kubelet mappings: error retrieving additional {what} for user {USER:?}: {}",
                out.status
            )),
            Err(error) => Err(format!(
                "kubelet mappings: error retrieving additional {what} for user {USER:?}: {error}"
            )),
        }
    };
    let (users, groups) = (ask("uids", &[])?, ask("gids", &["-g"])?);
    match (users, groups) {
        (Some(users), Some(groups)) if users == groups => told(&users),
        (Some(_), Some(_)) => {
            Err(format!("kubelet mappings: mismatched subuids and subgids for user {USER:?}"))
        }
        _ => Ok(all),
    }
}

/// One line: `0: kubelet 65536 7208960`.
fn told(text: &str) -> Result<(u32, u64), String> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let [line] = lines.as_slice() else {
        return Err(format!("kubelet mappings: error parsing line {text:?}"));
    };
    let fields: Vec<&str> = line.split_whitespace().collect();
    let ([_, _, first, count], wrong) = (fields.as_slice(), || format!("error parsing line {line:?}")) else {
        return Err(format!("kubelet mappings: error parsing line {line:?}"));
    };
    Ok((first.parse().map_err(|_| wrong())?, count.parse().map_err(|_| wrong())?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, host_users: Option<bool>) -> Pod {
        serde_json::from_value(
            json!({"metadata": {"uid": uid}, "spec": {"hostUsers": host_users, "containers": []}}),
        )
        .unwrap()
    }

    fn first(users: &Users, uid: &str) -> Result<u32, String> {
        users.of(&pod(uid, Some(false))).map(|own| own.uids[0].host_id)
    }

    fn new(root: &Path, count: u32) -> Users {
        Users::new(root, UNIT, (2 * UNIT, u64::from(UNIT) * u64::from(count)), 2).unwrap()
    }

    #[test]
    fn a_pod_has_ids_of_its_own_until_it_goes() {
        let root = tempfile::tempdir().unwrap();
        let users = new(root.path(), 2);
        for host in [None, Some(true)] {
            assert_eq!(users.of(&pod("host", host)).unwrap().mode(), NamespaceMode::Node);
        }
        let own = users.of(&pod("a", Some(false))).unwrap();
        let range = IdMapping { host_id: 2 * UNIT, container_id: 0, length: UNIT };
        assert_eq!((own.mode(), &own.uids, &own.gids), (NamespaceMode::Pod, &vec![range], &vec![range]));
        assert_eq!((first(&users, "a"), first(&users, "b")), (Ok(2 * UNIT), Ok(3 * UNIT)));
        let error = first(&users, "c").unwrap_err();
        assert_eq!(error, "create user namespace: could not find an empty slot to allocate a user namespace");
        assert_eq!(
            std::fs::read_to_string(root.path().join("a/userns")).unwrap(),
            r#"{"uidMappings":[{"hostId":131072,"containerId":0,"length":65536}],"gidMappings":[{"hostId":131072,"containerId":0,"length":65536}]}"#
        );

        // They outlive the kubelet.
        let users = new(root.path(), 2);
        assert!(first(&users, "c").is_err());
        users.release("a");
        assert!(!root.path().join("a/userns").exists());
        assert_eq!(first(&users, "c"), Ok(2 * UNIT));
        // What is on the disk is not gone, though nobody knows it.
        users.keep(&HashSet::from(["c".to_owned()]));
        assert!(first(&users, "d").is_err());
        std::fs::remove_dir_all(root.path().join("b")).unwrap();
        users.keep(&HashSet::from(["c".to_owned()]));
        assert_eq!(first(&users, "d"), Ok(3 * UNIT));
    }

    #[test]
    fn who_has_gone_is_not_followed_at_once() {
        let root = tempfile::tempdir().unwrap();
        let users = new(root.path(), 3);
        assert_eq!(first(&users, "a"), Ok(2 * UNIT));
        users.release("a");
        assert_eq!((first(&users, "b"), first(&users, "c")), (Ok(3 * UNIT), Ok(4 * UNIT)));
        assert_eq!(first(&users, "d"), Ok(2 * UNIT));
    }

    #[test]
    fn files_of_others_are_not_taken_up() {
        let range = |host: u32, container: u32, length: u32| json!({"hostId": host, "containerId": container, "length": length});
        let of = |users: &[serde_json::Value], groups: &[serde_json::Value]| {
            let root = tempfile::tempdir().unwrap();
            std::fs::create_dir(root.path().join("a")).unwrap();
            let text = json!({"uidMappings": users, "gidMappings": groups}).to_string();
            std::fs::write(root.path().join("a/userns"), text).unwrap();
            Users::new(root.path(), UNIT, (2 * UNIT, u64::from(UNIT) * 2), 2).map(drop)
        };
        let good = range(2 * UNIT, 0, UNIT);
        assert_eq!(of(std::slice::from_ref(&good), std::slice::from_ref(&good)), Ok(()));
        for (users, groups, said) in [
            (vec![], vec![], "no more than one mapping allowed."),
            (vec![good.clone()], vec![], "GID and UID mappings should be identical."),
            (vec![good.clone()], vec![range(3 * UNIT, 0, UNIT)], "GID and UID mapping should be identical"),
            (vec![range(2 * UNIT, 1, UNIT)], vec![range(2 * UNIT, 1, UNIT)], "UID 0 must be mapped"),
            (vec![range(2 * UNIT, 0, 1)], vec![range(2 * UNIT, 0, 1)], "wrong user namespace length 1"),
            (vec![range(1, 0, UNIT)], vec![range(1, 0, UNIT)], "wrong user namespace offset specified 1"),
            (vec![range(UNIT, 0, UNIT)], vec![range(UNIT, 0, UNIT)], "id 65536 is out of range"),
            (vec![range(4 * UNIT, 0, UNIT)], vec![range(4 * UNIT, 0, UNIT)], "id 262144 is out of range"),
        ] {
            let error = of(&users, &groups).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn ids_come_in_whole_ranges_and_enough_of_them() {
        let root = Path::new("/nowhere");
        let new = |length, own, pods| Users::new(root, length, own, pods).map(drop);
        let unit = u64::from(UNIT);
        assert_eq!(new(UNIT, (UNIT, (1 << 32) - unit), 110), Ok(()));
        for (length, own, pods, said) in [
            (1000, (UNIT, unit), 1, "kubelet user namespace length 1000 is not a multiple of 65536"),
            (UNIT, (1, unit), 1, "kubelet user assigned ID 1 is not a multiple of 65536"),
            (UNIT, (0, unit), 1, "kubelet user assigned ID 0 must be greater or equal to 65536"),
            (UNIT, (UNIT, 5), 1, "kubelet user assigned IDs length 5 is not a multiple of 65536"),
            (UNIT, (UNIT, unit), 2, "kubelet user assigned IDs are not enough to support 2 pods"),
        ] {
            assert_eq!(new(length, own, pods), Err(said.to_owned()));
        }
        assert_eq!(told("0: kubelet 65536 7208960\n"), Ok((65536, 7_208_960)));
        assert!(told("0: kubelet 1 2\n1: kubelet 3 4\n").is_err() && told("kubelet").is_err());
    }
}
