//! Keys of pods, and requests that show that whoever asks has the key.

use krate_pki::pem;
use p521::ecdsa::signature::Signer as _;
use p521::ecdsa::{Signature, SigningKey};
use p521::pkcs8::{EncodePrivateKey as _, EncodePublicKey as _};
use rcgen::{
    CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
    PKCS_ED25519, PKCS_RSA_SHA256, SignatureAlgorithm,
};
use rsa::RsaPrivateKey;
use rsa::rand_core::{OsRng, RngCore as _};
use rustls_pki_types::PrivatePkcs8KeyDer;
use yasna::Tag;
use yasna::models::ObjectIdentifier;

/// What comes before the 32 bytes of an Ed25519 key in PKCS#8 of the first version, which all can read.
const ED25519_HEAD: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// `ecdsa-with-SHA512`.
const ECDSA_SHA512: [u64; 7] = [1, 2, 840, 10045, 4, 3, 4];

/// A key, and what it has signed.
pub struct Made {
    /// PKCS#8, PEM.
    pub key: String,
    /// PKCS#10, DER: for nobody and for no names, since the signer decides these.
    pub request: Vec<u8>,
}

/// Makes a key of one of the types that `keyType` may name (KEP-4317). That of RSA takes seconds.
///
/// # Errors
/// The type is unknown, or the system gives no randomness.
pub fn make(kind: &str) -> Result<Made, String> {
    let failed = |what: &'static str| move |why| format!("while generating {what} key: {why}");
    let key = match kind {
        "RSA3072" => rsa(3072).map_err(failed("RSA 3072"))?,
        "RSA4096" => rsa(4096).map_err(failed("RSA 4096"))?,
        "ECDSAP256" => generated(&PKCS_ECDSA_P256_SHA256).map_err(failed("ECDSA P256"))?,
        "ECDSAP384" => generated(&PKCS_ECDSA_P384_SHA384).map_err(failed("ECDSA P384"))?,
        "ECDSAP521" => return p521().map_err(failed("ECDSA P521")),
        "ED25519" => ed25519().map_err(failed("Ed25519"))?,
        other => return Err(format!("unknown key type {other:?}")),
    };
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&key);
    let request = request.map_err(|why| format!("while generating stub PKCS#10 request: {why}"))?;
    Ok(Made { key: pem::block("PRIVATE KEY", &key.serialize_der()), request: request.der().to_vec() })
}

fn generated(algorithm: &'static SignatureAlgorithm) -> Result<KeyPair, String> {
    KeyPair::generate_for(algorithm).map_err(|error| error.to_string())
}

fn read(der: Vec<u8>, algorithm: &'static SignatureAlgorithm) -> Result<KeyPair, String> {
    let der = PrivatePkcs8KeyDer::from(der);
    KeyPair::from_pkcs8_der_and_sign_algo(&der, algorithm).map_err(|error| error.to_string())
}

/// The library that signs makes no keys of RSA.
fn rsa(bits: usize) -> Result<KeyPair, String> {
    let key = RsaPrivateKey::new(&mut OsRng, bits).map_err(|error| error.to_string())?;
    let der = key.to_pkcs8_der().map_err(|error| error.to_string())?;
    read(der.as_bytes().to_vec(), &PKCS_RSA_SHA256)
}

/// Of the two forms that there are of such a key, the library that signs makes the one that others cannot read.
fn ed25519() -> Result<KeyPair, String> {
    let mut seed = [0; 32];
    OsRng.try_fill_bytes(&mut seed).map_err(|error| error.to_string())?;
    read([ED25519_HEAD.as_slice(), &seed].concat(), &PKCS_ED25519)
}

/// The library that signs for the others does not know this curve.
fn p521() -> Result<Made, String> {
    let key = p521::SecretKey::random(&mut OsRng);
    let der = key.to_pkcs8_der().map_err(|error| error.to_string())?;
    let public = key.public_key().to_public_key_der().map_err(|error| error.to_string())?;
    let signing = SigningKey::from_bytes(&key.to_bytes()).map_err(|error| error.to_string())?;
    let info = yasna::construct_der(|writer| {
        writer.write_sequence(|writer| {
            writer.next().write_u8(0);
            writer.next().write_sequence(|_| {});
            writer.next().write_der(public.as_bytes());
            writer.next().write_tagged_implicit(Tag::context(0), |writer| writer.write_set_of(|_| {}));
        });
    });
    let signature: Signature = signing.sign(&info);
    let request = yasna::construct_der(|writer| {
        writer.write_sequence(|writer| {
            writer.next().write_der(&info);
            writer.next().write_sequence(|writer| {
                writer.next().write_oid(&ObjectIdentifier::from_slice(&ECDSA_SHA512));
            });
            let signature = signature.to_der();
            let bytes = signature.as_bytes();
            writer.next().write_bitvec_bytes(bytes, bytes.len() * 8);
        });
    });
    Ok(Made { key: pem::block("PRIVATE KEY", der.as_bytes()), request })
}

#[cfg(test)]
mod tests {
    use p521::ecdsa::VerifyingKey;
    use p521::ecdsa::signature::Verifier as _;
    use x509_parser::certification_request::X509CertificationRequest;
    use x509_parser::prelude::FromDer as _;
    use x509_parser::public_key::PublicKey;

    use super::*;

    #[test]
    fn every_type_is_made_and_proven() {
        for (kind, bits, signature) in [
            ("RSA3072", 3072, "1.2.840.113549.1.1.11"),
            ("ECDSAP256", 256, "1.2.840.10045.4.3.2"),
            ("ECDSAP384", 384, "1.2.840.10045.4.3.3"),
            ("ECDSAP521", 521, "1.2.840.10045.4.3.4"),
            ("ED25519", 256, "1.3.101.112"),
        ] {
            let made = make(kind).unwrap();
            let (rest, request) = X509CertificationRequest::from_der(&made.request).unwrap();
            assert!(rest.is_empty(), "{kind}");
            let info = &request.certification_request_info;
            assert_eq!(request.signature_algorithm.algorithm.to_id_string(), signature, "{kind}");
            assert_eq!(
                (info.version.0, info.subject.to_string(), info.iter_attributes().count()),
                (0, String::new(), 0)
            );
            let key = info.subject_pki.parsed().unwrap();
            let size = match &key {
                PublicKey::EC(point) if kind == "ECDSAP521" => {
                    let verifying = VerifyingKey::from_sec1_bytes(point.data()).unwrap();
                    let signed = Signature::from_der(&request.signature_value.data).unwrap();
                    verifying.verify(info.raw, &signed).unwrap();
                    521
                }
                _ => {
                    request.verify_signature().unwrap();
                    if kind == "ED25519" { 256 } else { key.key_size() }
                }
            };
            assert_eq!(size, bits, "{kind}");
            // What is shown to the pod is the key that has signed.
            let held: Vec<Vec<u8>> = pem::blocks(&made.key).map(|block| block.bytes).collect();
            assert!(made.key.starts_with("-----BEGIN PRIVATE KEY-----\n") && held.len() == 1, "{kind}");
            let der = PrivatePkcs8KeyDer::from(held[0].clone());
            let public = if kind == "ECDSAP521" {
                use p521::pkcs8::DecodePrivateKey as _;
                let key = p521::SecretKey::from_pkcs8_der(der.secret_pkcs8_der()).unwrap();
                key.public_key().to_public_key_der().unwrap().as_bytes().to_vec()
            } else {
                use rcgen::PublicKeyData as _;
                KeyPair::try_from(&der).unwrap().subject_public_key_info()
            };
            assert_eq!(public, info.subject_pki.raw, "{kind}");
            // Version 0: the form that every library reads.
            assert!(held[0].windows(3).take(5).any(|part| part == [2, 1, 0]), "{kind}");
        }
        assert_eq!(make("DSA").err().as_deref(), Some("unknown key type \"DSA\""));
    }
}
