//! ServiceAccounts as bearers of tokens: what a token is bound to has to be there, or the token is nobody's.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use krate_store::cache::Freshness;

use super::token::{self, Bound, Claims, Legacy, Said, Signer};
use super::tokens::{Found, Tokens};
use crate::admission::lookup;
use crate::kinds::Kinds;

/// How long what is being deleted still vouches for tokens, in seconds, as upstream.
const LEEWAY: i64 = 60;

pub struct ServiceAccounts {
    signer: Arc<Signer>,
    kinds: Arc<Kinds>,
}

impl ServiceAccounts {
    pub fn new(signer: Arc<Signer>, kinds: Arc<Kinds>) -> Self {
        ServiceAccounts { signer, kinds }
    }

    /// Whether an object is there, is the one that was meant, and is to stay.
    async fn is_there(&self, plural: &str, namespace: &str, bound: &Bound) -> bool {
        let Some(storage) = self.kinds.of("", plural) else { return false };
        // The cache may be a moment behind the one who made it.
        for freshness in [Freshness::Any, Freshness::Latest] {
            let Ok(Some(cached)) = storage.cache.get(namespace, &bound.name, freshness).await else {
                continue;
            };
            if *cached.head.uid != *bound.uid {
                continue;
            }
            let Ok(object) = storage.registry.decode(&cached.value) else { return false };
            let ends = object.meta().deletion_timestamp.as_ref().map(|Time(at)| at.as_second());
            return ends.is_none_or(|at| at + LEEWAY > Timestamp::now().as_second());
        }
        false
    }

    async fn still_bound(&self, claims: &Claims) -> bool {
        let binding = &claims.kubernetes;
        let namespace = binding.namespace.as_str();
        let mut needed = vec![("serviceaccounts", namespace, &binding.serviceaccount)];
        needed.extend(binding.secret.as_ref().map(|bound| ("secrets", namespace, bound)));
        needed.extend(binding.pod.as_ref().map(|bound| ("pods", namespace, bound)));
        // The node of a pod is told, and vouches for nothing.
        needed.extend(
            binding.node.as_ref().filter(|_| binding.pod.is_none()).map(|bound| ("nodes", "", bound)),
        );
        for (plural, namespace, bound) in needed {
            if !self.is_there(plural, namespace, bound).await {
                return false;
            }
        }
        true
    }

    /// A token of a secret is good while the secret holds it.
    async fn still_held(&self, said: &Legacy, token: &str) -> Result<bool, String> {
        let account = Bound { name: said.account.clone(), uid: said.uid.clone() };
        if said.sub != format!("system:serviceaccount:{}:{}", said.namespace, said.account)
            || !self.is_there("serviceaccounts", &said.namespace, &account).await
        {
            return Ok(false);
        }
        let found = lookup::find::<Secret>(&self.kinds, "", "secrets", &said.namespace, &said.secret).await;
        let secret = found.map_err(|error| error.to_string())?;
        let data = secret.filter(|secret| secret.metadata.deletion_timestamp.is_none()).and_then(|s| s.data);
        Ok(data.is_some_and(|data| data.get("token").is_some_and(|held| held.0 == token.as_bytes())))
    }
}

#[async_trait]
impl Tokens for ServiceAccounts {
    async fn whose(&self, token: &str, audiences: &[String]) -> Found {
        Ok(match self.signer.verify(token, audiences) {
            Some(Said::Bound(claims)) if self.still_bound(&claims).await => {
                let good = audiences.iter().filter(|a| claims.aud.contains(a)).cloned().collect();
                Some((claims.user(), Some(good)))
            }
            Some(Said::Legacy(said)) if self.still_held(&said, token).await? => {
                Some((token::account(&said.namespace, &said.account, &said.uid, BTreeMap::new()), None))
            }
            _ => None,
        })
    }
}
