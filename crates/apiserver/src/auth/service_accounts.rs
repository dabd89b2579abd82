//! ServiceAccounts as bearers of tokens: what a token is bound to has to be there, or the token is nobody's.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use krate_store::cache::Freshness;

use super::metrics::METRICS;
use super::token::{self, Bound, Claims, Legacy, Said, Signer};
use super::tokens::{Found, Tokens};
use crate::admission::lookup;
use crate::kinds::Kinds;

/// How long what is being deleted still vouches for tokens, in seconds, as upstream.
const LEEWAY: i64 = 60;
/// Says of a secret since when nobody is to use its token any more (KEP-2799).
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";

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
        let Some(secret) = secret.filter(|secret| secret.metadata.deletion_timestamp.is_none()) else {
            return Ok(false);
        };
        let held = secret.data.as_ref().and_then(|data| data.get("token"));
        if held.is_none_or(|held| held.0 != token.as_bytes()) {
            return Ok(false);
        }
        if secret
            .metadata
            .labels
            .iter()
            .flatten()
            .any(|(name, value)| name == INVALID_SINCE && !value.is_empty())
        {
            METRICS.accounts.invalidated.inc();
            return Err(format!(
                "the token in secret {}/{} for service account {}/{} has been marked invalid",
                said.namespace, said.secret, said.namespace, said.account
            ));
        }
        let generated = self.was_generated(said).await;
        if generated { &METRICS.accounts.generated } else { &METRICS.accounts.manual }.inc();
        Ok(true)
    }

    /// Whether the account names the secret as its own, as accounts did whose secrets the cluster made.
    async fn was_generated(&self, said: &Legacy) -> bool {
        let (namespace, name) = (&said.namespace, &said.account);
        let found = lookup::find::<ServiceAccount>(&self.kinds, "", "serviceaccounts", namespace, name).await;
        let account = found.ok().flatten().unwrap_or_default();
        account.secrets.iter().flatten().any(|secret| secret.name.as_deref() == Some(&said.secret))
    }
}

#[async_trait]
impl Tokens for ServiceAccounts {
    async fn whose(&self, token: &str, audiences: &[String]) -> Found {
        Ok(match self.signer.verify(token, audiences) {
            Some(Said::Bound(claims)) if self.still_bound(&claims).await => {
                noted(&claims);
                let good = audiences.iter().filter(|a| claims.aud.contains(a)).cloned().collect();
                Some((claims.user(), Some(good)))
            }
            Some(Said::Legacy(said)) => {
                METRICS.accounts.legacy.inc();
                let account = || token::account(&said.namespace, &said.account, &said.uid, BTreeMap::new());
                self.still_held(&said, token).await?.then(|| (account(), None))
            }
            _ => None,
        })
    }
}

/// Counts whether a token that is to be replaced in time was.
fn noted(claims: &Claims) {
    match claims.kubernetes.warnafter {
        None | Some(0) => {}
        Some(at) if Timestamp::now().as_second() > at => METRICS.accounts.stale.inc(),
        Some(_) => METRICS.accounts.valid.inc(),
    }
}
