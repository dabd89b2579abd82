//! Cuts each node a range of pod addresses from the cluster's.

use std::collections::BTreeSet;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use krate_client::{
    Api, Client, Event, EventRecorder, EventType, Informer, Reconcile, Requeue, WorkQueue, is_not_found,
    reference,
};
use kube::api::{Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::json;

use crate::meta::name;
use crate::{Context, Error};

struct Allocator {
    client: Client,
    recorder: EventRecorder,
    nodes: Informer<Node>,
    cluster: IpNet,
    prefix: u8,
    /// Ranges given since the informer last showed them. There is one worker, so nobody else gives any.
    given: Mutex<Vec<(String, IpNet)>>,
}

pub async fn run(cx: Context) {
    let Some(cluster) = cx.config.cluster_cidr else { return };
    let nodes = cx.informers.of::<Node>();
    // Until all nodes are known, so are not all ranges that are taken.
    if !cx.ready(nodes.synced()).await {
        return;
    }
    let queue = WorkQueue::new();
    let q = queue.clone();
    nodes.handle(move |event| {
        if !matches!(event, Event::Deleted(_)) && ranges(event.object()).is_empty() {
            q.add(name(&**event.object()).to_owned());
        }
    });
    let reconciler = Allocator {
        recorder: cx.recorder("cidrAllocator"),
        client: cx.client.clone(),
        nodes,
        cluster,
        prefix: cx.config.node_cidr_prefix,
        given: Mutex::default(),
    };
    cx.work("node-ipam", reconciler, queue, 1).await;
}

fn ranges(node: &Node) -> Vec<IpNet> {
    let Some(spec) = &node.spec else { return Vec::new() };
    spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr).filter_map(|c| c.parse().ok()).collect()
}

/// The first range of that prefix within the cluster's that no taken one touches.
fn first_free(cluster: IpNet, prefix: u8, taken: &BTreeSet<IpNet>) -> Option<IpNet> {
    let overlaps = |a: &IpNet, b: &IpNet| a.contains(b) || b.contains(a);
    cluster.subnets(prefix).ok()?.find(|range| {
        // Almost always the taken range is the very same: found without looking at all of them.
        !taken.contains(range) && !taken.iter().any(|t| t.prefix_len() != prefix && overlaps(t, range))
    })
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
        let mut taken: BTreeSet<IpNet> = self.nodes.list().iter().flat_map(|n| ranges(n)).collect();
        let range = {
            let mut given = self.given.lock();
            given.retain(|(node, _)| self.nodes.get("", node).is_some_and(|n| ranges(&n).is_empty()));
            let known = given.iter().find(|(node, _)| *node == key).map(|(_, range)| *range);
            known.or_else(|| {
                taken.extend(given.iter().map(|(_, range)| *range));
                let free = first_free(self.cluster, self.prefix, &taken);
                given.extend(free.map(|range| (key.clone(), range)));
                free
            })
        };
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
            Err(error) if is_not_found(&error) => Ok(Requeue::Done),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_free_range_is_given() {
        let net = |s: &str| s.parse::<IpNet>().expect("a range");
        let cases: [(&[&str], Option<&str>); 5] = [
            (&[], Some("10.244.0.0/24")),
            (&["10.244.0.0/24", "10.244.1.0/24"], Some("10.244.2.0/24")),
            (&["10.244.1.0/24"], Some("10.244.0.0/24")),
            (&["10.244.0.0/23"], Some("10.244.2.0/24")),
            (&["10.244.0.0/16"], None),
        ];
        for (taken, wanted) in cases {
            let taken = taken.iter().map(|s| net(s)).collect();
            assert_eq!(first_free(net("10.244.0.0/16"), 24, &taken), wanted.map(net));
        }
    }
}
