//! Netlink messages and attributes as bytes.

/// Length of `nlmsghdr`.
pub(crate) const HEADER: usize = 16;
/// Length of `nfgenmsg`, which follows the header in every netfilter message.
pub(crate) const NETFILTER_HEADER: usize = 4;
const NESTED: u16 = 1 << 15;

pub(crate) const REQUEST: u16 = 0x1;
pub(crate) const ACK: u16 = 0x4;
pub(crate) const DUMP: u16 = 0x300;
pub(crate) const CREATE: u16 = 0x400;
pub(crate) const APPEND: u16 = 0x800;

/// Attributes, one after the other, each padded to four bytes. Numbers are big-endian: netfilter's custom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes(pub(crate) Vec<u8>);

impl Attributes {
    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(4 + value.len()).expect("an attribute fits in 64 KiB");
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(crate) fn number(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn long(&mut self, kind: u16, value: u64) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// A string, with the zero byte that the kernel wants at its end.
    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(crate) fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes)) -> &mut Self {
        let mut inner = Attributes::default();
        fill(&mut inner);
        self.bytes(kind | NESTED, &inner.0)
    }
}

/// Appends one message to `buffer`.
pub(crate) fn message(
    buffer: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    sequence: u32,
    header: Header,
    body: &[u8],
) {
    let length = (HEADER + NETFILTER_HEADER + body.len()) as u32;
    buffer.extend_from_slice(&length.to_ne_bytes());
    buffer.extend_from_slice(&kind.to_ne_bytes());
    buffer.extend_from_slice(&flags.to_ne_bytes());
    buffer.extend_from_slice(&sequence.to_ne_bytes());
    buffer.extend_from_slice(&0u32.to_ne_bytes());
    buffer.extend_from_slice(&[header.family, 0]);
    buffer.extend_from_slice(&header.resource.to_be_bytes());
    buffer.extend_from_slice(body);
}

/// Adds flags to the message that begins at `at`.
pub(crate) fn set_flags(buffer: &mut [u8], at: usize, flags: u16) {
    let both = u16::from_ne_bytes([buffer[at + 6], buffer[at + 7]]) | flags;
    buffer[at + 6..at + 8].copy_from_slice(&both.to_ne_bytes());
}

/// `nfgenmsg` without its version, which is always zero.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Header {
    pub(crate) family: u8,
    pub(crate) resource: u16,
}

/// One message as received: its type, flags, sequence number and what follows the header.
#[derive(Debug)]
pub(crate) struct Received<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) body: &'a [u8],
}

/// The messages of a datagram. Stops at the first that is cut short.
pub(crate) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(datagram.get(..4)?.try_into().ok()?) as usize;
        if length < HEADER || length > datagram.len() {
            return None;
        }
        let received = Received {
            kind: u16::from_ne_bytes([datagram[4], datagram[5]]),
            flags: u16::from_ne_bytes([datagram[6], datagram[7]]),
            sequence: u32::from_ne_bytes([datagram[8], datagram[9], datagram[10], datagram[11]]),
            body: &datagram[HEADER..length],
        };
        datagram = &datagram[length.next_multiple_of(4).min(datagram.len())..];
        Some(received)
    })
}

/// The attributes in `bytes`: type (without flags) and value.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = &bytes[length.next_multiple_of(4).min(bytes.len())..];
        Some((kind, value))
    })
}

/// The value of the attribute `kind`.
pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_read_back() {
        let mut written = Attributes::default();
        written.text(1, "ab").number(2, 0x0102_0304).nested(3, |inner| {
            inner.bytes(1, &[9]);
        });
        assert_eq!(written.0.len() % 4, 0);
        assert_eq!(attribute(&written.0, 1), Some(b"ab\0".as_slice()));
        assert_eq!(attribute(&written.0, 2), Some([1, 2, 3, 4].as_slice()));
        assert_eq!(attribute(attribute(&written.0, 3).unwrap(), 1), Some([9].as_slice()));
        assert_eq!(attribute(&written.0, 4), None);
        assert_eq!(attributes(&written.0[..written.0.len() - 5]).count(), 2, "what is cut short is not read");
    }

    #[test]
    fn messages_are_read_back() {
        let mut buffer = Vec::new();
        message(&mut buffer, 7, REQUEST, 1, Header { family: 2, resource: 10 }, &[1, 2, 3, 4]);
        message(&mut buffer, 8, REQUEST | ACK, 2, Header::default(), &[]);
        let read: Vec<_> =
            messages(&buffer).map(|m| (m.kind, m.flags, m.sequence, m.body.to_vec())).collect();
        assert_eq!(read[0], (7, REQUEST, 1, vec![2, 0, 0, 10, 1, 2, 3, 4]));
        assert_eq!(read[1], (8, REQUEST | ACK, 2, vec![0, 0, 0, 0]));
        assert_eq!(messages(&buffer[..buffer.len() - 1]).count(), 1);
    }
}
