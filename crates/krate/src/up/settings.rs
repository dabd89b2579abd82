//! What the cluster is started with: the command line, what it was first started with, and defaults, in this order.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Result, bail};
use ipnet::Ipv4Net;
use krate_apiserver::options::Options;
use nix::ifaddrs::getifaddrs;

use crate::cli::Up;
use crate::datadir::{DataDir, LAYOUT, OtherRuntime, Settings};

const BIND: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 6443);
/// The second byte of the default ranges of the first cluster of a machine; the next clusters count up.
const SERVICES: u8 = 96;
const PODS: u8 = 244;
/// How many clusters of one machine get ranges of their own without being told.
const CLUSTERS: u8 = 10;

pub fn of(dir: &DataDir, args: &Up) -> Result<Settings> {
    let before = dir.settings()?;
    if let Some(before) = &before {
        for (flag, now, was) in [
            ("--service-cidr", args.service_cidr, before.service_cidr),
            ("--pod-cidr", args.pod_cidr, before.pod_cidr),
        ] {
            if now.is_some_and(|now| now != was) {
                bail!(
                    "this cluster has {flag} {was}, and that cannot change while it has objects\n  \
                     leave the flag out, or start another cluster with --data-dir"
                );
            }
        }
    }
    let defaults = before.unwrap_or_else(|| {
        let number = (0..CLUSTERS).find(|n| !is_taken(range(PODS + n))).unwrap_or(0);
        Settings {
            layout: LAYOUT,
            bind: BIND,
            service_cidr: range(SERVICES + number),
            pod_cidr: range(PODS + number),
            node: true,
            runtime: None,
        }
    });
    let runtime = runtime(args, defaults.runtime)?;
    let settings = Settings {
        layout: LAYOUT,
        bind: args.bind.unwrap_or(defaults.bind),
        service_cidr: args.service_cidr.unwrap_or(defaults.service_cidr).trunc(),
        pod_cidr: args.pod_cidr.unwrap_or(defaults.pod_cidr).trunc(),
        node: !args.no_node,
        runtime,
    };
    check(&settings)?;
    Ok(settings)
}

/// The flags of the API server.
///
/// # Errors
/// One is not known, or says what `krate up` says by a flag of its own.
pub fn flags(args: &[String]) -> Result<Options> {
    let options = Options::of(args).map_err(|error| anyhow::anyhow!("--kube-apiserver-arg: {error}"))?;
    let serving = &options.serving;
    for (given, flag, own) in [
        (serving.bind_address.is_some(), "bind-address", "--bind"),
        (serving.secure_port.is_some(), "secure-port", "--bind"),
        (serving.service_cluster_ip_range.is_some(), "service-cluster-ip-range", "--service-cidr"),
    ] {
        if given {
            bail!("--kube-apiserver-arg: {flag} is for `krate apiserver`\n  use {own}");
        }
    }
    Ok(options)
}

/// Where a runtime reads the configuration of its pod network from, unless something else is said (the default of
/// containerd and CRI-O).
const CNI_CONF_DIR: &str = "/etc/cni/net.d";

fn runtime(args: &Up, before: Option<OtherRuntime>) -> Result<Option<OtherRuntime>> {
    let socket = match args.container_runtime_endpoint.as_deref() {
        None => before.as_ref().map(|before| before.socket.clone()),
        Some("") => None,
        Some(endpoint) => {
            let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
            if !path.starts_with('/') {
                bail!(
                    "--container-runtime-endpoint {endpoint} is not the address of a unix socket\n  \
                     name it as in unix:///run/containerd/containerd.sock"
                );
            }
            Some(path.into())
        }
    };
    let conf_dir = args.cni_conf_dir.clone().or(before.map(|before| before.cni_conf_dir));
    Ok(socket
        .map(|socket| OtherRuntime { socket, cni_conf_dir: conf_dir.unwrap_or_else(|| CNI_CONF_DIR.into()) }))
}

fn check(settings: &Settings) -> Result<()> {
    let (services, pods) = (settings.service_cidr, settings.pod_cidr);
    if services.contains(&pods) || pods.contains(&services) {
        bail!(
            "--service-cidr {services} and --pod-cidr {pods} overlap\n  choose ranges apart from each other"
        );
    }
    // As upstream: at least the API's and the DNS's address, at most what the allocator holds.
    if !(8..=28).contains(&services.prefix_len()) {
        bail!("--service-cidr {services} is too small or too large\n  choose a prefix of 8 to 28 bits");
    }
    if !(8..=24).contains(&pods.prefix_len()) {
        bail!(
            "--pod-cidr {pods} is too small or too large\n  choose a prefix of 8 to 24 bits: each node takes a /24"
        );
    }
    Ok(())
}

fn range(second: u8) -> Ipv4Net {
    Ipv4Net::new(Ipv4Addr::new(10, second, 0, 0), 16).expect("16 is a prefix")
}

/// Whether an interface of this machine has an address of the range: another cluster's, most likely.
fn is_taken(range: Ipv4Net) -> bool {
    getifaddrs().is_ok_and(|interfaces| {
        interfaces
            .filter_map(|interface| interface.address?.as_sockaddr_in().map(nix::sys::socket::SockaddrIn::ip))
            .any(|address| range.contains(&address))
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn up(args: &[&str]) -> Up {
        match Cli::parse_from([&["krate", "up"], args].concat()).command {
            Command::Up(up) => up,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_was_chosen_first_holds() {
        let root = std::env::temp_dir().join(format!("krate-settings-{}", std::process::id()));
        std::fs::create_dir_all(&root).expect("made");
        let dir = DataDir::new(&root).expect("a path");
        let first =
            of(&dir, &up(&["--bind", "127.0.0.1:7000", "--pod-cidr", "10.50.0.0/16"])).expect("sound");
        dir.save_settings(&first).expect("saved");
        let again = of(&dir, &up(&[])).expect("sound");
        assert_eq!(again, first);
        let refused = of(&dir, &up(&["--pod-cidr", "10.51.0.0/16"])).expect_err("refused").to_string();
        assert!(refused.contains("10.50.0.0/16") && refused.contains("--data-dir"), "{refused}");
        std::fs::remove_dir_all(root).expect("removed");
    }

    #[test]
    fn flags_of_the_api_server_are_refused_by_their_names() {
        let flag = |text: &str| flags(&[text.to_owned()]).map(drop).expect_err(text).to_string();
        assert!(flag("no-such=1").contains("'--no-such'"), "{}", flag("no-such=1"));
        assert!(flag("secure-port=7000").contains("use --bind"), "{}", flag("secure-port=7000"));
        assert!(flags(&["advertise-address=10.0.0.1".to_owned()]).is_ok());
    }

    #[test]
    fn another_runtime_is_named_by_its_socket() {
        let named = |endpoint: &str, before| {
            runtime(&up(&[&format!("--container-runtime-endpoint={endpoint}")]), before)
        };
        let containerd = named("unix:///run/containerd/containerd.sock", None).expect("sound");
        let expected = OtherRuntime {
            socket: "/run/containerd/containerd.sock".into(),
            cni_conf_dir: "/etc/cni/net.d".into(),
        };
        assert_eq!(containerd.as_ref(), Some(&expected));
        // It holds until something else is said.
        assert_eq!(runtime(&up(&[]), containerd.clone()).expect("sound"), containerd);
        assert_eq!(named("", containerd).expect("sound"), None);
        assert!(named("tcp://127.0.0.1:1", None).is_err());
    }

    #[test]
    fn ranges_must_not_overlap() {
        let dir = DataDir::new(std::path::Path::new("/nonexistent/krate")).expect("a path");
        let refused = of(&dir, &up(&["--service-cidr", "10.1.0.0/16", "--pod-cidr", "10.1.0.0/17"]));
        assert!(refused.expect_err("refused").to_string().contains("overlap"));
    }
}
