//! Addresses and node ports of Services.
//!
//! Each is a key of its own in the store, made by compare-and-set before the Service is committed: whoever makes the
//! key has it, so that two requests, or two servers, never give the same one twice. An address is an `IPAddress`
//! object that everybody can see; a port is a key beside it. What a crash leaves taken is found at the next start.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use k8s_openapi::api::networking::v1::{IPAddress, IPAddressSpec, ParentReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use krate_api::{FieldErrors, FieldPath, StatusError, kinds};
use krate_store::{Backend, CompareAndSet, Error as StoreError, KeyRange, Limit};
use prometheus::Registry;

use super::held::{Held, PORTS_PREFIX, Unsettled, count_ports, has_port, held, owner, release};
use super::metrics::Metrics;
use super::ranges::{Range, RangeError, Ranges, family};
use super::{families, has_node_ports, is_headless, needs_address, needs_health_port, needs_node_ports};
use crate::registry::Context;
use crate::registry::encode;
use crate::registry::lifecycle::{Lifecycle, Outcome};

/// The ports of nodes that are given to Services.
pub const NODE_PORTS: std::ops::RangeInclusive<i32> = 30000..=32767;
pub const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
pub const MANAGER: &str = "ipallocator.k8s.io";
pub const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";

/// Tries at random before all that are taken are read.
const TRIES: usize = 8;

/// Gives addresses of all ranges that are ready, and node ports.
pub struct Allocator {
    store: Arc<dyn Backend>,
    ranges: Arc<Ranges>,
    metrics: Arc<Metrics>,
}

impl Allocator {
    /// `cidr` is the range of the Services' addresses, as `10.96.0.0/16`.
    pub fn new(store: Arc<dyn Backend>, cidr: &str) -> Result<Self, RangeError> {
        Ok(Allocator { store, ranges: Arc::new(Ranges::new(cidr)?), metrics: Arc::default() })
    }

    /// The first address of the range that this server was told: that of the API server's own Service.
    pub fn first_address(&self) -> IpAddr {
        self.ranges.configured().at(1)
    }

    /// Where the addresses are from.
    pub fn ranges(&self) -> &Ranges {
        &self.ranges
    }

    /// Hears of an address that is taken, or that is free again.
    pub fn hear(&self, name: &str, taken: bool) {
        if let Ok(ip) = name.parse() {
            self.metrics.hear(ip, taken);
        }
    }

    pub fn metrics(&self) -> Registry {
        self.metrics.registry(&self.ranges)
    }

    /// Takes what is there for a Service and fills it in. Everything taken is in `taken`, also when it fails.
    async fn allocate(
        &self,
        service: &mut Service,
        old: Option<&Service>,
        had: &BTreeSet<Held>,
        dry_run: bool,
        taken: &mut Vec<Held>,
    ) -> Result<(), StatusError> {
        let meta = &service.metadata;
        let mut errors = FieldErrors::new();
        let at = FieldPath::new("spec");
        let Some(spec) = &mut service.spec else { return Ok(()) };
        if !needs_address(spec) {
            // Old servers filled it in where it means nothing, and so nobody sees it.
            spec.internal_traffic_policy = None;
        }
        let was = old.and_then(|old| old.spec.as_ref());
        families::fill(spec, was, self.ranges.configured().family(), &at, &mut errors);
        let work = Work { allocator: self, meta, had, is_new: old.is_none(), dry_run };
        if errors.is_empty() {
            work.addresses(spec, &at, &mut errors, taken).await?;
        }
        if errors.is_empty() {
            work.ports(spec, &at, &mut errors, taken).await?;
        }
        if errors.is_empty() && needs_health_port(spec) {
            work.health_port(spec, taken).await?;
        }
        if errors.is_empty() {
            Ok(())
        } else {
            let name = meta.name.as_deref().unwrap_or_default();
            Err(StatusError::invalid(kinds::SERVICE.gvk(), name, &errors))
        }
    }

    /// Takes what a write needs, and says what is to be done once its outcome is known.
    async fn begin(
        &self,
        new: Option<&mut Service>,
        old: Option<&Service>,
        context: &Context,
    ) -> Result<Outcome, StatusError> {
        let new = new.ok_or_else(|| StatusError::internal("a Service was expected"))?;
        let had = old.map(held).unwrap_or_default();
        let mut changes = Unsettled::new(&self.store, &self.metrics, &new.metadata);
        if let Err(error) = self.allocate(new, old, &had, context.dry_run, &mut changes.taken).await {
            changes.settle(false).await;
            return Err(error);
        }
        if !context.dry_run {
            if has_port(&changes.taken) {
                count_ports(&*self.store, &self.metrics).await;
            }
            changes.left = had.difference(&held(new)).cloned().collect();
        }
        Ok(Box::new(move |committed| Box::pin(changes.settle(committed))))
    }

    /// Whether the key was made; `false` if someone has it already.
    async fn take(&self, held: &Held, meta: &ObjectMeta) -> Result<bool, StatusError> {
        let value: Bytes = match held {
            Held::Address(ip) => encode::to_vec(&address_object(*ip, meta)).into(),
            Held::Port(_) => owner(meta).into(),
        };
        match self.store.commit(CompareAndSet::create(held.key(), value)).await {
            Ok(_) => Ok(true),
            Err(StoreError::Conflict { .. }) => Ok(false),
            Err(e) => Err(StatusError::internal(e)),
        }
    }

    async fn is_taken(&self, held: &Held) -> Result<bool, StatusError> {
        let page = self.store.range(KeyRange::single(held.key()), None, Limit::COUNT_ONLY).await;
        Ok(page.map_err(StatusError::internal)?.count > 0)
    }

    /// The names of the keys under a prefix.
    async fn names_under(&self, prefix: &str) -> Result<Vec<String>, StatusError> {
        let page = self.store.range(KeyRange::prefix(prefix.to_owned()), None, Limit::NONE).await;
        let page = page.map_err(StatusError::internal)?;
        Ok(page
            .items
            .iter()
            .filter_map(|kv| std::str::from_utf8(kv.key.get(prefix.len()..)?).ok().map(str::to_owned))
            .collect())
    }

    /// Makes what is taken what the Services hold: to be called at the start, before anything is served.
    pub async fn repair(&self) -> Result<(), StatusError> {
        let prefix = format!("{}/", kinds::SERVICE.storage);
        let page = self.store.range(KeyRange::prefix(prefix), None, Limit::NONE).await;
        let mut wanted = BTreeSet::new();
        for kv in page.map_err(StatusError::internal)?.items {
            let Ok(service) = serde_json::from_slice::<Service>(&kv.value) else { continue };
            for held in held(&service) {
                self.take(&held, &service.metadata).await?;
                wanted.insert(held);
            }
        }
        let prefix = format!("{}/", kinds::IP_ADDRESS.storage);
        let page = self.store.range(KeyRange::prefix(prefix), None, Limit::NONE).await;
        let mut stray = Vec::new();
        for kv in page.map_err(StatusError::internal)?.items {
            let Ok(address) = serde_json::from_slice::<IPAddress>(&kv.value) else { continue };
            let ours = address
                .metadata
                .labels
                .as_ref()
                .and_then(|l| l.get(MANAGED_BY))
                .is_some_and(|m| m == MANAGER);
            let ip = address.metadata.name.as_deref().and_then(|n| n.parse().ok()).map(Held::Address);
            stray.extend(ip.filter(|ip| ours && !wanted.contains(ip)));
        }
        let ports = self.names_under(PORTS_PREFIX).await?;
        let ports = ports.iter().filter_map(|p| p.parse().ok()).map(Held::Port);
        stray.extend(ports.filter(|p| !wanted.contains(p)));
        release(&*self.store, &self.metrics, &stray).await;
        count_ports(&*self.store, &self.metrics).await;
        Ok(())
    }
}

/// The object by which everybody sees that an address is taken, and by what.
fn address_object(ip: IpAddr, owner: &ObjectMeta) -> IPAddress {
    let labels = [(FAMILY, family(ip)), (MANAGED_BY, MANAGER)];
    IPAddress {
        metadata: ObjectMeta {
            name: Some(ip.to_string()),
            uid: Some(uuid::Uuid::new_v4().to_string()),
            creation_timestamp: Some(Time(now_in_seconds())),
            labels: Some(labels.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()),
            ..ObjectMeta::default()
        },
        spec: IPAddressSpec {
            parent_ref: ParentReference {
                group: None,
                resource: "services".to_owned(),
                namespace: owner.namespace.clone(),
                name: owner.name.clone().unwrap_or_default(),
            },
        },
    }
}

fn now_in_seconds() -> jiff::Timestamp {
    let now = jiff::Timestamp::now();
    jiff::Timestamp::from_second(now.as_second()).unwrap_or(now)
}

/// One allocation for one Service.
struct Work<'a> {
    allocator: &'a Allocator,
    meta: &'a ObjectMeta,
    /// What the Service holds already.
    had: &'a BTreeSet<Held>,
    /// Whether there was no such Service.
    is_new: bool,
    dry_run: bool,
}

impl Work<'_> {
    /// Takes this very one. `false` if someone else has it.
    async fn this(&self, held: Held, taken: &mut Vec<Held>) -> Result<bool, StatusError> {
        if self.had.contains(&held) || taken.contains(&held) {
            return Ok(true);
        }
        if self.dry_run {
            return self.allocator.is_taken(&held).await.map(|taken| !taken);
        }
        // It is noted before it is known: who asks may go away meanwhile.
        taken.push(held.clone());
        let got = self.allocator.take(&held, self.meta).await;
        if !matches!(got, Ok(true)) {
            taken.pop();
        }
        got
    }

    async fn addresses(
        &self,
        spec: &mut ServiceSpec,
        at: &FieldPath,
        errors: &mut FieldErrors,
        taken: &mut Vec<Held>,
    ) -> Result<(), StatusError> {
        if !needs_address(spec) || is_headless(spec) {
            return Ok(());
        }
        let ranges = self.allocator.ranges.ready();
        let at = at.child("clusterIPs");
        let given = spec.cluster_ips.clone().unwrap_or_default();
        if let Some(text) = given.first().filter(|ip| !ip.is_empty()) {
            let Ok(ip) = text.parse::<IpAddr>() else { return Ok(()) };
            if self.had.contains(&Held::Address(ip)) {
                return Ok(());
            }
            let why = match ranges.iter().find(|range| range.contains(ip)) {
                None => "the provided network does not match the current range",
                Some(range) => {
                    let since = Instant::now();
                    let got = self.this(Held::Address(ip), taken).await?;
                    self.tell_address(range, "static", got, since);
                    if got {
                        return Ok(());
                    }
                    "provided IP is already allocated"
                }
            };
            errors.invalid(&at, &given, format!("failed to allocate IP {ip}: {why}"));
            return Ok(());
        }
        let mut found = None;
        for range in &ranges {
            let since = Instant::now();
            found = self.any_address(range, taken).await?;
            self.tell_address(range, "dynamic", found.is_some(), since);
            if found.is_some() {
                break;
            }
        }
        let Some(ip) = found else {
            let name = self.meta.name.as_deref().unwrap_or_default();
            let why = format!("failed to allocate a serviceIP for Service {name:?}: range is full");
            return Err(StatusError::internal(why));
        };
        spec.cluster_ip = Some(ip.to_string());
        spec.cluster_ips = Some(vec![ip.to_string()]);
        Ok(())
    }

    fn tell_address(&self, range: &Range, scope: &str, got: bool, since: Instant) {
        if !self.dry_run {
            self.allocator.metrics.address(range, scope, got, since.elapsed());
        }
    }

    async fn any_address(&self, range: &Range, taken: &mut Vec<Held>) -> Result<Option<IpAddr>, StatusError> {
        let spacious = range.reserved()..range.usable();
        for _ in 0..if spacious.is_empty() { 0 } else { TRIES } {
            let ip = range.at(rand::random_range(spacious.clone()));
            if self.this(Held::Address(ip), taken).await? {
                return Ok(Some(ip));
            }
        }
        // It is crowded: read what is taken, and look from the end, so that the low addresses, which people ask for
        // by name, go last.
        let names = self.allocator.names_under(&format!("{}/", kinds::IP_ADDRESS.storage)).await?;
        let busy: BTreeSet<IpAddr> = names.iter().filter_map(|n| n.parse().ok()).collect();
        for n in range.all().rev() {
            let ip = range.at(n);
            if !busy.contains(&ip) && self.this(Held::Address(ip), taken).await? {
                return Ok(Some(ip));
            }
        }
        Ok(None)
    }

    /// Gives the ports their numbers on nodes, up to the first that cannot be had.
    async fn ports(
        &self,
        spec: &mut ServiceSpec,
        at: &FieldPath,
        errors: &mut FieldErrors,
        taken: &mut Vec<Held>,
    ) -> Result<(), StatusError> {
        if !has_node_ports(spec) {
            return Ok(());
        }
        let gives = needs_node_ports(spec);
        let asked: Vec<(i32, i32)> = spec
            .ports
            .iter()
            .flatten()
            .filter_map(|p| Some((p.port, p.node_port.filter(|n| *n != 0)?)))
            .collect();
        let mut given: BTreeMap<i32, i32> = BTreeMap::new();
        for (i, port) in spec.ports.iter_mut().flatten().enumerate() {
            let own = port.node_port.filter(|n| *n != 0);
            if own.is_none() && !gives {
                continue;
            }
            // A new Service's port has one number in two protocols.
            let shared = given.get(&port.port).copied().filter(|_| self.is_new);
            let shared = shared.filter(|shared| own.is_none_or(|own| own == *shared));
            let wanted = asked.iter().find(|(other, _)| self.is_new && *other == port.port);
            let number = match (shared, own.or(wanted.map(|(_, number)| *number))) {
                (Some(number), _) => number,
                (None, Some(number)) => {
                    if let Err(why) = self.static_port(number, taken).await? {
                        errors.invalid(&at.child("ports").index(i).child("nodePort"), number, why);
                        return Ok(());
                    }
                    number
                }
                (None, None) => self
                    .any_port(&asked, taken)
                    .await?
                    .ok_or_else(|| StatusError::internal("failed to allocate a nodePort: range is full"))?,
            };
            given.entry(port.port).or_insert(number);
            port.node_port = Some(number);
        }
        Ok(())
    }

    /// The port by which load balancers ask nodes for pods of their own. Upstream takes it for its own fault where
    /// there is none.
    async fn health_port(&self, spec: &mut ServiceSpec, taken: &mut Vec<Held>) -> Result<(), StatusError> {
        if let Some(number) = spec.health_check_node_port.filter(|n| *n != 0) {
            return self.static_port(number, taken).await?.map_err(|why| {
                StatusError::internal(format!(
                    "failed to allocate requested HealthCheck NodePort {number}: {why}"
                ))
            });
        }
        let number = self.any_port(&[], taken).await?;
        spec.health_check_node_port = Some(number.ok_or_else(|| {
            StatusError::internal("failed to allocate a HealthCheck NodePort 0: range is full")
        })?);
        Ok(())
    }

    /// Takes this very port; or says why not.
    async fn static_port(
        &self,
        number: i32,
        taken: &mut Vec<Held>,
    ) -> Result<Result<(), String>, StatusError> {
        if !NODE_PORTS.contains(&number) {
            let (first, last) = (NODE_PORTS.start(), NODE_PORTS.end());
            return Ok(Err(format!(
                "provided port is not in the valid range. The range of valid ports is {first}-{last}"
            )));
        }
        let held = Held::Port(number);
        // Two ports of a new Service cannot have it, unless they are one in two protocols.
        let twice = self.is_new && taken.contains(&held);
        let is_new = !self.had.contains(&held);
        let got = !twice && self.this(held, taken).await?;
        if is_new {
            self.tell_port("static", got);
        }
        Ok(if got { Ok(()) } else { Err("provided port is already allocated".to_owned()) })
    }

    fn tell_port(&self, scope: &str, got: bool) {
        if !self.dry_run {
            self.allocator.metrics.port(scope, got);
        }
    }

    /// Takes a port that nobody has, and that none of these ports of the Service asks for by its number.
    async fn any_port(
        &self,
        asked: &[(i32, i32)],
        taken: &mut Vec<Held>,
    ) -> Result<Option<i32>, StatusError> {
        let free = |taken: &[Held], number| {
            !self.had.contains(&Held::Port(number))
                && !taken.contains(&Held::Port(number))
                && asked.iter().all(|(_, asked)| *asked != number)
        };
        for _ in 0..TRIES {
            let number = rand::random_range(NODE_PORTS);
            if free(taken, number) && self.this(Held::Port(number), taken).await? {
                self.tell_port("dynamic", true);
                return Ok(Some(number));
            }
        }
        let names = self.allocator.names_under(PORTS_PREFIX).await?;
        let busy: BTreeSet<i32> = names.iter().filter_map(|n| n.parse().ok()).collect();
        for number in NODE_PORTS.rev() {
            if !busy.contains(&number) && free(taken, number) && self.this(Held::Port(number), taken).await? {
                self.tell_port("dynamic", true);
                return Ok(Some(number));
            }
        }
        self.tell_port("dynamic", false);
        Ok(None)
    }
}

#[async_trait]
impl Lifecycle for Allocator {
    async fn before_create(
        &self,
        new: &mut (dyn Any + Send + Sync),
        context: &Context,
    ) -> Result<Outcome, StatusError> {
        self.begin(new.downcast_mut(), None, context).await
    }

    async fn before_update(
        &self,
        new: &mut (dyn Any + Send + Sync),
        old: &(dyn Any + Send + Sync),
        context: &Context,
    ) -> Result<Outcome, StatusError> {
        self.begin(new.downcast_mut(), old.downcast_ref(), context).await
    }

    async fn after_delete(&self, old: &(dyn Any + Send + Sync)) {
        if let Some(service) = old.downcast_ref::<Service>() {
            let mut changes = Unsettled::new(&self.store, &self.metrics, &service.metadata);
            changes.left = held(service).into_iter().collect();
            changes.settle(true).await;
        }
    }
}
