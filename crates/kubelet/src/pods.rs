//! The pods of this node: a worker for each, woken by what the API and the runtime tell, and the end of whatever the
//! runtime has of pods that are no more.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::Pod;
use krate_client::{Event, Informer};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::{Id, JoinSet};

use crate::shared::SharedRef;
use crate::signal::Signal;
use crate::worker::{Desired, Handle, Worker};
use crate::{names, volumes};

/// How often all is looked at without anything having happened, and how often where the runtime tells of no events.
const RELIST: Duration = Duration::from_mins(1);
const RELIST_WITHOUT_EVENTS: Duration = Duration::from_secs(1);
/// Seconds that the containers of a forgotten pod have.
const ORPHAN_GRACE: i64 = 1;

/// What the runtime tells.
enum Told {
    /// Something happened to the pod of this UID.
    Pod(String),
    /// Something may have been missed.
    All,
}

/// The workers, by UID.
#[derive(Default)]
struct Workers {
    handles: HashMap<String, Arc<Handle>>,
    tasks: JoinSet<()>,
    uids: HashMap<Id, String>,
}

/// Runs the pods of `informer` until the kubelet ends.
pub async fn run(shared: SharedRef, informer: Informer<Pod>) {
    let mut told_by_api = informer.subscribe();
    let (send, mut told_by_runtime) = mpsc::unbounded_channel();
    let listener = tokio::spawn(listen(Arc::clone(&shared), send));
    let mut workers = Workers::default();
    let mut synced = std::pin::pin!(informer.synced());
    let mut is_synced = false;
    loop {
        tokio::select! {
            () = shared.shutdown.cancelled() => break,
            Some(event) = told_by_api.recv() => workers.api(&shared, event),
            Some(told) = told_by_runtime.recv() => {
                match told {
                    Told::Pod(uid) => if let Some(handle) = workers.handles.get(&uid) {
                        handle.signal.runtime_changed();
                    },
                    Told::All => {
                        workers.handles.values().for_each(|handle| handle.signal.runtime_changed());
                        if is_synced {
                            workers.orphans(&shared);
                        }
                    }
                }
            }
            () = &mut synced, if !is_synced => {
                is_synced = true;
                // The events of the first list are in the channel already.
                while let Ok(event) = told_by_api.try_recv() {
                    workers.api(&shared, event);
                }
                workers.orphans(&shared);
            }
            Some(ended) = workers.tasks.join_next_with_id(), if !workers.tasks.is_empty() => {
                let id = match &ended {
                    Ok((id, ())) => *id,
                    Err(error) => error.id(),
                };
                workers.ended(&shared, id, ended.is_err());
            }
        }
    }
    listener.abort();
    while workers.tasks.join_next().await.is_some() {}
}

impl Workers {
    fn api(&mut self, shared: &SharedRef, event: Event<Pod>) {
        let (pod, removed) = match event {
            Event::Added(pod) | Event::Modified { new: pod, .. } => (pod, false),
            Event::Deleted(pod) => (pod, true),
        };
        let uid = names::uid(&pod);
        if let Some(handle) = self.handles.get(&uid) {
            {
                let mut desired = handle.desired.lock();
                desired.removed |= removed;
                desired.pod = pod;
            }
            handle.signal.wake();
            return;
        }
        if !removed {
            self.begin(shared, uid, Desired { pod, removed });
        }
    }

    fn begin(&mut self, shared: &SharedRef, uid: String, desired: Desired) {
        let handle = Arc::new(Handle { desired: Mutex::new(desired), signal: Arc::new(Signal::default()) });
        let worker = Worker::new(Arc::clone(shared), Arc::clone(&handle));
        let id = self.tasks.spawn(worker.run()).id();
        self.uids.insert(id, uid.clone());
        self.handles.insert(uid, handle);
    }

    /// A worker has ended: its pod is gone. One that panicked is put back to work.
    fn ended(&mut self, shared: &SharedRef, id: Id, panicked: bool) {
        let Some(uid) = self.uids.remove(&id) else { return };
        let Some(handle) = self.handles.remove(&uid) else { return };
        if panicked && !shared.shutdown.is_cancelled() {
            tracing::error!(uid, "a pod's worker panicked; another one takes over");
            let desired = handle.desired.lock().clone();
            self.begin(shared, uid, desired);
        }
    }

    /// Stops and removes what there is of pods that nobody knows any more.
    fn orphans(&self, shared: &SharedRef) {
        let known: HashSet<String> = self.handles.keys().cloned().collect();
        let shared = Arc::clone(shared);
        tokio::spawn(async move {
            if let Err(status) = remove_orphans(&shared, &known).await {
                tracing::debug!(%status, "orphans could not be removed");
            }
        });
    }
}

async fn remove_orphans(shared: &SharedRef, known: &HashSet<String>) -> Result<(), tonic::Status> {
    let sandboxes = shared.cri.sandboxes(None).await?;
    let containers = shared.cri.containers(None).await?;
    let uid = |labels: &HashMap<String, String>| labels.get(names::POD_UID).cloned();
    let is_orphan = |labels: &HashMap<String, String>| uid(labels).is_some_and(|uid| !known.contains(&uid));
    for container in containers.iter().filter(|c| is_orphan(&c.labels)) {
        shared.cri.stop_container(&container.id, ORPHAN_GRACE).await?;
        shared.cri.remove_container(&container.id).await?;
    }
    for sandbox in sandboxes.iter().filter(|s| is_orphan(&s.labels)) {
        shared.cri.stop_sandbox(&sandbox.id).await?;
        shared.cri.remove_sandbox(&sandbox.id).await?;
    }
    let (root, known) = (shared.config.root_dir.clone(), known.clone());
    let shared = Arc::clone(shared);
    let swept = tokio::task::spawn_blocking(move || {
        for uid in volumes::pods(&root).into_iter().filter(|uid| !known.contains(uid)) {
            if let Err(error) = volumes::tear_down(&shared.config.pod_dir(&uid)) {
                tracing::debug!(uid, %error, "an orphan's directory could not be removed");
            }
        }
        for uid in shared.cgroups.pods().into_iter().filter(|uid| !known.contains(uid)) {
            if let Err(error) = shared.cgroups.remove(&uid) {
                tracing::debug!(uid, %error, "an orphan's control group could not be removed");
            }
        }
    });
    swept.await.map_err(|e| tonic::Status::internal(e.to_string()))
}

/// Follows the runtime's events. When they break off, or there are none, all is looked at.
async fn listen(shared: SharedRef, send: mpsc::UnboundedSender<Told>) {
    let mut pause = RELIST_WITHOUT_EVENTS / 20;
    loop {
        match shared.cri.runtime().get_container_events(cri::GetEventsRequest {}).await {
            Ok(stream) => {
                pause = RELIST_WITHOUT_EVENTS / 20;
                let mut events = stream.into_inner();
                if send.send(Told::All).is_err() {
                    return;
                }
                loop {
                    let told = match tokio::time::timeout(RELIST, events.next()).await {
                        Ok(Some(Ok(event))) => match event.pod_sandbox_status.and_then(|s| s.metadata) {
                            Some(metadata) => Told::Pod(metadata.uid),
                            None => continue,
                        },
                        Ok(Some(Err(_)) | None) => break,
                        Err(_) => Told::All,
                    };
                    if send.send(told).is_err() {
                        return;
                    }
                }
            }
            Err(status) => tracing::debug!(%status, "the runtime tells of no events"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RELIST_WITHOUT_EVENTS);
        if send.send(Told::All).is_err() {
            return;
        }
    }
}
