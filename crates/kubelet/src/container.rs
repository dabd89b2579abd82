//! One container: what the runtime is told of it, and how it is made and started.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use k8s_cri::v1::{
    self as cri, AuthConfig, ContainerConfig, ContainerMetadata, KeyValue, LinuxContainerConfig,
    MountPropagation, PodSandboxConfig,
};
use k8s_openapi::api::core::v1::{Container, Pod};
use krate_client::EventType;

use crate::cri::{image_spec, rpc_error};
use crate::env::{self, Referents};
use crate::fieldpath::Addresses;
use crate::naming::{self, is_host_network};
use crate::shared::{Shared, container_reference};
use crate::volumes::{MountedVolumes, subpath};
use crate::{hooks, names, resources, sandbox, security};

/// Why a container does not start: its reason to wait, and when to try again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartError {
    pub reason: &'static str,
    pub message: String,
    pub retry: Option<std::time::Duration>,
}

fn error(reason: &'static str, message: impl Into<String>) -> StartError {
    StartError { reason, message: message.into(), retry: None }
}

/// What a container is started with.
pub struct Start<'a> {
    pub shared: &'a Shared,
    pub pod: &'a Pod,
    pub container: &'a Container,
    pub sandbox_id: &'a str,
    pub sandbox: &'a PodSandboxConfig,
    pub addresses: &'a Addresses,
    pub volumes: &'a MountedVolumes,
    pub referents: &'a Referents,
    pub credentials: &'a [AuthConfig],
    /// How often it was started before.
    pub restarts: u32,
}

impl Start<'_> {
    fn event(&self, kind: EventType, reason: &str, message: impl Into<String>) {
        self.shared.container_event(self.pod, &self.container.name, kind, reason, message);
    }

    fn failed(&self, error: StartError) -> StartError {
        self.event(EventType::Warning, "Failed", format!("Error: {}", error.message));
        error
    }

    /// Makes the container and starts it. Returns its id.
    ///
    /// # Errors
    /// Why not, as its status and an event tell.
    pub async fn run(&self) -> Result<String, StartError> {
        let regarding = container_reference(self.pod, &self.container.name);
        let image =
            self.shared.images.ensure(self.pod, self.container, &regarding, self.credentials).await.map_err(
                |e| {
                    self.event(EventType::Warning, "Failed", format!("Error: {}", e.reason));
                    StartError { reason: e.reason, message: e.message, retry: e.retry }
                },
            )?;
        let config = self
            .config(&image)
            .map_err(|message| self.failed(error("CreateContainerConfigError", message)))?;
        let logs = sandbox::log_directory(&self.shared.config, self.pod).join(&self.container.name);
        fs::create_dir_all(&logs).map_err(|e| {
            self.failed(error("CreateContainerError", format!("create {}: {e}", logs.display())))
        })?;
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: self.sandbox_id.to_owned(),
            config: Some(config),
            sandbox_config: Some(self.sandbox.clone()),
        };
        let created = self.shared.cri.runtime().create_container(request).await;
        let id = created
            .map_err(|s| self.failed(error("CreateContainerError", s.message())))?
            .into_inner()
            .container_id;
        self.event(EventType::Normal, "Created", "Container created");
        let request = cri::StartContainerRequest { container_id: id.clone() };
        let started = self.shared.cri.runtime().start_container(request).await;
        started.map_err(|s| self.failed(error("RunContainerError", s.message())))?;
        self.event(EventType::Normal, "Started", "Container started");
        if let Some(hook) = self.container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) {
            self.post_start(hook, &id).await?;
        }
        Ok(id)
    }

    async fn post_start(
        &self,
        hook: &k8s_openapi::api::core::v1::LifecycleHandler,
        id: &str,
    ) -> Result<(), StartError> {
        let ip = self.addresses.pod.first().map(String::as_str).unwrap_or_default();
        let Err(why) = hooks::run(&self.shared.cri, hook, self.container, id, ip).await else {
            return Ok(());
        };
        self.event(EventType::Warning, "FailedPostStartHook", format!("PostStartHook failed: {why}"));
        self.event(EventType::Normal, "Killing", "FailedPostStartHook");
        let grace = self.pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds).unwrap_or(30);
        if let Err(status) = self.shared.cri.stop_container(id, grace).await {
            tracing::warn!(container = id, error = %rpc_error(&status), "a container whose hook failed could not be stopped");
        }
        Err(error("PostStartHookError", format!("PostStartHook failed: {why}")))
    }

    fn config(&self, image: &cri::Image) -> Result<ContainerConfig, String> {
        let (pod, container) = (self.pod, self.container);
        security::verify_not_root(pod, container, image)?;
        let namespace = names::namespace(pod);
        let mut services = self.shared.services.list_in(&namespace);
        if namespace != "default" {
            services.extend(self.shared.services.get("default", "kubernetes"));
        }
        let variables = env::make(&env::Inputs {
            pod,
            container,
            addresses: self.addresses,
            node: self.shared.node,
            referents: self.referents,
            services: &services,
        })?;
        let known: HashMap<&str, &str> = variables.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let value = |name: &str| known.get(name).map(|v| (*v).to_owned());
        let expand = |all: &Option<Vec<String>>| -> Vec<String> {
            all.iter().flatten().map(|text| env::expand(text, &value)).collect()
        };
        let mounts = self.mounts(&value)?;
        let name = container.image.clone().unwrap_or_default();
        let mut spec = image_spec(&image.id);
        spec.user_specified_image = name;
        Ok(ContainerConfig {
            metadata: Some(ContainerMetadata { name: container.name.clone(), attempt: self.restarts }),
            image: Some(spec),
            command: expand(&container.command),
            args: expand(&container.args),
            working_dir: container.working_dir.clone().unwrap_or_default(),
            envs: variables
                .iter()
                .map(|(key, value)| KeyValue { key: key.clone(), value: value.clone() })
                .collect(),
            mounts,
            labels: self.labels(),
            annotations: self.annotations(),
            log_path: names::log_path(&container.name, self.restarts),
            stdin: container.stdin == Some(true),
            stdin_once: container.stdin_once == Some(true),
            tty: container.tty == Some(true),
            linux: Some(LinuxContainerConfig {
                resources: Some(resources::linux(pod, container, self.shared.node.memory)),
                security_context: Some(security::container(
                    pod,
                    container,
                    image,
                    &self.shared.config.root_dir,
                )),
            }),
            ..Default::default()
        })
    }

    fn labels(&self) -> HashMap<String, String> {
        let mut labels = names::pod_labels(self.pod);
        labels.insert(names::CONTAINER_NAME.to_owned(), self.container.name.clone());
        labels
    }

    fn annotations(&self) -> HashMap<String, String> {
        let container = self.container;
        let grace = self.pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds).unwrap_or(30);
        HashMap::from([
            (names::HASH.to_owned(), names::container_hash(container)),
            (names::RESTART_COUNT.to_owned(), self.restarts.to_string()),
            (names::TERMINATION_PATH.to_owned(), termination_path(container).to_owned()),
            (
                names::TERMINATION_POLICY.to_owned(),
                container.termination_message_policy.clone().unwrap_or_else(|| "File".to_owned()),
            ),
            (names::GRACE_PERIOD.to_owned(), grace.to_string()),
        ])
    }

    fn mounts(&self, value: &dyn Fn(&str) -> Option<String>) -> Result<Vec<cri::Mount>, String> {
        let own = self.shared.config.pod_dir(&names::uid(self.pod));
        let mut mounts = Vec::new();
        for (number, mount) in self.container.volume_mounts.iter().flatten().enumerate() {
            let Some(volume) = self.volumes.get(&mount.name) else {
                return Err(format!(
                    "cannot find volume {:?} to mount into container {:?}",
                    mount.name, self.container.name
                ));
            };
            let part = match (mount.sub_path.as_deref(), mount.sub_path_expr.as_deref()) {
                (_, Some(expression)) if !expression.is_empty() => env::expand(expression, value),
                (Some(part), _) => part.to_owned(),
                _ => String::new(),
            };
            let host_path = if part.is_empty() {
                volume.path.clone()
            } else {
                let place = own
                    .join("volume-subpaths")
                    .join(&mount.name)
                    .join(&self.container.name)
                    .join(number.to_string());
                subpath::bind(&volume.path, &part, &place).map_err(|e| {
                    tracing::debug!(error = %e, part, "a part of a volume cannot be prepared");
                    format!(
                        "failed to prepare subPath for volumeMount {:?} of container {:?}",
                        mount.name, self.container.name
                    )
                })?
            };
            let readonly = mount.read_only == Some(true) || volume.read_only;
            mounts.push(cri::Mount {
                container_path: mount.mount_path.clone(),
                host_path: host_path.display().to_string(),
                readonly,
                propagation: match mount.mount_propagation.as_deref() {
                    Some("HostToContainer") => MountPropagation::PropagationHostToContainer,
                    Some("Bidirectional") => MountPropagation::PropagationBidirectional,
                    _ => MountPropagation::PropagationPrivate,
                } as i32,
                recursive_read_only: readonly && mount.recursive_read_only.as_deref() == Some("Enabled"),
                ..Default::default()
            });
        }
        let files = self.files(&own).map_err(|e| format!("writing the pod's files: {e}"))?;
        for (container_path, host_path) in files {
            if !mounts.iter().any(|m| m.container_path == container_path) {
                let host_path = host_path.display().to_string();
                mounts.push(cri::Mount { container_path, host_path, ..Default::default() });
            }
        }
        Ok(mounts)
    }

    /// `/etc/hosts`, and the file for last words.
    fn files(&self, own: &Path) -> io::Result<Vec<(String, PathBuf)>> {
        fs::create_dir_all(own)?;
        let hosts = own.join("etc-hosts");
        let host = if is_host_network(self.pod) {
            Some(fs::read_to_string("/etc/hosts").unwrap_or_default())
        } else {
            None
        };
        let domain = &self.shared.config.cluster_domain;
        fs::write(&hosts, naming::hosts(self.pod, &self.addresses.pod, domain, host.as_deref()))?;
        let directory = own.join("containers").join(&self.container.name);
        fs::create_dir_all(&directory)?;
        let words = directory.join(format!("{:08x}", rand::random::<u32>()));
        fs::write(&words, "")?;
        // Whatever user the container has, it may leave a word.
        fs::set_permissions(&words, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
        Ok(vec![("/etc/hosts".to_owned(), hosts), (termination_path(self.container).to_owned(), words)])
    }
}

/// Where a container leaves its last words.
pub fn termination_path(container: &Container) -> &str {
    container.termination_message_path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/dev/termination-log")
}
