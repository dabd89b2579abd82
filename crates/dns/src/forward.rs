//! Names outside of the cluster: the host's resolvers are asked, and never this server itself.

use crate::{Error, Result};
use hickory_proto::{
    op::ResponseCode,
    rr::{Name, Record, RecordType},
};
use hickory_resolver::{
    Resolver, TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    system_conf::parse_resolv_conf,
};
use hickory_server::net::{DnsError, NetError, runtime::TokioRuntimeProvider};
use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

/// Who is asked.
#[derive(Clone, Debug)]
pub enum Upstream {
    /// The name servers of this file, read once. A file that is missing or names none leaves names outside of the
    /// cluster unanswered.
    ResolvConf(PathBuf),
    Servers(Vec<SocketAddr>),
}

const TIMEOUT: Duration = Duration::from_secs(2);

/// What came back.
#[derive(Clone, Debug)]
pub struct Reply {
    pub code: ResponseCode,
    pub answers: Vec<Record>,
    pub authorities: Vec<Record>,
}

impl Reply {
    pub fn failed(code: ResponseCode) -> Self {
        Reply { code, answers: Vec::new(), authorities: Vec::new() }
    }
}

/// Asks upstream, and keeps answers for as long as they say, but not above half a minute.
pub struct Forwarder(Option<TokioResolver>);

impl Forwarder {
    /// `own` are the addresses at which this server can be reached.
    pub fn new(upstream: &Upstream, own: &[SocketAddr]) -> Result<Self> {
        let (servers, mut options) = match upstream {
            Upstream::Servers(servers) => (servers.clone(), ResolverOpts::default()),
            Upstream::ResolvConf(path) => read(path)?,
        };
        let servers: Vec<NameServerConfig> =
            servers.into_iter().filter(|server| !is_own(*server, own)).map(name_server).collect();
        if servers.is_empty() {
            tracing::warn!(?upstream, "no resolver for names outside of the cluster: they are refused");
            return Ok(Forwarder(None));
        }
        options.timeout = options.timeout.min(TIMEOUT);
        options.attempts = options.attempts.clamp(1, 2);
        options.use_hosts_file = ResolveHosts::Never;
        options.cache_size = 1024;
        options.positive_max_ttl = Some(Duration::from_secs(30));
        options.negative_max_ttl = Some(Duration::from_secs(30));
        options.preserve_intermediates = true;
        options.ndots = 0;
        let config = ResolverConfig::from_parts(None, Vec::new(), servers);
        let resolver = Resolver::builder_with_config(config, TokioRuntimeProvider::default())
            .with_options(options)
            .build()
            .map_err(|e| Error::Upstream(e.to_string()))?;
        Ok(Forwarder(Some(resolver)))
    }

    pub async fn ask(&self, name: &Name, kind: RecordType) -> Reply {
        let Some(resolver) = &self.0 else { return Reply::failed(ResponseCode::Refused) };
        let mut name = name.clone();
        name.set_fqdn(true);
        match resolver.lookup(name, kind).await {
            Ok(lookup) => Reply {
                code: ResponseCode::NoError,
                answers: lookup.answers().to_vec(),
                authorities: lookup.authorities().to_vec(),
            },
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => Reply {
                code: none.response_code,
                answers: Vec::new(),
                authorities: none.soa.map(|soa| soa.into_record_of_rdata()).into_iter().collect(),
            },
            Err(NetError::Dns(DnsError::ResponseCode(code))) => Reply::failed(code),
            Err(_) => Reply::failed(ResponseCode::ServFail),
        }
    }
}

fn read(path: &Path) -> Result<(Vec<SocketAddr>, ResolverOpts)> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(Error::Upstream(format!("{}: {e}", path.display()))),
    };
    let Ok((config, options)) = parse_resolv_conf(&text) else {
        // The parser takes a file without name servers for an error.
        return Ok((Vec::new(), ResolverOpts::default()));
    };
    let mut servers = Vec::new();
    for server in config.name_servers() {
        let port = server.connections.first().map_or(53, |c| c.port);
        let address = SocketAddr::new(server.ip, port);
        if !servers.contains(&address) {
            servers.push(address);
        }
    }
    Ok((servers, options))
}

fn is_own(server: SocketAddr, own: &[SocketAddr]) -> bool {
    own.iter().any(|own| {
        own.port() == server.port()
            && (own.ip() == server.ip() || (own.ip().is_unspecified() && is_local(server.ip())))
    })
}

/// Whether an address is one of this machine's: a socket can be bound to it.
fn is_local(ip: IpAddr) -> bool {
    std::net::UdpSocket::bind((ip, 0)).is_ok()
}

fn name_server(address: SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()]
        .map(|mut connection| {
            connection.port = address.port();
            connection
        })
        .to_vec();
    NameServerConfig::new(address.ip(), true, connections)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_never_its_own_upstream() {
        let at = |s: &str| s.parse::<SocketAddr>().unwrap();
        for (server, own, expected) in [
            ("127.0.0.1:53", "127.0.0.1:53", true),
            ("127.0.0.1:53", "127.0.0.1:1053", false),
            ("127.0.0.53:53", "127.0.0.1:53", false),
            ("127.0.0.53:53", "0.0.0.0:53", true),
            ("192.0.2.1:53", "0.0.0.0:53", false),
        ] {
            assert_eq!(is_own(at(server), &[at(own)]), expected, "{server} for {own}");
        }
    }

    #[test]
    fn a_file_that_names_nobody_is_no_error() {
        let (servers, _) = read(Path::new("/nonexistent/resolv.conf")).unwrap();
        assert!(servers.is_empty());
        let file = std::env::temp_dir().join(format!("krate-dns-{}", std::process::id()));
        std::fs::write(&file, "search example.com\noptions ndots:5\n").unwrap();
        let none = read(&file).unwrap().0;
        std::fs::write(&file, "nameserver 192.0.2.1\nnameserver 2001:db8::1\n").unwrap();
        let two = read(&file).unwrap().0;
        std::fs::remove_file(&file).unwrap();
        assert!(none.is_empty());
        assert_eq!(
            two.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["192.0.2.1:53", "[2001:db8::1]:53"]
        );
    }
}
