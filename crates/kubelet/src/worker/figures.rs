//! What is counted of the work on one pod.

use k8s_openapi::api::core::v1::Pod;

use super::{Stage, Worker};
use crate::instruments::{ENDED_CONTAINERS, POD_START_SECONDS, STATUS_SECONDS};
use crate::observed::ContainerSeen;
use crate::spec;
use crate::static_pods::is_static;
use crate::working::{Lifecycle, Worked};

impl Worker {
    /// Notes how far the pod has come.
    pub(super) fn note_lifecycle(&self) {
        let lifecycle = match self.stage {
            Stage::Active => Lifecycle::Sync,
            Stage::Ending(_) => Lifecycle::Terminating,
            Stage::Ended => Lifecycle::Terminated,
        };
        let worked = Worked { lifecycle, is_orphan: self.removed, is_static: is_static(&self.pod) };
        self.shared.working.note(&self.uid, worked);
    }

    /// Notes how long the pod took to run, once it does, if this worker has begun it.
    pub(super) fn note_start(&mut self) {
        let Some(first_seen) = self.begun else { return };
        if self.pod.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Running") {
            return;
        }
        self.begun = None;
        POD_START_SECONDS.observe(first_seen.elapsed().as_secs_f64());
    }

    /// Notes how long a change of the status took to be known to the API.
    pub(super) fn note_synced(&mut self) {
        if let Some(since) = self.untold.take() {
            STATUS_SECONDS.observe(since.elapsed().as_secs_f64());
        }
    }

    pub(super) fn count_end(&self, ended: &ContainerSeen) {
        let found = self.pod.spec.as_ref().and_then(|spec| spec::find(spec, ended.name()));
        let Some((kind, _)) = found else { return };
        let (code, reason) = (ended.status.exit_code.to_string(), ended.status.reason.as_str());
        ENDED_CONTAINERS.with_label_values(&[kind.counted(), &code, reason]).inc();
    }
}

/// Whether nobody has told yet that a pod runs, or has run.
pub(super) fn has_not_run(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).is_none_or(|phase| phase == "Pending")
}
