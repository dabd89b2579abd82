//! The certificate that a kubelet serves.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, NodeAddress};
use krate_client::{CancellationToken, Client, Informer};
use krate_pki::{Current, FileError, Renewal, Source};
use tokio::sync::watch;

use super::figures;
use super::manager::{Clients, Manager};
use super::request::{SERVING, Template};
use super::store::{Store, StoreError};

/// Where it comes from.
#[derive(Clone, Debug)]
pub enum Serving {
    /// It is used as it is there.
    From(Source),
    /// The API server is asked for it (`serverTLSBootstrap`); it is kept here. Files are what there is until then.
    Requested { directory: PathBuf, files: Option<(PathBuf, PathBuf)> },
}

/// Why there can be none.
#[derive(Debug, thiserror::Error)]
pub enum ServingError {
    #[error("{0}")]
    File(#[from] FileError),
    #[error("failed to initialize server certificate manager: {0}")]
    Store(#[from] StoreError),
}

/// Keeps the certificate of a node current until `shutdown`: one that is asked for names the node's addresses, and is asked
/// for anew when they change.
///
/// # Errors
/// What is there cannot be used.
pub fn serving(
    from: &Serving,
    client: &Client,
    name: &str,
    node: &Informer<Node>,
    shutdown: &CancellationToken,
) -> Result<Current, ServingError> {
    let (directory, files) = match from {
        Serving::From(source) => return Ok(source.open(shutdown)?),
        Serving::Requested { directory, files } => (directory, files),
    };
    let store = Store::open("kubelet-server", directory, files.clone())?;
    let (renewal, current) = Renewal::new(store.current()?);
    let (told, template) = watch::channel(None);
    let user = Template::of_node(name);
    node.handle(move |event| {
        let status = event.object().status.as_ref();
        let addresses = status.and_then(|status| status.addresses.as_deref()).unwrap_or_default();
        let next = with_addresses(&user, addresses);
        told.send_if_modified(|there| {
            let is_other = *there != next;
            *there = next;
            is_other
        });
    });
    let manager = Manager {
        purpose: SERVING,
        store: Arc::new(store),
        renewal,
        clients: Clients { first: client.clone(), own: client.clone() },
        template,
        force: false,
        figures: &figures::SERVING,
        healthy: Arc::default(),
    };
    tokio::spawn(manager.run(shutdown.clone()));
    Ok(current)
}

/// What the certificate of a node with these addresses says; none without an IP address, as nobody would ask for it.
fn with_addresses(node: &Template, all: &[NodeAddress]) -> Option<Template> {
    let (mut hosts, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    for NodeAddress { type_, address } in all.iter().filter(|each| !each.address.is_empty()) {
        let (is_ip, is_name) = match type_.as_str() {
            "Hostname" => (true, true),
            "InternalIP" | "ExternalIP" => (true, false),
            "InternalDNS" | "ExternalDNS" => (false, true),
            _ => (false, false),
        };
        match address.parse::<IpAddr>() {
            Ok(ip) if is_ip => drop(addresses.insert(ip)),
            _ if is_name => drop(hosts.insert(address.clone())),
            _ => {}
        }
    }
    (!addresses.is_empty()).then(|| Template { hosts, addresses, ..node.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_names_the_addresses_of_the_node() {
        let all = |all: &[(&str, &str)]| -> Vec<NodeAddress> {
            let of = |(type_, address): &(&str, &str)| NodeAddress {
                type_: (*type_).to_owned(),
                address: (*address).to_owned(),
            };
            all.iter().map(of).collect()
        };
        let node = Template::of_node("a");
        let told = with_addresses(
            &node,
            &all(&[
                ("Hostname", "a"),
                ("InternalIP", "10.0.0.1"),
                ("ExternalDNS", "a.test"),
                ("InternalIP", "x"),
            ]),
        );
        let told = told.unwrap();
        assert_eq!(told.hosts.iter().map(String::as_str).collect::<Vec<_>>(), ["a", "a.test"]);
        assert_eq!(told.addresses, ["10.0.0.1".parse().unwrap()].into());
        assert_eq!(with_addresses(&node, &all(&[("Hostname", "a")])), None);
        assert!(with_addresses(&node, &all(&[("Hostname", "10.0.0.2")])).is_some());
    }
}
