//! The end of a pod: it is told to go, has nothing more to do, or has taken too long.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use krate_client::{EventType, is_not_found};
use kube::Api;
use kube::api::{DeleteParams, Preconditions};
use tokio::time::Instant;

use super::{AGAIN, Stage, Worker};
use crate::blocking::blocking;
use crate::static_pods::is_static;
use crate::status::is_over;
use crate::{names, sandbox, stop, volumes};

/// Seconds that a pod has to end, when it does not say.
pub(super) const GRACE: i64 = 30;

impl Worker {
    /// The grace period that the pod asks for.
    pub(super) fn own_grace(&self) -> i64 {
        self.pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds).unwrap_or(GRACE).max(1)
    }

    /// Whether all must stop now, and within how many seconds.
    pub(super) fn asked_to_end(&mut self) -> Option<i64> {
        let meta = &self.pod.metadata;
        let eviction = self.shared.evictions.of(&self.uid);
        if self.removed || meta.deletion_timestamp.is_some() {
            // Even a pod that is to go at once has a second.
            let grace = meta.deletion_grace_period_seconds.unwrap_or(self.own_grace()).max(1);
            return Some(eviction.map_or(grace, |eviction| eviction.grace.min(grace)));
        }
        if self.stage != Stage::Active {
            // It may have become urgent meanwhile.
            return eviction.map(|eviction| eviction.grace);
        }
        if self.pod.status.as_ref().and_then(|s| s.phase.as_deref()).is_some_and(is_over) {
            return (!self.starts_what_is_over()).then(|| self.own_grace());
        }
        if let Some(eviction) = eviction {
            self.failed = Some((eviction.reason.to_owned(), eviction.message));
            self.disrupted = eviction.disruption;
            return Some(eviction.grace);
        }
        let deadline = self.pod.spec.as_ref().and_then(|s| s.active_deadline_seconds)?;
        let began = self.pod.status.as_ref().and_then(|s| s.start_time.as_ref())?.0;
        let left = deadline - Timestamp::now().duration_since(began).as_secs();
        if left > 0 {
            self.wake_after(Duration::from_secs(left.unsigned_abs()));
            return None;
        }
        let message = "Pod was active on the node longer than the specified deadline";
        self.failed = Some(("DeadlineExceeded".to_owned(), message.to_owned()));
        self.shared.pod_event(&self.pod, EventType::Normal, "DeadlineExceeded", message);
        Some(self.own_grace())
    }

    /// Whether what is being started ran so briefly that it is over before its start was told: that comes first.
    pub(super) fn starts_what_is_over(&self) -> bool {
        let is_over = |name: &String| self.seen.containers.iter().any(|c| c.name() == name && c.is_exited());
        self.starting.is_some() && self.being_started.iter().all(is_over)
    }

    /// Begins to stop all, or to hurry.
    pub(super) fn end(&mut self, grace: i64) {
        match self.stage {
            Stage::Ended => return self.shared.evictions.stopped(&self.uid),
            Stage::Ending(known) if known <= grace => return,
            Stage::Ending(_) | Stage::Active => {}
        }
        self.stage = Stage::Ending(grace);
        self.probes.calm();
        let running = self.starting.take();
        if let Some(job) = self.stopping.take() {
            job.abort();
        }
        let (shared, pod, uid) = (Arc::clone(&self.shared), Arc::clone(&self.pod), self.uid.clone());
        self.stopping = Some(tokio::spawn(async move {
            if let Some(job) = running {
                // What it has begun must be over before what there is can be seen.
                job.abort();
                let _ = job.await;
            }
            let seen = crate::observed::Observed::read(&shared.cri, &uid).await.map_err(|s| s.to_string())?;
            stop::pod(shared, pod, seen, grace).await
        }));
    }

    /// The stopping has come to an end.
    pub(super) fn stopped(&mut self, outcome: Option<Result<(), String>>) {
        match outcome {
            Some(Ok(())) => {
                self.stage = Stage::Ended;
                self.shared.evictions.stopped(&self.uid);
            }
            Some(Err(error)) => {
                let message = format!("error killing pod: {error}");
                self.shared.pod_event(&self.pod, EventType::Warning, "FailedKillPod", message);
                self.stop_again();
            }
            None => self.stop_again(),
        }
    }

    fn stop_again(&mut self) {
        let Stage::Ending(grace) = self.stage else { return };
        let (shared, pod, uid) = (Arc::clone(&self.shared), Arc::clone(&self.pod), self.uid.clone());
        self.stopping = Some(tokio::spawn(async move {
            tokio::time::sleep(AGAIN).await;
            let seen = crate::observed::Observed::read(&shared.cri, &uid).await.map_err(|s| s.to_string())?;
            stop::pod(shared, pod, seen, grace).await
        }));
    }

    /// Takes everything away that a pod that has ended needs no more; all of it, once it is told to go. Whether the pod
    /// is gone.
    pub(super) async fn clean_up(&mut self) -> bool {
        if self.stage != Stage::Ended || self.seen.any_running() {
            return false;
        }
        let is_leaving = self.removed || self.pod.metadata.deletion_timestamp.is_some();
        if is_leaving && !self.is_told() && !self.removed {
            // Its last status is not told yet; telling it is being tried again.
            return false;
        }
        if is_leaving {
            for sandbox in &self.seen.sandboxes {
                if let Err(status) = self.shared.cri.remove_sandbox(&sandbox.id).await {
                    tracing::warn!(sandbox = sandbox.id, %status, "a sandbox could not be removed");
                    self.wake_after(AGAIN);
                    return false;
                }
            }
        }
        if let Err(error) = self.take_away(is_leaving).await {
            tracing::warn!(pod = %names::full(&self.pod), %error, "something of a pod could not be removed");
            self.wake_after(AGAIN);
            return false;
        }
        self.shared.evictions.cleared(&self.uid);
        if !is_leaving {
            return false;
        }
        if is_static(&self.pod) {
            return self.remove_mirror().await;
        }
        self.removed || self.delete().await
    }

    async fn take_away(&mut self, is_leaving: bool) -> std::io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let (uid, pod) = (self.uid.clone(), Arc::clone(&self.pod));
        self.shared.objects.release(&self.uid);
        self.shared.trust_bundles.release(&self.uid);
        if let Some(certificates) = &self.shared.certificates {
            certificates.release(&self.uid);
        }
        self.shared.images.forget(&self.uid);
        self.shared.take_back(&self.uid);
        // Nobody sets up what is being taken away.
        let mut mounted = Arc::clone(&self.volumes).lock_owned().await;
        mounted.close();
        let pod_dir = shared.config.pod_dir(&uid);
        volumes::release_parts(&pod_dir).await?;
        // Drivers unmount what they have mounted themselves.
        shared.csi.release(&uid).await.map_err(std::io::Error::other)?;
        blocking(move || {
            volumes::tear_down(&pod_dir)?;
            shared.tally.over(&uid);
            drop(mounted);
            shared.cgroups.remove(&uid)?;
            if is_leaving {
                let logs = sandbox::log_directory(&shared.config, &pod);
                match std::fs::remove_dir_all(logs) {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                    other => other?,
                }
            }
            Ok(())
        })
        .await
    }

    /// Tells the API that nothing of the pod is left. Whether the API has let go of it.
    async fn delete(&mut self) -> bool {
        let api: Api<Pod> = Api::namespaced(self.shared.client.clone(), &names::namespace(&self.pod));
        let parameters = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: Some(self.uid.clone()), resource_version: None }),
            ..DeleteParams::default()
        };
        let name = self.pod.metadata.name.clone().unwrap_or_default();
        match api.delete(&name, &parameters).await {
            Ok(_) => true,
            // Gone, or another pod of the same name.
            Err(error) if is_not_found(&error) || krate_client::is_conflict(&error) => true,
            Err(error) => {
                tracing::debug!(pod = %names::full(&self.pod), %error, "the API does not let go of a pod");
                self.wake_after(AGAIN);
                false
            }
        }
    }

    /// After something failed, nothing is started for a while.
    pub(super) fn backing_off(&mut self, after: Duration) {
        self.quiet_until = Some(Instant::now() + after);
    }

    pub(super) fn is_backing_off(&mut self) -> bool {
        let Some(until) = self.quiet_until else { return false };
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            self.quiet_until = None;
            return false;
        }
        self.wake_after(left);
        true
    }
}
