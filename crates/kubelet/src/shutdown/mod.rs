//! Graceful node shutdown (KEP-2000, by priority KEP-2712): systemd-logind is asked to hold a shutdown up, and when one
//! begins, the node says that it is not ready, takes no pods any more, and ends those that it has, group by group.

mod groups;
mod logind;
mod record;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::join_all;
use jiff::Timestamp;
use krate_client::EventType;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::blocking::blocking;
use crate::checkpoint;
use crate::eviction::Eviction;
use crate::names;
use crate::server::text_format::{Family, one};
use crate::shared::SharedRef;

pub use logind::LogindConfig;

use groups::Group;
use logind::{Logind, LogindError};
use record::Record;

/// What the status of a pod says that ended because of it.
const REASON: &str = "Terminated";
const MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";
/// What the status of a pod says that came too late.
pub const REFUSED: &str = "NodeShutdown";
pub const REFUSAL: &str = "Pod was rejected as the node is shutting down.";
/// Why the node is not ready.
pub const NOT_READY: &str = "node is shutting down";

/// The pause before logind is asked again, and the longest that it becomes while nobody answers.
const AGAIN: Duration = Duration::from_secs(1);
const AT_LAST: Duration = Duration::from_mins(1);

/// Whether the machine shuts down, and when it did.
#[derive(Debug)]
pub struct Shutdown {
    is_under_way: watch::Sender<bool>,
    record: Mutex<Record>,
    path: PathBuf,
}

impl Shutdown {
    /// Knows of the last shutdown what the kubelet before has written below `root`.
    pub fn new(root: &Path) -> Self {
        let path = root.join("graceful_node_shutdown_state");
        let record = Mutex::new(checkpoint::load(&path));
        Shutdown { is_under_way: watch::Sender::new(false), record, path }
    }

    pub fn is_under_way(&self) -> bool {
        *self.is_under_way.borrow()
    }

    /// The times of the last one, as metrics.
    pub fn write_figures(&self, out: &mut String) {
        let record = self.record.lock().clone();
        Family::gauge(
            "kubelet_graceful_shutdown_start_time_seconds",
            "[ALPHA] Last graceful shutdown start time since unix epoch in seconds",
        )
        .rows(out, one(record::seconds(record.start)));
        Family::gauge(
            "kubelet_graceful_shutdown_end_time_seconds",
            "[ALPHA] Last graceful shutdown end time since unix epoch in seconds",
        )
        .rows(out, one(record::seconds(record.end)));
    }

    async fn note(&self, record: Record) {
        *self.record.lock() = record.clone();
        let path = self.path.clone();
        if let Err(error) = blocking(move || checkpoint::save(&path, &record)).await {
            tracing::error!(%error, "Failed to store graceful shutdown state");
        }
    }
}

/// Follows what logind tells until the kubelet ends, if pods are to have time at all when the machine shuts down.
/// `node_changed` is told when the node is ready no more, or again.
pub async fn run(shared: SharedRef, node_changed: Arc<Notify>) {
    if shared.config.shutdown.is_empty() {
        return;
    }
    let following = async {
        let mut held = Held { shared: &shared, node_changed: &node_changed, lock: None };
        let (mut pause, mut has_followed) = (AGAIN, false);
        loop {
            match held.follow().await {
                Ok(()) => (pause, has_followed) = (AGAIN, true),
                Err(error) if has_followed => {
                    tracing::error!(%error, "Unable to watch the node for shutdown events");
                }
                Err(error) => {
                    // A machine without logind may never have one: that is said once.
                    if pause == AGAIN {
                        tracing::error!(%error, "Failed to start node shutdown manager");
                    }
                    pause = (pause * 2).min(AT_LAST);
                }
            }
            tokio::time::sleep(pause).await;
        }
    };
    tokio::select! {
        () = shared.shutdown.cancelled() => {}
        () = following => {}
    }
}

/// The lock that holds a shutdown up, and for whom. It outlives the connection over which it was taken.
struct Held<'a> {
    shared: &'a SharedRef,
    node_changed: &'a Notify,
    lock: Option<OwnedFd>,
}

impl Held<'_> {
    /// Holds shutdowns up and deals with them until the connection breaks off.
    async fn follow(&mut self) -> Result<(), LogindError> {
        let logind = Logind::connect(&self.shared.config.logind).await?;
        logind.allow(groups::period(&self.shared.config.shutdown)).await?;
        let mut told = logind.shutdowns().await?;
        self.lock = Some(logind.inhibit().await?);
        tracing::debug!("a shutdown of the machine waits for its pods");
        while let Some(begins) = told.next().await {
            self.tell(begins);
            if begins {
                self.end_pods().await;
                self.lock = None;
            } else {
                self.lock = Some(logind.inhibit().await?);
            }
        }
        Ok(())
    }

    fn tell(&self, begins: bool) {
        let message = if begins {
            "Shutdown manager detected shutdown event"
        } else {
            "Shutdown manager detected shutdown cancellation"
        };
        tracing::info!("{message}");
        self.shared.events.event(&self.shared.node_reference(), EventType::Normal, "Shutdown", message);
        self.shared.node_shutdown.is_under_way.send_replace(begins);
        self.node_changed.notify_one();
    }

    /// Ends all pods, the least important first. Each group has its time and no more.
    async fn end_pods(&self) {
        let start = Timestamp::now();
        self.shared.node_shutdown.note(Record { start, ..Record::default() }).await;
        let pods = self.shared.active_pods();
        for group in groups::of(&self.shared.config.shutdown, pods) {
            self.end_group(&group).await;
        }
        self.shared.node_shutdown.note(Record { start, end: Timestamp::now() }).await;
        tracing::info!("Shutdown manager completed processing shutdown event, node will shutdown shortly");
    }

    async fn end_group(&self, group: &Group) {
        let evictions = &self.shared.evictions;
        for pod in &group.pods {
            let eviction = Eviction {
                reason: REASON,
                message: MESSAGE.to_owned(),
                grace: group.grace_of(pod),
                disruption: Some(MESSAGE.to_owned()),
            };
            evictions.decide(names::uid(pod), eviction);
        }
        let uids: Vec<String> = group.pods.iter().map(|pod| names::uid(pod)).collect();
        // Their volumes too: what serves those may be in the group that comes next.
        let all_gone = join_all(uids.iter().map(|uid| evictions.until_cleared(uid)));
        let seconds = Duration::from_secs(group.period.seconds.max(0).unsigned_abs());
        if tokio::time::timeout(seconds, all_gone).await.is_err() {
            tracing::warn!(
                priority = group.period.priority,
                seconds = group.period.seconds,
                "Shutdown manager pod killing time out"
            );
        }
    }
}
