//! Events that go many at once, so that no request waits for them.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use super::event::Record;
use super::metrics::Metrics;
use super::options::Batch;
use super::sink::Destination;

/// A queue of events, and the task that empties it.
pub struct Buffer {
    /// Gone once it is closed.
    queue: Mutex<Option<mpsc::Sender<Arc<Record>>>>,
    task: Mutex<Option<JoinHandle<()>>>,
    metrics: Arc<Metrics>,
}

impl Buffer {
    /// Must be called within a tokio runtime.
    pub fn start(to: Arc<Destination>, options: Batch, metrics: Arc<Metrics>) -> Self {
        let (queue, events) = mpsc::channel(options.buffer_size);
        let task = tokio::spawn(empty(events, to, options, Arc::clone(&metrics)));
        Buffer { queue: Mutex::new(Some(queue)), task: Mutex::new(Some(task)), metrics }
    }

    /// Takes an event, or loses it if there is no room.
    pub fn push(&self, record: Arc<Record>) {
        let error = match &*self.queue.lock() {
            None => "audit backend shut down",
            Some(queue) => match queue.try_send(Arc::clone(&record)) {
                Ok(()) => return,
                Err(_) => "audit buffer queue blocked",
            },
        };
        self.metrics.lost("buffered", error, std::iter::once(&*record));
    }

    /// Waits until all that was taken has been sent.
    pub async fn close(&self) {
        drop(self.queue.lock().take());
        let task = self.task.lock().take();
        if let Some(task) = task {
            let _ = task.await;
        }
    }
}

/// Sends what comes, in batches, until the queue is closed and empty.
async fn empty(
    mut events: mpsc::Receiver<Arc<Record>>,
    to: Arc<Destination>,
    options: Batch,
    metrics: Arc<Metrics>,
) {
    let mut throttle = options.throttle.map(|(rate, burst)| Throttle::new(rate, burst));
    let mut sending = JoinSet::new();
    loop {
        let (batch, is_last) = collect(&mut events, options).await;
        if !batch.is_empty() {
            if let Some(throttle) = &mut throttle {
                throttle.accept().await;
            }
            if options.concurrent {
                let (to, metrics) = (Arc::clone(&to), Arc::clone(&metrics));
                sending.spawn(async move { to.send(&batch, &metrics).await });
                while sending.try_join_next().is_some() {}
            } else {
                to.send(&batch, &metrics).await;
            }
        }
        if is_last {
            break;
        }
    }
    while sending.join_next().await.is_some() {}
}

/// The next batch, full or as full as it became in time; and whether the queue has ended.
async fn collect(events: &mut mpsc::Receiver<Arc<Record>>, options: Batch) -> (Vec<Arc<Record>>, bool) {
    let until = (options.max_size > 1).then(|| Instant::now() + options.max_wait);
    let mut batch = Vec::new();
    while batch.len() < options.max_size {
        let event = match until {
            None => events.recv().await,
            Some(until) => match tokio::time::timeout_at(until, events.recv()).await {
                Ok(event) => event,
                Err(_) => return (batch, false),
            },
        };
        match event {
            Some(event) => batch.push(event),
            None => return (batch, true),
        }
    }
    (batch, false)
}

/// So many a second, and so many at once after a pause.
struct Throttle {
    every: Duration,
    burst: u32,
    /// When the next is due, were there no burst.
    next: Instant,
}

impl Throttle {
    fn new(rate: f32, burst: u32) -> Self {
        let every = Duration::from_secs_f32(1.0 / rate.max(f32::MIN_POSITIVE));
        Throttle { every, burst: burst.max(1), next: Instant::now() }
    }

    async fn accept(&mut self) {
        let now = Instant::now();
        let next = self.next.max(now);
        self.next = next + self.every;
        let due = next.checked_sub(self.every * (self.burst - 1)).unwrap_or(now);
        tokio::time::sleep_until(due).await;
    }
}
