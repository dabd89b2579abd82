//! Gives each namespace its `default` service account.

use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use krate_client::{Api, Client, Event, Informer, Reconcile, Requeue, WorkQueue, is_conflict};
use kube::api::PostParams;

use crate::context::follow;
use crate::meta::{name, namespace};
use crate::{Context, Error};

const ACCOUNT: &str = "default";

struct Accounts {
    client: Client,
    namespaces: Informer<Namespace>,
    accounts: Informer<ServiceAccount>,
}

pub async fn run(cx: Context) {
    let (namespaces, accounts) = (cx.informers.of::<Namespace>(), cx.informers.of::<ServiceAccount>());
    if !cx
        .ready(async {
            tokio::join!(namespaces.synced(), accounts.synced());
        })
        .await
    {
        return;
    }
    let queue = WorkQueue::named("serviceaccount");
    follow(&namespaces, &queue);
    let q = queue.clone();
    accounts.handle(move |event| {
        if let Event::Deleted(account) = event
            && name(&**account) == ACCOUNT
        {
            q.add(namespace(&**account).to_owned());
        }
    });
    let reconciler = Accounts { client: cx.client.clone(), namespaces, accounts };
    cx.work("serviceaccount", reconciler, queue, 1).await;
}

/// Whether things may still be made in a namespace.
pub fn is_open(namespace: &Namespace) -> bool {
    let phase = namespace.status.as_ref().and_then(|s| s.phase.as_deref());
    namespace.metadata.deletion_timestamp.is_none() && phase != Some("Terminating")
}

impl Reconcile for Accounts {
    /// A namespace.
    type Key = String;
    type Error = Error;

    async fn reconcile(&self, key: String) -> Result<Requeue, Error> {
        let open = self.namespaces.get("", &key).is_some_and(|n| is_open(&n));
        if !open || self.accounts.get(&key, ACCOUNT).is_some() {
            return Ok(Requeue::Done);
        }
        let mut account = ServiceAccount::default();
        account.metadata.name = Some(ACCOUNT.to_owned());
        let api = Api::<ServiceAccount>::namespaced(self.client.clone(), &key);
        match api.create(&PostParams::default(), &account).await {
            Err(error) if !is_conflict(&error) => Err(error.into()),
            _ => Ok(Requeue::Done),
        }
    }
}
