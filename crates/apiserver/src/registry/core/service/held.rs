//! What Services hold, and what becomes of it when a write of one ends.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::IPAddress;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use krate_api::kinds;
use krate_store::{Backend, CompareAndSet, Error, KeyRange, Limit};

use super::metrics::Metrics;
use super::{has_node_ports, needs_address, needs_health_port};

pub const PORTS_PREFIX: &str = "/registry/ranges/servicenodeports/";

/// After so long a write whose outcome nobody waited for has one.
const DOUBT: Duration = Duration::from_secs(30);

/// Something that a Service holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Held {
    Address(IpAddr),
    Port(i32),
}

impl Held {
    pub fn key(&self) -> String {
        match self {
            Held::Address(ip) => kinds::IP_ADDRESS.key("", &ip.to_string()),
            Held::Port(port) => format!("{PORTS_PREFIX}{port}"),
        }
    }
}

/// How a Service is named by what it holds.
pub fn owner(meta: &ObjectMeta) -> String {
    let part = |name: &Option<String>| name.clone().unwrap_or_default();
    format!("{}/{}", part(&meta.namespace), part(&meta.name))
}

/// What a Service holds.
pub fn held(service: &Service) -> BTreeSet<Held> {
    let mut held = BTreeSet::new();
    let Some(spec) = &service.spec else { return held };
    if needs_address(spec) {
        held.extend(spec.cluster_ips.iter().flatten().filter_map(|ip| ip.parse().ok()).map(Held::Address));
    }
    if has_node_ports(spec) {
        let ports = spec.ports.iter().flatten().filter_map(|p| p.node_port);
        held.extend(ports.filter(|p| *p != 0).map(Held::Port));
    }
    if needs_health_port(spec) {
        held.extend(spec.health_check_node_port.filter(|p| *p != 0).map(Held::Port));
    }
    held
}

/// Gives back; a failure is repaired at the next start.
pub async fn release(store: &dyn Backend, metrics: &Metrics, held: &[Held]) {
    for held in held {
        if let Err(error) = store.commit(CompareAndSet::delete_any(held.key())).await {
            tracing::warn!(key = held.key(), %error, "could not release what a Service held");
        }
    }
    if has_port(held) {
        count_ports(store, metrics).await;
    }
}

/// Brings the count of ports that are taken up to date.
pub async fn count_ports(store: &dyn Backend, metrics: &Metrics) {
    let all = KeyRange::prefix(PORTS_PREFIX.to_owned());
    if let Ok(page) = store.range(all, None, Limit::COUNT_ONLY).await {
        metrics.ports_taken(page.count);
    }
}

/// Whether there are ports among them.
pub fn has_port(held: &[Held]) -> bool {
    held.iter().any(|held| matches!(held, Held::Port(_)))
}

/// What a write of a Service has taken and what it leaves, until it is known what came of it. Where nobody comes to know,
/// since who asked went away, the store tells a while later.
pub struct Unsettled {
    store: Arc<dyn Backend>,
    metrics: Arc<Metrics>,
    /// The Service's key, and its name by what it holds.
    key: String,
    owner: String,
    pub taken: Vec<Held>,
    pub left: Vec<Held>,
    doubt: Duration,
}

impl Unsettled {
    pub fn new(store: &Arc<dyn Backend>, metrics: &Arc<Metrics>, service: &ObjectMeta) -> Self {
        let part = |name: &Option<String>| name.clone().unwrap_or_default();
        Unsettled {
            store: Arc::clone(store),
            metrics: Arc::clone(metrics),
            key: kinds::SERVICE.key(&part(&service.namespace), &part(&service.name)),
            owner: owner(service),
            taken: Vec::new(),
            left: Vec::new(),
            doubt: DOUBT,
        }
    }

    /// Gives back what was taken in vain, or what was left.
    pub async fn settle(mut self, committed: bool) {
        release(&*self.store, &self.metrics, if committed { &self.left } else { &self.taken }).await;
        self.taken.clear();
        self.left.clear();
    }
}

impl Drop for Unsettled {
    fn drop(&mut self) {
        if self.taken.is_empty() && self.left.is_empty() {
            return;
        }
        // Where nothing runs any more, the next start finds it.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (store, metrics) = (Arc::clone(&self.store), Arc::clone(&self.metrics));
        let (key, owner) = (std::mem::take(&mut self.key), std::mem::take(&mut self.owner));
        let doubtful = [std::mem::take(&mut self.taken), std::mem::take(&mut self.left)].concat();
        let doubt = self.doubt;
        runtime.spawn(async move {
            tokio::time::sleep(doubt).await;
            match stray(&*store, &key, &owner, doubtful).await {
                Ok(stray) => release(&*store, &metrics, &stray).await,
                Err(error) => {
                    tracing::warn!(service = owner, %error, "what a Service held is not known to be free");
                }
            }
        });
    }
}

/// What of this is taken for a Service that does not hold it.
async fn stray(store: &dyn Backend, key: &str, name: &str, of: Vec<Held>) -> Result<Vec<Held>, Error> {
    let there = store.range(KeyRange::single(key.to_owned()), None, Limit::NONE).await?.items;
    let there = there.first().and_then(|kv| serde_json::from_slice(&kv.value).ok());
    let holds = there.as_ref().map(held).unwrap_or_default();
    let mut stray = Vec::new();
    for doubtful in of.into_iter().filter(|one| !holds.contains(one)) {
        let taken = store.range(KeyRange::single(doubtful.key()), None, Limit::NONE).await?.items;
        let is_its = taken.first().is_some_and(|kv| match &doubtful {
            Held::Port(_) => *kv.value == *name.as_bytes(),
            Held::Address(_) => serde_json::from_slice(&kv.value).is_ok_and(|address: IPAddress| {
                let parent = address.spec.parent_ref;
                format!("{}/{}", parent.namespace.unwrap_or_default(), parent.name) == name
            }),
        });
        if is_its {
            stray.push(doubtful);
        }
    }
    Ok(stray)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures::StreamExt as _;
    use krate_store::Embedded;
    use serde_json::json;

    use super::super::Allocator;
    use super::*;
    use crate::registry::Context;
    use crate::registry::lifecycle::Lifecycle as _;

    fn service(name: &str) -> Service {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "ns"},
            "spec": {"type": "NodePort", "ports": [{"port": 80, "targetPort": 80}]}}))
        .expect("a Service")
    }

    #[tokio::test]
    async fn what_was_taken_for_a_write_that_nobody_waited_for_is_found() {
        let directory = tempfile::tempdir().expect("a directory");
        let store: Arc<dyn Backend> = Arc::new(Embedded::open(directory.path()).expect("a store"));
        let allocator = Allocator::new(Arc::clone(&store), "10.96.0.0/16").expect("a range");
        let (mut gone, mut made) = (service("gone"), service("made"));
        for (service, is_made) in [(&mut gone, false), (&mut made, true)] {
            let outcome = allocator.before_create(service, &Context::default()).await.expect("taken");
            if is_made {
                let json = serde_json::to_vec(service).expect("JSON");
                let key = kinds::SERVICE.key("ns", "made");
                store.commit(CompareAndSet::create(key, Bytes::from(json))).await.expect("committed");
            }
            // It gives nothing back before its time.
            drop(outcome);
        }
        let all = async || {
            let mut there = Vec::new();
            for one in held(&gone).into_iter().chain(held(&made)) {
                let page = store.range(KeyRange::single(one.key()), None, Limit::NONE).await.expect("read");
                there.push(page.items.len());
            }
            there
        };
        assert_eq!(held(&gone).len(), 2);
        assert_eq!(all().await, [1, 1, 1, 1]);
        let last = held(&gone).into_iter().next_back().expect("a port");
        let now = store.revision().await.expect("a revision");
        let mut told = store.watch(KeyRange::single(last.key()), now);
        for service in [&made, &gone] {
            let mut changes = Unsettled::new(&store, &Arc::default(), &service.metadata);
            changes.taken = held(service).into_iter().collect();
            changes.doubt = Duration::ZERO;
        }
        let deadline = Duration::from_mins(1);
        tokio::time::timeout(deadline, told.next())
            .await
            .expect("it is told in time")
            .expect("the watch goes on")
            .expect("it is given back");
        let found = all().await;
        assert_eq!(found, [0, 0, 1, 1], "the one that was written keeps what it has");
    }
}
