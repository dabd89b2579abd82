//! The beginning of a pod: whether the node takes it, and who goes for that.

use krate_client::EventType;

use super::Worker;
use crate::admission::{self, Refusal};
use crate::eviction::{Eviction, is_critical};
use crate::status::is_over;
use crate::{instruments, names, preemption, topology};

/// Whether the node takes a pod.
pub(super) enum Admission {
    Taken,
    /// Others are going so that it finds room.
    Waits,
    Refused,
}

impl Worker {
    /// Whether the node takes the pod. One that it runs already was taken before.
    pub(super) async fn admit(&mut self) -> Admission {
        if self.is_admitted || !self.seen.containers.is_empty() || !self.seen.sandboxes.is_empty() {
            self.is_admitted = true;
            return Admission::Taken;
        }
        if !self.preempted.is_empty() {
            if self.preempted.iter().any(|uid| self.shared.evictions.may_run(uid)) {
                return Admission::Waits;
            }
            // What they had is this pod's now, whatever the API knows of it.
            self.is_admitted = true;
            return Admission::Taken;
        }
        let Err(refusal) = admission::admit(&self.shared, &self.pod) else {
            self.free_what_is_over();
            if let Err(refusal) = topology::admit(&self.shared, &self.pod).await {
                self.refuse(refusal.reason, &refusal.message);
                return Admission::Refused;
            }
            self.is_admitted = true;
            return Admission::Taken;
        };
        if !refusal.short.is_empty() && is_critical(&self.pod) {
            return self.preempt(&refusal);
        }
        self.refuse(refusal.reason, &refusal.message);
        Admission::Refused
    }

    /// What pods had that have ended is there for others as soon as that is told, though it is not cleared away yet.
    fn free_what_is_over(&self) {
        for pod in self.shared.all_pods() {
            if pod.status.as_ref().and_then(|s| s.phase.as_deref()).is_some_and(is_over) {
                self.shared.take_back(&names::uid(&pod));
            }
        }
    }

    fn refuse(&mut self, reason: &str, message: &str) {
        instruments::REFUSED.with_label_values(&[reason]).inc();
        self.shared.pod_event(&self.pod, EventType::Warning, reason, message.to_owned());
        self.failed = Some((reason.to_owned(), format!("Pod was rejected: {message}")));
    }

    /// Has others go for a pod that the node must not do without.
    fn preempt(&mut self, refusal: &Refusal) -> Admission {
        let others = admission::beside(&self.shared, &self.pod);
        match preemption::victims(&self.pod, &others, &refusal.short) {
            Ok(victims) => {
                for victim in victims {
                    self.shared.pod_event(
                        &victim,
                        EventType::Warning,
                        preemption::REASON,
                        preemption::MESSAGE,
                    );
                    let grace = victim.spec.as_ref().and_then(|s| s.termination_grace_period_seconds);
                    let uid = names::uid(&victim);
                    self.preempted.push(uid.clone());
                    let eviction = Eviction {
                        reason: preemption::REASON,
                        message: preemption::MESSAGE.to_owned(),
                        grace: grace.unwrap_or(super::ending::GRACE).max(1),
                        disruption: Some(preemption::CONDITION.to_owned()),
                    };
                    let resource = refusal.short.first().map_or("", |short| short.resource);
                    instruments::PREEMPTED.with_label_values(&[resource]).inc();
                    self.shared.evictions.decide(uid, eviction);
                }
                Admission::Waits
            }
            Err(why) => {
                let message = format!(
                    "Unexpected error while attempting to recover from admission failure: preemption: error finding \
                     a set of pods to preempt: {why}"
                );
                self.refuse("UnexpectedAdmissionError", &message);
                Admission::Refused
            }
        }
    }
}
