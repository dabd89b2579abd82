//! One port of a Service, as far as a proxy cares.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service, ServicePort as SpecPort, ServiceSpec};

/// A Service that another proxy looks after, with an EndpointSlice of it, says so by this label.
pub(crate) const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// As the API writes it; absent means TCP.
    pub fn parse(text: Option<&str>) -> Option<Self> {
        match text {
            None | Some("TCP" | "") => Some(Protocol::Tcp),
            Some("UDP") => Some(Protocol::Udp),
            Some("SCTP") => Some(Protocol::Sctp),
            Some(_) => None,
        }
    }

    /// As the Internet Protocol numbers it.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        })
    }
}

/// Names one port of one Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortName {
    pub namespace: String,
    pub service: String,
    pub protocol: Protocol,
    /// Empty when the Service has but one port and did not name it.
    pub port: String,
}

impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/{}", self.namespace, self.service, self.protocol, self.port)
    }
}

/// One port of a Service, with the endpoints that stand behind it as seen from this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    pub cluster_ips: Vec<IpAddr>,
    pub port: u16,
    pub node_port: Option<u16>,
    pub external_ips: Vec<IpAddr>,
    /// Addresses of the load balancer for which the node stands in.
    pub load_balancer_ips: Vec<IpAddr>,
    /// Who may use the load balancer's addresses; empty means everyone.
    pub source_ranges: Vec<IpNet>,
    /// For how long a client keeps its endpoint.
    pub affinity: Option<Duration>,
    /// Who asks from within the cluster is served by this node's endpoints alone.
    pub internal_local: bool,
    /// Who asks from without is served by this node's endpoints alone, and keeps its address.
    pub external_local: bool,
    /// Endpoints anywhere in the cluster that may be used.
    pub cluster: Vec<SocketAddr>,
    /// Endpoints on this node that may be used.
    pub local: Vec<SocketAddr>,
}

impl ServicePort {
    /// Whether the cluster has endpoints at all, be they reachable from this node or not.
    pub fn has_endpoints(&self) -> bool {
        !self.cluster.is_empty() || !self.local.is_empty()
    }

    /// The endpoints for who asks from within the cluster.
    pub fn internal(&self) -> &[SocketAddr] {
        if self.internal_local { &self.local } else { &self.cluster }
    }

    /// The endpoints for who asks from without.
    pub fn external(&self) -> &[SocketAddr] {
        if self.external_local { &self.local } else { &self.cluster }
    }
}

/// The ports of a Service, without endpoints. A Service has none here when nothing is to be proxied: it is headless,
/// or an alias for another name, or another proxy's.
pub(crate) fn ports(service: &Service) -> Vec<(PortName, ServicePort)> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let labels = service.metadata.labels.as_ref();
    let is_others = labels.is_some_and(|labels| labels.contains_key(PROXY_NAME));
    if is_others || spec.type_.as_deref() == Some("ExternalName") {
        return Vec::new();
    }
    let cluster_ips = cluster_ips(spec);
    if cluster_ips.is_empty() {
        return Vec::new();
    }
    let ports = spec.ports.iter().flatten();
    ports
        .filter_map(|port| Some((name(service, port)?, of(service, spec, port, cluster_ips.clone())?)))
        .collect()
}

fn name(service: &Service, port: &SpecPort) -> Option<PortName> {
    Some(PortName {
        namespace: service.metadata.namespace.clone().unwrap_or_default(),
        service: service.metadata.name.clone()?,
        protocol: Protocol::parse(port.protocol.as_deref())?,
        port: port.name.clone().unwrap_or_default(),
    })
}

fn cluster_ips(spec: &ServiceSpec) -> Vec<IpAddr> {
    let all = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    // "None" is no address: a headless Service has none.
    unique(all.filter_map(|text| text.parse().ok()))
}

fn of(
    service: &Service,
    spec: &ServiceSpec,
    port: &SpecPort,
    cluster_ips: Vec<IpAddr>,
) -> Option<ServicePort> {
    let with_node_port = matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer"));
    let node_port = port.node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
    let timeout = || {
        let config = spec.session_affinity_config.as_ref()?.client_ip.as_ref()?;
        u64::try_from(config.timeout_seconds?).ok()
    };
    let sticky = spec.session_affinity.as_deref() == Some("ClientIP");
    let local = |policy: &Option<String>| policy.as_deref() == Some("Local");
    let external_ips = unique(spec.external_ips.iter().flatten().filter_map(|text| text.parse().ok()));
    let load_balancer_ips = load_balancer_ips(service);
    let node_port = node_port.filter(|_| with_node_port);
    // The API allows the external policy only where it means something, but older objects may have it anywhere.
    let is_external = node_port.is_some() || !external_ips.is_empty() || !load_balancer_ips.is_empty();
    Some(ServicePort {
        cluster_ips,
        port: u16::try_from(port.port).ok()?,
        node_port,
        external_ips,
        load_balancer_ips,
        source_ranges: spec
            .load_balancer_source_ranges
            .iter()
            .flatten()
            .filter_map(|r| r.trim().parse().ok())
            .collect(),
        // Three hours, as the API's default is.
        affinity: sticky.then(|| Duration::from_secs(timeout().unwrap_or(10800))),
        internal_local: local(&spec.internal_traffic_policy),
        external_local: is_external && local(&spec.external_traffic_policy),
        cluster: Vec::new(),
        local: Vec::new(),
    })
}

fn load_balancer_ips(service: &Service) -> Vec<IpAddr> {
    let is_load_balancer =
        service.spec.as_ref().is_some_and(|spec| spec.type_.as_deref() == Some("LoadBalancer"));
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_ref()).into_iter().flatten();
    // A load balancer of mode Proxy wants to see the traffic itself, also that of this node.
    let served = ingress.filter(|ingress| is_load_balancer && ingress.ip_mode.as_deref() != Some("Proxy"));
    unique(served.filter_map(|ingress| ingress.ip.as_deref()?.parse().ok()))
}

fn unique(addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut seen = Vec::new();
    for address in addresses {
        if !seen.contains(&address) {
            seen.push(address);
        }
    }
    seen
}
