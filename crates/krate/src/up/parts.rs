//! The parts of a running cluster: each runs until it is told to stop, and its end before that is a fault.

use std::future::Future;

use anyhow::Result;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

/// Starts parts. Clones share them.
#[derive(Clone)]
pub struct Parts {
    running: TaskTracker,
    ended: mpsc::UnboundedSender<anyhow::Error>,
}

impl Parts {
    /// Also gives who is told, by its reason, of a part that ended.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<anyhow::Error>) {
        let (ended, faults) = mpsc::unbounded_channel();
        (Parts { running: TaskTracker::new(), ended }, faults)
    }

    pub fn spawn<E>(&self, name: &'static str, part: impl Future<Output = Result<(), E>> + Send + 'static)
    where
        E: Into<anyhow::Error> + Send + 'static,
    {
        let ended = self.ended.clone();
        let running = tokio::spawn(part);
        self.running.spawn(async move {
            let fault = match running.await {
                Ok(Ok(())) => anyhow::anyhow!("{name} ended by itself"),
                Ok(Err(error)) => error.into().context(format!("{name} failed")),
                Err(error) => anyhow::anyhow!("{name} broke: {error}"),
            };
            let _ = ended.send(fault);
        });
    }

    /// Waits until all have ended.
    pub async fn ended(&self) {
        self.running.close();
        self.running.wait().await;
    }
}
