//! Bootstrap tokens: short-lived tokens by which new nodes join, each a secret of `kube-system`
//! (<https://kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens/>).

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;

use super::tokens::{Found, Tokens};
use super::{AUTHENTICATED, User};
use crate::admission::lookup;
use crate::kinds::Kinds;

const NAMESPACE: &str = "kube-system";
const TYPE: &str = "bootstrap.kubernetes.io/token";
const GROUP: &str = "system:bootstrappers";

pub struct BootstrapTokens {
    kinds: Arc<Kinds>,
}

impl BootstrapTokens {
    pub fn new(kinds: Arc<Kinds>) -> Self {
        BootstrapTokens { kinds }
    }
}

#[async_trait]
impl Tokens for BootstrapTokens {
    async fn whose(&self, token: &str, _: &[String]) -> Found {
        let Some((id, secret)) = parts(token) else { return Ok(None) };
        let name = format!("bootstrap-token-{id}");
        let found = lookup::find::<Secret>(&self.kinds, "", "secrets", NAMESPACE, &name).await;
        match found.map_err(|error| error.to_string())? {
            Some(object) => Ok(user(&object, id, secret, Timestamp::now())?.map(|user| (user, None))),
            None => Ok(None),
        }
    }
}

/// The two parts of a token: six letters or digits, and sixteen.
fn parts(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let plain = |text: &str| text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    (id.len() == 6 && secret.len() == 16 && plain(id) && plain(secret)).then_some((id, secret))
}

/// The user of a token, if the object says that it is one, and still is.
fn user(object: &Secret, id: &str, secret: &str, now: Timestamp) -> Result<Option<User>, String> {
    let text = |key: &str| -> &str {
        let value = object.data.as_ref().and_then(|data| data.get(key));
        value.and_then(|value| std::str::from_utf8(&value.0).ok()).unwrap_or_default()
    };
    let expired = match text("expiration") {
        "" => false,
        // What cannot be read has passed.
        time => time.parse::<Timestamp>().is_ok_and(|time| time <= now) || time.parse::<Timestamp>().is_err(),
    };
    if object.metadata.deletion_timestamp.is_some()
        || object.type_.as_deref() != Some(TYPE)
        || !same(text("token-secret"), secret)
        || text("token-id") != id
        || expired
        || text("usage-bootstrap-authentication") != "true"
    {
        return Ok(None);
    }
    let mut groups = vec![GROUP.to_owned()];
    for group in text("auth-extra-groups").split(',').filter(|group| !group.is_empty()) {
        if !is_bootstrappers(group) {
            return Err(format!(
                "bootstrap group {group:?} is invalid (must match \\Asystem:bootstrappers:[a-z0-9:-]{{0,255}}[a-z0-9]\\z)"
            ));
        }
        if !groups.iter().any(|there| there == group) {
            groups.push(group.to_owned());
        }
    }
    groups[1..].sort();
    groups.push(AUTHENTICATED.to_owned());
    Ok(Some(User { name: format!("system:bootstrap:{id}"), groups, ..User::default() }))
}

/// In the same time wherever they differ.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |all, (x, y)| all | (x ^ y)) == 0
}

fn is_bootstrappers(group: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    group.strip_prefix("system:bootstrappers:").is_some_and(|rest| {
        let bytes = rest.as_bytes();
        (1..=256).contains(&bytes.len())
            && bytes.iter().all(|b| plain(*b) || matches!(b, b':' | b'-'))
            && bytes.last().is_some_and(|b| plain(*b))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::ByteString;

    use super::*;

    fn secret(changes: &[(&str, &str)]) -> Secret {
        let mut data = BTreeMap::from([
            ("token-id", "abcdef"),
            ("token-secret", "0123456789abcdef"),
            ("usage-bootstrap-authentication", "true"),
        ]);
        data.extend(changes.iter().copied());
        Secret {
            type_: Some(TYPE.to_owned()),
            data: Some(
                data.into_iter().map(|(k, v)| (k.to_owned(), ByteString(v.as_bytes().to_vec()))).collect(),
            ),
            ..Secret::default()
        }
    }

    #[test]
    fn a_token_is_two_parts_of_letters_and_digits() {
        assert_eq!(parts("abcdef.0123456789abcdef"), Some(("abcdef", "0123456789abcdef")));
        for token in ["abcde.0123456789abcdef", "abcdef.0123456789abcde", "ABCDEF.0123456789abcdef", "x"] {
            assert_eq!(parts(token), None, "{token}");
        }
    }

    #[test]
    fn a_secret_makes_a_user_while_it_says_so() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        let groups = |changes: &[(&str, &str)]| {
            let user = user(&secret(changes), "abcdef", "0123456789abcdef", now);
            user.map(|user| user.map(|user| user.groups.join(" ")))
        };
        let plain = Ok(Some(format!("{GROUP} {AUTHENTICATED}")));
        let more = Ok(Some(format!("{GROUP} {GROUP}:a {GROUP}:b {AUTHENTICATED}")));
        for (changes, expected) in [
            (&[][..], plain.clone()),
            (&[("expiration", "2026-01-01T00:00:01Z")], plain),
            (&[("expiration", "2026-01-01T00:00:00Z")], Ok(None)),
            (&[("expiration", "soon")], Ok(None)),
            (&[("token-secret", "0123456789abcdeg")], Ok(None)),
            (&[("token-id", "abcdeg")], Ok(None)),
            (&[("usage-bootstrap-authentication", "false")], Ok(None)),
            (&[("auth-extra-groups", "system:bootstrappers:b,system:bootstrappers:a")], more),
        ] {
            assert_eq!(groups(changes), expected, "{changes:?}");
        }
        assert!(groups(&[("auth-extra-groups", "system:masters")]).is_err());
        let other = Secret { type_: Some("Opaque".to_owned()), ..secret(&[]) };
        assert_eq!(user(&other, "abcdef", "0123456789abcdef", now), Ok(None));
    }
}
