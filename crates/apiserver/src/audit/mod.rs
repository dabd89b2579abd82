//! Audit (KEP-22): who asked for what, when, and what became of it, as a policy wants it told, to a file and to a webhook.
//!
//! A request that is audited has its [`entry`] at hand wherever it is worked on, as a value of its task: whoever has
//! something to note calls [`annotate`], [`requested`] or [`responded`], which do nothing where nothing is audited.
//! Without a policy there are no entries.

mod batch;
mod entry;
mod event;
mod log_file;
mod metrics;
mod options;
mod policy;
mod sink;
mod webhook;

pub use entry::{
    Peer, annotate, around, decided, identified, impersonates, is_told, panicked, patched, requested,
    responded, undecided, unidentified,
};
pub use options::{Batch, LogOptions, Mode, Options, Truncate, WebhookOptions};
pub use policy::Policy;

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};

pub use metrics::Metrics;
use sink::Sink;

/// What a request is known by in the audit log, and in its answer.
pub const ID: HeaderName = HeaderName::from_static("audit-id");

/// The policy, and where events go.
pub struct Audit {
    policy: Policy,
    sinks: Vec<Sink>,
    metrics: Arc<Metrics>,
}

impl Audit {
    /// Opens what the options name. `None` if nothing is to be audited: without a policy, or without a place for events.
    ///
    /// # Errors
    /// An option, the policy or the webhook's file is wrong, in upstream's words.
    pub async fn open(options: &Options, metrics: &Arc<Metrics>) -> Result<Option<Arc<Self>>, String> {
        options.validate()?;
        let Some(path) = &options.policy_file else { return Ok(None) };
        let policy = Policy::load(path).map_err(|error| format!("loading audit policy file: {error}"))?;
        let mut sinks = Vec::new();
        if options.log.is_used() {
            sinks.push(Sink::log(&options.log, metrics)?);
        }
        if options.webhook.is_used() {
            sinks.push(Sink::webhook(&options.webhook, metrics).await?);
        }
        Ok((!sinks.is_empty()).then(|| Arc::new(Audit { policy, sinks, metrics: Arc::clone(metrics) })))
    }

    /// Brings what is still buffered to where it goes. Nothing is taken after that.
    pub async fn close(&self) {
        for sink in &self.sinks {
            sink.close().await;
        }
    }
}

/// The id of a request: the client's own, or a new one.
fn id(headers: &HeaderMap) -> HeaderValue {
    if let Some(id) = headers.get(ID).filter(|id| !id.is_empty()) {
        return id.clone();
    }
    let id = uuid::Builder::from_random_bytes(rand::random()).into_uuid();
    let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
    let text = id.hyphenated().encode_lower(&mut text);
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}
