//! The cluster as the informers show it.

use crate::zone::{Source, cluster_ips, service_of};
use k8s_openapi::api::{
    core::v1::{Namespace, Service},
    discovery::v1::EndpointSlice,
};
use krate_client::{Informer, Informers};
use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

const BY_IP: &str = "dns.ip";
const BY_SERVICE: &str = "dns.service";

/// A view of Services, EndpointSlices and Namespaces.
#[derive(Clone)]
pub struct Cluster {
    namespaces: Informer<Namespace>,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    changed: Arc<AtomicU32>,
}

impl Cluster {
    pub fn new(informers: &Informers) -> Self {
        let namespaces = informers.of::<Namespace>();
        let services = informers.of::<Service>();
        services.add_index(BY_IP, |service| cluster_ips(service).map(|ip| ip.to_string()).collect());
        let slices = informers.of::<EndpointSlice>();
        slices.add_index(BY_SERVICE, |slice| {
            service_of(slice).map(|(namespace, name)| format!("{namespace}/{name}")).into_iter().collect()
        });
        slices.add_index(BY_IP, |slice| {
            let addresses = slice.endpoints.iter().flatten().flat_map(|e| &e.addresses);
            addresses.filter_map(|a| a.parse::<IpAddr>().ok()).map(|ip| ip.to_string()).collect()
        });
        let changed = Arc::new(AtomicU32::new(now()));
        let touch = changed.clone();
        services.handle(move |_| touch.store(now(), Ordering::Relaxed));
        let touch = changed.clone();
        slices.handle(move |_| touch.store(now(), Ordering::Relaxed));
        Cluster { namespaces, services, slices, changed }
    }

    pub fn services(&self) -> &Informer<Service> {
        &self.services
    }

    pub fn slices_informer(&self) -> &Informer<EndpointSlice> {
        &self.slices
    }

    /// Waits until everything is known.
    pub async fn synced(&self) {
        self.namespaces.synced().await;
        self.services.synced().await;
        self.slices.synced().await;
    }
}

fn now() -> u32 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as u32)
}

impl Source for Cluster {
    fn ready(&self) -> bool {
        self.namespaces.is_synced() && self.services.is_synced() && self.slices.is_synced()
    }

    fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.get("", namespace).is_some()
    }

    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>> {
        self.services.get(namespace, name)
    }

    fn slices(&self, namespace: &str, service: &str) -> Vec<Arc<EndpointSlice>> {
        self.slices.by_index(BY_SERVICE, &format!("{namespace}/{service}"))
    }

    fn service_at(&self, ip: IpAddr) -> Option<Arc<Service>> {
        self.services.by_index(BY_IP, &ip.to_string()).pop()
    }

    fn slices_at(&self, ip: IpAddr) -> Vec<Arc<EndpointSlice>> {
        self.slices.by_index(BY_IP, &ip.to_string())
    }

    fn serial(&self) -> u32 {
        self.changed.load(Ordering::Relaxed)
    }
}
