//! A configuration in use: its providers by resource, its plugins, and how another takes its place.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use krate_api::duration;
use prometheus::Registry;
use tokio::time::Instant;

use crate::config::Configuration;
use crate::error::Error;
use crate::kms::{Envelope, Timing};
use crate::metrics::Metrics;
use crate::provider::{Opened, Provider, Providers};
use crate::resources::{Rules, name_of, resource_of};

/// How long the plugins of another configuration may take to be well, at least.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often they are asked meanwhile.
const ASK_EVERY: Duration = Duration::from_millis(100);

const NO_VERSION_1: &str = "KMSv1 is deprecated and will only receive security updates going forward. Use KMSv2 instead.  Set --feature-gates=KMSv1=true to use the deprecated KMSv1 feature.";

/// Which values are encrypted, and how.
pub struct Encryption {
    in_use: ArcSwap<InUse>,
    metrics: Arc<Metrics>,
    reloads: bool,
    timing: Timing,
}

struct InUse {
    rules: Rules,
    plugins: Vec<Arc<Envelope>>,
    /// What all plugins together may take to answer.
    patience: Duration,
}

impl Encryption {
    /// By a configuration; `hash` names it in metrics, `server` this server. With `reloads` another may take its place.
    ///
    /// # Errors
    /// What is wrong with it, in upstream's words.
    pub async fn new(
        config: Configuration,
        hash: &str,
        server: &str,
        reloads: bool,
        timing: Timing,
    ) -> Result<Arc<Self>, String> {
        let metrics = Arc::new(Metrics::new(server));
        let in_use = ArcSwap::from_pointee(InUse::new(config, reloads, timing, &metrics).await?);
        metrics.uses(hash);
        Ok(Arc::new(Encryption { in_use, metrics, reloads, timing }))
    }

    /// Puts another configuration into the place of this one, once its plugins are well. Operations under way end as
    /// they began.
    ///
    /// # Errors
    /// It is wrong, or a plugin of it is not well; this one stays in use.
    pub async fn replace(&self, config: Configuration, hash: &str) -> Result<(), String> {
        let replaced = async {
            let other = InUse::new(config, self.reloads, self.timing, &self.metrics).await?;
            other.until_well().await?;
            Ok(other)
        };
        match replaced.await {
            Ok(other) => {
                self.in_use.store(Arc::new(other));
                self.metrics.reloaded(true);
                self.metrics.uses(hash);
                Ok(())
            }
            Err(error) => {
                self.metrics.reloaded(false);
                Err(error)
            }
        }
    }

    /// Another configuration could not even be read.
    pub fn could_not_reload(&self) {
        self.metrics.reloaded(false);
    }

    /// Whether there is anything whose health could be asked for (the check `kms-providers`).
    pub fn is_checked(&self) -> bool {
        self.reloads || !self.in_use.load().plugins.is_empty()
    }

    /// Whether all plugins are well.
    ///
    /// # Errors
    /// What is wrong with which.
    pub async fn check(&self) -> Result<(), Error> {
        let in_use = self.in_use.load_full();
        in_use.check().await
    }

    /// What is counted, to be shown with the server's own metrics.
    pub fn metrics(&self) -> Registry {
        self.metrics.collector()
    }

    /// What is stored under `key` of a value.
    pub(crate) fn seal(&self, key: &[u8], value: Bytes) -> Result<Bytes, Error> {
        let Some((group, resource)) = resource_of(key) else { return Ok(value) };
        let in_use = self.in_use.load_full();
        match in_use.rules.of(group, resource) {
            Some(providers) => providers.seal(&value, key, &name_of(group, resource), &self.metrics),
            None => Ok(value),
        }
    }

    /// The value of what is stored under `key`.
    pub(crate) async fn open(&self, key: &[u8], value: &Bytes) -> Result<Opened, Error> {
        let Some((group, resource)) = resource_of(key) else { return Opened::unsealed(value) };
        let in_use = self.in_use.load_full();
        match in_use.rules.of(group, resource) {
            Some(providers) => providers.open(value, key, &name_of(group, resource), &self.metrics).await,
            None => Opened::unsealed(value),
        }
    }
}

impl InUse {
    async fn new(
        config: Configuration,
        reloads: bool,
        timing: Timing,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, String> {
        let config = config.defaulted();
        let errors = config.validate(reloads);
        if !errors.is_empty() {
            return Err(errors.aggregate());
        }
        let building = |error: String| format!("error while building transformers: {error}");
        let mut in_use = InUse { rules: Rules::default(), plugins: Vec::new(), patience: Duration::ZERO };
        for resource in &config.resources {
            let mut providers = Vec::new();
            for given in &resource.providers {
                let provider = match &given.kms {
                    Some(kms) if kms.api_version == "v1" => return Err(building(NO_VERSION_1.to_owned())),
                    Some(kms) => {
                        let timeout = duration::parse(kms.timeout.as_deref().unwrap_or_default());
                        let timeout = timeout.map_or(Duration::ZERO, jiff::SignedDuration::unsigned_abs);
                        in_use.patience += timeout;
                        let envelope =
                            Envelope::start(&kms.name, &kms.endpoint, timeout, timing, metrics).await;
                        let envelope = Arc::new(envelope.map_err(|error| building(error.to_string()))?);
                        in_use.plugins.push(Arc::clone(&envelope));
                        Provider::Kms { prefix: format!("k8s:enc:kms:v2:{}:", kms.name), envelope }
                    }
                    None => Provider::keyed(given).map_err(|error| building(error.to_string()))?,
                };
                providers.push(Arc::new(provider));
            }
            let providers = Providers(providers);
            for name in &resource.resources {
                in_use.rules.add(name, &providers).map_err(building)?;
            }
        }
        Ok(in_use)
    }

    async fn check(&self) -> Result<(), Error> {
        let mut errors = Vec::new();
        for (i, plugin) in self.plugins.iter().enumerate() {
            errors.extend(plugin.check().await.err().map(|e| e.while_doing(format!("kms-provider-{i}"))));
        }
        Error::all(errors).map_or(Ok(()), Err)
    }

    async fn until_well(&self) -> Result<(), String> {
        let end = Instant::now() + PATIENCE.max(self.patience * 2);
        loop {
            let Err(error) = self.check().await else { return Ok(()) };
            if Instant::now() >= end {
                return Err(format!(
                    "health check for new transformers failed, polling error timed out waiting for the condition: {error}"
                ));
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }
}
