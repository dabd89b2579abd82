//! Pods of a node reach each other, the node and the world, through the real kernel of a host of its own.

use std::collections::{BTreeMap, HashSet};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use krate_network::{Config, Error, HostPort, PodNetwork, Protocol, clean_up};
use krate_nft::{Batch, Family};
use krate_testkit::{Host, Namespace, Net, available};

const PATIENCE: Duration = Duration::from_secs(5);

fn config(state_dir: &Path) -> Config {
    Config {
        instance: "test1".into(),
        pod_cidr: "10.244.3.0/24".parse().unwrap(),
        cluster_cidr: "10.244.0.0/16".parse().unwrap(),
        service_cidr: Some("10.96.0.0/16".parse().unwrap()),
        mtu: 1500,
        state_dir: state_dir.join("network"),
    }
}

/// Two hosts on a net, one of them the node; and a directory for its state.
struct World {
    node: Host,
    other: Host,
    state: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let net = Net::new().unwrap();
        let (node, other) = (Host::on(&net).unwrap(), Host::on(&net).unwrap());
        Self { node, other, state: tempfile::tempdir().unwrap() }
    }

    /// Runs `work` on the node with the network made, or taken over.
    fn with<T: Send>(&self, work: impl AsyncFnOnce(PodNetwork) -> T + Send) -> T {
        self.node.block_on(async || {
            let network = PodNetwork::new(config(self.state.path())).await.unwrap();
            work(network).await
        })
    }

    fn pod(&self, sandbox: &str, ports: &[HostPort]) -> (Namespace, IpAddr) {
        let pod = Namespace::new().unwrap();
        let addresses = self.with(async |network| network.attach(sandbox, &pod.path(), ports).await.unwrap());
        (pod, addresses[0])
    }
}

/// A server that tells everyone by which address it sees them.
fn mirror(namespace: &Namespace, port: u16) {
    let listener = namespace.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
    std::thread::spawn(move || {
        while let Ok((mut stream, from)) = listener.accept() {
            let _ = stream.write_all(from.ip().to_string().as_bytes());
        }
    });
}

fn seen_by(at: SocketAddr) -> std::io::Result<IpAddr> {
    let mut stream = TcpStream::connect_timeout(&at, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    Ok(said.parse().unwrap())
}

fn interfaces(host: &Host) -> Vec<String> {
    let table = host.run(|| std::fs::read_to_string("/proc/thread-self/net/dev").unwrap());
    table.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect()
}

fn routes(host: &Host) -> usize {
    host.run(|| std::fs::read_to_string("/proc/thread-self/net/route").unwrap()).lines().count()
}

fn table_exists(host: &Host) -> bool {
    let mut batch = Batch::new(Family::Ipv4, "krate-network-test1");
    // Nothing is changed: the second deletion is refused, and with it the first.
    batch.delete_table().delete_table();
    let error = host.run(|| batch.commit().unwrap_err().to_string());
    assert!(error.contains("delete the table"), "{error}");
    let mut batch = Batch::new(Family::Ipv4, "krate-network-test1");
    batch.add_chain("probe").delete_chain("probe");
    host.run(|| batch.commit().is_ok())
}

#[test]
fn pods_reach_each_other_the_node_and_the_world() {
    if !available() {
        return;
    }
    let world = World::new();
    let ((one, first), (two, second)) = (world.pod("one", &[]), world.pod("two", &[]));
    assert_eq!([first.to_string(), second.to_string()], ["10.244.3.2", "10.244.3.3"]);
    let gateway = IpAddr::from([10, 244, 3, 1]);
    for namespace in [&one, &two, world.node.namespace(), world.other.namespace()] {
        mirror(namespace, 80);
    }
    assert_eq!(
        one.run(|| seen_by((second, 80).into())).unwrap(),
        first,
        "neighbours see each other's address"
    );
    assert_eq!(two.run(|| seen_by((gateway, 80).into())).unwrap(), second, "the node sees a pod's address");
    assert_eq!(
        world.node.run(|| seen_by((first, 80).into())).unwrap(),
        gateway,
        "a pod sees the node's gateway"
    );
    let node = world.node.address();
    assert_eq!(one.run(|| seen_by((node, 80).into())).unwrap(), first);
    assert_eq!(
        one.run(|| seen_by((world.other.address(), 80).into())).unwrap(),
        node,
        "who is not of the cluster sees the node"
    );
    assert_eq!(one.run(|| seen_by(([127, 0, 0, 1], 80).into())).unwrap(), IpAddr::from([127, 0, 0, 1]));
}

#[test]
fn what_was_made_is_taken_over_swept_and_cleaned_up() {
    if !available() {
        return;
    }
    let world = World::new();
    let (interfaces_before, routes_before) = (interfaces(&world.node), routes(&world.node));
    let (one, first) = world.pod("one", &[]);
    mirror(&one, 80);
    let held = world.node.run(|| TcpStream::connect_timeout(&(first, 80).into(), PATIENCE).unwrap());

    // The process that made it is gone; another goes on, and asks for the same again.
    let again = world.with(async |network| network.attach("one", &one.path(), &[]).await.unwrap());
    assert_eq!(again, [first]);
    let mut said = String::new();
    (&held).read_to_string(&mut said).unwrap();
    assert_eq!(said, "10.244.3.1", "the connection did not break");

    // A sandbox that died without a word, and one whose lease was lost.
    let (two, _) = world.pod("two", &[]);
    let (three, _) = world.pod("three", &[]);
    std::fs::remove_file(world.state.path().join("network/leases/three")).unwrap();
    assert_eq!(interfaces(&world.node).len(), interfaces_before.len() + 4);
    drop(two);
    let young = Namespace::new().unwrap();
    world.with(async |network| {
        network.attach("young", &young.path(), &[]).await.unwrap();
        network.sweep(&HashSet::from(["one".to_owned()])).await.unwrap();
        assert!(network.lease("young").is_some(), "who came since is not in the list, and stays");
        network.detach("young").await.unwrap();
    });
    assert_eq!(interfaces(&world.node).len(), interfaces_before.len() + 2);
    assert!(three.run(|| seen_by((first, 80).into())).is_err());
    assert_eq!(world.node.run(|| seen_by((first, 80).into())).unwrap().to_string(), "10.244.3.1");

    world.with(async |network| {
        network.detach("one").await.unwrap();
        network.detach("one").await.unwrap();
        network.detach("never").await.unwrap();
    });
    assert!(table_exists(&world.node));
    world.with(async |network| network.attach("four", &one.path(), &[]).await.unwrap());
    world.with(async |network| network.clean_up().await.unwrap());
    assert_eq!(interfaces(&world.node), interfaces_before);
    assert_eq!(routes(&world.node), routes_before);
    assert!(!table_exists(&world.node));
    assert!(!world.state.path().join("network").exists());
    // Also when there is nothing.
    world.node.block_on(async || clean_up("test1", &world.state.path().join("network")).await.unwrap());
}

#[test]
fn ports_of_the_node_lead_to_pods() {
    if !available() {
        return;
    }
    let world = World::new();
    let node = world.node.address();
    let IpAddr::V4(node_v4) = node else { unreachable!("the net is IPv4") };
    let port = |host_ip, host_port| HostPort { protocol: Protocol::Tcp, host_ip, host_port, pod_port: 80 };
    let udp = HostPort { protocol: Protocol::Udp, host_ip: None, host_port: 5300, pod_port: 53 };
    let (one, first) = world.pod("one", &[port(None, 8080), udp]);
    let (two, _) = world.pod("two", &[port(Some(node_v4), 8081), port(Some([10, 9, 9, 9].into()), 8082)]);
    mirror(&one, 80);
    mirror(&two, 80);
    let other = world.other.address();
    let ask = |namespace: &Namespace, port| namespace.run(|| seen_by((node, port).into()));
    assert_eq!(ask(world.other.namespace(), 8080).unwrap(), other, "the pod sees who asks");
    assert_eq!(ask(world.other.namespace(), 8081).unwrap(), other);
    assert!(ask(world.other.namespace(), 8082).is_err(), "that is a port of another address");
    assert_eq!(ask(world.node.namespace(), 8080).unwrap(), node);
    assert_eq!(ask(&two, 8080).unwrap().to_string(), "10.244.3.3");
    assert_eq!(ask(&one, 8080).unwrap(), node, "a pod that asks itself is asked by the node");

    let server = one.run(|| UdpSocket::bind((first, 53)).unwrap());
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let client = world.other.run(|| UdpSocket::bind((other, 0)).unwrap());
    client.send_to(b"?", (node, 5300)).unwrap();
    assert_eq!(server.recv_from(&mut [0]).unwrap().1, client.local_addr().unwrap());

    // A port that is taken: the attempt leaves nothing, and the one who has it keeps it.
    let late = Namespace::new().unwrap();
    let before = interfaces(&world.node);
    let refused = world.with(async |network| {
        let refused = network.attach("late", &late.path(), &[port(None, 8080)]).await;
        assert_eq!(network.lease("late"), None);
        refused
    });
    assert!(matches!(refused, Err(Error::Rules(_))), "{refused:?}");
    assert_eq!(interfaces(&world.node), before);
    assert_eq!(ask(world.other.namespace(), 8080).unwrap(), other);

    world.with(async |network| network.detach("one").await.unwrap());
    assert!(ask(world.other.namespace(), 8080).is_err());
    world.with(async |network| network.attach("late", &late.path(), &[port(None, 8080)]).await.unwrap());
    mirror(&late, 80);
    assert_eq!(ask(world.other.namespace(), 8080).unwrap(), other);
}

#[test]
fn pods_of_other_nodes_are_reached_by_their_nodes() {
    if !available() {
        return;
    }
    let world = World::new();
    let (near_pod, near) = world.pod("one", &[]);
    let far_pod = Namespace::new().unwrap();
    mirror(&far_pod, 80);
    let v4 = |host: &Host| match host.address() {
        IpAddr::V4(address) => address,
        IpAddr::V6(address) => panic!("{address} is not of this net"),
    };
    let (near_range, far_range) = ("10.244.3.0/24".parse().unwrap(), "10.244.4.0/24".parse().unwrap());
    let far_state = world.state.path().join("far");
    let far_config = Config { pod_cidr: far_range, ..config(&far_state) };
    let (node, other) = (v4(&world.node), v4(&world.other));
    let far = world.other.block_on(async || {
        std::fs::create_dir(&far_state).unwrap();
        let network = PodNetwork::new(far_config).await.unwrap();
        network.set_routes(&BTreeMap::from([(near_range, node)])).await.unwrap();
        network.attach("two", &far_pod.path(), &[]).await.unwrap()[0]
    });
    let before = routes(&world.node);
    let ask = || near_pod.run(|| seen_by((far, 80).into()));
    assert!(ask().is_err());
    // A node that moved, then where it is now; and the same once more.
    for (way, count) in [([10, 200, 0, 99].into(), 1), (other, 1), (other, 1)] {
        let elsewhere = "10.244.9.0/24".parse().unwrap();
        world.with(async |network| {
            network.set_routes(&BTreeMap::from([(far_range, way), (elsewhere, way)])).await.unwrap();
            network.set_routes(&BTreeMap::from([(far_range, way)])).await.unwrap();
        });
        assert_eq!(routes(&world.node), before + count);
    }
    assert_eq!(ask().unwrap(), near, "pods see each other's address across nodes");
    world.with(async |network| network.clean_up().await.unwrap());
    let table = world.node.run(|| std::fs::read_to_string("/proc/thread-self/net/route").unwrap());
    assert_eq!(table.lines().count(), 2, "the net's own route alone is left: {table}");
}

#[test]
fn leases_of_before_the_machine_was_started_anew_are_free() {
    if !available() {
        return;
    }
    let mut world = World::new();
    let port = [HostPort { protocol: Protocol::Tcp, host_ip: None, host_port: 80, pod_port: 80 }];
    let _one = world.pod("one", &port);
    assert!(world.state.path().join("network/leases/one").exists());
    world.node = World::new().node;
    world.with(async |network| assert_eq!(network.lease("one"), None));
    assert!(!world.state.path().join("network/leases/one").exists());
    world.pod("two", &port);
}

#[test]
fn two_networks_of_one_machine_do_not_meddle() {
    if !available() {
        return;
    }
    let world = World::new();
    let (one, first) = world.pod("one", &[]);
    mirror(&one, 80);
    let before = interfaces(&world.node);
    world.node.block_on(async || {
        let neighbour = Config {
            instance: "test".into(),
            pod_cidr: "10.245.0.0/24".parse().unwrap(),
            cluster_cidr: "10.245.0.0/16".parse().unwrap(),
            service_cidr: None,
            state_dir: world.state.path().join("neighbour"),
            ..config(world.state.path())
        };
        let neighbour = PodNetwork::new(neighbour).await.unwrap();
        let pod = Namespace::new().unwrap();
        neighbour.attach("one", &pod.path(), &[]).await.unwrap();
        neighbour.sweep(&HashSet::new()).await.unwrap();
        neighbour.clean_up().await.unwrap();
    });
    assert_eq!(interfaces(&world.node), before);
    assert!(table_exists(&world.node));
    assert_eq!(world.node.run(|| seen_by((first, 80).into())).unwrap().to_string(), "10.244.3.1");
}

#[test]
fn a_range_that_another_network_of_the_machine_has_is_refused() {
    if !available() {
        return;
    }
    let world = World::new();
    world.pod("one", &[]);
    world.node.block_on(async || {
        let neighbour = |pods: &str, services: Option<&str>| Config {
            instance: "test2".into(),
            pod_cidr: pods.parse().unwrap(),
            service_cidr: services.map(|range| range.parse().unwrap()),
            state_dir: world.state.path().join("neighbour"),
            ..config(world.state.path())
        };
        let cases = [
            (neighbour("10.244.3.0/24", None), "kr-test1"),
            (neighbour("10.244.0.0/16", None), "kr-test1"),
            (neighbour("10.245.0.0/24", Some("10.96.0.0/16")), "kr-test1"),
            (neighbour("10.200.0.0/24", None), "eth0"),
        ];
        for (config, interface) in cases {
            match PodNetwork::new(config).await {
                Err(Error::Taken { by, .. }) => assert_eq!(by, interface),
                other => panic!("{interface}: {:?}", other.map(drop)),
            }
        }
        PodNetwork::new(neighbour("10.245.0.0/24", Some("10.97.0.0/16"))).await.unwrap();
        PodNetwork::new(config(world.state.path())).await.unwrap();
    });
}

#[test]
fn names_and_ranges_that_cannot_be_are_refused() {
    if !available() {
        return;
    }
    let world = World::new();
    world.node.block_on(async || {
        for instance in ["", "ninechars", "No", "a.b"] {
            let config = Config { instance: instance.into(), ..config(world.state.path()) };
            assert!(matches!(PodNetwork::new(config).await, Err(Error::BadInstance(_))), "{instance:?}");
        }
        let config = Config { pod_cidr: "10.0.0.0/30".parse().unwrap(), ..config(world.state.path()) };
        assert!(matches!(PodNetwork::new(config).await, Err(Error::BadRange(_))));
    });
}
