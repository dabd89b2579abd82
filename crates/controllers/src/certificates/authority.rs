//! The authority that signs: certificates as upstream's controller issues them, with the subject, the key and the names of
//! a request, for the usages that the API object asks for. It is written here, since what a certificate says is the
//! request's own subject, whose groups may be several.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use krate_pki::pem;
use rustls::SignatureScheme;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::SigningKey;
use time::OffsetDateTime;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use yasna::models::{GeneralizedTime, ObjectIdentifier, UTCTime};
use yasna::{DERWriter, DERWriterSeq, Tag};

use super::request::{Names, Request};

/// Certificates are dated back by this: clocks differ. Those that live shorter than the second do not end earlier for it.
const BACKDATE: Duration = Duration::from_mins(5);
const SHORT: Duration = Duration::from_hours(8);

/// Why something is not signed, or cannot sign.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("the authority's certificate: {0}")]
    Certificate(String),
    #[error("the authority's key: {0}")]
    Key(String),
    #[error("unable to verify certificate request signature")]
    Signature,
    #[error("unrecognized usage values: {0:?}")]
    Usages(Vec<String>),
    #[error("refusing to sign a certificate that expired in the past: NotAfter={0}")]
    Expired(OffsetDateTime),
}

/// A certificate that may sign others, and its key.
#[derive(Debug)]
pub struct Authority {
    /// DER: who it is.
    subject: Vec<u8>,
    key_identifier: Option<Vec<u8>>,
    not_after: OffsetDateTime,
    key: Arc<dyn SigningKey>,
}

impl Authority {
    /// Both PEM.
    ///
    /// # Errors
    /// One of them is not what it should be.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, AuthorityError> {
        let wrong = |error: &dyn std::fmt::Display| AuthorityError::Certificate(error.to_string());
        let der = CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(|error| wrong(&error))?;
        let (_, parsed) = X509Certificate::from_der(&der).map_err(|error| wrong(&error))?;
        let key_identifier = parsed.iter_extensions().find_map(|e| match e.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        });
        let wrong = |error: &dyn std::fmt::Display| AuthorityError::Key(error.to_string());
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| wrong(&error))?;
        Ok(Authority {
            subject: parsed.subject().as_raw().to_vec(),
            key_identifier,
            not_after: parsed.validity().not_after.to_datetime(),
            key: any_supported_type(&key).map_err(|error| wrong(&error))?,
        })
    }

    /// A certificate of what is asked for, PEM, that lasts for `life`, but no longer than the authority itself.
    ///
    /// # Errors
    /// Who asks has not got the key; usages are none; or the authority's own time is over.
    pub fn sign(
        &self,
        request: &Request,
        usages: &[String],
        life: Duration,
        now: SystemTime,
    ) -> Result<String, AuthorityError> {
        if !request.is_signed() {
            return Err(AuthorityError::Signature);
        }
        let usages = Usages::parse(usages)?;
        let now = OffsetDateTime::from(now);
        if now >= self.not_after {
            return Err(AuthorityError::Expired(self.not_after));
        }
        let end = if life < SHORT { now + life } else { now + life - BACKDATE };
        let validity = (now - BACKDATE, end.min(self.not_after));
        const SCHEMES: [SignatureScheme; 4] = [
            SignatureScheme::ECDSA_NISTP256_SHA256,
            SignatureScheme::ECDSA_NISTP384_SHA384,
            SignatureScheme::ED25519,
            SignatureScheme::RSA_PKCS1_SHA256,
        ];
        let unsigned = || AuthorityError::Key("it signs in no way that is known".to_owned());
        let signer = self.key.choose_scheme(&SCHEMES).ok_or_else(unsigned)?;
        let scheme = signer.scheme();
        let told = yasna::construct_der(|writer| {
            writer.write_sequence(|writer| self.write(writer, request, &usages, validity, scheme));
        });
        let signature = signer.sign(&told).map_err(|error| AuthorityError::Key(error.to_string()))?;
        let certificate = yasna::construct_der(|writer| {
            writer.write_sequence(|writer| {
                writer.next().write_der(&told);
                algorithm(writer.next(), scheme);
                writer.next().write_bitvec_bytes(&signature, signature.len() * 8);
            });
        });
        Ok(pem::block("CERTIFICATE", &certificate))
    }

    /// What is signed (RFC 5280, 4.1.2).
    fn write(
        &self,
        writer: &mut DERWriterSeq<'_>,
        request: &Request,
        usages: &Usages,
        (from, to): (OffsetDateTime, OffsetDateTime),
        scheme: SignatureScheme,
    ) {
        const V3: u8 = 2;
        writer.next().write_tagged(Tag::context(0), |writer| writer.write_u8(V3));
        writer.next().write_bigint_bytes(&rand::random::<[u8; 16]>(), true);
        algorithm(writer.next(), scheme);
        writer.next().write_der(&self.subject);
        writer.next().write_sequence(|writer| {
            moment(writer.next(), from);
            moment(writer.next(), to);
        });
        writer.next().write_der(&request.subject);
        writer.next().write_der(&request.public_key);
        writer.next().write_tagged(Tag::context(3), |writer| {
            writer.write_sequence(|writer| {
                usages.write(writer);
                // It signs nothing itself.
                extension(writer, &[2, 5, 29, 19], true, |writer| writer.write_sequence(|_| ()));
                if let Some(id) = &self.key_identifier {
                    extension(writer, &[2, 5, 29, 35], false, |writer| {
                        writer.write_sequence(|writer| {
                            writer.next().write_tagged_implicit(Tag::context(0), |w| w.write_bytes(id));
                        });
                    });
                }
                if !request.names.is_empty() {
                    // Without a subject, its names are all that it says.
                    let critical = request.common_name.is_empty() && request.organizations.is_empty();
                    extension(writer, &[2, 5, 29, 17], critical, |writer| names(writer, &request.names));
                }
            });
        });
    }
}

/// What a certificate may be used for.
struct Usages {
    /// Bits, the first of which is the highest of the first byte.
    key: u16,
    /// Places in [`PURPOSES`].
    purposes: Vec<usize>,
}

/// Usages of a key, with their bits.
const KEY_USAGES: [(&str, u16); 10] = [
    ("signing", 0),
    ("digital signature", 0),
    ("content commitment", 1),
    ("key encipherment", 2),
    ("data encipherment", 3),
    ("key agreement", 4),
    ("cert sign", 5),
    ("crl sign", 6),
    ("encipher only", 7),
    ("decipher only", 8),
];

/// What else is said of the use, in the order in which upstream says it; two names are of one thing.
const PURPOSES: [(&[&str], &[u64]); 12] = [
    (&["any"], &[2, 5, 29, 37, 0]),
    (&["server auth"], &[1, 3, 6, 1, 5, 5, 7, 3, 1]),
    (&["client auth"], &[1, 3, 6, 1, 5, 5, 7, 3, 2]),
    (&["code signing"], &[1, 3, 6, 1, 5, 5, 7, 3, 3]),
    (&["email protection", "s/mime"], &[1, 3, 6, 1, 5, 5, 7, 3, 4]),
    (&["ipsec end system"], &[1, 3, 6, 1, 5, 5, 7, 3, 5]),
    (&["ipsec tunnel"], &[1, 3, 6, 1, 5, 5, 7, 3, 6]),
    (&["ipsec user"], &[1, 3, 6, 1, 5, 5, 7, 3, 7]),
    (&["timestamping"], &[1, 3, 6, 1, 5, 5, 7, 3, 8]),
    (&["ocsp signing"], &[1, 3, 6, 1, 5, 5, 7, 3, 9]),
    (&["microsoft sgc"], &[1, 3, 6, 1, 4, 1, 311, 10, 3, 3]),
    (&["netscape sgc"], &[2, 16, 840, 1, 113730, 4, 1]),
];

impl Usages {
    fn parse(all: &[String]) -> Result<Self, AuthorityError> {
        let (mut key, mut purposes, mut unknown) = (0, Vec::new(), Vec::new());
        for usage in all {
            let named = |names: &[&str]| names.contains(&usage.as_str());
            if let Some((_, bit)) = KEY_USAGES.iter().find(|(name, _)| name == usage) {
                key |= 1 << (15 - bit);
            } else if let Some(place) = PURPOSES.iter().position(|(names, _)| named(names)) {
                purposes.push(place);
            } else {
                unknown.push(usage.clone());
            }
        }
        purposes.sort_unstable();
        purposes.dedup();
        if unknown.is_empty() { Ok(Usages { key, purposes }) } else { Err(AuthorityError::Usages(unknown)) }
    }

    fn write(&self, writer: &mut DERWriterSeq<'_>) {
        if self.key != 0 {
            // A list of named bits ends with the last that is set.
            let bits = 16 - self.key.trailing_zeros() as usize;
            let bytes = &self.key.to_be_bytes()[..bits.div_ceil(8)];
            extension(writer, &[2, 5, 29, 15], true, |writer| writer.write_bitvec_bytes(bytes, bits));
        }
        if !self.purposes.is_empty() {
            extension(writer, &[2, 5, 29, 37], false, |writer| {
                writer.write_sequence(|writer| {
                    for place in &self.purposes {
                        writer.next().write_oid(&ObjectIdentifier::from_slice(PURPOSES[*place].1));
                    }
                });
            });
        }
    }
}

/// How it is signed.
fn algorithm(writer: DERWriter<'_>, scheme: SignatureScheme) {
    let (oid, has_null): (&[u64], bool) = match scheme {
        SignatureScheme::ECDSA_NISTP384_SHA384 => (&[1, 2, 840, 10045, 4, 3, 3], false),
        SignatureScheme::ED25519 => (&[1, 3, 101, 112], false),
        SignatureScheme::RSA_PKCS1_SHA256 => (&[1, 2, 840, 113549, 1, 1, 11], true),
        _ => (&[1, 2, 840, 10045, 4, 3, 2], false),
    };
    writer.write_sequence(|writer| {
        writer.next().write_oid(&ObjectIdentifier::from_slice(oid));
        if has_null {
            writer.next().write_null();
        }
    });
}

/// Seconds; two digits of the year are enough until 2050.
fn moment(writer: DERWriter<'_>, time: OffsetDateTime) {
    let time = time.replace_nanosecond(0).unwrap_or(time);
    match UTCTime::from_datetime_opt(time) {
        Some(time) => writer.write_utctime(&time),
        None => writer.write_generalized_time(&GeneralizedTime::from_datetime(time)),
    }
}

fn extension(writer: &mut DERWriterSeq<'_>, oid: &[u64], critical: bool, value: impl FnOnce(DERWriter<'_>)) {
    let value = yasna::construct_der(value);
    writer.next().write_sequence(|writer| {
        writer.next().write_oid(&ObjectIdentifier::from_slice(oid));
        if critical {
            writer.next().write_bool(true);
        }
        writer.next().write_bytes(&value);
    });
}

/// The names beside the subject (RFC 5280, 4.2.1.6).
fn names(writer: DERWriter<'_>, names: &Names) {
    const EMAIL: u64 = 1;
    const DNS: u64 = 2;
    const URI: u64 = 6;
    const IP: u64 = 7;
    writer.write_sequence(|writer| {
        for (tag, texts) in [(DNS, &names.dns), (EMAIL, &names.emails), (URI, &names.uris)] {
            for text in texts {
                writer.next().write_tagged_implicit(Tag::context(tag), |w| w.write_ia5_string(text));
            }
        }
        for address in &names.ips {
            writer.next().write_tagged_implicit(Tag::context(IP), |w| w.write_bytes(address));
        }
    });
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
    use x509_parser::extensions::GeneralName;

    use super::*;
    use crate::certificates::request::tests::pem as request;

    /// Two certificates, the second of which the first has signed.
    fn signed(
        algorithm: &'static rcgen::SignatureAlgorithm,
        of: &[u8],
        usages: &[&str],
        life: Duration,
    ) -> Result<(Vec<u8>, Vec<u8>), AuthorityError> {
        let key = KeyPair::generate_for(algorithm).expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_after = (SystemTime::now() + Duration::from_hours(24 * 30)).into();
        let own = params.self_signed(&key).expect("a certificate");
        let authority = Authority::from_pem(&own.pem(), &key.serialize_pem()).expect("an authority");
        let usages: Vec<String> = usages.iter().map(|usage| (*usage).to_owned()).collect();
        let request = Request::parse(of).expect("a request");
        let signed = authority.sign(&request, &usages, life, SystemTime::now())?;
        let (_, block) = x509_parser::pem::parse_x509_pem(signed.as_bytes()).expect("PEM");
        Ok((own.der().to_vec(), block.contents))
    }

    #[test]
    fn a_certificate_says_what_was_asked_and_who_vouches_for_it() {
        let of = request("amy", "dev", &["a.test", "10.0.0.1"]);
        let usages = ["client auth", "server auth", "digital signature", "key encipherment", "client auth"];
        for algorithm in
            [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519]
        {
            let (own, der) = signed(algorithm, &of, &usages, Duration::from_hours(1)).expect("signed");
            let (_, own) = X509Certificate::from_der(&own).expect("a certificate");
            let (rest, made) = X509Certificate::from_der(&der).expect("a certificate");
            assert!(rest.is_empty());
            made.verify_signature(Some(own.public_key())).expect("signed by the authority");
            assert_eq!(made.issuer(), own.subject());
            assert_eq!(made.subject().to_string(), "O=dev, CN=amy");
            assert!(!made.is_ca());
            let key = made.key_usage().expect("one").expect("there").value;
            assert!(key.digital_signature() && key.key_encipherment() && !key.key_cert_sign());
            let purposes = made.extended_key_usage().expect("one").expect("there").value;
            assert!(purposes.client_auth && purposes.server_auth && !purposes.any);
            let names = made.subject_alternative_name().expect("one").expect("there").value;
            assert_eq!(names.general_names.len(), 2);
            assert!(names.general_names.contains(&GeneralName::DNSName("a.test")));
            let lasts = made.validity().not_after.timestamp() - made.validity().not_before.timestamp();
            assert_eq!(lasts, 3900, "an hour, and what it is dated back");
        }
    }

    #[test]
    fn groups_may_be_several() {
        // The subject is made by hand: O=a, O=b, CN=amy.
        let subject = yasna::construct_der(|writer| {
            writer.write_sequence(|writer| {
                for (oid, text) in [([2, 5, 4, 10], "a"), ([2, 5, 4, 10], "b"), ([2, 5, 4, 3], "amy")] {
                    writer.next().write_set(|writer| {
                        writer.next().write_sequence(|writer| {
                            writer.next().write_oid(&ObjectIdentifier::from_slice(&oid));
                            writer.next().write_utf8_string(text);
                        });
                    });
                }
            });
        });
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::default();
        let own = params.self_signed(&key).expect("a certificate").pem();
        let authority = Authority::from_pem(&own, &key.serialize_pem()).expect("an authority");
        let mut asked = Request::parse(&request("x", "y", &[])).expect("a request");
        asked.subject = subject;
        let made = authority.sign(&asked, &[], Duration::from_hours(1), SystemTime::now()).expect("signed");
        let (_, block) = x509_parser::pem::parse_x509_pem(made.as_bytes()).expect("PEM");
        let made = block.parse_x509().expect("a certificate");
        assert_eq!(made.subject().to_string(), "O=a, O=b, CN=amy");
    }

    #[test]
    fn nothing_outlives_the_authority() {
        let of = request("amy", "dev", &[]);
        let year = Duration::from_hours(24 * 365);
        let (own, der) = signed(&rcgen::PKCS_ECDSA_P256_SHA256, &of, &["client auth"], year).expect("signed");
        let (_, own) = X509Certificate::from_der(&own).expect("a certificate");
        let (_, made) = X509Certificate::from_der(&der).expect("a certificate");
        assert_eq!(made.validity().not_after, own.validity().not_after);
        let unknown = signed(&rcgen::PKCS_ECDSA_P256_SHA256, &of, &["flying"], year).expect_err("refused");
        assert_eq!(unknown.to_string(), "unrecognized usage values: [\"flying\"]");
    }
}
