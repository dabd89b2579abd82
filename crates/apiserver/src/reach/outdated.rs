//! Certificates that were good once and prove nothing now: those that name their server only as their subject, and those
//! that SHA-1 signs. Who still has one is to be found by upstream's counters.

use std::io;
use std::sync::LazyLock;

use prometheus::{IntCounter, Registry};
use rustls::CertificateError;

use crate::instruments::{Alpha, Families};

/// The algorithms that sign by SHA-1 (RSA, ECDSA), as certificates name them: object identifiers in DER.
const SHA1: [&[u8]; 2] = [
    &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x05],
    &[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01],
];

pub static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

pub struct Metrics {
    families: Families,
    /// Of servers of other groups.
    pub aggregator: Outdated,
    /// Of webhooks.
    pub webhooks: Outdated,
}

impl Metrics {
    fn new() -> Self {
        let families = Families::default();
        Metrics {
            aggregator: Outdated::new(&families, "kube_aggregator"),
            webhooks: Outdated::new(&families, "webhooks"),
            families,
        }
    }

    pub fn registry(&self) -> Registry {
        self.families.0.clone()
    }
}

/// Connections to one sort of servers that failed by their certificates.
pub struct Outdated {
    missing_san: IntCounter,
    sha1: IntCounter,
}

/// What is outdated of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// It names no server beside its subject.
    MissingSan,
    Sha1,
}

impl Outdated {
    fn new(families: &Families, of: &str) -> Self {
        let counter = |end: &str, help: &str| {
            families.counter(Alpha, &format!("apiserver_{of}_x509_{end}_total"), help)
        };
        Outdated {
            missing_san: counter(
                "missing_san",
                "Connections that failed because the server's certificate names it only as its subject.",
            ),
            sha1: counter(
                "insecure_sha1",
                "Connections that failed because SHA-1 signs the server's certificate.",
            ),
        }
    }

    /// Counts a handshake that failed, if it did for that.
    pub fn failed(&self, error: &io::Error) {
        match fault(error) {
            Some(Fault::MissingSan) => self.missing_san.inc(),
            Some(Fault::Sha1) => self.sha1.inc(),
            None => {}
        }
    }
}

fn fault(error: &io::Error) -> Option<Fault> {
    let rustls::Error::InvalidCertificate(why) = error.get_ref()?.downcast_ref()? else { return None };
    match why {
        CertificateError::NotValidForNameContext { presented, .. } if presented.is_empty() => {
            Some(Fault::MissingSan)
        }
        CertificateError::UnsupportedSignatureAlgorithmContext { signature_algorithm_id: id, .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext {
            signature_algorithm_id: id,
            ..
        } if SHA1.iter().any(|sha1| id.starts_with(sha1)) => Some(Fault::Sha1),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rcgen::{CertificateParams, KeyPair};
    use rustls::ServerConfig;
    use rustls::pki_types::{PrivateKeyDer, ServerName};
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::reach::{Trust, connector};

    /// Why a server with a certificate of these names is not taken for `a.b.svc`, by one that trusts it.
    async fn refusal(names: &[&str]) -> Option<Fault> {
        let key = KeyPair::generate().expect("a key");
        let names = names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let own = CertificateParams::new(names).and_then(|params| params.self_signed(&key)).expect("signed");
        let tls = connector(Trust::Authorities(own.pem().as_bytes()), None).expect("a connector");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![own.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
            .expect("a certificate");
        let (here, there) = tokio::io::duplex(1 << 16);
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let name = ServerName::try_from("a.b.svc").expect("a name");
        let (connected, _) = tokio::join!(tls.connect(name, here), acceptor.accept(there));
        connected.err().map(|error| fault(&error)).expect("it is refused")
    }

    #[tokio::test]
    async fn a_certificate_without_names_is_told_from_one_with_others() {
        assert_eq!(refusal(&[]).await, Some(Fault::MissingSan));
        assert_eq!(refusal(&["c.d.svc"]).await, None);
    }
}
