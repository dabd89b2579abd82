//! What a name means in the cluster, as a function of what the cluster has: no network, no clock.

use hickory_proto::rr::{
    Name, RData, Record, RecordType,
    rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT},
};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

/// Seconds for which an answer may be kept: CoreDNS's default for cluster names.
pub const TTL: u32 = 5;

/// The version of the specification that is answered.
const SCHEMA: &str = "1.1.0";

/// What the cluster has, as far as names are concerned. Names are given in lower case.
pub trait Source: Send + Sync + 'static {
    /// Whether what follows can be believed: until then, no name is denied.
    fn ready(&self) -> bool;
    fn has_namespace(&self, namespace: &str) -> bool;
    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>>;
    /// The slices of a service.
    fn slices(&self, namespace: &str, service: &str) -> Vec<Arc<EndpointSlice>>;
    /// The service that has this cluster IP.
    fn service_at(&self, ip: IpAddr) -> Option<Arc<Service>>;
    /// The slices that have an endpoint with this address.
    fn slices_at(&self, ip: IpAddr) -> Vec<Arc<EndpointSlice>>;
    /// When something last changed, in seconds since 1970: the zone's serial number.
    fn serial(&self) -> u32;
}

/// What is to be answered.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Answer {
        answers: Vec<Record>,
        additionals: Vec<Record>,
    },
    /// The name stands for another one (ExternalName), which is to be resolved in turn.
    Alias {
        cname: Box<Record>,
        target: Name,
    },
    /// The name exists, but not with this type.
    NoData,
    /// NXDOMAIN.
    NoName,
    /// Not for this zone to say.
    Elsewhere,
}

/// The cluster's domain.
#[derive(Clone, Debug)]
pub struct Zone {
    domain: Name,
    /// Where clients reach this server; the zone's name server record leads there.
    server: Option<IpAddr>,
}

/// What a name below a service's asks for.
enum Of<'a> {
    Service,
    Endpoint(&'a str),
    Port { name: &'a str, protocol: &'a str },
}

/// One address (and port) that a name leads to, and the name that is the address's own.
struct Place {
    ip: IpAddr,
    port: Option<u16>,
    target: Name,
}

impl Zone {
    pub fn new(domain: &str, server: Option<IpAddr>) -> Option<Self> {
        let mut domain = Name::from_ascii(domain.to_ascii_lowercase()).ok()?;
        domain.set_fqdn(true);
        (domain.num_labels() > 0).then_some(Zone { domain, server })
    }

    /// The record that goes with a denial, and how long that may be kept.
    pub fn soa(&self, serial: u32) -> Record {
        let soa =
            SOA::new(self.name(&["ns", "dns"]), self.name(&["hostmaster"]), serial, 7200, 1800, 86400, TTL);
        Record::from_rdata(self.domain.clone(), TTL, RData::SOA(soa))
    }

    /// Whether a name is this zone's to deny.
    pub fn holds(&self, name: &Name) -> bool {
        self.domain.zone_of(name)
    }

    pub fn lookup(&self, source: &dyn Source, name: &Name, kind: RecordType) -> Outcome {
        if !self.holds(name) {
            return if kind == RecordType::PTR { self.reverse(source, name) } else { Outcome::Elsewhere };
        }
        let ours = usize::from(name.num_labels() - self.domain.num_labels());
        let labels: Option<Vec<String>> =
            name.iter().take(ours).map(|l| Some(std::str::from_utf8(l).ok()?.to_ascii_lowercase())).collect();
        let Some(mut labels) = labels else { return Outcome::NoName };
        labels.reverse();
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        match labels[..] {
            [] => self.apex(source, name, kind),
            ["dns-version"] if kind == RecordType::TXT => {
                answer(vec![record(name, RData::TXT(TXT::new(vec![SCHEMA.to_owned()])))])
            }
            ["dns-version" | "dns" | "svc" | "pod"] => Outcome::NoData,
            ["dns", "ns"] => addresses(name, kind, self.server.iter().copied()),
            ["svc" | "pod", namespace, ..] if !source.has_namespace(namespace) => Outcome::NoName,
            ["svc" | "pod", _] => Outcome::NoData,
            ["pod", _, pod] => match pod_address(pod) {
                Some(ip) => addresses(name, kind, [ip].into_iter()),
                None => Outcome::NoName,
            },
            ["svc", namespace, service] => {
                self.service(source, (namespace, service), Of::Service, name, kind)
            }
            ["svc", namespace, service, endpoint] => {
                self.service(source, (namespace, service), Of::Endpoint(endpoint), name, kind)
            }
            ["svc", namespace, service, protocol, port] => {
                let bare = |label| str::strip_prefix(label, '_').unwrap_or(label);
                let of = Of::Port { name: bare(port), protocol: bare(protocol) };
                self.service(source, (namespace, service), of, name, kind)
            }
            _ => Outcome::NoName,
        }
    }

    fn apex(&self, source: &dyn Source, name: &Name, kind: RecordType) -> Outcome {
        match kind {
            RecordType::SOA => answer(vec![self.soa(source.serial())]),
            RecordType::NS => {
                let server = self.name(&["ns", "dns"]);
                let additionals = self.server.iter().map(|ip| address(&server, *ip)).collect();
                Outcome::Answer { answers: vec![record(name, RData::NS(NS(server)))], additionals }
            }
            _ => Outcome::NoData,
        }
    }

    fn service(
        &self,
        source: &dyn Source,
        (namespace, service): (&str, &str),
        of: Of<'_>,
        name: &Name,
        kind: RecordType,
    ) -> Outcome {
        let Some(object) = source.service(namespace, service) else { return Outcome::NoName };
        let Some(spec) = &object.spec else { return Outcome::NoName };
        let own = self.name(&[service, namespace, "svc"]);
        if spec.type_.as_deref() == Some("ExternalName") {
            return match (of, external(spec.external_name.as_deref())) {
                (Of::Service, Some(target)) => {
                    let cname = Box::new(record(name, RData::CNAME(CNAME(target.clone()))));
                    Outcome::Alias { cname, target }
                }
                _ => Outcome::NoName,
            };
        }
        if is_headless(&object) || matches!(of, Of::Endpoint(_)) {
            let publish = spec.publish_not_ready_addresses == Some(true);
            let places = endpoints(&source.slices(namespace, service), &own, &of, publish);
            // The specification: no ready endpoint, no name.
            return if places.is_empty() { Outcome::NoName } else { render(name, kind, &places) };
        }
        let ports: Vec<Option<u16>> = match &spec.ports {
            Some(ports) if !ports.is_empty() => ports
                .iter()
                .filter(|p| of.takes(p.name.as_deref(), p.protocol.as_deref()))
                .map(|p| u16::try_from(p.port).ok())
                .collect(),
            _ if of.takes(None, None) => vec![None],
            _ => Vec::new(),
        };
        if ports.is_empty() {
            return Outcome::NoName;
        }
        let ips: Vec<IpAddr> = cluster_ips(&object).collect();
        let places: Vec<Place> = ports
            .iter()
            .flat_map(|port| ips.iter().map(|ip| Place { ip: *ip, port: *port, target: own.clone() }))
            .collect();
        render(name, kind, &places)
    }

    fn reverse(&self, source: &dyn Source, name: &Name) -> Outcome {
        let Ok(net) = name.parse_arpa_name() else { return Outcome::Elsewhere };
        if net.prefix_len() != net.max_prefix_len() {
            return Outcome::Elsewhere;
        }
        let ip = net.addr();
        if let Some(service) = source.service_at(ip) {
            let own = |meta: &Option<String>| meta.clone().unwrap_or_default();
            let target = self.name(&[&own(&service.metadata.name), &own(&service.metadata.namespace), "svc"]);
            return answer(vec![record(name, RData::PTR(PTR(target)))]);
        }
        let mut targets = HashSet::new();
        for slice in source.slices_at(ip) {
            let Some((namespace, service)) = service_of(&slice) else { continue };
            let own = self.name(&[&service, &namespace, "svc"]);
            for place in endpoints(&[slice], &own, &Of::Service, false) {
                if place.ip == ip {
                    targets.insert(place.target);
                }
            }
        }
        if targets.is_empty() {
            return Outcome::Elsewhere;
        }
        let mut answers: Vec<Record> =
            targets.into_iter().map(|target| record(name, RData::PTR(PTR(target)))).collect();
        answers.sort_by_key(|record| record.data.to_string());
        answer(answers)
    }

    /// The name that these labels make in front of the domain.
    fn name(&self, labels: &[&str]) -> Name {
        // Labels come from validated object names; one that is none leads to the domain itself.
        Name::from_labels(labels.iter().map(|l| l.as_bytes()))
            .and_then(|name| name.append_domain(&self.domain))
            .unwrap_or_else(|_| self.domain.clone())
    }
}

impl Of<'_> {
    /// Whether a port is meant.
    fn takes(&self, port: Option<&str>, protocol: Option<&str>) -> bool {
        match self {
            Of::Service | Of::Endpoint(_) => true,
            Of::Port { name, protocol: wanted } => {
                port.is_some_and(|p| p.eq_ignore_ascii_case(name))
                    && protocol.unwrap_or("TCP").eq_ignore_ascii_case(wanted)
            }
        }
    }
}

fn endpoints(slices: &[Arc<EndpointSlice>], own: &Name, of: &Of<'_>, publish_not_ready: bool) -> Vec<Place> {
    let mut places = Vec::new();
    for slice in slices {
        let ports: Vec<Option<u16>> = match &slice.ports {
            Some(ports) if !ports.is_empty() => ports
                .iter()
                .filter(|p| of.takes(p.name.as_deref(), p.protocol.as_deref()))
                .map(|p| p.port.and_then(|port| u16::try_from(port).ok()))
                .collect(),
            _ if of.takes(None, None) => vec![None],
            _ => Vec::new(),
        };
        for endpoint in slice.endpoints.iter().flatten() {
            // The controller calls an endpoint ready whose service publishes addresses that are not.
            let ready = endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true);
            if !ready && !publish_not_ready {
                continue;
            }
            for ip in endpoint.addresses.iter().filter_map(|a| a.parse::<IpAddr>().ok()) {
                let host = endpoint
                    .hostname
                    .as_deref()
                    .filter(|h| !h.is_empty())
                    .map_or_else(|| ip.to_string().replace(['.', ':'], "-"), str::to_ascii_lowercase);
                if let Of::Endpoint(wanted) = of
                    && *wanted != host
                {
                    continue;
                }
                let target = Name::from_labels([host.as_bytes()])
                    .and_then(|name| name.append_domain(own))
                    .unwrap_or_else(|_| own.clone());
                places.extend(ports.iter().map(|port| Place { ip, port: *port, target: target.clone() }));
            }
        }
    }
    places
}

fn render(name: &Name, kind: RecordType, places: &[Place]) -> Outcome {
    if kind != RecordType::SRV {
        return addresses(name, kind, places.iter().map(|place| place.ip));
    }
    let with_port: Vec<(&Place, u16)> = places.iter().filter_map(|p| Some((p, p.port?))).collect();
    if with_port.is_empty() {
        return Outcome::NoData;
    }
    let weight = (100 / with_port.len()).max(1) as u16;
    let mut answers = Vec::new();
    let mut additionals = Vec::new();
    let mut seen = HashSet::new();
    for (place, port) in with_port {
        // A target with two addresses is one record with two additional ones.
        if seen.insert((place.target.clone(), port, None)) {
            answers.push(record(name, RData::SRV(SRV::new(0, weight, port, place.target.clone()))));
        }
        if seen.insert((place.target.clone(), 0, Some(place.ip))) {
            additionals.push(address(&place.target, place.ip));
        }
    }
    Outcome::Answer { answers, additionals }
}

/// The addresses of the family that was asked for. The name exists, so for every other type there is no data.
fn addresses(name: &Name, kind: RecordType, ips: impl Iterator<Item = IpAddr>) -> Outcome {
    let mut seen = HashSet::new();
    let answers: Vec<Record> = ips
        .filter(|ip| match kind {
            RecordType::A => ip.is_ipv4(),
            RecordType::AAAA => ip.is_ipv6(),
            _ => false,
        })
        .filter(|ip| seen.insert(*ip))
        .map(|ip| address(name, ip))
        .collect();
    if answers.is_empty() { Outcome::NoData } else { answer(answers) }
}

fn answer(answers: Vec<Record>) -> Outcome {
    Outcome::Answer { answers, additionals: Vec::new() }
}

fn record(name: &Name, data: RData) -> Record {
    Record::from_rdata(name.clone(), TTL, data)
}

fn address(name: &Name, ip: IpAddr) -> Record {
    record(
        name,
        match ip {
            IpAddr::V4(ip) => RData::A(A(ip)),
            IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
        },
    )
}

/// `1-2-3-4`, or an IPv6 address with dashes for colons.
fn pod_address(label: &str) -> Option<IpAddr> {
    if label.matches('-').count() == 3 && !label.contains("--") {
        label.replace('-', ".").parse::<Ipv4Addr>().ok().map(IpAddr::V4)
    } else {
        label.replace('-', ":").parse::<Ipv6Addr>().ok().map(IpAddr::V6)
    }
}

/// An external name that can be the target of a CNAME: an address cannot.
fn external(name: Option<&str>) -> Option<Name> {
    let name = name.filter(|n| !n.is_empty() && n.parse::<IpAddr>().is_err())?;
    let mut name = Name::from_ascii(name).ok()?;
    name.set_fqdn(true);
    Some(name)
}

pub fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None")
}

/// The cluster IPs of a service; none when it is headless.
pub fn cluster_ips(service: &Service) -> impl Iterator<Item = IpAddr> {
    let spec = service.spec.as_ref();
    let many = spec.and_then(|s| s.cluster_ips.as_deref()).unwrap_or_default();
    let one = spec.and_then(|s| s.cluster_ip.as_ref()).filter(|_| many.is_empty());
    many.iter().chain(one).filter_map(|ip| ip.parse().ok())
}

/// The namespace and name of the service that a slice belongs to.
pub fn service_of(slice: &EndpointSlice) -> Option<(String, String)> {
    let service = slice.metadata.labels.as_ref()?.get("kubernetes.io/service-name")?;
    Some((slice.metadata.namespace.clone()?, service.clone()))
}
