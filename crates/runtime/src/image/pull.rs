//! Fetching images from registries.

use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use super::archive::{decompress, described};
use super::hosts;
use super::ingest::Ingest;
use super::manifest::{Descriptor, Document, Manifest};
use super::reference::Reference;
use super::registry::{Registry, RegistryError};
use super::store::{Image, Store, digest_of};
use super::{ImageError, Progress};
use crate::config::Registries;

pub use super::registry::Credentials;

/// Layers of one image that are fetched at the same time (containerd's `max_concurrent_downloads`).
const AT_ONCE: usize = 3;
/// Indexes within indexes that are followed.
const DEPTH: u8 = 4;
/// Bytes of the largest description of an image.
const MAX_CONFIG: u64 = 8 << 20;

pub type SharedProgress = Arc<dyn Fn(Progress) + Send + Sync>;

/// Fetches the image called `name` and keeps it under that name. Mirrors are asked first.
///
/// # Errors
/// No host has it, may give it to these credentials, or can be reached; or what came is not what its digest says.
/// Nothing of the image is kept then but the bytes that have come, with which a later pull goes on.
pub async fn pull(
    store: &Arc<Store>,
    registries: &Registries,
    name: &Reference,
    credentials: &Credentials,
    progress: SharedProgress,
) -> Result<Image, ImageError> {
    let pulling = Pulling::new(store, registries, name, credentials, progress)?;
    let fetched = pulling.resolve().await?;
    if let Some(image) = pulling.known(&fetched.digest)? {
        return Ok(image);
    }
    pulling.fetch(fetched).await
}

struct Pulling<'a> {
    store: &'a Arc<Store>,
    name: &'a Reference,
    hosts: Vec<Registry>,
    progress: SharedProgress,
}

/// What a name stands for. The content comes along where it had to be asked for.
struct Resolved {
    digest: String,
    content: Option<Bytes>,
}

impl<'a> Pulling<'a> {
    fn new(
        store: &'a Arc<Store>,
        registries: &Registries,
        name: &'a Reference,
        credentials: &Credentials,
        progress: SharedProgress,
    ) -> Result<Self, ImageError> {
        let mut hosts = Vec::new();
        let all = hosts::of(&name.registry, registries)?;
        let last = all.len() - 1;
        for (number, host) in all.into_iter().enumerate() {
            // A secret is for the registry that it was given for, not for its mirrors.
            let shown = if number == last { credentials.clone() } else { Credentials::Anonymous };
            let registry = Registry::new(host, &name.registry, &name.repository, shown);
            hosts.push(registry.map_err(|source| failed(name, source))?);
        }
        Ok(Self { store, name, hosts, progress })
    }

    /// Finds out the digest of the name.
    async fn resolve(&self) -> Result<Resolved, ImageError> {
        if let Some(digest) = &self.name.digest {
            return Ok(Resolved { digest: digest.clone(), content: None });
        }
        let tag = self.name.tag.as_deref().unwrap_or("latest");
        let mut last = RegistryError::Setup("no host may resolve tags".into());
        for host in self.hosts.iter().filter(|host| host.host().resolves) {
            let outcome = match host.digest(tag).await {
                Ok(Some(digest)) => Ok(Resolved { digest, content: None }),
                Ok(None) => host
                    .manifest(tag)
                    .await
                    .map(|bytes| Resolved { digest: digest_of(&bytes), content: Some(bytes) }),
                Err(error) => Err(error),
            };
            match outcome {
                Ok(resolved) => return Ok(resolved),
                Err(error) => {
                    tracing::debug!(host = %host.host().base, %error, "the tag is not resolved here");
                    last = worse(last, error);
                }
            }
        }
        Err(failed(self.name, last))
    }

    /// The image when it is here already; it gets the name.
    fn known(&self, digest: &str) -> Result<Option<Image>, ImageError> {
        let index = self.store.index()?;
        let Some(image) = index.find(&self.name.at(digest)) else { return Ok(None) };
        if !image.config.rootfs.diff_ids.iter().all(|layer| self.store.has_layer(layer)) {
            return Ok(None);
        }
        let (id, config) = (image.id.clone(), image.config.clone());
        Ok(Some(self.store.keep(&id, config, self.tag(), Some(self.name.at(digest)))?))
    }

    fn tag(&self) -> Option<String> {
        self.name.tag.is_some().then(|| Reference { digest: None, ..self.name.clone() }.to_string())
    }

    async fn fetch(&self, Resolved { digest, content }: Resolved) -> Result<Image, ImageError> {
        let content = match content {
            Some(content) => content,
            None => self.manifest(&digest).await?,
        };
        let manifest = self.for_this_machine(content).await?;
        let (id, config, _lease) = self.config(&manifest.config).await?;
        if config.rootfs.diff_ids.len() != manifest.layers.len() {
            return Err(ImageError::Invalid(format!("{} has not as many layers as it says", self.name)));
        }
        let layers: Vec<_> = config.rootfs.diff_ids.iter().cloned().zip(manifest.layers).collect();
        futures::stream::iter(layers)
            .map(|(diff_id, layer)| async move { self.layer(&diff_id, &layer).await })
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await?;
        Ok(self.store.keep(&id, config, self.tag(), Some(self.name.at(&digest)))?)
    }

    /// Follows indexes to the image that fits.
    async fn for_this_machine(&self, mut content: Bytes) -> Result<Manifest, ImageError> {
        for _ in 0..=DEPTH {
            let index = match Document::parse(&content)? {
                Document::Manifest(manifest) => return Ok(manifest),
                Document::Index(index) => index,
            };
            let fitting = index.for_this_machine();
            let Some(chosen) = fitting.first() else {
                return Err(ImageError::Invalid(format!(
                    "no match for platform in manifest {}: not found",
                    digest_of(&content)
                )));
            };
            content = self.manifest(&chosen.digest).await?;
            if chosen.size != content.len() as u64 {
                return Err(ImageError::Invalid(format!(
                    "{} has another size than it should",
                    chosen.digest
                )));
            }
        }
        Err(ImageError::Invalid("too many indexes within indexes".into()))
    }

    /// A manifest by its digest, which is checked.
    async fn manifest(&self, digest: &str) -> Result<Bytes, ImageError> {
        let mut last = RegistryError::Setup("no host may be pulled from".into());
        for host in self.hosts.iter().filter(|host| host.host().pulls) {
            match host.manifest(digest).await {
                Ok(bytes) => {
                    let actual = digest_of(&bytes);
                    if actual == digest {
                        return Ok(bytes);
                    }
                    return Err(ImageError::WrongDigest { expected: digest.to_owned(), actual });
                }
                Err(error) => last = worse(last, error),
            }
        }
        Err(failed(self.name, last))
    }

    async fn config(
        &self,
        blob: &Descriptor,
    ) -> Result<(String, super::store::ImageConfig, super::lease::Lease), ImageError> {
        if blob.size > MAX_CONFIG {
            return Err(ImageError::Invalid(format!("{} is too large to be a description", blob.digest)));
        }
        let ingest = self.ingest(&blob.digest).await?;
        ingest.fill(&self.hosts, blob, &|_| ()).await.map_err(|e| self.named(e))?;
        let mut text = Vec::new();
        ingest.reader()?.read_to_end(&mut text)?;
        let described = described(self.store, &text)?;
        ingest.remove()?;
        Ok(described)
    }

    /// One layer, unpacked. Whoever else fetches the same is waited for, and its work used.
    async fn layer(&self, diff_id: &str, blob: &Descriptor) -> Result<(), ImageError> {
        if self.store.has_layer(diff_id) {
            return Ok(());
        }
        let ingest = self.ingest(&blob.digest).await?;
        if !self.store.has_layer(diff_id) {
            ingest.fill(&self.hosts, blob, &*self.progress).await.map_err(|e| self.named(e))?;
            let (store, diff_id, packed) = (Arc::clone(self.store), diff_id.to_owned(), ingest.reader()?);
            tokio::task::spawn_blocking(move || store.add_layer(&diff_id, decompress(packed)?))
                .await
                .map_err(std::io::Error::other)??;
        }
        Ok(ingest.remove()?)
    }

    async fn ingest(&self, digest: &str) -> Result<Ingest, ImageError> {
        if !super::reference::is_digest(digest) {
            return Err(ImageError::Invalid(format!("{digest} is not a sha256 digest")));
        }
        let (store, digest) = (Arc::clone(self.store), digest.to_owned());
        let opened = tokio::task::spawn_blocking(move || Ingest::open(&store, &digest));
        Ok(opened.await.map_err(std::io::Error::other)??)
    }

    /// An error about a blob, told of the image.
    fn named(&self, error: ImageError) -> ImageError {
        match error {
            ImageError::Registry { name, source } => {
                ImageError::Registry { name: format!("{}: {name}", self.name), source }
            }
            other => other,
        }
    }
}

fn failed(name: &Reference, source: RegistryError) -> ImageError {
    ImageError::Registry { name: name.to_string(), source: Box::new(source) }
}

/// Of what several hosts say, that which tells most: a mirror that has nothing is no news.
fn worse(known: RegistryError, new: RegistryError) -> RegistryError {
    match (&known, &new) {
        (RegistryError::Denied(_), RegistryError::NotFound) => known,
        _ => new,
    }
}

#[cfg(test)]
mod tests;
