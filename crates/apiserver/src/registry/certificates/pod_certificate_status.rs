//! What became of a PodCertificateRequest, which its signer says once: a certificate, or why there is none (KEP-4317).

use std::collections::BTreeSet;
use std::sync::LazyLock;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::certificates::v1beta1::{PodCertificateRequest, PodCertificateRequestStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use krate_api::schema::NEVER;
use krate_api::{FieldErrors, FieldPath};
use krate_pki::pem;
use regex::Regex;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::public_key::{CertificateRequest, PublicKey};
use crate::formats::is_email;
use crate::registry::prepare::differ;
use crate::registry::rules::{invalid_unshown, label_name, one_of};

/// What a request may come to; each excludes the others.
pub const ENDS: [&str; 3] = ["Denied", "Failed", "Issued"];

/// The longest chain, reason and message, in bytes.
const MAX_CHAIN: usize = 100 * 1024;
const MAX_REASON: usize = 1024;
const MAX_MESSAGE: usize = 32 * 1024;
/// How far from now a certificate may begin.
const SKEW: SignedDuration = SignedDuration::from_mins(5);
const MIN_LIFETIME: SignedDuration = SignedDuration::from_hours(1);
/// How long after its beginning, and before its end, a certificate may be renewed.
const MARGIN: SignedDuration = SignedDuration::from_mins(10);

const REASON: &str = "[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?";

fn has(request: &PodCertificateRequest, kind: &str) -> bool {
    let conditions = request.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == kind && condition.status == "True")
}

/// Judges an update of the status, at its place.
pub fn validate(
    new: &PodCertificateRequest,
    old: &PodCertificateRequest,
    now: Timestamp,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    let before = errors.len();
    let status = new.status.clone().unwrap_or_default();
    let was = old.status.clone().unwrap_or_default();
    let all = status.conditions.as_deref().unwrap_or_default();
    ends(all, &at.child("conditions"), errors);
    conditions(all, &at.child("conditions"), errors);
    if errors.len() > before {
        return;
    }
    let must_be = |wanted: &PodCertificateRequestStatus, why: &str, errors: &mut FieldErrors| {
        if differ(&status, wanted) {
            invalid_unshown(at, why, errors);
        }
    };
    if ENDS.iter().any(|end| has(old, end)) {
        must_be(&was, "immutable after PodCertificateRequest is issued, denied, or failed", errors);
    } else if has(new, "Denied") || has(new, "Failed") {
        let bare =
            PodCertificateRequestStatus { conditions: status.conditions.clone(), ..Default::default() };
        let why =
            "non-condition status fields must be empty when denying or failing the PodCertificateRequest";
        must_be(&bare, why, errors);
    } else if has(new, "Issued") {
        // The first fault ends it.
        if let Err(fault) = issued(&status, old, now, at, errors) {
            fault(errors);
        }
    } else {
        must_be(
            &was,
            "status is immutable unless transitioning to \"Issued\", \"Denied\", or \"Failed\"",
            errors,
        );
    }
}

fn ends(all: &[Condition], at: &FieldPath, errors: &mut FieldErrors) {
    let mut known = 0;
    for (i, condition) in all.iter().enumerate() {
        let at = at.child(&format!("[{i}]"));
        if !ENDS.contains(&condition.type_.as_str()) {
            errors.not_supported(&at.child("type"), &condition.type_, &ENDS);
            continue;
        }
        known += 1;
        if known > 1 {
            let why = "There may be at most one condition with type \"Issued\", \"Denied\", or \"Failed\"";
            errors.invalid(&at.child("type"), &condition.type_, why);
        }
        one_of(&condition.status, &["True"], &at.child("status"), errors);
    }
}

/// What every condition must be (`k8s.io/apimachinery/pkg/apis/meta/v1/validation`).
pub fn conditions(all: &[Condition], at: &FieldPath, errors: &mut FieldErrors) {
    static IS_REASON: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(&format!("^{REASON}$")).expect("it is constant"));
    let mut seen = BTreeSet::new();
    for (i, condition) in all.iter().enumerate() {
        let at = at.index(i);
        if !seen.insert(&condition.type_) {
            errors.duplicate(&at.child("type"), &condition.type_);
        }
        label_name(&condition.type_, &at.child("type"), errors);
        one_of(&condition.status, &["False", "True", "Unknown"], &at.child("status"), errors);
        if let Some(generation) = condition.observed_generation.filter(|generation| *generation < 0) {
            let why = "must be greater than or equal to zero";
            errors.invalid(&at.child("observedGeneration"), generation, why);
        }
        if NEVER.parse().is_ok_and(|never: Timestamp| condition.last_transition_time.0 == never) {
            errors.required(&at.child("lastTransitionTime"), "");
        }
        let (reason, at_reason) = (&condition.reason, at.child("reason"));
        if reason.is_empty() {
            errors.required(&at_reason, "");
        } else if !IS_REASON.is_match(reason) {
            let why = format!(
                "a condition reason must start with alphabetic character, optionally followed by a string of \
                 alphanumeric characters or '_,:', and must end with an alphanumeric character or '_' (e.g. \
                 'my_name',  or 'MY_NAME',  or 'MyName',  or 'ReasonA,ReasonB',  or 'ReasonA:ReasonB', regex \
                 used for validation is '{REASON}')"
            );
            errors.invalid(&at_reason, reason, why);
        }
        if reason.len() > MAX_REASON {
            errors.too_long(&at_reason, MAX_REASON);
        }
        if condition.message.len() > MAX_MESSAGE {
            errors.too_long(&at.child("message"), MAX_MESSAGE);
        }
    }
}

/// What is wrong, to be said.
type Refusal = Box<dyn FnOnce(&mut FieldErrors)>;

fn invalid(at: &FieldPath, value: impl serde::Serialize + 'static, why: impl Into<String>) -> Refusal {
    let (at, why) = (at.clone(), why.into());
    Box::new(move |errors| errors.invalid(&at, value, why))
}

fn shown(time: Timestamp) -> String {
    time.to_string()
}

/// Whether a certificate that is issued is what was asked for, and the status says of it what is true.
///
/// # Errors
/// It is not.
fn issued(
    status: &PodCertificateRequestStatus,
    asked: &PodCertificateRequest,
    now: Timestamp,
    at: &FieldPath,
    errors: &mut FieldErrors,
) -> Result<(), Refusal> {
    let before = errors.len();
    let chain_at = at.child("certificateChain");
    let chain = status.certificate_chain.clone().unwrap_or_default();
    if chain.len() > MAX_CHAIN {
        errors.too_long(&chain_at, MAX_CHAIN);
        return Ok(());
    }
    let bad = |why: &str| invalid(&chain_at, chain.clone(), why);
    let mut blocks = pem::blocks(&chain);
    let Some(first) = blocks.next() else {
        return Err(bad("issued certificate chain must contain at least one certificate"));
    };
    if first.kind != "CERTIFICATE" {
        return Err(bad("issued certificate chain must consist entirely of CERTIFICATE PEM blocks"));
    }
    let leaf =
        certificate(&first.bytes).ok_or_else(|| bad("leaf certificate does not parse as valid X.509"))?;
    names(&leaf, &chain_at, errors);
    let key = key_of(asked, &at.child("spec"))?;
    if key != PublicKey::Other && PublicKey::of_info(leaf.public_key()).as_ref() != Some(&key) {
        return Err(bad("leaf certificate was not issued to the requested public key"));
    }
    let dates = [
        ("notBefore", &status.not_before, "must be present and consistent with the issued certificate"),
        ("notAfter", &status.not_after, "must be present and consistent with the issued certificate"),
        (
            "beginRefreshAt",
            &status.begin_refresh_at,
            "must be present and in the range [notbefore+10min, notafter-10min]",
        ),
    ];
    for (field, time, why) in dates {
        if time.is_none() {
            errors.required(&at.child(field), why);
        }
    }
    let (Some(Time(not_before)), Some(Time(not_after)), Some(Time(refresh))) =
        (status.not_before.clone(), status.not_after.clone(), status.begin_refresh_at.clone())
    else {
        return Ok(());
    };
    if errors.len() > before {
        return Ok(());
    }
    let begins = leaf.validity().not_before.timestamp();
    let ends = leaf.validity().not_after.timestamp();
    let is_whole = |time: Timestamp, second| Timestamp::from_second(second).is_ok_and(|of| of == time);
    let (before_at, after_at) = (at.child("notBefore"), at.child("notAfter"));
    if !is_whole(not_before, begins) {
        let why = "must be set to the NotBefore time encoded in the leaf certificate";
        return Err(invalid(&before_at, shown(not_before), why));
    }
    if not_before.duration_since(now).abs() >= SKEW {
        let why = "must be set to within 5 minutes of kube-apiserver's current time";
        return Err(invalid(&before_at, shown(not_before), why));
    }
    if !is_whole(not_after, ends) {
        let why = "must be set to the NotAfter time encoded in the leaf certificate";
        return Err(invalid(&after_at, shown(not_after), why));
    }
    let lifetime = not_after.duration_since(not_before);
    let most = asked.spec.max_expiration_seconds.unwrap_or_default();
    let nanoseconds = i64::try_from(lifetime.as_nanos()).unwrap_or(i64::MAX);
    if lifetime < MIN_LIFETIME {
        return Err(invalid(&chain_at, nanoseconds, "leaf certificate lifetime must be >= 1 hour"));
    }
    if lifetime > SignedDuration::from_secs(i64::from(most)) {
        let why = format!("leaf certificate lifetime must be <= spec.maxExpirationSeconds ({most})");
        return Err(invalid(&chain_at, nanoseconds, why));
    }
    let refresh_at = at.child("beginRefreshAt");
    if refresh.duration_since(not_before) < MARGIN {
        let why = "must be at least 10 minutes after status.notBefore";
        return Err(invalid(&refresh_at, shown(refresh), why));
    }
    if not_after.duration_since(refresh) < MARGIN {
        let why = "must be at least 10 minutes before status.notAfter";
        return Err(invalid(&refresh_at, shown(refresh), why));
    }
    for block in blocks {
        if block.kind != "CERTIFICATE" {
            return Err(bad("issued certificate chain must consist entirely of CERTFICATE PEM blocks"));
        }
        if certificate(&block.bytes).is_none() {
            return Err(bad("intermediate certificate does not parse as valid X.509"));
        }
    }
    Ok(())
}

fn certificate(der: &[u8]) -> Option<X509Certificate<'_>> {
    X509Certificate::from_der(der)
        .ok()
        .filter(|(rest, _)| rest.is_empty())
        .map(|(_, certificate)| certificate)
}

/// The key that was asked for.
///
/// # Errors
/// It cannot be read any more.
fn key_of(asked: &PodCertificateRequest, at: &FieldPath) -> Result<PublicKey, Refusal> {
    let spec = &asked.spec;
    let unread = |field: &str, why: &'static str| -> Refusal {
        let at = at.child(field);
        Box::new(move |errors| invalid_unshown(&at, why, errors))
    };
    if spec.stub_pkc_s10_request.0.is_empty() {
        let key = spec.pkix_public_key.as_ref().and_then(|key| PublicKey::of_pkix(&key.0));
        return key.ok_or_else(|| unread("pkixPublicKey", "must be a valid PKIX-serialized public key"));
    }
    let request = CertificateRequest::read(&spec.stub_pkc_s10_request.0);
    let key = request.map(|request| request.key);
    key.ok_or_else(|| unread("stubPKCS10Request", "must be a valid PKCS#10 CSR"))
}

/// The names in a certificate, which others will read.
fn names(leaf: &X509Certificate<'_>, at: &FieldPath, errors: &mut FieldErrors) {
    let Ok(Some(names)) = leaf.subject_alternative_name() else { return };
    for name in &names.value.general_names {
        let GeneralName::DNSName(name) = name else { continue };
        if name.is_empty() {
            errors.invalid(at, name, "leaf certificate should not contain empty DNSName");
        }
        if name.contains("..") {
            errors.invalid(at, name, "leaf certificate's DNSName should not contain '..'");
        }
        if name.starts_with('.') || name.ends_with('.') {
            errors.invalid(at, name, "leaf certificate's DNSName should not start or end with '.'");
        }
    }
    for name in &names.value.general_names {
        let GeneralName::RFC822Name(name) = name else { continue };
        if !is_email(name) {
            errors.invalid(at, name, "leaf certificate should not contain invalid EmailAddress");
        }
    }
}
