//! Where events go, and how: each before the request goes on, or many at once later; large ones cut.

use std::sync::Arc;

use super::batch::Buffer;
use super::event::Record;
use super::log_file::Log;
use super::metrics::Metrics;
use super::options::{LogOptions, Mode, Truncate, WebhookOptions};
use super::policy::Level;
use super::webhook::Webhook;

/// One place for events.
pub struct Sink {
    /// The largest event in bytes, if large ones are cut.
    max_event_size: Option<usize>,
    way: Way,
    metrics: Arc<Metrics>,
}

enum Way {
    Batch(Buffer),
    /// With `strict` a request fails that cannot be told of when it comes in.
    Blocking {
        to: Arc<Destination>,
        strict: bool,
    },
}

pub enum Destination {
    Log(Log),
    Webhook(Webhook),
}

impl Destination {
    /// Brings events there; whether all arrived.
    pub async fn send(&self, records: &[Arc<Record>], metrics: &Metrics) -> bool {
        let (plugin, sent) = match self {
            Destination::Log(log) => ("log", log.write(records)),
            Destination::Webhook(webhook) => ("webhook", webhook.post(records).await),
        };
        if let Err(error) = &sent {
            metrics.lost(plugin, error, records.iter().map(|record| &**record));
        }
        sent.is_ok()
    }
}

impl Sink {
    /// # Errors
    /// The file cannot be written to.
    pub fn log(options: &LogOptions, metrics: &Arc<Metrics>) -> Result<Self, String> {
        let to = Destination::Log(Log::open(options)?);
        Ok(Self::new(to, &options.mode, options.truncate, metrics))
    }

    /// # Errors
    /// The webhook's file is wrong.
    pub async fn webhook(options: &WebhookOptions, metrics: &Arc<Metrics>) -> Result<Self, String> {
        let webhook = Webhook::open(options).await;
        let to = webhook.map_err(|error| format!("initializing audit webhook: {error}"))?;
        Ok(Self::new(Destination::Webhook(to), &options.mode, options.truncate, metrics))
    }

    fn new(to: Destination, mode: &Mode, truncate: Truncate, metrics: &Arc<Metrics>) -> Self {
        let to = Arc::new(to);
        let way = match mode {
            Mode::Batch(batch) => Way::Batch(Buffer::start(to, *batch, Arc::clone(metrics))),
            Mode::Blocking => Way::Blocking { to, strict: false },
            Mode::BlockingStrict => Way::Blocking { to, strict: true },
        };
        let max_event_size = truncate.enabled.then_some(truncate.max_event_size);
        Sink { max_event_size, way, metrics: Arc::clone(metrics) }
    }

    /// Takes an event; whether the request may go on.
    pub async fn process(&self, record: &Arc<Record>) -> bool {
        let mut record = Arc::clone(record);
        if let Some(most) = self.max_event_size {
            if record.json().len() > most && record.event.level >= Level::Request {
                record = Arc::new(record.truncated());
            }
            if record.json().len() > most {
                let error = "event is too large even after truncating";
                self.metrics.lost("truncate", error, std::iter::once(&*record));
                return true;
            }
        }
        match &self.way {
            Way::Batch(buffer) => {
                buffer.push(record);
                true
            }
            Way::Blocking { to, strict } => to.send(&[record], &self.metrics).await || !strict,
        }
    }

    /// Brings what is buffered to its place.
    pub async fn close(&self) {
        if let Way::Batch(buffer) = &self.way {
            buffer.close().await;
        }
    }
}
