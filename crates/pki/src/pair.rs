//! One certificate with its key, and what the certificate says.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Why something is no certificate with its key.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    #[error("unable to parse certificate data: {0}")]
    Certificate(String),
    #[error("invalid key data: {0}")]
    Key(String),
}

/// A certificate, those between it and its authority, and its key.
pub struct Pair {
    /// PEM: the certificates, its own first.
    pub certificate: String,
    /// PEM.
    pub key: String,
    /// The user that it speaks for, and the groups.
    pub common_name: String,
    pub organizations: BTreeSet<String>,
    pub hosts: BTreeSet<String>,
    pub addresses: BTreeSet<IpAddr>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    certified: Arc<CertifiedKey>,
}

impl fmt::Debug for Pair {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pair")
            .field("common_name", &self.common_name)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl Pair {
    /// Both PEM. They may be the same text: of each, what the other is made of is passed over.
    ///
    /// # Errors
    /// There is none, or the key is another's.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, PairError> {
        let wrong = |error: &dyn fmt::Display| PairError::Certificate(error.to_string());
        let chain = CertificateDer::pem_slice_iter(certificate.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| wrong(&error))?;
        let first = chain.first().ok_or_else(|| wrong(&"there is no certificate"))?.clone();
        let (_, leaf) = X509Certificate::from_der(&first).map_err(|error| wrong(&error))?;
        let der = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .map_err(|error| PairError::Key(error.to_string()))?;
        let certified = CertifiedKey::from_der(chain, der, &ring::default_provider())
            .map_err(|error| PairError::Key(error.to_string()))?;
        let (mut hosts, mut addresses) = (BTreeSet::new(), BTreeSet::new());
        let names = leaf.subject_alternative_name().ok().flatten();
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            match name {
                GeneralName::DNSName(host) => drop(hosts.insert((*host).to_owned())),
                GeneralName::IPAddress(bytes) => addresses.extend(address(bytes)),
                _ => {}
            }
        }
        let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
            attribute.as_str().ok().map(str::to_owned)
        };
        Ok(Pair {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            common_name: leaf.subject().iter_common_name().find_map(text).unwrap_or_default(),
            organizations: leaf.subject().iter_organization().filter_map(text).collect(),
            hosts,
            addresses,
            not_before: at(leaf.validity().not_before.timestamp()),
            not_after: at(leaf.validity().not_after.timestamp()),
            certified: Arc::new(certified),
        })
    }

    pub fn has_ended(&self, now: SystemTime) -> bool {
        now > self.not_after
    }

    /// How long it lasts; none once it has ended.
    pub fn left(&self, now: SystemTime) -> Option<Duration> {
        self.not_after.duration_since(now).ok()
    }

    /// A moment at which to renew it: when between 70 and 90 percent of its time are over, at random, so that those that
    /// were made together are not renewed together.
    pub fn renewal(&self) -> SystemTime {
        let whole = self.not_after.duration_since(self.not_before).unwrap_or_default();
        self.not_before + whole.mul_f64(rand::random_range(0.7..0.9))
    }

    /// As TLS takes it.
    pub fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.certified)
    }
}

fn at(seconds: i64) -> SystemTime {
    let size = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { SystemTime::UNIX_EPOCH - size } else { SystemTime::UNIX_EPOCH + size }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::from(four));
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

#[cfg(test)]
pub mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    use super::*;

    /// A certificate that signed itself, from an hour ago until then, and its key.
    pub fn pems(name: &str, lasts: Duration) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let hosts = vec!["a.test".to_owned(), "10.0.0.1".to_owned(), "fd00::1".to_owned()];
        let mut params = CertificateParams::new(hosts).expect("names");
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = (SystemTime::now() - Duration::from_hours(1)).into();
        params.not_after = (SystemTime::now() + lasts).into();
        (params.self_signed(&key).expect("a certificate").pem(), key.serialize_pem())
    }

    #[test]
    fn what_a_certificate_says_is_read() {
        let (certificate, key) = pems("amy", Duration::from_hours(9));
        let both = format!("{certificate}{key}");
        let pair = Pair::from_pem(&both, &both).expect("a pair");
        assert_eq!(pair.common_name, "amy");
        assert!(pair.organizations.contains("system:nodes") && pair.hosts.contains("a.test"));
        let addresses: Vec<String> = pair.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.0.0.1", "fd00::1"]);
        let now = SystemTime::now();
        assert!(!pair.has_ended(now) && pair.has_ended(now + Duration::from_hours(10)));
        for _ in 0..100 {
            let after =
                pair.renewal().duration_since(pair.not_before).expect("later").as_secs_f64() / 36_000.0;
            assert!((0.69..0.91).contains(&after), "{after}");
        }
        assert!(!format!("{pair:?}").contains("PRIVATE"));
    }

    #[test]
    fn a_key_of_another_is_refused() {
        let (certificate, _) = pems("amy", Duration::from_hours(1));
        let (_, key) = pems("amy", Duration::from_hours(1));
        assert!(matches!(Pair::from_pem(&certificate, &key), Err(PairError::Key(_))));
        assert!(matches!(Pair::from_pem("", &key), Err(PairError::Certificate(_))));
    }
}
