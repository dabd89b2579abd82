//! Guards the ranges that Services get their addresses from: a ServiceCIDR is ready as soon as it is known, and is not let
//! go while it is the only one for an address that is in use (KEP-1880).

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use krate_client::{
    Api, Client, Event, EventRecorder, EventType, Informer, Reconcile, Requeue, WorkQueue, is_not_found,
    reference,
};
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::meta::{is_deleting, labels, name, now, seconds_between};
use crate::{Context, Error};

const COMPONENT: &str = "service-cidrs-controller";
const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const ALLOCATOR: &str = "ipallocator.k8s.io";
const READY: &str = "Ready";
const TERMINATING: &str = "Terminating";
/// How long allocators may take to hear that a range is going, in seconds: nobody takes an address of it after that.
const GRACE: i64 = 10;
const WORKERS: usize = 5;

struct Controller {
    client: Client,
    recorder: EventRecorder,
    ranges: Informer<ServiceCIDR>,
    addresses: Informer<IPAddress>,
}

fn nets(range: &ServiceCIDR) -> impl Iterator<Item = IpNet> + '_ {
    range.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten()).filter_map(|cidr| cidr.parse().ok())
}

/// The address that an object stands for, if the API server's allocator made it.
fn allocated(object: &IPAddress) -> Option<IpAddr> {
    let ours = labels(&object.metadata).get(MANAGED_BY).is_some_and(|by| by == ALLOCATOR);
    ours.then(|| name(object).parse().ok()).flatten()
}

pub async fn run(cx: Context) {
    let (ranges, addresses) = (cx.informers.of::<ServiceCIDR>(), cx.informers.of::<IPAddress>());
    if !cx
        .ready(async {
            tokio::join!(ranges.synced(), addresses.synced());
        })
        .await
    {
        return;
    }
    let queue = WorkQueue::named("servicecidrs");
    let (q, known) = (queue.clone(), ranges.clone());
    ranges.handle(move |event| {
        let range = event.object();
        q.add(name(&**range).to_owned());
        // Another range may be the only one for its addresses now, or no longer.
        for other in known.list() {
            let overlap = nets(&other).any(|a| nets(range).any(|b| a.contains(&b) || b.contains(&a)));
            if overlap && is_deleting(&*other) {
                q.add(name(&*other).to_owned());
            }
        }
    });
    let (q, known) = (queue.clone(), ranges.clone());
    addresses.handle(move |event| {
        if matches!(event, Event::Modified { .. }) {
            return;
        }
        let Some(address) = allocated(event.object()) else { return };
        for range in known.list() {
            if is_deleting(&*range) && nets(&range).any(|net| net.contains(&address)) {
                q.add(name(&*range).to_owned());
            }
        }
    });
    let (client, recorder) = (cx.client.clone(), cx.recorder(COMPONENT));
    cx.work(COMPONENT, Controller { client, recorder, ranges, addresses }, queue, WORKERS).await;
}

impl Reconcile for Controller {
    /// A range's name.
    type Key = String;
    type Error = Error;

    async fn reconcile(&self, key: String) -> Result<Requeue, Error> {
        let Some(range) = self.ranges.get("", &key) else { return Ok(Requeue::Done) };
        let Some(deleted) = &range.metadata.deletion_timestamp else {
            self.guard(&range).await?;
            let ready = wanted(true, "", "Kubernetes Service CIDR is ready");
            if let Err(error) = self.tell(&range, ready).await {
                let message = "The ServiceCIDR Status can not be set to Ready=True".to_owned();
                let kind = EventType::Warning;
                self.recorder.event(&reference(&*range), kind, "KubernetesServiceCIDRError", message);
                return Err(error);
            }
            return Ok(Requeue::Done);
        };
        let (ranges, addresses) = (self.ranges.list(), self.addresses.list());
        let used = addresses.iter().filter_map(|object| allocated(object));
        if !may_go(&range, ranges.iter().map(|range| &**range), used) {
            let message = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a \
                           new ServiceCIDR";
            self.tell(&range, wanted(false, TERMINATING, message)).await?;
            return Ok(Requeue::Done);
        }
        let left = GRACE - seconds_between(deleted, &now());
        if let Some(left) = u64::try_from(left).ok().filter(|left| *left > 0) {
            return Ok(Requeue::After(Duration::from_secs(left)));
        }
        if range.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER) {
            let patch = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": [FINALIZER]}});
            self.patch(&range, &patch).await?;
        }
        Ok(Requeue::Done)
    }
}

/// Whether nothing is lost with a range: others have all of it, or no address in use is only in it.
fn may_go<'a>(
    range: &ServiceCIDR,
    all: impl Iterator<Item = &'a ServiceCIDR> + Clone,
    mut used: impl Iterator<Item = IpAddr>,
) -> bool {
    let others = all.filter(|other| name(*other) != name(range));
    let has_parent = nets(range).all(|net| others.clone().any(|o| nets(o).any(|n| n.contains(&net))));
    has_parent
        || !used.any(|address| {
            nets(range).any(|net| net.contains(&address))
                && !others.clone().any(|other| nets(other).any(|net| net.contains(&address)))
        })
}

fn wanted(holds: bool, reason: &str, message: &str) -> Condition {
    Condition {
        type_: READY.to_owned(),
        status: if holds { "True" } else { "False" }.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: now(),
        observed_generation: None,
    }
}

impl Controller {
    /// Puts the finalizer on a range that has none.
    async fn guard(&self, range: &ServiceCIDR) -> Result<(), Error> {
        if range.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER) {
            return Ok(());
        }
        self.patch(range, &json!({"metadata": {"finalizers": [FINALIZER]}})).await
    }

    async fn patch(&self, range: &ServiceCIDR, patch: &serde_json::Value) -> Result<(), Error> {
        let api = Api::<ServiceCIDR>::all(self.client.clone());
        match api.patch(name(range), &PatchParams::default(), &Patch::Strategic(patch)).await {
            Err(error) if !is_not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Brings the condition into the status, if it says something else now.
    async fn tell(&self, range: &ServiceCIDR, wanted: Condition) -> Result<(), Error> {
        let mut conditions = range.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let there = conditions.find(|c| c.type_ == wanted.type_);
        if there.is_some_and(|c| c.status == wanted.status && c.reason == wanted.reason) {
            return Ok(());
        }
        let mut condition = serde_json::to_value(&wanted).map_err(|e| Error::Invalid(e.to_string()))?;
        if wanted.reason.is_empty()
            && let Some(fields) = condition.as_object_mut()
        {
            fields.remove("reason");
        }
        let patch = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": name(range)},
            "status": {"conditions": [condition]},
        });
        let api = Api::<ServiceCIDR>::all(self.client.clone());
        let params = PatchParams::apply(COMPONENT).force();
        match api.patch_status(name(range), &params, &Patch::Apply(&patch)).await {
            Err(error) if !is_not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(name: &str, cidrs: &[&str]) -> ServiceCIDR {
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"cidrs": cidrs}}))
            .expect("a range")
    }

    #[test]
    fn a_range_goes_when_no_address_is_only_in_it() {
        let going = range("going", &["10.0.0.0/24"]);
        let used = |addresses: &[&str]| -> Vec<IpAddr> {
            addresses.iter().map(|a| a.parse().expect("an address")).collect()
        };
        let goes = |others: &[ServiceCIDR], addresses: &[&str]| {
            let all: Vec<&ServiceCIDR> = others.iter().chain([&going]).collect();
            may_go(&going, all.into_iter(), used(addresses).into_iter())
        };
        assert!(goes(&[], &[]));
        assert!(goes(&[], &["10.0.1.1"]), "it is elsewhere");
        assert!(!goes(&[], &["10.0.0.1"]));
        assert!(goes(&[range("wider", &["10.0.0.0/16"])], &["10.0.0.1"]), "all of it is in another");
        let part = range("part", &["10.0.0.0/28"]);
        assert!(goes(std::slice::from_ref(&part), &["10.0.0.1"]));
        assert!(!goes(&[part], &["10.0.0.1", "10.0.0.100"]));
    }
}
