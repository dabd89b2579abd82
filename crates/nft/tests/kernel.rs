//! What is written is what the kernel does, shown on a host of its own.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use krate_nft::{Batch, Elements, Family, Field, Hook, Key, Rule, Set, Type, Value, Verdict, conntrack};
use krate_testkit::{Host, Net, available};

const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1));
const TCP: u8 = 6;
const UDP: u8 = 17;
const SERVICE: [Field; 3] = [Field::Destination, Field::Protocol, Field::DestinationPort];
const SERVICE_KEY: [Type; 3] = [Type::Ipv4, Type::Protocol, Type::Port];
const ENDPOINT: [Type; 2] = [Type::Ipv4, Type::Port];

fn endpoint(at: SocketAddr) -> Key {
    Key::new().address(at.ip()).port(at.port())
}

/// A batch with a table whose outgoing connections are looked up in the verdict map `services`.
fn table() -> Batch {
    let mut batch = Batch::new(Family::Ipv4, "krate-test");
    batch.renew_table();
    batch.add_set(&Set { name: "services", key: &SERVICE_KEY, value: Value::Verdict, timeout: None });
    let endpoints = Value::Fields(&ENDPOINT);
    batch.add_set(&Set { name: "endpoints", key: &[Type::Number], value: endpoints, timeout: None });
    batch.add_base_chain("output", Hook::TranslateOutput);
    batch.add_rule("output", &Rule::new(Family::Ipv4).verdict_by(&SERVICE, "services"));
    batch.add_chain("service");
    batch
}

fn lead_to_service(batch: &mut Batch, protocol: u8) {
    let key = Key::new().address(ADDRESS).protocol(protocol).port(80);
    batch.add_elements("services", Elements::new().verdict(&key, &Verdict::Goto("service")));
}

/// Puts endpoints into the map `endpoints`, under the numbers from `first` on.
fn number(batch: &mut Batch, first: u32, endpoints: &[Key]) {
    let mut elements = Elements::new();
    for (number, endpoint) in (first..).zip(endpoints) {
        elements.value(&Key::new().number(number), endpoint);
    }
    batch.add_elements("endpoints", &elements);
}

/// A server on the host that says its number to whoever connects, until the process ends.
fn server(host: &Host, number: u8) -> SocketAddr {
    let listener = host.run(|| TcpListener::bind((host.address(), 0)).unwrap());
    let at = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let _ = stream.write_all(&[number]);
        }
    });
    at
}

fn ask(at: SocketAddr) -> std::io::Result<u8> {
    let mut answer = [0];
    let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.read_exact(&mut answer)?;
    Ok(answer[0])
}

fn routed_host() -> (Host, Net) {
    let net = Net::new().unwrap();
    let host = Host::on(&net).unwrap();
    host.default_route(&net).unwrap();
    (host, net)
}

#[test]
fn connections_are_spread_over_the_values_of_a_map() {
    if !available() {
        return;
    }
    let (host, _net) = routed_host();
    let servers: Vec<_> = (0..3).map(|number| server(&host, number)).collect();
    host.run(|| {
        let mut batch = table();
        let endpoints: Vec<_> = servers.iter().map(|at| endpoint(*at)).collect();
        number(&mut batch, 7, &endpoints);
        batch.add_rule("service", &Rule::new(Family::Ipv4).pick(7, 3, "endpoints").translate_destination());
        lead_to_service(&mut batch, TCP);
        batch.commit().unwrap();
        let mut seen = [0; 3];
        for _ in 0..60 {
            seen[usize::from(ask(SocketAddr::new(ADDRESS, 80)).unwrap())] += 1;
        }
        assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
    });
}

#[test]
fn a_client_stays_with_its_endpoint_as_long_as_that_is_one() {
    if !available() {
        return;
    }
    let (host, _net) = routed_host();
    let servers: Vec<_> = (0..4).map(|number| server(&host, number)).collect();
    host.run(|| {
        let endpoints: Vec<_> = servers.iter().map(|at| endpoint(*at)).collect();
        let fill = |batch: &mut Batch, first: u32, endpoints: &[Key]| {
            number(batch, first, endpoints);
            let rule = || Rule::new(Family::Ipv4);
            let client = [Field::Source];
            let stay = rule().map(&client, "affinity").value_in(&ENDPOINT, endpoints);
            batch.add_rule("service", &stay.remember(&client, "affinity").translate_destination());
            batch.add_rule("service", &rule().forget(&client, "affinity"));
            let choose =
                rule().pick(first, endpoints.len() as u32, "endpoints").remember(&client, "affinity");
            batch.add_rule("service", &choose.translate_destination());
        };
        let mut batch = table();
        let timeout = Some(Duration::from_mins(10));
        let value = Value::Fields(&ENDPOINT);
        batch.add_set(&Set { name: "affinity", key: &[Type::Ipv4], value, timeout });
        fill(&mut batch, 0, &endpoints);
        lead_to_service(&mut batch, TCP);
        batch.commit().unwrap();
        let first = ask(SocketAddr::new(ADDRESS, 80)).unwrap();
        for _ in 0..20 {
            assert_eq!(ask(SocketAddr::new(ADDRESS, 80)).unwrap(), first);
        }

        let mut batch = Batch::new(Family::Ipv4, "krate-test");
        let mut others = endpoints.clone();
        others.remove(usize::from(first));
        batch.flush_chain("service");
        fill(&mut batch, 10, &others);
        batch.commit().unwrap();
        let second = ask(SocketAddr::new(ADDRESS, 80)).unwrap();
        assert_ne!(second, first);
        for _ in 0..20 {
            assert_eq!(ask(SocketAddr::new(ADDRESS, 80)).unwrap(), second);
        }
    });
}

#[test]
fn a_rejected_connection_is_refused_at_once() {
    if !available() {
        return;
    }
    let (host, _net) = routed_host();
    host.run(|| {
        let mut batch = table();
        batch.add_base_chain("filter", Hook::FilterOutput);
        batch.add_rule(
            "filter",
            &Rule::new(Family::Ipv4).is_new().protocol(TCP).reject(true).comment("no ears"),
        );
        batch.add_rule(
            "filter",
            &Rule::new(Family::Ipv4).is_new().destination_in(ADDRESS, 16, false).reject(false),
        );
        batch.commit().unwrap();
        assert_eq!(ask(SocketAddr::new(ADDRESS, 80)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.connect((ADDRESS, 80)).unwrap();
        // The rule drops the datagram, which the sender is told, and answers it, which the receiver is told.
        assert_eq!(socket.send(b"?").unwrap_err().kind(), ErrorKind::PermissionDenied);
        assert_eq!(socket.recv(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn a_batch_with_one_bad_change_changes_nothing() {
    if !available() {
        return;
    }
    let (host, _net) = routed_host();
    host.run(|| {
        table().commit().unwrap();
        let mut batch = Batch::new(Family::Ipv4, "krate-test");
        batch.add_chain("another").delete_chain("nowhere").add_chain("third");
        let error = batch.commit().unwrap_err();
        assert!(error.is_not_found(), "{error}");
        assert!(error.to_string().contains("nowhere"), "{error}");
        let mut batch = Batch::new(Family::Ipv4, "krate-test");
        batch.delete_chain("another");
        assert!(batch.commit().unwrap_err().is_not_found());
    });
}

#[test]
fn a_flow_of_datagrams_is_found_and_forgotten() {
    if !available() {
        return;
    }
    let (host, _net) = routed_host();
    host.run(|| {
        let server = UdpSocket::bind((host.address(), 0)).unwrap();
        let at = server.local_addr().unwrap();
        let mut batch = table();
        number(&mut batch, 1, &[endpoint(at)]);
        batch.add_rule("service", &Rule::new(Family::Ipv4).pick(1, 1, "endpoints").translate_destination());
        lead_to_service(&mut batch, UDP);
        batch.commit().unwrap();
        let client = UdpSocket::bind("0.0.0.0:0").unwrap();
        client.send_to(b"?", (ADDRESS, 80)).unwrap();
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        server.recv(&mut [0]).unwrap();

        let ours = || -> Vec<_> {
            let flows = conntrack::flows(Family::Ipv4, UDP).unwrap();
            flows.into_iter().filter(|flow| flow.destination == SocketAddr::new(ADDRESS, 80)).collect()
        };
        let flows = ours();
        assert_eq!(flows.len(), 1);
        assert_eq!(flows[0].answered_by, at);
        conntrack::forget(&flows).unwrap();
        assert!(ours().is_empty());
        conntrack::forget(&flows).unwrap();
    });
}
