//! The providers of a resource: the first writes, and whichever knows a value by its prefix reads it.

use std::sync::Arc;
use std::time::Instant;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;

use crate::cipher::Cipher;
use crate::config;
use crate::error::Error;
use crate::kms::Envelope;
use crate::metrics::{FROM_STORAGE, Metrics, TO_STORAGE};

/// What every encrypted value begins with; no object's JSON or protobuf does.
pub const ENCRYPTED: &[u8] = b"k8s:enc:";

/// A value as it was before it was sealed.
#[derive(Debug, PartialEq, Eq)]
pub struct Opened {
    pub plain: Bytes,
    /// It would be written otherwise today.
    pub stale: bool,
}

impl Opened {
    /// A value that nobody sealed.
    pub fn unsealed(value: &Bytes) -> Result<Self, Error> {
        if value.starts_with(ENCRYPTED) {
            return Err(Error::new("identity transformer tried to read encrypted data"));
        }
        Ok(Opened { plain: value.clone(), stale: false })
    }
}

/// One way to keep values.
pub enum Provider {
    /// As they are.
    Identity,
    /// By one of several keys, each known by its name.
    Keyed { prefix: &'static str, what: &'static str, keys: Vec<(String, Cipher)> },
    /// By a key that a plugin has.
    Kms { prefix: String, envelope: Arc<Envelope> },
}

impl Provider {
    /// By the keys of a configuration that is valid.
    pub fn keyed(given: &config::Provider) -> Result<Self, Error> {
        type Make = fn(&[u8]) -> Option<Cipher>;
        let ways: [(&Option<config::Keys>, &'static str, &'static str, Make); 3] = [
            (&given.aesgcm, "k8s:enc:aesgcm:v1:", "AES", Cipher::gcm),
            (&given.aescbc, "k8s:enc:aescbc:v1:", "AES", Cipher::cbc),
            (&given.secretbox, "k8s:enc:secretbox:v1:", "Secretbox", Cipher::secretbox),
        ];
        let Some((Some(given), prefix, what, make)) = ways.into_iter().find(|(keys, ..)| keys.is_some())
        else {
            return Ok(Provider::Identity);
        };
        let key = |key: &config::Key| {
            let secret = BASE64_STANDARD.decode(&key.secret).map_err(|error| {
                Error::new(format!("could not obtain secret for named key {}: {error}", key.name))
            })?;
            let cipher = make(&secret).ok_or_else(|| {
                Error::new(format!("error while creating cipher for named key {}", key.name))
            })?;
            Ok((format!("{}:", key.name), cipher))
        };
        Ok(Provider::Keyed { prefix, what, keys: given.keys.iter().map(key).collect::<Result<_, _>>()? })
    }

    fn prefix(&self) -> &str {
        match self {
            Provider::Identity => "",
            Provider::Keyed { prefix, .. } => prefix,
            Provider::Kms { prefix, .. } => prefix,
        }
    }

    fn seal(&self, plain: &Bytes, place: &[u8]) -> Result<Bytes, Error> {
        match self {
            Provider::Identity => Ok(plain.clone()),
            Provider::Keyed { prefix, what, keys } => {
                let Some((name, cipher)) = keys.first() else { return Err(no_key(what)) };
                // The longest that is put around a value: a nonce of 24 bytes and a tag of 16.
                let mut out = Vec::with_capacity(prefix.len() + name.len() + plain.len() + 40);
                out.extend_from_slice(prefix.as_bytes());
                out.extend_from_slice(name.as_bytes());
                cipher.seal(plain, place, &mut out)?;
                Ok(out.into())
            }
            Provider::Kms { prefix, envelope } => {
                let mut out = prefix.clone().into_bytes();
                envelope.seal(plain, place, &mut out)?;
                Ok(out.into())
            }
        }
    }

    /// Opens what stands behind the provider's prefix.
    async fn open(&self, value: &Bytes, place: &[u8]) -> Result<Opened, Error> {
        match self {
            Provider::Identity => Opened::unsealed(value),
            Provider::Keyed { prefix, what, keys } => {
                let rest = &value[prefix.len()..];
                let mut errors = Vec::new();
                for (i, (name, cipher)) in keys.iter().enumerate() {
                    let Some(sealed) = rest.strip_prefix(name.as_bytes()) else { continue };
                    match cipher.open(sealed, place) {
                        Ok(plain) => return Ok(Opened { plain: plain.into(), stale: i != 0 }),
                        Err(error) => errors.push(error),
                    }
                }
                Err(Error::all(errors).unwrap_or_else(|| no_key(what)))
            }
            Provider::Kms { prefix, envelope } => {
                let (plain, stale) = envelope.open(&value[prefix.len()..], place).await?;
                Ok(Opened { plain: plain.into(), stale })
            }
        }
    }
}

fn no_key(what: &str) -> Error {
    Error::new(format!("no matching key was found for the provided {what} transformer"))
}

/// The providers of some resources, in their order; never empty.
#[derive(Clone)]
pub struct Providers(pub Vec<Arc<Provider>>);

impl Providers {
    /// What is stored of a value.
    pub fn seal(
        &self,
        plain: &Bytes,
        place: &[u8],
        resource: &str,
        metrics: &Metrics,
    ) -> Result<Bytes, Error> {
        let since = Instant::now();
        let Some(first) = self.0.first() else { return Err(Error::new("no provider")) };
        let sealed = first.seal(plain, place);
        metrics.transformed(resource, TO_STORAGE, first.prefix(), since, sealed.as_ref().err());
        sealed.inspect_err(|error| tracing::error!(%error, resource, "failed to encrypt data"))
    }

    /// The value of what is stored. A provider that fails does not keep the next from trying.
    pub async fn open(
        &self,
        value: &Bytes,
        place: &[u8],
        resource: &str,
        metrics: &Metrics,
    ) -> Result<Opened, Error> {
        let since = Instant::now();
        let mut errors = Vec::new();
        for (i, provider) in self.0.iter().enumerate() {
            let prefix = provider.prefix();
            if !value.starts_with(prefix.as_bytes()) {
                continue;
            }
            let opened = provider.open(value, place).await;
            if prefix.is_empty() && opened.is_err() {
                continue;
            }
            let told = if prefix.is_empty() { "identity" } else { prefix };
            metrics.transformed(resource, FROM_STORAGE, told, since, opened.as_ref().err());
            match opened {
                Ok(opened) => return Ok(Opened { stale: opened.stale || i != 0, ..opened }),
                Err(error) => errors.push(error),
            }
        }
        let error = Error::all(errors).unwrap_or_else(|| {
            let error = Error::new("no matching prefix found");
            metrics.transformed(resource, FROM_STORAGE, "unknown", since, Some(&error));
            error
        });
        tracing::error!(%error, resource, "failed to decrypt data");
        Err(error)
    }
}
