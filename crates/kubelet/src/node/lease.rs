//! The lease by which a node is known to live: one small write every ten seconds, unless it is configured otherwise.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use krate_client::{Client, is_not_found};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

const NAMESPACE: &str = "kube-node-lease";
/// How long it may take, and is waited after a failure.
const PATIENCE: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(200);
/// It is renewed after this part of the time that it lasts.
const RENEWED_AFTER: u32 = 4;

/// Renews the lease of a node, for ever. It lasts so many seconds.
pub async fn run(client: Client, node: String, lasts: i32) {
    let after = Duration::from_secs(u64::from(lasts.unsigned_abs())) / RENEWED_AFTER;
    let api: Api<Lease> = Api::namespaced(client.clone(), NAMESPACE);
    let mut pause = AGAIN;
    loop {
        let renewing = tokio::time::timeout(PATIENCE, renew(&client, &api, &node, lasts)).await;
        let wait = match renewing {
            Ok(Ok(true)) => {
                pause = AGAIN;
                after
            }
            Ok(outcome) => {
                // There is none yet where the node is not there.
                if let Err(error) = outcome {
                    tracing::debug!(%error, "the node's lease could not be renewed");
                }
                pause = (pause * 2).min(Duration::from_secs(7));
                pause
            }
            Err(_) => AGAIN,
        };
        tokio::time::sleep(wait).await;
    }
}

/// Renews the lease, or makes it. False while there is no node that it could belong to: without one it would never be
/// collected.
async fn renew(client: &Client, api: &Api<Lease>, node: &str, lasts: i32) -> kube::Result<bool> {
    let now = MicroTime(Timestamp::now());
    let patch = Patch::Merge(json!({"spec": {
        "holderIdentity": node, "leaseDurationSeconds": lasts, "renewTime": now}}));
    match api.patch(node, &PatchParams::default(), &patch).await {
        Ok(lease) => {
            if lease.metadata.owner_references.is_none_or(|owners| owners.is_empty())
                && let Some(owner) = owner(client, node).await?
            {
                let patch = Patch::Merge(json!({"metadata": {"ownerReferences": [owner]}}));
                api.patch(node, &PatchParams::default(), &patch).await?;
            }
            return Ok(true);
        }
        Err(error) if is_not_found(&error) => {}
        Err(error) => return Err(error),
    }
    let Some(owner) = owner(client, node).await? else { return Ok(false) };
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(node.to_owned()),
            namespace: Some(NAMESPACE.to_owned()),
            owner_references: Some(vec![owner]),
            ..Default::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(node.to_owned()),
            lease_duration_seconds: Some(lasts),
            renew_time: Some(now),
            ..Default::default()
        }),
    };
    api.create(&PostParams::default(), &lease).await.map(|_| true)
}

async fn owner(client: &Client, node: &str) -> kube::Result<Option<OwnerReference>> {
    let found = Api::<Node>::all(client.clone()).get_opt(node).await?;
    Ok(found.and_then(|node| node.metadata.uid).map(|uid| OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.to_owned(),
        uid,
        ..Default::default()
    }))
}
