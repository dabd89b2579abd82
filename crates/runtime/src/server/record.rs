//! What is written down of sandboxes and containers, so that a new server knows what the old one knew.

use std::io;
use std::path::{Path, PathBuf};

use k8s_cri::v1::{ContainerConfig, PodSandboxConfig};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::{Config, PodAddresses};
use crate::image::store::RunConfig;
use crate::oci::user::User;
use crate::snapshot;

/// A message of CRI inside a JSON record: in its own encoding, which later versions still read.
mod message {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use prost::Message;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub fn serialize<S: Serializer, M: Message>(message: &M, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(message.encode_to_vec()))
    }

    pub fn deserialize<'de, D: Deserializer<'de>, M: Message + Default>(from: D) -> Result<M, D::Error> {
        let bytes = STANDARD.decode(String::deserialize(from)?).map_err(de::Error::custom)?;
        M::decode(bytes.as_slice()).map_err(de::Error::custom)
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxRecord {
    pub id: String,
    #[serde(with = "message")]
    pub config: PodSandboxConfig,
    pub runtime_handler: String,
    /// Nanoseconds since 1970.
    pub created_at: i64,
    pub shim: i32,
    pub pause: Option<i32>,
    pub addresses: PodAddresses,
    /// Its network and shared memory have been given back.
    pub stopped: bool,
    /// The cgroup that was made for it and is to be removed with it.
    pub own_cgroup: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerRecord {
    pub id: String,
    pub sandbox: String,
    #[serde(with = "message")]
    pub config: ContainerConfig,
    pub image_id: String,
    /// What the image is called in status: by its digest in a repository if it has one.
    pub image_ref: String,
    pub layers: Vec<String>,
    pub image: RunConfig,
    pub user: User,
    /// Which user of the host's that is.
    #[serde(default)]
    pub host_user: Option<u32>,
    pub cgroup: String,
    /// Mount points in its bundle beside the root.
    pub image_mounts: Vec<PathBuf>,
    pub log_path: Option<PathBuf>,
    pub created_at: i64,
    pub started_at: i64,
    pub pid: i32,
    /// Why it could not be started.
    pub failure: Option<String>,
}

/// Where everything lies.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
    state: PathBuf,
}

impl Layout {
    pub fn new(config: &Config) -> io::Result<Self> {
        in_memory(&config.state)?;
        for part in ["sandboxes", "containers"] {
            std::fs::create_dir_all(config.root.join(part))?;
            std::fs::create_dir_all(config.state.join(part))?;
        }
        // libcontainer and the shims have other working directories.
        let layout = Self { root: config.root.canonicalize()?, state: config.state.canonicalize()? };
        snapshot::write_places(&layout.places())?;
        Ok(layout)
    }

    /// The layer of places that every container has something mounted on.
    pub fn places(&self) -> PathBuf {
        self.state.join("places")
    }

    /// Gives the memory of the state directory back. For when nothing is in it.
    pub fn close(&self) -> io::Result<()> {
        if is_ours(&self.state) { snapshot::unmount(&self.state) } else { Ok(()) }
    }

    pub fn sandbox(&self, id: &str) -> PathBuf {
        self.root.join("sandboxes").join(id)
    }

    pub fn sandbox_state(&self, id: &str) -> PathBuf {
        self.state.join("sandboxes").join(id)
    }

    pub fn shm(&self, id: &str) -> PathBuf {
        self.sandbox_state(id).join("shm")
    }

    pub fn container(&self, id: &str) -> PathBuf {
        self.root.join("containers").join(id)
    }

    pub fn bundle(&self, id: &str) -> PathBuf {
        self.state.join("containers").join(id)
    }

    pub fn rootfs(&self, id: &str) -> PathBuf {
        self.bundle(id).join("rootfs")
    }

    /// libcontainer's own records, below the bundle.
    pub fn runtime(&self, id: &str) -> PathBuf {
        self.bundle(id).join("runtime")
    }

    pub fn exit_file(&self, id: &str) -> PathBuf {
        self.container(id).join("exit.json")
    }

    /// The identifiers of what there is of a kind: `sandboxes` or `containers`, on disk or in the state directory.
    pub fn listed(&self, kind: &str) -> Vec<String> {
        let mut ids: Vec<String> = [&self.root, &self.state]
            .into_iter()
            .flat_map(|base| std::fs::read_dir(base.join(kind)).into_iter().flatten().flatten())
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        ids.sort();
        ids.dedup();
        ids
    }
}

/// What the state directory's memory file system is called in the table of mounts.
const MEMORY: &str = "krate-state";

/// Makes the state directory one in memory. What lies there means nothing after a reboot; small files are made and
/// removed there with every pod, and a disk would only slow that down.
fn in_memory(state: &Path) -> io::Result<()> {
    std::fs::create_dir_all(state)?;
    if statfs(state)?.filesystem_type() == TMPFS_MAGIC {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    if let Err(error) = mount(Some(MEMORY), state, Some("tmpfs"), flags, Some("mode=0700")) {
        tracing::warn!(%error, "the runtime's state directory stays on disk");
    }
    Ok(())
}

fn is_ours(state: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let ours = |line: &str| {
        line.contains(&format!(" - tmpfs {MEMORY} "))
            && line.split(' ').nth(4).is_some_and(|point| Path::new(point) == state)
    };
    mounts.lines().any(ours)
}

pub const SANDBOX: &str = "sandbox.json";
pub const CONTAINER: &str = "container.json";

/// Written whole or not at all. No flush: after a crash of the host nothing of it runs any more.
pub fn save(directory: &Path, name: &str, record: &impl Serialize) -> io::Result<()> {
    let partial = directory.join(format!("{name}.partial"));
    std::fs::write(&partial, serde_json::to_vec(record)?)?;
    std::fs::rename(partial, directory.join(name))
}

/// None when there is none, or none that can be read.
pub fn load<T: DeserializeOwned>(file: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(file).ok()?).ok()
}

pub fn now() -> i64 {
    jiff::Timestamp::now().as_nanosecond() as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives() {
        let directory = tempfile::tempdir().unwrap();
        let record = SandboxRecord {
            id: "a".into(),
            config: PodSandboxConfig { hostname: "h".into(), ..Default::default() },
            runtime_handler: String::new(),
            created_at: 1,
            shim: 2,
            pause: None,
            addresses: PodAddresses { ips: vec!["10.0.0.1".parse().unwrap()] },
            stopped: false,
            own_cgroup: None,
        };
        save(directory.path(), SANDBOX, &record).unwrap();
        let read: SandboxRecord = load(&directory.path().join(SANDBOX)).unwrap();
        assert_eq!(read.config, record.config);
        assert_eq!(read.addresses, record.addresses);
        std::fs::write(directory.path().join(SANDBOX), b"{").unwrap();
        assert!(load::<SandboxRecord>(&directory.path().join(SANDBOX)).is_none());
    }
}
