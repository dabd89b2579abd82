//! The lease by which a node is known to live: one small write every ten seconds.

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
const RENEW: Duration = Duration::from_secs(10);
/// How long it may take, and is waited after a failure.
const PATIENCE: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(200);
/// Seconds after which a node that has not renewed is taken for dead.
const LASTS: i32 = 40;

/// Renews the lease of a node, for ever.
pub async fn run(client: Client, node: String) {
    let api: Api<Lease> = Api::namespaced(client.clone(), NAMESPACE);
    let mut pause = AGAIN;
    loop {
        let renewing = tokio::time::timeout(PATIENCE, renew(&client, &api, &node)).await;
        let wait = match renewing {
            Ok(Ok(())) => {
                pause = AGAIN;
                RENEW
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "the node's lease could not be renewed");
                pause = (pause * 2).min(Duration::from_secs(7));
                pause
            }
            Err(_) => AGAIN,
        };
        tokio::time::sleep(wait).await;
    }
}

async fn renew(client: &Client, api: &Api<Lease>, node: &str) -> kube::Result<()> {
    let now = MicroTime(Timestamp::now());
    let patch = Patch::Merge(json!({"spec": {
        "holderIdentity": node, "leaseDurationSeconds": LASTS, "renewTime": now}}));
    match api.patch(node, &PatchParams::default(), &patch).await {
        Err(error) if is_not_found(&error) => {}
        other => return other.map(drop),
    }
    // Without its node it would never be collected.
    let owner = Api::<Node>::all(client.clone()).get_opt(node).await?;
    let owner = owner.and_then(|node| node.metadata.uid).map(|uid| OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.to_owned(),
        uid,
        ..Default::default()
    });
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(node.to_owned()),
            namespace: Some(NAMESPACE.to_owned()),
            owner_references: owner.map(|o| vec![o]),
            ..Default::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(node.to_owned()),
            lease_duration_seconds: Some(LASTS),
            renew_time: Some(now),
            ..Default::default()
        }),
    };
    api.create(&PostParams::default(), &lease).await.map(drop)
}
