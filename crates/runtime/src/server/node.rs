//! All sandboxes and containers of this node, and who hears of their changes.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use k8s_cri::v1::{ContainerEventResponse, ContainerEventType, ContainerState};
use parking_lot::RwLock;
use tokio::sync::{Mutex, broadcast, watch};
use tonic::Status;

use super::record::{self, ContainerRecord, Layout, SandboxRecord};
use super::stats::Samples;
use crate::config::{Config, PodIdentity};
use crate::image::Store;
use crate::shim::client::Zygote;
use crate::shim::protocol::Exit;
use crate::streaming::Sessions;

#[derive(Debug)]
pub struct Sandbox {
    pub record: RwLock<SandboxRecord>,
    /// Its shim lives.
    pub ready: AtomicBool,
    /// The namespace of its users, when they are not the host's. Its shim has told it.
    pub users: OnceLock<OwnedFd>,
    /// Held while it is stopped or removed.
    pub changing: Mutex<()>,
}

impl Sandbox {
    pub fn new(record: SandboxRecord, ready: bool) -> Arc<Self> {
        Arc::new(Self {
            record: RwLock::new(record),
            ready: AtomicBool::new(ready),
            users: OnceLock::new(),
            changing: Mutex::default(),
        })
    }

    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire) && !self.record.read().stopped
    }

    pub fn id(&self) -> String {
        self.record.read().id.clone()
    }

    pub fn identity(&self) -> PodIdentity {
        let record = self.record.read();
        let metadata = record.config.metadata.clone().unwrap_or_default();
        PodIdentity {
            sandbox_id: record.id.clone(),
            namespace: metadata.namespace,
            name: metadata.name,
            uid: metadata.uid,
        }
    }
}

#[derive(Debug)]
pub struct Container {
    pub record: RwLock<ContainerRecord>,
    /// How it ended; whoever waits for that listens here.
    pub exit: watch::Sender<Option<Exit>>,
    /// Held while it is started, stopped or removed.
    pub changing: Mutex<()>,
}

impl Container {
    pub fn new(record: ContainerRecord, exit: Option<Exit>) -> Arc<Self> {
        Arc::new(Self {
            record: RwLock::new(record),
            exit: watch::Sender::new(exit),
            changing: Mutex::default(),
        })
    }

    pub fn id(&self) -> String {
        self.record.read().id.clone()
    }

    pub fn sandbox(&self) -> String {
        self.record.read().sandbox.clone()
    }

    pub fn state(&self) -> ContainerState {
        if self.exit.borrow().is_some() {
            ContainerState::ContainerExited
        } else if self.record.read().started_at != 0 {
            ContainerState::ContainerRunning
        } else {
            ContainerState::ContainerCreated
        }
    }

    pub fn is_running(&self) -> bool {
        self.state() == ContainerState::ContainerRunning
    }
}

/// The one owner of it all.
#[derive(Debug)]
pub struct Node {
    pub config: Config,
    pub layout: Layout,
    pub images: Arc<Store>,
    pub sandboxes: RwLock<HashMap<String, Arc<Sandbox>>>,
    pub containers: RwLock<HashMap<String, Arc<Container>>>,
    pub events: broadcast::Sender<ContainerEventResponse>,
    pub sessions: Sessions,
    pub samples: Samples,
    pub zygote: Zygote,
    /// The capabilities that there are to give.
    pub held: u64,
}

impl Node {
    /// Finds a sandbox by its identifier or a beginning of it that only it has.
    pub fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>, Status> {
        by_prefix(&self.sandboxes.read(), id)
            .ok_or_else(|| Status::not_found(format!("sandbox {id:?}: not found")))
    }

    pub fn container(&self, id: &str) -> Result<Arc<Container>, Status> {
        by_prefix(&self.containers.read(), id)
            .ok_or_else(|| Status::not_found(format!("container {id:?}: not found")))
    }

    pub fn running(&self, id: &str) -> Result<Arc<Container>, Status> {
        let container = self.container(id)?;
        if container.is_running() {
            Ok(container)
        } else {
            Err(Status::failed_precondition(format!("container {id} is not in running state")))
        }
    }

    pub fn containers_of(&self, sandbox: &str) -> Vec<Arc<Container>> {
        let containers = self.containers.read();
        containers.values().filter(|container| container.record.read().sandbox == sandbox).cloned().collect()
    }

    /// Layers that containers stand on, and so must not vanish.
    pub fn layers_in_use(&self) -> HashSet<String> {
        let containers = self.containers.read();
        containers.values().flat_map(|container| container.record.read().layers.clone()).collect()
    }

    pub fn save_sandbox(&self, sandbox: &Sandbox) -> std::io::Result<()> {
        let record = sandbox.record.read().clone();
        record::save(&self.layout.sandbox(&record.id), record::SANDBOX, &record)
    }

    pub fn save_container(&self, container: &Container) -> std::io::Result<()> {
        let record = container.record.read().clone();
        record::save(&self.layout.container(&record.id), record::CONTAINER, &record)
    }

    /// Tells whoever listens that something happened to the container or sandbox `id` of `sandbox`.
    pub fn emit(&self, sandbox: &str, id: &str, kind: ContainerEventType) {
        if self.events.receiver_count() == 0 {
            return;
        }
        let known = self.sandboxes.read().get(sandbox).cloned();
        let mut containers = self.containers_of(sandbox);
        containers.sort_by_key(|container| container.record.read().created_at);
        // Nobody may be listening any more; that is theirs to know.
        let _ = self.events.send(ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind as i32,
            created_at: record::now(),
            pod_sandbox_status: known.map(|sandbox| super::status::sandbox(&sandbox)),
            containers_statuses: containers
                .iter()
                .map(|container| super::status::container(container))
                .collect(),
        });
    }

    /// Notes that a container has ended, once.
    pub fn ended(&self, container: &Container, exit: Exit) {
        let first = container.exit.send_if_modified(|known| {
            let first = known.is_none();
            known.get_or_insert(exit);
            first
        });
        if first {
            let (id, sandbox) = (container.id(), container.sandbox());
            self.samples.forget(&id);
            self.emit(&sandbox, &id, ContainerEventType::ContainerStoppedEvent);
        }
    }

    pub fn shim(&self, sandbox: &str) -> PathBuf {
        self.layout.sandbox_state(sandbox)
    }
}

fn by_prefix<T: Clone>(all: &HashMap<String, T>, id: &str) -> Option<T> {
    if let Some(found) = all.get(id) {
        return Some(found.clone());
    }
    let mut matching = all.iter().filter(|(known, _)| !id.is_empty() && known.starts_with(id));
    let first = matching.next().map(|(_, value)| value.clone());
    if matching.next().is_some() { None } else { first }
}

/// A new identifier.
pub fn new_id() -> String {
    hex::encode(rand::random::<[u8; 32]>())
}
