//! The TLS side of the server: its certificate, and those that sign its clients' certificates. Both may change while it
//! serves.

use std::sync::Arc;

use krate_client::CancellationToken;
use krate_pki::{Current, Text};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::config::Config;
use crate::run::Error;

/// How connections are taken, as it is now.
pub struct Tls(watch::Receiver<Arc<ServerConfig>>);

impl Tls {
    /// A file of clients' authorities is read again when it changes, until `shutdown`.
    ///
    /// # Errors
    /// The authorities cannot be used.
    pub fn new(config: &Config, serving: Current, shutdown: CancellationToken) -> Result<Self, Error> {
        let first = configured(&config.client_ca, &serving).map_err(Error::Tls)?;
        let (sender, receiver) = watch::channel(first);
        if let Some(path) = config.client_ca_file.clone() {
            let file = Text { path, text: config.client_ca.clone() };
            tokio::spawn(krate_pki::follow(vec![file], shutdown, move |files| {
                sender.send_replace(configured(&files[0].text, &serving)?);
                Ok(())
            }));
        }
        Ok(Tls(receiver))
    }

    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.0.borrow()))
    }
}

fn configured(client_ca: &str, serving: &Current) -> Result<Arc<ServerConfig>, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(client_ca.as_bytes()) {
        let certificate = certificate.map_err(|error| error.to_string())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    // Without a certificate to sign them, no client can have one.
    let verifier = if roots.is_empty() {
        WebPkiClientVerifier::no_client_auth()
    } else {
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .map_err(|error| error.to_string())?
    };
    let mut tls = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(serving.clone()));
    // Streams are upgrades of HTTP/1.1, so nothing else is offered.
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(tls))
}
