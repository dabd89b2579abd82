//! CertificateApproval, CertificateSigning and CertificateSubjectRestriction: who may say yes to which signer's requests,
//! who may sign them, and what nobody may ask a client certificate for (KEP-1513). ClusterTrustBundleAttest: who may say
//! whom to believe in a signer's name (KEP-3257). And who may say what became of a pod's request (KEP-4317), which
//! upstream asks where those are stored: it is no plugin that can be turned off.

use async_trait::async_trait;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::certificates::v1beta1::{ClusterTrustBundle, PodCertificateRequest};
use krate_api::{FieldErrors, FieldPath, StatusError, kinds};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

use super::escalation::is_collection;
use super::{Admit, Attributes};
use crate::auth::{Authorizer, MASTERS};
use crate::rbac::{Ask, Target};
use crate::registry::erased::Object;
use crate::registry::prepare::differ;

const CLIENT: &str = "kubernetes.io/kube-apiserver-client";

fn typed(object: Option<&dyn Object>) -> Option<&CertificateSigningRequest> {
    object.and_then(|o| o.is::<CertificateSigningRequest>())
}

/// Whether a user has a verb on a signer, by its name or by all of its domain's.
fn may(authorizer: &Authorizer, attributes: &Attributes, verb: &str, signer: &str) -> bool {
    let domain = signer.split('/').next().unwrap_or_default();
    [signer.to_owned(), format!("{domain}/*")].iter().any(|name| {
        let target = Target::Resource {
            group: kinds::CERTIFICATE_SIGNING_REQUEST.group,
            resource: "signers",
            subresource: "",
            namespace: "",
            name,
        };
        let ask = Ask {
            user: &attributes.user.name,
            groups: &attributes.user.groups,
            verb,
            target,
            uid: &attributes.user.uid,
            extra: Some(&attributes.user.extra),
            ..Ask::default()
        };
        authorizer.allows(&ask).is_some()
    })
}

fn is_about(attributes: &Attributes, subresource: &str) -> bool {
    attributes.kind.gvk() == kinds::CERTIFICATE_SIGNING_REQUEST.gvk() && attributes.subresource == subresource
}

pub struct CertificateApproval(pub Authorizer);

#[async_trait]
impl Admit for CertificateApproval {
    async fn validate(
        &self,
        attributes: &Attributes,
        _object: Option<&dyn Object>,
        old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        if !is_about(attributes, "approval") {
            return Ok(());
        }
        let Some(old) = typed(old) else { return Ok(()) };
        let signer = &old.spec.signer_name;
        if may(&self.0, attributes, "approve", signer) {
            return Ok(());
        }
        let why = format!("user not permitted to approve requests with signerName {signer:?}");
        Err(attributes.forbidden(why))
    }
}

/// Whether a status says another thing of a request: its certificate, or any of its conditions.
fn signs(new: &CertificateSigningRequest, old: &CertificateSigningRequest) -> bool {
    let certificate =
        |csr: &CertificateSigningRequest| csr.status.as_ref().and_then(|s| s.certificate.clone());
    let conditions = |csr: &CertificateSigningRequest| {
        csr.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default()
    };
    certificate(new) != certificate(old) || conditions(new) != conditions(old)
}

pub struct CertificateSigning(pub Authorizer);

#[async_trait]
impl Admit for CertificateSigning {
    async fn validate(
        &self,
        attributes: &Attributes,
        object: Option<&dyn Object>,
        old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        if !is_about(attributes, "status") {
            return Ok(());
        }
        let (Some(new), Some(old)) = (typed(object), typed(old)) else { return Ok(()) };
        if !signs(new, old) {
            return Ok(());
        }
        let signer = &old.spec.signer_name;
        if may(&self.0, attributes, "sign", signer) {
            return Ok(());
        }
        let why = format!("user not permitted to sign requests with signerName {signer:?}");
        Err(attributes.forbidden(why))
    }
}

pub struct ClusterTrustBundleAttest(pub Authorizer);

#[async_trait]
impl Admit for ClusterTrustBundleAttest {
    async fn validate(
        &self,
        attributes: &Attributes,
        object: Option<&dyn Object>,
        old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        if !attributes.is(&kinds::CLUSTER_TRUST_BUNDLE) {
            return Ok(());
        }
        let Some(object) = object else { return Ok(()) };
        let bundle = object.is::<ClusterTrustBundle>();
        let signer = bundle.and_then(|bundle| bundle.spec.signer_name.as_deref()).unwrap_or_default();
        // What changes nothing of what a bundle means is not its writer's word.
        if signer.is_empty()
            || old.is_some_and(|old| is_collection(object, old))
            || may(&self.0, attributes, "attest", signer)
        {
            return Ok(());
        }
        Err(attributes.forbidden(format!("user not permitted to attest for signerName {signer:?}")))
    }
}

pub struct PodCertificateSigning(pub Authorizer);

#[async_trait]
impl Admit for PodCertificateSigning {
    async fn validate(
        &self,
        attributes: &Attributes,
        object: Option<&dyn Object>,
        old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        let kind = &kinds::POD_CERTIFICATE_REQUEST;
        if attributes.kind.gvk() != kind.gvk() || attributes.subresource != "status" {
            return Ok(());
        }
        let typed = |object: Option<&dyn Object>| object?.is::<PodCertificateRequest>().cloned();
        let (Some(new), Some(old)) = (typed(object), typed(old)) else { return Ok(()) };
        let signer = &old.spec.signer_name;
        if !differ(&new.status, &old.status) || may(&self.0, attributes, "sign", signer) {
            return Ok(());
        }
        let user = &attributes.user.name;
        let mut errors = FieldErrors::new();
        errors.forbidden(
            &FieldPath::new("spec").child("signerName"),
            format!("User {user:?} is not permitted to \"sign\" for signer {signer:?}"),
        );
        Err(StatusError::invalid(kind.gvk(), &attributes.name, &errors))
    }
}

pub struct CertificateSubjectRestriction;

#[async_trait]
impl Admit for CertificateSubjectRestriction {
    async fn validate(
        &self,
        attributes: &Attributes,
        object: Option<&dyn Object>,
        _old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        if !is_about(attributes, "") {
            return Ok(());
        }
        let Some(csr) = typed(object).filter(|csr| csr.spec.signer_name == CLIENT) else { return Ok(()) };
        let subject = Subject::of_request(&csr.spec.request.0)
            .map_err(|why| attributes.forbidden(format!("unable to parse spec.request: {why}")))?;
        if subject.organizations.iter().any(|organization| organization == MASTERS) {
            let why = format!("use of {CLIENT} signer with {MASTERS} group is not allowed");
            return Err(attributes.forbidden(why));
        }
        Ok(())
    }
}

/// Whom a certificate is asked for: a user's name, and the groups.
pub struct Subject {
    pub common_name: String,
    pub organizations: Vec<String>,
}

impl Subject {
    /// Out of a request, PEM.
    ///
    /// # Errors
    /// It is none.
    pub fn of_request(pem: &[u8]) -> Result<Self, String> {
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem).map_err(|error| error.to_string())?;
        let (_, request) =
            X509CertificationRequest::from_der(&pem.contents).map_err(|error| error.to_string())?;
        let subject = &request.certification_request_info.subject;
        let name = subject.iter_common_name().next().and_then(|name| name.as_str().ok());
        Ok(Subject {
            common_name: name.unwrap_or_default().to_owned(),
            organizations: subject
                .iter_organization()
                .filter_map(|o| o.as_str().ok())
                .map(str::to_owned)
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn who_tells_another_condition_signs() {
        let csr = |status: Value| -> CertificateSigningRequest {
            serde_json::from_value(json!({"metadata": {"name": "r"}, "status": status,
                "spec": {"request": "", "signerName": "a.test/b", "usages": []}}))
            .expect("a request")
        };
        let told = |kind: &str| csr(json!({"conditions": [{"type": kind, "status": "True"}]}));
        let none = csr(json!({}));
        assert!(!signs(&none, &none));
        assert!(!signs(&csr(json!({"conditions": []})), &none));
        assert!(signs(&told("Failed"), &none));
        assert!(signs(&told("Other"), &none), "whatever its type");
        assert!(signs(&csr(json!({"certificate": "YQ=="})), &none));
    }

    #[test]
    fn a_requests_groups_are_read_from_its_subject() {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, MASTERS);
        params.distinguished_name.push(rcgen::DnType::CommonName, "amy");
        let csr = params.serialize_request(&key).expect("a request").pem().expect("PEM");
        let subject = Subject::of_request(csr.as_bytes()).expect("a request");
        assert_eq!((subject.common_name.as_str(), subject.organizations), ("amy", vec![MASTERS.to_owned()]));
        assert!(Subject::of_request(b"nothing").is_err());
    }
}
