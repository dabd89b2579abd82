//! How servers that stand behind a Service are reached: at which address, and whom they are to be over TLS.

pub mod outdated;

use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use krate_api::StatusError;
use krate_pki::Current;
use krate_store::cache::{Freshness, ListQuery, Object as Cached, Scope};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_rustls::TlsConnector;

use crate::admission::lookup;
use crate::kinds::Kinds;
use crate::storage::refused;

/// Where systems keep the authorities that they trust.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// By what a server proves who it is.
#[derive(Clone, Copy, Debug)]
pub enum Trust<'a> {
    /// By one of these authorities (PEM), or of those of the system where there are none.
    Authorities(&'a [u8]),
    /// By nothing.
    Anyone,
}

/// `own` is by what this server is known to others: what is current when a connection begins.
///
/// # Errors
/// The versions of TLS that are wanted are none that there are.
pub fn connector(trust: Trust<'_>, own: Option<&Current>) -> Result<TlsConnector, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = match trust {
        Trust::Authorities(pem) => builder.with_root_certificates(roots(pem)),
        Trust::Anyone => builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(provider))),
    };
    let config = match own {
        None => builder.with_no_client_auth(),
        Some(own) => builder.with_client_cert_resolver(Arc::new(own.clone())),
    };
    Ok(TlsConnector::from(Arc::new(config)))
}

fn roots(authorities: &[u8]) -> RootCertStore {
    let system;
    let pem = if authorities.is_empty() {
        system = SYSTEM_ROOTS.iter().find_map(|path| std::fs::read(path).ok()).unwrap_or_default();
        &system
    } else {
        authorities
    };
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(pem).flatten() {
        // One that cannot be read is nobody's authority.
        drop(roots.add(authority));
    }
    roots
}

/// Whether a handshake failed because of the other's certificate.
pub fn is_certificate(error: &std::io::Error) -> bool {
    let error = error.get_ref().and_then(|error| error.downcast_ref());
    matches!(error, Some(rustls::Error::InvalidCertificate(_)))
}

/// The label by which an EndpointSlice names its Service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The EndpointSlices of a Service.
///
/// # Errors
/// The store cannot be read.
pub async fn slices(kinds: &Kinds, namespace: &str, name: &str) -> Result<Vec<EndpointSlice>, StatusError> {
    let Some(storage) = kinds.of("discovery.k8s.io", "endpointslices") else { return Ok(Vec::new()) };
    let query = ListQuery::new(Scope::namespace(namespace), Freshness::Any);
    let list = storage.cache.list(&query).await.map_err(refused)?;
    let its = list.items.iter().filter(|cached| cached.head.label(SERVICE_NAME) == Some(name));
    let read = |cached: &Arc<Cached>| {
        let current = storage.decode(&cached.value, cached.revision).ok()?;
        current.object.is::<EndpointSlice>().cloned()
    };
    Ok(its.filter_map(read).collect())
}

/// The addresses of a slice that take requests.
pub fn ready(slice: &EndpointSlice) -> impl Iterator<Item = &str> {
    let takes = |e: &&Endpoint| e.conditions.as_ref().and_then(|c| c.ready) != Some(false);
    slice.endpoints.iter().flatten().filter(takes).filter_map(|e| e.addresses.first()).map(String::as_str)
}

/// The port of a slice that has this name.
pub fn port_of(slice: &EndpointSlice, name: &str) -> Option<i32> {
    let ports = slice.ports.iter().flatten();
    ports.filter(|p| p.name.as_deref().unwrap_or_default() == name).find_map(|p| p.port)
}

/// The address of one of those behind a Service: asked directly, so that it is reached from a host without a proxy too.
///
/// # Errors
/// There is no such Service or port, or nobody is behind it.
pub async fn behind(kinds: &Kinds, namespace: &str, name: &str, port: i32) -> Result<(String, u16), String> {
    let said = |error: StatusError| error.to_string();
    let found = lookup::find::<Service>(kinds, "", "services", namespace, name).await.map_err(said)?;
    let spec = found.ok_or_else(|| format!("service {name:?} not found"))?.spec.unwrap_or_default();
    let to_port = |port: i32| u16::try_from(port).map_err(|_| format!("{port} is no port"));
    if spec.type_.as_deref() == Some("ExternalName") {
        let host = spec.external_name.ok_or_else(|| format!("service {name:?} names no host"))?;
        return Ok((host, to_port(port)?));
    }
    let ports = spec.ports.unwrap_or_default();
    let wanted = ports.iter().find(|p| p.port == port);
    let wanted = wanted.ok_or_else(|| format!("no service port {port} found for service {name:?}"))?;
    let wanted = wanted.name.as_deref().unwrap_or_default();
    let slices = slices(kinds, namespace, name).await.map_err(said)?;
    let all: Vec<(&str, i32)> = slices
        .iter()
        .filter_map(|slice| Some((slice, port_of(slice, wanted)?)))
        .flat_map(|(slice, port)| ready(slice).map(move |address| (address, port)))
        .collect();
    let Some((host, port)) = all.get(rand::random_range(0..all.len().max(1))) else {
        return Err(format!("no endpoints available for service {name:?}"));
    };
    Ok(((*host).to_owned(), to_port(*port)?))
}

/// Takes any certificate whose key its bearer has.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
