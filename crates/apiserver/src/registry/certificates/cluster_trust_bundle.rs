//! ClusterTrustBundle: whom everybody in the cluster may believe, of some signer or of nobody's (KEP-3257).

use std::collections::BTreeMap;

use k8s_openapi::api::certificates::v1beta1::ClusterTrustBundle;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};
use krate_pki::pem;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::signer::{bundle_name, signer_name};
use crate::registry::column::{name, or_none, text};
use crate::registry::rules::immutable;
use crate::registry::{Column, Selectable, Strategy};

/// The longest bundle, in bytes.
const MAX_BUNDLE: usize = 1024 * 1024;
/// What is shown of a bundle that is wrong.
const OMITTED: &str = "<value omitted>";

impl Strategy for ClusterTrustBundle {
    const KIND: &'static Kind = &kinds::CLUSTER_TRUST_BUNDLE;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text("SignerName", "io.k8s.api.certificates.v1beta1.ClusterTrustBundleSpec.signerName", |bundle| {
            or_none(bundle.spec.signer_name.as_deref())
        }),
    ];
    const ALLOW_UNCONDITIONAL_UPDATE: bool = false;

    /// How it may be named depends on its signer.
    fn validate_name(_: &str) -> Vec<String> {
        Vec::new()
    }

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let signer = self.spec.signer_name.as_deref().unwrap_or_default();
        let meta = at.child("metadata");
        for (field, value, is_prefix) in
            [("generateName", &self.metadata.generate_name, true), ("name", &self.metadata.name, false)]
        {
            let Some(value) = value.as_deref().filter(|value| !value.is_empty()) else { continue };
            for why in bundle_name(signer, value, is_prefix) {
                errors.invalid(&meta.child(field), value, why);
            }
        }
        if !signer.is_empty() {
            signer_name(signer, &at.child("spec").child("signerName"), errors);
        }
    }

    fn validate_new(&self, at: &FieldPath, errors: &mut FieldErrors) {
        bundle(&self.spec.trust_bundle, &at.child("spec").child("trustBundle"), errors);
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec");
        // What was taken once is not read again: readers change.
        if self.spec.trust_bundle != old.spec.trust_bundle {
            bundle(&self.spec.trust_bundle, &at.child("trustBundle"), errors);
        }
        let signer = |bundle: &Self| bundle.spec.signer_name.clone().unwrap_or_default();
        immutable(&signer(self), &signer(old), &at.child("signerName"), errors);
    }

    fn selectable(&self) -> Selectable {
        vec![("spec.signerName", self.spec.signer_name.clone().unwrap_or_default())]
    }
}

/// Authorities, PEM: one at least, and none twice.
fn bundle(text: &str, at: &FieldPath, errors: &mut FieldErrors) {
    if text.len() > MAX_BUNDLE {
        errors.too_long(at, MAX_BUNDLE);
        return;
    }
    let before = errors.len();
    let mut seen: BTreeMap<Vec<u8>, Vec<usize>> = BTreeMap::new();
    for (i, block) in pem::blocks(text).enumerate() {
        match authority(&block) {
            Ok(()) => seen.entry(block.bytes).or_default().push(i),
            Err(why) => errors.invalid(at, OMITTED, format!("entry {i} {why}")),
        }
    }
    // Who is told of a bad entry need not hear that none is left.
    if errors.len() > before {
        return;
    }
    if seen.is_empty() {
        errors.invalid(at, OMITTED, "at least one trust anchor must be provided");
    }
    for places in seen.values().filter(|places| places.len() > 1) {
        let places: Vec<String> = places.iter().map(usize::to_string).collect();
        let why = format!("duplicate trust anchor (indices [{}])", places.join(" "));
        errors.invalid(at, OMITTED, why);
    }
}

/// # Errors
/// It is no authority's certificate.
fn authority(block: &pem::Block) -> Result<(), String> {
    if block.kind != "CERTIFICATE" {
        return Err(format!("has bad block type: {}", block.kind));
    }
    if block.has_headers {
        return Err("has PEM block headers".to_owned());
    }
    let unread = || "does not parse as X.509".to_owned();
    let (rest, certificate) = X509Certificate::from_der(&block.bytes).map_err(|_| unread())?;
    let constraints = certificate.basic_constraints().map_err(|_| unread())?;
    if !rest.is_empty() {
        return Err(unread());
    }
    if !constraints.is_some_and(|constraints| constraints.value.ca) {
        return Err("does not have the CA bit set".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
    use serde_json::json;

    use super::*;

    fn certificate(is_ca: bool) -> String {
        let mut params = CertificateParams::default();
        if is_ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        params.self_signed(&KeyPair::generate().expect("a key")).expect("signed").pem()
    }

    fn object(name: &str, signer: &str, bundle: &str) -> ClusterTrustBundle {
        serde_json::from_value(json!({
            "metadata": {"name": name}, "spec": {"signerName": signer, "trustBundle": bundle}}))
        .expect("a bundle")
    }

    fn judged(new: &ClusterTrustBundle) -> String {
        let (mut errors, at) = (FieldErrors::new(), FieldPath::new(""));
        new.validate(&at, &mut errors);
        new.validate_new(&at, &mut errors);
        errors.aggregate()
    }

    #[test]
    fn a_bundle_is_of_authorities_each_once() {
        let (one, two, leaf) = (certificate(true), certificate(true), certificate(false));
        let told = |bundle: &str| judged(&object("a", "", bundle));
        let at = |why: &str| format!("spec.trustBundle: Invalid value: \"<value omitted>\": {why}");
        assert_eq!(told(&format!("some words\n{one}more\n{two}")), "[]");
        assert_eq!(told(""), at("at least one trust anchor must be provided"));
        assert_eq!(told(&leaf), at("entry 0 does not have the CA bit set"));
        assert_eq!(told(&format!("{one}{two}{one}")), at("duplicate trust anchor (indices [0 2])"));
        let other = one.replace("CERTIFICATE", "PRIVATE KEY");
        assert_eq!(told(&format!("{two}{other}")), at("entry 1 has bad block type: PRIVATE KEY"));
        let with_headers = one.replace("BEGIN CERTIFICATE-----\n", "BEGIN CERTIFICATE-----\nK: v\n\n");
        assert_eq!(told(&with_headers), at("entry 0 has PEM block headers"));
        let unread = "-----BEGIN CERTIFICATE-----\nYWJj\n-----END CERTIFICATE-----\n";
        assert_eq!(told(unread), at("entry 0 does not parse as X.509"));
        assert_eq!(
            told(&"x".repeat(MAX_BUNDLE + 1)),
            "spec.trustBundle: Too long: may not be more than 1048576 bytes"
        );
    }

    #[test]
    fn a_bundle_is_named_after_its_signer_for_ever() {
        let pem = certificate(true);
        assert_eq!(judged(&object("a.test:b:c", "a.test/b", &pem)), "[]");
        assert!(judged(&object("c", "a.test/b", &pem)).starts_with(
            "metadata.name: Invalid value: \"c\": ClusterTrustBundle for signerName a.test/b must be named"
        ));
        assert!(judged(&object("a:b", "", &pem)).contains("without signer name"));
        assert!(
            judged(&object("b:c", "b", &pem))
                .contains("spec.signerName: Invalid value: \"b\": must be a fully")
        );
        let changed = |new: &ClusterTrustBundle, old: &ClusterTrustBundle| {
            let mut errors = FieldErrors::new();
            new.validate_update(old, &FieldPath::new(""), &mut errors);
            errors.aggregate()
        };
        let (old, unread) = (object("a.test:b:c", "a.test/b", &pem), object("a.test:b:c", "a.test/b", "x"));
        assert_eq!(changed(&old, &old), "[]");
        assert_eq!(changed(&unread, &unread), "[]", "what is there may stay");
        assert!(changed(&unread, &old).contains("at least one trust anchor"), "{}", changed(&unread, &old));
        assert_eq!(
            changed(&object("a.test:b:c", "a.test/x", &pem), &old),
            "spec.signerName: Invalid value: \"a.test/x\": field is immutable"
        );
    }
}
