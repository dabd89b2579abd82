//! A wire between hosts.

use std::io;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ipnet::IpNet;
use rtnetlink::packet_route::address::AddressHeaderFlags;
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage};
use rtnetlink::{LinkBridge, LinkUnspec, LinkVeth};

use crate::eventually;
use crate::namespace::{Namespace, index_of};

const BRIDGE: &str = "br0";

/// A bridge in a namespace of its own that joins hosts. Its first address is the gateway that hosts may have
/// their default route to; the gateway answers for itself and forwards nothing, so that what a host sends to the
/// world ends there, silently, as behind a firewall. Clones are the same net, and it lasts as long as one of them or
/// a host on it.
#[derive(Clone, Debug)]
pub struct Net {
    namespace: Arc<Namespace>,
    range: IpNet,
    joined: Arc<AtomicU32>,
}

impl Net {
    /// A net of the addresses 10.200.0.0/24. Any number of nets may have the same range: they never meet.
    pub fn new() -> io::Result<Self> {
        Self::of("10.200.0.0/24".parse().expect("a network"))
    }

    /// A net of the addresses in `range`.
    pub fn of(range: IpNet) -> io::Result<Self> {
        let namespace = Namespace::new()?;
        let gateway = nth(range, 1)?;
        namespace.netlink(async |handle| {
            handle.link().add(LinkBridge::new(BRIDGE).build()).execute().await.map_err(io::Error::other)?;
            let bridge = index_of(&handle, BRIDGE).await?;
            let address = handle.address().add(bridge, gateway, range.prefix_len());
            address.execute().await.map_err(io::Error::other)
        })?;
        Ok(Self { namespace: Arc::new(namespace), range, joined: Arc::default() })
    }

    /// The bridge's own address, which is where default routes lead and end.
    pub fn gateway(&self) -> IpAddr {
        nth(self.range, 1).expect("held when the net was made")
    }

    /// The addresses of this net.
    pub fn range(&self) -> IpNet {
        self.range
    }

    /// Joins a host by an interface `name` and gives it the next address, which is returned.
    pub(crate) fn join(&self, host: &Namespace, name: &str) -> io::Result<IpAddr> {
        let number = self.joined.fetch_add(1, Ordering::Relaxed) + 1;
        let address = nth(self.range, number + 1)?;
        let port = format!("port{number}");
        let mut far_end = LinkMessage::default();
        far_end.attributes.push(LinkAttribute::IfName(name.to_owned()));
        far_end.attributes.push(LinkAttribute::NetNsFd(host.as_fd().as_raw_fd()));
        self.namespace.netlink(async |handle| {
            let bridge = index_of(&handle, BRIDGE).await?;
            let pair = LinkVeth::new(&port, name)
                .set_info_data(InfoData::Veth(InfoVeth::Peer(far_end)))
                .controller(bridge)
                .up()
                .build();
            handle.link().add(pair).execute().await.map_err(io::Error::other)
        })?;
        host.netlink(async |handle| {
            let index = index_of(&handle, name).await?;
            let up = LinkUnspec::new_with_index(index).up().build();
            handle.link().set(up).execute().await.map_err(io::Error::other)?;
            let mut address = handle.address().add(index, address, self.range.prefix_len());
            // Nobody else can have it, so it need not be asked for, which would take a second in IPv6.
            address.message_mut().header.flags |= AddressHeaderFlags::Nodad;
            address.execute().await.map_err(io::Error::other)
        })?;
        // In IPv6, an address becomes usable when the kernel has noticed that the wire is connected.
        host.run(|| {
            eventually("a host reaches itself", Duration::from_secs(10), || reaches_itself(address).ok());
        });
        Ok(address)
    }
}

fn reaches_itself(address: IpAddr) -> io::Result<()> {
    let socket = UdpSocket::bind((address, 0))?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    socket.send_to(b"?", socket.local_addr()?)?;
    socket.recv(&mut [0]).map(drop)
}

fn nth(range: IpNet, n: u32) -> io::Result<IpAddr> {
    let address = match range.network() {
        IpAddr::V4(base) => IpAddr::V4((u32::from(base) + n).into()),
        IpAddr::V6(base) => IpAddr::V6((u128::from(base) + u128::from(n)).into()),
    };
    if range.contains(&address) && address != range.broadcast() {
        Ok(address)
    } else {
        Err(io::Error::new(io::ErrorKind::AddrNotAvailable, format!("{range} has no address left")))
    }
}
