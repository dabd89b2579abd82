//! Removes tokens whose time is over.

use k8s_openapi::api::core::v1::Secret;
use krate_client::{Api, Client, Informer, Reconcile, Requeue, WorkQueue, is_conflict, is_not_found};
use kube::api::{DeleteParams, Preconditions};

use super::{NAMESPACE, expires, tokens};
use crate::context::follow;
use crate::meta::time_until;
use crate::{Context, Error};

struct Cleaning {
    client: Client,
    tokens: Informer<Secret>,
}

pub async fn run(cx: Context) {
    let tokens = tokens(&cx);
    if !cx.ready(tokens.synced()).await {
        return;
    }
    let queue = WorkQueue::named("token_cleaner");
    follow(&tokens, &queue);
    let reconciler = Cleaning { client: cx.client.clone(), tokens };
    cx.work("token-cleaner", reconciler, queue, 1).await;
}

impl Reconcile for Cleaning {
    /// A secret.
    type Key = String;
    type Error = Error;

    async fn reconcile(&self, key: String) -> Result<Requeue, Error> {
        let Some(token) = self.tokens.get(NAMESPACE, &key) else { return Ok(Requeue::Done) };
        let Some(end) = expires(&token) else { return Ok(Requeue::Done) };
        if let Some(left) = time_until(end) {
            return Ok(Requeue::After(left));
        }
        tracing::debug!(secret = key, "an expired bootstrap token is removed");
        let this = Preconditions { uid: token.metadata.uid.clone(), resource_version: None };
        let delete = DeleteParams { preconditions: Some(this), ..DeleteParams::default() };
        let api = Api::<Secret>::namespaced(self.client.clone(), NAMESPACE);
        match api.delete(&key, &delete).await {
            // It is gone already, or another has its name.
            Err(error) if !is_not_found(&error) && !is_conflict(&error) => Err(error.into()),
            _ => Ok(Requeue::Done),
        }
    }
}
