//! Fetching images from registries.

use std::sync::Arc;

use futures::TryStreamExt;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::archive::{Counted, decompress, described};
use super::reference::Reference;
use super::store::{Image, Store};
use super::{ImageError, ProgressFn};
use crate::config::Registries;

/// Who we say we are to a registry.
#[derive(Clone, Debug)]
pub enum Credentials {
    Anonymous,
    Basic { user: String, password: String },
    Token(String),
}

/// Fetches the image called `name` and keeps it under that name. Mirrors are tried first.
pub async fn pull(
    store: &Arc<Store>,
    registries: &Registries,
    name: &Reference,
    credentials: &Credentials,
    progress: Arc<dyn Fn(super::Progress) + Send + Sync>,
) -> Result<Image, ImageError> {
    let mut last = None;
    let mirrors = registries.mirrors.get(&name.registry).cloned().unwrap_or_default();
    for host in mirrors.iter().chain([&name.registry]) {
        let from = Reference { registry: host.clone(), ..name.clone() };
        // A secret is for the registry that it was given for, not for its mirrors.
        let anonymous = Credentials::Anonymous;
        let credentials = if *host == name.registry { credentials } else { &anonymous };
        match pull_from(store, registries, &from, name, credentials, &progress).await {
            Ok(image) => return Ok(image),
            Err(error) => {
                tracing::debug!(%host, %error, "pull failed");
                last = Some(error);
            }
        }
    }
    Err(last.unwrap_or_else(|| ImageError::Invalid(format!("no registry for {name}"))))
}

async fn pull_from(
    store: &Arc<Store>,
    registries: &Registries,
    from: &Reference,
    name: &Reference,
    credentials: &Credentials,
    progress: &Arc<dyn Fn(super::Progress) + Send + Sync>,
) -> Result<Image, ImageError> {
    let protocol =
        if is_plain(&from.registry, registries) { ClientProtocol::Http } else { ClientProtocol::Https };
    // The registry's client takes the process's cryptography, and has none of its own.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = oci_client::Client::new(ClientConfig { protocol, ..ClientConfig::default() });
    let auth = match credentials {
        Credentials::Anonymous => RegistryAuth::Anonymous,
        Credentials::Basic { user, password } => RegistryAuth::Basic(user.clone(), password.clone()),
        Credentials::Token(token) => RegistryAuth::Bearer(token.clone()),
    };
    let failed = |source| ImageError::Registry { name: name.to_string(), source: Box::new(source) };
    let wanted = match (&from.digest, &from.tag) {
        (Some(digest), _) => {
            oci_client::Reference::with_digest(from.registry.clone(), from.repository.clone(), digest.clone())
        }
        (None, tag) => oci_client::Reference::with_tag(
            from.registry.clone(),
            from.repository.clone(),
            tag.clone().unwrap_or_else(|| "latest".into()),
        ),
    };
    let (manifest, digest, config, list_digest) =
        client.pull_manifest_and_config_and_list_digest(&wanted, &auth).await.map_err(failed)?;
    let (id, config) = described(store, config.as_bytes())?;
    if config.rootfs.diff_ids.len() != manifest.layers.len() {
        return Err(ImageError::Invalid(format!("{name} has not as many layers as it says")));
    }
    for (diff_id, layer) in config.rootfs.diff_ids.iter().zip(&manifest.layers) {
        if store.has_layer(diff_id) {
            continue;
        }
        // The stream checks the digest of what it carries.
        let stream = client.pull_blob_stream(&wanted, layer).await.map_err(failed)?;
        let reader = StreamReader::new(Box::pin(stream.map_err(std::io::Error::other)));
        let (store, diff_id, progress) = (Arc::clone(store), diff_id.clone(), Arc::clone(progress));
        let total = u64::try_from(layer.size).unwrap_or(0);
        let bridge = SyncIoBridge::new(reader);
        tokio::task::spawn_blocking(move || {
            let progress: ProgressFn<'_> = &*progress;
            store.add_layer(&diff_id, decompress(Counted::new(bridge, &diff_id, total, progress))?)
        })
        .await
        .map_err(std::io::Error::other)??;
    }
    let tag = name.tag.is_some().then(|| Reference { digest: None, ..name.clone() }.to_string());
    let digest = name.at(list_digest.as_ref().unwrap_or(&digest));
    Ok(store.keep(&id, config, tag, Some(digest))?)
}

/// Whether a registry is spoken to without encryption.
fn is_plain(registry: &str, registries: &Registries) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    let loopback = host == "localhost"
        || host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    loopback || registries.insecure.iter().any(|insecure| insecure == registry)
}

#[cfg(test)]
mod tests;
