//! What the runtime has of one pod, as it tells when it is asked.

use std::collections::HashMap;

use jiff::Timestamp;
use k8s_cri::v1::{self as cri, ContainerState, NamespaceMode, PodSandboxState};
use tonic::Status;

use crate::cri::Cri;
use crate::names;

/// One container, of whatever attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerSeen {
    pub sandbox: String,
    pub status: cri::ContainerStatus,
}

impl ContainerSeen {
    pub fn name(&self) -> &str {
        self.status.labels.get(names::CONTAINER_NAME).map(String::as_str).unwrap_or_default()
    }

    pub fn id(&self) -> &str {
        &self.status.id
    }

    pub fn state(&self) -> ContainerState {
        self.status.state()
    }

    pub fn is_running(&self) -> bool {
        self.state() == ContainerState::ContainerRunning
    }

    pub fn is_exited(&self) -> bool {
        self.state() == ContainerState::ContainerExited
    }

    pub fn restarts(&self) -> u32 {
        self.status.annotations.get(names::RESTART_COUNT).and_then(|n| n.parse().ok()).unwrap_or(0)
    }

    pub fn hash(&self) -> &str {
        self.status.annotations.get(names::HASH).map(String::as_str).unwrap_or_default()
    }

    pub fn finished(&self) -> Timestamp {
        timestamp(self.status.finished_at)
    }
}

/// Nanoseconds since 1970 as a time.
pub fn timestamp(nanoseconds: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// All of one pod, the newest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    pub sandboxes: Vec<cri::PodSandboxStatus>,
    pub containers: Vec<ContainerSeen>,
}

impl Observed {
    /// Asks the runtime.
    ///
    /// # Errors
    /// The runtime is not there, or refuses.
    pub async fn read(cri: &Cri, uid: &str) -> Result<Self, Status> {
        let label_selector = HashMap::from([(names::POD_UID.to_owned(), uid.to_owned())]);
        let of_sandboxes =
            cri::PodSandboxFilter { label_selector: label_selector.clone(), ..Default::default() };
        let of_containers = cri::ContainerFilter { label_selector, ..Default::default() };
        let (sandboxes, containers) =
            tokio::try_join!(cri.sandboxes(Some(of_sandboxes)), cri.containers(Some(of_containers)))?;
        let mut seen = Observed::default();
        for sandbox in sandboxes {
            match cri.sandbox_status(&sandbox.id).await {
                Ok(status) => seen.sandboxes.push(status),
                Err(error) if error.code() == tonic::Code::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        for container in containers {
            match cri.container_status(&container.id).await {
                Ok(status) => {
                    seen.containers.push(ContainerSeen { sandbox: container.pod_sandbox_id, status });
                }
                Err(error) if error.code() == tonic::Code::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        seen.sandboxes.sort_by_key(|s| std::cmp::Reverse(s.created_at));
        seen.containers.sort_by_key(|c| std::cmp::Reverse(c.status.created_at));
        Ok(seen)
    }

    /// The sandbox that counts.
    pub fn sandbox(&self) -> Option<&cri::PodSandboxStatus> {
        self.sandboxes.first()
    }

    pub fn ready_sandbox(&self) -> Option<&cri::PodSandboxStatus> {
        self.sandbox().filter(|s| s.state() == PodSandboxState::SandboxReady)
    }

    /// The newest container of this name, in whatever sandbox.
    pub fn latest(&self, name: &str) -> Option<&ContainerSeen> {
        self.containers.iter().find(|c| c.name() == name)
    }

    /// The newest container of this name in the sandbox that counts.
    pub fn current(&self, name: &str) -> Option<&ContainerSeen> {
        let sandbox = &self.sandbox()?.id;
        self.containers.iter().find(|c| c.name() == name && c.sandbox == *sandbox)
    }

    /// The newest and the one before it.
    pub fn last_two(&self, name: &str) -> (Option<&ContainerSeen>, Option<&ContainerSeen>) {
        let mut of_name = self.containers.iter().filter(|c| c.name() == name);
        (of_name.next(), of_name.next())
    }

    pub fn any_running(&self) -> bool {
        self.containers.iter().any(ContainerSeen::is_running)
    }

    /// The pod's addresses, the primary one first.
    pub fn ips(&self) -> Vec<String> {
        let Some(network) = self.ready_sandbox().and_then(|s| s.network.as_ref()) else { return Vec::new() };
        let all = std::iter::once(&network.ip).chain(network.additional_ips.iter().map(|ip| &ip.ip));
        all.filter(|ip| !ip.is_empty()).cloned().collect()
    }
}

/// Whether a sandbox shares the host's network.
pub fn on_host_network(sandbox: &cri::PodSandboxStatus) -> bool {
    let options = sandbox.linux.as_ref().and_then(|l| l.namespaces.as_ref()).and_then(|n| n.options.as_ref());
    options.is_some_and(|o| o.network() == NamespaceMode::Node)
}
