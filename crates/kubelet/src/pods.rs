//! The pods of this node: a worker for each, woken by what the API and the runtime tell, and the end of whatever the
//! runtime has of pods that are no more.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::Pod;
use krate_client::{Api, Event, Informer};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::{Id, JoinSet};
use tokio::time::Instant;

use crate::instruments::{
    CONTAINERS_OF_POD, EVENT_SECONDS, EVENT_STREAM_FAILURES, EVENT_STREAMS, RESTARTED_PODS, RUNTIME_SEEN,
};
use crate::orphans::Orphans;
use crate::shared::SharedRef;
use crate::signal::Signal;
use crate::static_pods::{self, Source, mirrored};
use crate::worker::{Desired, Handle, Worker, delete_mirror};
use crate::{names, orphans};

/// How often all is looked at without anything having happened, and how often where the runtime tells of no events.
const RELIST: Duration = Duration::from_mins(1);
const RELIST_WITHOUT_EVENTS: Duration = Duration::from_secs(1);

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
    /// Static pods by source and UID.
    described: HashMap<Source, HashSet<String>>,
    /// Static pods that wait for the end of others of their name, or of what was there of them before; and since when.
    queued: Vec<(Arc<Pod>, Instant)>,
    /// Those of them that were there before.
    returning: HashSet<String>,
    orphans: Orphans,
}

/// Runs the pods of `informer` until the kubelet ends.
pub async fn run(shared: SharedRef, informer: Informer<Pod>) {
    let mut told_by_api = informer.subscribe();
    let (send, mut told_by_runtime) = mpsc::unbounded_channel();
    let listener = tokio::spawn(listen(Arc::clone(&shared), send));
    let (tell, mut told_by_files) = mpsc::unbounded_channel();
    let reader = tokio::spawn(static_pods::run(Arc::clone(&shared), tell));
    let mut workers = Workers::default();
    for is_static in ["", "true"] {
        RESTARTED_PODS.with_label_values(&[is_static]);
    }
    let mut synced = std::pin::pin!(informer.synced());
    let mut is_synced = false;
    loop {
        shared.loops();
        tokio::select! {
            () = shared.shutdown.cancelled() => break,
            Some(event) = told_by_api.recv() => workers.api(&shared, event),
            Some((source, pods)) = told_by_files.recv() => {
                workers.described(&shared, source, pods);
                if is_synced {
                    workers.forget_images(&shared, &informer);
                    workers.look_for_orphans(&shared);
                }
            }
            () = shared.dra.plugins.told.notified() => {
                for uid in shared.dra.concerned() {
                    if let Some(handle) = workers.handles.get(&uid) {
                        handle.signal.wake();
                    }
                }
            }
            done = workers.orphans.done() => workers.orphans(&shared, done),
            () = shared.evictions.changed() => workers.handles.values().for_each(|h| h.signal.wake()),
            Some(told) = told_by_runtime.recv() => {
                match told {
                    Told::Pod(uid) => if let Some(handle) = workers.handles.get(&uid) {
                        handle.signal.runtime_changed();
                    },
                    Told::All => {
                        workers.handles.values().for_each(|handle| handle.signal.runtime_changed());
                        if is_synced {
                            workers.look_for_orphans(&shared);
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
                workers.forget_images(&shared, &informer);
                workers.look_for_orphans(&shared);
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
    reader.abort();
    while workers.tasks.join_next().await.is_some() {}
}

impl Workers {
    fn api(&mut self, shared: &SharedRef, event: Event<Pod>) {
        let (pod, removed) = match event {
            Event::Added(pod) | Event::Modified { new: pod, .. } => (pod, false),
            Event::Deleted(pod) => (pod, true),
        };
        if let Some(of) = mirrored(&pod) {
            return self.image(shared, of, &pod, removed);
        }
        let uid = names::uid(&pod);
        if let Some(handle) = self.handles.get(&uid) {
            {
                let mut desired = handle.desired.lock();
                desired.removed |= removed;
                desired.pod = pod;
                desired.heard = Instant::now();
            }
            handle.signal.wake();
            return;
        }
        if !removed {
            self.begin_new(shared, pod, Instant::now());
        }
    }

    /// The image of a static pod in the API has changed, or is gone.
    fn image(&self, shared: &SharedRef, of: &str, image: &Arc<Pod>, removed: bool) {
        if let Some(handle) = self.handles.get(of) {
            handle.desired.lock().mirror = (!removed).then(|| Arc::clone(image));
            handle.signal.wake();
        } else if !removed && self.are_read(shared) {
            forget_image(shared, Arc::clone(image));
        }
    }

    /// Whether all sources of static pods have told something.
    fn are_read(&self, shared: &SharedRef) -> bool {
        self.described.len() == static_pods::count(shared)
    }

    /// Takes away the images of static pods that are no more.
    fn forget_images(&self, shared: &SharedRef, informer: &Informer<Pod>) {
        if !self.are_read(shared) {
            return;
        }
        for image in informer.list() {
            if mirrored(&image).is_some_and(|of| !self.handles.contains_key(of)) {
                forget_image(shared, image);
            }
        }
    }

    /// What a source of static pods tells: those that are new begin, those that are gone end.
    fn described(&mut self, shared: &SharedRef, source: Source, pods: Vec<Pod>) {
        let uids: HashSet<String> = pods.iter().map(names::uid).collect();
        let before = self.described.insert(source, uids.clone()).unwrap_or_default();
        for gone in before.difference(&uids) {
            self.queued.retain(|(pod, _)| names::uid(pod) != *gone);
            self.returning.remove(gone);
            if let Some(handle) = self.handles.get(gone) {
                handle.desired.lock().removed = true;
                handle.signal.wake();
            }
        }
        for pod in pods.into_iter().filter(|pod| !before.contains(&names::uid(pod))) {
            let uid = names::uid(&pod);
            if self.handles.contains_key(&uid) {
                self.returning.insert(uid);
            }
            self.queued.push((Arc::new(static_pods::seen(pod)), Instant::now()));
        }
        self.begin_queued(shared);
    }

    /// Begins the static pods of whose name no other runs, and of whom nothing is left from before.
    fn begin_queued(&mut self, shared: &SharedRef) {
        let name = |pod: &Pod| (names::namespace(pod), pod.metadata.name.clone());
        for (pod, heard) in std::mem::take(&mut self.queued) {
            let has_name = self.handles.values().any(|h| {
                let desired = h.desired.lock();
                static_pods::is_static(&desired.pod) && name(&desired.pod) == name(&pod)
            });
            let is_taken = has_name || self.orphans.is_going(&names::uid(&pod));
            if is_taken {
                self.queued.push((pod, heard));
            } else {
                if self.returning.remove(&names::uid(&pod)) {
                    RESTARTED_PODS.with_label_values(&["true"]).inc();
                }
                self.begin_new(shared, pod, heard);
            }
        }
    }

    /// Begins to work on a pod that was heard of then.
    fn begin_new(&mut self, shared: &SharedRef, pod: Arc<Pod>, heard: Instant) {
        let count = pod.spec.as_ref().map_or(0, |spec| spec.containers.len());
        CONTAINERS_OF_POD.observe(count as f64);
        self.begin(shared, names::uid(&pod), Desired { pod, removed: false, heard, mirror: None });
    }

    fn begin(&mut self, shared: &SharedRef, uid: String, desired: Desired) {
        let handle = Arc::new(Handle { desired: Mutex::new(desired), signal: Arc::new(Signal::default()) });
        {
            let pod = &handle.desired.lock().pod;
            if static_pods::is_static(pod) {
                shared.statics.lock().insert(uid.clone(), Arc::clone(pod));
            }
        }
        let worker = Worker::new(Arc::clone(shared), Arc::clone(&handle));
        let id = self.tasks.spawn(worker.run()).id();
        self.uids.insert(id, uid.clone());
        self.handles.insert(uid, handle);
    }

    /// A worker has ended: its pod is gone. One that panicked is put back to work.
    fn ended(&mut self, shared: &SharedRef, id: Id, panicked: bool) {
        let Some(uid) = self.uids.remove(&id) else { return };
        let Some(handle) = self.handles.remove(&uid) else { return };
        shared.statics.lock().remove(&uid);
        shared.evictions.cleared(&uid);
        shared.working.over(&uid);
        if panicked && !shared.shutdown.is_cancelled() {
            tracing::error!(uid, "a pod's worker panicked; another one takes over");
            let desired = Desired { heard: Instant::now(), ..handle.desired.lock().clone() };
            self.begin(shared, uid, desired);
        }
        self.begin_queued(shared);
    }

    /// Has what there is of pods that nobody knows any more stopped and removed.
    fn look_for_orphans(&mut self, shared: &SharedRef) {
        if !self.are_read(shared) {
            return;
        }
        shared.keep_only(&self.handles.keys().cloned().collect());
        self.orphans.look(shared);
    }

    /// A step of that is done.
    fn orphans(&mut self, shared: &SharedRef, done: orphans::Done) {
        let Workers { orphans, handles, .. } = self;
        orphans.proceed(shared, done, |uid| handles.contains_key(uid));
        self.begin_queued(shared);
    }
}

fn forget_image(shared: &SharedRef, image: Arc<Pod>) {
    let api: Api<Pod> = Api::namespaced(shared.client.clone(), &names::namespace(&image));
    tokio::spawn(async move {
        if let Err(error) = delete_mirror(&api, &image).await {
            tracing::debug!(pod = %names::full(&image), %error, "the image of a static pod could not be removed");
        }
    });
}

/// Follows the runtime's events. When they break off, or there are none, all is looked at.
async fn listen(shared: SharedRef, send: mpsc::UnboundedSender<Told>) {
    let mut pause = RELIST_WITHOUT_EVENTS / 20;
    loop {
        match shared.cri.runtime().get_container_events(cri::GetEventsRequest {}).await {
            Ok(stream) => {
                EVENT_STREAMS.inc();
                pause = RELIST_WITHOUT_EVENTS / 20;
                let mut events = stream.into_inner();
                if send.send(Told::All).is_err() {
                    return;
                }
                loop {
                    let told = match tokio::time::timeout(RELIST, events.next()).await {
                        Ok(Some(Ok(event))) => {
                            note(&event);
                            match event.pod_sandbox_status.and_then(|s| s.metadata) {
                                Some(metadata) => Told::Pod(metadata.uid),
                                None => continue,
                            }
                        }
                        Ok(Some(Err(_)) | None) => break,
                        Err(_) => Told::All,
                    };
                    if send.send(told).is_err() {
                        return;
                    }
                }
            }
            Err(status) => {
                EVENT_STREAM_FAILURES.inc();
                tracing::debug!(%status, "the runtime tells of no events");
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RELIST_WITHOUT_EVENTS);
        if send.send(Told::All).is_err() {
            return;
        }
    }
}

/// Counts how old an event is that the runtime tells, and that it tells something.
fn note(event: &cri::ContainerEventResponse) {
    let now = Timestamp::now().as_nanosecond() as i64;
    if event.created_at > 0 {
        EVENT_SECONDS.observe((now - event.created_at).max(0) as f64 / 1e9);
    }
    RUNTIME_SEEN.set(now as f64 / 1e9);
}
