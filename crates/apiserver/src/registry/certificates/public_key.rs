//! Public keys of requests, and what they have signed: that whoever asks for a certificate has the key.
//!
//! All kinds of keys and signatures that upstream's libraries read are read; what signs with SHA-1 has signed nothing.

use p256::ecdsa::signature::hazmat::PrehashVerifier as _;
use rsa::BigUint;
use sha2::{Digest as _, Sha256, Sha384, Sha512};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key;
use x509_parser::signature_algorithm::{RsaSsaPssParams, SignatureAlgorithm};
use x509_parser::x509::{AlgorithmIdentifier, SubjectPublicKeyInfo};

const RSA: &str = "1.2.840.113549.1.1.1";
const ELLIPTIC: &str = "1.2.840.10045.2.1";
const ED25519: &str = "1.3.101.112";
/// Other kinds of keys that are keys nevertheless: DSA and X25519.
const OTHERS: [&str; 2] = ["1.2.840.10040.4.1", "1.3.101.110"];
const CURVES: [(&str, Curve); 4] = [
    ("1.3.132.0.33", Curve::P224),
    ("1.2.840.10045.3.1.7", Curve::P256),
    ("1.3.132.0.34", Curve::P384),
    ("1.3.132.0.35", Curve::P521),
];

/// How a signature says what it has signed with: RSA by PKCS #1 v1.5, or ECDSA.
const SIGNATURES: [(&str, Hash); 6] = [
    ("1.2.840.113549.1.1.11", Hash::Sha256),
    ("1.2.840.113549.1.1.12", Hash::Sha384),
    ("1.2.840.113549.1.1.13", Hash::Sha512),
    ("1.2.840.10045.4.3.2", Hash::Sha256),
    ("1.2.840.10045.4.3.3", Hash::Sha384),
    ("1.2.840.10045.4.3.4", Hash::Sha512),
];
/// The hashes by their own names, and what comes before one where PKCS #1 v1.5 signs it.
const HASHES: [(&str, Hash, [u8; 19]); 3] = [
    ("2.16.840.1.101.3.4.2.1", Hash::Sha256, digest_info(0x31, 1, 0x20)),
    ("2.16.840.1.101.3.4.2.2", Hash::Sha384, digest_info(0x41, 2, 0x30)),
    ("2.16.840.1.101.3.4.2.3", Hash::Sha512, digest_info(0x51, 3, 0x40)),
];

const fn digest_info(length: u8, number: u8, hash: u8) -> [u8; 19] {
    [
        0x30, length, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, number, 0x05,
        0, 0x04, hash,
    ]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Curve {
    P224,
    P256,
    P384,
    P521,
}

impl Curve {
    pub const fn name(self) -> &'static str {
        match self {
            Curve::P224 => "P-224",
            Curve::P256 => "P-256",
            Curve::P384 => "P-384",
            Curve::P521 => "P-521",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

impl Hash {
    fn of(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Hash::Sha256 => Sha256::digest(bytes).to_vec(),
            Hash::Sha384 => Sha384::digest(bytes).to_vec(),
            Hash::Sha512 => Sha512::digest(bytes).to_vec(),
        }
    }
}

/// A public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublicKey {
    Ed25519([u8; 32]),
    /// The point, uncompressed.
    Elliptic(Curve, Vec<u8>),
    Rsa {
        modulus: BigUint,
        exponent: BigUint,
    },
    /// Of another kind.
    Other,
}

impl PublicKey {
    /// Reads a key as PKIX has it, DER. None: it is none, or more than that.
    pub fn of_pkix(der: &[u8]) -> Option<Self> {
        let (rest, info) = SubjectPublicKeyInfo::from_der(der).ok()?;
        if rest.is_empty() { Self::of_info(&info) } else { None }
    }

    /// The key of a certificate or a request.
    pub fn of_info(info: &SubjectPublicKeyInfo<'_>) -> Option<Self> {
        let parameters = info.algorithm.parameters.as_ref();
        let data: &[u8] = &info.subject_public_key.data;
        match info.algorithm.algorithm.to_id_string().as_str() {
            ED25519 if parameters.is_none() => Some(PublicKey::Ed25519(data.try_into().ok()?)),
            ELLIPTIC => {
                let name = parameters?.as_oid().ok()?.to_id_string();
                let (_, curve) = CURVES.iter().find(|(known, _)| *known == name)?;
                is_point(*curve, data).then(|| PublicKey::Elliptic(*curve, data.to_vec()))
            }
            RSA => {
                // Null parameters must be there.
                parameters?.as_null().ok()?;
                let Ok(public_key::PublicKey::RSA(key)) = info.parsed() else { return None };
                let number = |bytes: &[u8]| {
                    let positive = bytes.first().is_some_and(|first| *first < 0x80);
                    let number = BigUint::from_bytes_be(bytes);
                    (positive && number != BigUint::from(0_u8)).then_some(number)
                };
                let (modulus, exponent) = (number(key.modulus)?, number(key.exponent)?);
                (exponent.bits() < 64).then_some(PublicKey::Rsa { modulus, exponent })
            }
            other if OTHERS.contains(&other) => Some(PublicKey::Other),
            _ => None,
        }
    }

    /// How long an RSA key is, in bits, in whole bytes.
    pub fn modulus_bits(modulus: &BigUint) -> usize {
        modulus.bits().div_ceil(8) * 8
    }

    /// Whether this key has signed a text as proof that its other half is held: by Ed25519, by ECDSA over SHA-256 in
    /// ASN.1, or by RSASSA-PSS over SHA-256 with a salt of any length.
    pub fn has_signed(&self, text: &[u8], signature: &[u8]) -> bool {
        let hash = Hash::Sha256.of(text);
        match self {
            PublicKey::Ed25519(key) => ed25519(key, text, signature),
            PublicKey::Elliptic(curve, point) => ecdsa(*curve, point, &hash, signature),
            PublicKey::Rsa { modulus, exponent } => {
                let opened = open(modulus, exponent, signature);
                opened.is_some_and(|opened| pss_salt(&opened, modulus, Hash::Sha256, &hash).is_some())
            }
            PublicKey::Other => false,
        }
    }

    /// Whether this key has signed what a certificate or a request says, as the algorithm says.
    fn has_signed_der(&self, algorithm: &AlgorithmIdentifier<'_>, der: &[u8], signature: &[u8]) -> bool {
        let name = algorithm.algorithm.to_id_string();
        let hash = SIGNATURES.iter().find(|(known, _)| *known == name).map(|(_, hash)| *hash);
        let of_rsa = name.starts_with("1.2.840.113549.");
        match self {
            PublicKey::Ed25519(key) => name == ED25519 && ed25519(key, der, signature),
            PublicKey::Elliptic(curve, point) => {
                hash.filter(|_| !of_rsa).is_some_and(|hash| ecdsa(*curve, point, &hash.of(der), signature))
            }
            PublicKey::Rsa { modulus, exponent } if of_rsa => {
                let Some(opened) = open(modulus, exponent, signature) else { return false };
                match (hash, SignatureAlgorithm::try_from(algorithm)) {
                    (Some(hash), _) => is_pkcs1(&opened, hash, &hash.of(der)),
                    (None, Ok(SignatureAlgorithm::RSASSA_PSS(params))) => {
                        pss_hash(&params).is_some_and(|hash| {
                            let digest = hash.of(der);
                            pss_salt(&opened, modulus, hash, &digest) == Some(digest.len())
                        })
                    }
                    _ => false,
                }
            }
            PublicKey::Rsa { .. } | PublicKey::Other => false,
        }
    }
}

/// A request for a certificate (PKCS #10): its key, and whether that has signed it.
pub struct CertificateRequest {
    pub key: PublicKey,
    pub is_signed: bool,
}

impl CertificateRequest {
    /// Reads one, DER. None: it is none, or more than that, or its key cannot be read.
    pub fn read(der: &[u8]) -> Option<Self> {
        let (rest, request) = X509CertificationRequest::from_der(der).ok()?;
        let info = &request.certification_request_info;
        let key = PublicKey::of_info(&info.subject_pki).filter(|_| rest.is_empty())?;
        // What is too long to be taken is not computed with either.
        let is_large = matches!(&key, PublicKey::Rsa { modulus, .. } if modulus.bits() > 8192);
        let signature: &[u8] = &request.signature_value.data;
        let is_signed = !is_large && key.has_signed_der(&request.signature_algorithm, info.raw, signature);
        Some(CertificateRequest { key, is_signed })
    }
}

fn is_point(curve: Curve, point: &[u8]) -> bool {
    if point.first() != Some(&4) {
        return false;
    }
    match curve {
        // Nothing is done with keys of this one but to refuse them.
        Curve::P224 => point.len() == 57,
        Curve::P256 => p256::ecdsa::VerifyingKey::from_sec1_bytes(point).is_ok(),
        Curve::P384 => p384::ecdsa::VerifyingKey::from_sec1_bytes(point).is_ok(),
        Curve::P521 => p521::ecdsa::VerifyingKey::from_sec1_bytes(point).is_ok(),
    }
}

fn ed25519(key: &[u8; 32], text: &[u8], signature: &[u8]) -> bool {
    let (Ok(key), Ok(signature)) =
        (ed25519_dalek::VerifyingKey::from_bytes(key), ed25519_dalek::Signature::from_slice(signature))
    else {
        return false;
    };
    ed25519_dalek::Verifier::verify(&key, text, &signature).is_ok()
}

macro_rules! ecdsa_on {
    ($curve:ident, $bytes:literal, $point:expr, $hash:expr, $signature:expr) => {{
        // A hash that is shorter than the field is a number all the same.
        let mut padded = vec![0; usize::saturating_sub($bytes, $hash.len())];
        padded.extend_from_slice($hash);
        let key = $curve::ecdsa::VerifyingKey::from_sec1_bytes($point);
        let signature = $curve::ecdsa::Signature::from_der($signature);
        matches!((key, signature), (Ok(key), Ok(signature)) if key.verify_prehash(&padded, &signature).is_ok())
    }};
}

fn ecdsa(curve: Curve, point: &[u8], hash: &[u8], signature: &[u8]) -> bool {
    match curve {
        Curve::P224 => false,
        Curve::P256 => ecdsa_on!(p256, 32, point, hash, signature),
        Curve::P384 => ecdsa_on!(p384, 48, point, hash, signature),
        Curve::P521 => ecdsa_on!(p521, 66, point, hash, signature),
    }
}

/// What an RSA key makes of a signature: as many bytes as its modulus has.
fn open(modulus: &BigUint, exponent: &BigUint, signature: &[u8]) -> Option<Vec<u8>> {
    let size = modulus.bits().div_ceil(8);
    let number = BigUint::from_bytes_be(signature);
    let is_odd = exponent.to_bytes_be().last().is_some_and(|last| last % 2 == 1);
    if signature.len() != size || number >= *modulus || exponent.bits() > 31 || !is_odd {
        return None;
    }
    let opened = number.modpow(exponent, modulus).to_bytes_be();
    let mut padded = vec![0; size.checked_sub(opened.len())?];
    padded.extend(opened);
    Some(padded)
}

/// RFC 8017, 9.2.
fn is_pkcs1(opened: &[u8], hash: Hash, digest: &[u8]) -> bool {
    let Some((_, _, prefix)) = HASHES.iter().find(|(_, known, _)| *known == hash) else { return false };
    let Some(filled) = opened.len().checked_sub(prefix.len() + digest.len() + 3) else { return false };
    let expected = [&[0, 1], vec![0xff; filled].as_slice(), &[0], prefix, digest].concat();
    filled >= 8 && opened == expected
}

fn pss_hash(params: &RsaSsaPssParams<'_>) -> Option<Hash> {
    let name = params.hash_algorithm_oid().to_id_string();
    let (_, hash, _) = HASHES.iter().find(|(known, ..)| *known == name)?;
    let mask = params.mask_gen_algorithm().ok()?;
    let is_usual = params.trailer_field() == 1 && mask.hash.to_id_string() == name;
    is_usual.then_some(*hash)
}

/// The length of the salt with which RSASSA-PSS has signed a digest (RFC 8017, 9.1.2); None: it has not.
fn pss_salt(opened: &[u8], modulus: &BigUint, hash: Hash, digest: &[u8]) -> Option<usize> {
    let bits = modulus.bits() - 1;
    // Where the modulus is one bit longer than whole bytes, its first byte holds nothing.
    let unused = opened.len().checked_sub(bits.div_ceil(8))?;
    let (nothing, message) = opened.split_at_checked(unused)?;
    let spare = message.len() * 8 - bits;
    let (message, last) = message.split_at_checked(message.len().checked_sub(1)?)?;
    let (masked, shown) = message.split_at_checked(message.len().checked_sub(digest.len())?)?;
    let first = *masked.first()?;
    if nothing.iter().any(|byte| *byte != 0) || last != [0xbc] || first & !(0xff_u8 >> spare) != 0 {
        return None;
    }
    let mask = mask(hash, shown, masked.len());
    let mut block: Vec<u8> = masked.iter().zip(mask).map(|(byte, mask)| byte ^ mask).collect();
    *block.first_mut()? &= 0xff >> spare;
    let begins = block.iter().position(|byte| *byte != 0).filter(|at| block.get(*at) == Some(&1))?;
    let salt = block.get(begins + 1..)?;
    let made = hash.of(&[&[0; 8], digest, salt].concat());
    (made == shown).then_some(salt.len())
}

/// MGF1 (RFC 8017, B.2.1).
fn mask(hash: Hash, seed: &[u8], length: usize) -> Vec<u8> {
    let blocks = (0_u32..).flat_map(|counter| hash.of(&[seed, &counter.to_be_bytes()].concat()));
    blocks.take(length).collect()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};
    use rsa::pkcs8::{EncodePrivateKey as _, EncodePublicKey as _};
    use rsa::signature::{RandomizedSigner as _, SignatureEncoding as _};

    use super::*;

    const UID: &[u8] = b"6ee2ed5b-0ef1-4bd7-9d5c-3a2a8a8fd0a1";

    fn rsa_key(bits: usize) -> rsa::RsaPrivateKey {
        rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, bits).expect("a key")
    }

    #[test]
    fn a_key_proves_that_its_other_half_is_held() {
        use p521::ecdsa::signature::hazmat::PrehashSigner as _;
        let hash = Hash::Sha256.of(UID);
        let mut proofs: Vec<(&str, Vec<u8>, Vec<u8>)> = Vec::new();
        let key = p256::ecdsa::SigningKey::random(&mut rsa::rand_core::OsRng);
        let proof: p256::ecdsa::Signature = key.sign_prehash(&hash).expect("signed");
        let pkix = key.verifying_key().to_public_key_der().expect("DER").into_vec();
        proofs.push(("P-256", pkix, proof.to_der().as_bytes().to_vec()));
        let key = p384::ecdsa::SigningKey::random(&mut rsa::rand_core::OsRng);
        let proof: p384::ecdsa::Signature = key.sign_prehash(&hash).expect("signed");
        let pkix = key.verifying_key().to_public_key_der().expect("DER").into_vec();
        proofs.push(("P-384", pkix, proof.to_der().as_bytes().to_vec()));
        // A hash that is less than half of the field is signed as the number that it is.
        let key = p521::SecretKey::random(&mut rsa::rand_core::OsRng);
        let padded = [vec![0; 34], hash].concat();
        let signing = p521::ecdsa::SigningKey::from_slice(&key.to_bytes()).expect("a key");
        let proof: p521::ecdsa::Signature = signing.sign_prehash(&padded).expect("signed");
        let pkix = key.public_key().to_public_key_der().expect("DER").into_vec();
        proofs.push(("P-521", pkix, proof.to_der().as_bytes().to_vec()));
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
        let pkix = rcgen::PublicKeyData::subject_public_key_info(&key);
        let proof = rcgen::SigningKey::sign(&key, UID).expect("signed");
        proofs.push(("Ed25519", pkix, proof));
        let key = rsa_key(3072);
        let pkix = key.to_public_key().to_public_key_der().expect("DER").into_vec();
        // A signer takes as much salt as there is room for, or as the hash is long.
        for salt in [3072 / 8 - 34, 32, 0] {
            let signing = rsa::pss::SigningKey::<Sha256>::new_with_salt_len(key.clone(), salt);
            let proof = signing.sign_with_rng(&mut rsa::rand_core::OsRng, UID).to_vec();
            proofs.push(("RSA", pkix.clone(), proof));
        }
        for (name, pkix, proof) in proofs {
            let key = PublicKey::of_pkix(&pkix).expect(name);
            assert!(key.has_signed(UID, &proof), "{name}");
            assert!(!key.has_signed(b"another", &proof), "{name}");
            let mut other = proof.clone();
            *other.last_mut().expect("a byte") ^= 1;
            assert!(!key.has_signed(UID, &other), "{name}");
            assert!(!key.has_signed(UID, &[]), "{name}");
            assert_eq!(PublicKey::of_pkix(&[&pkix[..], &[0]].concat()), None, "{name}: more than a key");
        }
        assert_eq!(PublicKey::of_pkix(b"nothing"), None);
    }

    #[test]
    fn a_request_is_signed_by_its_own_key() {
        let rsa = rsa_key(3072).to_pkcs8_der().expect("DER");
        let rsa = rustls::pki_types::PrivatePkcs8KeyDer::from(rsa.as_bytes().to_vec());
        let keys = [
            KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
            KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
            KeyPair::generate_for(&rcgen::PKCS_ED25519),
            KeyPair::from_pkcs8_der_and_sign_algo(&rsa, &rcgen::PKCS_RSA_SHA256),
            KeyPair::from_pkcs8_der_and_sign_algo(&rsa, &rcgen::PKCS_RSA_SHA512),
        ];
        for key in keys {
            let key = key.expect("a key");
            let der = CertificateParams::default().serialize_request(&key).expect("signed").der().to_vec();
            let request = CertificateRequest::read(&der).expect("a request");
            assert!(request.is_signed, "{:?}", key.algorithm());
            let mut other = der.clone();
            *other.last_mut().expect("a byte") ^= 1;
            assert!(!CertificateRequest::read(&other).is_some_and(|request| request.is_signed));
            assert!(CertificateRequest::read(&[&der[..], &[0]].concat()).is_none(), "more than a request");
        }
        assert!(CertificateRequest::read(b"nothing").is_none());
    }
}
