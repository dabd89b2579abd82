//! The API server out of a data directory: its keys and certificates, its store, and the flags that say otherwise.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use krate_apiserver::options::Options;
use krate_apiserver::{Config, Server, User, auth, listen};
use krate_client::{Client, in_process};
use krate_pki::{Current, Source};
use krate_store::{Backend, Embedded};
use tokio_util::sync::CancellationToken;

use crate::address;
use crate::datadir::{DataDir, Settings};
use crate::node::DOMAIN;
use crate::pki::Authority;
use crate::up::Parts;

/// The group of those who may do all.
const MASTERS: &str = "system:masters";

/// An API server that serves.
pub struct Started {
    pub server: Arc<Server>,
    pub authority: Arc<Authority>,
    pub admin: Current,
    /// Where this machine reaches the API.
    pub url: String,
    /// Where others reach it.
    pub reached: SocketAddr,
    /// The address that others know this machine by.
    pub address: IpAddr,
}

impl Started {
    /// A client that acts as this user, in this process.
    pub fn client(&self, user: &str, groups: &[&str]) -> Client {
        in_process(self.server.service_as(User::authenticated(user, groups)))
    }
}

/// Opens the store of a data directory.
pub async fn store(dir: &DataDir) -> Result<Arc<dyn Backend>> {
    let store = dir.store();
    let opened =
        tokio::task::spawn_blocking(move || Embedded::open(store)).await?.context("opening the store")?;
    Ok(Arc::new(opened))
}

pub async fn start(
    dir: &DataDir,
    settings: &Settings,
    options: &Options,
    backend: Arc<dyn Backend>,
    listener: TcpListener,
    shutdown: &CancellationToken,
    parts: &Parts,
) -> Result<Started> {
    let bound = listener.local_addr()?;
    let address = options.serving.advertise_address.unwrap_or_else(|| own_address(settings));
    let authority = Arc::new(Authority::open(&dir.pki())?);
    // The addresses of a machine may be others at its next start.
    let hosts = hosts(settings, address);
    let serving = authority.kept(move |authority, _| authority.serving("kube-apiserver", &[], &hosts))?;
    let admin = authority
        .kept(|authority, wanted| authority.client("admin", "kubernetes-admin", &[MASTERS], wanted))?;
    let node_client = authority.kept(|authority, wanted| {
        authority.client("apiserver-kubelet-client", "kube-apiserver-kubelet-client", &[MASTERS], wanted)
    })?;
    let key = authority.service_account_key()?;
    // An authority of its own: whoever it vouches for may speak for anybody.
    let front_proxy = Arc::new(Authority::named(&dir.pki().join("front-proxy"), "front-proxy-ca")?);
    let proxy_client = front_proxy.kept(|authority, wanted| {
        authority.client("front-proxy-client", "front-proxy-client", &[], wanted)
    })?;
    let mut config = Config {
        advertise: SocketAddr::new(address, bound.port()),
        service_cidr: settings.service_cidr.to_string(),
        authentication: auth::Settings::signing_with(key),
        ca: authority.certificate().to_owned(),
        serving: Some(Source::Given(serving)),
        node_client: Some(Source::Given(node_client)),
        front_proxy: Some(Source::Given(proxy_client)),
        ..Config::default()
    };
    // Whoever it vouches for is believed, unless flags say whom to believe instead.
    config.authentication.request_header =
        Some(auth::RequestHeader::of_front_proxy(front_proxy.certificate()));
    // Of all that is in this process, if it is.
    config.registries.extend([
        krate_client::metrics::registry(),
        krate_controllers::metrics::registry(),
        krate_scheduler::metrics::registry(),
    ]);
    config.debugging.set_verbosity = Some(crate::log::set_verbosity);
    options.apply(&mut config)?;
    let advertise = config.advertise;
    let proxies = config.authentication.request_header.as_ref().map_or("", |proxy| proxy.ca.as_str());
    let client_ca = format!("{}\n{proxies}", config.ca);
    let serving = config.serving.as_ref().context("the API server has no certificate")?.open(shutdown)?;
    let tls = listen::tls(serving, &client_ca)?;
    let server = Server::start(config, backend, shutdown.clone()).await.context("starting the API server")?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let serving = Arc::clone(&server);
    parts.spawn("API server", async move { listen::serve(serving, listener, tls).await });

    let local = if bound.ip().is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { bound.ip() };
    Ok(Started {
        server,
        authority,
        admin,
        url: format!("https://{}", SocketAddr::new(local, bound.port())),
        reached: if bound.ip().is_unspecified() { advertise } else { bound },
        address,
    })
}

/// The address by which pods and other machines reach this one. A machine that has none but its loopback is reached by
/// its pods at the gateway of their network.
fn own_address(settings: &Settings) -> IpAddr {
    if !settings.bind.ip().is_unspecified() && !settings.bind.ip().is_loopback() {
        return settings.bind.ip();
    }
    let gateway = Ipv4Addr::from(u32::from(settings.pod_cidr.network()) + 1);
    address::of_this_machine().unwrap_or(IpAddr::V4(gateway))
}

/// The names and addresses under which the API server is asked.
fn hosts(settings: &Settings, address: IpAddr) -> Vec<String> {
    let service = Ipv4Addr::from(u32::from(settings.service_cidr.network()) + 1);
    let mut hosts = vec![
        "kubernetes".to_owned(),
        "kubernetes.default".to_owned(),
        "kubernetes.default.svc".to_owned(),
        format!("kubernetes.default.svc.{DOMAIN}"),
        "localhost".to_owned(),
        address::host_name(),
        "127.0.0.1".to_owned(),
        service.to_string(),
        address.to_string(),
    ];
    if !settings.bind.ip().is_unspecified() {
        hosts.push(settings.bind.ip().to_string());
    }
    hosts.sort();
    hosts.dedup();
    hosts
}
