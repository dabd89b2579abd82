//! Bootstrap tokens, by which nodes join: what they sign, and when they go
//! (<https://kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens/>).

pub mod cleaning;
pub mod signing;

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use krate_client::{Api, Informer};
use kube::runtime::watcher;

use crate::Context;
use crate::meta::name;

const NAMESPACE: &str = "kube-system";
const TYPE: &str = "bootstrap.kubernetes.io/token";
const PREFIX: &str = "bootstrap-token-";

/// The tokens of the cluster: secrets of their type alone.
fn tokens(cx: &Context) -> Informer<Secret> {
    let only = watcher::Config::default().fields(&format!("type={TYPE}"));
    Informer::start(Api::namespaced(cx.client.clone(), NAMESPACE), only, cx.shutdown.clone())
}

fn text<'a>(secret: &'a Secret, key: &str) -> &'a str {
    let value = secret.data.as_ref().and_then(|data| data.get(key));
    value.and_then(|value| std::str::from_utf8(&value.0).ok()).unwrap_or_default()
}

/// When a token ends; none: never. A time that cannot be read has passed.
fn expires(secret: &Secret) -> Option<Timestamp> {
    match text(secret, "expiration") {
        "" => None,
        time => Some(time.parse().unwrap_or(Timestamp::MIN)),
    }
}

/// The id and the secret of a token that may sign now.
fn signer(secret: &Secret, now: Timestamp) -> Option<(&str, &str)> {
    let (id, key) = (text(secret, "token-id"), text(secret, "token-secret"));
    let is_plain = id.len() == 6 && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let is_named = name(secret).strip_prefix(PREFIX) == Some(id);
    let lasts = expires(secret).is_none_or(|end| end > now);
    let may = text(secret, "usage-bootstrap-signing") == "true";
    (is_plain && is_named && !key.is_empty() && lasts && may).then_some((id, key))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_token_signs_that_says_so_and_has_time_left() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        let token = |name: &str, changes: &[(&str, &str)]| {
            let mut data = std::collections::BTreeMap::from([
                ("token-id", "abcdef"),
                ("token-secret", "0123456789abcdef"),
                ("usage-bootstrap-signing", "true"),
            ]);
            data.extend(changes.iter().copied());
            let secret: Secret =
                serde_json::from_value(json!({"metadata": {"name": name}})).expect("a secret");
            let bytes = |v: &str| k8s_openapi::ByteString(v.as_bytes().to_vec());
            Secret { data: Some(data.iter().map(|(k, v)| ((*k).to_owned(), bytes(v))).collect()), ..secret }
        };
        let own = "bootstrap-token-abcdef";
        for (name, changes, expected) in [
            (own, &[][..], true),
            (own, &[("expiration", "2026-01-01T00:00:01Z")], true),
            (own, &[("expiration", "2026-01-01T00:00:00Z")], false),
            (own, &[("expiration", "soon")], false),
            (own, &[("usage-bootstrap-signing", "no")], false),
            (own, &[("token-secret", "")], false),
            ("bootstrap-token-abcdeg", &[], false),
        ] {
            assert_eq!(signer(&token(name, changes), now).is_some(), expected, "{name} {changes:?}");
        }
    }
}
