//! Signs what a new node is told of the cluster, the ConfigMap `cluster-info` of `kube-public`, with every token that may:
//! whoever knows a token knows by its signature that nobody else wrote it. A signature is a JWS whose content is left out
//! (RFC 7515, appendix F).

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac as _};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::jiff::Timestamp;
use krate_client::{Api, Client, Informer, Reconcile, Requeue, WorkQueue, is_conflict, is_not_found};
use kube::api::PostParams;
use kube::runtime::watcher;
use sha2::Sha256;

use super::{expires, signer, tokens};
use crate::{Context, Error};

const NAMESPACE: &str = "kube-public";
const NAME: &str = "cluster-info";
/// What is signed, and how its signatures are named.
const CONTENT: &str = "kubeconfig";
const SIGNATURE: &str = "jws-kubeconfig-";

struct Signing {
    client: Client,
    tokens: Informer<Secret>,
    told: Informer<ConfigMap>,
}

pub async fn run(cx: Context) {
    let tokens = tokens(&cx);
    let only = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
    let told = Informer::start(Api::namespaced(cx.client.clone(), NAMESPACE), only, cx.shutdown.clone());
    if !cx
        .ready(async {
            tokio::join!(tokens.synced(), told.synced());
        })
        .await
    {
        return;
    }
    let queue = WorkQueue::named("bootstrap_signer_queue");
    let (q, again) = (queue.clone(), queue.clone());
    tokens.handle(move |_| q.add(()));
    told.handle(move |_| again.add(()));
    let reconciler = Signing { client: cx.client.clone(), tokens, told };
    cx.work("bootstrap-signer", reconciler, queue, 1).await;
}

impl Reconcile for Signing {
    /// There is one thing to sign.
    type Key = ();
    type Error = Error;

    async fn reconcile(&self, (): ()) -> Result<Requeue, Error> {
        let now = Timestamp::now();
        let tokens = self.tokens.list();
        // What a token has signed goes with it.
        let next = tokens.iter().filter_map(|token| expires(token)).filter(|end| *end > now).min();
        let left = next.and_then(|end| Duration::try_from(end.duration_since(now)).ok());
        let done = left.map_or(Requeue::Done, Requeue::After);
        let Some(map) = self.told.get(NAMESPACE, NAME) else { return Ok(done) };
        let signers: BTreeMap<&str, &str> = tokens.iter().filter_map(|token| signer(token, now)).collect();
        let Some(data) = map.data.as_ref().and_then(|data| signed(data, &signers)) else { return Ok(done) };
        let map = ConfigMap { data: Some(data), ..(*map).clone() };
        let api = Api::<ConfigMap>::namespaced(self.client.clone(), NAMESPACE);
        match api.replace(NAME, &PostParams::default(), &map).await {
            // A newer one comes, or none.
            Err(error) if !is_conflict(&error) && !is_not_found(&error) => Err(error.into()),
            _ => Ok(done),
        }
    }
}

/// The data with the signatures that it should have; none if it has them, or nothing to sign.
fn signed(
    data: &BTreeMap<String, String>,
    signers: &BTreeMap<&str, &str>,
) -> Option<BTreeMap<String, String>> {
    let content = data.get(CONTENT)?;
    let others = data.iter().filter(|(key, _)| !key.starts_with(SIGNATURE));
    let mut wanted: BTreeMap<String, String> = others.map(|(k, v)| (k.clone(), v.clone())).collect();
    wanted.extend(signers.iter().map(|(id, key)| (format!("{SIGNATURE}{id}"), detached(content, id, key))));
    (wanted != *data).then_some(wanted)
}

/// A signature by HMAC with SHA-256, without its content.
fn detached(content: &str, id: &str, key: &str) -> String {
    // The id is of letters and digits, so that it needs no quoting.
    let head = URL_SAFE_NO_PAD.encode(format!("{{\"alg\":\"HS256\",\"kid\":\"{id}\"}}"));
    let mut mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).expect("a key of HMAC is of any length");
    mac.update(format!("{head}.{}", URL_SAFE_NO_PAD.encode(content)).as_bytes());
    format!("{head}..{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What upstream makes of the same.
    #[test]
    fn a_signature_is_the_one_that_others_make() {
        let expected =
            "eyJhbGciOiJIUzI1NiIsImtpZCI6Impvc2h1YSJ9..7Ui1ALizW4jXphVUB7xUqC9vLYLL9RZeOFfVLoB7Tgk";
        assert_eq!(detached("", "joshua", "my voice is my passcode"), expected);
    }

    #[test]
    fn signatures_come_and_go_with_their_tokens() {
        let data =
            BTreeMap::from([(CONTENT.to_owned(), "c".to_owned()), ("else".to_owned(), "x".to_owned())]);
        let one = signed(&data, &BTreeMap::from([("abcdef", "s")])).expect("a signature is missing");
        assert_eq!(one.keys().collect::<Vec<_>>(), ["else", "jws-kubeconfig-abcdef", CONTENT]);
        assert_eq!(signed(&one, &BTreeMap::from([("abcdef", "s")])), None, "it is there");
        let other = signed(&one, &BTreeMap::from([("fedcba", "s")])).expect("another");
        assert_eq!(other.keys().collect::<Vec<_>>(), ["else", "jws-kubeconfig-fedcba", CONTENT]);
        assert_eq!(signed(&other, &BTreeMap::new()), Some(data));
        assert_eq!(
            signed(&BTreeMap::new(), &BTreeMap::from([("abcdef", "s")])),
            None,
            "there is nothing to sign"
        );
    }
}
