//! The pods that wait for a node. Active ones are taken by priority, then by time; one that was refused waits for an
//! event that may help it, and for its back-off; a gated one for its gates.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::framework::ClusterEvent;
use crate::metrics::{Line, METRICS};
use crate::nodes::Nodes;
use crate::plugins::PLUGINS;
use crate::pod::PodInfo;

/// Upstream's back-off of a pod that was tried `n` times: 1 s, doubled each time up to 10 s.
const FIRST_BACK_OFF: Duration = Duration::from_secs(1);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(10);
/// After this time a refused pod is tried again though nothing that helps was seen.
const LONGEST_WAIT: Duration = Duration::from_mins(5);

/// A set of plugins, by their rows in the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PluginSet(pub u64);

impl PluginSet {
    pub fn insert(&mut self, row: usize) {
        self.0 |= 1 << row;
    }

    pub fn contains(self, row: usize) -> bool {
        self.0 & (1 << row) != 0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Active(Reverse<i32>, u64),
    /// Until when, and whether it may be taken earlier when there is nothing else to do. It may if the cluster had
    /// refused it, and not if something had failed.
    BackOff(Instant, bool),
    /// Since when.
    Parked(Instant),
    Gated,
}

impl Place {
    fn line(self) -> Line {
        match self {
            Place::Active(..) => Line::Active,
            Place::BackOff(..) => Line::BackOff,
            Place::Parked(_) => Line::Unschedulable,
            Place::Gated => Line::Gated,
        }
    }
}

/// Why pods come to wait somewhere, as upstream's metrics tell it.
const ADDED: &str = "UnschedulablePodAdd";
const UPDATED: &str = "UnschedulablePodUpdate";
const FAILED: &str = "ScheduleAttemptFailure";
const BACK_OFF_OVER: &str = "BackoffComplete";
const NOTHING_ELSE: &str = "PopFromBackoffQ";
const WAITED_LONG: &str = "UnschedulableTimeout";

/// A pod in the queue, or taken from it.
pub struct Waiting {
    pub info: Arc<PodInfo>,
    pub attempts: u32,
    /// When it was first tried.
    pub first_tried: Option<Instant>,
    refused_by: PluginSet,
    /// Not to be tried before.
    back_off_until: Option<Instant>,
    place: Place,
}

impl Waiting {
    /// Notes for each of the plugins that refused it that it is one pod more that they keep from every node, or one less.
    fn refused(&self, more: i64) {
        let refused = PLUGINS.iter().enumerate().filter(|(row, _)| self.refused_by.contains(*row));
        for (_, of) in refused {
            METRICS.refuses(of.plugin.name(), self.info.profile(), more);
        }
    }
}

#[derive(Default)]
pub struct Queue {
    pods: HashMap<String, Waiting>,
    active: BTreeSet<(Reverse<i32>, u64, String)>,
    back_off: BTreeSet<(Instant, String)>,
    parked: BTreeSet<(Instant, String)>,
    sequence: u64,
}

fn back_off(attempts: u32) -> Duration {
    FIRST_BACK_OFF.saturating_mul(1 << attempts.saturating_sub(1).min(8)).min(LONGEST_BACK_OFF)
}

fn is_gated(info: &PodInfo) -> bool {
    info.spec().scheduling_gates.as_ref().is_some_and(|g| !g.is_empty())
}

/// Whether a change in a waiting pod itself may make it schedulable.
fn may_help_itself(old: &PodInfo, new: &PodInfo) -> bool {
    old.labels != new.labels || old.pod.spec != new.pod.spec
}

impl Queue {
    /// Takes a pod in, or takes over what has changed in it.
    pub fn put(&mut self, info: Arc<PodInfo>, now: Instant) {
        let uid = info.uid.clone();
        let Some(mut old) = self.take_out(&uid) else {
            let place = if is_gated(&info) { Place::Gated } else { self.next_active(&info) };
            METRICS.comes(place.line(), ADDED);
            self.put_in(Waiting {
                info,
                attempts: 0,
                first_tried: None,
                refused_by: PluginSet::default(),
                back_off_until: None,
                place,
            });
            return;
        };
        let helps = may_help_itself(&old.info, &info);
        old.info = info;
        let was = old.place.line();
        old.place = match old.place {
            _ if is_gated(&old.info) => Place::Gated,
            Place::Gated => self.next_active(&old.info),
            Place::Parked(_) if helps => self.place_after_back_off(&old, now),
            // The priority never changes, so neither does the place.
            place => place,
        };
        if old.place.line() != was {
            METRICS.comes(old.place.line(), UPDATED);
        }
        self.put_in(old);
    }

    /// Forgets a pod.
    pub fn remove(&mut self, uid: &str) {
        if let Some(gone) = self.take_out(uid) {
            gone.refused(-1);
        }
    }

    /// The next pod to be tried. It is out of the queue until it is put back.
    pub fn pop(&mut self, now: Instant) -> Option<Waiting> {
        self.promote(now);
        let uid = if let Some((_, _, uid)) = self.active.first() {
            uid.clone()
        } else {
            // With nothing else to do there is no reason to let a pod wait out its back-off.
            let may_come =
                |uid: &String| self.pods.get(uid).is_some_and(|w| matches!(w.place, Place::BackOff(_, true)));
            let uid = self.back_off.iter().find(|(_, uid)| may_come(uid)).map(|(_, uid)| uid.clone())?;
            METRICS.comes(Line::Active, NOTHING_ELSE);
            uid
        };
        let mut waiting = self.take_out(&uid)?;
        waiting.attempts += 1;
        waiting.first_tried.get_or_insert(now);
        waiting.refused(-1);
        waiting.refused_by = PluginSet::default();
        Some(waiting)
    }

    /// Puts back a pod that no node would take: it waits for an event that may help.
    pub fn park(&mut self, mut waiting: Waiting, refused_by: PluginSet, now: Instant) {
        waiting.back_off_until = Some(now + back_off(waiting.attempts));
        waiting.refused_by = refused_by;
        waiting.place = Place::Parked(now);
        waiting.refused(1);
        METRICS.comes(Line::Unschedulable, FAILED);
        self.put_in(waiting);
    }

    /// Puts back a pod for which something failed: it is tried again after its back-off.
    pub fn retry(&mut self, mut waiting: Waiting, now: Instant) {
        waiting.place = Place::BackOff(now + back_off(waiting.attempts), false);
        METRICS.comes(Line::BackOff, FAILED);
        self.put_in(waiting);
    }

    /// Wakes the pods that the event may help.
    pub fn on_event(&mut self, nodes: &Nodes, event: ClusterEvent<'_>, now: Instant) {
        if self.parked.is_empty() {
            return;
        }
        let helps = |w: &Waiting| {
            // A pod that no plugin refused was refused for want of any node.
            w.refused_by == PluginSet::default()
                || PLUGINS
                    .iter()
                    .enumerate()
                    .any(|(row, r)| w.refused_by.contains(row) && r.plugin.may_help(&w.info, nodes, event))
        };
        let woken: Vec<String> = self
            .parked
            .iter()
            .filter(|(_, uid)| self.pods.get(uid).is_some_and(helps))
            .map(|(_, uid)| uid.clone())
            .collect();
        for uid in woken {
            self.wake(&uid, event.label(), now);
        }
    }

    /// When [`Queue::pop`] may have something new, events aside.
    pub fn next_wake(&self) -> Option<Instant> {
        let back_off = self.back_off.first().map(|(at, _)| *at);
        let parked = self.parked.first().map(|(since, _)| *since + LONGEST_WAIT);
        back_off.into_iter().chain(parked).min()
    }

    pub fn has_active(&self) -> bool {
        !self.active.is_empty()
    }

    fn wake(&mut self, uid: &str, event: &str, now: Instant) {
        if let Some(mut waiting) = self.take_out(uid) {
            waiting.place = self.place_after_back_off(&waiting, now);
            METRICS.comes(waiting.place.line(), event);
            self.put_in(waiting);
        }
    }

    fn promote(&mut self, now: Instant) {
        while let Some((_, uid)) = self.back_off.first().filter(|(at, _)| *at <= now).cloned() {
            if let Some(mut waiting) = self.take_out(&uid) {
                waiting.place = self.next_active(&waiting.info);
                METRICS.comes(Line::Active, BACK_OFF_OVER);
                self.put_in(waiting);
            }
        }
        while let Some((_, uid)) = self.parked.first().filter(|(t, _)| *t + LONGEST_WAIT <= now).cloned() {
            self.wake(&uid, WAITED_LONG, now);
        }
    }

    fn place_after_back_off(&mut self, waiting: &Waiting, now: Instant) -> Place {
        match waiting.back_off_until {
            Some(until) if until > now => Place::BackOff(until, true),
            _ => self.next_active(&waiting.info),
        }
    }

    fn next_active(&mut self, info: &PodInfo) -> Place {
        self.sequence += 1;
        Place::Active(Reverse(info.priority), self.sequence)
    }

    fn put_in(&mut self, waiting: Waiting) {
        let uid = waiting.info.uid.clone();
        METRICS.waits(waiting.place.line(), 1);
        match waiting.place {
            Place::Active(priority, n) => drop(self.active.insert((priority, n, uid.clone()))),
            Place::BackOff(until, _) => drop(self.back_off.insert((until, uid.clone()))),
            Place::Parked(since) => drop(self.parked.insert((since, uid.clone()))),
            Place::Gated => {}
        }
        self.pods.insert(uid, waiting);
    }

    fn take_out(&mut self, uid: &str) -> Option<Waiting> {
        let waiting = self.pods.remove(uid)?;
        METRICS.waits(waiting.place.line(), -1);
        match waiting.place {
            Place::Active(priority, n) => drop(self.active.remove(&(priority, n, uid.to_owned()))),
            Place::BackOff(until, _) => drop(self.back_off.remove(&(until, uid.to_owned()))),
            Place::Parked(since) => drop(self.parked.remove(&(since, uid.to_owned()))),
            Place::Gated => {}
        }
        Some(waiting)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::nodes::tests::{node, pod};

    fn names(queue: &mut Queue, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| queue.pop(now)).map(|w| w.info.uid.clone()).collect()
    }

    fn with(nodes: &mut Nodes, name: &str, spec: Value) -> Arc<PodInfo> {
        pod(nodes, name, json!({}), spec)
    }

    #[test]
    fn the_more_important_come_first_then_the_earlier() {
        let (mut queue, mut nodes, now) = (Queue::default(), Nodes::default(), Instant::now());
        for (name, priority) in [("a", 0), ("b", 10), ("c", 0), ("d", 10)] {
            queue.put(with(&mut nodes, name, json!({"containers": [], "priority": priority})), now);
        }
        queue.remove("c");
        assert_eq!(names(&mut queue, now), ["b", "d", "a"]);
    }

    #[test]
    fn a_gated_pod_waits_for_its_gates() {
        let (mut queue, mut nodes, now) = (Queue::default(), Nodes::default(), Instant::now());
        let gates = json!([{"name": "example.com/g"}]);
        queue.put(with(&mut nodes, "p", json!({"containers": [], "schedulingGates": gates})), now);
        assert!(queue.pop(now).is_none());
        queue.put(with(&mut nodes, "p", json!({"containers": []})), now);
        assert_eq!(names(&mut queue, now), ["p"]);
    }

    #[test]
    fn a_refused_pod_waits_for_what_may_help_it() {
        let (mut queue, mut nodes, now) = (Queue::default(), Nodes::default(), Instant::now());
        let fit = PLUGINS.iter().position(|r| r.plugin.name() == "NodeResourcesFit").expect("in the table");
        queue.put(with(&mut nodes, "p", json!({"containers": []})), now);
        let waiting = queue.pop(now).expect("is active");
        let mut refused_by = PluginSet::default();
        refused_by.insert(fit);
        queue.park(waiting, refused_by, now);

        queue.on_event(&nodes, ClusterEvent::NamespaceChanged, now);
        assert!(queue.pop(now).is_none(), "a namespace gives no room");
        nodes.put(&node("n", json!({})));
        let id = nodes.id("n").expect("there");
        queue.on_event(&nodes, ClusterEvent::NodeAdded(id), now);
        let waiting = queue.pop(now).expect("taken before its back-off ends, as nothing else is to do");
        queue.retry(waiting, now);
        assert!(queue.pop(now).is_none(), "a failure waits out its back-off");
        assert_eq!(queue.next_wake(), Some(now + Duration::from_secs(2)));
        assert_eq!(names(&mut queue, now + Duration::from_secs(2)), ["p"]);
    }

    #[test]
    fn a_refused_pod_is_counted_by_who_refused_it_until_it_is_tried_again() {
        const PROFILE: &str = "counted";
        let (mut queue, mut nodes, now) = (Queue::default(), Nodes::default(), Instant::now());
        let refused = || {
            let families = crate::metrics::registry().gather();
            let all = families.iter().filter(|family| family.name() == "scheduler_unschedulable_pods");
            let rows = all.flat_map(prometheus::proto::MetricFamily::get_metric);
            let ours = rows.filter(|row| row.get_label().iter().any(|label| label.value() == PROFILE));
            ours.map(|row| row.get_gauge().get_value()).sum::<f64>()
        };
        queue.put(with(&mut nodes, "p", json!({"containers": [], "schedulerName": PROFILE})), now);
        let waiting = queue.pop(now).expect("is active");
        queue.park(waiting, PluginSet(0b101), now);
        assert!((refused() - 2.0).abs() < 0.1, "two plugins refused it");
        let waiting = queue.pop(now + LONGEST_WAIT).expect("is tried again");
        assert_eq!((waiting.attempts, waiting.first_tried), (2, Some(now)));
        assert!(refused().abs() < 0.1);
        queue.park(waiting, PluginSet(1), now);
        queue.remove("p");
        assert!(refused().abs() < 0.1, "it is gone");
    }

    #[test]
    fn a_refused_pod_is_tried_again_at_last() {
        let (mut queue, mut nodes, now) = (Queue::default(), Nodes::default(), Instant::now());
        queue.put(with(&mut nodes, "p", json!({"containers": []})), now);
        let waiting = queue.pop(now).expect("is active");
        queue.park(waiting, PluginSet(1), now);
        assert!(queue.pop(now).is_none());
        assert_eq!(names(&mut queue, now + LONGEST_WAIT), ["p"]);
    }

    #[test]
    fn the_back_off_doubles_up_to_its_limit() {
        assert_eq!([1, 2, 3, 4, 5, 60].map(|n| back_off(n).as_secs()), [1, 2, 4, 8, 10, 10]);
    }
}
