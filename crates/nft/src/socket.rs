//! A netfilter socket: one request, all its answers.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::libc::{EAGAIN, ENOBUFS, MSG_DONTWAIT};
use nix::sys::socket::{setsockopt, sockopt};

use crate::wire::{self, Received};
use crate::{Error, Result};

const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Flag of an error message that says that attributes follow what it quotes (`NLM_F_ACK_TLVS`), and of one that
/// quotes the request's header alone (`NLM_F_CAPPED`).
const HAS_ATTRIBUTES: u16 = 0x200;
const MESSAGE_OF_ERROR: u16 = 1;

/// An answer that is not data.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) sequence: u32,
    /// None for an acknowledgement.
    pub(crate) error: Option<io::Error>,
    pub(crate) detail: Option<String>,
}

#[derive(Debug)]
pub(crate) struct Netfilter(Socket);

impl Netfilter {
    pub(crate) fn open() -> Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.set_cap_ack(true)?;
        socket.set_ext_ack(true)?;
        // What does not fit into the buffers is refused as a whole, so they are made to fit the largest change of
        // rules; where this is not permitted, small changes still go through.
        let _ = setsockopt(&socket, sockopt::SndBufForce, &(64 << 20));
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &(16 << 20));
        Ok(Self(socket))
    }

    /// Sends a datagram of messages. The kernel has dealt with all of them when this returns, except for the rest
    /// of a dump.
    pub(crate) fn send(&self, datagram: &[u8]) -> Result<()> {
        Ok(self.0.send_to(datagram, &SocketAddr::new(0, 0), 0).map(drop)?)
    }

    /// The answers that are there already.
    pub(crate) fn outcomes(&self) -> Result<Vec<Outcome>> {
        let mut outcomes = Vec::new();
        loop {
            match self.receive(MSG_DONTWAIT) {
                Ok(datagram) => outcomes.extend(wire::messages(&datagram).filter_map(|m| outcome(&m))),
                Err(error) if error.raw_os_error() == Some(EAGAIN) => return Ok(outcomes),
                // More refusals than the buffer holds: those that were read say enough.
                Err(error) if error.raw_os_error() == Some(ENOBUFS) && !outcomes.is_empty() => {
                    return Ok(outcomes);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends a request for a dump and hands every message's body (after the netfilter header) to `each`.
    pub(crate) fn dump(&self, request: &[u8], mut each: impl FnMut(&[u8])) -> Result<()> {
        self.send(request)?;
        loop {
            let datagram = self.receive(0)?;
            for message in wire::messages(&datagram) {
                if message.kind == DONE {
                    return Ok(());
                }
                if let Some(outcome) = outcome(&message) {
                    let Some(error) = outcome.error else { return Ok(()) };
                    return Err(Error::Refused { what: "list".into(), error, detail: outcome.detail });
                }
                each(message.body.get(wire::NETFILTER_HEADER..).unwrap_or_default());
            }
        }
    }

    fn receive(&self, flags: i32) -> io::Result<Vec<u8>> {
        let mut buffer = Vec::with_capacity(64 << 10);
        self.0.recv_from(&mut buffer, flags)?;
        Ok(buffer)
    }
}

fn outcome(message: &Received<'_>) -> Option<Outcome> {
    if message.kind != ERROR {
        return None;
    }
    let code = i32::from_ne_bytes(message.body.get(..4)?.try_into().ok()?);
    let detail = (message.flags & HAS_ATTRIBUTES != 0)
        .then(|| message.body.get(4 + wire::HEADER..))
        .flatten()
        .and_then(|attributes| wire::attribute(attributes, MESSAGE_OF_ERROR))
        .map(|text| String::from_utf8_lossy(text).trim_end_matches('\0').to_owned());
    let error = (code != 0).then(|| io::Error::from_raw_os_error(-code));
    Some(Outcome { sequence: message.sequence, error, detail })
}
