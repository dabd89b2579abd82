//! The control plane: store, API server, controllers, scheduler. Each component is a user of its own.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use krate_apiserver::rbac::CONTROLLERS;
use krate_apiserver::{Config, Server, User, listen};
use krate_client::{Client, Informers, in_process};
use krate_store::{Backend, Embedded};
use tokio_util::sync::CancellationToken;

use super::{Parts, Progress};
use crate::address;
use crate::datadir::{DataDir, Settings};
use crate::node::DOMAIN;
use crate::pki::{Authority, Identity};

/// A control plane that serves.
pub struct ControlPlane {
    pub server: Arc<Server>,
    pub authority: Authority,
    pub admin: Identity,
    /// Where this machine reaches the API.
    pub url: String,
    /// The address that others know this machine by.
    pub address: IpAddr,
}

impl ControlPlane {
    /// A client that acts as this user, in this process.
    pub fn client(&self, user: &str, groups: &[&str]) -> Client {
        in_process(self.server.service_as(User::authenticated(user, groups)))
    }
}

pub async fn start(
    dir: &DataDir,
    settings: &Settings,
    listener: TcpListener,
    progress: &Progress,
    shutdown: &CancellationToken,
    parts: &Parts,
) -> Result<ControlPlane> {
    let bound = listener.local_addr()?;
    let address = own_address(settings);
    let authority = Authority::open(&dir.pki())?;
    let hosts = hosts(settings, address);
    let serving = authority.serving("kube-apiserver", &[], &hosts)?;
    let admin = authority.client("admin", "kubernetes-admin", &["system:masters"])?;
    let node_client =
        authority.client("apiserver-kubelet-client", "kube-apiserver-kubelet-client", &["system:masters"])?;
    let (key, public_key) = authority.service_account_keys()?;

    let store = dir.store();
    let backend: Arc<dyn Backend> = Arc::new(
        tokio::task::spawn_blocking(move || Embedded::open(store)).await?.context("opening the store")?,
    );
    progress.ready("store", &dir.store().display().to_string());

    let advertise = SocketAddr::new(address, bound.port());
    let server = Server::start(
        Config {
            advertise,
            service_cidr: settings.service_cidr.to_string(),
            tokens: HashMap::new(),
            service_account_key: key,
            service_account_public_key: public_key,
            ca: authority.certificate().to_owned(),
            node_client_certificate: node_client.certificate,
            node_client_key: node_client.key,
        },
        backend,
        shutdown.clone(),
    )
    .await
    .context("starting the API server")?;
    let tls = listen::tls(&serving.certificate, &serving.key, authority.certificate())?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let serving = Arc::clone(&server);
    parts.spawn("API server", async move { listen::serve(serving, listener, tls).await });
    let reached = if bound.ip().is_unspecified() { advertise } else { bound };
    progress.ready("API server", &format!("https://{reached}"));

    let local = if bound.ip().is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { bound.ip() };
    let plane = ControlPlane {
        server,
        authority,
        admin,
        url: format!("https://{}", SocketAddr::new(local, bound.port())),
        address,
    };
    components(settings, &plane, shutdown, parts);
    progress.ready("controllers", "");
    progress.ready("scheduler", "");
    Ok(plane)
}

fn components(settings: &Settings, plane: &ControlPlane, shutdown: &CancellationToken, parts: &Parts) {
    let client = plane.client("system:kube-controller-manager", &[CONTROLLERS]);
    let informers = Informers::new(client.clone(), shutdown.clone());
    let config = krate_controllers::Config {
        root_ca_pem: plane.authority.certificate().to_owned(),
        cluster_cidr: Some(settings.pod_cidr.into()),
        ..krate_controllers::Config::default()
    };
    let stop = shutdown.clone();
    parts.spawn("controllers", async move { krate_controllers::run(client, informers, config, stop).await });

    let client = plane.client("system:kube-scheduler", &[]);
    let informers = Informers::new(client.clone(), shutdown.clone());
    let stop = shutdown.clone();
    let config = krate_scheduler::Config::default();
    parts.spawn("scheduler", krate_scheduler::run(client, informers, config, stop));
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
