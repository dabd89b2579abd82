//! Changes that happen together.

use crate::rule::Rule;
use crate::set::{ANONYMOUS, Elements, Set};
use crate::socket::Netfilter;
use crate::wire::{self, Attributes, Header};
use crate::{Error, Family, Result};

const SUBSYSTEM: u16 = 10;
const BEGIN: u16 = 0x10;
const END: u16 = 0x11;

const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const DELETE_CHAIN: u16 = 5;
const NEW_RULE: u16 = 6;
const DELETE_RULE: u16 = 8;
const NEW_SET: u16 = 9;
const DELETE_SET: u16 = 11;
const NEW_ELEMENTS: u16 = 12;
const DELETE_ELEMENTS: u16 = 14;

/// Where in a packet's way a base chain stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Translation of destinations as packets come in, and as this machine's own go out.
    TranslatePrerouting,
    TranslateOutput,
    /// Translation of sources as packets leave.
    TranslatePostrouting,
    /// Filters before destinations are translated.
    FilterPrerouting,
    FilterOutputEarly,
    FilterInput,
    FilterForward,
    FilterOutput,
}

impl Hook {
    /// The kernel's number of the hook, the priority, and the kind of chain.
    fn place(self) -> (u32, i32, &'static str) {
        const PREROUTING: u32 = 0;
        const INPUT: u32 = 1;
        const FORWARD: u32 = 2;
        const OUTPUT: u32 = 3;
        const POSTROUTING: u32 = 4;
        match self {
            Hook::TranslatePrerouting => (PREROUTING, -100, "nat"),
            Hook::TranslateOutput => (OUTPUT, -100, "nat"),
            Hook::TranslatePostrouting => (POSTROUTING, 100, "nat"),
            Hook::FilterPrerouting => (PREROUTING, -110, "filter"),
            Hook::FilterOutputEarly => (OUTPUT, -110, "filter"),
            Hook::FilterInput => (INPUT, 0, "filter"),
            Hook::FilterForward => (FORWARD, 0, "filter"),
            Hook::FilterOutput => (OUTPUT, 0, "filter"),
        }
    }
}

/// Changes to one table, in the order in which they were noted. The kernel makes all of them or, when it refuses
/// one, none; packets see the rules from before or those from after.
#[derive(Debug)]
pub struct Batch {
    family: Family,
    table: String,
    messages: Vec<u8>,
    /// Where the last message begins.
    last: usize,
    notes: Vec<String>,
}

impl Batch {
    pub fn new(family: Family, table: &str) -> Self {
        Self { family, table: table.to_owned(), messages: Vec::new(), last: 0, notes: Vec::new() }
    }

    pub fn is_empty(&self) -> bool {
        self.notes.is_empty()
    }

    /// Makes the table if it does not exist.
    pub fn add_table(&mut self) -> &mut Self {
        self.note(NEW_TABLE, wire::CREATE, "add the table", |body, table| {
            body.text(1, table).number(2, 0);
        })
    }

    /// Removes the table with all that is in it. Refused when there is none.
    pub fn delete_table(&mut self) -> &mut Self {
        self.note(DELETE_TABLE, 0, "delete the table", |body, table| {
            body.text(1, table);
        })
    }

    /// Leaves the table empty, whether it existed or not.
    pub fn renew_table(&mut self) -> &mut Self {
        self.add_table().delete_table().add_table()
    }

    /// Makes a chain that others jump to, if it does not exist.
    pub fn add_chain(&mut self, name: &str) -> &mut Self {
        self.note(NEW_CHAIN, wire::CREATE, &format!("add the chain {name}"), |body, table| {
            body.text(1, table).text(3, name);
        })
    }

    /// Makes a chain that packets enter.
    pub fn add_base_chain(&mut self, name: &str, hook: Hook) -> &mut Self {
        self.note(NEW_CHAIN, wire::CREATE, &format!("add the chain {name}"), |body, table| {
            let (number, priority, kind) = hook.place();
            body.text(1, table).text(3, name).text(7, kind);
            body.nested(4, |place| {
                place.number(1, number).number(2, priority.cast_unsigned());
            });
        })
    }

    /// Removes the rules of a chain.
    pub fn flush_chain(&mut self, name: &str) -> &mut Self {
        self.note(DELETE_RULE, 0, &format!("flush the chain {name}"), |body, table| {
            body.text(1, table).text(2, name);
        })
    }

    /// Removes a chain that nothing leads to any more, with its rules.
    pub fn delete_chain(&mut self, name: &str) -> &mut Self {
        self.flush_chain(name);
        self.note(DELETE_CHAIN, 0, &format!("delete the chain {name}"), |body, table| {
            body.text(1, table).text(3, name);
        })
    }

    /// Appends a rule to a chain.
    pub fn add_rule(&mut self, chain: &str, rule: &Rule) -> &mut Self {
        for (set, id, elements) in &rule.anonymous {
            self.note(NEW_SET, wire::CREATE, &format!("add a set of the chain {chain}"), |body, table| {
                body.text(1, table).0.extend_from_slice(&set.0);
            });
            for piece in elements.pieces() {
                self.note(
                    NEW_ELEMENTS,
                    wire::CREATE,
                    &format!("fill a set of the chain {chain}"),
                    |body, table| {
                        body.text(1, table).text(2, ANONYMOUS).number(4, *id).bytes(ELEMENTS, &piece.0);
                    },
                );
            }
        }
        self.note(NEW_RULE, wire::CREATE | wire::APPEND, &format!("add a rule to {chain}"), |body, table| {
            body.text(1, table).text(2, chain).bytes(EXPRESSIONS, &rule.expressions.0);
            if let Some(comment) = &rule.comment {
                // As `nft` writes it: kind, length, text with its zero byte.
                let mut data = vec![0, comment.len() as u8 + 1];
                data.extend_from_slice(comment.as_bytes());
                data.push(0);
                body.bytes(7, &data);
            }
        })
    }

    pub fn add_set(&mut self, set: &Set<'_>) -> &mut Self {
        self.note(NEW_SET, wire::CREATE, &format!("add the set {}", set.name), |body, table| {
            body.text(1, table).0.extend_from_slice(&set.write(0, false).0);
        })
    }

    /// Removes a set that no rule looks into any more.
    pub fn delete_set(&mut self, name: &str) -> &mut Self {
        self.note(DELETE_SET, 0, &format!("delete the set {name}"), |body, table| {
            body.text(1, table).text(2, name);
        })
    }

    /// Puts elements into a set. Those that are there already are left as they are.
    pub fn add_elements(&mut self, set: &str, elements: &Elements) -> &mut Self {
        for piece in elements.pieces() {
            self.note(NEW_ELEMENTS, wire::CREATE, &format!("add elements to {set}"), |body, table| {
                body.text(1, table).text(2, set).bytes(ELEMENTS, &piece.0);
            });
        }
        self
    }

    /// Takes elements out of a set. Refused when one of them is not there.
    pub fn delete_elements(&mut self, set: &str, elements: &Elements) -> &mut Self {
        for piece in elements.pieces() {
            self.note(DELETE_ELEMENTS, 0, &format!("delete elements of {set}"), |body, table| {
                body.text(1, table).text(2, set).bytes(ELEMENTS, &piece.0);
            });
        }
        self
    }

    /// Has the kernel make the changes.
    ///
    /// # Errors
    /// [`Error::Refused`] names the first change that the kernel did not like.
    pub fn commit(self) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let mut datagram = Vec::with_capacity(self.messages.len() + 40);
        let of_all = Header { family: 0, resource: SUBSYSTEM };
        wire::message(&mut datagram, BEGIN, wire::REQUEST, 0, of_all, &[]);
        let last = datagram.len() + self.last;
        datagram.extend_from_slice(&self.messages);
        // Refusals come unasked. That the last change is acknowledged shows that there were none.
        wire::set_flags(&mut datagram, last, wire::ACK);
        wire::message(&mut datagram, END, wire::REQUEST, self.notes.len() as u32 + 1, of_all, &[]);

        let socket = Netfilter::open()?;
        socket.send(&datagram)?;
        let mut acknowledged = false;
        for outcome in socket.outcomes()? {
            match outcome.error {
                None => acknowledged = true,
                Some(error) => {
                    let change = (outcome.sequence as usize).checked_sub(1);
                    let what =
                        change.and_then(|change| self.notes.get(change)).map_or("commit", String::as_str);
                    let what = format!("{what} in {}", self.table);
                    return Err(Error::Refused { what, error, detail: outcome.detail });
                }
            }
        }
        if acknowledged { Ok(()) } else { Err(Error::NoAnswer) }
    }

    fn note(
        &mut self,
        kind: u16,
        flags: u16,
        what: &str,
        fill: impl FnOnce(&mut Attributes, &str),
    ) -> &mut Self {
        let mut body = Attributes::default();
        fill(&mut body, &self.table);
        self.notes.push(what.to_owned());
        let sequence = self.notes.len() as u32;
        let header = Header { family: self.family.number(), resource: 0 };
        let kind = SUBSYSTEM << 8 | kind;
        self.last = self.messages.len();
        wire::message(&mut self.messages, kind, wire::REQUEST | flags, sequence, header, &body.0);
        self
    }
}

const ELEMENTS: u16 = 3 | 1 << 15;
const EXPRESSIONS: u16 = 4 | 1 << 15;
