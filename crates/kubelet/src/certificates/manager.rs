//! Keeps a certificate current: asks for another when most of its time is over, or when it should say something else, and
//! puts it into use (upstream's certificate manager).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use krate_client::{CancellationToken, Client};
use krate_pki::{Current, Renewal};
use rcgen::KeyPair;
use tokio::sync::watch;

use super::figures::Figures;
use super::request::{self, Purpose, RequestError, Template};
use super::store::Store;

/// How long one request may wait for its approval and its certificate.
const APPROVAL: Duration = Duration::from_mins(15);
/// Between two attempts: at first, and at last.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(32);
/// Between two certificates, however short their lives are.
const LEAST: Duration = Duration::from_secs(1);

/// Who may be asked: as long as there is no certificate, somebody else's credentials are needed.
#[derive(Clone)]
pub struct Clients {
    pub first: Client,
    pub own: Client,
}

pub struct Manager {
    pub purpose: Purpose,
    pub store: Arc<Store>,
    pub renewal: Renewal,
    pub clients: Clients,
    /// What the certificate is to say; none: nothing can be asked for yet.
    pub template: watch::Receiver<Option<Template>>,
    /// Whether the first is to be replaced at once, whatever it says.
    pub force: bool,
    pub figures: &'static Figures,
    /// Whether the server answered as one that is well does.
    pub healthy: Arc<AtomicBool>,
}

impl Manager {
    /// Works until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.keep() => {}
        }
    }

    async fn keep(&mut self) {
        loop {
            self.until_due().await;
            let mut pause = FIRST_PAUSE;
            while let Some(template) = self.wanted() {
                // What was asked for may no longer be what is wanted.
                let mut other = self.template.clone();
                let rotated = tokio::select! {
                    rotated = self.rotate(&template) => rotated,
                    () = wait_for_other(&mut other) => continue,
                };
                let Err(error) = rotated else { break };
                self.figures.failed();
                let purpose = self.purpose.signer;
                tracing::error!(purpose, %error, "a certificate cannot be renewed; it is tried again");
                tokio::select! {
                    () = tokio::time::sleep(pause.mul_f64(rand::random_range(1.0..1.1))) => {}
                    () = wait_for_other(&mut other) => {}
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            tokio::time::sleep(LEAST).await;
        }
    }

    fn wanted(&mut self) -> Option<Template> {
        self.template.borrow_and_update().clone()
    }

    /// Waits until another certificate is wanted: until then in its time, or until it does not say what it should.
    async fn until_due(&mut self) {
        let pair = self.renewal.current().get();
        let due = pair.as_ref().map(|pair| pair.renewal());
        if let Some(due) = due.filter(|_| !self.force) {
            tracing::info!(
                purpose = self.purpose.signer,
                deadline = %jiff::Timestamp::try_from(due).unwrap_or_default(),
                "Certificate rotation deadline determined"
            );
        }
        loop {
            // Nothing can be asked for before it is known what the certificate is to say.
            if let Some(template) = self.wanted() {
                let is_met = pair.as_ref().is_some_and(|pair| template.is_met_by(pair));
                let Some(due) = due.filter(|due| !self.force && is_met && *due > SystemTime::now()) else {
                    self.force = false;
                    return;
                };
                tokio::select! {
                    () = krate_pki::until(due) => {}
                    () = wait_for_other(&mut self.template) => {}
                }
            } else {
                wait_for_other(&mut self.template).await;
            }
        }
    }

    /// Asks for a certificate for a new key, and puts it into use.
    async fn rotate(&self, template: &Template) -> Result<(), RotationError> {
        tracing::info!(purpose = self.purpose.signer, "Rotating certificates");
        let old = self.renewal.current().get();
        let client = if old.is_some() { &self.clients.own } else { &self.clients.first };
        let key = KeyPair::generate().map_err(RequestError::Made)?;
        let asked = request::ask(client, self.purpose, template, &key, None).await;
        self.healthy.store(asked.as_ref().map_or_else(is_of_health, |_| true), Ordering::Relaxed);
        let asked = asked?;
        let issued = tokio::time::timeout(APPROVAL, request::issued(client, &asked));
        let certificate = issued.await.unwrap_or(Err(RequestError::Late))?;
        let (store, key) = (Arc::clone(&self.store), key.serialize_pem());
        let kept = tokio::task::spawn_blocking(move || store.update(&certificate, &key)).await;
        let pair = kept.map_err(|error| RotationError::Kept(error.to_string()))?;
        let pair = pair.map_err(|error| RotationError::Kept(error.to_string()))?;
        if let Some(old) = old {
            self.figures.rotated(SystemTime::now().duration_since(old.not_before).unwrap_or_default());
        }
        self.renewal.set(pair);
        Ok(())
    }
}

/// Returns when what a certificate is to say is something else; never, where nobody says so.
async fn wait_for_other(template: &mut watch::Receiver<Option<Template>>) {
    if template.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[derive(Debug, thiserror::Error)]
enum RotationError {
    #[error("{0}")]
    Asked(#[from] RequestError),
    #[error("Unable to store the new cert/key pair: {0}")]
    Kept(String),
}

/// Whether an error is one of a server that is well: it does not know whoever asks, or does not let them.
fn is_of_health(error: &RequestError) -> bool {
    match error {
        RequestError::Create(kube::Error::Api(status)) => matches!(status.code, 401 | 403 | 404),
        _ => false,
    }
}

/// Returns when there has been no certificate for so long while the server is well: only another beginning helps then.
pub async fn bereft(mut current: Current, healthy: Arc<AtomicBool>, patience: Duration) {
    let mut since = Instant::now();
    loop {
        if let Some(pair) = current.get() {
            since = Instant::now();
            tokio::select! {
                () = krate_pki::until(pair.not_after) => {}
                () = current.changed() => {}
            }
            continue;
        }
        if since.elapsed() >= patience {
            if healthy.load(Ordering::Relaxed) {
                return;
            }
            tracing::error!(
                "No valid client certificate is found but the server is not responsive. A restart may be necessary to \
                 retrieve new initial credentials."
            );
        }
        let left = patience.saturating_sub(since.elapsed()).max(LONGEST_PAUSE.min(patience));
        tokio::select! {
            () = tokio::time::sleep(left) => {}
            () = current.changed() => {}
        }
    }
}
