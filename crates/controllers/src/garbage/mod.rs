//! The garbage collector: deletes what has lost its owners, and ends deletions that wait for dependents or let them go.

mod attempt;
mod graph;
mod metadata;
mod monitor;

use std::collections::HashMap;
use std::sync::Arc;

use krate_client::{Client, WorkQueue};
use parking_lot::{Mutex, RwLock};

use crate::Context;
use crate::discovery::Served;
use graph::{Graph, Work};

const WORKERS: usize = 20;

/// What monitors and workers share. The graph is locked for the length of one change, never across an await.
#[derive(Clone)]
struct Shared {
    client: Client,
    graph: Arc<Mutex<Graph>>,
    queue: WorkQueue<Work>,
    /// Served resources by group and kind.
    kinds: Arc<RwLock<HashMap<(String, String), Served>>>,
}

impl Shared {
    fn add(&self, work: Vec<Work>) {
        for item in work {
            self.queue.add(item);
        }
    }

    /// The resource of a kind. The version that an owner is named by does not matter.
    fn served(&self, api_version: &str, kind: &str) -> Option<Served> {
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        self.kinds.read().get(&(group.to_owned(), kind.to_owned())).cloned()
    }
}

pub async fn run(cx: Context) {
    let queue = WorkQueue::named("garbage_collector_attempt_to_delete");
    let shared = Shared {
        client: cx.client.clone(),
        graph: Arc::default(),
        queue: queue.clone(),
        kinds: Arc::default(),
    };
    // An owner that is not known yet would be asked for at the API: it is better to know them all first.
    if !cx.ready(monitor::start(shared.clone(), cx.shutdown.clone())).await {
        return;
    }
    cx.work("garbage-collector", attempt::Collector(shared), queue, WORKERS).await;
}
