//! Keys of JSON Web Tokens: those that sign, those that verify, and how a verifier names and publishes them (RFC 7517).

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use rustls::SignatureScheme;
use rustls::pki_types::pem::{PemObject as _, SectionKind};
use rustls::pki_types::{PrivateKeyDer, SubjectPublicKeyInfoDer};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::public_key::PublicKey as Parsed;
use x509_parser::x509::SubjectPublicKeyInfo;

/// Why a key cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct KeyError(String);

fn broken(why: impl std::fmt::Display) -> KeyError {
    KeyError(why.to_string())
}

/// A key that verifies.
#[derive(Clone)]
pub struct PublicKey {
    /// As upstream names keys: the hash of the key's encoding.
    pub id: String,
    pub algorithm: Algorithm,
    pub decoding: DecodingKey,
    /// As it is published.
    pub jwk: Value,
}

impl PublicKey {
    /// Reads a key in the encoding of certificates (`SubjectPublicKeyInfo`).
    fn of_spki(der: &[u8]) -> Result<Self, KeyError> {
        let id = URL_SAFE_NO_PAD.encode(Sha256::digest(der));
        let (_, info) = SubjectPublicKeyInfo::from_der(der).map_err(broken)?;
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let (algorithm, decoding, mut jwk) = match info.parsed().map_err(broken)? {
            Parsed::RSA(key) => {
                let strip = |bytes: &'_ [u8]| -> Vec<u8> {
                    bytes.iter().copied().skip_while(|byte| *byte == 0).collect()
                };
                let (n, e) = (strip(key.modulus), strip(key.exponent));
                let decoding = DecodingKey::from_rsa_raw_components(&n, &e);
                (
                    Algorithm::RS256,
                    decoding,
                    json!({"kty": "RSA", "alg": "RS256", "n": text(&n), "e": text(&e)}),
                )
            }
            Parsed::EC(point) => {
                let data = point.data();
                let (algorithm, name, curve) = match data.len() {
                    65 => (Algorithm::ES256, "ES256", "P-256"),
                    97 => (Algorithm::ES384, "ES384", "P-384"),
                    _ => return Err(broken("elliptic keys other than P-256 and P-384 are not supported")),
                };
                let (x, y) = data[1..].split_at((data.len() - 1) / 2);
                let (x, y) = (text(x), text(y));
                let decoding = DecodingKey::from_ec_components(&x, &y).map_err(broken)?;
                (algorithm, decoding, json!({"kty": "EC", "alg": name, "crv": curve, "x": x, "y": y}))
            }
            _ => return Err(broken("neither an RSA nor an elliptic key")),
        };
        jwk["use"] = "sig".into();
        jwk["kid"] = id.clone().into();
        Ok(PublicKey { id, algorithm, decoding, jwk })
    }

    /// All keys of a PEM file: public keys, certificates, and the public halves of private keys.
    ///
    /// # Errors
    /// There is none, or one cannot be read.
    pub fn all(pem: &str) -> Result<Vec<Self>, KeyError> {
        let mut keys = Vec::new();
        for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem.as_bytes()) {
            let (kind, der) = section.map_err(broken)?;
            keys.push(match kind {
                SectionKind::PublicKey => Self::of_spki(&der)?,
                SectionKind::Certificate => {
                    let (_, certificate) = X509Certificate::from_der(&der).map_err(broken)?;
                    Self::of_spki(certificate.public_key().raw)?
                }
                SectionKind::PrivateKey => Self::of_private(PrivateKeyDer::Pkcs8(der.into()))?,
                SectionKind::RsaPrivateKey => Self::of_private(PrivateKeyDer::Pkcs1(der.into()))?,
                SectionKind::EcPrivateKey => Self::of_private(PrivateKeyDer::Sec1(der.into()))?,
                // Parameters of curves stand before keys.
                _ => continue,
            });
        }
        if keys.is_empty() {
            return Err(broken("data does not contain any valid RSA or ECDSA public keys"));
        }
        Ok(keys)
    }

    fn of_private(der: PrivateKeyDer<'static>) -> Result<Self, KeyError> {
        let key = rustls::crypto::ring::sign::any_supported_type(&der).map_err(broken)?;
        Self::of_spki(&public_half(&*key)?)
    }
}

fn public_half(key: &dyn rustls::sign::SigningKey) -> Result<SubjectPublicKeyInfoDer<'static>, KeyError> {
    key.public_key()
        .map(SubjectPublicKeyInfoDer::into_owned)
        .ok_or_else(|| broken("a key without a public half"))
}

/// A key that signs.
#[derive(Clone)]
pub struct SigningKey {
    key: Arc<dyn rustls::sign::SigningKey>,
    public: PublicKey,
}

impl SigningKey {
    /// # Errors
    /// It is no private key, or of a kind that cannot sign tokens.
    pub fn of(pem: &str) -> Result<Self, KeyError> {
        let der = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(broken)?;
        let key = rustls::crypto::ring::sign::any_supported_type(&der).map_err(broken)?;
        let public = PublicKey::of_spki(&public_half(&*key)?)?;
        Ok(SigningKey { key, public })
    }

    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// A token of these claims.
    ///
    /// # Errors
    /// The key cannot sign.
    pub fn sign(&self, claims: &impl serde::Serialize) -> Result<String, KeyError> {
        let (name, scheme, half) = match self.public.algorithm {
            Algorithm::ES256 => ("ES256", SignatureScheme::ECDSA_NISTP256_SHA256, 32),
            Algorithm::ES384 => ("ES384", SignatureScheme::ECDSA_NISTP384_SHA384, 48),
            _ => ("RS256", SignatureScheme::RSA_PKCS1_SHA256, 0),
        };
        let text = |value: Vec<u8>| URL_SAFE_NO_PAD.encode(value);
        let head = json!({"alg": name, "kid": self.public.id}).to_string();
        let claims = serde_json::to_vec(claims).map_err(broken)?;
        let mut token = format!("{}.{}", text(head.into_bytes()), text(claims));
        let signer = self.key.choose_scheme(&[scheme]).ok_or_else(|| broken("a key that cannot sign"))?;
        let signature = signer.sign(token.as_bytes()).map_err(broken)?;
        let signature = if half == 0 { signature } else { fixed(&signature, half)? };
        token.push('.');
        token.push_str(&text(signature));
        Ok(token)
    }
}

/// The two numbers of an elliptic signature side by side, each in `half` bytes, as tokens have them: TLS has them as a
/// DER sequence.
fn fixed(der: &[u8], half: usize) -> Result<Vec<u8>, KeyError> {
    let parse = || -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(2 * half);
        let (tag, mut rest) = der.split_first()?;
        // Both curves' sequences are shorter than 128 bytes.
        rest = (*tag == 0x30).then(|| rest.get(1..))??;
        for _ in 0..2 {
            let length = usize::from(*rest.get(1).filter(|_| rest[0] == 0x02)?);
            let number = rest.get(2..2 + length)?;
            rest = &rest[2 + length..];
            let number = &number[number.iter().take_while(|byte| **byte == 0).count()..];
            out.resize(out.len() + half.checked_sub(number.len())?, 0);
            out.extend_from_slice(number);
        }
        Some(out)
    };
    parse().ok_or_else(|| broken("a signature that cannot be read"))
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::Validation;

    use super::*;

    #[test]
    fn what_a_key_signs_its_public_half_verifies() {
        for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384] {
            let pair = rcgen::KeyPair::generate_for(algorithm).expect("a key");
            let key = SigningKey::of(&pair.serialize_pem()).expect("a key");
            // Signatures differ each time, also in length.
            for number in 0..20 {
                let token = key.sign(&json!({"sub": "x", "number": number})).expect("signed");
                for public in [&pair.public_key_pem(), &pair.serialize_pem()] {
                    let public = &PublicKey::all(public).expect("keys")[0];
                    assert_eq!(public.id, key.public().id);
                    let mut rules = Validation::new(public.algorithm);
                    rules.validate_exp = false;
                    rules.required_spec_claims.clear();
                    let read = jsonwebtoken::decode::<Value>(&token, &public.decoding, &rules);
                    assert_eq!(read.expect("verified").claims["number"], number);
                }
            }
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for pem in ["", "x", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"] {
            assert!(PublicKey::all(pem).is_err(), "{pem}");
            assert!(SigningKey::of(pem).is_err(), "{pem}");
        }
        assert!(fixed(&[0x30, 2, 2, 9], 32).is_err());
    }
}
