//! The data directory: all that a cluster keeps on this machine, and who may use it.

use std::fs;
use std::io::{Read as _, Seek as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use ipnet::Ipv4Net;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::pki::write_atomically;

/// The layout that this version reads and writes.
pub const LAYOUT: u32 = 1;
/// Where a cluster lives unless `--data-dir` says otherwise.
pub const DEFAULT: &str = "/var/lib/krate";

/// What was chosen when the cluster was first started, and holds from then on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    pub layout: u32,
    pub bind: SocketAddr,
    pub service_cidr: Ipv4Net,
    pub pod_cidr: Ipv4Net,
    /// Whether this machine is a node of the cluster.
    pub node: bool,
    /// The container runtime to use instead of krate's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<OtherRuntime>,
}

/// A container runtime that is not krate's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OtherRuntime {
    /// Its CRI socket.
    pub socket: PathBuf,
    /// Where it reads the configuration of its pod network from.
    pub cni_conf_dir: PathBuf,
}

/// A data directory. Nothing is made before [`DataDir::claim`].
#[derive(Clone, Debug)]
pub struct DataDir {
    root: PathBuf,
}

/// Says that this process runs the cluster, for as long as it lives.
pub struct Claim {
    _lock: Flock<fs::File>,
}

impl DataDir {
    pub fn new(root: &Path) -> Result<Self> {
        let root = std::path::absolute(root).with_context(|| format!("{} is no path", root.display()))?;
        Ok(DataDir { root })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn pki(&self) -> PathBuf {
        self.root.join("pki")
    }

    pub fn store(&self) -> PathBuf {
        self.root.join("store")
    }

    pub fn kubelet(&self) -> PathBuf {
        self.root.join("kubelet")
    }

    pub fn runtime(&self) -> PathBuf {
        self.root.join("runtime")
    }

    pub fn network(&self) -> PathBuf {
        self.root.join("network")
    }

    /// Sockets and what else does not outlive a start of the machine.
    pub fn run(&self) -> PathBuf {
        self.root.join("run")
    }

    pub fn cri_socket(&self) -> PathBuf {
        self.run().join("cri.sock")
    }

    /// How registries are reached: as the cluster's own `certs.d` says, then as containerd's does.
    pub fn registries(&self) -> krate_runtime::Registries {
        krate_runtime::Registries {
            directories: vec![self.root.join("certs.d"), "/etc/containerd/certs.d".into()],
            ..krate_runtime::Registries::default()
        }
    }

    /// Where devices are described that containers ask for by name: where they are for all of the machine, and the
    /// cluster's own, which count most.
    pub fn cdi(&self) -> Vec<PathBuf> {
        let mut all = krate_runtime::Config::usual_cdi();
        all.push(self.root.join("cdi"));
        all
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.root.join("admin.kubeconfig")
    }

    pub fn log(&self) -> PathBuf {
        self.root.join("krate.log")
    }

    fn settings_file(&self) -> PathBuf {
        self.root.join("cluster.json")
    }

    fn lock_file(&self) -> PathBuf {
        self.root.join("krate.pid")
    }

    /// Tells clusters on one machine apart: part of the names of interfaces, tables and control groups. Six letters and
    /// digits, the same for a directory at each start.
    pub fn instance(&self) -> String {
        if self.root == Path::new(DEFAULT) {
            return "0".to_owned();
        }
        hex::encode(&Sha256::digest(self.root.as_os_str().as_encoded_bytes())[..3])
    }

    /// The name of the kubeconfig's context: `krate`, or `krate-DIRECTORY` for a directory that is not the default.
    pub fn context_name(&self) -> String {
        match self.root.file_name() {
            Some(name) if self.root != Path::new(DEFAULT) => {
                let name = name.to_string_lossy();
                if name == "krate" { format!("krate-{}", self.instance()) } else { format!("krate-{name}") }
            }
            _ => "krate".to_owned(),
        }
    }

    /// What the cluster was started with. `None` if it never was.
    pub fn settings(&self) -> Result<Option<Settings>> {
        let file = self.settings_file();
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("reading {}", file.display())),
        };
        let layout = serde_json::from_str::<serde_json::Value>(&text)
            .ok()
            .and_then(|v| v.get("layout").and_then(serde_json::Value::as_u64));
        if layout != Some(u64::from(LAYOUT)) {
            bail!(
                "the data directory {} has layout {}, and this krate ({}) reads layout {LAYOUT}\n  \
                 use the krate that wrote it, or another --data-dir",
                self.root.display(),
                layout.map_or_else(|| "of an unknown version".to_owned(), |l| l.to_string()),
                env!("CARGO_PKG_VERSION"),
            );
        }
        Ok(Some(serde_json::from_str(&text).with_context(|| format!("reading {}", file.display()))?))
    }

    pub fn save_settings(&self, settings: &Settings) -> Result<()> {
        write_atomically(&self.settings_file(), &serde_json::to_vec_pretty(settings)?, 0o600)
    }

    /// Claims the directory for this process.
    ///
    /// # Errors
    /// Another process runs this cluster, or the directory cannot be written.
    pub fn claim(&self) -> Result<Claim> {
        for dir in [&self.root, &self.run()] {
            fs::create_dir_all(dir).with_context(|| {
                format!(
                    "cannot make the data directory {}\n  run as root, or name another with --data-dir",
                    dir.display()
                )
            })?;
        }
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.lock_file())
            .with_context(|| {
                format!(
                    "cannot write in {}\n  run as root, or name another with --data-dir",
                    self.root.display()
                )
            })?;
        let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => bail!(
                "this cluster already runs{}\n  stop it with `krate down --data-dir {}`, or name another --data-dir",
                self.pid()?.map(|pid| format!(" (process {pid})")).unwrap_or_default(),
                self.root.display(),
            ),
            Err((_, error)) => return Err(error).context("locking the data directory"),
        };
        lock.set_len(0)?;
        lock.rewind()?;
        write!(lock, "{}", std::process::id())?;
        Ok(Claim { _lock: lock })
    }

    /// The process that runs the cluster. `None` if none does.
    pub fn pid(&self) -> Result<Option<i32>> {
        let mut file = match fs::File::open(self.lock_file()) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("reading {}", self.lock_file().display()));
            }
        };
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(_) => Ok(None),
            Err(_) => Ok(text.trim().parse().ok()),
        }
    }

    /// Waits until no process holds the directory any more.
    pub fn wait_until_free(&self) -> Result<()> {
        let file = fs::File::open(self.lock_file())?;
        Flock::lock(file, FlockArg::LockShared).map(drop).map_err(|(_, error)| error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(name: &str) -> DataDir {
        DataDir::new(&std::env::temp_dir().join(format!("krate-dir-{name}-{}", std::process::id())))
            .expect("a path")
    }

    #[test]
    fn a_directory_belongs_to_one_process_at_a_time() {
        let dir = dir("claim");
        assert_eq!(dir.pid().expect("read"), None);
        let claim = dir.claim().expect("claimed");
        assert_eq!(dir.pid().expect("read"), Some(std::process::id().cast_signed()));
        let refused = dir.claim().map(drop).expect_err("refused").to_string();
        assert!(refused.contains("already runs") && refused.contains("krate down"), "{refused}");
        drop(claim);
        assert_eq!(dir.pid().expect("read"), None);
        fs::remove_dir_all(dir.root()).expect("removed");
    }

    #[test]
    fn a_directory_of_another_layout_is_refused_with_the_remedy() {
        let dir = dir("layout");
        fs::create_dir_all(dir.root()).expect("made");
        assert_eq!(dir.settings().expect("read"), None);
        fs::write(dir.settings_file(), "{\"layout\": 99}").expect("written");
        let refused = dir.settings().expect_err("refused").to_string();
        assert!(refused.contains("layout 99") && refused.contains("--data-dir"), "{refused}");
        fs::remove_dir_all(dir.root()).expect("removed");
    }

    #[test]
    fn clusters_have_names_of_their_own() {
        let at = |path: &str| DataDir::new(Path::new(path)).expect("a path");
        assert_eq!(at(DEFAULT).context_name(), "krate");
        assert_eq!(at("/tmp/dev").context_name(), "krate-dev");
        assert_ne!(at("/tmp/dev").instance(), at("/tmp/test").instance());
    }
}
