//! Probes: one task for each probe of each running container. What they find is pushed to the pod's worker.

mod check;
mod counts;
mod grpc;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use krate_client::EventType;
use parking_lot::Mutex;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::observed::{ContainerSeen, Observed};
use crate::plan::{Verdicts, is_sidecar};
use crate::shared::SharedRef;
use crate::signal::Signal;
use check::Outcome;
pub use counts::Counts;
use counts::Of;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Liveness => "Liveness",
            Kind::Readiness => "Readiness",
        }
    }
}

/// The probes of one pod.
pub struct Probes {
    shared: SharedRef,
    signal: Arc<Signal>,
    verdicts: Arc<Mutex<Verdicts>>,
    running: HashMap<String, Running>,
}

struct Running {
    stop: CancellationToken,
    /// Ends what may restart the container; that it is ready is still found out.
    calm: CancellationToken,
    /// Cancelled once the container counts as started.
    started: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Probes {
    pub fn new(shared: SharedRef, signal: Arc<Signal>) -> Self {
        Probes { shared, signal, verdicts: Arc::default(), running: HashMap::new() }
    }

    pub fn verdicts(&self) -> Verdicts {
        self.verdicts.lock().clone()
    }

    /// Starts the probes of containers that run now, and ends those of containers that do not.
    pub fn follow(&mut self, pod: &Arc<Pod>, seen: &Observed) {
        let Some(spec) = &pod.spec else { return };
        let gone: Vec<String> = self
            .running
            .keys()
            .filter(|id| !seen.containers.iter().any(|c| c.id() == **id && c.is_running()))
            .cloned()
            .collect();
        for id in gone {
            self.running.remove(&id);
            let mut verdicts = self.verdicts.lock();
            verdicts.dead.remove(&id);
            verdicts.never_started.remove(&id);
            verdicts.started.remove(&id);
            verdicts.ready.remove(&id);
        }
        let probed = spec.init_containers.iter().flatten().filter(|c| is_sidecar(c)).chain(&spec.containers);
        for container in probed {
            let Some(current) = seen.current(&container.name).filter(|c| c.is_running()) else { continue };
            if !self.running.contains_key(current.id()) {
                self.begin(pod, container, current, seen);
            }
        }
    }

    /// The pod is told to end: its containers are restarted no more.
    pub fn calm(&mut self) {
        self.running.values().for_each(|running| running.calm.cancel());
    }

    /// Ends all of them.
    pub fn stop(&mut self) {
        self.running.clear();
    }

    fn begin(&mut self, pod: &Arc<Pod>, container: &Container, seen: &ContainerSeen, all: &Observed) {
        let id = seen.id().to_owned();
        let (was_started, was_ready) = before(pod, &id);
        let stop = CancellationToken::new();
        let running = Running { calm: stop.child_token(), stop, started: CancellationToken::new() };
        {
            let mut verdicts = self.verdicts.lock();
            if container.startup_probe.is_none() || was_started {
                verdicts.started.insert(id.clone());
                running.started.cancel();
            }
            if container.readiness_probe.is_none() || was_ready {
                verdicts.ready.insert(id.clone());
            }
        }
        let addresses = self.shared.addresses(pod, all);
        let table = [
            (Kind::Startup, container.startup_probe.as_ref().filter(|_| !was_started)),
            (Kind::Liveness, container.liveness_probe.as_ref()),
            (Kind::Readiness, container.readiness_probe.as_ref()),
        ];
        for (kind, probe) in table {
            let Some(probe) = probe else { continue };
            let worker = Worker {
                shared: Arc::clone(&self.shared),
                signal: Arc::clone(&self.signal),
                verdicts: Arc::clone(&self.verdicts),
                pod: Arc::clone(pod),
                container: container.clone(),
                probe: probe.clone(),
                kind,
                id: id.clone(),
                pod_ip: addresses.pod.first().cloned().unwrap_or_default(),
                started_at: crate::observed::timestamp(seen.status.started_at),
                started: running.started.clone(),
            };
            let stop = if kind == Kind::Readiness { &running.stop } else { &running.calm }.clone();
            tokio::spawn(async move {
                let (shared, of) = (Arc::clone(&worker.shared), worker.of());
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = worker.run() => stop.cancelled().await,
                }
                shared.probes.forget(&of);
            });
        }
        self.running.insert(id, running);
    }
}

/// What the API knows of a container from before this kubelet started: whether it had started and was ready.
fn before(pod: &Pod, id: &str) -> (bool, bool) {
    let status = pod.status.as_ref();
    let all = status.into_iter().flat_map(|s| {
        s.container_statuses.iter().flatten().chain(s.init_container_statuses.iter().flatten())
    });
    let known = all
        .into_iter()
        .find(|s| s.container_id.as_deref().is_some_and(|full| full.ends_with(&format!("//{id}"))));
    known.map_or((false, false), |s| (s.started == Some(true), s.ready))
}

/// One probe of one container.
struct Worker {
    shared: SharedRef,
    signal: Arc<Signal>,
    verdicts: Arc<Mutex<Verdicts>>,
    pod: Arc<Pod>,
    container: Container,
    probe: Probe,
    kind: Kind,
    id: String,
    pod_ip: String,
    started_at: Timestamp,
    started: CancellationToken,
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(value.filter(|v| *v > 0).map_or(default, |v| u64::from(v.unsigned_abs())))
}

/// Counts outcomes in a row, and tells when a threshold is reached.
#[derive(Debug, Default)]
struct Counter {
    last: Option<bool>,
    in_row: i32,
}

impl Counter {
    /// Notes an outcome; returns it once it has come often enough in a row.
    fn note(&mut self, good: bool, successes: i32, failures: i32) -> Option<bool> {
        if self.last == Some(good) {
            self.in_row = self.in_row.saturating_add(1);
        } else {
            (self.last, self.in_row) = (Some(good), 1);
        }
        let enough = if good { successes } else { failures };
        (self.in_row >= enough.max(1)).then_some(good)
    }
}

impl Worker {
    fn of(&self) -> Of {
        let text = |t: &Option<String>| t.clone().unwrap_or_default();
        let meta = &self.pod.metadata;
        Of {
            kind: self.kind.name(),
            container: self.container.name.clone(),
            pod: text(&meta.name),
            namespace: text(&meta.namespace),
            uid: text(&meta.uid),
        }
    }

    async fn run(self) {
        if self.kind != Kind::Startup {
            self.started.cancelled().await;
        }
        let delay = Duration::from_secs(u64::from(
            self.probe.initial_delay_seconds.unwrap_or(0).max(0).unsigned_abs(),
        ));
        let age = Duration::try_from(Timestamp::now().duration_since(self.started_at)).unwrap_or_default();
        let first = tokio::time::Instant::now() + delay.saturating_sub(age);
        let mut ticks = tokio::time::interval_at(first, seconds(self.probe.period_seconds, 10));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (successes, failures) =
            (self.probe.success_threshold.unwrap_or(1), self.probe.failure_threshold.unwrap_or(3));
        let timeout = seconds(self.probe.timeout_seconds, 1);
        let mut counter = Counter::default();
        let of = self.of();
        loop {
            ticks.tick().await;
            let outcome =
                check::run(&self.shared.cri, &self.probe, &self.container, &self.id, &self.pod_ip, timeout)
                    .await;
            let result = match outcome {
                Outcome::Success | Outcome::Warning(_) => "successful",
                Outcome::Failure(_) => "failed",
                Outcome::Error(_) => "unknown",
            };
            self.shared.probes.add(&of, result);
            let good = match outcome {
                Outcome::Success => true,
                Outcome::Warning(said) => {
                    let said = format!("{} probe warning: {said}", self.kind.name());
                    self.event("ProbeWarning", &said);
                    true
                }
                Outcome::Failure(said) => {
                    self.unhealthy(&format!("{} probe failed: {said}", self.kind.name()));
                    false
                }
                Outcome::Error(said) => {
                    self.unhealthy(&format!(
                        "{} probe errored and resulted in unknown state: {said}",
                        self.kind.name()
                    ));
                    continue;
                }
            };
            if let Some(verdict) = counter.note(good, successes, failures)
                && self.tell(verdict)
            {
                return;
            }
        }
    }

    fn unhealthy(&self, message: &str) {
        self.event("Unhealthy", message);
    }

    fn event(&self, reason: &str, message: &str) {
        let name = &self.container.name;
        self.shared.container_event(&self.pod, name, EventType::Warning, reason, message);
    }

    /// Makes a verdict known. Whether the probe has nothing more to find out.
    fn tell(&self, good: bool) -> bool {
        let id = self.id.clone();
        let (changed, is_over) = {
            let mut verdicts = self.verdicts.lock();
            match (self.kind, good) {
                (Kind::Readiness, true) => (verdicts.ready.insert(id), false),
                (Kind::Readiness, false) => (verdicts.ready.remove(&id), false),
                (Kind::Liveness, true) => (false, false),
                (Kind::Liveness, false) => (verdicts.dead.insert(id), true),
                (Kind::Startup, true) => (verdicts.started.insert(id), true),
                (Kind::Startup, false) => (verdicts.never_started.insert(id), true),
            }
        };
        if self.kind == Kind::Startup && good {
            self.started.cancel();
        }
        if changed {
            self.signal.wake();
        }
        is_over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_count_outcomes_in_a_row() {
        let mut counter = Counter::default();
        let said: Vec<Option<bool>> =
            [false, false, true, false, false, false, true].map(|good| counter.note(good, 1, 3)).to_vec();
        assert_eq!(said, [None, None, Some(true), None, None, Some(false), Some(true)]);
    }

    #[test]
    fn what_the_api_knows_of_a_container_is_kept() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {"containers": []}, "status": {
            "containerStatuses": [{"name": "c", "image": "", "imageID": "", "restartCount": 0,
                "containerID": "x://abc", "started": true, "ready": true}]}}))
        .unwrap();
        assert_eq!(before(&pod, "abc"), (true, true));
        assert_eq!(before(&pod, "bc"), (false, false));
    }
}
