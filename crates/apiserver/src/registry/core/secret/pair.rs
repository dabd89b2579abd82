//! Whether what a Secret for TLS holds is a certificate and its key. One that does not is taken, and its writer told.

use krate_pki::pem;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::PrivateKeyDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::x509::SubjectPublicKeyInfo;

const CERTIFICATE: &str = "CERTIFICATE";
const KEY: &str = "PRIVATE KEY";

/// What is wrong with the two, in the words of Go's `tls.X509KeyPair`.
pub fn fault(certificate: &[u8], key: &[u8]) -> Option<String> {
    let leaf = match find(certificate, |kind| kind == CERTIFICATE) {
        Ok(leaf) => leaf,
        Err(others) => return Some(no_certificate(&others)),
    };
    let key = match find(key, |kind| kind == KEY || kind.ends_with(" PRIVATE KEY")) {
        Ok(key) => key,
        Err(others) => return Some(no_key(&others)),
    };
    let Ok((_, leaf)) = X509Certificate::from_der(&leaf) else {
        return Some("x509: malformed certificate".to_owned());
    };
    // Every key is a sequence. What is one and yet not read may be of a kind that is not known here.
    if key.first() != Some(&0x30) {
        return Some("tls: failed to parse private key".to_owned());
    }
    let half = public_half(&key)?;
    let (_, half) = SubjectPublicKeyInfo::from_der(&half).ok()?;
    let of_leaf = leaf.public_key();
    if half.algorithm.algorithm != of_leaf.algorithm.algorithm {
        return Some("tls: private key type does not match public key type".to_owned());
    }
    (half.subject_public_key.data != of_leaf.subject_public_key.data)
        .then(|| "tls: private key does not match public key".to_owned())
}

/// The first block of a kind, or the kinds of all that there are.
fn find(text: &[u8], is_it: impl Fn(&str) -> bool) -> Result<Vec<u8>, Vec<String>> {
    let text = String::from_utf8_lossy(text);
    let mut others = Vec::new();
    for block in pem::blocks(&text) {
        if is_it(&block.kind) {
            return Ok(block.bytes);
        }
        others.push(block.kind);
    }
    Err(others)
}

fn no_certificate(others: &[String]) -> String {
    match others {
        [] => "tls: failed to find any PEM data in certificate input".to_owned(),
        [one] if one.ends_with(KEY) => {
            "tls: failed to find certificate PEM data in certificate input, but did find \
                                        a private key; PEM inputs may have been switched"
                .to_owned()
        }
        _ => format!(
            "tls: failed to find \"CERTIFICATE\" PEM block in certificate input after skipping PEM blocks of the \
             following types: [{}]",
            others.join(" ")
        ),
    }
}

fn no_key(others: &[String]) -> String {
    match others {
        [] => "tls: failed to find any PEM data in key input".to_owned(),
        [one] if one == CERTIFICATE => {
            "tls: found a certificate rather than a key in the PEM for the private key".to_owned()
        }
        _ => format!(
            "tls: failed to find PEM block with type ending in \"PRIVATE KEY\" in key input after skipping PEM blocks \
             of the following types: [{}]",
            others.join(" ")
        ),
    }
}

/// The public half of a key, whatever its block says to hold.
fn public_half(key: &[u8]) -> Option<Vec<u8>> {
    let forms = [
        PrivateKeyDer::Pkcs1(key.to_vec().into()),
        PrivateKeyDer::Pkcs8(key.to_vec().into()),
        PrivateKeyDer::Sec1(key.to_vec().into()),
    ];
    let key = forms.iter().find_map(|form| any_supported_type(form).ok())?;
    key.public_key().map(|half| half.as_ref().to_vec())
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn pair() -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["a.test".to_owned()]).expect("names");
        (params.self_signed(&key).expect("a certificate").pem(), key.serialize_pem())
    }

    #[test]
    fn a_certificate_goes_with_its_key() {
        let ((certificate, key), (_, other)) = (pair(), pair());
        let (certificate, key, other) = (certificate.as_str(), key.as_str(), other.as_str());
        let odd = "-----BEGIN ODD-----\nYWJj\n-----END ODD-----\n";
        for (certificate, key, wrong) in [
            (certificate, key, None),
            (certificate, other, Some("tls: private key does not match public key")),
            ("foo", key, Some("tls: failed to find any PEM data in certificate input")),
            (certificate, "bar", Some("tls: failed to find any PEM data in key input")),
            (
                certificate,
                certificate,
                Some("tls: found a certificate rather than a key in the PEM for the private key"),
            ),
            (
                key,
                certificate,
                Some(
                    "tls: failed to find certificate PEM data in certificate input, but did find a private key; PEM \
                     inputs may have been switched",
                ),
            ),
            (
                odd,
                key,
                Some(
                    "tls: failed to find \"CERTIFICATE\" PEM block in certificate input after skipping PEM blocks of \
                     the following types: [ODD]",
                ),
            ),
        ] {
            assert_eq!(fault(certificate.as_bytes(), key.as_bytes()).as_deref(), wrong);
        }
    }
}
