//! Client certificates: whom the other side of a connection proves to be, to the authority of clients and to that of
//! authenticating proxies.
//!
//! A certificate of neither does not end the connection: as upstream, who brings one may still prove by a token who he
//! is, and is refused otherwise.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use sha2::{Digest as _, Sha256};
use x509_parser::oid_registry::{Oid, asn1_rs::oid};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{AUTHENTICATED, CREDENTIAL_ID, User};

/// The part of a subject that is a user's UID.
const UID: Oid<'static> = oid!(1.3.6.1.4.1.57683.2);

/// Why an authority cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct AuthorityError(String);

/// The authorities of certificates, PEM. Where one is empty, nobody has its certificates.
#[derive(Clone)]
pub struct Authorities {
    clients: Option<Arc<dyn ClientCertVerifier>>,
    proxies: Option<Arc<dyn ClientCertVerifier>>,
}

fn verifier(pem: &str) -> Result<Option<Arc<dyn ClientCertVerifier>>, AuthorityError> {
    if pem.trim().is_empty() {
        return Ok(None);
    }
    let broken = |error: &dyn std::fmt::Display| AuthorityError(error.to_string());
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(authority.map_err(|e| broken(&e))?).map_err(|e| broken(&e))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let built = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
    Ok(Some(built.map_err(|e| broken(&e))?))
}

impl Authorities {
    /// # Errors
    /// One is no certificate.
    pub fn new(clients: &str, proxies: &str) -> Result<Self, AuthorityError> {
        Ok(Authorities { clients: verifier(clients)?, proxies: verifier(proxies)? })
    }

    /// What a chain proves, now and until it ends.
    pub fn peer(&self, chain: &[CertificateDer<'_>]) -> Peer {
        let Some((certificate, between)) = chain.split_first() else { return Peer::default() };
        let proved = |authority: &Option<Arc<dyn ClientCertVerifier>>| {
            let verified = authority.as_ref()?.verify_client_cert(certificate, between, UnixTime::now());
            Some(verified.map(drop).map_err(|_| ()))
        };
        let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return Peer::default() };
        let common_name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        let common_name = common_name.unwrap_or_default().to_owned();
        Peer {
            user: proved(&self.clients)
                .map(|proof| proof.map(|()| user(certificate, &parsed, &common_name).map(Arc::new))),
            proxy: proved(&self.proxies).map(|proof| proof.map(|()| common_name)),
            until: parsed.validity().not_after.timestamp(),
        }
    }
}

/// What the other side of a connection has proved by its certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// `None` where there is no certificate, or no authority of clients; the user is `None` where the certificate names
    /// nobody.
    user: Option<Result<Option<Arc<User>>, ()>>,
    proxy: Option<Result<String, ()>>,
    /// When the certificate ends, in seconds since 1970.
    until: i64,
}

impl Peer {
    fn lasts(&self) -> Result<(), ()> {
        if jiff::Timestamp::now().as_second() <= self.until { Ok(()) } else { Err(()) }
    }

    /// How long the certificate still lasts, if it is this user's.
    pub fn lasts_for(&self, user: &User) -> Option<Duration> {
        let is_his = matches!(&self.user, Some(Ok(Some(named))) if named.name == user.name);
        let seconds = self.until - jiff::Timestamp::now().as_second();
        is_his.then(|| Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
    }

    /// Whom the certificate names.
    ///
    /// # Errors
    /// It is not one of the clients' authority, or has ended.
    pub fn user(&self) -> Result<Option<Arc<User>>, ()> {
        match &self.user {
            Some(user) => self.lasts().and_then(|()| user.clone()),
            None => Ok(None),
        }
    }

    /// The common name of an authenticating proxy.
    ///
    /// # Errors
    /// The certificate is not one of the proxies' authority, or has ended.
    pub fn proxy(&self) -> Result<Option<&str>, ()> {
        match &self.proxy {
            Some(proxy) => self.lasts().and_then(|()| proxy.as_deref().map(Some).map_err(|&()| ())),
            None => Ok(None),
        }
    }
}

/// The user of a subject: its common name, with its organizations as groups.
fn user(certificate: &CertificateDer<'_>, parsed: &X509Certificate<'_>, common_name: &str) -> Option<User> {
    if common_name.is_empty() {
        return None;
    }
    let subject = parsed.subject();
    let uid = subject.iter_by_oid(&UID).next().and_then(|uid| uid.as_str().ok()).unwrap_or_default();
    let groups = subject.iter_organization().filter_map(|group| group.as_str().ok()).map(str::to_owned);
    let print = hex::encode(Sha256::digest(certificate));
    Some(User {
        name: common_name.to_owned(),
        uid: uid.to_owned(),
        groups: groups.chain([AUTHENTICATED.to_owned()]).collect(),
        extra: BTreeMap::from([(CREDENTIAL_ID.to_owned(), vec![format!("X509SHA256={print}")])]),
    })
}

/// Takes every certificate whose key its bearer has; whose it is, is judged request by request.
#[derive(Debug)]
pub struct AnyBearer {
    provider: Arc<CryptoProvider>,
    hints: Vec<DistinguishedName>,
}

impl AnyBearer {
    /// Clients are told of these authorities (PEM), so that they choose among the certificates that they have.
    pub fn new(authorities: &str) -> Self {
        let mut roots = RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(authorities.as_bytes()).flatten() {
            // One that cannot be read has been refused elsewhere.
            drop(roots.add(authority));
        }
        AnyBearer { provider: Arc::new(rustls::crypto::ring::default_provider()), hints: roots.subjects() }
    }
}

impl ClientCertVerifier for AnyBearer {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
pub mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    };

    use super::*;

    /// An authority, and certificates that it signs.
    pub struct Ca {
        pub pem: String,
        issuer: Issuer<'static, KeyPair>,
    }

    impl Ca {
        pub fn new(name: &str) -> Self {
            let key = KeyPair::generate().expect("a key");
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let pem = params.self_signed(&key).expect("signed").pem();
            let issuer = Issuer::from_ca_cert_pem(&pem, key).expect("an authority");
            Ca { pem, issuer }
        }

        pub fn client(&self, name: &str, groups: &[&str]) -> CertificateDer<'static> {
            let key = KeyPair::generate().expect("a key");
            let mut params = CertificateParams::default();
            params.distinguished_name = rcgen::DistinguishedName::new();
            if !name.is_empty() {
                params.distinguished_name.push(DnType::CommonName, name);
            }
            for group in groups {
                params.distinguished_name.push(DnType::OrganizationName, *group);
            }
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            params.signed_by(&key, &self.issuer).expect("signed").der().clone()
        }
    }

    #[test]
    fn a_certificate_proves_what_its_authority_vouches_for() {
        let (clients, proxies, others) = (Ca::new("clients"), Ca::new("proxies"), Ca::new("others"));
        let authorities = Authorities::new(&clients.pem, &proxies.pem).expect("authorities");
        let of = |certificate: CertificateDer<'static>| authorities.peer(&[certificate]);

        let jane = of(clients.client("jane", &["dev"]));
        let user = jane.user().expect("proved").expect("named");
        assert_eq!((user.name.as_str(), user.groups[0].as_str()), ("jane", "dev"));
        assert!(user.extra[CREDENTIAL_ID][0].starts_with("X509SHA256="), "{user:?}");
        assert_eq!(jane.proxy(), Err(()));

        let proxy = of(proxies.client("front", &[]));
        assert_eq!((proxy.user(), proxy.proxy()), (Err(()), Ok(Some("front"))));
        assert_eq!(of(others.client("jane", &["system:masters"])).user(), Err(()));
        assert_eq!(of(clients.client("", &["dev"])).user(), Ok(None), "nobody is named");
        assert_eq!(authorities.peer(&[]).user(), Ok(None));
        let none = Authorities::new("", "").expect("none").peer(&[clients.client("jane", &[])]);
        assert_eq!((none.user(), none.proxy()), (Ok(None), Ok(None)));
    }
}
