//! Removes tokens whose time is over.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use krate_client::{Api, Client, Event, Informer, Reconcile, Requeue, WorkQueue, is_conflict, is_not_found};
use kube::api::{DeleteParams, Preconditions};

use super::{NAMESPACE, expires, tokens};
use crate::meta::name;
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
    let q = queue.clone();
    tokens.handle(move |event| {
        if !matches!(event, Event::Deleted(_)) {
            q.add(name(&**event.object()).to_owned());
        }
    });
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
        let left = Duration::try_from(end.duration_since(Timestamp::now())).unwrap_or_default();
        if !left.is_zero() {
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
