//! How much history is kept.

use crate::{
    backend::Backend,
    types::{Error, Revision},
};
use std::{sync::Arc, time::Duration};

/// Upstream's `--etcd-compaction-interval`.
pub const DEFAULT_INTERVAL: Duration = Duration::from_mins(5);

/// Compacts every interval to where the store stood an interval ago, as upstream does: between one and two
/// intervals of history can be read and watched.
pub struct Compactor {
    backend: Arc<dyn Backend>,
    interval: Duration,
}

impl Compactor {
    pub fn new(backend: Arc<dyn Backend>, interval: Duration) -> Self {
        Compactor { backend, interval }
    }

    /// Runs until it is dropped. A compaction that fails is tried again an interval later.
    pub async fn run(self) {
        let mut last = None;
        loop {
            last = self.step(last).await.or(last);
            tokio::time::sleep(self.interval).await;
        }
    }

    /// One round: compacts to `before`, and says where the store stands now.
    pub async fn step(&self, before: Option<Revision>) -> Option<Revision> {
        if let Some(to) = before {
            match self.backend.compact(to).await {
                // Nothing was written since, or another server that shares the store was first.
                Ok(()) | Err(Error::Compacted { .. }) => {}
                Err(error) => tracing::warn!(%to, %error, "compaction failed"),
            }
        }
        self.backend.revision().await.ok()
    }
}
