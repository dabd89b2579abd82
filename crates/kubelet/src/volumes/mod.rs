//! Volumes: one trait, and a table of the kinds that are known. Setting up is idempotent, and is also how a volume is
//! brought up to date.

mod affinity;
pub mod atomic;
mod claim;
mod image;
pub mod loops;
mod nfs;
mod ownership;
mod payload;
mod plain;
mod projected;
mod removal;
pub mod subpath;
mod tally;
pub mod token;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Volume};
use krate_client::{Client, Informer};

use crate::blocking::blocking;
use crate::csi::{Csi, Inline, storage_took};
use crate::fieldpath::Addresses;
use crate::fieldpath::Allocatable;
use crate::names;
use crate::objects::Objects;
use crate::pod_certificates::PodCertificates;
use crate::signal::Signal;
use crate::trust_bundles::TrustBundles;

use ownership::Policy;

pub use tally::Tally;

/// What volumes are made from.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    pub client: &'a Client,
    pub objects: &'a Objects,
    pub trust_bundles: &'a TrustBundles,
    /// None: the feature is off.
    pub certificates: Option<&'a PodCertificates>,
    pub signal: &'a Arc<Signal>,
    pub pod: &'a Pod,
    pub pod_dir: &'a Path,
    pub addresses: &'a Addresses,
    pub node: Allocatable,
    /// The node's object, as the API tells of it.
    pub own_node: &'a Informer<Node>,
    pub csi: &'a Csi,
    pub tally: &'a Tally,
    /// How long a volume is waited for that another one must bring first.
    pub patience: Duration,
}

impl Context<'_> {
    pub fn fs_group(&self) -> Option<u32> {
        let security = self.pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
        security.and_then(|s| s.fs_group).and_then(|g| u32::try_from(g).ok())
    }

    /// Gives what is in a volume to the pod's group, as far as the pod has one, when the pod wants that.
    pub async fn give(&self, path: &Path) -> io::Result<()> {
        let (path, group, policy) = (path.to_owned(), self.fs_group(), self.change_policy());
        blocking(move || ownership::give(&path, group, false, policy)).await
    }

    /// The node's labels.
    async fn node_labels(&self) -> BTreeMap<String, String> {
        self.own_node.synced().await;
        self.own_node.list().first().and_then(|node| node.metadata.labels.clone()).unwrap_or_default()
    }

    /// When the pod wants its volumes given to its group.
    fn change_policy(&self) -> Policy {
        let security = self.pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
        Policy::parse(security.and_then(|s| s.fs_group_change_policy.as_deref()))
    }
}

/// Why a volume is not there.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("{0}")]
    Missing(String),
    #[error("{0}")]
    Api(#[from] kube::Error),
    #[error("{what}: {error}")]
    File { what: String, error: io::Error },
    #[error("no volume plugin matched name: {0}")]
    Unknown(String),
    /// The claim does not lead to a volume, or not yet.
    #[error("{0}")]
    Claim(String),
    /// The volume is not attached to the node in time.
    #[error("context deadline exceeded")]
    Unattached,
    /// A step of upstream's has failed; `volume` is the PersistentVolume's name, where there is one.
    #[error("{what} for volume {volume:?} : {why}")]
    Step { reason: &'static str, what: &'static str, volume: String, why: String },
}

impl VolumeError {
    pub fn file(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |error| VolumeError::File { what, error }
    }
}

/// The reason and the message of the event of a volume that is not there, in upstream's words.
pub fn complaint(volume: &str, error: &VolumeError) -> (&'static str, String) {
    let unable = |unattached: &str, failed: &str| {
        format!(
            "Unable to attach or mount volumes: unmounted volumes=[{volume}], unattached volumes=[{unattached}], failed to \
             process volumes=[{failed}]: {error}"
        )
    };
    match error {
        VolumeError::Claim(_) => ("FailedMount", unable("", volume)),
        VolumeError::Unattached => ("FailedMount", unable(volume, "")),
        VolumeError::Step { reason, .. } => (reason, error.to_string()),
        _ => ("FailedMount", format!("MountVolume.SetUp failed for volume {volume:?} : {error}")),
    }
}

/// What containers see of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// What lies at a path of the host.
    Files(PathBuf),
    /// A block device of the host.
    Device(PathBuf),
    /// An image that the runtime mounts: its name and pull policy.
    Image { reference: String, pull_policy: Option<String> },
}

/// A volume that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    pub content: Content,
    pub read_only: bool,
    /// When it must be set up again, at the latest.
    pub refresh_at: Option<Timestamp>,
}

impl Mounted {
    fn at(path: PathBuf) -> Self {
        Mounted { content: Content::Files(path), read_only: false, refresh_at: None }
    }
}

/// A kind of volume.
#[async_trait]
pub trait Plugin: Send + Sync {
    /// The name of its directory among a pod's volumes.
    fn name(&self) -> &'static str;
    fn is_for(&self, volume: &Volume) -> bool;
    /// Whether what it shows may change while the pod runs.
    fn changes(&self) -> bool {
        false
    }
    /// Whether it only leads to volumes that others bring, and count as theirs.
    fn leads_elsewhere(&self) -> bool {
        false
    }
    async fn set_up(
        &self,
        context: &Context<'_>,
        volume: &Volume,
        path: &Path,
    ) -> Result<Mounted, VolumeError>;
}

/// Every kind that is known. To add one is to add it here.
const PLUGINS: &[&dyn Plugin] = &[
    &plain::EmptyDir,
    &plain::HostPath,
    &payload::ConfigMap,
    &payload::Secret,
    &payload::DownwardApi,
    &projected::Projected,
    &claim::Claim,
    &nfs::Nfs,
    &image::ImageVolume,
    &Inline,
];

/// The volumes of a pod.
#[derive(Clone, Debug, Default)]
pub struct MountedVolumes {
    pub by_name: HashMap<String, Mounted>,
    /// When what could not be brought up to date is tried again.
    pub again_at: Option<Timestamp>,
    is_closed: bool,
}

impl MountedVolumes {
    /// The pod has ended: nothing is set up any more, and all goes.
    pub fn close(&mut self) {
        self.by_name.clear();
        self.is_closed = true;
    }
}

/// Sets up all volumes of a pod; with `only_changing`, those alone whose content may have changed.
///
/// # Errors
/// The first volume that cannot be set up, by name.
pub async fn set_up(
    context: &Context<'_>,
    mounted: &mut MountedVolumes,
    only_changing: bool,
) -> Result<(), (String, VolumeError)> {
    if mounted.is_closed {
        return Ok(());
    }
    let volumes = context.pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    for volume in volumes {
        let failed = |error| (volume.name.clone(), error);
        let Some(plugin) = PLUGINS.iter().find(|p| p.is_for(volume)) else {
            return Err(failed(VolumeError::Unknown(volume.name.clone())));
        };
        let known = mounted.by_name.get(&volume.name);
        let is_due = known.and_then(|m| m.refresh_at).is_some_and(|at| at <= Timestamp::now());
        if only_changing && !plugin.changes() && known.is_some() && !is_due {
            continue;
        }
        let path = directory(context.pod_dir, plugin.name(), &volume.name);
        let setting_up = plugin.set_up(context, volume, &path);
        let done = if plugin.leads_elsewhere() {
            setting_up.await
        } else {
            counted(context, volume, plugin.name(), setting_up).await
        };
        mounted.by_name.insert(volume.name.clone(), done.map_err(failed)?);
        context.tally.mounted(&names::uid(context.pod), &volume.name);
    }
    mounted.again_at = None;
    Ok(())
}

/// Sets a volume up that a plugin of this name brings, and notes that and how long it took.
async fn counted(
    context: &Context<'_>,
    volume: &Volume,
    plugin: &str,
    setting_up: impl Future<Output = Result<Mounted, VolumeError>>,
) -> Result<Mounted, VolumeError> {
    let uid = names::uid(context.pod);
    context.tally.wanted(&uid, &volume.name, plugin.to_owned());
    let began = Instant::now();
    let done = setting_up.await;
    storage_took(plugin, "volume_mount", done.is_ok(), began);
    done
}

fn directory(pod_dir: &Path, plugin: &str, volume: &str) -> PathBuf {
    pod_dir.join("volumes").join(plugin.replace('/', "~")).join(volume)
}

/// The directory of the devices that a pod has.
const DEVICES: &str = "volumeDevices";

/// Where a device of a pod's is shown.
fn device(pod_dir: &Path, plugin: &str, volume: &str) -> PathBuf {
    pod_dir.join(DEVICES).join(plugin.replace('/', "~")).join(volume)
}

/// When the first of the volumes must be set up again. After a failure none is, before that one is tried again.
pub fn refresh_at(mounted: &MountedVolumes) -> Option<Timestamp> {
    mounted.again_at.or_else(|| mounted.by_name.values().filter_map(|m| m.refresh_at).min())
}

/// Unmounts and removes all that is in a pod's directory, and the directory. Never crosses into what is still mounted.
///
/// # Errors
/// Something is in use.
pub fn tear_down(pod_dir: &Path) -> io::Result<()> {
    if !pod_dir.exists() {
        return Ok(());
    }
    if pod_dir.join(DEVICES).exists() {
        loops::release_below(pod_dir)?;
    }
    removal::unmount_below(pod_dir)?;
    removal::remove_tree(pod_dir)
}

/// Unmounts what containers see of parts of a pod's volumes, so that nobody is kept from unmounting the volumes.
///
/// # Errors
/// The kernel refuses.
pub async fn release_parts(pod_dir: &Path) -> io::Result<()> {
    let parts = pod_dir.join("volume-subpaths");
    blocking(move || removal::unmount_below(&parts)).await
}

/// Whether something is mounted at a path.
///
/// # Errors
/// The table of mounts cannot be read.
pub fn is_mounted(path: &Path) -> io::Result<bool> {
    Ok(removal::mounts_below(path)?.iter().any(|point| point == path))
}

/// Makes a directory that none but the kubelet's user and group may enter, with those above it.
///
/// # Errors
/// The file system refuses.
pub fn make_private_directory(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(0o750).create(path)
}

/// Where an empty directory of a pod is.
pub fn empty_dir(pod_dir: &Path, volume: &str) -> PathBuf {
    directory(pod_dir, plain::EmptyDir.name(), volume)
}

/// The UIDs of pods that have a directory.
pub fn pods(root: &Path) -> Vec<String> {
    let entries = fs::read_dir(root.join("pods")).into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().into_string().ok()).collect()
}

fn namespace(context: &Context<'_>) -> String {
    names::namespace(context.pod)
}
