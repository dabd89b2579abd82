//! How a kubelet reaches its API server, and as whom: by a kubeconfig, or at first by one of a bootstrapper, whose rights are
//! just to ask for the certificate of a node (TLS bootstrapping).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use krate_client::{CancellationToken, Client};
use krate_pki::{Current, FileError, Pair, Renewal};
use kube::Config;
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use rcgen::KeyPair;
use serde_json::json;
use tokio::sync::watch;

use super::figures;
use super::manager::{Clients, Manager, bereft};
use super::request::{self, CLIENT, RequestError, Template};
use super::store::{Store, StoreError};

/// The prefix of a client certificate's files, and where its key is until there is one.
const PREFIX: &str = "kubelet-client";
const FIRST_KEY: &str = "kubelet-client.key.tmp";
/// How long the first certificate may take where nothing begins before.
const FIRST: Duration = Duration::from_hours(1);
/// How long a kubelet may be without a certificate while its server is well, until another beginning is left to whoever
/// starts it.
const BEREFT: Duration = Duration::from_mins(5);

/// Why the API server cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error("unable to load kubeconfig: {}: {error}", path.display())]
    Kubeconfig { path: PathBuf, error: kube::config::KubeconfigError },
    #[error("unable to load bootstrap kubeconfig: {}: {error}", path.display())]
    Bootstrap { path: PathBuf, error: kube::config::KubeconfigError },
    #[error("failed to initialize client certificate manager: {0}")]
    Store(#[from] StoreError),
    #[error("{0}")]
    File(#[from] FileError),
    #[error("{}: {error}", path.display())]
    Written { path: PathBuf, error: io::Error },
    #[error("{0}")]
    Request(#[from] RequestError),
    #[error("{0}")]
    Client(#[from] kube::Error),
}

/// What is known at the beginning.
#[derive(Clone, Debug)]
pub struct Beginning {
    pub kubeconfig: PathBuf,
    /// Whom to ask as for the first certificate.
    pub bootstrap: Option<PathBuf>,
    /// Where certificates are kept.
    pub directory: PathBuf,
    pub node_name: String,
    /// Whether the certificate is renewed (`rotateCertificates`).
    pub rotate: bool,
}

/// A way to the API server.
pub struct Access {
    pub client: Client,
    /// The client certificate, where it is renewed.
    pub identity: Option<Current>,
    healthy: Arc<AtomicBool>,
}

impl Access {
    /// Returns when there has been no certificate for five minutes although the server is well: whoever starts the kubelet
    /// may then begin again with other credentials.
    pub async fn lost(&self) {
        match &self.identity {
            Some(identity) => bereft(identity.clone(), Arc::clone(&self.healthy), BEREFT).await,
            None => std::future::pending().await,
        }
    }

    /// Where certificates are not renewed, this waits for the first.
    ///
    /// # Errors
    /// A file cannot be used; or, without renewal, no certificate is given.
    pub async fn open(of: &Beginning, shutdown: &CancellationToken) -> Result<Self, AccessError> {
        if of.rotate {
            return Self::renewed(of, shutdown).await;
        }
        if let Some(bootstrap) = &of.bootstrap
            && !is_valid(&of.kubeconfig).await
        {
            first(of, bootstrap).await?;
        }
        let config = load(&of.kubeconfig).await?;
        let healthy = Arc::default();
        // What somebody else renews in its files is used anew.
        let client = if let Some((certificate, key)) = files(&config) {
            let current = krate_pki::pair_of(&certificate, &key, shutdown.clone())?;
            krate_client::rotating(anonymous(config), current)?
        } else {
            krate_client::from_config(config)?
        };
        Ok(Access { client, identity: None, healthy })
    }

    async fn renewed(of: &Beginning, shutdown: &CancellationToken) -> Result<Self, AccessError> {
        let (asks, own) = configs(of).await?;
        let store = Arc::new(Store::open(PREFIX, &of.directory, files(&own))?);
        let there = store.current()?.filter(|pair| !pair.has_ended(SystemTime::now()));
        // One that stands in the kubeconfig itself may be of somebody with more rights, and is replaced at once.
        let (pair, force) = match there {
            Some(pair) => (Some(pair), false),
            None => (given(&own, &store)?, true),
        };
        let (renewal, current) = Renewal::new(pair);
        let client = krate_client::rotating(anonymous(own), current.clone())?;
        let healthy: Arc<AtomicBool> = Arc::default();
        // It stays as it is.
        let template = watch::channel(Some(Template::of_node(&of.node_name))).1;
        let manager = Manager {
            purpose: CLIENT,
            store,
            renewal,
            clients: Clients { first: krate_client::from_config(asks)?, own: client.clone() },
            template,
            force,
            figures: &figures::CLIENT,
            healthy: Arc::clone(&healthy),
        };
        tokio::spawn(manager.run(shutdown.clone()));
        Ok(Access { client, identity: Some(current), healthy })
    }
}

async fn load(path: &Path) -> Result<Config, AccessError> {
    read(path).await.map_err(|error| AccessError::Kubeconfig { path: path.to_owned(), error })
}

async fn read(path: &Path) -> Result<Config, kube::config::KubeconfigError> {
    Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &KubeConfigOptions::default()).await
}

/// The same server without saying who asks.
fn anonymous(mut config: Config) -> Config {
    config.auth_info = AuthInfo::default();
    config
}

/// The files of a client certificate and its key, where a kubeconfig names such.
fn files(config: &Config) -> Option<(PathBuf, PathBuf)> {
    let auth = &config.auth_info;
    if auth.client_certificate_data.is_some() || auth.client_key_data.is_some() {
        return None;
    }
    Some((auth.client_certificate.as_ref()?.into(), auth.client_key.as_ref()?.into()))
}

/// What stands in the kubeconfig itself: a certificate and its key, PEM.
fn inline(config: &Config) -> Option<(String, String)> {
    use base64::Engine as _;
    let auth = serde_json::to_value(&config.auth_info).ok()?;
    let text = |field: &str| {
        let bytes = base64::engine::general_purpose::STANDARD.decode(auth.get(field)?.as_str()?).ok()?;
        String::from_utf8(bytes).ok()
    };
    Some((text("client-certificate-data")?, text("client-key-data")?))
}

/// The pair that stands in a kubeconfig itself, kept from now on.
fn given(config: &Config, store: &Store) -> Result<Option<Pair>, AccessError> {
    let pair = inline(config).map(|(certificate, key)| store.update(&certificate, &key)).transpose()?;
    Ok(pair.filter(|pair| !pair.has_ended(SystemTime::now())))
}

/// As whom certificates are asked for while there is none, and what leads to the server after that. Where the kubeconfig
/// has no certificate that is good, it is written, to lead to the one that will be kept.
async fn configs(of: &Beginning) -> Result<(Config, Config), AccessError> {
    let Some(bootstrap) = &of.bootstrap else {
        let config = load(&of.kubeconfig).await?;
        return Ok((config.clone(), config));
    };
    if is_valid(&of.kubeconfig).await {
        let config = load(&of.kubeconfig).await?;
        return Ok((config.clone(), config));
    }
    let failed = |error| AccessError::Bootstrap { path: bootstrap.clone(), error };
    let asks = read(bootstrap).await.map_err(failed)?;
    let store = Store::open(PREFIX, &of.directory, None)?;
    write(&of.kubeconfig, bootstrap, &store.current_path())?;
    Ok((asks.clone(), anonymous(asks)))
}

/// Whether a kubeconfig has a client certificate that has not ended.
async fn is_valid(kubeconfig: &Path) -> bool {
    if !kubeconfig.exists() {
        return false;
    }
    let judged = match read(kubeconfig).await {
        Ok(config) => ends(&config),
        Err(error) => Err(error.to_string()),
    };
    match judged {
        Ok(end) if end >= SystemTime::now() => true,
        judged => {
            let why = judged.err().unwrap_or_else(|| "its client certificate has expired".to_owned());
            tracing::error!(kubeconfig = %kubeconfig.display(), why, "an existing kubeconfig is of no use");
            false
        }
    }
}

/// When the first of a kubeconfig's client certificates ends.
fn ends(config: &Config) -> Result<SystemTime, String> {
    let (certificate, key) = match files(config) {
        Some((certificate, key)) => {
            let read = |path: PathBuf| {
                fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
            };
            (read(certificate)?, read(key)?)
        }
        None => inline(config).ok_or("it has no client certificate")?,
    };
    Pair::from_pem(&certificate, &key).map(|pair| pair.not_after).map_err(|error| error.to_string())
}

/// Writes the kubeconfig of a node: the server of the bootstrapper's, and the certificate that is kept.
fn write(kubeconfig: &Path, bootstrap: &Path, kept: &Path) -> Result<(), AccessError> {
    let failed = |error| AccessError::Bootstrap { path: bootstrap.to_owned(), error };
    let read = Kubeconfig::read_from(bootstrap).map_err(failed)?;
    let context = read.current_context.as_ref().and_then(|name| {
        let named = read.contexts.iter().find(|context| context.name == *name)?;
        named.context.as_ref().map(|context| context.cluster.clone())
    });
    let named = read.clusters.iter().find(|cluster| Some(&cluster.name) == context.as_ref());
    let its = named.and_then(|named| named.cluster.clone()).unwrap_or_default();
    let mut cluster = json!({"server": its.server});
    for (field, value) in [
        ("certificate-authority", its.certificate_authority.clone().map(serde_json::Value::from)),
        (
            "certificate-authority-data",
            its.certificate_authority_data.filter(|_| its.certificate_authority.is_none()).map(Into::into),
        ),
        ("insecure-skip-tls-verify", its.insecure_skip_tls_verify.filter(|skip| *skip).map(Into::into)),
    ] {
        if let Some(value) = value {
            cluster[field] = value;
        }
    }
    let kept = kept.display().to_string();
    let made = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "default-cluster", "cluster": cluster}],
        "users": [{"name": "default-auth", "user": {"client-certificate": kept, "client-key": kept}}],
        "contexts": [{"name": "default-context", "context": {
            "cluster": "default-cluster", "user": "default-auth", "namespace": "default"}}],
        "current-context": "default-context",
    });
    let text = serde_yaml_ng::to_string(&made).unwrap_or_default();
    private(kubeconfig, text.as_bytes())
}

/// Writes a file that is nobody else's to read.
fn private(path: &Path, bytes: &[u8]) -> Result<(), AccessError> {
    let made = path.parent().map_or(Ok(()), fs::create_dir_all);
    let written = made.and_then(|()| krate_pki::write(path, bytes, 0o600));
    written.map_err(|error| AccessError::Written { path: path.to_owned(), error })
}

/// Waits for the first certificate of a node that does not renew it, and writes the kubeconfig that leads to it. The key is
/// kept meanwhile, so that the request is found again by whoever goes on after this.
async fn first(of: &Beginning, bootstrap: &Path) -> Result<(), AccessError> {
    let failed = |error| AccessError::Bootstrap { path: bootstrap.to_owned(), error };
    let client = krate_client::from_config(read(bootstrap).await.map_err(failed)?)?;
    let store = Store::open(PREFIX, &of.directory, None)?;
    let file = of.directory.join(FIRST_KEY);
    let kept = store.current().ok().flatten().and_then(|pair| KeyPair::from_pem(&pair.key).ok());
    let kept = kept.or_else(|| KeyPair::from_pem(&fs::read_to_string(&file).ok()?).ok());
    let key = if let Some(key) = kept {
        key
    } else {
        let key = KeyPair::generate().map_err(RequestError::Made)?;
        private(&file, key.serialize_pem().as_bytes())?;
        key
    };
    let template = Template::of_node(&of.node_name);
    let name = template.name(&key, CLIENT);
    tracing::info!(csr = name, "Waiting for client certificate to be issued");
    let certificate = tokio::time::timeout(FIRST, asked(&client, &template, &key, &name));
    let certificate = certificate.await.unwrap_or(Err(RequestError::Late))?;
    store.update(&certificate, &key.serialize_pem())?;
    if let Err(error) = fs::remove_file(&file)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(file = %file.display(), %error, "a key that is not needed any more stays");
    }
    write(&of.kubeconfig, bootstrap, &store.current_path())
}

/// Asks, as soon as the server is there, and waits.
async fn asked(
    client: &Client,
    template: &Template,
    key: &KeyPair,
    name: &str,
) -> Result<String, RequestError> {
    let mut pause = Duration::from_millis(100);
    let asked = loop {
        match request::ask(client, CLIENT, template, key, Some(name)).await {
            // It may be on its way up.
            Err(RequestError::Create(error)) if !matches!(error, kube::Error::Api(_)) => {
                tracing::info!(%error, "Failed to connect to apiserver");
            }
            asked => break asked?,
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    };
    request::issued(client, &asked).await
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOTSTRAP: &str = "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
        clusters: [{name: k, cluster: {server: 'https://127.0.0.1:1', certificate-authority-data: eA==}}]\n\
        contexts: [{name: c, context: {cluster: k, user: u}}]\nusers: [{name: u, user: {token: abcdef.0123}}]\n";

    #[tokio::test]
    async fn a_bootstrappers_kubeconfig_leads_to_one_of_the_node() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("bootstrap"), BOOTSTRAP).unwrap();
        let of = Beginning {
            kubeconfig: at("sub/kubeconfig"),
            bootstrap: Some(at("bootstrap")),
            directory: at("pki"),
            node_name: "a".to_owned(),
            rotate: true,
        };
        let (asks, own) = configs(&of).await.unwrap();
        assert!(asks.auth_info.token.is_some() && own.auth_info.token.is_none(), "{own:?}");
        assert_eq!(asks.cluster_url, own.cluster_url);
        let written = read(&of.kubeconfig).await.unwrap();
        let current = at("pki/kubelet-client-current.pem");
        assert_eq!(files(&written), Some((current.clone(), current.clone())));
        assert!(!is_valid(&of.kubeconfig).await, "there is no certificate yet");
        // With one, the bootstrapper is not asked for.
        let key = KeyPair::generate().unwrap();
        let made = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        let store = Store::open(PREFIX, &of.directory, None).unwrap();
        store.update(&made.pem(), &key.serialize_pem()).unwrap();
        std::fs::remove_file(at("bootstrap")).unwrap();
        let (asks, own) = configs(&of).await.unwrap();
        assert_eq!(files(&asks), files(&own));
        assert!(is_valid(&of.kubeconfig).await);
    }
}
