//! From Services and EndpointSlices to the desired state, step by step.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use krate_client::{Event, ObjectKey};

use crate::backend::Changes;
use crate::endpoints::EndpointSet;
use crate::service::{self, PROXY_NAME, PortName, ServicePort};

/// All ports of all Services that are proxied, as they should be.
pub type ServiceMap = BTreeMap<PortName, ServicePort>;

const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// On slices of headless Services, which nobody proxies.
const HEADLESS: &str = "service.kubernetes.io/headless";

/// Takes what happened, and says what should be and what of it is new.
///
/// An update costs as much as the Services that were touched, not as much as those that there are.
#[derive(Debug)]
pub struct Tracker {
    node: String,
    services: HashMap<ObjectKey, Arc<Service>>,
    /// By Service, then by the slice's name.
    slices: HashMap<ObjectKey, BTreeMap<String, Arc<EndpointSlice>>>,
    touched: HashSet<ObjectKey>,
    map: ServiceMap,
}

impl Tracker {
    /// A tracker for the Node of this name.
    pub fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            services: HashMap::new(),
            slices: HashMap::new(),
            touched: HashSet::new(),
            map: ServiceMap::new(),
        }
    }

    pub fn service(&mut self, event: &Event<Service>) {
        let key = ObjectKey::of(&**event.object());
        match event {
            Event::Deleted(_) => self.services.remove(&key),
            Event::Added(service) | Event::Modified { new: service, .. } => {
                self.services.insert(key.clone(), Arc::clone(service))
            }
        };
        self.touched.insert(key);
    }

    pub fn slice(&mut self, event: &Event<EndpointSlice>) {
        match event {
            Event::Deleted(slice) => self.remove_slice(slice),
            Event::Added(slice) => self.add_slice(slice),
            Event::Modified { old, new } => {
                // The label that names the Service may have changed.
                self.remove_slice(old);
                self.add_slice(new);
            }
        }
    }

    fn add_slice(&mut self, slice: &Arc<EndpointSlice>) {
        let Some(key) = service_of(slice) else { return };
        let name = slice.metadata.name.clone().unwrap_or_default();
        self.slices.entry(key.clone()).or_default().insert(name, Arc::clone(slice));
        self.touched.insert(key);
    }

    fn remove_slice(&mut self, slice: &EndpointSlice) {
        let Some(key) = service_of(slice) else { return };
        if let Some(slices) = self.slices.get_mut(&key) {
            slices.remove(slice.metadata.name.as_deref().unwrap_or_default());
            if slices.is_empty() {
                self.slices.remove(&key);
            }
        }
        self.touched.insert(key);
    }

    /// Works off what happened; returns the ports that are not as they were.
    pub fn update(&mut self) -> Changes {
        let mut changes = Changes::new();
        for key in std::mem::take(&mut self.touched) {
            let mut wanted: BTreeMap<PortName, ServicePort> = self
                .services
                .get(&key)
                .map(|service| service::ports(service))
                .unwrap_or_default()
                .into_iter()
                .collect();
            let slices = self.slices.get(&key).into_iter().flat_map(BTreeMap::values).map(|slice| &**slice);
            let endpoints = EndpointSet::of(slices, &self.node);
            for (name, port) in &mut wanted {
                endpoints.fill(name, port);
            }
            let from = PortName {
                namespace: key.namespace.clone(),
                service: key.name.clone(),
                protocol: service::Protocol::Tcp,
                port: String::new(),
            };
            let known = self.map.range(from..).map(|(name, _)| name);
            let known = known.take_while(|name| name.namespace == key.namespace && name.service == key.name);
            let gone: Vec<PortName> = known.filter(|name| !wanted.contains_key(name)).cloned().collect();
            for name in gone {
                self.map.remove(&name);
                changes.insert(name);
            }
            for (name, port) in wanted {
                if self.map.get(&name) != Some(&port) {
                    self.map.insert(name.clone(), port);
                    changes.insert(name);
                }
            }
        }
        changes
    }

    /// What should be, as of the last update.
    pub fn services(&self) -> &ServiceMap {
        &self.map
    }
}

/// The Service that a slice belongs to, if it is one for proxies.
fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let labels = slice.metadata.labels.as_ref()?;
    if labels.contains_key(HEADLESS) || labels.contains_key(PROXY_NAME) || slice.address_type == "FQDN" {
        return None;
    }
    Some(ObjectKey::new(slice.metadata.namespace.clone()?, labels.get(SERVICE_NAME)?.clone()))
}
