//! Tracked connections: which there are, and the removal of those whose other end is gone.
//!
//! A datagram "connection" lives on in the kernel's table as long as its client keeps sending, and with it the
//! translation to an endpoint that may not exist any more.

use std::net::{IpAddr, SocketAddr};

use crate::socket::Netfilter;
use crate::wire::{self, Attributes, Header};
use crate::{Error, Family, Result};

const SUBSYSTEM: u16 = 1;
const GET: u16 = SUBSYSTEM << 8 | 1;
const DELETE: u16 = SUBSYSTEM << 8 | 2;

const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const TUPLE_ADDRESSES: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const NESTED: u16 = 1 << 15;

/// A tracked connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The transport protocol's number.
    pub protocol: u8,
    pub source: SocketAddr,
    /// Whom the client means: of a translated connection, the address before the translation.
    pub destination: SocketAddr,
    /// Who answers: of a translated connection, the endpoint.
    pub answered_by: SocketAddr,
    family: Family,
    original: Vec<u8>,
}

/// The tracked connections of one protocol.
pub fn flows(family: Family, protocol: u8) -> Result<Vec<Flow>> {
    let mut request = Vec::new();
    let header = Header { family: family.number(), resource: 0 };
    wire::message(&mut request, GET, wire::REQUEST | wire::DUMP, 1, header, &[]);
    let mut flows = Vec::new();
    Netfilter::open()?.dump(&request, |body| {
        flows.extend(read(family, body).filter(|flow| flow.protocol == protocol));
    })?;
    Ok(flows)
}

/// Forgets connections: their next packet is taken for the first of a new one. One that is gone already is no error.
pub fn forget(flows: &[Flow]) -> Result<()> {
    let socket = Netfilter::open()?;
    for (number, flow) in flows.iter().enumerate() {
        let mut body = Attributes::default();
        body.bytes(ORIGINAL | NESTED, &flow.original);
        let mut request = Vec::new();
        let header = Header { family: flow.family.number(), resource: 0 };
        wire::message(&mut request, DELETE, wire::REQUEST | wire::ACK, number as u32 + 1, header, &body.0);
        socket.send(&request)?;
        for outcome in socket.outcomes()? {
            if let Some(error) = outcome.error
                && error.kind() != std::io::ErrorKind::NotFound
            {
                let what = format!("forget the connection of {} to {}", flow.source, flow.destination);
                return Err(Error::Refused { what, error, detail: outcome.detail });
            }
        }
    }
    Ok(())
}

fn read(family: Family, body: &[u8]) -> Option<Flow> {
    let original = wire::attribute(body, ORIGINAL)?;
    let (protocol, source, destination) = tuple(original)?;
    let (_, answered_by, _) = tuple(wire::attribute(body, REPLY)?)?;
    Some(Flow { protocol, source, destination, answered_by, family, original: original.to_vec() })
}

/// Protocol, source and destination of one direction. Protocols without ports have port 0.
fn tuple(tuple: &[u8]) -> Option<(u8, SocketAddr, SocketAddr)> {
    let addresses = wire::attribute(tuple, TUPLE_ADDRESSES)?;
    let protocol = wire::attribute(tuple, TUPLE_PROTOCOL)?;
    let address = |v4: u16, v6: u16| -> Option<IpAddr> {
        if let Some(bytes) = wire::attribute(addresses, v4) {
            return <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
        }
        <[u8; 16]>::try_from(wire::attribute(addresses, v6)?).ok().map(IpAddr::from)
    };
    let port = |kind| {
        wire::attribute(protocol, kind).and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_be_bytes)
    };
    let number = *wire::attribute(protocol, 1)?.first()?;
    Some((number, SocketAddr::new(address(1, 3)?, port(2)), SocketAddr::new(address(2, 4)?, port(3))))
}
