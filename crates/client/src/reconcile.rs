//! The loop that every controller is: a key comes in, the world is a little closer to what was asked, and when to look
//! again goes out.

use std::fmt::{Debug, Display};
use std::future::Future;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::queue::WorkQueue;

/// When to look at a key again, events aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requeue {
    /// Not before something happens to it.
    Done,
    After(Duration),
}

/// Brings the world closer to what one key asks. Level-triggered and idempotent: it reads the newest state, whatever
/// the event was, and may be called at any time.
pub trait Reconcile: Send + Sync + 'static {
    type Key: Hash + Eq + Clone + Debug + Send + Sync + 'static;
    type Error: Display + Send;

    /// # Errors
    /// Whatever kept it from the goal; the key comes again after a back-off.
    fn reconcile(&self, key: Self::Key) -> impl Future<Output = Result<Requeue, Self::Error>> + Send;
}

/// Works `queue` off with `workers` tasks until `shutdown`. A key that fails, or panics, comes back after a back-off.
pub async fn run<R: Reconcile>(
    name: &'static str,
    reconciler: Arc<R>,
    queue: WorkQueue<R::Key>,
    workers: usize,
    shutdown: CancellationToken,
) {
    let mut tasks = JoinSet::new();
    for _ in 0..workers.max(1) {
        tasks.spawn(work(name, Arc::clone(&reconciler), queue.clone()));
    }
    shutdown.cancelled().await;
    queue.shut_down();
    while tasks.join_next().await.is_some() {}
}

async fn work<R: Reconcile>(name: &'static str, reconciler: Arc<R>, queue: WorkQueue<R::Key>) {
    while let Some(key) = queue.next().await {
        match AssertUnwindSafe(reconciler.reconcile(key.clone())).catch_unwind().await {
            Ok(Ok(again)) => {
                queue.forget(&key);
                if let Requeue::After(delay) = again {
                    queue.add_after(key.clone(), delay);
                }
            }
            Ok(Err(error)) => {
                tracing::debug!(controller = name, ?key, %error, "reconciling failed; it comes again");
                queue.add_rate_limited(key.clone());
            }
            Err(_) => {
                tracing::error!(controller = name, ?key, "reconciling panicked; it comes again");
                queue.add_rate_limited(key.clone());
            }
        }
        queue.done(&key);
    }
}

/// What the API said of a failure, or else what went wrong on the way: a line for an event.
pub fn message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// Whether the API refused because the object is not there.
pub fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// Whether the API refused because the object has changed, or is there already.
pub fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    struct Flaky {
        calls: AtomicU32,
        done: CancellationToken,
    }

    impl Reconcile for Flaky {
        type Key = u8;
        type Error = String;

        async fn reconcile(&self, _: u8) -> Result<Requeue, String> {
            match self.calls.fetch_add(1, Ordering::SeqCst) {
                0 => Err("first".into()),
                1 => panic!("second"),
                _ => {
                    self.done.cancel();
                    Ok(Requeue::Done)
                }
            }
        }
    }

    #[tokio::test]
    async fn a_key_that_fails_or_panics_comes_again() {
        let done = CancellationToken::new();
        let flaky = Arc::new(Flaky { calls: AtomicU32::new(0), done: done.clone() });
        let queue = WorkQueue::new();
        queue.add(7);
        run("flaky", Arc::clone(&flaky), queue, 1, done).await;
        assert_eq!(flaky.calls.load(Ordering::SeqCst), 3);
    }
}
