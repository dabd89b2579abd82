//! How signers are named, and what names after them must look like (`pkg/apis/core/validation/names.go`).

use std::collections::BTreeMap;

use krate_api::meta::ANNOTATIONS_MAX;
use krate_api::names::{is_dns1123_label, is_dns1123_subdomain};
use krate_api::{FieldErrors, FieldPath};

use crate::registry::rules::{each, qualified_name};

/// The longest name of a signer: a domain, and a namespace and a name behind it.
const MAX_DOMAIN: usize = 253;
const MAX_NAME: usize = MAX_DOMAIN + 1 + 63 + 1 + 253;

/// Whether a signer is one of the Kubernetes project's.
pub fn is_kubernetes(signer: &str) -> bool {
    let host = signer.split('/').next().unwrap_or_default();
    host == "kubernetes.io" || host.ends_with(".kubernetes.io")
}

/// `example.com/name`: a domain and a path.
pub fn signer_name(name: &str, at: &FieldPath, errors: &mut FieldErrors) {
    if name.is_empty() {
        errors.required(at, "");
        return;
    }
    let Some((domain, path)) = name.split_once('/').filter(|(_, path)| !path.contains('/')) else {
        let why = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        errors.invalid(at, name, why);
        return;
    };
    if domain.len() > MAX_DOMAIN {
        errors.too_long(at, MAX_DOMAIN);
    }
    labels(domain, is_dns1123_label, at, errors);
    if !domain.contains('.') {
        errors.invalid(at, domain, "should be a domain with at least two segments separated by dots");
    }
    labels(path, is_dns1123_subdomain, at, errors);
    if name.len() > MAX_NAME {
        errors.too_long(at, MAX_NAME);
    }
}

/// Says what is wrong with the first part that is.
fn labels(text: &str, judge: fn(&str) -> Vec<String>, at: &FieldPath, errors: &mut FieldErrors) {
    let judged = text.split('.').map(|label| (label, judge(label)));
    if let Some((label, wrong)) = judged.into_iter().find(|(_, wrong)| !wrong.is_empty()) {
        for why in wrong {
            errors.invalid(at, text, format!("validating label {label:?}: {why}"));
        }
    }
}

/// What is wrong with the name of a ClusterTrustBundle of a signer, or of none where that is empty: it begins with the
/// signer's name. The rest may be part of a name where `is_prefix`.
pub fn bundle_name(signer: &str, name: &str, is_prefix: bool) -> Vec<String> {
    let subdomain = |name: &str| {
        let masked = name.strip_suffix('-').filter(|_| is_prefix).map(|start| format!("{start}a"));
        is_dns1123_subdomain(masked.as_deref().unwrap_or(name))
    };
    if signer.is_empty() {
        if name.contains(':') {
            return vec!["ClusterTrustBundle without signer name must not have \":\" in its name".to_owned()];
        }
        return subdomain(name);
    }
    let prefix = format!("{}:", signer.replace('/', ":"));
    match name.strip_prefix(&prefix) {
        Some(rest) => subdomain(rest),
        None => {
            vec![format!("ClusterTrustBundle for signerName {signer} must be named with prefix {prefix}")]
        }
    }
}

/// The signer after whom a ClusterTrustBundle is named; empty for one of nobody's.
pub fn signer_of_bundle(name: &str) -> String {
    name.rsplit_once(':').map_or_else(String::new, |(signer, _)| signer.replace(':', "/"))
}

/// What a pod's author tells a signer: as annotations, but each key has a domain.
pub fn user_annotations(annotations: &BTreeMap<String, String>, at: &FieldPath, errors: &mut FieldErrors) {
    for key in annotations.keys().map(|key| key.to_lowercase()) {
        let wrong = qualified_name(&key);
        if key.is_empty() {
            errors.required(at, "");
        } else if !wrong.is_empty() {
            each(wrong, &key, at, errors);
        } else if !key.contains('/') {
            errors.invalid(at, &key, "must be a domain-prefixed key (such as \"acme.io/foo\")");
        }
    }
    let size: usize = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > ANNOTATIONS_MAX {
        errors.too_long(at, ANNOTATIONS_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(name: &str) -> String {
        let mut errors = FieldErrors::new();
        signer_name(name, &FieldPath::new("s"), &mut errors);
        errors.aggregate()
    }

    #[test]
    fn a_signer_has_a_domain_and_a_path() {
        for good in ["example.com/a", "a.b.example.com/ns.name", "kubernetes.io/kube-apiserver-serving"] {
            assert_eq!(judged(good), "[]", "{good}");
        }
        let form = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        for (name, told) in [
            ("", "s: Required value"),
            ("example.com", form),
            ("example.com/a/b", form),
            ("example/a", "s: Invalid value: \"example\": should be a domain with at least two segments"),
            (
                "Example.com/a",
                "s: Invalid value: \"Example.com\": validating label \"Example\": a lowercase RFC 1123",
            ),
            (
                "example.com/A",
                "s: Invalid value: \"A\": validating label \"A\": a lowercase RFC 1123 subdomain",
            ),
            ("example.com/", "s: Invalid value: \"\": validating label \"\": "),
        ] {
            assert!(judged(name).contains(told), "{name}: {}", judged(name));
        }
        let long = format!("{}.com/a", "a.".repeat(126));
        assert!(judged(&long).contains("Too long: may not be more than 253 bytes"), "{}", judged(&long));
        assert!(is_kubernetes("kubernetes.io/a") && is_kubernetes("a.kubernetes.io/a"));
        assert!(!is_kubernetes("akubernetes.io/a") && !is_kubernetes("example.com/kubernetes.io"));
    }

    #[test]
    fn a_bundle_is_named_after_its_signer() {
        let wrong = |signer: &str, name: &str| bundle_name(signer, name, false);
        assert_eq!(wrong("", "a.b"), Vec::<String>::new());
        assert_eq!(wrong("a.test/b", "a.test:b:c"), Vec::<String>::new());
        assert_eq!(bundle_name("a.test/b", "a.test:b:c-", true), Vec::<String>::new());
        assert_eq!(
            wrong("", "a:b"),
            ["ClusterTrustBundle without signer name must not have \":\" in its name"]
        );
        assert_eq!(
            wrong("a.test/b", "c"),
            ["ClusterTrustBundle for signerName a.test/b must be named with prefix a.test:b:"]
        );
        assert_eq!(wrong("a.test/b", "a.test:b:C").len(), 1);
        assert_eq!(
            (signer_of_bundle("a.test:b:c"), signer_of_bundle("c")),
            ("a.test/b".into(), String::new())
        );
    }

    #[test]
    fn what_is_told_to_a_signer_has_domains() {
        let judged = |key: &str, value: &str| {
            let mut errors = FieldErrors::new();
            let all = BTreeMap::from([(key.to_owned(), value.to_owned())]);
            user_annotations(&all, &FieldPath::new("a"), &mut errors);
            errors.aggregate()
        };
        assert_eq!(judged("Acme.io/foo", "bar"), "[]");
        assert_eq!(
            judged("foo", ""),
            "a: Invalid value: \"foo\": must be a domain-prefixed key (such as \"acme.io/foo\")"
        );
        assert!(judged("a b/c", "").contains("a: Invalid value: \"a b/c\": "), "{}", judged("a b/c", ""));
        let long = "x".repeat(ANNOTATIONS_MAX);
        assert_eq!(judged("acme.io/foo", &long), "a: Too long: may not be more than 262144 bytes");
    }
}
