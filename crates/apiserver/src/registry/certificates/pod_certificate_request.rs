//! PodCertificateRequest: a kubelet asks for a certificate of one of its pods (KEP-4317). Nothing of what it asks
//! changes; what became of it is said once.

use std::sync::LazyLock;

use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1beta1::PodCertificateRequest;
use krate_api::names::is_dns1123_subdomain;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};
use serde_json::Value;

use super::pod_certificate_status;
use super::public_key::{CertificateRequest, Curve, PublicKey};
use super::signer::{is_kubernetes, signer_name, user_annotations};
use crate::registry::column::{labels, name, text};
use crate::registry::prepare::differ;
use crate::registry::rules::{IMMUTABLE, each, invalid_unshown};
use crate::registry::{Column, Context, Selectable, Strategy};

/// For how long a certificate may be asked, in seconds: of any signer, and of the Kubernetes project's.
pub const MIN_SECONDS: i32 = 60 * 60;
pub const MAX_SECONDS: i32 = 91 * 24 * 60 * 60;
pub const MAX_SECONDS_OF_KUBERNETES: i32 = 24 * 60 * 60;
/// For how long it is asked where nobody says.
const DEFAULT_SECONDS: i32 = 24 * 60 * 60;
/// The longest key, proof or request, in bytes.
const MAX_BYTES: usize = 10 * 1024;
const MAX_UID: usize = 128;

/// The most that a signer's certificates may be asked to last.
pub fn longest(signer: &str) -> i32 {
    if is_kubernetes(signer) { MAX_SECONDS_OF_KUBERNETES } else { MAX_SECONDS }
}

macro_rules! documented {
    ($field:literal) => {
        concat!("io.k8s.api.certificates.v1beta1.PodCertificateRequestSpec.", $field)
    };
}

impl Strategy for PodCertificateRequest {
    const KIND: &'static Kind = &kinds::POD_CERTIFICATE_REQUEST;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text("PodName", documented!("podName"), |r| r.spec.pod_name.as_str().into()),
        text("ServiceAccountName", documented!("serviceAccountName"), |r| {
            r.spec.service_account_name.as_str().into()
        }),
        text("NodeName", documented!("nodeName"), |r| r.spec.node_name.as_str().into()),
        text("SignerName", documented!("signerName"), |r| r.spec.signer_name.as_str().into()),
        text("State", "Is the request Pending, Issued, Denied, or Failed?", state),
        text("UnverifiedUserAnnotations", documented!("unverifiedUserAnnotations"), |r| {
            labels(r.spec.unverified_user_annotations.as_ref())
        }),
    ];
    const ALLOW_UNCONDITIONAL_UPDATE: bool = false;

    fn default(&mut self) {
        self.spec.max_expiration_seconds.get_or_insert(DEFAULT_SECONDS);
        self.status.get_or_insert_default();
    }

    fn prepare_for_create(&mut self, _: &Context) {
        self.status = None;
        self.status.get_or_insert_default();
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context) {
        self.status.clone_from(&old.status);
    }

    fn prepare_for_status_update(&mut self, old: &Self, _: &Context) {
        self.spec.clone_from(&old.spec);
        let (meta, was) = (&mut self.metadata, &old.metadata);
        meta.labels.clone_from(&was.labels);
        meta.annotations.clone_from(&was.annotations);
        meta.finalizers.clone_from(&was.finalizers);
        meta.owner_references.clone_from(&was.owner_references);
    }

    fn validate(&self, _: &FieldPath, _: &mut FieldErrors) {}

    fn validate_new(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let (spec, at) = (&self.spec, at.child("spec"));
        signer_name(&spec.signer_name, &at.child("signerName"), errors);
        if let Some(annotations) = &spec.unverified_user_annotations {
            user_annotations(annotations, &at.child("unverifiedUserAnnotations"), errors);
        }
        for (who, name, uid) in [
            ("pod", &spec.pod_name, &spec.pod_uid),
            ("serviceAccount", &spec.service_account_name, &spec.service_account_uid),
            ("node", &spec.node_name, &spec.node_uid),
        ] {
            each(is_dns1123_subdomain(name), name, &at.child(&format!("{who}Name")), errors);
            let at = at.child(&format!("{who}UID"));
            if uid.is_empty() {
                errors.invalid(&at, uid, "must not be empty");
            }
            if uid.len() > MAX_UID {
                errors.too_long(&at, MAX_UID);
            }
        }
        let seconds = at.child("maxExpirationSeconds");
        let Some(asked) = spec.max_expiration_seconds else {
            errors.required(&seconds, "must be set");
            return;
        };
        let most = longest(&spec.signer_name);
        if !(MIN_SECONDS..=most).contains(&asked) {
            errors.invalid(&seconds, asked, format!("must be in the range [{MIN_SECONDS}, {most}]"));
        }
        key_and_proof(self, &at, errors);
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        if differ(&self.spec, &old.spec) {
            errors.invalid(&at.child("spec"), &self.spec, IMMUTABLE);
        }
    }

    fn validate_status_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        pod_certificate_status::validate(self, old, jiff::Timestamp::now(), &at.child("status"), errors);
    }

    fn selectable(&self) -> Selectable {
        vec![
            ("spec.nodeName", self.spec.node_name.clone()),
            ("spec.podName", self.spec.pod_name.clone()),
            ("spec.signerName", self.spec.signer_name.clone()),
        ]
    }
}

fn state(request: &PodCertificateRequest) -> Value {
    let conditions = request.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut known = conditions.map(|condition| condition.type_.as_str());
    known.rfind(|kind| pod_certificate_status::ENDS.contains(kind)).unwrap_or("Pending").into()
}

static NO_BYTES: LazyLock<ByteString> = LazyLock::new(ByteString::default);

/// A key and a signature of the pod's UID by it, or a request for a certificate that it has signed.
fn key_and_proof(request: &PodCertificateRequest, at: &FieldPath, errors: &mut FieldErrors) {
    let spec = &request.spec;
    let stub = &spec.stub_pkc_s10_request;
    let pkix = spec.pkix_public_key.as_ref().unwrap_or(&NO_BYTES);
    let proof = spec.proof_of_possession.as_ref().unwrap_or(&NO_BYTES);
    match (stub.0.is_empty(), pkix.0.is_empty(), proof.0.is_empty()) {
        (false, true, true) => of_request(&stub.0, &at.child("stubPKCS10Request"), errors),
        (true, false, false) => of_key(pkix, &proof.0, spec.pod_uid.as_bytes(), at, errors),
        _ => invalid_unshown(
            at,
            "exactly one of (stubPKCS10Request) or (pkixPublicKey, proofOfPossession) must be set",
            errors,
        ),
    }
}

fn of_key(pkix: &ByteString, proof: &[u8], uid: &[u8], at: &FieldPath, errors: &mut FieldErrors) {
    let (key_at, proof_at) = (at.child("pkixPublicKey"), at.child("proofOfPossession"));
    for (bytes, at) in [(pkix.0.as_slice(), &key_at), (proof, &proof_at)] {
        if bytes.len() > MAX_BYTES {
            errors.too_long(at, MAX_BYTES);
            return;
        }
    }
    let Some(key) = PublicKey::of_pkix(&pkix.0) else {
        errors.invalid(&key_at, pkix, "must be a valid PKIX-serialized public key");
        return;
    };
    if key == PublicKey::Other {
        let why = "unknown public key type; supported types are Ed25519, ECDSA, and RSA";
        errors.invalid(&key_at, pkix, why);
    } else if let Err((shown, why)) = is_supported(&key, "elliptic public keys must use curve P256 or P384") {
        errors.invalid(&key_at, shown, why);
    } else if !key.has_signed(uid, proof) {
        invalid_unshown(&proof_at, "could not verify proof-of-possession signature", errors);
    }
}

fn of_request(stub: &[u8], at: &FieldPath, errors: &mut FieldErrors) {
    if stub.len() > MAX_BYTES {
        errors.too_long(at, MAX_BYTES);
        return;
    }
    let Some(request) = CertificateRequest::read(stub) else {
        invalid_unshown(at, "must be a valid PKCS#10 CSR", errors);
        return;
    };
    let curves = "elliptic public keys must use curve P256, P384, or P521";
    if request.key == PublicKey::Other {
        invalid_unshown(at, "unknown public key type; supported types are Ed25519, ECDSA, and RSA", errors);
    } else if let Err((shown, why)) = is_supported(&request.key, curves) {
        errors.invalid(at, shown, why);
    } else if !request.is_signed {
        invalid_unshown(at, "invalid signature", errors);
    }
}

/// # Errors
/// No certificates are issued for such a key: what is shown of it, and why.
fn is_supported<'w>(key: &PublicKey, curves: &'w str) -> Result<(), (String, &'w str)> {
    match key {
        PublicKey::Elliptic(curve @ Curve::P224, _) => Err((format!("curve {}", curve.name()), curves)),
        PublicKey::Rsa { modulus, .. } => match PublicKey::modulus_bits(modulus) {
            3072 | 4096 => Ok(()),
            bits => Err((format!("{bits}-bit modulus"), "RSA keys must have modulus size 3072 or 4096")),
        },
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, PublicKeyData as _, SigningKey as _};
    use rsa::pkcs8::EncodePublicKey as _;
    use serde_json::json;

    use super::*;

    /// A request that is in order, and its key.
    fn request() -> (PodCertificateRequest, KeyPair) {
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
        let mut request: PodCertificateRequest = serde_json::from_value(json!({
            "metadata": {"namespace": "ns", "name": "r"},
            "spec": {"signerName": "a.test/b", "podName": "p", "podUID": "u1", "serviceAccountName": "s",
                "serviceAccountUID": "u2", "nodeName": "n", "nodeUID": "u3"}}))
        .expect("a request");
        request.spec.pkix_public_key = Some(ByteString(key.subject_public_key_info()));
        request.spec.proof_of_possession = Some(ByteString(key.sign(b"u1").expect("signed")));
        request.default();
        (request, key)
    }

    fn judged(request: &PodCertificateRequest) -> String {
        let mut errors = FieldErrors::new();
        request.validate_new(&FieldPath::new(""), &mut errors);
        errors.aggregate()
    }

    #[test]
    fn what_is_asked_is_checked_field_by_field() {
        type Change = fn(&mut PodCertificateRequest);
        let cases: &[(Change, &str)] = &[
            (|_| {}, "[]"),
            (|r| r.spec.signer_name.clear(), "spec.signerName: Required value"),
            (
                |r| r.spec.pod_name = "P".to_owned(),
                "spec.podName: Invalid value: \"P\": a lowercase RFC 1123",
            ),
            (|r| r.spec.service_account_name.clear(), "spec.serviceAccountName: Invalid value: \"\": "),
            (|r| r.spec.node_uid.clear(), "spec.nodeUID: Invalid value: \"\": must not be empty"),
            (
                |r| r.spec.service_account_uid = "u".repeat(129),
                "spec.serviceAccountUID: Too long: may not be more than 128 bytes",
            ),
            (
                |r| r.spec.max_expiration_seconds = Some(3599),
                "spec.maxExpirationSeconds: Invalid value: 3599: must be in the range [3600, 7862400]",
            ),
            (
                |r| {
                    r.spec.signer_name = "kubernetes.io/x".to_owned();
                    r.spec.max_expiration_seconds = Some(86401);
                },
                "spec.maxExpirationSeconds: Invalid value: 86401: must be in the range [3600, 86400]",
            ),
            (
                |r| r.spec.max_expiration_seconds = None,
                "spec.maxExpirationSeconds: Required value: must be set",
            ),
            (
                |r| r.spec.unverified_user_annotations = Some([("x".to_owned(), String::new())].into()),
                "spec.unverifiedUserAnnotations: Invalid value: \"x\": must be a domain-prefixed key",
            ),
            (
                |r| r.spec.proof_of_possession = None,
                "spec: Invalid value: exactly one of (stubPKCS10Request) or (pkixPublicKey, \
                 proofOfPossession) must be set",
            ),
            (
                |r| r.spec.stub_pkc_s10_request = ByteString(vec![1]),
                "spec: Invalid value: exactly one of (stubPKCS10Request) or",
            ),
            (
                |r| r.spec.pod_uid = "other".to_owned(),
                "spec.proofOfPossession: Invalid value: could not verify proof-of-possession signature",
            ),
            (
                |r| r.spec.pkix_public_key = Some(ByteString(vec![1])),
                "spec.pkixPublicKey: Invalid value: \"AQ==\": must be a valid PKIX-serialized public key",
            ),
            (
                |r| r.spec.pkix_public_key = Some(ByteString(vec![0; 10241])),
                "spec.pkixPublicKey: Too long: may not be more than 10240 bytes",
            ),
        ];
        for (change, told) in cases {
            let (mut request, _) = request();
            change(&mut request);
            assert!(judged(&request).starts_with(told), "{told}: {}", judged(&request));
        }
        assert_eq!(request().0.spec.max_expiration_seconds, Some(86400), "a day, where nobody says");
    }

    #[test]
    fn keys_that_nobody_should_have_are_refused() {
        let weak = rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2048).expect("a key");
        let (mut asked, _) = request();
        let pkix = weak.to_public_key().to_public_key_der().expect("DER").into_vec();
        asked.spec.pkix_public_key = Some(ByteString(pkix));
        assert_eq!(
            judged(&asked),
            "spec.pkixPublicKey: Invalid value: \"2048-bit modulus\": RSA keys must have modulus size 3072 or 4096"
        );
        // An empty key on P-224, which is read and then refused.
        let mut point = vec![
            0x30, 0x4e, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b,
            0x81, 0x04, 0x00, 0x21, 0x03, 0x3a, 0x00, 0x04,
        ];
        point.extend([0; 56]);
        asked.spec.pkix_public_key = Some(ByteString(point));
        assert_eq!(
            judged(&asked),
            "spec.pkixPublicKey: Invalid value: \"curve P-224\": elliptic public keys must use curve P256 or P384"
        );
    }

    #[test]
    fn a_request_of_pkcs_10_is_as_good_as_a_key_and_a_proof() {
        let (mut asked, key) = request();
        (asked.spec.pkix_public_key, asked.spec.proof_of_possession) = (None, None);
        let mut der = CertificateParams::default().serialize_request(&key).expect("signed").der().to_vec();
        asked.spec.stub_pkc_s10_request = ByteString(der.clone());
        assert_eq!(judged(&asked), "[]");
        *der.last_mut().expect("a byte") ^= 1;
        asked.spec.stub_pkc_s10_request = ByteString(der);
        assert_eq!(judged(&asked), "spec.stubPKCS10Request: Invalid value: invalid signature");
        asked.spec.stub_pkc_s10_request = ByteString(b"nothing".to_vec());
        assert_eq!(judged(&asked), "spec.stubPKCS10Request: Invalid value: must be a valid PKCS#10 CSR");
    }

    #[test]
    fn nothing_of_a_request_changes_but_its_metadata() {
        let (old, _) = request();
        let changed = |new: &PodCertificateRequest| {
            let mut errors = FieldErrors::new();
            new.validate_update(&old, &FieldPath::new(""), &mut errors);
            errors.aggregate()
        };
        let mut new = old.clone();
        new.metadata.labels = Some([("a".to_owned(), "b".to_owned())].into());
        assert_eq!(changed(&new), "[]");
        new.spec.pod_name = "q".to_owned();
        assert!(changed(&new).starts_with("spec: Invalid value: "), "{}", changed(&new));
        let said = json!({"conditions": [{"type": "Issued", "status": "True", "reason": "R", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
        new.status = serde_json::from_value(said).expect("a status");
        assert_eq!(state(&new), "Issued");
        let mut made = new.clone();
        made.prepare_for_create(&Context::default());
        assert_eq!(state(&made), "Pending", "nobody says it of what they ask");
        new.prepare_for_update(&old, &Context::default());
        assert_eq!(state(&new), "Pending");
    }
}
