//! The task that follows one plugin: asks for its status, and takes a new seed when the plugin has a new key.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::api::StatusResponse;
use super::client::Client;
use super::envelope::{Asked, State, seconds};
use super::object::wrong_key_id;
use crate::error::Error;
use crate::metrics::{Metrics, hash};

/// How often a plugin is asked, and what follows from its silence.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// A plugin that is well is asked this often.
    pub every: Duration,
    pub every_while_ill: Duration,
    /// How long a seed is written with after the plugin last said that its key holds. The difference to `every` is how
    /// long a plugin may be away before writes fail.
    pub written_with: Duration,
    /// How long an answer is an answer to others who ask.
    pub good_for: Duration,
    pub good_for_while_ill: Duration,
}

impl Default for Timing {
    /// Upstream's.
    fn default() -> Self {
        Timing {
            every: Duration::from_mins(1),
            every_while_ill: Duration::from_secs(10),
            written_with: Duration::from_mins(3),
            good_for: Duration::from_secs(20),
            good_for_while_ill: Duration::from_secs(3),
        }
    }
}

pub struct Probe {
    name: String,
    client: Arc<Client>,
    metrics: Arc<Metrics>,
    state: Arc<ArcSwapOption<State>>,
    timing: Timing,
    /// The version that the plugin's first answer named.
    version: Option<String>,
    last: Option<(Instant, Result<(), Error>)>,
}

impl Probe {
    pub fn new(
        name: &str,
        client: Arc<Client>,
        metrics: Arc<Metrics>,
        state: Arc<ArcSwapOption<State>>,
        timing: Timing,
    ) -> Self {
        Probe { name: name.to_owned(), client, metrics, state, timing, version: None, last: None }
    }

    /// Looks after the plugin until it is stopped, and at once whenever it is asked.
    pub async fn run(mut self, mut asked: mpsc::Receiver<Asked>, stop: CancellationToken) {
        loop {
            let next = match &self.last {
                None => Instant::now(),
                Some((at, Ok(()))) => *at + self.timing.every,
                Some((at, Err(_))) => *at + self.timing.every_while_ill,
            };
            let look = async {
                tokio::select! {
                    biased;
                    Some(answer) = asked.recv() => {
                        let found = self.check().await;
                        let _ = answer.send(found);
                    }
                    () = tokio::time::sleep_until(next) => {
                        let _ = self.check().await;
                    }
                }
            };
            tokio::select! {
                () = look => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Whether the plugin is well, now or some seconds ago.
    async fn check(&mut self) -> Result<(), Error> {
        if let Some((at, last)) = &self.last {
            let good_for = if last.is_ok() { self.timing.good_for } else { self.timing.good_for_while_ill };
            if at.elapsed() < good_for {
                return last.clone();
            }
        }
        let found = match self.client.status().await {
            Ok(status) => self.judge(status).await,
            Err(error) => Err(error.while_doing(format!(
                "failed to perform status section of the healthz check for KMS Provider {}, error",
                self.name
            ))),
        };
        if let Err(error) = &found {
            tracing::warn!(%error, name = self.name, "kms plugin failed health check probe");
        }
        self.last = Some((Instant::now(), found.clone()));
        found
    }

    async fn judge(&mut self, status: StatusResponse) -> Result<(), Error> {
        let mut errors = Vec::new();
        if status.healthz != "ok" {
            errors.push(Error::new(format!("got unexpected healthz status: {}", status.healthz)));
        }
        if matches!(status.version.as_str(), "v2" | "v2beta1") {
            let first = self.version.get_or_insert_with(|| status.version.clone());
            if *first != status.version {
                errors.push(Error::new(format!(
                    "KMSv2 API version should not change after the initial status response version {first}, got {}",
                    status.version
                )));
            }
        } else {
            errors.push(Error::new(format!("expected KMSv2 API version v2, got {}", status.version)));
        }
        if let Some((label, wrong)) = wrong_key_id(&status.key_id) {
            self.metrics.invalid.with_label_values(&[self.name.as_str(), label]).inc();
            let hash = hash(&status.key_id);
            errors.push(Error::new(format!("got invalid KMSv2 KeyID hash \"{hash}\": {wrong}")));
        } else {
            self.metrics.named(&self.name, &status.key_id);
            errors.extend(self.follow_key(&status.key_id).await.err());
        }
        match Error::all(errors) {
            None => Ok(()),
            Some(error) => {
                Err(error.while_doing(format!("kmsv2 Provider {} is not healthy, error", self.name)))
            }
        }
    }

    /// Takes a new seed if the plugin has another key; else the one there is may be written with for longer. When that
    /// fails the old one stays, for as long as it may.
    async fn follow_key(&self, key_id: &str) -> Result<(), Error> {
        let state = self.state.load_full();
        if let Some(state) = state.as_ref().filter(|state| state.key_id() == key_id) {
            self.state.store(Some(Arc::new(state.renewed(self.timing.written_with))));
            return Ok(());
        }
        let made = State::generate(&self.client, &self.metrics, self.timing.written_with).await;
        let (given, error) = match made {
            Ok(made) if made.key_id() == key_id => {
                tracing::debug!(name = self.name, key = hash(key_id), "rotated to another key");
                self.state.store(Some(Arc::new(made)));
                return Ok(());
            }
            Ok(made) => (hash(made.key_id()), "<nil>".to_owned()),
            Err(error) => (String::new(), error.to_string()),
        };
        let (state_error, held, expires) = match &state {
            None => ("got unexpected nil transformer", String::new(), "0001-01-01T00:00:00Z".to_owned()),
            Some(state) => ("<nil>", hash(state.key_id()), seconds(state.expires_at()).to_string()),
        };
        Err(Error::new(format!(
            "failed to rotate DEK useSeed=true, errState={state_error}, errGen={error}, statusKeyIDHash=\"{}\", \
             encryptKeyIDHash=\"{given}\", stateKeyIDHash=\"{held}\", expirationTimestamp={expires}",
            hash(key_id)
        )))
    }
}
