//! What upstream refuses in an `EncryptionConfiguration`, in its words.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use krate_api::{FieldErrors, FieldPath, duration};

use crate::config::{Configuration, Key, Keys, Kms, Provider};

const AES_KEYS: &[usize] = &[16, 24, 32];
const SECRETBOX_KEYS: &[usize] = &[32];

/// A resource and its group, either of which may be `*`.
pub fn group_resource(text: &str) -> (&str, &str) {
    let (resource, group) = text.split_once('.').unwrap_or((text, ""));
    (group, resource)
}

impl Configuration {
    /// What is wrong with it. With `reload` it may be exchanged while it is used, which asks more of names.
    pub fn validate(&self, reload: bool) -> FieldErrors {
        let root = FieldPath::new("resources");
        let mut errors = FieldErrors::new();
        if self.resources.is_empty() {
            errors.required(&root, format!("at least one {root} is required"));
        }
        let mut names: Vec<&str> = Vec::new();
        for (i, resource) in self.resources.iter().enumerate() {
            let at = root.index(i);
            let (resources, providers) = (at.child("resources"), at.child("providers"));
            if resource.resources.is_empty() {
                errors.required(&resources, format!("at least one {resources} is required"));
            }
            overlap(&resource.resources, &resources, &mut errors);
            for (j, name) in resource.resources.iter().enumerate() {
                if let Some(wrong) = wrong_with(name) {
                    errors.invalid(&resources.index(j), name, wrong);
                }
            }
            if resource.providers.is_empty() {
                errors.required(&providers, format!("at least one {providers} is required"));
            }
            for (j, provider) in resource.providers.iter().enumerate() {
                let at = providers.index(j);
                single(provider, &at, &mut errors);
                if let Some(kms) = &provider.kms {
                    plugin(kms, &at.child("kms"), &names, reload, &mut errors);
                    names.push(&kms.name);
                } else if let Some(given) = &provider.aesgcm {
                    keys(given, &at.child("aesgcm").child("keys"), AES_KEYS, &mut errors);
                } else if let Some(given) = &provider.aescbc {
                    keys(given, &at.child("aescbc").child("keys"), AES_KEYS, &mut errors);
                } else if let Some(given) = &provider.secretbox {
                    keys(given, &at.child("secretbox").child("keys"), SECRETBOX_KEYS, &mut errors);
                }
            }
        }
        errors
    }
}

fn overlap(resources: &[String], at: &FieldPath, errors: &mut FieldErrors) {
    let parsed: Vec<_> = resources.iter().map(|name| group_resource(name)).collect();
    let pairs = || {
        let others = |i| parsed.iter().enumerate().filter(move |(j, _)| i != *j);
        parsed.iter().enumerate().flat_map(move |(i, one)| others(i).map(move |(_, other)| (one, other)))
    };
    if pairs().any(|(one, other)| one == other) {
        errors.invalid(at, resources, "the same resource cannot be specified multiple times");
    }
    let masks = |(one, other): (&(&str, &str), &(&str, &str))| {
        *one == ("*", "*") || (one.0 == other.0 && (one.1 == "*" || other.1 == "*"))
    };
    if pairs().any(masks) {
        errors.invalid(
            at,
            resources,
            "using overlapping resources such as 'secrets' and '*.' in the same resource list is not allowed as they will be masked",
        );
    }
}

fn wrong_with(name: &str) -> Option<&'static str> {
    let (group, resource) = group_resource(name);
    Some(match name {
        _ if name.to_lowercase() != name => "resource name should not contain capital letters",
        "*" => "use '*.' to encrypt all the resources from core API group or *.* to encrypt all resources",
        "apiserveripinfo" | "serviceipallocations" | "servicenodeportallocations" => {
            "resources which do not have REST API/s cannot be encrypted"
        }
        _ if group == "events.k8s.io" => {
            "'*.events.k8s.io' objects are stored using the 'events' API group in etcd. Use 'events' instead in the config file"
        }
        _ if group == "extensions" => "'extensions' group has been removed and cannot be used for encryption",
        _ if group == "*" && resource != "*" => "encrypting the same resource across groups is not supported",
        _ => return None,
    })
}

fn single(provider: &Provider, at: &FieldPath, errors: &mut FieldErrors) {
    let found = [
        provider.kms.is_some(),
        provider.aesgcm.is_some(),
        provider.aescbc.is_some(),
        provider.secretbox.is_some(),
        provider.identity.is_some(),
    ];
    match found.into_iter().filter(|there| *there).count() {
        1 => {}
        0 => errors.invalid(
            at,
            provider,
            "provider does not contain any of the expected providers: KMS, AESGCM, AESCBC, Secretbox, Identity",
        ),
        _ => errors.invalid(
            at,
            provider,
            "more than one provider specified in a single element, should split into different list elements",
        ),
    }
}

fn keys(given: &Keys, at: &FieldPath, lengths: &[usize], errors: &mut FieldErrors) {
    if given.keys.is_empty() {
        errors.required(at, "at least one keys is required");
    }
    for (i, Key { name, secret }) in given.keys.iter().enumerate() {
        let at = at.index(i);
        if name.is_empty() {
            errors.required(&at.child("name"), "name is a mandatory field for a key");
        }
        let at = at.child("secret");
        if secret.is_empty() {
            errors.required(&at, "secret is a mandatory field for a key");
            continue;
        }
        match BASE64_STANDARD.decode(secret) {
            Err(_) => errors.invalid(&at, "REDACTED", "secrets must be base64 encoded"),
            Ok(secret) if !lengths.contains(&secret.len()) => {
                let expected: Vec<String> = lengths.iter().map(ToString::to_string).collect();
                let length = secret.len();
                errors.invalid(
                    &at,
                    "REDACTED",
                    format!(
                        "secret is not of the expected length, got {length}, expected one of [{}]",
                        expected.join(" ")
                    ),
                );
            }
            Ok(_) => {}
        }
    }
}

fn plugin(kms: &Kms, at: &FieldPath, names: &[&str], reload: bool, errors: &mut FieldErrors) {
    let is_first_version = kms.api_version == "v1";
    let name = at.child("name");
    if kms.name.is_empty() {
        errors.required(&name, "name is a mandatory field for a provider");
    }
    if !is_first_version && kms.name.contains(':') {
        errors.invalid(
            &name,
            &kms.name,
            format!("invalid KMS provider name {}, must not contain ':'", kms.name),
        );
    }
    if (reload || !is_first_version) && names.contains(&kms.name.as_str()) {
        errors.invalid(
            &name,
            &kms.name,
            format!("duplicate KMS provider name {}, names must be unique", kms.name),
        );
    }
    let timeout = kms.timeout.as_deref().unwrap_or_default();
    if duration::parse(timeout).is_none_or(|timeout| !timeout.is_positive()) {
        errors.invalid(&at.child("timeout"), timeout, "timeout should be a positive value");
    }
    let endpoint = at.child("endpoint");
    if kms.endpoint.is_empty() {
        errors.invalid(&endpoint, "", "endpoint is a mandatory field for a kms");
    } else {
        let scheme = kms.endpoint.split_once(':').map(|(scheme, _)| scheme).unwrap_or_default();
        if scheme != "unix" {
            errors.invalid(
                &endpoint,
                &kms.endpoint,
                format!("unsupported scheme \"{scheme}\" for KMS provider, only unix is supported"),
            );
        }
    }
    let size = at.child("cachesize");
    match kms.cache_size {
        Some(given) if !is_first_version => errors.invalid(&size, given, "cachesize is not supported in v2"),
        Some(0) => {
            errors.invalid(&size, 0, "cachesize should be a positive value, or negative to disable");
        }
        _ => {}
    }
    if !matches!(kms.api_version.as_str(), "v1" | "v2") {
        errors.invalid(
            &at.child("apiVersion"),
            &kms.api_version,
            "unsupported apiVersion apiVersion for KMS provider, only v1 and v2 are supported",
        );
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(resources: serde_json::Value) -> Vec<String> {
        let config: Configuration =
            serde_json::from_value(json!({ "resources": resources })).expect("it is of the form");
        config.defaulted().validate(true).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_refused_is_refused_in_upstreams_words() {
        let good = json!([{"identity": {}}]);
        let key = |secret: &str| json!([{"aescbc": {"keys": [{"name": "k", "secret": secret}]}}]);
        let kms = |fields: serde_json::Value| {
            let mut kms = json!({"apiVersion": "v2", "name": "p", "endpoint": "unix:///a"});
            for (name, value) in fields.as_object().expect("fields") {
                kms[name] = value.clone();
            }
            json!([{"resources": ["secrets"], "providers": [{ "kms": kms }]}])
        };
        let one = |name: &str| json!([{"resources": [name], "providers": good}]);
        let by = |providers: serde_json::Value| json!([{"resources": ["secrets"], "providers": providers}]);
        let cases = [
            (json!([]), "resources: Required value: at least one resources is required"),
            (
                json!([{"providers": good}]),
                "resources[0].resources: Required value: at least one resources[0].resources is required",
            ),
            (
                by(json!([])),
                "resources[0].providers: Required value: at least one resources[0].providers is required",
            ),
            (
                one("Secrets"),
                "resources[0].resources[0]: Invalid value: \"Secrets\": resource name should not contain capital letters",
            ),
            (
                one("*"),
                "resources[0].resources[0]: Invalid value: \"*\": use '*.' to encrypt all the resources from core API group or *.* to encrypt all resources",
            ),
            (
                one("events.events.k8s.io"),
                "resources[0].resources[0]: Invalid value: \"events.events.k8s.io\": '*.events.k8s.io' objects are stored using the 'events' API group in etcd. Use 'events' instead in the config file",
            ),
            (
                one("pods.*"),
                "resources[0].resources[0]: Invalid value: \"pods.*\": encrypting the same resource across groups is not supported",
            ),
            (
                json!([{"resources": ["secrets", "*."], "providers": good}]),
                "resources[0].resources: Invalid value: [\"secrets\",\"*.\"]: using overlapping resources such as 'secrets' and '*.' in the same resource list is not allowed as they will be masked",
            ),
            (
                json!([{"resources": ["secrets", "secrets"], "providers": good}]),
                "resources[0].resources: Invalid value: [\"secrets\",\"secrets\"]: the same resource cannot be specified multiple times",
            ),
            (
                by(json!([{}])),
                "resources[0].providers[0]: Invalid value: {\"AESGCM\":null,\"AESCBC\":null,\"Secretbox\":null,\"Identity\":null,\"KMS\":null}: provider does not contain any of the expected providers: KMS, AESGCM, AESCBC, Secretbox, Identity",
            ),
            (
                by(json!([{"aescbc": {"keys": []}}])),
                "resources[0].providers[0].aescbc.keys: Required value: at least one keys is required",
            ),
            (
                by(key("")),
                "resources[0].providers[0].aescbc.keys[0].secret: Required value: secret is a mandatory field for a key",
            ),
            (
                by(key("!")),
                "resources[0].providers[0].aescbc.keys[0].secret: Invalid value: \"REDACTED\": secrets must be base64 encoded",
            ),
            (
                by(key("YWJj")),
                "resources[0].providers[0].aescbc.keys[0].secret: Invalid value: \"REDACTED\": secret is not of the expected length, got 3, expected one of [16 24 32]",
            ),
            (
                kms(json!({"name": "a:b"})),
                "resources[0].providers[0].kms.name: Invalid value: \"a:b\": invalid KMS provider name a:b, must not contain ':'",
            ),
            (
                kms(json!({"timeout": "0s"})),
                "resources[0].providers[0].kms.timeout: Invalid value: \"0s\": timeout should be a positive value",
            ),
            (
                kms(json!({"endpoint": "tcp://a"})),
                "resources[0].providers[0].kms.endpoint: Invalid value: \"tcp://a\": unsupported scheme \"tcp\" for KMS provider, only unix is supported",
            ),
            (
                kms(json!({"cachesize": 5})),
                "resources[0].providers[0].kms.cachesize: Invalid value: 5: cachesize is not supported in v2",
            ),
            (
                kms(json!({"apiVersion": "v3"})),
                "resources[0].providers[0].kms.apiVersion: Invalid value: \"v3\": unsupported apiVersion apiVersion for KMS provider, only v1 and v2 are supported",
            ),
        ];
        for (resources, expected) in cases {
            assert_eq!(told(resources.clone()), [expected], "{resources}");
        }
        let several =
            told(by(json!([{"identity": {}, "secretbox": {"keys": [{"name": "k", "secret": "c2VjcmV0"}]}}])));
        assert!(
            several[0].contains("more than one provider") && !several[0].contains("c2VjcmV0"),
            "{several:?}"
        );
        let twice = json!([
            {"resources": ["secrets"], "providers": [{"kms": {"apiVersion": "v2", "name": "p", "endpoint": "unix:///a"}}]},
            {"resources": ["configmaps"], "providers": [{"kms": {"apiVersion": "v2", "name": "p", "endpoint": "unix:///a"}}]},
        ]);
        assert_eq!(
            told(twice),
            [
                "resources[1].providers[0].kms.name: Invalid value: \"p\": duplicate KMS provider name p, names must be unique"
            ]
        );
        assert!(told(kms(json!({}))).is_empty());
    }
}
