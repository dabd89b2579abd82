//! CertificateSigningRequest: someone asks for a certificate.

use std::collections::BTreeSet;

use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use krate_api::{FieldErrors, FieldPath, Kind, kinds};
use krate_pki::pem;
use serde_json::Value;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::metrics::METRICS;
use super::public_key::{CertificateRequest, PublicKey};
use super::signer::signer_name;
use crate::registry::column::{age, human_duration, name, or_none, text};
use crate::registry::prepare::differ;
use crate::registry::rules::{IMMUTABLE, one_of};
use crate::registry::{Column, Context, Selectable, Strategy};

/// As v1beta1 documents it, by which the column is described.
const SIGNER: &str = "Requested signer for the request. It is a qualified name in the form: \
    `scope-hostname.io/name`. If empty, it will be defaulted:\n \
    1. If it's a kubelet client certificate, it is assigned\n    \
    \"kubernetes.io/kube-apiserver-client-kubelet\".\n \
    2. If it's a kubelet serving certificate, it is assigned\n    \
    \"kubernetes.io/kubelet-serving\".\n \
    3. Otherwise, it is assigned \"kubernetes.io/legacy-unknown\".\n\
    Distribution of trust for signers happens out of band. You can select on this field using `spec.signerName`.";

impl Strategy for CertificateSigningRequest {
    const KIND: &'static Kind = &kinds::CERTIFICATE_SIGNING_REQUEST;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        age(),
        text("SignerName", SIGNER, |c| or_none(Some(&c.spec.signer_name))),
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
        let user = context.user.info();
        self.spec.username = user.username;
        self.spec.uid = user.uid;
        self.spec.groups = user.groups;
        self.spec.extra = user.extra;
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
            self.stamp(old);
        } else {
            self.status.clone_from(&old.status);
        }
    }

    fn prepare_for_status_update(&mut self, old: &Self, _: &Context) {
        self.spec.clone_from(&old.spec);
        for decision in DECISIONS {
            self.keep(old, decision);
        }
        self.stamp(old);
    }

    /// Whatever can stand in a path: kubelets name theirs by a hash, with capital letters.
    fn validate_name(name: &str) -> Vec<String> {
        krate_api::names::is_path_segment_name(name, false)
    }

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec");
        if let Some(why) = no_request(&self.spec.request.0) {
            errors.invalid(&at.child("request"), &self.spec.request, why);
        }
        let usages = self.spec.usages.as_deref().unwrap_or_default();
        if usages.is_empty() {
            errors.required(&at.child("usages"), "");
        }
        for (i, usage) in usages.iter().enumerate() {
            if !USAGES.contains(&usage.as_str()) {
                errors.not_supported(&at.child("usages").index(i), usage, &USAGES);
            }
        }
        let mut seen = BTreeSet::new();
        for (i, usage) in usages.iter().enumerate() {
            if !seen.insert(usage) {
                errors.duplicate(&at.child("usages").index(i), usage);
            }
        }
        if self.spec.signer_name == LEGACY {
            let why = "the legacy signerName is not allowed via this API version";
            errors.invalid(&at.child("signerName"), LEGACY, why);
        } else {
            signer_name(&self.spec.signer_name, &at.child("signerName"), errors);
        }
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
        let at = at.child("status").child("conditions");
        conditions(self, old, &at, errors);
        keeps_conditions(self, old, &at, errors);
    }

    fn validate_status_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        let at_conditions = at.child("status").child("conditions");
        conditions(self, old, &at_conditions, errors);
        let certificate =
            |c: &Self| c.status.as_ref().and_then(|s| s.certificate.clone()).filter(|c| !c.0.is_empty());
        if let Some(new) = certificate(self).filter(|new| certificate(old).as_ref() != Some(new))
            && let Some(why) = no_certificates(&new.0)
        {
            errors.invalid(&at.child("status").child("certificate"), "<certificate data>", why);
        }
        keeps_conditions(self, old, &at_conditions, errors);
        for kind in DECISIONS {
            let (is, was) = (of_kind(self, kind).count(), of_kind(old, kind).count());
            if is > was {
                errors.forbidden(&at_conditions, format!("updates may not add a condition of type {kind:?}"));
            }
        }
        if let Some(was) = certificate(old)
            && certificate(self).as_ref() != Some(&was)
        {
            errors.forbidden(
                &at.child("status").child("certificate"),
                "updates may not modify existing certificate content",
            );
        }
    }

    fn updated(&self, old: &Self) {
        METRICS.changed(old, self);
    }

    fn selectable(&self) -> Selectable {
        vec![("spec.signerName", self.spec.signer_name.clone())]
    }
}

/// Whose requests v1beta1 alone has made.
const LEGACY: &str = "kubernetes.io/legacy-unknown";

/// Whether a certificate is to be issued: said through `approval` alone, once.
const DECISIONS: [&str; 2] = ["Approved", "Denied"];

fn of_kind<'a>(
    csr: &'a CertificateSigningRequest,
    kind: &'a str,
) -> impl Iterator<Item = &'a CertificateSigningRequestCondition> {
    let all = csr.status.iter().flat_map(|status| status.conditions.iter().flatten());
    all.filter(move |condition| condition.type_ == kind)
}

/// What was decided, or has failed, stays so.
fn keeps_conditions(
    csr: &CertificateSigningRequest,
    old: &CertificateSigningRequest,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    for kind in DECISIONS.into_iter().chain(["Failed"]) {
        if of_kind(csr, kind).count() < of_kind(old, kind).count() {
            errors.forbidden(at, format!("updates may not remove a condition of type {kind:?}"));
        }
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

fn said(csr: &CertificateSigningRequest) -> &[CertificateSigningRequestCondition] {
    csr.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default()
}

/// Conditions have types and states, each type once. What was wrong with them before is let be.
fn conditions(
    csr: &CertificateSigningRequest,
    old: &CertificateSigningRequest,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    let (all, before) = (said(csr), said(old));
    let mut known = BTreeSet::new();
    let repeats = !before.iter().all(|condition| known.insert(condition.type_.as_str()));
    let was_both = DECISIONS.iter().all(|kind| of_kind(old, kind).next().is_some());
    let had_empty = before.iter().any(|condition| condition.type_.is_empty());
    let mut seen = BTreeSet::new();
    for (i, condition) in all.iter().enumerate() {
        let (kind, status) = (condition.type_.as_str(), condition.status.as_str());
        let at_item = at.index(i);
        if kind.is_empty() && !had_empty {
            errors.required(&at_item.child("type"), "");
        }
        let is_decided = DECISIONS.contains(&kind) || kind == "Failed";
        let states: &[&str] = if is_decided { &["True"] } else { &["False", "True", "Unknown"] };
        if status.is_empty() {
            errors.required(&at_item.child("status"), "");
        } else {
            one_of(status, states, &at_item.child("status"), errors);
        }
        let other = DECISIONS.iter().find(|decision| DECISIONS.contains(&kind) && **decision != kind);
        if !was_both && other.is_some_and(|other| seen.contains(other)) {
            errors.invalid(at, kind, "Approved and Denied conditions are mutually exclusive");
        }
        if !seen.insert(kind) && !repeats {
            errors.duplicate(&at_item.child("type"), kind);
        }
    }
}

/// Why a text is no request that its key has signed.
fn no_request(text: &[u8]) -> Option<&'static str> {
    let block = pem::blocks(&String::from_utf8_lossy(text)).next();
    let Some(block) = block.filter(|block| block.kind == "CERTIFICATE REQUEST") else {
        return Some("PEM block type must be CERTIFICATE REQUEST");
    };
    let Some(request) = CertificateRequest::read(&block.bytes) else {
        return Some("asn1: structure error: malformed certificate request");
    };
    match request.key {
        _ if request.is_signed => None,
        PublicKey::Rsa { .. } => Some("crypto/rsa: verification error"),
        PublicKey::Elliptic(..) => Some("x509: ECDSA verification failure"),
        PublicKey::Ed25519(_) => Some("x509: Ed25519 verification failure"),
        PublicKey::Other => Some("x509: cannot verify signature: algorithm unimplemented"),
    }
}

/// Why a text is not made of certificates.
fn no_certificates(text: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(text);
    let mut found = false;
    for block in pem::blocks(&text) {
        if block.kind != "CERTIFICATE" {
            return Some(format!("only CERTIFICATE PEM blocks are allowed, found {:?}", block.kind));
        }
        if block.has_headers {
            return Some("no PEM block headers are permitted".to_owned());
        }
        if block.bytes.is_empty() {
            return Some("found CERTIFICATE PEM block containing 0 certificates".to_owned());
        }
        let mut rest: &[u8] = &block.bytes;
        while !rest.is_empty() {
            let Ok((after, _)) = X509Certificate::from_der(rest) else {
                return Some("x509: malformed certificate".to_owned());
            };
            rest = after;
        }
        found = true;
    }
    (!found).then(|| "must contain at least one CERTIFICATE PEM block".to_owned())
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

trait Conditions {
    fn keep(&mut self, old: &Self, kind: &str);
    fn stamp(&mut self, old: &Self);
}

impl Conditions for CertificateSigningRequest {
    /// Leaves the conditions of a kind as they were, unless some were added or taken away.
    fn keep(&mut self, old: &Self, kind: &str) {
        if of_kind(self, kind).count() != of_kind(old, kind).count() {
            return;
        }
        let mut before = of_kind(old, kind).cloned();
        let all = self.status.iter_mut().flat_map(|status| status.conditions.iter_mut().flatten());
        for condition in all.filter(|condition| condition.type_ == kind) {
            if let Some(before) = before.next() {
                *condition = before;
            }
        }
    }

    /// Conditions are dated by the server, by when they first were what they are.
    fn stamp(&mut self, old: &Self) {
        let now = crate::path::now();
        for condition in self.status.iter_mut().flat_map(|status| status.conditions.iter_mut().flatten()) {
            condition.last_update_time.get_or_insert_with(|| now.clone());
            let before = of_kind(old, &condition.type_).find(|before| before.status == condition.status);
            let since = before.and_then(|before| before.last_transition_time.clone());
            condition.last_transition_time.get_or_insert_with(|| since.unwrap_or_else(|| now.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::auth::User;

    fn request(conditions: Value) -> CertificateSigningRequest {
        serde_json::from_value(json!({
            "metadata": {"name": "r"},
            "spec": {"request": "", "signerName": "example.com/s", "username": "else", "groups": ["system:masters"]},
            "status": {"conditions": conditions}}))
        .expect("a request")
    }

    #[test]
    fn who_asks_is_whom_the_server_knows() {
        let mut user = User::authenticated("amy", &["dev"]);
        user.extra.insert("k".to_owned(), vec!["v".to_owned()]);
        let mut made = request(json!([{"type": "Approved", "status": "True"}]));
        made.prepare_for_create(&Context { user: Arc::new(user), ..Context::default() });
        assert_eq!(made.spec.username.as_deref(), Some("amy"));
        assert_eq!(
            made.spec.groups.as_deref(),
            Some(&["dev".to_owned(), "system:authenticated".to_owned()][..])
        );
        assert_eq!(made.spec.extra.map(|extra| extra["k"].clone()), Some(vec!["v".to_owned()]));
        assert_eq!(made.status.and_then(|status| status.conditions), None, "nobody approves their own");
    }

    #[test]
    fn a_name_is_what_can_stand_in_a_path() {
        let judged = |name: &str| CertificateSigningRequest::validate_name(name).is_empty();
        assert!(judged("node-csr-KxkgOpGziwQHJcb0q3EVn-89DLDaAXsF13U-hBJcOTU"));
        assert!(!judged("a/b") && !judged(".."));
    }

    #[test]
    fn only_the_approval_decides_and_once() {
        let judged = |new: Value, old: Value| {
            let (mut new, old) = (request(new), request(old));
            let mut errors = FieldErrors::new();
            new.prepare_for_status_update(&old, &Context::default());
            new.validate_status_update(&old, &FieldPath::new(""), &mut errors);
            (new, errors)
        };
        let approved = json!([{"type": "Approved", "status": "True", "reason": "R", "lastUpdateTime": "2026-01-01T00:00:00Z",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
        let (_, added) = judged(approved.clone(), json!([]));
        assert!(format!("{added:?}").contains("updates may not add a condition of type"), "{added:?}");
        let (_, removed) = judged(json!([]), approved.clone());
        assert!(format!("{removed:?}").contains("updates may not remove a condition of type"), "{removed:?}");
        let (kept, errors) = judged(json!([{"type": "Approved", "status": "True", "reason": "S"}]), approved);
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!(of_kind(&kept, "Approved").next().and_then(|c| c.reason.as_deref()), Some("R"));
        let (dated, _) = judged(json!([{"type": "Failed", "status": "True"}]), json!([]));
        assert!(of_kind(&dated, "Failed").all(|c| c.last_transition_time.is_some()));
    }

    #[test]
    fn a_request_is_signed_by_its_key() {
        let key = rcgen::KeyPair::generate().expect("a key");
        let request = rcgen::CertificateParams::default().serialize_request(&key).expect("a request");
        let text = request.pem().expect("PEM");
        assert_eq!(no_request(text.as_bytes()), None);
        let mut forged = request.der().to_vec();
        if let Some(last) = forged.last_mut() {
            *last ^= 1;
        }
        let forged = pem::block("CERTIFICATE REQUEST", &forged);
        assert_eq!(no_request(forged.as_bytes()), Some("x509: ECDSA verification failure"));
        let other = text.replace("CERTIFICATE REQUEST", "CERTIFICATE");
        assert_eq!(no_request(other.as_bytes()), Some("PEM block type must be CERTIFICATE REQUEST"));
    }

    #[test]
    fn certificates_are_certificates() {
        let key = rcgen::KeyPair::generate().expect("a key");
        let text = rcgen::CertificateParams::default().self_signed(&key).expect("signed").pem();
        assert_eq!(no_certificates(text.as_bytes()), None);
        let told = |text: &str| no_certificates(text.as_bytes()).unwrap_or_default();
        assert_eq!(told("words"), "must contain at least one CERTIFICATE PEM block");
        let key = text.replace("CERTIFICATE", "PRIVATE KEY");
        assert_eq!(told(&key), "only CERTIFICATE PEM blocks are allowed, found \"PRIVATE KEY\"");
    }

    #[test]
    fn conditions_have_types_and_states() {
        let told = |new: Value, old: Value| {
            let mut errors = FieldErrors::new();
            conditions(&request(new), &request(old), &FieldPath::new("x"), &mut errors);
            errors.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let wrong = json!([{"type": "", "status": ""}, {"type": "Approved", "status": "False"},
            {"type": "Denied", "status": "True"}, {"type": "a", "status": "True"}, {"type": "a", "status": "True"}]);
        assert_eq!(
            told(wrong.clone(), json!([])),
            [
                "x[0].type: Required value",
                "x[0].status: Required value",
                "x[1].status: Unsupported value: \"False\": supported values: \"True\"",
                "x: Invalid value: \"Denied\": Approved and Denied conditions are mutually exclusive",
                "x[4].type: Duplicate value: \"a\"",
            ]
        );
        assert_eq!(told(wrong.clone(), wrong).len(), 2, "states are looked at always");
    }
}
