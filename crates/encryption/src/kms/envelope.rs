//! Values in envelopes: encrypted by a seed of this server's, which lies beside them as the plugin encrypted it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use super::api::{DecryptRequest, EncryptRequest};
use super::client::Client;
use super::object::{EncryptedObject, KEY, SEED};
use super::probe::{Probe, Timing};
use crate::cipher::{self, Gcm, Seed};
use crate::error::Error;
use crate::metrics::{FROM_STORAGE, Metrics, TO_STORAGE, hash};

/// How long a decrypted key is kept that nothing asks for.
const REMEMBERED: Duration = Duration::from_hours(24);

/// A decrypted source of keys, to read with.
enum Source {
    Key(Box<Gcm>),
    Seed(Seed),
}

impl Source {
    fn new(kind: i32, plain: &[u8]) -> Result<Self, Error> {
        if kind == SEED {
            return Ok(Source::Seed(Seed::new(plain)?));
        }
        let invalid = || Error::new(format!("crypto/aes: invalid key size {}", plain.len()));
        Gcm::new(plain).map(Box::new).map(Source::Key).ok_or_else(invalid)
    }

    fn open(&self, sealed: &[u8], place: &[u8]) -> Result<Vec<u8>, Error> {
        match self {
            Source::Key(gcm) => gcm.open(sealed, place),
            Source::Seed(seed) => seed.open(sealed, place),
        }
    }
}

/// What is written with now.
pub struct State {
    seed: Arc<Source>,
    /// All of what is stored but the value.
    template: EncryptedObject,
    source_hash: [u8; 32],
    key_hash: String,
    /// Until when it may be written with, unless the plugin says before that it still holds.
    expires: Instant,
    expires_at: Timestamp,
}

impl State {
    /// A new seed, which the plugin encrypts.
    pub async fn generate(client: &Client, metrics: &Metrics, lives: Duration) -> Result<Self, Error> {
        let (expires, expires_at) = ends(lives);
        let since = std::time::Instant::now();
        let seed = cipher::random::<{ cipher::SEED }>();
        match &seed {
            Ok(_) => metrics.generations.observe(since.elapsed().as_secs_f64()),
            Err(_) => metrics.failed_generations.inc(),
        }
        let seed = seed?;
        let request = EncryptRequest { plaintext: seed.to_vec(), uid: Uuid::new_v4().to_string() };
        let answer = client.encrypt(request).await;
        let answer = answer.map_err(|error| error.while_doing("failed to encrypt DEK, error"))?;
        let template = EncryptedObject {
            data: Vec::new(),
            key_id: answer.key_id,
            source: answer.ciphertext,
            annotations: answer.annotations,
            source_type: SEED,
        };
        template.validate_source()?;
        Ok(State {
            seed: Arc::new(Source::Seed(Seed::new(&seed)?)),
            source_hash: template.source_hash(),
            key_hash: hash(&template.key_id),
            template,
            expires,
            expires_at,
        })
    }

    /// The same, to be written with for longer.
    pub fn renewed(&self, lives: Duration) -> Self {
        let (expires, expires_at) = ends(lives);
        State {
            seed: Arc::clone(&self.seed),
            template: self.template.clone(),
            source_hash: self.source_hash,
            key_hash: self.key_hash.clone(),
            expires,
            expires_at,
        }
    }

    pub fn key_id(&self) -> &str {
        &self.template.key_id
    }

    pub fn expires_at(&self) -> Timestamp {
        self.expires_at
    }

    fn validate(&self) -> Result<(), Error> {
        if Instant::now() <= self.expires {
            return Ok(());
        }
        Err(Error::new(format!(
            "encryptedDEKSource with keyID hash \"{}\" expired at {} (current time is {})",
            self.key_hash,
            seconds(self.expires_at),
            seconds(Timestamp::now())
        )))
    }
}

fn ends(lives: Duration) -> (Instant, Timestamp) {
    let at = Timestamp::now();
    (Instant::now() + lives, at.checked_add(lives).unwrap_or(at))
}

/// To the second, as logs and errors have it.
pub fn seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

/// Asks for a look at the plugin's health; the answer may be some seconds old.
pub type Asked = oneshot::Sender<Result<(), Error>>;

/// A decrypted source, and until when it is kept.
struct Remembered {
    source: Arc<Source>,
    until: Instant,
}

/// All values whose key one plugin has.
pub struct Envelope {
    name: String,
    client: Arc<Client>,
    metrics: Arc<Metrics>,
    /// The probe's, which alone writes it.
    state: Arc<ArcSwapOption<State>>,
    sources: Mutex<HashMap<[u8; 32], Remembered>>,
    probe: mpsc::Sender<Asked>,
    _until_dropped: DropGuard,
}

impl Envelope {
    /// Begins to follow a plugin's health and key. It need not be there yet, but is waited for as long as one call may
    /// take.
    pub async fn start(
        name: &str,
        endpoint: &str,
        timeout: Duration,
        timing: Timing,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, Error> {
        let client = Client::new(name, endpoint, timeout, Arc::clone(metrics)).map_err(|error| {
            error.while_doing(format!("could not configure KMSv2-Plugin's probe \"{name}\", error"))
        })?;
        let client = Arc::new(client);
        let state = Arc::new(ArcSwapOption::empty());
        let (probe, asked) = mpsc::channel(8);
        let stop = CancellationToken::new();
        let probing = Probe::new(name, Arc::clone(&client), Arc::clone(metrics), Arc::clone(&state), timing);
        tokio::spawn(probing.run(asked, stop.clone()));
        let envelope = Envelope {
            name: name.to_owned(),
            client,
            metrics: Arc::clone(metrics),
            state,
            sources: Mutex::default(),
            probe,
            _until_dropped: stop.drop_guard(),
        };
        // What is wrong is logged by the probe, which goes on trying.
        let _ = envelope.check().await;
        Ok(envelope)
    }

    /// Whether the plugin is well.
    pub async fn check(&self) -> Result<(), Error> {
        let gone = || Error::new("the probe has ended");
        let (answer, answered) = oneshot::channel();
        self.probe.send(answer).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    fn current(&self) -> Result<Arc<State>, Error> {
        self.state.load_full().ok_or_else(|| Error::new("got unexpected nil transformer"))
    }

    /// Appends to `out` what `plain` becomes when it is stored under `place`.
    pub fn seal(&self, plain: &[u8], place: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        let state = self.current()?;
        state.validate()?;
        let Source::Seed(seed) = &*state.seed else { return Err(Error::new("a key is not written with")) };
        let object = EncryptedObject { data: seed.seal(plain, place)?, ..state.template.clone() };
        object.validate()?;
        self.remember(state.source_hash, &state.seed);
        self.metrics.used(TO_STORAGE, &self.name, &state.key_hash);
        object.encode(out).map_err(|error| Error::new(error.to_string()))
    }

    /// The value of what was stored under `place`, and whether it would be written otherwise today.
    pub async fn open(&self, sealed: &[u8], place: &[u8]) -> Result<(Vec<u8>, bool), Error> {
        let object = EncryptedObject::decode(sealed).map_err(|error| Error::new(error.to_string()))?;
        object.validate()?;
        let state = self.current()?;
        let source = self.source(&object).await?;
        let plain = source.open(&object.data, place)?;
        self.metrics.used(FROM_STORAGE, &self.name, &hash(&object.key_id));
        let stale =
            object.key_id != state.template.key_id || object.source_type != state.template.source_type;
        Ok((plain, stale))
    }

    async fn source(&self, object: &EncryptedObject) -> Result<Arc<Source>, Error> {
        debug_assert!(matches!(object.source_type, KEY | SEED), "validated");
        let hash = object.source_hash();
        // What is remembered of a source does not change, so that it may be old.
        let known = self.sources.lock().get(&hash).map(|known| Arc::clone(&known.source));
        if let Some(source) = known {
            return Ok(source);
        }
        self.metrics.misses.inc();
        let request = DecryptRequest {
            ciphertext: object.source.clone(),
            uid: Uuid::new_v4().to_string(),
            key_id: object.key_id.clone(),
            annotations: object.annotations.clone(),
        };
        let answer = self.client.decrypt(request).await;
        let answer = answer.map_err(|error| error.while_doing("failed to decrypt DEK, error"))?;
        let source = Arc::new(Source::new(object.source_type, &answer.plaintext)?);
        self.remember(hash, &source);
        Ok(source)
    }

    fn remember(&self, hash: [u8; 32], source: &Arc<Source>) {
        let now = Instant::now();
        let mut sources = self.sources.lock();
        let remembered = Remembered { source: Arc::clone(source), until: now + REMEMBERED };
        let is_new = sources.insert(hash, remembered).is_none();
        if is_new {
            sources.retain(|_, known| known.until > now);
            self.metrics.cached.with_label_values(&[&self.name]).set(sources.len() as i64);
        }
    }
}
