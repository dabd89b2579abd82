//! What the node does when it runs short of something: it says so in its conditions, gives back what nobody uses, and
//! evicts pods, one at a time. A pod that uses more of the disk than its limits allow is evicted in any case.

mod layout;
mod rank;
mod threshold;
mod usage;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use krate_client::EventType;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::disks::{Layout, RuntimeDisks};
use crate::garbage::ImageGarbage;
use crate::instruments;
use crate::names;
use crate::shared::SharedRef;
use crate::status::seconds;

pub use rank::{CRITICAL, is_critical};
pub use threshold::{EvictionConfig, Signal};
use threshold::{Observations, Threshold};
use usage::PodUsage;

/// How often all is looked at.
const LOOK: Duration = Duration::from_secs(10);
/// How long an evicted pod is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
/// Seconds that a pod has to end where it must be quick.
const AT_ONCE: i64 = 1;

/// An eviction that was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eviction {
    /// The reason that the pod's status tells.
    pub reason: &'static str,
    pub message: String,
    /// Seconds that the pod has to end.
    pub grace: i64,
    /// What its condition `DisruptionTarget` says, if it is not the pod's own doing.
    pub disruption: Option<String>,
}

const EVICTED: &str = "Evicted";

/// An eviction, and how far it has come.
#[derive(Clone, Debug)]
struct Decided {
    eviction: Eviction,
    /// Nothing of the pod runs any more; what it had is being cleared away.
    has_stopped: bool,
}

/// What is decided here and done by the pods' workers.
#[derive(Debug)]
pub struct Evictions {
    decided: watch::Sender<HashMap<String, Decided>>,
    changed: Notify,
    /// The conditions of the node that say that something is short.
    pressure: watch::Sender<Vec<&'static str>>,
}

impl Default for Evictions {
    fn default() -> Self {
        Evictions {
            decided: watch::Sender::default(),
            changed: Notify::new(),
            pressure: watch::Sender::new(Vec::new()),
        }
    }
}

impl Evictions {
    /// Whether a pod is to be evicted, and how.
    pub fn of(&self, uid: &str) -> Option<Eviction> {
        self.decided.borrow().get(uid).map(|decided| decided.eviction.clone())
    }

    /// Whether something of a pod that is to be evicted may still run.
    pub fn may_run(&self, uid: &str) -> bool {
        self.decided.borrow().get(uid).is_some_and(|decided| !decided.has_stopped)
    }

    /// Waits until another pod is to be evicted, or one is gone.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Nothing of the pod runs any more.
    pub fn stopped(&self, uid: &str) {
        let is_news = self.decided.send_if_modified(|all| {
            all.get_mut(uid).is_some_and(|decided| !std::mem::replace(&mut decided.has_stopped, true))
        });
        if is_news {
            // A pod may be waiting for its room.
            self.changed.notify_one();
        }
    }

    /// Nothing is mounted for the pod any more, and nothing is held.
    pub fn cleared(&self, uid: &str) {
        if self.decided.send_if_modified(|all| all.remove(uid).is_some()) {
            self.changed.notify_one();
        }
    }

    /// The conditions of the node that say that something is short.
    pub fn pressure(&self) -> Vec<&'static str> {
        self.pressure.borrow().clone()
    }

    /// Has a pod evicted.
    pub fn decide(&self, uid: String, eviction: Eviction) {
        self.decided.send_modify(|all| {
            all.insert(uid, Decided { eviction, has_stopped: false });
        });
        self.changed.notify_one();
    }

    /// Waits until nothing is left of a pod that is to be evicted.
    pub async fn until_cleared(&self, uid: &str) {
        // The sender is this.
        let _ = self.decided.subscribe().wait_for(|all| !all.contains_key(uid)).await;
    }
}

/// Writes into a pod's status that the node's shortage ended it (KEP-3329).
pub fn mark(status: &mut PodStatus, generation: Option<i64>, message: &str) {
    let conditions = status.conditions.get_or_insert_default();
    if conditions.iter().any(|c| c.type_ == "DisruptionTarget" && c.status == "True") {
        return;
    }
    conditions.retain(|c| c.type_ != "DisruptionTarget");
    conditions.push(PodCondition {
        type_: "DisruptionTarget".to_owned(),
        status: "True".to_owned(),
        reason: Some("TerminationByKubelet".to_owned()),
        message: Some(message.to_owned()),
        observed_generation: generation,
        last_transition_time: Some(Time(seconds(Timestamp::now()))),
        ..Default::default()
    });
}

/// What is remembered from one look to the next.
#[derive(Default)]
struct Memory {
    first_met: Vec<(Threshold, Instant)>,
    last_met: Vec<Threshold>,
    conditions: HashMap<&'static str, Instant>,
}

impl Memory {
    /// Takes in what is seen. Returns the thresholds that something is to be done about.
    fn take(
        &mut self,
        all: &[Threshold],
        seen: &Observations,
        transition: Duration,
        now: Instant,
    ) -> (Vec<Threshold>, Vec<&'static str>) {
        let is_met =
            |t: &&Threshold| t.is_met(seen, false) || (self.last_met.contains(t) && t.is_met(seen, true));
        let met: Vec<Threshold> = all.iter().filter(is_met).cloned().collect();
        for threshold in &met {
            self.conditions.insert(threshold.signal.condition(), now);
        }
        self.conditions.retain(|_, seen| now.duration_since(*seen) < transition);
        let since =
            |t: &Threshold| self.first_met.iter().find(|(known, _)| known == t).map_or(now, |(_, at)| *at);
        self.first_met = met.iter().map(|t| (t.clone(), since(t))).collect();
        let lasted = |(t, at): &&(Threshold, Instant)| now.duration_since(*at) >= t.grace.unwrap_or_default();
        self.last_met = self.first_met.iter().filter(lasted).map(|(t, _)| t.clone()).collect();
        let mut conditions: Vec<&'static str> = self.conditions.keys().copied().collect();
        conditions.sort_unstable();
        (self.last_met.clone(), conditions)
    }
}

struct Manager {
    shared: SharedRef,
    thresholds: Vec<Threshold>,
    memory: Memory,
    disks: Option<RuntimeDisks>,
    layout: Layout,
    garbage: Arc<ImageGarbage>,
    node_changed: Arc<Notify>,
}

/// Watches over the node until the kubelet ends. `node_changed` is told when the node's conditions are others.
pub async fn run(shared: SharedRef, garbage: Arc<ImageGarbage>, node_changed: Arc<Notify>) {
    let thresholds = shared.config.eviction.thresholds().unwrap_or_else(|error| {
        tracing::error!(%error, "the thresholds of eviction cannot be used");
        Vec::new()
    });
    let mut manager = Manager {
        thresholds,
        memory: Memory::default(),
        disks: None,
        layout: Layout::One,
        garbage,
        node_changed,
        shared: Arc::clone(&shared),
    };
    let looking = async move {
        loop {
            match manager.look().await {
                Some(uid) => {
                    let evictions = &manager.shared.evictions;
                    if tokio::time::timeout(PATIENCE, evictions.until_cleared(&uid)).await.is_err() {
                        tracing::info!(uid, "an evicted pod takes its time");
                    }
                }
                None => tokio::time::sleep(LOOK).await,
            }
        }
    };
    tokio::select! {
        () = shared.shutdown.cancelled() => {}
        () = looking => {}
    }
}

impl Manager {
    /// Looks once. Returns the pod that was evicted, if one was.
    async fn look(&mut self) -> Option<String> {
        self.find_disks().await;
        let looked = Instant::now();
        let seen = usage::observe(&self.shared, self.disks.as_ref());
        let transition = self.shared.config.eviction.pressure_transition_period;
        let (met, conditions) = self.memory.take(&self.thresholds, &seen, transition, Instant::now());
        let is_new = self.shared.evictions.pressure.send_if_modified(|known| {
            let is_new = *known != conditions;
            known.clone_from(&conditions);
            is_new
        });
        if is_new {
            self.node_changed.notify_one();
        }
        let mut active = self.active();
        if met.is_empty() && !active.iter().any(|pod| rank::has_limits(pod)) {
            return None;
        }
        let usage = match usage::of_pods(&self.shared, &active).await {
            Ok(usage) => usage,
            Err(status) => {
                tracing::debug!(%status, "what pods use is not known");
                return None;
            }
        };
        if let Some(uid) = self.over_limits(&active, &usage) {
            return Some(uid);
        }
        let threshold = rank::first(&met)?.clone();
        self.node_event(threshold.signal.resource());
        if self.reclaim(&threshold).await {
            return None;
        }
        let parts = layout::parts(self.layout, threshold.signal);
        rank::rank(&mut active, threshold.signal, parts, &usage);
        for threshold in &met {
            let age = looked.elapsed().as_secs_f64();
            instruments::EVICTION_AGES.with_label_values(&[threshold.signal.name()]).observe(age);
        }
        let pod = active.iter().find(|pod| !is_critical(pod))?;
        let own = usage.get(&names::uid(pod));
        let message = rank::message(pod, threshold.signal, &met, &seen, own);
        let grace = threshold.grace.map_or(AT_ONCE, |_| self.shared.config.eviction.max_pod_grace_period);
        let disruption = Some(message.clone());
        let eviction = Eviction { reason: EVICTED, message, grace, disruption };
        Some(self.evict(pod, threshold.signal.name(), eviction))
    }

    /// Finds out, once, where the runtime has its things, and so what the thresholds of those disks are.
    async fn find_disks(&mut self) {
        if self.disks.is_some() {
            return;
        }
        match RuntimeDisks::ask(&self.shared.cri).await {
            Ok(disks) => {
                self.layout = Layout::of(&self.shared.config.root_dir, &disks);
                let thresholds = std::mem::take(&mut self.thresholds);
                let (thresholds, ignored) = layout::with_containers(thresholds, self.layout);
                self.thresholds = thresholds;
                if !ignored.is_empty() {
                    let error = ignored.join("\n");
                    tracing::error!(
                        error,
                        "eviction manager: found conflicting containerfs eviction. Ignoring."
                    );
                }
                self.disks = Some(disks);
            }
            Err(status) => tracing::debug!(%status, "where the runtime has its things is not known"),
        }
    }

    /// The pods that may be running and are not to be evicted yet.
    fn active(&self) -> Vec<Arc<Pod>> {
        let mut pods = self.shared.active_pods();
        pods.retain(|pod| self.shared.evictions.of(&names::uid(pod)).is_none());
        pods
    }

    /// Evicts the first pod that uses more of the disk than it may.
    fn over_limits(&self, pods: &[Arc<Pod>], usage: &HashMap<String, PodUsage>) -> Option<String> {
        let with_rootfs = self.layout == Layout::One;
        pods.iter().filter(|pod| !is_critical(pod)).find_map(|pod| {
            let (signal, message) = rank::over_its_limits(pod, usage.get(&names::uid(pod))?, with_rootfs)?;
            let eviction = Eviction { reason: EVICTED, message, grace: AT_ONCE, disruption: None };
            Some(self.evict(pod, signal, eviction))
        })
    }

    fn evict(&self, pod: &Arc<Pod>, signal: &str, eviction: Eviction) -> String {
        instruments::EVICTED.with_label_values(&[signal]).inc();
        self.shared.pod_event(pod, EventType::Warning, EVICTED, eviction.message.clone());
        let uid = names::uid(pod);
        self.shared.evictions.decide(uid.clone(), eviction);
        uid
    }

    /// Gives back what nobody uses. Whether that was enough.
    async fn reclaim(&self, threshold: &Threshold) -> bool {
        let possible = layout::reclaim(self.layout, threshold.signal);
        if !possible.containers && !possible.images {
            return false;
        }
        if possible.containers {
            crate::garbage::remove_dead_containers(&self.shared).await;
        }
        if possible.images {
            self.garbage.remove_unused(&self.shared).await;
        }
        let seen = usage::observe(&self.shared, self.disks.as_ref());
        !self.thresholds.iter().any(|t| t.is_met(&seen, true))
    }

    fn node_event(&self, resource: &str) {
        let message = format!("Attempting to reclaim {resource}");
        let node = self.shared.node_reference();
        self.shared.events.event(&node, EventType::Warning, "EvictionThresholdMet", message);
    }
}

#[cfg(test)]
mod tests {
    use super::threshold::Observation;
    use super::*;

    #[test]
    fn conditions_outlast_what_was_short_and_soft_thresholds_wait() {
        let config = EvictionConfig {
            hard: [("memory.available".to_owned(), "100".to_owned())].into(),
            soft: [("memory.available".to_owned(), "200".to_owned())].into(),
            soft_grace_period: [("memory.available".to_owned(), Duration::from_secs(30))].into(),
            ..EvictionConfig::default()
        };
        let thresholds = config.thresholds().unwrap();
        let (mut memory, start) = (Memory::default(), Instant::now());
        let mut look = |available: i64, after: u64| {
            let seen =
                Observations::from([(Signal::MemoryAvailable, Observation { available, capacity: 1000 })]);
            let now = start + Duration::from_secs(after);
            let (met, conditions) = memory.take(&thresholds, &seen, Duration::from_mins(1), now);
            (met.len(), conditions.len())
        };
        for (available, after, expected) in [
            (300, 0, (0, 0)),
            (150, 10, (0, 1)),
            (150, 30, (0, 1)),
            (150, 40, (1, 1)),
            (50, 41, (2, 1)),
            (300, 50, (0, 1)),
            (300, 102, (0, 0)),
            (150, 103, (0, 1)),
        ] {
            assert_eq!(look(available, after), expected, "{available} after {after} s");
        }
    }

    #[test]
    fn the_mark_is_made_once() {
        let mut status = PodStatus::default();
        mark(&mut status, Some(1), "low");
        mark(&mut status, Some(1), "again");
        let conditions = status.conditions.unwrap();
        assert_eq!((conditions.len(), conditions[0].message.as_deref()), (1, Some("low")));
    }
}
