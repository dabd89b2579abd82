//! ServiceAccounts as bearers of tokens: what a token is bound to has to be there, or the token is nobody's.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use krate_store::cache::Freshness;

use super::last_used;
use super::metrics::METRICS;
use super::token::{self, Bound, Claims, Legacy, Said, Signer};
use super::tokens::{Found, Tokens};
use crate::admission::lookup;
use crate::audit;
use crate::kinds::Kinds;

/// How long what is being deleted still vouches for tokens, in seconds, as upstream.
const LEEWAY: i64 = 60;
/// Says of a secret since when nobody is to use its token any more (KEP-2799).
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";

/// Why an object does not vouch for a token.
#[derive(Debug, PartialEq, Eq)]
enum Gone {
    Missing,
    /// There is another of its name, of this UID.
    Another(String),
    Deleted,
}

impl Gone {
    /// What is said where it is the account itself.
    fn of_account(self, namespace: &str, Bound { name, uid }: &Bound) -> String {
        match self {
            Gone::Missing => format!("serviceaccounts {name:?} not found"),
            Gone::Another(other) => format!("service account UID ({other}) does not match claim ({uid})"),
            Gone::Deleted => format!("service account {namespace}/{name} has been deleted"),
        }
    }

    /// What is said where it is what the token is bound to.
    fn of_bound(self, what: &str, Bound { uid, .. }: &Bound) -> String {
        match self {
            Gone::Another(other) => {
                format!("{what} UID ({other}) does not match service account {what} ref claim ({uid})")
            }
            Gone::Missing | Gone::Deleted => "service account token has been invalidated".to_owned(),
        }
    }
}

pub struct ServiceAccounts {
    signer: Arc<Signer>,
    kinds: Arc<Kinds>,
}

impl ServiceAccounts {
    pub fn new(signer: Arc<Signer>, kinds: Arc<Kinds>) -> Self {
        ServiceAccounts { signer, kinds }
    }

    /// Whether an object is there, is the one that was meant, and is to stay.
    async fn vouches(&self, plural: &str, namespace: &str, bound: &Bound) -> Result<(), Gone> {
        let Some(storage) = self.kinds.of("", plural) else { return Err(Gone::Missing) };
        let mut gone = Gone::Missing;
        // The cache may be a moment behind the one who made it.
        for freshness in [Freshness::Any, Freshness::Latest] {
            let Ok(Some(cached)) = storage.cache.get(namespace, &bound.name, freshness).await else {
                gone = Gone::Missing;
                continue;
            };
            if *cached.head.uid != *bound.uid {
                gone = Gone::Another(cached.head.uid.to_string());
                continue;
            }
            let Ok(object) = storage.registry.decode(&cached.value) else { return Err(Gone::Missing) };
            let ends = object.meta().deletion_timestamp.as_ref().map(|Time(at)| at.as_second());
            let stays = ends.is_none_or(|at| at + LEEWAY > Timestamp::now().as_second());
            return if stays { Ok(()) } else { Err(Gone::Deleted) };
        }
        Err(gone)
    }

    async fn still_bound(&self, claims: &Claims) -> Result<(), String> {
        let binding = &claims.kubernetes;
        let (namespace, account) = (binding.namespace.as_str(), &binding.serviceaccount);
        let found = self.vouches("serviceaccounts", namespace, account).await;
        found.map_err(|gone| gone.of_account(namespace, account))?;
        // The node of a pod is told, and vouches for nothing.
        let node = binding.node.as_ref().filter(|_| binding.pod.is_none());
        for (what, namespace, bound) in [
            ("secret", namespace, binding.secret.as_ref()),
            ("pod", namespace, binding.pod.as_ref()),
            ("node", "", node),
        ] {
            let Some(bound) = bound else { continue };
            let found = self.vouches(&format!("{what}s"), namespace, bound).await;
            found.map_err(|gone| gone.of_bound(what, bound))?;
        }
        Ok(())
    }

    /// A token of a secret is good while the secret holds it.
    async fn still_held(&self, said: &Legacy, token: &str) -> Result<(), String> {
        if said.sub != format!("system:serviceaccount:{}:{}", said.namespace, said.account) {
            return Err("sub claim is invalid".to_owned());
        }
        let found = lookup::find::<Secret>(&self.kinds, "", "secrets", &said.namespace, &said.secret).await;
        let secret = found.map_err(|error| error.to_string())?;
        let Some(secret) = secret.filter(|secret| secret.metadata.deletion_timestamp.is_none()) else {
            return Err("Token has been invalidated".to_owned());
        };
        let held = secret.data.as_ref().and_then(|data| data.get("token"));
        if held.is_none_or(|held| held.0 != token.as_bytes()) {
            return Err("Token does not match server's copy".to_owned());
        }
        let account = Bound { name: said.account.clone(), uid: said.uid.clone() };
        let found = self.vouches("serviceaccounts", &said.namespace, &account).await;
        found.map_err(|gone| {
            gone.of_account(&said.namespace, &account).replacen("service account", "ServiceAccount", 1)
        })?;
        let labels = secret.metadata.labels.as_ref();
        if labels.and_then(|labels| labels.get(INVALID_SINCE)).is_some_and(|since| !since.is_empty()) {
            audit::annotate(&audited("invalidated"), &format!("{}/{}", said.secret, said.namespace));
            METRICS.accounts.invalidated.inc();
            last_used::note(&self.kinds, &secret).await;
            return Err(format!(
                "the token in secret {}/{} for service account {}/{} has been marked invalid. Use tokens from the \
                 TokenRequest API or manually created secret-based tokens, or remove the '{INVALID_SINCE}' label from \
                 the secret to temporarily allow use of this token",
                said.namespace, said.secret, said.namespace, said.account
            ));
        }
        let (noted, uses) = if self.was_generated(said).await {
            ("autogenerated-secret", &METRICS.accounts.generated)
        } else {
            ("manual-secret", &METRICS.accounts.manual)
        };
        audit::annotate(&audited(noted), &said.secret);
        uses.inc();
        last_used::note(&self.kinds, &secret).await;
        Ok(())
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
        Ok(match self.signer.judge(token, audiences)? {
            Some(Said::Bound(claims)) => {
                self.still_bound(&claims).await?;
                noted(&claims);
                let good = audiences.iter().filter(|a| claims.aud.contains(a)).cloned().collect();
                Some((claims.user(), Some(good)))
            }
            Some(Said::Legacy(said)) => {
                METRICS.accounts.legacy.inc();
                audit::annotate("authentication.k8s.io/legacy-token", &said.sub);
                self.still_held(&said, token).await?;
                Some((token::account(&said.namespace, &said.account, &said.uid, BTreeMap::new()), None))
            }
            None => None,
        })
    }
}

/// The name by which audit notes what a token in a secret is.
fn audited(what: &str) -> String {
    format!("authentication.k8s.io/legacy-token-{what}")
}

/// Counts whether a token that is to be replaced in time was; one that was not is told of.
fn noted(claims: &Claims) {
    let Some(at) = claims.kubernetes.warnafter.filter(|at| *at != 0) else { return };
    let late = Timestamp::now().as_second() - at;
    if late <= 0 {
        METRICS.accounts.valid.inc();
        return;
    }
    let told = format!("subject: {}, seconds after warning threshold: {late}", claims.sub);
    audit::annotate("authentication.k8s.io/stale-token", &told);
    METRICS.accounts.stale.inc();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_vouch_for_a_token_is_told_in_upstreams_words() {
        let bound = Bound { name: "b".to_owned(), uid: "u".to_owned() };
        let other = || Gone::Another("o".to_owned());
        for (told, expected) in [
            (Gone::Missing.of_account("a", &bound), "serviceaccounts \"b\" not found"),
            (other().of_account("a", &bound), "service account UID (o) does not match claim (u)"),
            (Gone::Deleted.of_account("a", &bound), "service account a/b has been deleted"),
            (Gone::Missing.of_bound("pod", &bound), "service account token has been invalidated"),
            (other().of_bound("pod", &bound), "pod UID (o) does not match service account pod ref claim (u)"),
            (Gone::Deleted.of_bound("node", &bound), "service account token has been invalidated"),
        ] {
            assert_eq!(told, expected);
        }
    }
}
