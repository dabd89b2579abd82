//! The work of starting what a plan names: control group, volumes, sandbox, containers, in that order. It may be given
//! up at any point and begun again: whatever is done is found to be done.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod};
use krate_client::EventType;
use parking_lot::Mutex;

use crate::container::Start;
use crate::cri::rpc_error;
use crate::env::Referents;
use crate::instruments::{
    CONTAINER_FAILURES, OWN_USERS_FAILURES, OWN_USERS_PODS, POD_FAILURES, SANDBOX_FAILURES, SANDBOX_SECONDS,
    STARTED_CONTAINERS, STARTED_PODS,
};
use crate::keyring::Keyring;
use crate::naming::is_host_network;
use crate::observed::{ContainerSeen, Observed};
use crate::plan::Plan;
use crate::resources::{PodResources, Qos};
use crate::shared::{Shared, SharedRef};
use crate::signal::Signal;
use crate::spec::{self, Kind};
use crate::status::{Waiting, is_over};
use crate::volumes::{self, MountedVolumes};
use crate::{names, resources, sandbox, stop};

/// How long to wait before something is tried again that the machine or the API refused.
const AGAIN: Duration = Duration::from_secs(2);

/// How long a pod waits for its volumes to be attached until it says so, and waits again (upstream's).
const ATTACHED: Duration = Duration::from_secs(123);

/// What a job works on; the worker has the other ends.
pub struct Job {
    pub shared: SharedRef,
    pub pod: Arc<Pod>,
    pub plan: Plan,
    pub seen: Observed,
    pub volumes: Arc<tokio::sync::Mutex<MountedVolumes>>,
    pub waiting: Arc<Mutex<Waiting>>,
    pub signal: Arc<Signal>,
}

impl Job {
    /// Does the work. Returns when to try again, if something could not be done.
    pub async fn run(self) -> Option<Duration> {
        let uid = names::uid(&self.pod);
        let qos = resources::qos(&self.pod);
        let of_pod =
            PodResources { pids_limit: self.shared.config.pod_pids_limit, ..resources::pod(&self.pod) };
        let made = self.shared.cgroups.create(qos, &uid, &of_pod);
        if qos == Qos::Burstable {
            self.share_between_classes();
        }
        let cgroup = match made {
            Ok(path) => path,
            Err(error) => {
                let message = format!("unable to ensure pod container exists: {error}");
                self.event(EventType::Warning, "FailedCreatePodContainer", message);
                return Some(AGAIN);
            }
        };
        // Volumes and the sandbox know nothing of each other.
        let (mounted, sandbox) = tokio::join!(self.mount(), self.sandbox(cgroup));
        let (id, config, seen) = match sandbox {
            Ok(made) => made,
            Err(again) => return Some(again),
        };
        if let Err(again) = mounted {
            return Some(again);
        }
        Box::pin(self.containers(&id, &config, &seen)).await
    }

    /// All pods with requests together weigh what they ask for, against those without.
    fn share_between_classes(&self) {
        let asked = |pod: &Arc<Pod>| {
            let is_over = pod.status.as_ref().and_then(|s| s.phase.as_deref()).is_some_and(is_over);
            if is_over || resources::qos(pod) != Qos::Burstable { 0 } else { resources::pod(pod).cpu_request }
        };
        let milli = self.shared.all_pods().iter().map(asked).sum();
        if let Err(error) = self.shared.cgroups.weigh_burstable(milli) {
            tracing::debug!(%error, "the weight of a class of pods could not be set");
        }
    }

    fn event(&self, kind: EventType, reason: &str, message: impl Into<String>) {
        self.shared.pod_event(&self.pod, kind, reason, message);
    }

    async fn mount(&self) -> Result<(), Duration> {
        let addresses = self.shared.addresses(&self.pod, &self.seen);
        let uid = names::uid(&self.pod);
        let context = volumes::Context {
            client: &self.shared.client,
            objects: &self.shared.objects,
            trust_bundles: &self.shared.trust_bundles,
            certificates: self.shared.certificates.as_deref(),
            signal: &self.signal,
            pod: &self.pod,
            pod_dir: &self.shared.config.pod_dir(&uid),
            addresses: &addresses,
            node: self.shared.node,
            own_node: &self.shared.own_node,
            csi: &self.shared.csi,
            tally: &self.shared.tally,
            patience: ATTACHED,
        };
        let mut mounted = self.volumes.lock().await;
        let outcome = volumes::set_up(&context, &mut mounted, true).await;
        outcome.map_err(|(name, error)| {
            let (reason, message) = volumes::complaint(&name, &error);
            self.event(EventType::Warning, reason, message);
            AGAIN
        })
    }

    /// The sandbox that the containers go into, made if the plan says so.
    async fn sandbox(&self, cgroup: String) -> Result<(String, cri::PodSandboxConfig, Observed), Duration> {
        let shared = &self.shared;
        let attempt = self.plan.new_sandbox;
        let known = self.seen.sandbox();
        let number =
            attempt.unwrap_or_else(|| known.and_then(|s| s.metadata.as_ref()).map_or(0, |m| m.attempt));
        let users = shared.users.of(&self.pod).map_err(|why| {
            let message = format!("Failed to create pod sandbox: {why}");
            self.event(EventType::Warning, "FailedCreatePodSandBox", message);
            AGAIN
        })?;
        let config = sandbox::config(&shared.config, &self.pod, number, cgroup, &shared.host_dns, &users);
        if attempt.is_none()
            && let Some(known) = known
        {
            return Ok((known.id.clone(), config, self.seen.clone()));
        }
        if known.is_some() {
            self.event(
                EventType::Normal,
                "SandboxChanged",
                "Pod sandbox changed, it will be killed and re-created.",
            );
            for old in &self.seen.sandboxes {
                if let Err(status) = shared.cri.stop_sandbox(&old.id).await {
                    self.event(
                        EventType::Warning,
                        "FailedKillPod",
                        format!("error killing pod: {}", rpc_error(&status)),
                    );
                    return Err(AGAIN);
                }
            }
        }
        if !is_host_network(&self.pod) {
            let not_ready = shared.network.borrow().as_ref().err().cloned();
            if let Some(why) = not_ready {
                self.event(
                    EventType::Warning,
                    "NetworkNotReady",
                    format!("network is not ready: container runtime network not ready: {why}"),
                );
                shared.network_ready().await;
            }
        }
        if let Err(error) = std::fs::create_dir_all(&config.log_directory) {
            self.event(
                EventType::Warning,
                "FailedCreatePodSandBox",
                format!("Failed to create pod sandbox: {error}"),
            );
            return Err(AGAIN);
        }
        let spec = self.pod.spec.as_ref();
        let has_own_users = spec.is_some_and(|s| s.host_users == Some(false));
        let runtime_handler =
            self.runtime_handler(spec.and_then(|s| s.runtime_class_name.as_deref())).await?;
        if has_own_users && !shared.features.borrow().user_namespaces(&runtime_handler) {
            let message = format!("Failed to create pod sandbox: {}", no_user_namespaces(&runtime_handler));
            self.event(EventType::Warning, "FailedCreatePodSandBox", message);
            return Err(AGAIN);
        }
        if let Err(why) = shared.dra.prepare(&self.pod).await {
            let message = format!("Failed to prepare dynamic resources: {why}");
            self.event(EventType::Warning, "FailedPrepareDynamicResources", message);
            return Err(AGAIN);
        }
        let handler = runtime_handler.clone();
        let request = cri::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler };
        let began = Instant::now();
        let made = shared.cri.runtime().run_pod_sandbox(request).await;
        STARTED_PODS.inc();
        OWN_USERS_PODS.inc_by(u64::from(has_own_users));
        SANDBOX_SECONDS.with_label_values(&[&handler]).observe(began.elapsed().as_secs_f64());
        let id = match made {
            Ok(answer) => answer.into_inner().pod_sandbox_id,
            Err(status) => {
                POD_FAILURES.inc();
                OWN_USERS_FAILURES.inc_by(u64::from(has_own_users));
                SANDBOX_FAILURES.with_label_values(&[&handler]).inc();
                let message = format!("Failed to create pod sandbox: {}", rpc_error(&status));
                self.event(EventType::Warning, "FailedCreatePodSandBox", message);
                return Err(AGAIN);
            }
        };
        let status = shared.cri.sandbox_status(&id).await.map_err(|status| {
            self.event(
                EventType::Warning,
                "FailedPodSandBoxStatus",
                format!("Unable to get pod sandbox status: {}", rpc_error(&status)),
            );
            AGAIN
        })?;
        let mut seen = self.seen.clone();
        seen.sandboxes.insert(0, status);
        // What is new is to be seen at once.
        self.signal.runtime_changed();
        Ok((id, config, seen))
    }

    async fn runtime_handler(&self, class: Option<&str>) -> Result<String, Duration> {
        use k8s_openapi::api::node::v1::RuntimeClass;
        let Some(class) = class.filter(|c| !c.is_empty()) else { return Ok(String::new()) };
        let api: kube::Api<RuntimeClass> = kube::Api::all(self.shared.client.clone());
        match api.get(class).await {
            Ok(found) => Ok(found.handler),
            Err(error) => {
                let message = format!("Failed to create pod sandbox: failed to get sandbox runtime: {error}");
                self.event(EventType::Warning, "FailedCreatePodSandBox", message);
                Err(AGAIN)
            }
        }
    }

    async fn containers(
        &self,
        sandbox: &str,
        config: &cri::PodSandboxConfig,
        seen: &Observed,
    ) -> Option<Duration> {
        let spec = self.pod.spec.as_ref()?;
        self.shared.services.synced().await;
        let credentials = self.credentials().await;
        let volumes = self.volumes.lock().await.clone();
        let addresses = self.shared.addresses(&self.pod, seen);
        let handler = seen.sandbox().map(|s| s.runtime_handler.clone()).unwrap_or_default();
        let mut again: Option<Duration> = None;
        let mut retry = |after: Duration| again = Some(again.map_or(after, |known| known.min(after)));
        for name in &self.plan.start {
            let Some((kind, container)) = spec::find(spec, name) else { continue };
            let container = container.as_ref();
            let wanted = spec::target(spec, name).filter(|_| kind == Kind::Ephemeral);
            let target = wanted.and_then(|t| seen.latest(t)).filter(|c| c.is_running());
            if let (Some(wanted), None) = (wanted, target) {
                let message = format!("unable to find target container {wanted}");
                let said = format!("Error: {message}");
                self.shared.container_event(&self.pod, name, EventType::Warning, "Failed", said);
                self.wait(name, "CreateContainerError", message);
                retry(AGAIN);
                continue;
            }
            let referents = match self.referents(container).await {
                Ok(referents) => referents,
                Err(error) => {
                    let message = error.to_string();
                    self.wait(name, "CreateContainerConfigError", message);
                    retry(AGAIN);
                    continue;
                }
            };
            let start = Start {
                shared: &self.shared,
                pod: &self.pod,
                container,
                sandbox_id: sandbox,
                sandbox: config,
                addresses: &addresses,
                volumes: &volumes,
                referents: &referents,
                credentials: &credentials,
                handler: &handler,
                restarts: self.restarts(name),
                target: target.map(ContainerSeen::id),
            };
            let counted = kind.counted();
            STARTED_CONTAINERS.with_label_values(&[counted]).inc();
            match start.run().await {
                Ok(_) => {
                    self.waiting.lock().remove(name);
                    self.signal.runtime_changed();
                }
                Err(error) => {
                    CONTAINER_FAILURES.with_label_values(&[counted, error.reason]).inc();
                    self.wait(name, error.reason, error.message);
                    retry(error.retry.unwrap_or(AGAIN * 2));
                }
            }
        }
        again
    }

    fn wait(&self, container: &str, reason: &str, message: String) {
        self.waiting.lock().insert(container.to_owned(), (reason.to_owned(), message));
        self.signal.wake();
    }

    /// How often a container was started before, as the runtime knows, or else as the API does.
    fn restarts(&self, name: &str) -> u32 {
        if let Some(latest) = self.seen.latest(name) {
            return latest.restarts() + 1;
        }
        let status = self.pod.status.as_ref();
        let all = status.into_iter().flat_map(|s| {
            s.container_statuses.iter().flatten().chain(s.init_container_statuses.iter().flatten())
        });
        let has_run = |s: &ContainerStatus| {
            s.container_id.is_some() || s.last_state.as_ref().is_some_and(|l| l.terminated.is_some())
        };
        all.filter(|s| s.name == name && has_run(s))
            .map(|s| s.restart_count.unsigned_abs() + 1)
            .next()
            .unwrap_or(0)
    }

    /// What a container's environment refers to.
    async fn referents(&self, container: &Container) -> kube::Result<Referents> {
        let mut found = Referents::default();
        let (mut maps, mut secrets) = (Vec::new(), Vec::new());
        for source in container.env_from.iter().flatten() {
            maps.extend(source.config_map_ref.as_ref().map(|r| r.name.clone()));
            secrets.extend(source.secret_ref.as_ref().map(|r| r.name.clone()));
        }
        for source in container.env.iter().flatten().filter_map(|v| v.value_from.as_ref()) {
            maps.extend(source.config_map_key_ref.as_ref().map(|r| r.name.clone()));
            secrets.extend(source.secret_key_ref.as_ref().map(|r| r.name.clone()));
        }
        let (uid, namespace) = (names::uid(&self.pod), names::namespace(&self.pod));
        for name in maps {
            if let Some(map) =
                self.shared.objects.config_maps.get(&uid, &self.signal, &namespace, &name).await?
            {
                found.config_maps.insert(name, map);
            }
        }
        for name in secrets {
            if let Some(secret) =
                self.shared.objects.secrets.get(&uid, &self.signal, &namespace, &name).await?
            {
                found.secrets.insert(name, secret);
            }
        }
        Ok(found)
    }

    /// What the pod may show to registries. A secret that cannot be had is passed over, as upstream does.
    async fn credentials(&self) -> Keyring {
        let secrets =
            self.pod.spec.as_ref().and_then(|s| s.image_pull_secrets.as_deref()).unwrap_or_default();
        let (uid, namespace) = (names::uid(&self.pod), names::namespace(&self.pod));
        let mut keyring = Keyring::default();
        let mut missing = Vec::new();
        for reference in secrets.iter().filter(|reference| !reference.name.is_empty()) {
            let found =
                self.shared.objects.secrets.get(&uid, &self.signal, &namespace, &reference.name).await;
            match found {
                Ok(Some(secret)) => keyring.add(&secret),
                _ => missing.push(reference.name.as_str()),
            }
        }
        if !missing.is_empty() {
            let message = format!(
                "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                missing.join(", ")
            );
            self.event(EventType::Warning, "FailedToRetrieveImagePullSecret", message);
        }
        keyring
    }
}

/// Why a pod cannot have users of its own.
fn no_user_namespaces(handler: &str) -> String {
    let who =
        if handler.is_empty() { "runtime".to_owned() } else { format!("RuntimeClass handler {handler:?}") };
    format!("can't set `spec.hostUsers: false`, {who} does not support user namespaces")
}

/// Stops and removes these containers in their order, so that their pod begins afresh in its sandbox. Their logs stay.
pub async fn reset(shared: Arc<Shared>, pod: Arc<Pod>, seen: Observed, ids: Vec<String>) -> Option<Duration> {
    for container in ids.iter().filter_map(|id| seen.containers.iter().find(|c| c.id() == id)) {
        if !container.is_exited()
            && let Err(error) = stop::container(&shared, &pod, container, 0, None).await
        {
            let message = format!("error killing pod: {error}");
            shared.pod_event(&pod, EventType::Warning, "FailedKillPod", message);
            return Some(AGAIN);
        }
        if let Err(status) = shared.cri.remove_container(container.id()).await {
            tracing::warn!(container = container.id(), %status, "a container could not be removed");
            return Some(AGAIN);
        }
    }
    None
}
