//! CertificateSigningRequest: someone asks for a certificate.

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};
use serde_json::Value;

use crate::registry::column::{age, human_duration, name, text};
use crate::registry::prepare::differ;
use crate::registry::rules::{IMMUTABLE, label_name};
use crate::registry::{Column, Context, Selectable, Strategy};

impl Strategy for CertificateSigningRequest {
    const KIND: &'static Kind = &kinds::CERTIFICATE_SIGNING_REQUEST;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        age(),
        text("SignerName", "Who is to sign it.", |c| c.spec.signer_name.as_str().into()),
        text("Requestor", "Base64-encoded PKCS#10 CSR data", |c| {
            c.spec.username.as_deref().unwrap_or_default().into()
        }),
        text(
            "RequestedDuration",
            "io.k8s.api.certificates.v1.CertificateSigningRequestSpec.expirationSeconds",
            |c| match c.spec.expiration_seconds {
                Some(seconds) => human_duration(i64::from(seconds)).into(),
                None => "<none>".into(),
            },
        ),
        text("Condition", "Conditions applied to the request, such as approval or denial.", condition),
    ];

    fn default(&mut self) {
        self.status.get_or_insert_default();
    }

    fn prepare_for_create(&mut self, context: &Context) {
        // Who asks is what the server knows, not what they say.
        self.spec.username = Some(context.user.clone());
        self.spec.uid = None;
        self.spec.groups = None;
        self.spec.extra = None;
        self.status = None;
        self.status.get_or_insert_default();
    }

    fn prepare_for_update(&mut self, old: &Self, context: &Context) {
        self.spec.clone_from(&old.spec);
        if context.subresource == "approval" {
            // An approver decides, and leaves the certificate to the signer.
            let conditions = self.status.take().and_then(|s| s.conditions);
            self.status.clone_from(&old.status);
            self.status.get_or_insert_default().conditions = conditions;
            self.stamp();
        } else {
            self.status.clone_from(&old.status);
        }
    }

    fn prepare_for_status_update(&mut self, old: &Self, _: &Context) {
        self.spec.clone_from(&old.spec);
        self.stamp();
    }

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec");
        let request = &self.spec.request.0;
        if !is_request(request) {
            errors.invalid(
                &at.child("request"),
                &self.spec.request,
                "PEM block type must be CERTIFICATE REQUEST",
            );
        }
        let usages = self.spec.usages.as_deref().unwrap_or_default();
        if usages.is_empty() {
            errors.required(&at.child("usages"), "");
        }
        for (i, usage) in usages.iter().enumerate() {
            if !USAGES.contains(&usage.as_str()) {
                errors.not_supported(&at.child("usages").index(i), usage, &USAGES);
            } else if usages[..i].contains(usage) {
                errors.duplicate(&at.child("usages").index(i), usage);
            }
        }
        signer_name(&self.spec.signer_name, &at.child("signerName"), errors);
        if let Some(seconds) = self.spec.expiration_seconds.filter(|s| *s < 600) {
            errors.invalid(
                &at.child("expirationSeconds"),
                seconds,
                "may not specify a duration less than 600 seconds (10 minutes)",
            );
        }
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        if differ(&self.spec, &old.spec) {
            errors.invalid(&at.child("spec"), &self.spec, IMMUTABLE);
        }
    }

    fn validate_status_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        let certificate =
            |c: &Self| c.status.as_ref().and_then(|s| s.certificate.clone()).filter(|c| !c.0.is_empty());
        if let Some(was) = certificate(old)
            && certificate(self).as_ref() != Some(&was)
        {
            errors.forbidden(
                &at.child("status").child("certificate"),
                "updates may not modify a certificate once it is set",
            );
        }
    }

    fn selectable(&self) -> Selectable {
        vec![("spec.signerName", self.spec.signer_name.clone())]
    }
}

const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

fn is_request(pem: &[u8]) -> bool {
    let text = String::from_utf8_lossy(pem);
    text.contains("-----BEGIN CERTIFICATE REQUEST-----") && text.contains("-----END CERTIFICATE REQUEST-----")
}

/// `example.com/name`: a domain and a path.
fn signer_name(name: &str, at: &FieldPath, errors: &mut FieldErrors) {
    if name.is_empty() {
        errors.required(at, "");
        return;
    }
    match name.split_once('/') {
        Some((domain, path)) if !path.is_empty() && domain.contains('.') => {
            crate::registry::rules::dns_subdomain(domain, at, errors);
        }
        Some(_) => label_name(name, at, errors),
        None => errors.invalid(
            at,
            name,
            "must be a fully qualified domain and path of the form 'example.com/signer-name'",
        ),
    }
}

fn condition(c: &CertificateSigningRequest) -> Value {
    let conditions = c.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let is = |kind: &str| conditions.iter().any(|c| c.type_ == kind);
    let issued = c.status.as_ref().and_then(|s| s.certificate.as_ref()).is_some_and(|c| !c.0.is_empty());
    let mut words = Vec::new();
    if is("Denied") {
        words.push("Denied");
    } else if is("Approved") {
        words.push("Approved");
    } else {
        words.push("Pending");
    }
    if is("Failed") {
        words.push("Failed");
    }
    if issued {
        words.push("Issued");
    }
    words.join(",").into()
}

trait Stamp {
    fn stamp(&mut self);
}

impl Stamp for CertificateSigningRequest {
    /// Conditions are dated by the server.
    fn stamp(&mut self) {
        use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
        let now = jiff::Timestamp::now();
        let now = jiff::Timestamp::from_second(now.as_second()).unwrap_or(now);
        for condition in self.status.iter_mut().flat_map(|s| s.conditions.iter_mut().flatten()) {
            condition.last_update_time.get_or_insert(Time(now));
            condition.last_transition_time.get_or_insert(Time(now));
        }
    }
}
