//! Who asks: a client certificate, a bearer token, or nobody.

use std::collections::HashMap;
use std::sync::Arc;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use krate_store::cache::Freshness;

use super::token::{Bound, Claims};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::{ISSUER, Signer, User};
use crate::kinds::Kinds;

/// The credentials are wrong. (Who brings none is anonymous.)
#[derive(Debug, PartialEq, Eq)]
pub struct Unauthorized;

/// Knows users by their credentials.
pub struct Authenticator {
    pub tokens: HashMap<String, User>,
    pub signer: Arc<Signer>,
    pub kinds: Arc<Kinds>,
}

impl Authenticator {
    /// Who sent a request with these headers; `certificate` is whom his verified client certificate names.
    ///
    /// # Errors
    /// He brings a token that is nobody's.
    pub async fn who(&self, headers: &HeaderMap, certificate: Option<&User>) -> Result<User, Unauthorized> {
        if let Some(user) = certificate {
            return Ok(user.clone());
        }
        match bearer(headers) {
            None => Ok(User::anonymous()),
            Some(token) => self.by_token(&token, &[ISSUER.to_owned()]).await.map(|(user, _)| user),
        }
    }

    /// Whose token it is, and for which of the audiences it is good.
    ///
    /// # Errors
    /// It is nobody's, or what it is bound to is gone.
    pub async fn by_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<(User, Vec<String>), Unauthorized> {
        if let Some(user) = self.tokens.get(token) {
            return Ok((user.clone(), audiences.to_vec()));
        }
        let claims = self.signer.verify(token, audiences).ok_or(Unauthorized)?;
        if !self.still_bound(&claims).await {
            return Err(Unauthorized);
        }
        let good = audiences.iter().filter(|a| claims.aud.contains(a)).cloned().collect();
        Ok((claims.user(), good))
    }

    async fn still_bound(&self, claims: &Claims) -> bool {
        let binding = &claims.kubernetes;
        let there = |plural, bound: Bound, namespace: String| async move {
            let Some(storage) = self.kinds.of("", plural) else { return false };
            match storage.cache.get(&namespace, &bound.name, Freshness::Any).await {
                Ok(Some(object)) if *object.head.uid == *bound.uid => true,
                // The cache may be a moment behind the one who made it.
                _ => matches!(
                    storage.cache.get(&namespace, &bound.name, Freshness::Latest).await,
                    Ok(Some(object)) if *object.head.uid == *bound.uid
                ),
            }
        };
        let namespace = || binding.namespace.clone();
        there("serviceaccounts", binding.serviceaccount.clone(), namespace()).await
            && match binding.pod.clone() {
                Some(pod) => there("pods", pod, namespace()).await,
                None => true,
            }
            && match binding.secret.clone() {
                Some(secret) => there("secrets", secret, namespace()).await,
                None => true,
            }
            && match binding.node.clone().filter(|_| binding.pod.is_none()) {
                Some(node) => there("nodes", node, String::new()).await,
                None => true,
            }
    }
}

fn bearer(headers: &HeaderMap) -> Option<String> {
    if let Some(value) = headers.get(AUTHORIZATION) {
        let (scheme, token) = value.to_str().ok()?.trim().split_once(' ')?;
        let token = token.trim();
        return (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then(|| token.to_owned());
    }
    // A browser's WebSocket cannot set headers: the token is a subprotocol.
    let protocols = headers.get_all("sec-websocket-protocol").iter().filter_map(|v| v.to_str().ok());
    let encoded = protocols
        .flat_map(|list| list.split(','))
        .find_map(|p| p.trim().strip_prefix("base64url.bearer.authorization.k8s.io."))?;
    let token = URL_SAFE_NO_PAD.decode(encoded).ok()?;
    String::from_utf8(token).ok().filter(|t| !t.is_empty())
}
