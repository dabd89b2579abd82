//! What is known of the node's CSI volumes: by which pods each is used, which are made ready for the node, and what the
//! API and the kubelet have told each other of them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::TokenRequestStatus;
use k8s_openapi::api::core::v1::{Node, NodeStatus};
use krate_client::{Client, EventRecorder};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::drivers::Drivers;
use super::paths::{self, PLUGIN, Root};
use super::stats::Kept;

/// What a pod has, as long as this kubelet knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    pub driver: String,
    pub handle: String,
    /// The volume's name in the pod.
    pub volume: String,
    /// The name of the claim that led to it.
    pub claim: Option<String>,
    pub path: PathBuf,
    /// How large it was when it was given, in bytes.
    pub size: i64,
}

/// Of a pod's UID and a PersistentVolume, or the volume's name in its pod.
pub type Key = (String, String);
/// Of a pod's UID, a driver, and an audience.
pub type TokenKey = (String, String, String);

/// How often things are looked at.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Volumes that may change while nobody tells.
    pub sync: Duration,
    /// How old figures may be; none: drivers are not asked for any.
    pub stats: Option<Duration>,
}

pub struct Csi {
    pub(super) client: Client,
    pub(super) node: String,
    pub(super) root: Root,
    pub(super) events: EventRecorder,
    pub(super) times: Times,
    pub drivers: Arc<Drivers>,
    /// Of each volume something is done by one at a time.
    locks: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
    /// The pods that have or want each volume, by its unique name.
    in_use: Mutex<BTreeMap<String, BTreeSet<String>>>,
    /// Volumes that this kubelet has made ready for the node.
    pub(super) staged: Mutex<HashSet<String>>,
    pub(super) given: Mutex<BTreeMap<Key, Given>>,
    /// Tokens for drivers, and when they are to be asked for anew.
    pub(super) tokens: Mutex<HashMap<TokenKey, (TokenRequestStatus, jiff::Timestamp)>>,
    pub(super) stats: Mutex<HashMap<String, (Instant, Kept)>>,
    /// What the node's status says that is attached, and that is in use.
    pub(super) attached: watch::Sender<BTreeSet<String>>,
    pub(super) reported: watch::Sender<BTreeSet<String>>,
    /// Told when other volumes are in use.
    changed: Arc<Notify>,
}

impl Csi {
    /// The volumes of a kubelet with this directory, with what its pods had before it was started anew.
    pub fn new(
        client: Client,
        node: &str,
        root: PathBuf,
        times: Times,
        events: EventRecorder,
        drivers: Arc<Drivers>,
        changed: Arc<Notify>,
    ) -> Self {
        let root = Root(root);
        let found = paths::all_in_use(&root).into_iter();
        let in_use = found.map(|(name, uids)| (name, uids.into_iter().collect())).collect();
        Csi {
            client,
            node: node.to_owned(),
            root,
            events,
            times,
            drivers,
            locks: Mutex::default(),
            in_use: Mutex::new(in_use),
            staged: Mutex::default(),
            given: Mutex::default(),
            tokens: Mutex::default(),
            stats: Mutex::default(),
            attached: watch::Sender::default(),
            reported: watch::Sender::default(),
            changed,
        }
    }

    /// When a volume that may change while nobody tells is looked at again.
    pub(super) fn next_look(&self) -> jiff::Timestamp {
        jiff::Timestamp::now() + self.times.sync.max(Duration::from_secs(1))
    }

    /// The lock of one volume.
    pub(super) fn lock(&self, unique: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock();
        if let Some(known) = locks.get(unique).and_then(Weak::upgrade) {
            return known;
        }
        locks.retain(|_, lock| lock.strong_count() > 0);
        let new = Arc::new(tokio::sync::Mutex::new(()));
        locks.insert(unique.to_owned(), Arc::downgrade(&new));
        new
    }

    /// A pod wants a volume: it is in use from now on until it is released.
    pub(super) fn wants(&self, unique: &str, uid: &str) {
        let is_new = {
            let mut in_use = self.in_use.lock();
            let is_new = !in_use.contains_key(unique);
            in_use.entry(unique.to_owned()).or_default().insert(uid.to_owned());
            is_new
        };
        if is_new {
            self.changed.notify_one();
        }
    }

    /// Whether others than this pod have or want a volume.
    pub(super) fn is_shared(&self, unique: &str, uid: &str) -> bool {
        self.in_use.lock().get(unique).is_some_and(|uids| uids.iter().any(|other| other != uid))
    }

    /// Whether nobody has or wants a volume.
    pub(super) fn is_unused(&self, unique: &str) -> bool {
        self.in_use.lock().get(unique).is_none_or(BTreeSet::is_empty)
    }

    /// The volumes that a pod has or wants.
    pub(super) fn used_by(&self, uid: &str) -> Vec<String> {
        let in_use = self.in_use.lock();
        in_use.iter().filter(|(_, uids)| uids.contains(uid)).map(|(name, _)| name.clone()).collect()
    }

    /// The volumes that are on the node though nobody has or wants them.
    pub(super) fn unused(&self) -> Vec<String> {
        let in_use = self.in_use.lock();
        in_use.iter().filter(|(_, uids)| uids.is_empty()).map(|(name, _)| name.clone()).collect()
    }

    /// A pod has and wants no volume any more. What nobody else does is in use no more.
    pub(super) fn let_go(&self, uid: &str) {
        let is_less = {
            let mut in_use = self.in_use.lock();
            let before = in_use.len();
            in_use.retain(|_, uids| !uids.remove(uid) || !uids.is_empty());
            in_use.len() != before
        };
        if is_less {
            self.changed.notify_one();
        }
    }

    /// A volume that nobody has or wants is off the node.
    pub(super) fn forget_unused(&self, unique: &str) {
        self.in_use.lock().remove(unique);
        self.changed.notify_one();
    }

    /// What the node's status is to say is in use: such volumes as must be attached.
    pub fn volumes_in_use(&self) -> Vec<String> {
        let must = |name: &&String| {
            let rest = name.strip_prefix(PLUGIN).and_then(|rest| rest.strip_prefix('/'));
            let driver = rest.and_then(|rest| rest.split_once('^')).map(|(driver, _)| driver);
            driver.is_some_and(|driver| self.drivers.must_be_attached(driver))
        };
        self.in_use.lock().keys().filter(must).cloned().collect()
    }

    /// The node's status has been told.
    pub fn told(&self, status: Option<&NodeStatus>) {
        let told = status.and_then(|s| s.volumes_in_use.clone()).unwrap_or_default();
        replace(&self.reported, told.into_iter().collect());
    }

    /// The node's object is as the API has it.
    pub fn seen(&self, node: &Node) {
        let attached = node.status.as_ref().and_then(|s| s.volumes_attached.as_deref()).unwrap_or_default();
        replace(&self.attached, attached.iter().map(|volume| volume.name.clone()).collect());
    }
}

fn replace(told: &watch::Sender<BTreeSet<String>>, new: BTreeSet<String>) {
    told.send_if_modified(|known| {
        let is_new = *known != new;
        *known = new;
        is_new
    });
}
