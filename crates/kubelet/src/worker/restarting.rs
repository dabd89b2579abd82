//! When a container may start that has run before: after a failure it waits, longer each time.

use jiff::Timestamp;
use krate_client::EventType;

use super::Worker;
use crate::backoff::{Backoff, go_duration};
use crate::observed::ContainerSeen;
use crate::{names, spec};

impl Worker {
    /// Whether a container's back-off lets it start now; if not, that is what it waits for.
    pub(super) fn may_start(&mut self, name: &str) -> bool {
        if self.killing.iter().any(|id| self.seen.current(name).is_some_and(|c| c.id() == id)) {
            return false;
        }
        let Some(ended) = self.seen.current(name).filter(|c| c.is_exited()) else { return true };
        let (id, finished, now) = (ended.id().to_owned(), ended.finished(), Timestamp::now());
        let is_under_way = self.starting.is_some() && self.being_started.contains(name);
        if is_under_way || self.faultless.contains(name) {
            return true;
        }
        // Why it could not be started is told until that is tried again.
        let is_told = |(reason, _): &(String, String)| reason != "CrashLoopBackOff";
        if self.is_backing_off() && self.waiting.lock().get(name).is_some_and(is_told) {
            return true;
        }
        let Some(failed) = self.failure(name) else { return true };
        let backoff = *self.backoff(name);
        let Some(mut wait) = backoff.wait(failed, now) else { return true };
        if self.replaced.remove(&id) {
            // It is not replaced in one go, and so its own end is a failure like any other.
            wait = backoff.wait(finished, now).unwrap_or(wait);
        }
        let message = format!(
            "back-off {} restarting failed container={name} pod={}",
            go_duration(backoff.delay()),
            names::full(&self.pod)
        );
        let known =
            self.waiting.lock().insert(name.to_owned(), ("CrashLoopBackOff".to_owned(), message.clone()));
        if known.is_none_or(|(reason, _)| reason != "CrashLoopBackOff") {
            let said =
                format!("Back-off restarting failed container {name} in pod {}", names::full(&self.pod));
            self.shared.container_event(&self.pod, name, EventType::Warning, "BackOff", said);
        }
        self.wake_after(wait);
        false
    }

    /// The failure that a start comes after. To a container that the kubelet itself has killed to start it anew, that is
    /// the one before: upstream kills and starts in one go, and judges by what it saw when it began.
    fn failure(&self, name: &str) -> Option<Timestamp> {
        let ended = self.seen.current(name).filter(|c| c.is_exited())?;
        if !self.replaced.contains(ended.id()) {
            return Some(ended.finished());
        }
        self.seen.last_two(name).1.filter(|c| c.is_exited()).map(ContainerSeen::finished)
    }

    /// How a container waits after failures. One that has been given another image has not failed yet, as upstream has it.
    fn backoff(&mut self, name: &str) -> &mut Backoff {
        let found = self.pod.spec.as_ref().and_then(|spec| spec::find(spec, name));
        let hash = found.map(|(_, container)| names::container_hash(&container)).unwrap_or_default();
        let longest = self.shared.config.longest_backoff;
        self.backoffs.entry(format!("{name}_{hash}")).or_insert_with(|| Backoff::up_to(longest))
    }

    pub(super) fn note_starts(&mut self, starting: &[String]) {
        let now = Timestamp::now();
        self.being_started = starting.iter().cloned().collect();
        for name in starting {
            if self.faultless.remove(name) {
                self.waiting.lock().remove(name);
                continue;
            }
            if self.seen.current(name).is_some_and(ContainerSeen::is_exited) {
                if let Some(failed) = self.failure(name) {
                    self.backoff(name).next(failed, now);
                }
                self.waiting.lock().remove(name);
            }
        }
    }
}
