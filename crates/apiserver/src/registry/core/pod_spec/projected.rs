//! Volumes of several sources, each of which puts files into it.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    ClusterTrustBundleProjection, PodCertificateProjection, ProjectedVolumeSource,
    ServiceAccountTokenProjection,
};
use krate_api::{FieldErrors, FieldPath};

use super::volumes::{downward_file, file_path, items, mode};
use crate::registry::certificates::pod_certificate_request::{MIN_SECONDS, longest};
use crate::registry::certificates::signer::{bundle_name, signer_name, signer_of_bundle, user_annotations};
use crate::registry::rules::label_selector;

const KEY_TYPES: [&str; 6] = ["ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519", "RSA3072", "RSA4096"];

/// The paths that are taken in a volume.
#[derive(Default)]
struct Paths<'a>(BTreeSet<&'a str>);

impl<'a> Paths<'a> {
    /// `told`: what is shown if it is taken already.
    fn take(&mut self, path: &'a str, told: &str, at: &FieldPath, errors: &mut FieldErrors) {
        if !self.0.insert(path) {
            errors.invalid(at, told, "conflicting duplicate paths");
        }
    }
}

pub fn projected(s: &ProjectedVolumeSource, at: &FieldPath, errors: &mut FieldErrors) {
    mode(s.default_mode, &at.child("defaultMode"), errors);
    let volume = at;
    let mut paths = Paths::default();
    for (i, source) in s.sources.iter().flatten().enumerate() {
        let at = volume.child("sources").index(i);
        let of_keys = [
            ("secret", source.secret.as_ref().map(|p| (&p.name, &p.items))),
            ("configMap", source.config_map.as_ref().map(|p| (&p.name, &p.items))),
        ];
        for (kind, projection) in of_keys {
            let Some((name, keys)) = projection else { continue };
            let at = at.child(kind);
            if name.is_empty() {
                errors.required(&at.child("name"), "");
            }
            items(keys.as_deref(), &at.child("items"), errors);
            for item in keys.iter().flatten().filter(|item| !item.path.is_empty()) {
                paths.take(&item.path, name, volume, errors);
            }
        }
        if let Some(p) = &source.downward_api {
            for file in p.items.iter().flatten() {
                downward_file(file, &at.child("downwardAPI"), errors);
                if !file.path.is_empty() {
                    paths.take(&file.path, &file.path, volume, errors);
                }
            }
        }
        if let Some(p) = &source.service_account_token {
            // Upstream tells of its path as if it were the volume's.
            token(p, &at.child("serviceAccountToken"), &volume.child("path"), errors);
        }
        if let Some(p) = &source.cluster_trust_bundle {
            bundle(p, &at.child("clusterTrustBundle"), errors);
            paths.take(&p.path, &p.path, volume, errors);
        }
        if let Some(p) = &source.pod_certificate {
            certificate(p, &at.child("podCertificate"), volume, &mut paths, errors);
        }
        let given = [
            source.secret.is_some(),
            source.config_map.is_some(),
            source.downward_api.is_some(),
            source.service_account_token.is_some(),
            source.cluster_trust_bundle.is_some(),
            source.pod_certificate.is_some(),
        ];
        if given.into_iter().filter(|given| *given).count() > 1 {
            errors.forbidden(&at, "may not specify more than 1 volume type per source");
        }
    }
}

fn token(p: &ServiceAccountTokenProjection, at: &FieldPath, path: &FieldPath, errors: &mut FieldErrors) {
    let seconds = p.expiration_seconds.unwrap_or(3600);
    let at = at.child("expirationSeconds");
    if seconds < 600 {
        errors.invalid(&at, seconds, "may not specify a duration less than 10 minutes");
    }
    if seconds > 1 << 32 {
        errors.invalid(&at, seconds, "may not specify a duration larger than 2^32 seconds");
    }
    if p.path.is_empty() {
        errors.required(path, "");
    } else {
        file_path(&p.path, path, errors);
    }
}

/// The bundles of a signer, or one by its name (KEP-3257).
fn bundle(p: &ClusterTrustBundleProjection, at: &FieldPath, errors: &mut FieldErrors) {
    match (&p.name, &p.signer_name) {
        (Some(_), Some(_)) => errors.invalid(at, p, "only one of name and signerName may be used"),
        (Some(name), None) => {
            let name_at = at.child("name");
            if name.is_empty() {
                errors.required(&name_at, "must be a valid object name");
            }
            for why in bundle_name(&signer_of_bundle(name), name, false) {
                errors.invalid(&name_at, name, format!("not a valid clustertrustbundlename: {why}"));
            }
            if let Some(selector) = &p.label_selector {
                let why = "labelSelector must be unset if name is specified";
                errors.invalid(&at.child("labelSelector"), selector, why);
            }
        }
        (None, Some(signer)) => {
            let signer_at = at.child("signerName");
            if signer.is_empty() {
                errors.required(&signer_at, "must be a valid signer name");
            }
            signer_name(signer, &signer_at, errors);
            if let Some(selector) = &p.label_selector {
                label_selector(selector, &at.child("labelSelector"), errors);
            }
        }
        (None, None) => errors.required(at, "either name or signerName must be specified"),
    }
    if p.path.is_empty() {
        errors.required(&at.child("path"), "");
    }
    file_path(&p.path, &at.child("path"), errors);
}

/// A key of the pod's own, and its certificate (KEP-4317).
fn certificate<'a>(
    p: &'a PodCertificateProjection,
    at: &FieldPath,
    volume: &FieldPath,
    paths: &mut Paths<'a>,
    errors: &mut FieldErrors,
) {
    signer_name(&p.signer_name, &at.child("signerName"), errors);
    if let Some(annotations) = &p.user_annotations {
        user_annotations(annotations, &at.child("userAnnotations"), errors);
    }
    if !KEY_TYPES.contains(&p.key_type.as_str()) {
        errors.not_supported(&at.child("keyType"), &p.key_type, &KEY_TYPES);
    }
    if let Some(seconds) = p.max_expiration_seconds {
        let (at, most) = (at.child("maxExpirationSeconds"), longest(&p.signer_name));
        if seconds < MIN_SECONDS {
            let why = format!("if provided, maxExpirationSeconds must be >= {MIN_SECONDS}");
            errors.invalid(&at, seconds, why);
        }
        if seconds > most {
            errors.invalid(&at, seconds, format!("if provided, maxExpirationSeconds must be <= {most}"));
        }
    }
    let mut some = false;
    for (field, path) in [
        ("credentialBundlePath", &p.credential_bundle_path),
        ("keyPath", &p.key_path),
        ("certificateChainPath", &p.certificate_chain_path),
    ] {
        let Some(path) = path.as_deref().filter(|path| !path.is_empty()) else { continue };
        some = true;
        file_path(path, &at.child(field), errors);
        paths.take(path, path, volume, errors);
    }
    if !some {
        let why = "specify at least one of credentialBundlePath, keyPath, and certificateChainPath";
        errors.required(at, why);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn judged(sources: Value) -> String {
        let source = serde_json::from_value(json!({"sources": sources})).expect("a source");
        let mut errors = FieldErrors::new();
        projected(&source, &FieldPath::new("v"), &mut errors);
        errors.aggregate()
    }

    #[test]
    fn bundles_are_of_a_signer_or_by_a_name() {
        let of = |bundle: Value| judged(json!([{"clusterTrustBundle": bundle}]));
        let at = "v.sources[0].clusterTrustBundle";
        assert_eq!(of(json!({"name": "a.test:b:c", "path": "p"})), "[]");
        assert_eq!(of(json!({"signerName": "a.test/b", "labelSelector": {}, "path": "p"})), "[]");
        for (bundle, told) in [
            (
                json!({"path": "p"}),
                format!("{at}: Required value: either name or signerName must be specified"),
            ),
            (
                json!({"name": "c", "signerName": "a.test/b", "path": "p"}),
                format!(
                    "{at}: Invalid value: {{\"name\":\"c\",\"path\":\"p\",\"signerName\":\"a.test/b\"}}: only one of name \
                     and signerName may be used"
                ),
            ),
            (
                json!({"name": "C", "path": "p"}),
                format!("{at}.name: Invalid value: \"C\": not a valid clustertrustbundlename: a lowercase"),
            ),
            (
                json!({"name": "c", "labelSelector": {}, "path": "p"}),
                format!("{at}.labelSelector: Invalid value: {{}}: labelSelector must be unset if name is"),
            ),
            (
                json!({"signerName": "b", "path": "p"}),
                format!("{at}.signerName: Invalid value: \"b\": must be a fully qualified domain and path"),
            ),
            (json!({"name": "c", "path": ""}), format!("{at}.path: Required value")),
            (
                json!({"name": "c", "path": "/p"}),
                format!("{at}.path: Invalid value: \"/p\": must be a relative path"),
            ),
            (
                json!({"name": "c", "path": "..p"}),
                format!("{at}.path: Invalid value: \"..p\": must not start with '..'"),
            ),
        ] {
            assert!(of(bundle.clone()).starts_with(&told), "{bundle}: {}", of(bundle.clone()));
        }
    }

    #[test]
    fn certificates_have_a_signer_a_key_and_a_place() {
        let of = |change: Value| {
            let mut certificate = json!({"signerName": "a.test/b", "keyType": "ED25519", "keyPath": "k"});
            certificate
                .as_object_mut()
                .expect("a map")
                .extend(change.as_object().cloned().unwrap_or_default());
            judged(json!([{"podCertificate": certificate}]))
        };
        let at = "v.sources[0].podCertificate";
        assert_eq!(of(json!({"certificateChainPath": "c", "maxExpirationSeconds": 7_862_400})), "[]");
        for (change, told) in [
            (json!({"signerName": ""}), format!("{at}.signerName: Required value")),
            (
                json!({"keyType": "RSA2048"}),
                format!("{at}.keyType: Unsupported value: \"RSA2048\": supported values: \"ECDSAP256\", "),
            ),
            (
                json!({"maxExpirationSeconds": 3599}),
                format!(
                    "{at}.maxExpirationSeconds: Invalid value: 3599: if provided, maxExpirationSeconds must be \
                     >= 3600"
                ),
            ),
            (
                json!({"maxExpirationSeconds": 7_862_401}),
                format!(
                    "{at}.maxExpirationSeconds: Invalid value: 7862401: if provided, maxExpirationSeconds must \
                     be <= 7862400"
                ),
            ),
            (
                json!({"signerName": "kubernetes.io/x", "maxExpirationSeconds": 86401}),
                format!("{at}.maxExpirationSeconds: Invalid value: 86401: if provided, "),
            ),
            (
                json!({"keyPath": ""}),
                format!(
                    "{at}: Required value: specify at least one of credentialBundlePath, keyPath, and \
                     certificateChainPath"
                ),
            ),
            (
                json!({"keyPath": "../k"}),
                format!("{at}.keyPath: Invalid value: \"../k\": must not contain '..'"),
            ),
            (
                json!({"credentialBundlePath": "k"}),
                "v: Invalid value: \"k\": conflicting duplicate paths".to_owned(),
            ),
            (
                json!({"userAnnotations": {"x": ""}}),
                format!("{at}.userAnnotations: Invalid value: \"x\": must be a domain-prefixed key"),
            ),
        ] {
            assert!(of(change.clone()).starts_with(&told), "{change}: {}", of(change.clone()));
        }
    }

    #[test]
    fn no_two_sources_put_a_file_in_one_place() {
        let (bundle, certificate) = (
            json!({"name": "c", "path": "p"}),
            json!({"signerName": "a.test/b", "keyType": "ED25519", "keyPath": "p"}),
        );
        assert_eq!(
            judged(json!([{"clusterTrustBundle": bundle}, {"podCertificate": certificate}])),
            "v: Invalid value: \"p\": conflicting duplicate paths"
        );
        let items = json!({"name": "m", "items": [{"key": "k", "path": "p"}]});
        assert_eq!(
            judged(json!([{"clusterTrustBundle": bundle}, {"configMap": items}])),
            "v: Invalid value: \"m\": conflicting duplicate paths"
        );
        let certificate = json!({"signerName": "a.test/b", "keyType": "ED25519", "keyPath": "k"});
        assert_eq!(
            judged(json!([{"clusterTrustBundle": bundle, "podCertificate": certificate}])),
            "v.sources[0]: Forbidden: may not specify more than 1 volume type per source"
        );
    }
}
