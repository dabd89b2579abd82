//! A real server on loopback ports, asked by a resolver and by hand, over the API of a cluster that stands still.

mod common;

use hickory_proto::{
    op::{Edns, Message, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};
use hickory_resolver::{
    Resolver, TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts},
};
use hickory_server::net::runtime::TokioRuntimeProvider;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use krate_client::{CancellationToken, Client, Informers, in_process};
use krate_dns::{Cluster, Config, Dns, KubeDns, Upstream};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    sync::mpsc,
};

type Answer = UnsyncBoxBody<bytes::Bytes, Infallible>;

/// An API that lists what it was given, watches nothing happen, and tells of every write.
fn api(writes: mpsc::UnboundedSender<(Method, String, Value)>) -> Client {
    let writes = Arc::new(Mutex::new(writes));
    in_process(tower::service_fn(move |request: Request<Body>| {
        let writes = writes.lock().clone();
        async move {
            let (head, body) = request.into_parts();
            if head.method != Method::GET {
                let body = body.collect().await.unwrap().to_bytes();
                let object: Value = serde_json::from_slice(&body).unwrap();
                let _ = writes.send((head.method, head.uri.path().to_owned(), object));
                return Ok::<_, Infallible>(full(&serde_json::from_slice(&body).unwrap()));
            }
            if head.uri.query().is_some_and(|q| q.contains("watch=true")) {
                let silence = futures::stream::pending::<Result<_, Infallible>>();
                return Ok(Response::new(UnsyncBoxBody::new(StreamBody::new(silence))));
            }
            let items = match head.uri.path() {
                "/api/v1/namespaces" => common::namespaces(),
                "/api/v1/services" => [common::services(), vec![large()]].concat(),
                "/apis/discovery.k8s.io/v1/endpointslices" => {
                    [common::slices(), vec![large_slice()]].concat()
                }
                path => panic!("{path} is asked for"),
            };
            Ok(full(&json!({"metadata": {"resourceVersion": "1"}, "items": items})))
        }
    }))
}

fn full(value: &Value) -> Response<Answer> {
    let body = http_body_util::Full::from(value.to_string());
    Response::new(UnsyncBoxBody::new(body))
}

/// A headless service whose addresses fit in no datagram.
fn large() -> Value {
    json!({"metadata": {"namespace": "prod", "name": "large", "resourceVersion": "1"}, "spec": {"clusterIP": "None"}})
}

const LARGE: usize = 200;

fn large_slice() -> Value {
    let endpoints: Vec<Value> =
        (0..LARGE).map(|i| json!({"addresses": [format!("10.9.{}.{}", i / 100, i % 100)]})).collect();
    json!({
        "metadata": {"namespace": "prod", "name": "large-1", "resourceVersion": "1",
                     "labels": {"kubernetes.io/service-name": "large"}},
        "addressType": "IPv4", "endpoints": endpoints, "ports": [],
    })
}

struct Running {
    address: SocketAddr,
    shutdown: CancellationToken,
    served: tokio::task::JoinHandle<krate_dns::Result<()>>,
}

async fn start(upstream: Upstream) -> Running {
    let shutdown = CancellationToken::new();
    let (writes, _) = mpsc::unbounded_channel();
    let informers = Informers::new(api(writes), shutdown.clone());
    let cluster = Cluster::new(&informers);
    cluster.synced().await;
    let config = Config {
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        cluster_domain: "cluster.local".to_owned(),
        upstream,
        service: None,
    };
    let dns = Dns::bind(Arc::new(cluster), &config).await.unwrap();
    let address = dns.addresses()[0];
    let served = tokio::spawn(dns.run(shutdown.clone()));
    Running { address, shutdown, served }
}

impl Running {
    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(30), self.served).await.unwrap().unwrap().unwrap();
    }
}

fn resolver(server: SocketAddr) -> TokioResolver {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = server.port();
        connection
    });
    let server = NameServerConfig::new(server.ip(), true, connections.to_vec());
    let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
    let mut options = ResolverOpts::default();
    options.cache_size = 0;
    Resolver::builder_with_config(config, TokioRuntimeProvider::default())
        .with_options(options)
        .build()
        .unwrap()
}

fn question(name: &str, kind: RecordType, payload: Option<u16>) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.edns = Some(edns);
    }
    message.to_vec().unwrap()
}

async fn ask_udp(server: SocketAddr, name: &str, kind: RecordType, payload: Option<u16>) -> (Message, usize) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let question = question(name, kind, payload);
    let mut buffer = vec![0; 65536];
    // A datagram may be lost even here; it is asked again, as every client does.
    for _ in 0..10 {
        socket.send_to(&question, server).await.unwrap();
        let received = tokio::time::timeout(Duration::from_secs(3), socket.recv_from(&mut buffer)).await;
        if let Ok(Ok((n, _))) = received {
            return (Message::from_vec(&buffer[..n]).unwrap(), n);
        }
    }
    panic!("no answer for {name}");
}

async fn ask_tcp(server: SocketAddr, name: &str, kind: RecordType) -> Message {
    let question = question(name, kind, None);
    let mut stream = TcpStream::connect(server).await.unwrap();
    stream.write_u16(question.len() as u16).await.unwrap();
    stream.write_all(&question).await.unwrap();
    let mut answer = vec![0; usize::from(stream.read_u16().await.unwrap())];
    stream.read_exact(&mut answer).await.unwrap();
    Message::from_vec(&answer).unwrap()
}

fn data(message: &Message) -> Vec<String> {
    let mut data: Vec<String> = message.answers.iter().map(|r| r.data.to_string()).collect();
    data.sort();
    data
}

#[tokio::test]
async fn a_resolver_finds_services() {
    let dns = start(Upstream::Servers(vec![])).await;
    let resolver = resolver(dns.address);
    let found = resolver.lookup_ip("db.prod.svc.cluster.local.").await.unwrap();
    let mut ips: Vec<String> = found.iter().map(|ip| ip.to_string()).collect();
    ips.sort();
    assert!(ips.contains(&"10.0.0.1".to_owned()) && ips.contains(&"10.0.0.2".to_owned()), "{ips:?}");
    let found =
        resolver.lookup("_https._tcp.kubernetes.default.svc.cluster.local.", RecordType::SRV).await.unwrap();
    assert!(matches!(&found.answers()[0].data, RData::SRV(srv) if srv.port == 443), "{found:?}");
    assert!(resolver.lookup_ip("nothing.default.svc.cluster.local.").await.unwrap_err().is_nx_domain());
    dns.stop().await;
}

#[tokio::test]
async fn denials_say_which_zone_denies_and_for_how_long() {
    let dns = start(Upstream::Servers(vec![])).await;
    for (name, kind, code) in [
        ("nothing.default.svc.cluster.local.", RecordType::A, ResponseCode::NXDomain),
        ("kubernetes.default.svc.cluster.local.", RecordType::AAAA, ResponseCode::NoError),
    ] {
        let (answer, _) = ask_udp(dns.address, name, kind, None).await;
        assert_eq!(answer.metadata.response_code, code, "{name}");
        assert!(answer.metadata.authoritative && answer.answers.is_empty());
        let [soa] = &answer.authorities[..] else { panic!("{answer:?}") };
        assert!(matches!(&soa.data, RData::SOA(soa) if soa.minimum == 5), "{soa:?}");
        assert_eq!(soa.name.to_ascii(), "cluster.local.");
    }
    dns.stop().await;
}

#[tokio::test]
async fn what_is_too_large_for_a_datagram_is_cut_and_whole_by_tcp() {
    let dns = start(Upstream::Servers(vec![])).await;
    let name = "large.prod.svc.cluster.local.";
    for (payload, most) in [(None, 512), (Some(1232), 1232), (Some(65535), 1232)] {
        let (answer, size) = ask_udp(dns.address, name, RecordType::A, payload).await;
        assert!(answer.metadata.truncation, "{payload:?}");
        assert!(size <= most, "{payload:?}: {size}");
        assert!(!answer.answers.is_empty() && answer.answers.len() < LARGE);
    }
    let whole = ask_tcp(dns.address, name, RecordType::A).await;
    assert!(!whole.metadata.truncation);
    assert_eq!(whole.answers.len(), LARGE);
    let (small, _) = ask_udp(dns.address, "kubernetes.default.svc.cluster.local.", RecordType::A, None).await;
    assert!(!small.metadata.truncation);
    assert_eq!(data(&small), ["10.96.0.1"]);
    dns.stop().await;
}

#[tokio::test]
async fn other_names_are_asked_upstream_and_refused_when_there_is_none() {
    let upstream = start(Upstream::Servers(vec![])).await;
    // The upstream server has a domain of its own, and here nothing else does: it stands for the world.
    let shutdown = CancellationToken::new();
    let (writes, _) = mpsc::unbounded_channel();
    let cluster = Cluster::new(&Informers::new(api(writes), shutdown.clone()));
    cluster.synced().await;
    let config = Config {
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        cluster_domain: "other.test".to_owned(),
        upstream: Upstream::Servers(vec![upstream.address]),
        service: None,
    };
    let dns = Dns::bind(Arc::new(cluster), &config).await.unwrap();
    let address = dns.addresses()[0];
    let served = tokio::spawn(dns.run(shutdown.clone()));

    let (answer, _) = ask_udp(address, "kubernetes.default.svc.cluster.local.", RecordType::A, None).await;
    assert_eq!(
        (answer.metadata.response_code, data(&answer)),
        (ResponseCode::NoError, vec!["10.96.0.1".to_owned()])
    );
    assert!(!answer.metadata.authoritative && answer.metadata.recursion_available);
    let (answer, _) = ask_udp(address, "nothing.default.svc.cluster.local.", RecordType::A, None).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    // An alias that leads outside is followed there.
    let (answer, _) = ask_udp(address, "inside.prod.svc.other.test.", RecordType::A, None).await;
    assert_eq!(data(&answer), ["10.96.0.1", "kubernetes.default.svc.cluster.local."]);
    let (answer, _) = ask_udp(upstream.address, "www.example.com.", RecordType::A, None).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
    shutdown.cancel();
    served.await.unwrap().unwrap();
    upstream.stop().await;
}

#[tokio::test]
async fn aliases_are_followed_within_the_cluster_and_never_for_ever() {
    let dns = start(Upstream::Servers(vec![])).await;
    let (answer, _) = ask_udp(dns.address, "inside.prod.svc.cluster.local.", RecordType::A, None).await;
    assert_eq!(data(&answer), ["10.96.0.1", "kubernetes.default.svc.cluster.local."]);
    let (answer, _) = ask_udp(dns.address, "outside.prod.svc.cluster.local.", RecordType::A, None).await;
    assert_eq!(data(&answer), ["www.example.com."]);
    assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
    let (answer, _) = ask_udp(dns.address, "loop.prod.svc.cluster.local.", RecordType::A, None).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
    assert!(data(&answer).iter().all(|d| d == "loop.prod.svc.cluster.local."));
    dns.stop().await;
}

#[tokio::test]
async fn the_service_and_its_slice_are_made() {
    let shutdown = CancellationToken::new();
    let (writes, mut written) = mpsc::unbounded_channel();
    let informers = Informers::new(api(writes), shutdown.clone());
    let config = Config {
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        cluster_domain: "cluster.local".to_owned(),
        upstream: Upstream::Servers(vec![]),
        service: Some(KubeDns {
            cluster_ip: "10.96.0.10".parse().unwrap(),
            endpoint: Some("192.0.2.7:1053".parse().unwrap()),
            node: "one".to_owned(),
        }),
    };
    let stop = shutdown.clone();
    let running = tokio::spawn(async move { krate_dns::run(&informers, config, stop).await });
    let mut next = async || {
        tokio::time::timeout(Duration::from_secs(30), written.recv()).await.expect("in time").unwrap()
    };
    let (method, path, service) = next().await;
    assert_eq!((method, &*path), (Method::POST, "/api/v1/namespaces/kube-system/services"));
    assert_eq!(service["metadata"]["labels"]["k8s-app"], "kube-dns");
    assert_eq!(service["spec"]["clusterIP"], "10.96.0.10");
    assert_eq!(service["spec"].get("selector"), None);
    let ports: Vec<_> = service["spec"]["ports"].as_array().unwrap().iter().map(|p| &p["name"]).collect();
    assert_eq!(ports, ["dns", "dns-tcp"]);

    let (method, path, slice) = next().await;
    let slices = "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices";
    assert_eq!((method, &*path), (Method::POST, slices));
    assert_eq!(slice["metadata"]["labels"]["kubernetes.io/service-name"], "kube-dns");
    assert_eq!(slice["endpoints"][0]["addresses"], json!(["192.0.2.7"]));
    assert_eq!(slice["ports"][1], json!({"name": "dns-tcp", "protocol": "TCP", "port": 1053}));
    shutdown.cancel();
    running.await.unwrap().unwrap();
}
