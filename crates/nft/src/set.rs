//! Sets, maps and what is in them.

use std::net::IpAddr;
use std::time::Duration;

use crate::rule::Verdict;
use crate::socket::Netfilter;
use crate::wire::{self, Attributes, Header};
use crate::{Family, Result};

/// What a field of a key or a value is. Fields that are joined are each padded to four bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    Ipv4,
    Ipv6,
    /// A transport protocol's number.
    Protocol,
    Port,
    /// A number in the machine's own byte order.
    Number,
}

impl Type {
    /// The number by which `nft` knows the type, so that it can show what is in a set.
    fn number(self) -> u32 {
        match self {
            Type::Ipv4 => 7,
            Type::Ipv6 => 8,
            Type::Protocol => 12,
            Type::Port => 13,
            Type::Number => 4,
        }
    }

    /// Bytes in a register, with padding.
    pub(crate) fn length(self) -> u32 {
        if self == Type::Ipv6 { 16 } else { 4 }
    }
}

/// A set or map to be made.
#[derive(Clone, Debug)]
pub struct Set<'a> {
    pub name: &'a str,
    pub key: &'a [Type],
    pub value: Value<'a>,
    /// Elements go by themselves after this time; rules may add them.
    pub timeout: Option<Duration>,
}

/// What a set's elements lead to.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    None,
    Fields(&'a [Type]),
    Verdict,
}

/// The bytes of an element's key or value: fields joined.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Vec<u8>);

impl Key {
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn address(mut self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => self.0.extend(address.octets()),
            IpAddr::V6(address) => self.0.extend(address.octets()),
        }
        self
    }

    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.0.extend(port.to_be_bytes());
        self.0.extend([0; 2]);
        self
    }

    #[must_use]
    pub fn protocol(mut self, protocol: u8) -> Self {
        self.0.extend([protocol, 0, 0, 0]);
        self
    }

    #[must_use]
    pub fn number(mut self, number: u32) -> Self {
        self.0.extend(number.to_ne_bytes());
        self
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Elements of a set, in the form of an attribute's content.
#[derive(Clone, Debug, Default)]
pub struct Elements {
    list: Vec<Attributes>,
}

impl Elements {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// An element of a set, or one to be deleted from a set or map.
    pub fn key(&mut self, key: &Key) -> &mut Self {
        self.element(key, |_| ())
    }

    /// An element of a map.
    pub fn value(&mut self, key: &Key, value: &Key) -> &mut Self {
        self.element(key, |element| {
            element.nested(ELEM_DATA, |data| {
                data.bytes(DATA_VALUE, value.bytes());
            });
        })
    }

    /// An element of a verdict map.
    pub fn verdict(&mut self, key: &Key, verdict: &Verdict<'_>) -> &mut Self {
        self.element(key, |element| {
            element.nested(ELEM_DATA, |data| verdict.write(data));
        })
    }

    fn element(&mut self, key: &Key, rest: impl FnOnce(&mut Attributes)) -> &mut Self {
        let mut element = Attributes::default();
        element.nested(ELEM_KEY, |data| {
            data.bytes(DATA_VALUE, key.bytes());
        });
        rest(&mut element);
        self.list.push(element);
        self
    }

    /// In pieces that fit into an attribute.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = Attributes> {
        self.list.chunks(200).map(|chunk| {
            let mut piece = Attributes::default();
            for element in chunk {
                piece.bytes(LIST_ELEM | NESTED, &element.0);
            }
            piece
        })
    }
}

/// The kernel names sets that belong to a rule; it finds them by number.
pub(crate) const ANONYMOUS: &str = "__set%d";

const NESTED: u16 = 1 << 15;
const LIST_ELEM: u16 = 1;
const ELEM_KEY: u16 = 1;
const ELEM_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;

const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LEN: u16 = 5;
const SET_DATA_TYPE: u16 = 6;
const SET_DATA_LEN: u16 = 7;
const SET_ID: u16 = 10;
const SET_TIMEOUT: u16 = 11;

const LIVES_WITH_RULE: u32 = 0x1;
const CONSTANT: u32 = 0x2;
const MAP: u32 = 0x8;
const TIMEOUT: u32 = 0x10;
/// Rules may change it.
const EVAL: u32 = 0x20;
const VERDICTS: u32 = 0xffff_ff00;

impl Set<'_> {
    /// The attributes by which the set is made, but for its table. `anonymous` ones live and die with the rule that looks into them.
    pub(crate) fn write(&self, id: u32, anonymous: bool) -> Attributes {
        let mut flags = if anonymous { LIVES_WITH_RULE | CONSTANT } else { 0 };
        let mut written = Attributes::default();
        written.text(SET_NAME, self.name);
        written.number(SET_KEY_TYPE, type_of(self.key)).number(SET_KEY_LEN, length_of(self.key));
        match self.value {
            Value::None => {}
            Value::Fields(fields) => {
                flags |= MAP;
                written.number(SET_DATA_TYPE, type_of(fields)).number(SET_DATA_LEN, length_of(fields));
            }
            Value::Verdict => {
                flags |= MAP;
                written.number(SET_DATA_TYPE, VERDICTS).number(SET_DATA_LEN, 16);
            }
        }
        if let Some(timeout) = self.timeout {
            flags |= TIMEOUT | EVAL;
            written.long(SET_TIMEOUT, timeout.as_millis() as u64);
        }
        written.number(SET_FLAGS, flags).number(SET_ID, id);
        written
    }
}

/// The names of the sets and maps in a table, in order; none when there is no such table.
pub fn set_names(family: Family, table: &str) -> Result<Vec<String>> {
    const GET_SET: u16 = 0x0a0a;
    let mut body = Attributes::default();
    body.text(SET_TABLE, table);
    let header = Header { family: family.number(), resource: 0 };
    let mut request = Vec::new();
    wire::message(&mut request, GET_SET, wire::REQUEST | wire::DUMP, 1, header, &body.0);
    let mut names = Vec::new();
    let listed = Netfilter::open()?.dump(&request, |set| {
        // Asked for a table that it does not have, the kernel lists all tables' sets.
        let text = |kind| {
            let bytes = wire::attribute(set, kind).unwrap_or_default();
            String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
        };
        if text(SET_TABLE) == table {
            names.push(text(SET_NAME));
        }
    });
    names.sort();
    match listed {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(names),
    }
}

/// Joined types as `nft` numbers them: six bits each.
fn type_of(fields: &[Type]) -> u32 {
    fields.iter().fold(0, |number, field| number << 6 | field.number())
}

fn length_of(fields: &[Type]) -> u32 {
    fields.iter().map(|field| field.length()).sum()
}
