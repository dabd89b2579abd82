//! The Service `kube-system/kube-dns`, and the slice that leads from it to this server.

use crate::cluster::Cluster;
use ipnet::IpNet;
use k8s_openapi::{
    api::{
        core::v1::{Service, ServicePort, ServiceSpec},
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};
use krate_client::{Api, CancellationToken, Client, Reconcile, Requeue, WorkQueue};
use kube::api::PostParams;
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// Where clients ask.
pub const PORT: u16 = 53;
const NAMESPACE: &str = "kube-system";
const NAME: &str = "kube-dns";
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// The ports of the Service: name and protocol.
const PORTS: [(&str, &str); 2] = [("dns", "UDP"), ("dns-tcp", "TCP")];

/// What the Service shall be.
#[derive(Clone, Debug)]
pub struct KubeDns {
    /// The address that pods find in their resolv.conf; see [`dns_address`].
    pub cluster_ip: IpAddr,
    /// Where the proxy sends them on to. `None`: where the server listens, if that is one address and can be
    /// reached from elsewhere.
    pub endpoint: Option<SocketAddr>,
    /// The node that this server runs on. Each node's server has a slice of its own.
    pub node: String,
}

/// The address of cluster DNS in a Service network: the tenth, as upstream's installers choose it. `None` for a
/// network that has no ten addresses.
pub fn dns_address(services: IpNet) -> Option<IpAddr> {
    let address = match services.network() {
        IpAddr::V4(ip) => IpAddr::V4(u32::from(ip).checked_add(10)?.into()),
        IpAddr::V6(ip) => IpAddr::V6(u128::from(ip).checked_add(10)?.into()),
    };
    services.contains(&address).then_some(address)
}

/// Keeps both until `shutdown`.
pub async fn keep(
    client: Client,
    cluster: Cluster,
    config: KubeDns,
    listening: Option<SocketAddr>,
    shutdown: CancellationToken,
) {
    let endpoint =
        config.endpoint.or(listening).filter(|at| !at.ip().is_unspecified() && !at.ip().is_loopback());
    if endpoint.is_none() {
        tracing::warn!("cluster DNS listens where pods cannot reach it: no endpoint is published");
    }
    let queue = WorkQueue::new();
    let wake = queue.clone();
    cluster.services().handle(move |event| {
        let meta = &event.object().metadata;
        if (meta.namespace.as_deref(), meta.name.as_deref()) == (Some(NAMESPACE), Some(NAME)) {
            wake.add(());
        }
    });
    let wake = queue.clone();
    cluster.slices_informer().handle(move |event| {
        let labels = event.object().metadata.labels.as_ref();
        if labels.and_then(|l| l.get(SERVICE_NAME)).map(String::as_str) == Some(NAME) {
            wake.add(());
        }
    });
    let keeper = Keeper { client, cluster, config, endpoint };
    tokio::select! {
        () = shutdown.cancelled() => return,
        () = keeper.cluster.synced() => queue.add(()),
    }
    krate_client::run("dns-service", Arc::new(keeper), queue, 1, shutdown).await;
}

struct Keeper {
    client: Client,
    cluster: Cluster,
    config: KubeDns,
    endpoint: Option<SocketAddr>,
}

impl Reconcile for Keeper {
    type Key = ();
    type Error = kube::Error;

    async fn reconcile(&self, (): ()) -> Result<Requeue, kube::Error> {
        self.keep_service().await?;
        if let Some(endpoint) = self.endpoint {
            self.keep_slice(endpoint).await?;
        }
        Ok(Requeue::Done)
    }
}

impl Keeper {
    async fn keep_service(&self) -> Result<(), kube::Error> {
        let api: Api<Service> = Api::namespaced(self.client.clone(), NAMESPACE);
        let wanted = service(self.config.cluster_ip);
        let Some(there) = self.cluster.services().get(NAMESPACE, NAME) else {
            return created(api.create(&PostParams::default(), &wanted).await);
        };
        let Some(changed) = service_as_wanted(&there, &wanted) else { return Ok(()) };
        api.replace(NAME, &PostParams::default(), &changed).await.map(drop)
    }

    async fn keep_slice(&self, endpoint: SocketAddr) -> Result<(), kube::Error> {
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), NAMESPACE);
        let mut wanted = slice(&self.config.node, endpoint);
        let name = wanted.metadata.name.clone().unwrap_or_default();
        let Some(there) = self.cluster.slices_informer().get(NAMESPACE, &name) else {
            return created(api.create(&PostParams::default(), &wanted).await);
        };
        let labels = |slice: &EndpointSlice| slice.metadata.labels.clone().unwrap_or_default();
        let same = there.endpoints == wanted.endpoints
            && there.ports == wanted.ports
            && there.address_type == wanted.address_type
            && labels(&wanted).iter().all(|(k, v)| labels(&there).get(k) == Some(v));
        if same {
            return Ok(());
        }
        if there.address_type != wanted.address_type {
            // It cannot be changed: a new one takes its place when this one is seen to be gone.
            return api.delete(&name, &kube::api::DeleteParams::default()).await.map(drop);
        }
        wanted.metadata.resource_version.clone_from(&there.metadata.resource_version);
        api.replace(&name, &PostParams::default(), &wanted).await.map(drop)
    }
}

/// Somebody else was first: what it made is seen by the informer, and looked at then.
fn created<K>(result: Result<K, kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(()),
        other => other.map(drop),
    }
}

fn service(cluster_ip: IpAddr) -> Service {
    let labels = [
        ("k8s-app", "kube-dns"),
        ("kubernetes.io/cluster-service", "true"),
        ("kubernetes.io/name", "CoreDNS"),
    ];
    let port = |(name, protocol): (&str, &str)| ServicePort {
        name: Some(name.to_owned()),
        protocol: Some(protocol.to_owned()),
        port: i32::from(PORT),
        target_port: Some(IntOrString::Int(i32::from(PORT))),
        ..ServicePort::default()
    };
    Service {
        metadata: ObjectMeta {
            namespace: Some(NAMESPACE.to_owned()),
            name: Some(NAME.to_owned()),
            labels: Some(labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into()),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            cluster_ip: Some(cluster_ip.to_string()),
            cluster_ips: Some(vec![cluster_ip.to_string()]),
            ports: Some(PORTS.map(port).to_vec()),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// The Service with what is wrong put right, `None` when nothing is. What others add to it stays.
fn service_as_wanted(there: &Service, wanted: &Service) -> Option<Service> {
    let (mut changed, spec) = (there.clone(), wanted.spec.as_ref()?);
    let labels = changed.metadata.labels.get_or_insert_default();
    labels.extend(wanted.metadata.labels.clone().unwrap_or_default());
    let own = changed.spec.get_or_insert_default();
    own.selector = None;
    own.cluster_ip.clone_from(&spec.cluster_ip);
    if own.cluster_ips.as_ref().and_then(|ips| ips.first()) != spec.cluster_ip.as_ref() {
        own.cluster_ips.clone_from(&spec.cluster_ips);
    }
    let ports = own.ports.get_or_insert_default();
    for wanted in spec.ports.iter().flatten() {
        if !ports.iter().any(|p| {
            (p.name.as_ref(), p.protocol.as_ref(), p.port)
                == (wanted.name.as_ref(), wanted.protocol.as_ref(), wanted.port)
        }) {
            ports.retain(|p| p.name != wanted.name);
            ports.push(wanted.clone());
        }
    }
    (changed != *there).then_some(changed)
}

fn slice(node: &str, endpoint: SocketAddr) -> EndpointSlice {
    let labels: BTreeMap<String, String> =
        [(SERVICE_NAME, NAME), (MANAGED_BY, "dns.krate"), ("k8s-app", "kube-dns")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into();
    let port = |(name, protocol): (&str, &str)| EndpointPort {
        name: Some(name.to_owned()),
        protocol: Some(protocol.to_owned()),
        port: Some(i32::from(endpoint.port())),
        app_protocol: None,
    };
    EndpointSlice {
        metadata: ObjectMeta {
            namespace: Some(NAMESPACE.to_owned()),
            name: Some(format!("{NAME}-{node}")),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        address_type: if endpoint.is_ipv4() { "IPv4" } else { "IPv6" }.to_owned(),
        endpoints: Some(vec![Endpoint {
            addresses: vec![endpoint.ip().to_string()],
            conditions: Some(EndpointConditions {
                ready: Some(true),
                serving: Some(true),
                terminating: Some(false),
            }),
            node_name: Some(node.to_owned()),
            ..Endpoint::default()
        }]),
        ports: Some(PORTS.map(port).to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tenth_address_is_the_name_servers() {
        for (net, expected) in [
            ("10.96.0.0/12", Some("10.96.0.10")),
            ("10.43.0.0/16", Some("10.43.0.10")),
            ("192.168.5.16/28", Some("192.168.5.26")),
            ("192.168.5.0/29", None),
            ("fd00:1::/108", Some("fd00:1::a")),
        ] {
            let address = dns_address(net.parse().unwrap());
            assert_eq!(address.map(|a| a.to_string()).as_deref(), expected, "{net}");
        }
    }

    #[test]
    fn what_others_add_to_the_service_stays_and_what_is_wrong_is_put_right() {
        let wanted = service("10.96.0.10".parse().unwrap());
        assert_eq!(service_as_wanted(&wanted, &wanted), None);

        let mut theirs = wanted.clone();
        theirs.metadata.labels.as_mut().unwrap().insert("theirs".into(), "stays".into());
        let spec = theirs.spec.as_mut().unwrap();
        let metrics = ServicePort { name: Some("metrics".into()), port: 9153, ..ServicePort::default() };
        spec.ports.as_mut().unwrap().push(metrics);
        spec.session_affinity = Some("None".into());
        assert_eq!(service_as_wanted(&theirs, &wanted), None);

        let mut wrong = theirs.clone();
        wrong.metadata.labels.as_mut().unwrap().remove("k8s-app");
        wrong.spec.as_mut().unwrap().selector = Some([("app".to_owned(), "other".to_owned())].into());
        wrong.spec.as_mut().unwrap().ports.as_mut().unwrap()[0].port = 5353;
        let right = service_as_wanted(&wrong, &wanted).unwrap();
        let spec = right.spec.unwrap();
        assert_eq!(spec.selector, None);
        let mut ports: Vec<_> = spec.ports.unwrap().into_iter().map(|p| (p.name.unwrap(), p.port)).collect();
        ports.sort();
        assert_eq!(ports, [("dns".into(), 53), ("dns-tcp".into(), 53), ("metrics".into(), 9153)]);
        let labels = right.metadata.labels.unwrap();
        assert_eq!(labels.get("k8s-app").map(String::as_str), Some("kube-dns"));
        assert_eq!(labels.get("theirs").map(String::as_str), Some("stays"));
    }
}
