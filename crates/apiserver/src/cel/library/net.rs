//! Addresses and ranges of addresses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::cel::value::{Opaque, Value};
use crate::cel::{Error, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip(IpAddr);

/// A range; its address need not be its first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl fmt::Display for Ip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// Zones, and addresses of version 4 written as such of version 6, are no addresses here.
fn parse_ip(text: &str) -> Result<IpAddr> {
    let wrong = |why: &str| {
        Error::new(format!("IP Address {text:?} parse error during conversion from string: {why}"))
    };
    let ip: IpAddr = text.parse().map_err(|_| wrong(&format!("ParseAddr({text:?}): unable to parse IP")))?;
    match ip {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            Err(Error::new(format!("IPv4-mapped IPv6 address {text:?} is not allowed")))
        }
        ip => Ok(ip),
    }
}

fn parse_cidr(text: &str) -> Result<Cidr> {
    let wrong = || {
        Error::new(format!(
            "network address parse error during conversion from string: netip.ParsePrefix({text:?})"
        ))
    };
    let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
    let address = parse_ip(address).map_err(|_| wrong())?;
    let canonical = prefix == "0" || (!prefix.starts_with('0') && prefix.bytes().all(|b| b.is_ascii_digit()));
    let prefix: u8 = prefix.parse().ok().filter(|_| canonical).ok_or_else(wrong)?;
    if prefix > width(address) {
        return Err(wrong());
    }
    Ok(Cidr { address, prefix })
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from(u32::from(v4) & mask))
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from(u128::from(v6) & mask))
        }
    }
}

impl Cidr {
    fn contains(self, address: IpAddr) -> bool {
        width(self.address) == width(address)
            && masked(self.address, self.prefix) == masked(address, self.prefix)
    }
}

fn family(address: IpAddr) -> Value {
    Value::Int(if address.is_ipv4() { 4 } else { 6 })
}

pub fn call(name: &str, args: &[Value]) -> Option<Result<Value>> {
    let first = args.first()?;
    if let Value::String(text) = first {
        return Some(match (name, args.len()) {
            ("ip", 1) => parse_ip(text).map(|ip| Value::opaque(Opaque::Ip(Ip(ip)))),
            ("isIP", 1) => Ok(Value::Bool(parse_ip(text).is_ok())),
            ("ip.isCanonical", 1) => parse_ip(text).map(|ip| Value::Bool(ip.to_string() == **text)),
            ("cidr", 1) => parse_cidr(text).map(|cidr| Value::opaque(Opaque::Cidr(cidr))),
            ("isCIDR", 1) => Ok(Value::Bool(parse_cidr(text).is_ok())),
            _ => return None,
        });
    }
    let Value::Opaque(opaque) = first else { return None };
    match &**opaque {
        Opaque::Ip(ip) => of_ip(name, ip.0, args.len()),
        Opaque::Cidr(cidr) => of_cidr(name, *cidr, args),
        _ => None,
    }
}

fn of_ip(name: &str, ip: IpAddr, args: usize) -> Option<Result<Value>> {
    if args != 1 {
        return None;
    }
    let multicast_link_local = match ip {
        IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
        IpAddr::V6(v6) => v6.segments()[0] & 0xff0f == 0xff02,
    };
    let unicast_link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let broadcast = ip == IpAddr::V4(Ipv4Addr::BROADCAST);
    Some(Ok(match name {
        "family" => family(ip),
        "isUnspecified" => Value::Bool(ip.is_unspecified()),
        "isLoopback" => Value::Bool(ip.is_loopback()),
        "isLinkLocalMulticast" => Value::Bool(multicast_link_local),
        "isLinkLocalUnicast" => Value::Bool(unicast_link_local),
        "isGlobalUnicast" => Value::Bool(
            !ip.is_unspecified()
                && !ip.is_loopback()
                && !ip.is_multicast()
                && !unicast_link_local
                && !broadcast,
        ),
        _ => return None,
    }))
}

fn of_cidr(name: &str, cidr: Cidr, args: &[Value]) -> Option<Result<Value>> {
    Some(match (name, args) {
        ("ip", [_]) => Ok(Value::opaque(Opaque::Ip(Ip(cidr.address)))),
        ("prefixLength", [_]) => Ok(Value::Int(i64::from(cidr.prefix))),
        ("family", [_]) => Ok(family(cidr.address)),
        ("masked", [_]) => {
            let address = masked(cidr.address, cidr.prefix);
            Ok(Value::opaque(Opaque::Cidr(Cidr { address, prefix: cidr.prefix })))
        }
        ("containsIP", [_, Value::String(text)]) => parse_ip(text).map(|ip| Value::Bool(cidr.contains(ip))),
        ("containsIP", [_, Value::Opaque(other)]) => match &**other {
            Opaque::Ip(ip) => Ok(Value::Bool(cidr.contains(ip.0))),
            _ => return None,
        },
        ("containsCIDR", [_, Value::String(text)]) => {
            parse_cidr(text).map(|other| Value::Bool(within(cidr, other)))
        }
        ("containsCIDR", [_, Value::Opaque(other)]) => match &**other {
            Opaque::Cidr(other) => Ok(Value::Bool(within(cidr, *other))),
            _ => return None,
        },
        _ => return None,
    })
}

fn within(outer: Cidr, inner: Cidr) -> bool {
    inner.prefix >= outer.prefix && outer.contains(inner.address)
}
