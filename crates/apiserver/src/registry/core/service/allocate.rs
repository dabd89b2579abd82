//! Addresses and node ports of Services.
//!
//! Each is a key of its own in the store, made by compare-and-set before the Service is committed: whoever makes the
//! key has it, so that two requests, or two servers, never give the same one twice. An address is an `IPAddress`
//! object that everybody can see; a port is a key beside it. What a crash leaves taken is found at the next start.

use std::any::Any;
use std::collections::BTreeSet;
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

use super::metrics::Metrics;
use super::ranges::{Range, RangeError, Ranges, family};
use super::{is_headless, needs_health_port, needs_node_ports};
use crate::registry::Context;
use crate::registry::encode;
use crate::registry::lifecycle::{Lifecycle, Outcome};

/// The ports of nodes that are given to Services.
pub const NODE_PORTS: std::ops::RangeInclusive<i32> = 30000..=32767;
const PORTS_PREFIX: &str = "/registry/ranges/servicenodeports/";
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

/// Something that a Service holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Held {
    Address(IpAddr),
    Port(i32),
}

impl Held {
    fn key(&self) -> String {
        match self {
            Held::Address(ip) => kinds::IP_ADDRESS.key("", &ip.to_string()),
            Held::Port(port) => format!("{PORTS_PREFIX}{port}"),
        }
    }
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
        had: &BTreeSet<Held>,
        dry_run: bool,
        taken: &mut Vec<Held>,
    ) -> Result<(), StatusError> {
        let meta = service.metadata.clone();
        let name = meta.name.clone().unwrap_or_default();
        let mut errors = FieldErrors::new();
        let at = FieldPath::new("spec");
        let Some(spec) = &mut service.spec else { return Ok(()) };
        self.families(spec, &at, &mut errors);
        let work = Work { allocator: self, meta: &meta, had, dry_run };
        if errors.is_empty() {
            work.addresses(spec, &at, &mut errors, taken).await?;
        }
        if errors.is_empty() {
            work.ports(spec, &at, &mut errors, taken).await?;
        }
        if errors.is_empty() {
            Ok(())
        } else {
            Err(StatusError::invalid(kinds::SERVICE.gvk(), &name, &errors))
        }
    }

    /// One family of addresses is served, that of the range that this server was told.
    fn families(&self, spec: &mut ServiceSpec, at: &FieldPath, errors: &mut FieldErrors) {
        if spec.type_.as_deref() == Some("ExternalName") {
            return;
        }
        let ours = self.ranges.configured().family();
        let orphan =
            is_headless(spec) && spec.selector.as_ref().is_none_or(std::collections::BTreeMap::is_empty);
        for (i, family) in spec.ip_families.iter().flatten().enumerate() {
            if family != ours && !orphan {
                errors.invalid(&at.child("ipFamilies").index(i), family, "not configured on this cluster");
            }
        }
        if spec.ip_family_policy.as_deref() == Some("RequireDualStack") && !orphan {
            errors.invalid(
                &at.child("ipFamilyPolicy"),
                "RequireDualStack",
                "this cluster is not configured for dual-stack services",
            );
        }
        // Without pods to have addresses, any family may be meant.
        let policy = if orphan { "RequireDualStack" } else { "SingleStack" };
        let policy = spec.ip_family_policy.get_or_insert_with(|| policy.to_owned()).clone();
        let families = spec.ip_families.get_or_insert_default();
        if families.is_empty() {
            families.push(ours.to_owned());
        }
        if orphan && policy != "SingleStack" && families.len() == 1 {
            families.push(if families[0] == "IPv4" { "IPv6" } else { "IPv4" }.to_owned());
        }
    }

    /// What a Service holds.
    fn held(service: &Service) -> BTreeSet<Held> {
        let mut held = BTreeSet::new();
        let Some(spec) = &service.spec else { return held };
        if spec.type_.as_deref() != Some("ExternalName") {
            held.extend(
                spec.cluster_ips.iter().flatten().filter_map(|ip| ip.parse().ok()).map(Held::Address),
            );
        }
        if needs_node_ports(spec) {
            let ports = spec.ports.iter().flatten().filter_map(|p| p.node_port);
            held.extend(ports.filter(|p| *p != 0).map(Held::Port));
        }
        if needs_health_port(spec) {
            held.extend(spec.health_check_node_port.filter(|p| *p != 0).map(Held::Port));
        }
        held
    }

    /// Whether the key was made; `false` if someone has it already.
    async fn take(&self, held: &Held, meta: &ObjectMeta) -> Result<bool, StatusError> {
        let owner = format!(
            "{}/{}",
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default()
        );
        let value: Bytes = match held {
            Held::Address(ip) => encode::to_vec(&address_object(*ip, meta)).into(),
            Held::Port(_) => owner.into(),
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

    /// Gives back; a failure is repaired at the next start.
    async fn release(store: &dyn Backend, metrics: &Metrics, held: &[Held]) {
        for held in held {
            if let Err(error) = store.commit(CompareAndSet::delete_any(held.key())).await {
                tracing::warn!(key = held.key(), %error, "could not release what a Service held");
            }
        }
        if has_port(held) {
            Self::count_ports(store, metrics).await;
        }
    }

    /// Brings the count of ports that are taken up to date.
    async fn count_ports(store: &dyn Backend, metrics: &Metrics) {
        let all = KeyRange::prefix(PORTS_PREFIX.to_owned());
        if let Ok(page) = store.range(all, None, Limit::COUNT_ONLY).await {
            metrics.ports_taken(page.count);
        }
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
            for held in Self::held(&service) {
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
        Self::release(&*self.store, &self.metrics, &stray).await;
        Self::count_ports(&*self.store, &self.metrics).await;
        Ok(())
    }
}

fn has_port(held: &[Held]) -> bool {
    held.iter().any(|held| matches!(held, Held::Port(_)))
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
        let got = self.allocator.take(&held, self.meta).await?;
        if got {
            taken.push(held);
        }
        Ok(got)
    }

    async fn addresses(
        &self,
        spec: &mut ServiceSpec,
        at: &FieldPath,
        errors: &mut FieldErrors,
        taken: &mut Vec<Held>,
    ) -> Result<(), StatusError> {
        if spec.type_.as_deref() == Some("ExternalName") || is_headless(spec) {
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
            errors.invalid(&at, [""], "failed to allocate a serviceIP: range is full");
            return Ok(());
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

    async fn ports(
        &self,
        spec: &mut ServiceSpec,
        at: &FieldPath,
        errors: &mut FieldErrors,
        taken: &mut Vec<Held>,
    ) -> Result<(), StatusError> {
        let (wants, health) = (needs_node_ports(spec), needs_health_port(spec));
        let mut by_port: Vec<(i32, Option<String>, i32)> = Vec::new();
        // Those that are asked for by number first, lest a random one takes their place.
        for (i, port) in spec.ports.iter().flatten().enumerate() {
            let Some(number) = port.node_port.filter(|n| *n != 0 && wants) else { continue };
            self.static_port(number, &at.child("ports").index(i).child("nodePort"), errors, taken).await?;
            by_port.push((port.port, port.protocol.clone(), number));
        }
        for (i, port) in spec.ports.iter_mut().flatten().enumerate() {
            if !wants || port.node_port.unwrap_or(0) != 0 {
                continue;
            }
            // One number serves a port in two protocols.
            let shared =
                by_port.iter().find(|(p, protocol, _)| *p == port.port && *protocol != port.protocol);
            let number = match shared.map(|(_, _, number)| *number) {
                Some(number) => Some(number),
                None => self.any_port(taken).await?,
            };
            match number {
                Some(number) => {
                    port.node_port = Some(number);
                    by_port.push((port.port, port.protocol.clone(), number));
                }
                None => {
                    errors.invalid(
                        &at.child("ports").index(i).child("nodePort"),
                        0,
                        "failed to allocate a nodePort: range is full",
                    );
                }
            }
        }
        if health {
            let at = at.child("healthCheckNodePort");
            match spec.health_check_node_port.filter(|n| *n != 0) {
                Some(number) => self.static_port(number, &at, errors, taken).await?,
                None => match self.any_port(taken).await? {
                    Some(number) => spec.health_check_node_port = Some(number),
                    None => errors.invalid(
                        &at,
                        0,
                        "failed to allocate requested HealthCheck NodePort: range is full",
                    ),
                },
            }
        }
        Ok(())
    }

    async fn static_port(
        &self,
        number: i32,
        at: &FieldPath,
        errors: &mut FieldErrors,
        taken: &mut Vec<Held>,
    ) -> Result<(), StatusError> {
        if !NODE_PORTS.contains(&number) {
            let (first, last) = (NODE_PORTS.start(), NODE_PORTS.end());
            errors.invalid(
                at,
                number,
                format!(
                    "provided port is not in the valid range. The range of valid ports is {first}-{last}"
                ),
            );
            return Ok(());
        }
        let is_new = !self.had.contains(&Held::Port(number));
        let got = self.this(Held::Port(number), taken).await?;
        if is_new {
            self.tell_port("static", got);
        }
        if !got {
            errors.invalid(at, number, "provided port is already allocated");
        }
        Ok(())
    }

    fn tell_port(&self, scope: &str, got: bool) {
        if !self.dry_run {
            self.allocator.metrics.port(scope, got);
        }
    }

    async fn any_port(&self, taken: &mut Vec<Held>) -> Result<Option<i32>, StatusError> {
        let free = |taken: &[Held], number| {
            !self.had.contains(&Held::Port(number)) && !taken.contains(&Held::Port(number))
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
        let nothing = Service::default();
        self.before_update(new, &nothing, context).await
    }

    async fn before_update(
        &self,
        new: &mut (dyn Any + Send + Sync),
        old: &(dyn Any + Send + Sync),
        context: &Context,
    ) -> Result<Outcome, StatusError> {
        let (Some(new), Some(old)) = (new.downcast_mut::<Service>(), old.downcast_ref::<Service>()) else {
            return Err(StatusError::internal("a Service was expected"));
        };
        let had = Self::held(old);
        let mut taken = Vec::new();
        if let Err(error) = self.allocate(new, &had, context.dry_run, &mut taken).await {
            Self::release(&*self.store, &self.metrics, &taken).await;
            return Err(error);
        }
        if !context.dry_run && has_port(&taken) {
            Self::count_ports(&*self.store, &self.metrics).await;
        }
        let has = Self::held(new);
        let left: Vec<Held> =
            if context.dry_run { Vec::new() } else { had.difference(&has).cloned().collect() };
        let (store, metrics) = (Arc::clone(&self.store), Arc::clone(&self.metrics));
        Ok(Box::new(move |committed| {
            Box::pin(async move {
                Self::release(&*store, &metrics, if committed { &left } else { &taken }).await;
            })
        }))
    }

    async fn after_delete(&self, old: &(dyn Any + Send + Sync)) {
        if let Some(service) = old.downcast_ref::<Service>() {
            let held: Vec<Held> = Self::held(service).into_iter().collect();
            Self::release(&*self.store, &self.metrics, &held).await;
        }
    }
}
