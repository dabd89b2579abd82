//! Services as clients know them: on a node with pods, in the real kernel of a host of its own.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use krate_network::PodNetwork;
use krate_nft::{Batch, Family, conntrack, set_names};
use krate_proxy::{Changes, Config, Nftables, PortName, Protocol, Rules, ServiceMap, ServicePort};
use krate_testkit::{Host, Namespace, Net, available};

const PATIENCE: Duration = Duration::from_secs(5);
const CLUSTER_IP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10));
const EXTERNAL_IP: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10));
const BALANCER_IP: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 20));
const NODE_PORT: u16 = 30080;
const UDP: u8 = 17;

/// A node with pods that serve, a pod that asks, another host that asks, and the node's rules.
struct World {
    net: Net,
    node: Host,
    other: Host,
    servers: Vec<Pod>,
    client: Pod,
    rules: Nftables,
    known: ServiceMap,
    state: tempfile::TempDir,
}

struct Pod {
    namespace: Namespace,
    address: IpAddr,
}

/// What a server said: its own number, and by which address it saw who asked.
type Answer = (usize, IpAddr);

impl World {
    fn new(servers: usize) -> Self {
        let net = Net::new().unwrap();
        let (node, other) = (Host::on(&net).unwrap(), Host::on(&net).unwrap());
        let state = tempfile::tempdir().unwrap();
        let namespaces: Vec<_> = (0..=servers).map(|_| Namespace::new().unwrap()).collect();
        let addresses = node.block_on(async || {
            let network = PodNetwork::new(network(&state)).await.unwrap();
            let mut addresses = Vec::new();
            for (number, namespace) in namespaces.iter().enumerate() {
                let sandbox = format!("pod-{number}");
                addresses.push(network.attach(&sandbox, &namespace.path(), &[]).await.unwrap()[0]);
            }
            addresses
        });
        let mut pods: Vec<Pod> = namespaces
            .into_iter()
            .zip(addresses)
            .map(|(namespace, address)| Pod { namespace, address })
            .collect();
        let client = pods.pop().unwrap();
        for (number, pod) in pods.iter().enumerate() {
            serve(&pod.namespace, number);
        }
        // What the world sends to a Service's external addresses reaches the node.
        for address in [EXTERNAL_IP, BALANCER_IP] {
            let route = format!("{address}/32");
            let via = node.address().to_string();
            assert!(
                other.command("ip").args(["route", "add", &route, "via", &via]).status().unwrap().success()
            );
        }
        let rules = Nftables::new(&config());
        Self { net, node, other, servers: pods, client, rules, known: ServiceMap::new(), state }
    }

    fn endpoint(&self, server: usize) -> SocketAddr {
        SocketAddr::new(self.servers[server].address, 8080)
    }

    fn endpoints(&self) -> Vec<SocketAddr> {
        (0..self.servers.len()).map(|server| self.endpoint(server)).collect()
    }

    /// Tells the rules what there is now, and what of it changed.
    fn sync(&mut self, ports: Vec<(PortName, ServicePort)>) {
        let desired: ServiceMap = ports.into_iter().collect();
        let names = desired.keys().chain(self.known.keys());
        let changed: Changes =
            names.filter(|name| desired.get(*name) != self.known.get(*name)).cloned().collect();
        let rules = &mut self.rules;
        self.node.run(|| rules.sync(&desired, &changed).unwrap());
        self.known = desired;
    }
}

/// How often each server answers, of many times.
fn servers_seen(from: &Namespace, at: SocketAddr) -> BTreeMap<usize, usize> {
    let mut seen = BTreeMap::new();
    for _ in 0..60 {
        *seen.entry(from.run(|| ask(at)).unwrap().0).or_default() += 1;
    }
    seen
}

fn network(state: &tempfile::TempDir) -> krate_network::Config {
    krate_network::Config {
        instance: "test1".into(),
        pod_cidr: "10.244.3.0/24".parse().unwrap(),
        cluster_cidr: "10.244.0.0/16".parse().unwrap(),
        service_cidr: Some("10.96.0.0/16".parse().unwrap()),
        mtu: 1500,
        state_dir: state.path().to_owned(),
    }
}

fn config() -> Config {
    Config {
        node_name: "node".into(),
        instance: "test1".into(),
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
        ..Config::default()
    }
}

/// Answers TCP with the server's number and the address that it sees, and UDP with the number.
fn serve(namespace: &Namespace, number: usize) {
    let listener = namespace.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080)).unwrap());
    std::thread::spawn(move || {
        while let Ok((mut stream, from)) = listener.accept() {
            let _ = stream.write_all(format!("{number} {}", from.ip()).as_bytes());
        }
    });
    let socket = namespace.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 8080)).unwrap());
    std::thread::spawn(move || {
        while let Ok((_, from)) = socket.recv_from(&mut [0; 16]) {
            let _ = socket.send_to(&[number as u8], from);
        }
    });
}

fn ask(at: SocketAddr) -> std::io::Result<Answer> {
    ask_within(at, PATIENCE)
}

fn ask_within(at: SocketAddr, patience: Duration) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&at, patience)?;
    stream.set_read_timeout(Some(patience))?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    let (number, address) = said.split_once(' ').unwrap();
    Ok((number.parse().unwrap(), address.parse().unwrap()))
}

/// Nothing comes back: neither an answer nor a refusal.
fn is_ignored(from: &Namespace, at: SocketAddr) -> bool {
    let outcome = from.run(|| ask_within(at, Duration::from_millis(400)));
    matches!(outcome, Err(error) if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock))
}

fn is_refused(from: &Namespace, at: SocketAddr) -> bool {
    matches!(from.run(|| ask(at)), Err(error) if error.kind() == ErrorKind::ConnectionRefused)
}

fn name(service: &str, protocol: Protocol) -> PortName {
    PortName { namespace: "ns".into(), service: service.into(), protocol, port: String::new() }
}

fn web(endpoints: Vec<SocketAddr>) -> (PortName, ServicePort) {
    let port = ServicePort {
        cluster_ips: vec![CLUSTER_IP],
        port: 80,
        node_port: None,
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: Vec::new(),
        affinity: None,
        internal_local: false,
        external_local: false,
        local: endpoints.clone(),
        cluster: endpoints,
    };
    (name("web", Protocol::Tcp), port)
}

fn with(mut port: (PortName, ServicePort), change: impl FnOnce(&mut ServicePort)) -> (PortName, ServicePort) {
    change(&mut port.1);
    port
}

const SERVICE: SocketAddr = SocketAddr::new(CLUSTER_IP, 80);

#[test]
fn a_cluster_address_is_answered_by_each_endpoint_in_turn() {
    if !available() {
        return;
    }
    let mut world = World::new(3);
    world.sync(vec![web(world.endpoints())]);
    for from in [&world.client.namespace, world.node.namespace()] {
        assert_eq!(servers_seen(from, SERVICE).len(), 3);
    }
    // A pod is seen as itself, also by its neighbour; the node is of the pod network.
    assert_eq!(world.client.namespace.run(|| ask(SERVICE)).unwrap().1, world.client.address);
    assert_eq!(world.node.run(|| ask(SERVICE)).unwrap().1, IpAddr::from([10, 244, 3, 1]));

    // One that asks its own Service and is led to itself.
    let lone = world.endpoint(0);
    world.sync(vec![web(vec![lone])]);
    let (server, seen) = world.servers[0].namespace.run(|| ask(SERVICE)).unwrap();
    assert_eq!(server, 0);
    assert_ne!(seen, lone.ip(), "or the answer would stay within the pod");

    // Endpoints come and go.
    world.sync(vec![web(vec![world.endpoint(1), world.endpoint(2)])]);
    let seen = servers_seen(&world.client.namespace, SERVICE);
    assert_eq!(seen.keys().copied().collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn what_nobody_serves_is_refused_or_ends_here() {
    if !available() {
        return;
    }
    let mut world = World::new(1);
    let sets = |world: &World| world.node.run(|| set_names(Family::Ipv4, "krate-proxy-test1").unwrap());
    assert!(sets(&world).is_empty(), "there is no table yet");
    world.sync(Vec::new());
    let without = sets(&world);
    world.sync(vec![with(web(Vec::new()), |port| port.node_port = Some(NODE_PORT))]);
    let node_port = SocketAddr::new(world.node.address(), NODE_PORT);
    for from in [&world.client.namespace, world.node.namespace()] {
        assert!(is_refused(from, SERVICE));
        assert!(
            is_refused(from, SocketAddr::new(CLUSTER_IP, 81)),
            "an address of a Service, but not its port"
        );
        assert!(is_ignored(from, SocketAddr::new([10, 96, 9, 9].into(), 80)), "nobody's address");
    }
    assert!(is_refused(world.other.namespace(), node_port));

    // Endpoints elsewhere, and a policy that wants them here.
    let only_elsewhere = |port: &mut ServicePort| {
        port.local.clear();
        port.internal_local = true;
    };
    world.sync(vec![with(web(world.endpoints()), only_elsewhere)]);
    assert!(is_ignored(&world.client.namespace, SERVICE));
    world.sync(vec![with(web(world.endpoints()), |port| port.affinity = Some(Duration::from_mins(1)))]);
    assert_eq!(world.client.namespace.run(|| ask(SERVICE)).unwrap().0, 0, "alive again");
    assert!(sets(&world).len() > without.len());
    world.sync(Vec::new());
    assert!(is_ignored(&world.client.namespace, SERVICE), "nobody's address again");
    assert_eq!(sets(&world), without, "no map of a Service is left");
}

#[test]
fn who_comes_from_without_is_led_in() {
    if !available() {
        return;
    }
    let mut world = World::new(2);
    let reachable = |port: &mut ServicePort| {
        port.node_port = Some(NODE_PORT);
        port.external_ips = vec![EXTERNAL_IP];
        port.load_balancer_ips = vec![BALANCER_IP];
    };
    world.sync(vec![with(web(world.endpoints()), reachable)]);
    let node_port = SocketAddr::new(world.node.address(), NODE_PORT);
    let others = [node_port, SocketAddr::new(EXTERNAL_IP, 80), SocketAddr::new(BALANCER_IP, 80)];
    for at in others {
        assert_eq!(servers_seen(world.other.namespace(), at).len(), 2, "{at}");
        let seen = world.other.run(|| ask(at)).unwrap().1;
        assert_ne!(seen, world.other.address(), "{at}: endpoints may be on other nodes");
    }
    assert_eq!(servers_seen(&world.client.namespace, node_port).len(), 2);
    assert_eq!(servers_seen(world.node.namespace(), node_port).len(), 2);

    // Only this node's endpoints, which see who asks.
    let (first, second) = (world.endpoint(0), world.endpoint(1));
    let local = |port: &mut ServicePort| {
        reachable(port);
        port.external_local = true;
        port.local = vec![first];
    };
    world.sync(vec![with(web(vec![first, second]), local)]);
    for at in others {
        let seen = servers_seen(world.other.namespace(), at);
        assert_eq!(seen.keys().copied().collect::<Vec<_>>(), [0], "{at}");
        assert_eq!(world.other.run(|| ask(at)).unwrap().1, world.other.address(), "{at}");
    }
    assert_eq!(servers_seen(&world.client.namespace, node_port).len(), 2, "a pod is no stranger");
    assert_eq!(servers_seen(world.node.namespace(), node_port).len(), 2, "nor is the node");

    // None of them here. The node would send what it does not translate on its way out.
    world.node.default_route(&world.net).unwrap();
    let nowhere_here = |port: &mut ServicePort| {
        local(port);
        port.local.clear();
    };
    world.sync(vec![with(web(vec![first, second]), nowhere_here)]);
    for at in others {
        assert!(is_ignored(world.other.namespace(), at), "{at}");
    }
    assert_eq!(servers_seen(&world.client.namespace, node_port).len(), 2);

    // Not everyone may use the load balancer's address; all others are open.
    let guarded = |ranges: &[&str]| {
        let ranges: Vec<_> = ranges.iter().map(|range| range.parse().unwrap()).collect();
        move |port: &mut ServicePort| {
            reachable(port);
            port.source_ranges = ranges;
        }
    };
    world.sync(vec![with(web(vec![first, second]), guarded(&["203.0.113.0/24"]))]);
    assert!(is_ignored(world.other.namespace(), others[2]));
    assert!(world.other.run(|| ask(others[0])).is_ok());
    world.sync(vec![with(web(vec![first, second]), guarded(&["203.0.113.0/24", "10.200.0.0/24"]))]);
    assert!(world.other.run(|| ask(others[2])).is_ok());
}

#[test]
fn an_endpoint_on_another_node_is_reached() {
    if !available() {
        return;
    }
    let mut world = World::new(1);
    let far_pod = Namespace::new().unwrap();
    serve(&far_pod, 9);
    let far_state = tempfile::tempdir().unwrap();
    let far_range = "10.244.4.0/24".parse().unwrap();
    let (near, far) = (v4(world.node.address()), Host::on(&world.net).unwrap());
    let address = far.block_on(async || {
        let config = krate_network::Config { pod_cidr: far_range, ..network(&far_state) };
        let network = PodNetwork::new(config).await.unwrap();
        network.set_routes(&BTreeMap::from([("10.244.3.0/24".parse().unwrap(), near)])).await.unwrap();
        network.attach("pod", &far_pod.path(), &[]).await.unwrap()[0]
    });
    let state = &world.state;
    world.node.block_on(async || {
        let network = PodNetwork::new(network(state)).await.unwrap();
        network.set_routes(&BTreeMap::from([(far_range, v4(far.address()))])).await.unwrap();
    });
    let far_only = |port: &mut ServicePort| {
        port.node_port = Some(NODE_PORT);
        port.local.clear();
    };
    world.sync(vec![with(web(vec![SocketAddr::new(address, 8080)]), far_only)]);
    assert_eq!(world.client.namespace.run(|| ask(SERVICE)).unwrap(), (9, world.client.address));
    assert_eq!(world.node.run(|| ask(SERVICE)).unwrap(), (9, IpAddr::from([10, 244, 3, 1])));
    let node_port = SocketAddr::new(world.node.address(), NODE_PORT);
    assert_eq!(world.other.run(|| ask(node_port)).unwrap(), (9, world.node.address()));
}

fn v4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(address) => address,
        IpAddr::V6(address) => panic!("{address} is not of this net"),
    }
}

#[test]
fn a_client_keeps_its_endpoint_while_that_is_one() {
    if !available() {
        return;
    }
    let mut world = World::new(4);
    let sticky = |port: &mut ServicePort| port.affinity = Some(Duration::from_mins(10));
    world.sync(vec![with(web(world.endpoints()), sticky)]);
    let seen = servers_seen(&world.client.namespace, SERVICE);
    assert_eq!(seen.len(), 1);
    let chosen = *seen.keys().next().unwrap();

    let mut others = world.endpoints();
    others.remove((chosen + 1) % 4);
    world.sync(vec![with(web(others), sticky)]);
    let seen = servers_seen(&world.client.namespace, SERVICE);
    assert_eq!(seen.keys().copied().collect::<Vec<_>>(), [chosen], "another one went");

    let mut others = world.endpoints();
    others.remove(chosen);
    world.sync(vec![with(web(others), sticky)]);
    let seen = servers_seen(&world.client.namespace, SERVICE);
    assert_eq!(seen.len(), 1);
    assert!(!seen.contains_key(&chosen), "its own went");

    let shorter = |port: &mut ServicePort| port.affinity = Some(Duration::from_mins(5));
    world.sync(vec![with(web(world.endpoints()), shorter)]);
    assert_eq!(servers_seen(&world.client.namespace, SERVICE).len(), 1);
    world.sync(vec![web(world.endpoints())]);
    assert_eq!(servers_seen(&world.client.namespace, SERVICE).len(), 4);
}

#[test]
fn a_datagram_client_is_led_away_from_an_endpoint_that_is_gone() {
    if !available() {
        return;
    }
    let mut world = World::new(2);
    let dns = |endpoints| {
        let (_, port) = web(endpoints);
        (name("dns", Protocol::Udp), port)
    };
    let (first, second) = (world.endpoint(0), world.endpoint(1));
    world.sync(vec![dns(vec![first])]);
    // One socket, so one connection in the eyes of the kernel.
    let socket = world.client.namespace.run(|| UdpSocket::bind((world.client.address, 0)).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.connect(SERVICE).unwrap();
    let ask = || -> std::io::Result<u8> {
        let mut answer = [0];
        socket.send(b"?")?;
        socket.recv(&mut answer).map(|_| answer[0])
    };
    assert_eq!(ask().unwrap(), 0);
    world.sync(vec![dns(vec![second])]);
    assert_eq!(ask().unwrap(), 1);
    world.sync(vec![dns(Vec::new())]);
    assert_eq!(ask().unwrap_err().kind(), ErrorKind::ConnectionRefused);
    world.sync(vec![dns(vec![first, second])]);
    ask().unwrap();
    let flows = |world: &World| {
        let flows = world.node.run(|| conntrack::flows(Family::Ipv4, UDP).unwrap());
        flows.iter().filter(|flow| flow.destination == SERVICE).count()
    };
    assert_eq!(flows(&world), 1);
    world.sync(Vec::new());
    assert_eq!(flows(&world), 0, "the Service went");
}

#[test]
fn a_change_leaves_all_others_alone_and_a_new_process_takes_over() {
    if !available() {
        return;
    }
    let mut world = World::new(3);
    let neighbour = |endpoint| {
        let (_, port) = web(vec![endpoint]);
        let shared = vec![EXTERNAL_IP];
        (
            name("zebra", Protocol::Tcp),
            ServicePort { cluster_ips: vec![[10, 96, 0, 11].into()], external_ips: shared, ..port },
        )
    };
    let at_neighbour = SocketAddr::new([10, 96, 0, 11].into(), 80);
    let at_shared = SocketAddr::new(EXTERNAL_IP, 80);
    let (first, second) = (world.endpoint(0), world.endpoint(1));
    // Two Services that claim one external address, and share an endpoint.
    let claims = |port: &mut ServicePort| port.external_ips = vec![EXTERNAL_IP];
    world.sync(vec![with(web(vec![first]), claims), neighbour(second)]);
    assert_eq!(world.other.run(|| ask(at_shared)).unwrap().0, 0, "the first by name has it");
    world.sync(vec![with(web(vec![second]), claims), neighbour(second)]);
    assert_eq!(world.client.namespace.run(|| ask(at_neighbour)).unwrap().0, 1);
    world.sync(vec![neighbour(second)]);
    assert_eq!(world.other.run(|| ask(at_shared)).unwrap().0, 1, "the other one has it now");
    let itself = world.servers[1].namespace.run(|| ask(at_neighbour)).unwrap();
    assert_eq!(itself.0, 1, "its endpoint is still known as one");

    // Someone takes the table away: the change that meets nothing says so, and the next one makes all of it anew.
    let mut batch = Batch::new(Family::Ipv4, "krate-proxy-test1");
    batch.delete_table();
    world.node.run(|| batch.commit().unwrap());
    let desired: ServiceMap = [web(vec![first])].into_iter().chain([neighbour(second)]).collect();
    let changed = Changes::from([name("web", Protocol::Tcp)]);
    let rules = &mut world.rules;
    world.node.run(|| {
        assert!(rules.sync(&desired, &changed).is_err());
        rules.sync(&desired, &Changes::new()).unwrap();
    });
    assert_eq!(world.client.namespace.run(|| ask(SERVICE)).unwrap().0, 0);
    assert_eq!(world.client.namespace.run(|| ask(at_neighbour)).unwrap().0, 1);

    // A process that knows nothing of the one before it.
    world.rules = Nftables::new(&config());
    world.known.clear();
    world.sync(vec![web(vec![second])]);
    assert_eq!(world.client.namespace.run(|| ask(SERVICE)).unwrap().0, 1);
    assert!(is_ignored(&world.client.namespace, at_neighbour));
}

#[test]
fn the_other_address_family_is_served_alike() {
    if !available() {
        return;
    }
    let net = Net::of("fd00:200::/64".parse().unwrap()).unwrap();
    let node = Host::on(&net).unwrap();
    node.default_route(&net).unwrap();
    let listener = node.run(|| TcpListener::bind((node.address(), 8080)).unwrap());
    std::thread::spawn(move || {
        while let Ok((mut stream, from)) = listener.accept() {
            let _ = stream.write_all(format!("7 {}", from.ip()).as_bytes());
        }
    });
    let ranges = |texts: [&str; 2]| texts.iter().map(|text| text.parse().unwrap()).collect();
    let both = Config {
        cluster_cidrs: ranges(["10.244.0.0/16", "fd00:244::/56"]),
        service_cidrs: ranges(["10.96.0.0/16", "fd00:96::/112"]),
        ..config()
    };
    let mut rules = Nftables::new(&both);
    let address: IpAddr = "fd00:96::a".parse().unwrap();
    let port = |endpoints: Vec<SocketAddr>| {
        with(web(endpoints), |port| {
            port.cluster_ips.push(address);
            port.node_port = Some(NODE_PORT);
            port.external_local = true;
            port.load_balancer_ips = vec!["fd00:97::1".parse().unwrap(), BALANCER_IP];
            port.source_ranges = vec!["fd00:200::/64".parse().unwrap()];
            port.affinity = Some(Duration::from_mins(10));
        })
    };
    let mut sync = |port| {
        let desired = ServiceMap::from([port]);
        let changed = desired.keys().cloned().collect();
        node.run(|| rules.sync(&desired, &changed).unwrap());
    };
    let endpoint = SocketAddr::new(node.address(), 8080);
    sync(port(vec![endpoint, SocketAddr::new([10, 244, 3, 9].into(), 8080)]));
    for _ in 0..5 {
        assert_eq!(node.run(|| ask(SocketAddr::new(address, 80))).unwrap().0, 7);
    }
    sync(port(Vec::new()));
    assert!(is_refused(node.namespace(), SocketAddr::new(address, 80)));
    sync(port(vec![endpoint]));
    assert_eq!(node.run(|| ask(SocketAddr::new(address, 80))).unwrap().0, 7);
}

#[test]
fn nothing_is_left_after_cleaning_up() {
    if !available() {
        return;
    }
    let mut world = World::new(1);
    let sticky = |port: &mut ServicePort| port.affinity = Some(Duration::from_mins(10));
    world.sync(vec![with(web(world.endpoints()), sticky)]);
    let exists = |world: &World| {
        let mut batch = Batch::new(Family::Ipv4, "krate-proxy-test1");
        batch.add_chain("probe").delete_chain("probe");
        world.node.run(|| batch.commit().is_ok())
    };
    assert!(exists(&world));
    let rules = &mut world.rules;
    world.node.run(|| {
        rules.clean_up().unwrap();
        rules.clean_up().unwrap();
    });
    assert!(!exists(&world));
    let state = &world.state;
    world.node.block_on(async || PodNetwork::new(network(state)).await.unwrap().clean_up().await.unwrap());
    let interfaces = world.node.run(|| std::fs::read_to_string("/proc/thread-self/net/dev").unwrap());
    assert_eq!(interfaces.lines().skip(2).count(), 2, "lo and eth0 alone: {interfaces}");
}
