//! The one owner of a pod on this node. It is woken, looks at what is asked and what there is, starts what has to be
//! started and stops what has to be stopped, and tells the API. It may be woken at any time, and as often as one likes.

mod admitting;
mod ending;
mod figures;
mod mirror;
mod publish;
mod resizing;
mod restarting;
mod starting;

pub use mirror::delete as delete_mirror;
pub use publish::difference;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use krate_client::EventType;
use parking_lot::Mutex;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::instruments::{POD_RELISTS, POD_WORKER_SECONDS, POD_WORKER_START_SECONDS};
use crate::observed::Observed;
use crate::plan::{self, Plan};
use crate::probes::Probes;
use crate::shared::SharedRef;
use crate::signal::Signal;
use crate::spec;
use crate::static_pods::is_static;
use crate::status::{self, Verdict, Waiting};
use crate::volumes::{self, MountedVolumes};
use crate::{eviction, last_words, names, start};
use admitting::Admission;
use starting::Starting;

/// How long to wait before the runtime or the API is asked again after it refused.
const AGAIN: Duration = Duration::from_secs(1);

/// How long the API may take to say of a volume that is used already that it is attached.
const ATTACHED: Duration = Duration::from_secs(10);

/// What the API asks of a pod: its newest state, and whether it is gone from there.
#[derive(Clone)]
pub struct Desired {
    pub pod: Arc<Pod>,
    pub removed: bool,
    /// When it was told so.
    pub heard: Instant,
    /// Of a static pod: its image in the API, if one is known.
    pub mirror: Option<Arc<Pod>>,
}

/// What the outside holds of a worker.
pub struct Handle {
    pub desired: Mutex<Desired>,
    pub signal: Arc<Signal>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Active,
    /// All is being stopped, within so many seconds.
    Ending(i64),
    /// All has stopped; the pod stays until somebody deletes it.
    Ended,
}

pub struct Worker {
    shared: SharedRef,
    handle: Arc<Handle>,
    uid: String,
    /// The newest known of the API: what its watch told, with what this worker wrote since.
    pod: Arc<Pod>,
    removed: bool,
    seen: Observed,
    is_seen: bool,
    last_words: HashMap<String, String>,
    waiting: Arc<Mutex<Waiting>>,
    /// By the container's name and what it is to run.
    backoffs: HashMap<String, Backoff>,
    volumes: Arc<tokio::sync::Mutex<MountedVolumes>>,
    probes: Probes,
    starting: Option<JoinHandle<Option<Duration>>>,
    /// What is being started, while anything is.
    being_started: HashSet<String>,
    stopping: Option<JoinHandle<Result<(), String>>>,
    kills: JoinSet<String>,
    killing: HashSet<String>,
    /// The containers that this worker killed so that another takes their place.
    replaced: HashSet<String>,
    failed: Option<Verdict>,
    resize: resizing::Resize,
    /// Containers that were killed for what is no fault of theirs: they start again at once.
    faultless: HashSet<String>,
    /// What the node was short of when it ended the pod.
    disrupted: Option<String>,
    is_admitted: bool,
    /// The pods that go so that this one finds room.
    preempted: Vec<String>,
    stage: Stage,
    wake_at: Option<Instant>,
    /// After a failure, when starting is tried again.
    quiet_until: Option<Instant>,
    /// Since when this worker knows of the pod, until it runs; none, if it has run before.
    begun: Option<Instant>,
    /// The pod's start, as long as it is followed.
    starting_up: Option<Starting>,
    /// Since when the API does not know the status that there is.
    untold: Option<Instant>,
    /// The status that was told last, and the version that the API gave it.
    told: Option<(serde_json::Value, u64)>,
}

impl Worker {
    pub fn new(shared: SharedRef, handle: Arc<Handle>) -> Self {
        let desired = handle.desired.lock().clone();
        let uid = names::uid(&desired.pod);
        let starting_up = Starting::of(&desired.pod);
        if starting_up.is_some() {
            shared.images.pulls.follow(&uid);
        }
        Worker {
            uid,
            probes: Probes::new(Arc::clone(&shared), Arc::clone(&handle.signal)),
            shared,
            handle,
            removed: desired.removed,
            seen: Observed::default(),
            is_seen: false,
            last_words: HashMap::new(),
            waiting: Arc::default(),
            backoffs: HashMap::new(),
            volumes: Arc::default(),
            starting: None,
            being_started: HashSet::new(),
            stopping: None,
            kills: JoinSet::new(),
            killing: HashSet::new(),
            replaced: HashSet::new(),
            failed: None,
            resize: resizing::Resize::default(),
            faultless: HashSet::new(),
            disrupted: None,
            is_admitted: false,
            preempted: Vec::new(),
            stage: Stage::Active,
            wake_at: None,
            quiet_until: None,
            begun: figures::has_not_run(&desired.pod).then(Instant::now),
            starting_up,
            untold: None,
            pod: desired.pod,
            told: None,
        }
    }

    /// Works until the pod is gone, or the kubelet ends. Ending the kubelet stops nothing that runs.
    pub async fn run(mut self) {
        let heard = self.handle.desired.lock().heard;
        POD_WORKER_START_SECONDS.observe(heard.elapsed().as_secs_f64());
        loop {
            // One who has reason upon reason to look leaves the others their turn.
            tokio::task::coop::consume_budget().await;
            self.wake_at = None;
            let began = Instant::now();
            let operation = self.take_desired();
            self.look().await;
            if self.is_seen {
                self.probes.follow(&self.pod, &self.seen);
                self.step().await;
                self.note_lifecycle();
                self.publish().await;
                let is_gone = self.clean_up().await;
                POD_WORKER_SECONDS.with_label_values(&[operation]).observe(began.elapsed().as_secs_f64());
                self.note_start();
                if is_gone {
                    break;
                }
            }
            if !self.sleep().await {
                break;
            }
        }
        self.probes.stop();
        if let Some(job) = self.starting.take() {
            job.abort();
        }
    }

    /// Waits for the next reason to look; `false` when the kubelet ends.
    async fn sleep(&mut self) -> bool {
        let at = self.wake_at;
        let timer = async move {
            match at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.shared.shutdown.cancelled() => return false,
            () = self.handle.signal.woken() => {}
            () = timer => {}
            again = finished(&mut self.starting) => {
                self.handle.signal.runtime_changed();
                if let Some(after) = again.flatten() {
                    self.wake_after(after);
                    // The wish above wakes at once; what failed is tried again only later.
                    self.backing_off(after);
                }
            }
            outcome = finished(&mut self.resize.job) => {
                self.handle.signal.runtime_changed();
                self.actuated(outcome);
            }
            outcome = finished(&mut self.stopping) => {
                self.handle.signal.runtime_changed();
                self.stopped(outcome);
            }
            Some(killed) = self.kills.join_next(), if !self.kills.is_empty() => {
                if let Ok(id) = killed {
                    self.killing.remove(&id);
                }
                self.handle.signal.runtime_changed();
            }
        }
        true
    }

    fn wake_after(&mut self, after: Duration) {
        let at = Instant::now() + after;
        self.wake_at = Some(self.wake_at.map_or(at, |known| known.min(at)));
    }

    /// Takes in what the API asks. Returns what upstream calls it to look at the pod then.
    fn take_desired(&mut self) -> &'static str {
        let desired = self.handle.desired.lock().clone();
        self.removed |= desired.removed;
        self.note_heard(&desired);
        let pod = if is_static(&desired.pod) {
            // Its description has no status.
            let mut pod = (*desired.pod).clone();
            pod.status.clone_from(&self.pod.status);
            Arc::new(pod)
        } else if publish::version(&desired.pod) >= publish::version(&self.pod) {
            desired.pod
        } else {
            // What this worker wrote is newer than what the watch has told: only the status can differ.
            let mut pod = (*desired.pod).clone();
            pod.status.clone_from(&self.pod.status);
            pod.metadata.clone_from(&self.pod.metadata);
            Arc::new(pod)
        };
        if shown(&pod) != shown(&self.pod) {
            self.handle.signal.objects_changed();
        }
        let is_other = pod.metadata.generation != self.pod.metadata.generation
            || pod.metadata.deletion_timestamp != self.pod.metadata.deletion_timestamp;
        self.pod = pod;
        match (self.is_seen, is_other) {
            (false, _) => "create",
            (true, true) => "update",
            (true, false) => "sync",
        }
    }

    /// Asks the runtime what there is, if anything may have changed.
    async fn look(&mut self) {
        if !self.handle.signal.take_runtime() && self.is_seen {
            return;
        }
        let knew_some = self.is_seen || !self.seen.sandboxes.is_empty();
        let began = Instant::now();
        let read = Observed::read(&self.shared.cri, &self.uid).await;
        POD_RELISTS.observe(began.elapsed().as_secs_f64());
        match read {
            Ok(seen) => (self.seen, self.is_seen) = (seen, true),
            Err(status) => {
                tracing::debug!(pod = %names::full(&self.pod), %status, "the runtime does not tell of a pod");
                self.handle.signal.runtime_changed();
                self.is_seen = false;
                // The wish just made would wake at once.
                self.handle.signal.woken().await;
                self.wake_after(AGAIN);
                return;
            }
        }
        for ended in self.seen.containers.iter().filter(|c| c.is_exited()) {
            if !self.last_words.contains_key(ended.id()) {
                self.last_words.insert(ended.id().to_owned(), last_words::read(ended));
                // What ended before this kubelet came was counted by the one before.
                if knew_some {
                    self.count_end(ended);
                }
            }
        }
        self.forget_old();
    }

    /// Of the containers that have ended, each name keeps its last one; sandboxes with nothing in them go.
    fn forget_old(&mut self) {
        let mut kept: HashMap<&str, usize> = HashMap::new();
        let (mut containers, mut used) = (Vec::new(), HashSet::new());
        for container in &self.seen.containers {
            let count = kept.entry(container.name()).or_default();
            if container.is_exited() && *count > 1 {
                containers.push(container.id().to_owned());
            } else {
                used.insert(container.sandbox.as_str());
            }
            *count += 1;
        }
        let sandboxes: Vec<String> = self
            .seen
            .sandboxes
            .iter()
            .skip(1)
            .filter(|s| !used.contains(s.id.as_str()))
            .map(|s| s.id.clone())
            .collect();
        if containers.is_empty() && sandboxes.is_empty() {
            return;
        }
        let cri = self.shared.cri.clone();
        tokio::spawn(async move {
            for id in containers {
                if let Err(status) = cri.remove_container(&id).await {
                    tracing::debug!(container = id, %status, "an old container could not be removed");
                }
            }
            for id in sandboxes {
                let stopped = cri.stop_sandbox(&id).await;
                if let Err(status) = if stopped.is_ok() { cri.remove_sandbox(&id).await } else { stopped } {
                    tracing::debug!(sandbox = id, %status, "an old sandbox could not be removed");
                }
            }
        });
    }

    /// Decides what to do, and starts doing it.
    async fn step(&mut self) {
        if let Some(grace) = self.asked_to_end() {
            self.end(grace);
            return;
        }
        if self.stage != Stage::Active {
            return;
        }
        match self.admit().await {
            Admission::Taken => {}
            Admission::Waits => return,
            Admission::Refused => {
                self.end(self.own_grace());
                return;
            }
        }
        self.refresh_volumes();
        self.grant();
        let pod = self.as_granted();
        self.actuate(&pod);
        let verdicts = self.probes.verdicts();
        let mut plan = plan::plan(&pod, &self.seen, &verdicts);
        if plan.kill_pod && plan.new_sandbox.is_none() {
            if self.starts_what_is_over() {
                return;
            }
            // Nothing is left to run.
            self.end(self.own_grace());
            return;
        }
        if !plan.reset.is_empty() {
            if self.starting.is_none() && !self.is_backing_off() {
                let ids = std::mem::take(&mut plan.reset);
                let (shared, pod, seen) =
                    (Arc::clone(&self.shared), Arc::clone(&self.pod), self.seen.clone());
                self.starting = Some(tokio::spawn(start::reset(shared, pod, seen, ids)));
            }
            return;
        }
        for kill in std::mem::take(&mut plan.kill) {
            self.kill(&kill);
        }
        plan.start.retain(|name| self.may_start(name));
        let has_work = plan.new_sandbox.is_some() || !plan.start.is_empty();
        if has_work && self.starting.is_none() && !self.is_backing_off() {
            let job = start::Job {
                shared: Arc::clone(&self.shared),
                pod,
                plan: Plan { kill_pod: false, ..plan },
                seen: self.seen.clone(),
                volumes: Arc::clone(&self.volumes),
                waiting: Arc::clone(&self.waiting),
                signal: Arc::clone(&self.handle.signal),
            };
            self.note_starts(&job.plan.start);
            self.starting = Some(tokio::spawn(job.run()));
        }
    }

    fn kill(&mut self, kill: &plan::Kill) {
        let Some(seen) = self.seen.containers.iter().find(|c| c.id() == kill.id).cloned() else { return };
        if !self.killing.insert(kill.id.clone()) {
            return;
        }
        self.replaced.retain(|id| self.seen.containers.iter().any(|c| c.id() == id));
        self.replaced.insert(kill.id.clone());
        if kill.is_resize {
            self.faultless.insert(kill.name.clone());
        }
        let (shared, pod, message) = (Arc::clone(&self.shared), Arc::clone(&self.pod), kill.message.clone());
        let grace =
            kill.probe.and_then(|probe| self.probe_grace(&kill.name, probe)).unwrap_or(self.own_grace());
        self.kills.spawn(async move {
            if let Err(error) = crate::stop::container(&shared, &pod, &seen, grace, Some(&message)).await {
                tracing::warn!(container = seen.id(), error, "a container could not be stopped");
            }
            seen.id().to_owned()
        });
    }

    /// The grace period that a probe sets for itself.
    fn probe_grace(&self, container: &str, probe: &str) -> Option<i64> {
        let spec = self.pod.spec.as_ref()?;
        let (_, container) = spec::find(spec, container)?;
        let probe = if probe == "Startup" { &container.startup_probe } else { &container.liveness_probe };
        probe.as_ref()?.termination_grace_period_seconds
    }

    /// Brings volumes up to date when an object has changed or a token grows old.
    fn refresh_volumes(&mut self) {
        let changed = self.handle.signal.take_objects();
        if changed {
            // What was missing may be there now.
            self.quiet_until = None;
        }
        let Ok(mounted) = self.volumes.try_lock() else {
            // They are being set up; look again when that is over.
            if changed {
                self.handle.signal.objects_put_off();
                self.wake_after(AGAIN);
            }
            return;
        };
        let due = volumes::refresh_at(&mounted);
        // After a restart, what is mounted is not known yet.
        let unknown = mounted.by_name.is_empty()
            && mounted.again_at.is_none()
            && self.seen.any_running()
            && self.starting.is_none();
        drop(mounted);
        let now = Timestamp::now();
        let left = due.map(|at| Duration::try_from(at.duration_since(now)).unwrap_or_default());
        if !changed && !unknown && left.is_none_or(|left| !left.is_zero()) {
            if let Some(left) = left {
                self.wake_after(left);
            }
            return;
        }
        if self.pod.spec.as_ref().is_none_or(|s| s.volumes.as_ref().is_none_or(Vec::is_empty)) {
            return;
        }
        let (shared, pod, signal) =
            (Arc::clone(&self.shared), Arc::clone(&self.pod), Arc::clone(&self.handle.signal));
        let (seen, volumes) = (self.seen.clone(), Arc::clone(&self.volumes));
        tokio::spawn(async move {
            let addresses = shared.addresses(&pod, &seen);
            let context = volumes::Context {
                client: &shared.client,
                objects: &shared.objects,
                trust_bundles: &shared.trust_bundles,
                certificates: shared.certificates.as_deref(),
                signal: &signal,
                pod: &pod,
                pod_dir: &shared.config.pod_dir(&names::uid(&pod)),
                addresses: &addresses,
                node: shared.node,
                own_node: &shared.own_node,
                csi: &shared.csi,
                tally: &shared.tally,
                patience: ATTACHED,
            };
            let mut mounted = volumes.lock().await;
            if let Err((name, error)) = volumes::set_up(&context, &mut mounted, true).await {
                let (reason, message) = volumes::complaint(&name, &error);
                shared.pod_event(&pod, EventType::Warning, reason, message);
                // A token that cannot be had now is asked for again in a while.
                mounted.again_at = Some(Timestamp::now() + jiff::SignedDuration::from_secs(10));
            }
            drop(mounted);
            signal.wake();
        });
    }

    fn status(&self) -> k8s_openapi::api::core::v1::PodStatus {
        let verdicts = self.probes.verdicts();
        let waiting = self.waiting.lock().clone();
        let mut made = status::make(&status::Inputs {
            pod: &self.as_granted(),
            resize: &self.resize.conditions,
            seen: &self.seen,
            verdicts: &verdicts,
            waiting: &waiting,
            runtime_name: &self.shared.runtime_name,
            node_ip: self.shared.config.node_ip,
            last_words: &self.last_words,
            is_ending: self.stage != Stage::Active,
            failed: self.failed.as_ref(),
            now: Timestamp::now(),
        });
        self.shared.dra.tell_health(&self.pod, &mut made);
        // To the scheduler the claims of a pod that has ended are free; so it has not before they are.
        if made.phase.as_deref().is_some_and(status::is_over) && self.shared.dra.is_used_by(&self.uid) {
            made.phase = self.pod.status.as_ref().and_then(|s| s.phase.clone());
        }
        if let Some(message) = &self.disrupted {
            eviction::mark(&mut made, self.pod.metadata.generation, message);
        }
        made
    }
}

/// What a pod's volumes may show of the pod itself, as far as it can change.
fn shown(pod: &Pod) -> impl PartialEq + '_ {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let inits = spec.and_then(|s| s.init_containers.as_deref()).unwrap_or_default();
    let containers = inits.iter().chain(spec.map(|s| s.containers.as_slice()).unwrap_or_default());
    let resources: Vec<_> = containers.map(|c| c.resources.as_ref()).collect();
    (meta.labels.as_ref(), meta.annotations.as_ref(), resources)
}

/// The outcome of a job once it has one; never, while there is none. A job that panicked has none to tell.
async fn finished<T>(job: &mut Option<JoinHandle<T>>) -> Option<T> {
    let Some(running) = job else { return std::future::pending().await };
    let outcome = running.await.ok();
    *job = None;
    outcome
}
