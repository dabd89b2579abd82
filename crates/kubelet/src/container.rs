//! One container: what the runtime is told of it, and how it is made and started.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use k8s_cri::v1::{
    self as cri, ContainerConfig, ContainerMetadata, KeyValue, LinuxContainerConfig, LinuxContainerResources,
    NamespaceMode, PodSandboxConfig, UserNamespace,
};
use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod};
use krate_client::EventType;

use crate::blocking::blocking;
use crate::cri::{image_spec, rpc_error};
use crate::devices::api::ContainerAllocateResponse;
use crate::env::{self, Referents};
use crate::fieldpath::Addresses;
use crate::keyring::Keyring;
use crate::mounts::{self, Part};
use crate::naming::{self, is_host_network};
use crate::observed::ContainerSeen;
use crate::shared::{Shared, container_reference};
use crate::volumes::{Content, MountedVolumes};
use crate::{hooks, names, resources, sandbox, security, stop, users};

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
    pub credentials: &'a Keyring,
    /// The runtime's handler that the sandbox was made with.
    pub handler: &'a str,
    /// How often it was started before.
    pub restarts: u32,
    /// The container whose processes it sees, by id.
    pub target: Option<&'a str>,
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
        let images = self.image_volumes(&regarding).await?;
        let granted = self.shared.devices.grant(self.pod, self.container).await;
        let granted = granted.map_err(|m| self.failed(error("CreateContainerConfigError", m)))?;
        let refused = |message| self.failed(error("CreateContainerConfigError", message));
        let (config, parts) = self.config(&image, &images, granted).map_err(refused)?;
        blocking(move || parts.iter().try_for_each(Part::bind)).await.map_err(refused)?;
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
        let Err(why) = hooks::run(self.shared, hook, self.pod, self.container, id, ip).await else {
            return Ok(());
        };
        // What it said may be a secret, and events are read by many.
        self.event(EventType::Warning, "FailedPostStartHook", "PostStartHook failed");
        let grace = self.pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds).unwrap_or(30);
        let message = Some("FailedPostStartHook");
        let known = self.shared.cri.container_status(id).await;
        let stopped = match known {
            Ok(status) => {
                let seen = ContainerSeen { sandbox: self.sandbox_id.to_owned(), status };
                stop::container(self.shared, self.pod, &seen, grace, message).await
            }
            Err(status) => Err(rpc_error(&status)),
        };
        if let Err(error) = stopped {
            tracing::warn!(container = id, error, "a container whose hook failed could not be stopped");
        }
        Err(error("PostStartHookError", why))
    }

    /// The images that are mounted into the container, by the names of their volumes.
    async fn image_volumes(
        &self,
        regarding: &ObjectReference,
    ) -> Result<HashMap<String, String>, StartError> {
        let mut found = HashMap::new();
        for mount in self.container.volume_mounts.iter().flatten() {
            let volume = self.volumes.by_name.get(&mount.name);
            let Some(Content::Image { reference, pull_policy }) = volume.map(|v| &v.content) else {
                continue;
            };
            let wanted = Container {
                name: self.container.name.clone(),
                image: Some(reference.clone()),
                image_pull_policy: pull_policy.clone(),
                ..Default::default()
            };
            let image = self.shared.images.ensure(self.pod, &wanted, regarding, self.credentials).await;
            let image = image.map_err(|e| {
                self.event(EventType::Warning, "Failed", format!("Error: {}", e.reason));
                StartError { reason: e.reason, message: e.message, retry: e.retry }
            })?;
            found.insert(mount.name.clone(), image.id);
        }
        Ok(found)
    }

    /// What the runtime is told, and what of volumes must be bound before.
    fn config(
        &self,
        image: &cri::Image,
        images: &HashMap<String, String>,
        granted: Vec<ContainerAllocateResponse>,
    ) -> Result<(ContainerConfig, Vec<Part>), String> {
        let (pod, container) = (self.pod, self.container);
        security::verify_not_root(pod, container, image)?;
        let namespace = names::namespace(pod);
        let mut services = self.shared.services.list_in(&namespace);
        if namespace != "default" {
            services.extend(self.shared.services.get("default", "kubernetes"));
        }
        let pod_dir = self.shared.config.pod_dir(&names::uid(pod));
        let variables = env::make(&env::Inputs {
            pod,
            container,
            addresses: self.addresses,
            node: self.shared.node,
            referents: self.referents,
            pod_dir: &pod_dir,
            services: &services,
        })?;
        let known: HashMap<&str, &str> = variables.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let value = |name: &str| known.get(name).map(|v| (*v).to_owned());
        let expand = |all: &Option<Vec<String>>| -> Vec<String> {
            all.iter().flatten().map(|text| env::expand(text, &value)).collect()
        };
        let inputs = mounts::Inputs {
            container,
            volumes: self.volumes,
            images,
            pod_dir: &pod_dir,
            recursive_read_only: self.shared.features.borrow().recursive_read_only(self.handler),
        };
        let (mut mounts, parts) = mounts::mounts(&inputs, &value)?;
        let devices = mounts::devices(&inputs)?;
        let files = self.files(&pod_dir).map_err(|e| format!("writing the pod's files: {e}"))?;
        for (container_path, host_path) in files {
            if !mounts.iter().any(|m| m.container_path == container_path) {
                let host_path = host_path.display().to_string();
                mounts.push(cri::Mount { container_path, host_path, ..Default::default() });
            }
        }
        let name = container.image.clone().unwrap_or_default();
        let mut security = security::container(
            pod,
            container,
            image,
            &self.shared.config.root_dir,
            self.shared.config.seccomp_default,
            self.users(),
        );
        if let Some(target) = self.target {
            let namespaces = security.namespace_options.get_or_insert_default();
            namespaces.pid = NamespaceMode::Target as i32;
            target.clone_into(&mut namespaces.target_id);
        }
        let mut spec = image_spec(&image.id);
        spec.user_specified_image = name;
        let mut config = ContainerConfig {
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
            devices,
            labels: self.labels(),
            annotations: self.annotations(),
            log_path: names::log_path(&container.name, self.restarts),
            stdin: container.stdin == Some(true),
            stdin_once: container.stdin_once == Some(true),
            tty: container.tty == Some(true),
            linux: Some(LinuxContainerConfig {
                resources: Some(LinuxContainerResources {
                    unified: self.shared.cgroups.unified(),
                    cpuset_mems: self.shared.memory.of(&names::uid(pod), &container.name).to_string(),
                    cpuset_cpus: self.shared.cpus.of(&names::uid(pod), &container.name).to_string(),
                    ..resources::linux(pod, container, self.shared.machine.memory)
                }),
                security_context: Some(security),
            }),
            ..Default::default()
        };
        for answer in granted {
            give(&mut config, answer);
        }
        let claimed = self.shared.dra.cdi_devices(pod, container)?;
        config.cdi_devices.extend(claimed.into_iter().map(|name| cri::CdiDevice { name }));
        if let Some(own) = users::own(self.sandbox) {
            // Files have the owners in the container that they have on the host.
            for mount in &mut config.mounts {
                (mount.uid_mappings, mount.gid_mappings) = (own.uids.clone(), own.gids.clone());
            }
        }
        Ok((config, parts))
    }

    /// The namespace of the sandbox's users, whichever it is.
    fn users(&self) -> Option<&UserNamespace> {
        let security = self.sandbox.linux.as_ref()?.security_context.as_ref()?;
        security.namespace_options.as_ref()?.userns_options.as_ref()
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

/// Adds what a plugin gives a container for its devices; what the pod itself says goes before it.
fn give(config: &mut ContainerConfig, answer: ContainerAllocateResponse) {
    let mut envs: Vec<_> = answer.envs.into_iter().collect();
    envs.sort();
    for (key, value) in envs {
        if !config.envs.iter().any(|known| known.key == key) {
            config.envs.push(KeyValue { key, value });
        }
    }
    for mount in answer.mounts {
        if !config.mounts.iter().any(|known| known.container_path == mount.container_path) {
            config.mounts.push(cri::Mount {
                container_path: mount.container_path,
                host_path: mount.host_path,
                readonly: mount.read_only,
                ..Default::default()
            });
        }
    }
    for device in answer.devices {
        if !config.devices.iter().any(|known| known.container_path == device.container_path) {
            config.devices.push(cri::Device {
                container_path: device.container_path,
                host_path: device.host_path,
                permissions: device.permissions,
            });
        }
    }
    for (key, value) in answer.annotations {
        config.annotations.entry(key).or_insert(value);
    }
    config
        .cdi_devices
        .extend(answer.cdi_devices.into_iter().map(|device| cri::CdiDevice { name: device.name }));
}

/// Where a container leaves its last words.
pub fn termination_path(container: &Container) -> &str {
    container.termination_message_path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/dev/termination-log")
}
