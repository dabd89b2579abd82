//! Cuts each node a range of pod addresses from the cluster's.

use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use krate_client::{
    Api, Client, Event, EventRecorder, EventType, Informer, Reconcile, Requeue, WorkQueue, is_not_found,
    reference,
};
use kube::api::{Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::json;

use super::ranges::Ranges;
use crate::meta::name;
use crate::{Context, Error};

struct Allocator {
    client: Client,
    recorder: EventRecorder,
    nodes: Informer<Node>,
    /// What nodes have, and what was given since the informer last showed them.
    given: Arc<Mutex<Ranges>>,
}

pub async fn run(cx: Context) {
    let Some(cluster) = cx.config.cluster_cidr else { return };
    let nodes = cx.informers.of::<Node>();
    // Until all nodes are known, so are not all ranges that are taken.
    if !cx.ready(nodes.synced()).await {
        return;
    }
    let queue = WorkQueue::named("cidrallocator-node");
    let given = Arc::new(Mutex::new(Ranges::new(cluster, cx.config.node_cidr_prefix)));
    let (q, seen) = (queue.clone(), Arc::clone(&given));
    nodes.handle(move |event| {
        let (node, has) = (name(&**event.object()), ranges(event.object()));
        if let Event::Deleted(_) = event {
            seen.lock().release(node);
        } else if has.is_empty() {
            q.add(node.to_owned());
        } else {
            seen.lock().hold(node, has);
        }
    });
    let reconciler =
        Allocator { recorder: cx.recorder("cidrAllocator"), client: cx.client.clone(), nodes, given };
    cx.work("node-ipam", reconciler, queue, 1).await;
}

fn ranges(node: &Node) -> Vec<IpNet> {
    let Some(spec) = &node.spec else { return Vec::new() };
    spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr).filter_map(|c| c.parse().ok()).collect()
}

impl Reconcile for Allocator {
    /// A node.
    type Key = String;
    type Error = Error;

    async fn reconcile(&self, key: String) -> Result<Requeue, Error> {
        let Some(node) = self.nodes.get("", &key) else { return Ok(Requeue::Done) };
        if !ranges(&node).is_empty() {
            return Ok(Requeue::Done);
        }
        let range = self.given.lock().give(&key);
        let Some(range) = range else {
            let message = format!("Node {key} status is now: CIDRNotAvailable");
            self.recorder.event(&reference(&*node), EventType::Normal, "CIDRNotAvailable", message);
            return Err(Error::Invalid("no pod range is left".to_owned()));
        };
        // Taken back by the resource version if somebody else was faster.
        let patch = json!({
            "metadata": {"resourceVersion": node.metadata.resource_version},
            "spec": {"podCIDR": range.to_string(), "podCIDRs": [range.to_string()]},
        });
        let api = Api::<Node>::all(self.client.clone());
        match api.patch(&key, &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => Ok(Requeue::Done),
            Err(error) if is_not_found(&error) => {
                // That it went may have been heard before it was given a range.
                self.given.lock().release(&key);
                Ok(Requeue::Done)
            }
            Err(error) => Err(error.into()),
        }
    }
}
