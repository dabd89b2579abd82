//! Asking the API server for a certificate: a CertificateSigningRequest, and waiting for what becomes of it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use futures::StreamExt as _;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use krate_client::{Api, Client};
use krate_pki::Pair;
use kube::api::PostParams;
use kube::runtime::{WatchStreamExt as _, watcher};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PublicKeyData as _, SanType};
use sha2::{Digest as _, Sha512_256};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

const NODES: &str = "system:nodes";

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("unable to create a csr from the private key: {0}")]
    Made(#[from] rcgen::Error),
    #[error("cannot create certificate signing request: {0}")]
    Create(kube::Error),
    #[error("retrieved csr is not compatible: {0}")]
    Other(String),
    #[error("certificate signing request {0}")]
    Refused(String),
    #[error("csr {0:?} was deleted")]
    Deleted(String),
    #[error("timed out waiting for the condition")]
    Late,
}

/// Who signs, and what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Purpose {
    pub signer: &'static str,
    usages: [&'static str; 2],
}

pub const CLIENT: Purpose = Purpose {
    signer: "kubernetes.io/kube-apiserver-client-kubelet",
    usages: ["digital signature", "client auth"],
};
pub const SERVING: Purpose =
    Purpose { signer: "kubernetes.io/kubelet-serving", usages: ["digital signature", "server auth"] };

/// What a certificate is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// `system:node:NAME`.
    pub user: String,
    pub hosts: BTreeSet<String>,
    pub addresses: BTreeSet<IpAddr>,
}

impl Template {
    pub fn of_node(name: &str) -> Self {
        Template { user: format!("system:node:{name}"), hosts: BTreeSet::new(), addresses: BTreeSet::new() }
    }

    /// Whether a certificate says all of this. It may say more.
    pub fn is_met_by(&self, pair: &Pair) -> bool {
        pair.common_name == self.user
            && pair.organizations.contains(NODES)
            && self.hosts.is_subset(&pair.hosts)
            && self.addresses.is_subset(&pair.addresses)
    }

    /// A request, PEM.
    fn request(&self, key: &KeyPair) -> Result<String, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, NODES);
        params.distinguished_name.push(DnType::CommonName, &self.user);
        let hosts = self.hosts.iter().map(|host| Ok(SanType::DnsName(host.as_str().try_into()?)));
        params.subject_alt_names = hosts.collect::<Result<_, rcgen::Error>>()?;
        params.subject_alt_names.extend(self.addresses.iter().map(|address| SanType::IpAddress(*address)));
        params.serialize_request(key)?.pem()
    }

    /// A name that is the same for the same key and the same request, so that a kubelet that ended while it waited finds
    /// what it asked for.
    pub fn name(&self, key: &KeyPair, purpose: Purpose) -> String {
        use base64::Engine as _;
        let encode = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
        let mut hash = Sha512_256::new();
        let (key, subject) = (key.subject_public_key_info(), [self.user.as_bytes(), NODES.as_bytes()]);
        let usages = purpose.usages.iter().map(|usage| usage.as_bytes());
        for part in [key.as_slice()].into_iter().chain(subject).chain(usages) {
            hash.update(encode(part));
            hash.update("|");
        }
        format!("node-csr-{}", encode(&hash.finalize()))
    }
}

/// A request that the API server knows.
#[derive(Debug, PartialEq, Eq)]
pub struct Asked {
    pub name: String,
    pub uid: String,
}

/// Asks for a certificate for this key. With a name, what was asked for under it before is what is asked for.
///
/// # Errors
/// The API server does not take it, or another has its name.
pub async fn ask(
    client: &Client,
    purpose: Purpose,
    template: &Template,
    key: &KeyPair,
    name: Option<&str>,
) -> Result<Asked, RequestError> {
    let mut csr = CertificateSigningRequest {
        spec: CertificateSigningRequestSpec {
            request: ByteString(template.request(key)?.into_bytes()),
            signer_name: purpose.signer.to_owned(),
            usages: Some(purpose.usages.map(str::to_owned).into()),
            ..CertificateSigningRequestSpec::default()
        },
        ..CertificateSigningRequest::default()
    };
    match name {
        Some(name) => csr.metadata.name = Some(name.to_owned()),
        None => csr.metadata.generate_name = Some("csr-".to_owned()),
    }
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let there = match (api.create(&PostParams::default(), &csr).await, name) {
        (Ok(made), _) => made,
        (Err(error), Some(name)) if krate_client::is_conflict(&error) => {
            let there = api.get(name).await.map_err(RequestError::Create)?;
            is_same(&there, purpose, template, key).map_err(RequestError::Other)?;
            there
        }
        (Err(error), _) => return Err(RequestError::Create(error)),
    };
    let meta = there.metadata;
    Ok(Asked { name: meta.name.unwrap_or_default(), uid: meta.uid.unwrap_or_default() })
}

/// Whether a request is for this key and this user.
fn is_same(
    there: &CertificateSigningRequest,
    purpose: Purpose,
    template: &Template,
    key: &KeyPair,
) -> Result<(), String> {
    if there.spec.signer_name != purpose.signer {
        return Err(format!(
            "csr signerNames differ: new {:?}, orig: {:?}",
            there.spec.signer_name, purpose.signer
        ));
    }
    let unread = |error: &dyn std::fmt::Display| format!("unable to parse new csr: {error}");
    let (_, block) =
        x509_parser::pem::parse_x509_pem(&there.spec.request.0).map_err(|error| unread(&error))?;
    let (_, parsed) = X509CertificationRequest::from_der(&block.contents).map_err(|error| unread(&error))?;
    let info = &parsed.certification_request_info;
    let user = info.subject.iter_common_name().next().and_then(|name| name.as_str().ok());
    if user != Some(template.user.as_str()) {
        return Err(format!("csr subjects differ: new: {}, orig: {}", info.subject, template.user));
    }
    if info.subject_pki.raw != key.subject_public_key_info() {
        return Err("error validating signature new CSR against old key".to_owned());
    }
    Ok(())
}

/// Waits for a certificate, PEM.
///
/// # Errors
/// The request is denied, fails, or goes.
pub async fn issued(client: &Client, asked: &Asked) -> Result<String, RequestError> {
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let only = watcher::Config::default().fields(&format!("metadata.name={}", asked.name));
    let mut events = std::pin::pin!(watcher(api, only).default_backoff());
    let gone = || RequestError::Deleted(asked.name.clone());
    let mut is_there = false;
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Apply(csr) | watcher::Event::InitApply(csr)) => {
                is_there = true;
                if csr.metadata.uid.as_deref() != Some(asked.uid.as_str()) {
                    return Err(gone());
                }
                if let Some(certificate) = outcome(&csr)? {
                    return Ok(certificate);
                }
            }
            Ok(watcher::Event::Init) => is_there = false,
            Ok(watcher::Event::InitDone) if !is_there => return Err(gone()),
            Ok(watcher::Event::InitDone) => {}
            Ok(watcher::Event::Delete(_)) => return Err(gone()),
            Err(error) => tracing::debug!(%error, "a certificate signing request cannot be watched"),
        }
    }
    Err(gone())
}

/// What became of a request: a certificate, or nothing yet.
fn outcome(csr: &CertificateSigningRequest) -> Result<Option<String>, RequestError> {
    let Some(status) = &csr.status else { return Ok(None) };
    for condition in status.conditions.iter().flatten() {
        let how = match condition.type_.as_str() {
            "Denied" => "is denied",
            "Failed" => "failed",
            _ => continue,
        };
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let (reason, message) = (text(&condition.reason), text(&condition.message));
        return Err(RequestError::Refused(format!("{how}, reason: {reason}, message: {message}")));
    }
    let certificate = status.certificate.as_ref().filter(|certificate| !certificate.0.is_empty());
    Ok(certificate.map(|certificate| String::from_utf8_lossy(&certificate.0).into_owned()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn template() -> Template {
        Template {
            hosts: ["a.test".to_owned()].into(),
            addresses: ["10.0.0.1".parse().unwrap()].into(),
            ..Template::of_node("a")
        }
    }

    #[test]
    fn a_certificate_must_say_what_is_asked_for() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["a.test".to_owned(), "10.0.0.1".to_owned()]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, NODES);
        params.distinguished_name.push(DnType::CommonName, "system:node:a");
        let pair = Pair::from_pem(&params.self_signed(&key).unwrap().pem(), &key.serialize_pem()).unwrap();
        assert!(template().is_met_by(&pair) && Template::of_node("a").is_met_by(&pair));
        assert!(!Template::of_node("b").is_met_by(&pair));
        let more = Template { hosts: ["a.test".to_owned(), "b.test".to_owned()].into(), ..template() };
        assert!(!more.is_met_by(&pair));
        let elsewhere = Template { addresses: ["10.0.0.2".parse().unwrap()].into(), ..template() };
        assert!(!elsewhere.is_met_by(&pair));
    }

    #[test]
    fn a_request_is_found_again_by_its_key() {
        let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let name = template().name(&key, CLIENT);
        // SHA-512/256 in base64, as the name of an object: upstream's is the same length.
        assert_eq!((name.len(), name.as_str()), (9 + 43, template().name(&key, CLIENT).as_str()));
        assert_ne!(name, template().name(&other, CLIENT));
        let mut csr: CertificateSigningRequest = serde_json::from_value(json!({
            "spec": {"request": "", "signerName": CLIENT.signer}}))
        .unwrap();
        csr.spec.request = ByteString(template().request(&key).unwrap().into_bytes());
        assert_eq!(is_same(&csr, CLIENT, &template(), &key), Ok(()));
        assert!(is_same(&csr, CLIENT, &template(), &other).is_err());
        assert!(is_same(&csr, CLIENT, &Template::of_node("b"), &key).is_err());
        assert!(is_same(&csr, SERVING, &template(), &key).is_err());
    }

    #[test]
    fn what_becomes_of_a_request_is_told() {
        let csr = |status: serde_json::Value| -> CertificateSigningRequest {
            serde_json::from_value(json!({"spec": {"request": "", "signerName": "x"}, "status": status}))
                .unwrap()
        };
        assert!(outcome(&csr(json!({}))).unwrap().is_none());
        let approved = json!([{"type": "Approved", "status": "True"}]);
        assert!(outcome(&csr(json!({"conditions": approved}))).unwrap().is_none());
        let issued = outcome(&csr(json!({"conditions": approved, "certificate": "UEVN"}))).unwrap();
        assert_eq!(issued.as_deref(), Some("PEM"));
        let failed = json!([{"type": "Failed", "status": "True", "reason": "R", "message": "m"}]);
        let said = outcome(&csr(json!({"conditions": failed}))).unwrap_err().to_string();
        assert_eq!(said, "certificate signing request failed, reason: R, message: m");
    }
}
