//! Which address of this machine others reach it by.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

/// The address that the default route leaves from; without one, the first address that is not loopback's. `None` on a
/// machine that has neither.
pub fn of_this_machine() -> Option<IpAddr> {
    towards_the_world().or_else(first_of_an_interface)
}

/// Connecting a datagram socket sends nothing: the kernel only chooses the route, and with it the source.
fn towards_the_world() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

fn first_of_an_interface() -> Option<IpAddr> {
    getifaddrs()
        .ok()?
        .filter(|interface| interface.flags.contains(InterfaceFlags::IFF_UP))
        // Our own pod network is no way to this machine.
        .filter(|interface| !interface.interface_name.starts_with("kr-"))
        .filter_map(|interface| interface.address?.as_sockaddr_in().map(|a| IpAddr::V4(a.ip())))
        .find(|address| !address.is_loopback())
}

/// The machine's name in the form that a Node's name takes.
pub fn host_name() -> String {
    let name =
        nix::unistd::gethostname().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    let name: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
    let name = name.trim_matches(['-', '.']);
    if name.is_empty() { "localhost".to_owned() } else { name.to_owned() }
}
