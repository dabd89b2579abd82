//! A pod's resources change while it runs: what is asked is granted or put off, the runtime is told, and the API.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use krate_client::EventType;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::Worker;
use crate::cri::rpc_error;
use crate::observed::Observed;
use crate::plan::should_start;
use crate::resize::{self, Resources};
use crate::shared::SharedRef;
use crate::status::{ResizeCondition, ResizeConditions};
use crate::{names, resources};

/// How long until what was put off, or failed, is tried again.
const AGAIN: Duration = Duration::from_secs(10);

/// How far a resize has come.
#[derive(Default)]
pub struct Resize {
    granted: Option<Resources>,
    pub conditions: ResizeConditions,
    pub job: Option<JoinHandle<Result<(), String>>>,
    quiet_until: Option<Instant>,
}

impl Worker {
    /// The pod with the resources that it was granted.
    pub(super) fn as_granted(&self) -> Arc<Pod> {
        match &self.resize.granted {
            Some(granted) if !resize::same(granted, &resize::asked(&self.pod)) => {
                Arc::new(resize::with(&self.pod, granted))
            }
            _ => Arc::clone(&self.pod),
        }
    }

    /// Grants what is asked, if the node has room for it.
    pub(super) fn grant(&mut self) {
        let asked = resize::asked(&self.pod);
        let granted = self.resize.granted.get_or_insert_with(|| resize::granted(&self.pod));
        if resize::same(&asked, granted) {
            self.resize.conditions.pending = None;
            return;
        }
        let generation = self.pod.metadata.generation.unwrap_or_default();
        let used = resize::used(&self.shared.all_pods(), &self.uid);
        let mut managers = Vec::new();
        if self.shared.config.cpus.is_static {
            managers.push(("cpu", "CPU Manager policy \"static\""));
        }
        if self.shared.config.memory.is_static {
            managers.push(("memory", "Memory Manager policy \"Static\""));
        }
        let fits = match resize::fixed(&self.pod, &asked, granted, &managers) {
            Some(why) => Err(("Infeasible", why)),
            None => resize::fits(resources::pod(&self.pod), used, self.shared.node),
        };
        match fits {
            Ok(()) => {
                self.resize.granted = Some(asked);
                self.resize.quiet_until = None;
                let begun = ResizeCondition { generation, ..ResizeCondition::default() };
                self.resize.conditions = ResizeConditions { pending: None, progress: Some(begun) };
                let said = resize::summary("Pod resize started", &self.pod, generation, "");
                self.shared.pod_event(&self.pod, EventType::Normal, "ResizeStarted", said);
            }
            Err((reason, message)) => {
                let known = self.resize.conditions.pending.as_ref();
                if known.is_none_or(|k| k.reason != reason || k.generation != generation) {
                    let what = format!("Pod resize {reason}");
                    let said = resize::summary(&what, &self.pod, generation, &message);
                    let event = format!("Resize{reason}");
                    self.shared.pod_event(&self.pod, EventType::Warning, &event, said);
                }
                let pending = ResizeCondition { reason: reason.to_owned(), message, generation };
                self.resize.conditions.pending = Some(pending);
                if reason == "Deferred" {
                    self.wake_after(AGAIN);
                }
            }
        }
    }

    /// Has the runtime give to containers what they were granted.
    pub(super) fn actuate(&mut self, pod: &Arc<Pod>) {
        if self.resize.job.is_some() {
            return;
        }
        if let Some(until) = self.resize.quiet_until {
            let left = until.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                self.wake_after(left);
                return;
            }
            self.resize.quiet_until = None;
        }
        let updates = resize::updates(pod, &self.seen, self.shared.node.memory);
        if updates.is_empty() {
            self.complete(pod);
            return;
        }
        let begun = ResizeCondition {
            generation: pod.metadata.generation.unwrap_or_default(),
            ..ResizeCondition::default()
        };
        self.resize.conditions.progress.get_or_insert(begun);
        let shared = Arc::clone(&self.shared);
        let (pod, before) = (Arc::clone(pod), resize::actual(&self.pod));
        self.resize.job = Some(tokio::spawn(async move {
            let after = resources::pod(&pod);
            pod_group(&shared, &pod, resize::widest(before, after.clone()))?;
            for (id, linux) in updates {
                let told = shared.cri.update_container(&id, linux).await;
                told.map_err(|status| rpc_error(&status))?;
            }
            pod_group(&shared, &pod, after)
        }));
    }

    /// The end of a resize, once nothing has anything else than it was granted.
    fn complete(&mut self, pod: &Pod) {
        if self.resize.conditions.progress.is_none() || !self.killing.is_empty() || restarts(pod, &self.seen)
        {
            return;
        }
        let Some(progress) = self.resize.conditions.progress.take() else { return };
        let said = resize::summary("Pod resize completed", pod, progress.generation, "");
        self.shared.pod_event(&self.pod, EventType::Normal, "ResizeCompleted", said);
    }

    /// What came of telling the runtime.
    pub(super) fn actuated(&mut self, outcome: Option<Result<(), String>>) {
        let error = match outcome {
            Some(Ok(())) => return,
            Some(Err(error)) => error,
            None => "the resize broke off".to_owned(),
        };
        self.resize.quiet_until = Some(Instant::now() + AGAIN);
        self.wake_after(AGAIN);
        let Some(progress) = &mut self.resize.conditions.progress else { return };
        if progress.message != error {
            let said = resize::summary("Pod resize error", &self.pod, progress.generation, &error);
            self.shared.pod_event(&self.pod, EventType::Warning, "ResizeError", said);
        }
        "Error".clone_into(&mut progress.reason);
        progress.message = error;
    }
}

/// Whether a container is about to start again.
fn restarts(pod: &Pod, seen: &Observed) -> bool {
    pod.spec.as_ref().is_some_and(|spec| {
        spec.containers.iter().any(|c| {
            let current = seen.current(&c.name);
            current.is_some_and(|seen| !seen.is_running()) && should_start(spec, c, current)
        })
    })
}

fn pod_group(shared: &SharedRef, pod: &Pod, of: resources::PodResources) -> Result<(), String> {
    let made = shared.cgroups.create(resources::qos(pod), &names::uid(pod), &of);
    made.map(drop).map_err(|error| error.to_string())
}
