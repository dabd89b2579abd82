//! Interfaces, addresses and routes, through rtnetlink.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::path::Path;

use futures::TryStreamExt;
use ipnet::Ipv4Net;
use nix::sched::{CloneFlags, setns};
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope};
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::{Error, Result};

const IN_POD: &str = "eth0";

fn cannot(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Error {
    let what = what.into();
    move |error| Error::Netlink { what, error }
}

/// A connection to the kernel for the calling thread's network namespace, served by a task of this runtime.
pub(crate) fn connect() -> Result<(Handle, tokio::task::JoinHandle<()>)> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Socket)?;
    Ok((handle, tokio::spawn(connection)))
}

/// The node's own interface in the pod network: it carries the gateway's address, and the way to Services begins
/// there until it is translated. It is of the kind bridge, which every kernel has, but nothing is ever plugged in.
pub(crate) async fn make_anchor(
    handle: &Handle,
    name: &str,
    gateway: Ipv4Net,
    services: Option<Ipv4Net>,
    mtu: u32,
) -> Result<()> {
    let index = if let Some(link) = find(handle, name).await? {
        link.header.index
    } else {
        let bridge = LinkBridge::new(name).mtu(mtu).build();
        handle.link().add(bridge).execute().await.map_err(cannot(format!("add the interface {name}")))?;
        let link = find(handle, name).await?;
        link.ok_or(rtnetlink::Error::RequestFailed)
            .map_err(cannot(format!("find the interface {name}")))?
            .header
            .index
    };
    let up = LinkUnspec::new_with_index(index).up().mtu(mtu).build();
    handle.link().set(up).execute().await.map_err(cannot(format!("bring up {name}")))?;
    // Addresses of a range that it had before are dropped, or the kernel would go on to use them.
    let mut addresses = handle.address().get().set_link_index_filter(index).execute();
    while let Some(address) =
        addresses.try_next().await.map_err(cannot(format!("list addresses of {name}")))?
    {
        let other = address.attributes.iter().any(|attribute| {
            matches!(attribute, AddressAttribute::Address(std::net::IpAddr::V4(old)) if *old != gateway.addr())
        });
        if other {
            let delete = handle.address().del(address).execute();
            delete.await.map_err(cannot(format!("drop an address of {name}")))?;
        }
    }
    let address = handle.address().add(index, gateway.addr().into(), gateway.prefix_len()).replace();
    address.execute().await.map_err(cannot(format!("give {name} the address {gateway}")))?;
    if let Some(services) = services {
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(services.network(), services.prefix_len())
            .output_interface(index)
            .pref_source(gateway.addr())
            .scope(RouteScope::Link)
            .build();
        let route = handle.route().add(route).replace().execute();
        route.await.map_err(cannot(format!("route {services} to {name}")))?;
    }
    Ok(())
}

/// A pod's connection.
#[derive(Clone, Debug)]
pub(crate) struct Wire<'a> {
    /// The name of the end that stays on the node.
    pub(crate) name: &'a str,
    pub(crate) address: Ipv4Addr,
    pub(crate) gateway: Ipv4Addr,
    pub(crate) mtu: u32,
}

/// Connects the network namespace at `netns`, unless it is connected in this very way already.
pub(crate) async fn plug(handle: &Handle, netns: &Path, wire: &Wire<'_>) -> Result<()> {
    let namespace =
        std::fs::File::open(netns).map_err(|error| Error::Namespace { path: netns.into(), error })?;
    let (name, address) = (wire.name, wire.address);
    if find(handle, name).await?.is_some() {
        if inside(netns, async move |pod| has_address(&pod, address).await).await? {
            return Ok(());
        }
        unplug(handle, name).await?;
    }
    let mut far_end = LinkMessage::default();
    far_end.attributes.push(LinkAttribute::IfName(IN_POD.to_owned()));
    far_end.attributes.push(LinkAttribute::Mtu(wire.mtu));
    far_end.attributes.push(LinkAttribute::NetNsFd(namespace.as_raw_fd()));
    let pair = LinkVeth::new(name, IN_POD).set_info_data(InfoData::Veth(InfoVeth::Peer(far_end)));
    let pair = pair.mtu(wire.mtu).up().build();
    handle.link().add(pair).execute().await.map_err(cannot(format!("add the interface {name}")))?;
    let end = find(handle, name).await?.ok_or(rtnetlink::Error::RequestFailed);
    let end = end.map_err(cannot(format!("find the interface {name}")))?.header.index;

    let gateway = wire.gateway;
    inside(netns, async move |pod| {
        for link in ["lo", IN_POD] {
            let up = LinkUnspec::new_with_name(link).up().build();
            pod.link().set(up).execute().await.map_err(cannot(format!("bring up {link} of a pod")))?;
        }
        let index = find(&pod, IN_POD).await?.map(|link| link.header.index).unwrap_or_default();
        let own = pod.address().add(index, address.into(), 32).replace();
        own.execute().await.map_err(cannot(format!("give a pod the address {address}")))?;
        // The gateway first, as every tool that reads routes expects it; then all else by way of it.
        let to_gateway = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(gateway, 32)
            .output_interface(index)
            .scope(RouteScope::Link)
            .build();
        let beyond =
            RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).output_interface(index).onlink().build();
        for route in [to_gateway, beyond] {
            pod.route().add(route).replace().execute().await.map_err(cannot("give a pod its routes"))?;
        }
        Ok(())
    })
    .await?;

    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(address, 32)
        .output_interface(end)
        .pref_source(gateway)
        .scope(RouteScope::Link)
        .build();
    handle.route().add(route).replace().execute().await.map_err(cannot(format!("route {address} to {name}")))
}

/// A route within `range` that leads to an interface for which `is_ours` does not speak: where, and which interface.
pub(crate) async fn claim_on(
    handle: &Handle,
    range: Ipv4Net,
    is_ours: impl Fn(&str) -> bool,
) -> Result<Option<(Ipv4Net, String)>> {
    let links: Vec<_> =
        handle.link().get().execute().try_collect().await.map_err(cannot("list interfaces"))?;
    let names: BTreeMap<u32, String> = links
        .into_iter()
        .filter_map(|link| {
            let name = link.attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            });
            Some((link.header.index, name?))
        })
        .collect();
    let all = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let routes = handle.route().get(all).execute();
    let routes: Vec<_> = routes.try_collect().await.map_err(cannot("list routes"))?;
    Ok(routes.iter().find_map(|route| {
        let to = destination(route).filter(|to| range.contains(to))?;
        let by = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => names.get(index),
            _ => None,
        })?;
        (!is_ours(by)).then(|| (to, by.clone()))
    }))
}

/// Marks routes to the pods of other nodes as made here: a number that no routing daemon is known to use.
const OURS: RouteProtocol = RouteProtocol::Other(0x6b);

/// Brings the routes to other nodes' pods, all of them within `cluster`, to what is wanted: a way for each range.
pub(crate) async fn set_routes(
    handle: &Handle,
    cluster: Ipv4Net,
    wanted: &BTreeMap<Ipv4Net, Ipv4Addr>,
) -> Result<()> {
    let all = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let routes = handle.route().get(all).execute();
    let routes: Vec<_> = routes.try_collect().await.map_err(cannot("list routes"))?;
    let mut there = BTreeMap::new();
    for route in routes.into_iter().filter(|route| route.header.protocol == OURS) {
        let Some((range, gateway)) = way(&route).filter(|(range, _)| cluster.contains(range)) else {
            continue;
        };
        if wanted.get(&range) == Some(&gateway) {
            there.insert(range, gateway);
        } else {
            let delete = handle.route().del(route).execute();
            delete.await.map_err(cannot(format!("remove the route to {range}")))?;
        }
    }
    for (range, gateway) in wanted.iter().filter(|(range, _)| !there.contains_key(*range)) {
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(range.network(), range.prefix_len())
            .gateway(*gateway)
            .protocol(OURS)
            .build();
        let add = handle.route().add(route).replace().execute();
        add.await.map_err(cannot(format!("route {range} to {gateway}")))?;
    }
    Ok(())
}

/// Where a route leads, and by way of whom.
fn way(route: &RouteMessage) -> Option<(Ipv4Net, Ipv4Addr)> {
    let gateway = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some(*address),
        _ => None,
    });
    Some((destination(route)?, gateway?))
}

/// Where a route leads; None for the default route.
fn destination(route: &RouteMessage) -> Option<Ipv4Net> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => {
            Ipv4Net::new(*address, route.header.destination_prefix_length).ok()
        }
        _ => None,
    })
}

/// Removes an interface, and with it its other end and its routes. One that is not there is no error.
pub(crate) async fn unplug(handle: &Handle, name: &str) -> Result<()> {
    let Some(link) = find(handle, name).await? else { return Ok(()) };
    match handle.link().del(link.header.index).execute().await {
        Err(error) if !is(&error, nix::libc::ENODEV) => {
            Err(cannot(format!("remove the interface {name}"))(error))
        }
        _ => Ok(()),
    }
}

/// The names of all interfaces that begin with `prefix`.
pub(crate) async fn named(handle: &Handle, prefix: &str) -> Result<Vec<String>> {
    let links: Vec<_> =
        handle.link().get().execute().try_collect().await.map_err(cannot("list interfaces"))?;
    let names = links.into_iter().flat_map(|link| link.attributes).filter_map(|attribute| match attribute {
        LinkAttribute::IfName(name) if name.starts_with(prefix) => Some(name),
        _ => None,
    });
    Ok(names.collect())
}

async fn find(handle: &Handle, name: &str) -> Result<Option<LinkMessage>> {
    match handle.link().get().match_name(name).execute().try_next().await {
        Ok(link) => Ok(link),
        Err(error) if is(&error, nix::libc::ENODEV) => Ok(None),
        Err(error) => Err(cannot(format!("look for the interface {name}"))(error)),
    }
}

async fn has_address(pod: &Handle, address: Ipv4Addr) -> Result<bool> {
    let mut addresses = pod.address().get().set_address_filter(address.into()).execute();
    Ok(addresses.try_next().await.map_err(cannot("list a pod's addresses"))?.is_some())
}

fn is(error: &rtnetlink::Error, number: i32) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -number)
}

/// Runs `work` with a handle of the network namespace at `netns`, in a thread that has entered it and ends there.
async fn inside<T, W>(netns: &Path, work: W) -> Result<T>
where
    T: Send + 'static,
    W: AsyncFnOnce(Handle) -> Result<T> + Send + 'static,
{
    let path = netns.to_owned();
    let (send, receive) = tokio::sync::oneshot::channel();
    let entered = move || -> Result<T> {
        let bad = |error| Error::Namespace { path: path.clone(), error };
        let namespace = std::fs::File::open(&path).map_err(bad)?;
        setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(|error| bad(error.into()))?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(Error::Socket)?;
        runtime.block_on(async {
            let (handle, _connection) = connect()?;
            work(handle).await
        })
    };
    let thread = std::thread::Builder::new().name("pod-network".into());
    thread.spawn(move || drop(send.send(entered()))).map_err(Error::Socket)?;
    receive
        .await
        .unwrap_or_else(|_| Err(Error::Socket(io::Error::other("the thread in the pod's namespace ended"))))
}
