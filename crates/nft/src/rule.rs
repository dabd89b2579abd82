//! A rule: expressions that load registers, compare them and act.
//!
//! The kernel's sixteen registers of four bytes are addressed by number here; a longer value takes the registers
//! that follow. Every method appends the expressions of one clause, and a clause that does not match ends the rule.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::set::{ANONYMOUS, Key, Set, Type, Value};
use crate::wire::Attributes;
use crate::{Elements, Family};

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    Accept,
    Drop,
    Return,
    Jump(&'a str),
    Goto(&'a str),
}

impl Verdict<'_> {
    pub(crate) fn write(&self, data: &mut Attributes) {
        let (code, chain) = match self {
            Verdict::Drop => (0, None),
            Verdict::Accept => (1, None),
            Verdict::Jump(chain) => (-3, Some(chain)),
            Verdict::Goto(chain) => (-4, Some(chain)),
            Verdict::Return => (-5i32, None),
        };
        data.nested(DATA_VERDICT, |verdict| {
            verdict.number(1, code.cast_unsigned());
            if let Some(chain) = chain {
                verdict.text(2, chain);
            }
        });
    }
}

/// What is loaded into registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    Source,
    Destination,
    /// The transport protocol's number.
    Protocol,
    DestinationPort,
    Mark,
}

/// A rule, in the making. `Rule::new(family)` matches every packet and does nothing. Rules are equal when they do the
/// same; those with sets of their own equal none, because nobody else has these sets.
#[derive(Clone, Debug)]
pub struct Rule {
    family: Family,
    pub(crate) expressions: Attributes,
    /// Sets to be made before the rule: how, their numbers, and what is in them.
    pub(crate) anonymous: Vec<(Attributes, u32, Elements)>,
    pub(crate) comment: Option<String>,
}

impl PartialEq for Rule {
    fn eq(&self, other: &Self) -> bool {
        let shared = self.anonymous.is_empty() && other.anonymous.is_empty();
        shared && self.expressions == other.expressions && self.comment == other.comment
    }
}

const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
/// The first of the registers of four bytes.
const REGISTER: u32 = 8;
const VERDICT_REGISTER: u32 = 0;

const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;

const META_MARK: u32 = 3;
const META_L4PROTO: u32 = 16;
const CT_STATE: u32 = 0;
const CT_STATUS: u32 = 2;
const CT_STATE_NEW: u32 = 1 << 3;
const CT_STATUS_DNAT: u32 = 1 << 5;
const FIB_ADDRESS_TYPE: u32 = 3;
const FIB_SOURCE: u32 = 1;
const FIB_DESTINATION: u32 = 2;
const ADDRESS_TYPE_LOCAL: u32 = 2;

impl Rule {
    pub fn new(family: Family) -> Self {
        Self { family, expressions: Attributes::default(), anonymous: Vec::new(), comment: None }
    }

    /// A word for people who read the rules with `nft`. Cut at 128 bytes.
    #[must_use]
    pub fn comment(mut self, comment: &str) -> Self {
        let end = (0..=comment.len().min(128)).rev().find(|at| comment.is_char_boundary(*at)).unwrap_or(0);
        self.comment = Some(comment[..end].to_owned());
        self
    }

    // What matches.

    /// The packet's source is in the network of `prefix` bits around `address`, or, `unless`, is not.
    #[must_use]
    pub fn source_in(self, address: IpAddr, prefix: u8, unless: bool) -> Self {
        self.address_in(Field::Source, address, prefix, unless)
    }

    /// The packet's destination is in the network of `prefix` bits around `address`, or, `unless`, is not.
    #[must_use]
    pub fn destination_in(self, address: IpAddr, prefix: u8, unless: bool) -> Self {
        self.address_in(Field::Destination, address, prefix, unless)
    }

    fn address_in(self, field: Field, address: IpAddr, prefix: u8, unless: bool) -> Self {
        let bytes = Key::new().address(address);
        let mask: Vec<u8> = (0..bytes.bytes().len() as u32 * 8)
            .step_by(8)
            .map(|bit| !(0xffu32 >> u32::from(prefix).saturating_sub(bit).min(8)) as u8)
            .collect();
        let network: Vec<u8> = bytes.bytes().iter().zip(&mask).map(|(byte, mask)| byte & mask).collect();
        self.load(&[field]).mask(&mask).compare(&network, if unless { NOT_EQUAL } else { EQUAL })
    }

    #[must_use]
    pub fn protocol(self, protocol: u8) -> Self {
        self.load(&[Field::Protocol]).compare(&[protocol], EQUAL)
    }

    /// The destination is one of this machine's own addresses.
    #[must_use]
    pub fn destination_is_local(self) -> Self {
        self.fib(FIB_DESTINATION).compare(&ADDRESS_TYPE_LOCAL.to_ne_bytes(), EQUAL)
    }

    /// The source is one of this machine's own addresses.
    #[must_use]
    pub fn source_is_local(self) -> Self {
        self.fib(FIB_SOURCE).compare(&ADDRESS_TYPE_LOCAL.to_ne_bytes(), EQUAL)
    }

    /// The packet is the first of a connection.
    #[must_use]
    pub fn is_new(self) -> Self {
        self.conntrack(CT_STATE).mask(&CT_STATE_NEW.to_ne_bytes()).compare(&[0; 4], NOT_EQUAL)
    }

    /// The connection's destination was translated.
    #[must_use]
    pub fn was_translated(self) -> Self {
        self.conntrack(CT_STATUS).mask(&CT_STATUS_DNAT.to_ne_bytes()).compare(&[0; 4], NOT_EQUAL)
    }

    /// The packet's mark has one of these bits.
    #[must_use]
    pub fn marked(self, bits: u32) -> Self {
        self.load(&[Field::Mark]).mask(&bits.to_ne_bytes()).compare(&[0; 4], NOT_EQUAL)
    }

    /// The fields, joined, are in the set.
    #[must_use]
    pub fn in_set(self, fields: &[Field], set: &str) -> Self {
        self.load(fields).lookup(set, 0, None, false)
    }

    /// The fields, joined, are not in the set.
    #[must_use]
    pub fn not_in_set(self, fields: &[Field], set: &str) -> Self {
        self.load(fields).lookup(set, 0, None, true)
    }

    /// The value that [`Rule::map`] or [`Rule::pick`] loaded is one of `values`.
    #[must_use]
    pub fn value_in(self, of: &[Type], values: &[Key]) -> Self {
        let mut elements = Elements::new();
        for value in values {
            elements.key(value);
        }
        let (mut rule, id) = self.anonymous_set(of, Value::None, elements);
        rule.expression("lookup", |lookup| {
            lookup.text(1, ANONYMOUS).number(2, REGISTER + 4).number(4, id);
        });
        rule
    }

    // What is done.

    /// Continues with the verdict that the fields lead to, if they lead to one.
    #[must_use]
    pub fn verdict_by(self, fields: &[Field], map: &str) -> Self {
        self.load(fields).lookup(map, 0, Some(VERDICT_REGISTER), false)
    }

    /// Loads the value that the fields lead to, for [`Rule::translate_destination`], [`Rule::remember`] and
    /// [`Rule::value_in`].
    #[must_use]
    pub fn map(self, fields: &[Field], map: &str) -> Self {
        self.load(fields).lookup(map, 0, Some(REGISTER + 4), false)
    }

    /// Loads the value that one of the numbers `first..first + count` leads to in a map, each as likely as the
    /// others.
    #[must_use]
    pub fn pick(mut self, first: u32, count: u32, map: &str) -> Self {
        self.expression("numgen", |numgen| {
            const RANDOM: u32 = 1;
            numgen.number(1, REGISTER).number(2, count).number(3, RANDOM).number(4, first);
        });
        self.lookup(map, 0, Some(REGISTER + 4), false)
    }

    /// Sends the connection to the address and port that were loaded.
    #[must_use]
    pub fn translate_destination(mut self) -> Self {
        let family = u32::from(self.family.number());
        let port = REGISTER + 4 + self.address_type().length() / 4;
        self.expression("nat", |nat| {
            const DESTINATION: u32 = 1;
            nat.number(1, DESTINATION).number(2, family).number(3, REGISTER + 4).number(5, port);
        });
        self
    }

    /// Keeps the value that was loaded in a map with a timeout, under the key `fields`, or keeps it for longer.
    #[must_use]
    pub fn remember(self, fields: &[Field], map: &str) -> Self {
        const UPDATE: u32 = 1;
        let mut rule = self.load(fields);
        rule.expression("dynset", |dynset| {
            dynset.text(1, map).number(3, UPDATE).number(4, REGISTER).number(5, REGISTER + 4);
        });
        rule
    }

    /// Removes the key `fields` from a map with a timeout, if it is there.
    #[must_use]
    pub fn forget(self, fields: &[Field], map: &str) -> Self {
        const DELETE: u32 = 2;
        // The kernel wants a value with the key of a map, also to delete it.
        let mut rule = self.map(fields, map);
        rule.expression("dynset", |dynset| {
            dynset.text(1, map).number(3, DELETE).number(4, REGISTER).number(5, REGISTER + 4);
        });
        rule
    }

    /// Gives the connection the address by which the packet leaves this machine, and a port at random.
    #[must_use]
    pub fn masquerade(mut self) -> Self {
        const RANDOM_FULLY: u32 = 1 << 4;
        self.expression("masq", |masq| {
            masq.number(1, RANDOM_FULLY);
        });
        self
    }

    /// Sets bits of the packet's mark.
    #[must_use]
    pub fn mark(self, bits: u32) -> Self {
        self.change_mark(!bits, bits)
    }

    /// Clears bits of the packet's mark.
    #[must_use]
    pub fn unmark(self, bits: u32) -> Self {
        self.change_mark(!bits, 0)
    }

    fn change_mark(self, keep: u32, toggle: u32) -> Self {
        let mut rule = self.load(&[Field::Mark]).mask_and_toggle(&keep.to_ne_bytes(), &toggle.to_ne_bytes());
        rule.expression("meta", |meta| {
            meta.number(2, META_MARK).number(3, REGISTER);
        });
        rule
    }

    /// Tells the sender at once that nobody listens: with a reset (TCP, for which the rule must have matched
    /// already) or with an ICMP message.
    #[must_use]
    pub fn reject(mut self, with_reset: bool) -> Self {
        let port_unreachable = if self.family == Family::Ipv4 { 3 } else { 4 };
        self.expression("reject", |reject| {
            if with_reset {
                reject.number(1, 1);
            } else {
                reject.number(1, 0).bytes(2, &[port_unreachable]);
            }
        });
        self
    }

    #[must_use]
    pub fn verdict(mut self, verdict: Verdict<'_>) -> Self {
        self.expression("immediate", |immediate| {
            immediate.number(1, VERDICT_REGISTER).nested(2, |data| verdict.write(data));
        });
        self
    }

    // The expressions behind the clauses.

    fn expression(&mut self, name: &str, fill: impl FnOnce(&mut Attributes)) {
        self.expressions.nested(1, |element| {
            element.text(1, name).nested(2, fill);
        });
    }

    fn address_type(&self) -> Type {
        match self.family {
            Family::Ipv4 => Type::Ipv4,
            Family::Ipv6 => Type::Ipv6,
        }
    }

    /// Loads fields one after the other. Keys are loaded from the first register on, values from the fifth; a key
    /// may be longer than four registers only where no value is loaded later.
    fn load(mut self, fields: &[Field]) -> Self {
        const NETWORK: u32 = 1;
        const TRANSPORT: u32 = 2;
        let address = self.address_type().length();
        let (source, destination) = if self.family == Family::Ipv4 { (12, 16) } else { (8, 24) };
        let mut register = REGISTER;
        for field in fields {
            let mut payload = |base, offset, length| {
                self.expression("payload", |payload| {
                    payload.number(1, register).number(2, base).number(3, offset).number(4, length);
                });
            };
            match field {
                Field::Source => payload(NETWORK, source, address),
                Field::Destination => payload(NETWORK, destination, address),
                Field::DestinationPort => payload(TRANSPORT, 2, 2),
                Field::Protocol => {
                    self.expression("meta", |meta| {
                        meta.number(1, register).number(2, META_L4PROTO);
                    });
                }
                Field::Mark => self.expression("meta", |meta| {
                    meta.number(1, register).number(2, META_MARK);
                }),
            }
            register += if matches!(field, Field::Source | Field::Destination) { address / 4 } else { 1 };
        }
        self
    }

    fn conntrack(mut self, key: u32) -> Self {
        self.expression("ct", |ct| {
            ct.number(1, REGISTER).number(2, key);
        });
        self
    }

    fn fib(mut self, which: u32) -> Self {
        self.expression("fib", |fib| {
            fib.number(1, REGISTER).number(2, FIB_ADDRESS_TYPE).number(3, which);
        });
        self
    }

    fn mask(self, mask: &[u8]) -> Self {
        let nothing = vec![0; mask.len()];
        self.mask_and_toggle(mask, &nothing)
    }

    fn mask_and_toggle(mut self, mask: &[u8], toggle: &[u8]) -> Self {
        self.expression("bitwise", |bitwise| {
            bitwise.number(1, REGISTER).number(2, REGISTER).number(3, mask.len() as u32);
            bitwise.nested(4, |data| {
                data.bytes(DATA_VALUE, mask);
            });
            bitwise.nested(5, |data| {
                data.bytes(DATA_VALUE, toggle);
            });
        });
        self
    }

    fn compare(mut self, value: &[u8], how: u32) -> Self {
        self.expression("cmp", |cmp| {
            cmp.number(1, REGISTER).number(2, how).nested(3, |data| {
                data.bytes(DATA_VALUE, value);
            });
        });
        self
    }

    fn lookup(mut self, set: &str, from: u32, to: Option<u32>, unless: bool) -> Self {
        self.expression("lookup", |lookup| {
            lookup.text(1, set).number(2, REGISTER + from);
            if let Some(to) = to {
                lookup.number(3, to);
            }
            if unless {
                lookup.number(5, 1);
            }
        });
        self
    }

    /// Notes a set that lives and dies with this rule, under a number by which the rule finds it in its batch.
    fn anonymous_set(mut self, key: &[Type], value: Value<'_>, elements: Elements) -> (Self, u32) {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let set = Set { name: ANONYMOUS, key, value, timeout: None };
        self.anonymous.push((set.write(id, true), id, elements));
        (self, id)
    }
}
