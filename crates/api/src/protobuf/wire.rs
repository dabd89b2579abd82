//! Protobuf's wire format: tags, varints, lengths. What is read is not trusted.

use super::{ProtobufError, Result};

/// What a field holds on the wire.
#[derive(Clone, Copy, Debug)]
pub enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    /// No field of Kubernetes is of this type: it is passed over.
    Fixed32,
}

impl<'a> Wire<'a> {
    /// The bytes of a string, a message, or a packed list.
    ///
    /// # Errors
    /// The field is of another wire type.
    pub fn bytes(self, field: u64) -> Result<&'a [u8]> {
        match self {
            Wire::Bytes(bytes) => Ok(bytes),
            Wire::Varint(_) => Err(ProtobufError::WireType { field, wire: 0 }),
            Wire::Fixed64(_) => Err(ProtobufError::WireType { field, wire: 1 }),
            Wire::Fixed32 => Err(ProtobufError::WireType { field, wire: 5 }),
        }
    }

    /// An integer or a boolean.
    ///
    /// # Errors
    /// The field is of another wire type.
    pub fn varint(self, field: u64) -> Result<u64> {
        match self {
            Wire::Varint(n) => Ok(n),
            Wire::Bytes(_) => Err(ProtobufError::WireType { field, wire: 2 }),
            Wire::Fixed64(_) => Err(ProtobufError::WireType { field, wire: 1 }),
            Wire::Fixed32 => Err(ProtobufError::WireType { field, wire: 5 }),
        }
    }
}

/// The fields of a message, in order. After an error there are no more.
pub fn fields(bytes: &[u8]) -> Fields<'_> {
    Fields { rest: bytes }
}

/// See [`fields`].
#[derive(Debug)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Wire<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Result<(u64, Wire<'a>)> {
        let tag = take_varint(&mut self.rest)?;
        let number = tag >> 3;
        if number == 0 || number > u64::from(u32::MAX >> 3) {
            return Err(ProtobufError::Malformed);
        }
        let value = match tag & 7 {
            0 => Wire::Varint(take_varint(&mut self.rest)?),
            1 => Wire::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let length = take_varint(&mut self.rest)?;
                let length = usize::try_from(length).map_err(|_| ProtobufError::Malformed)?;
                Wire::Bytes(self.split(length)?)
            }
            5 => {
                self.array::<4>()?;
                Wire::Fixed32
            }
            // Groups are not of this format.
            _ => return Err(ProtobufError::Malformed),
        };
        Ok((number, value))
    }

    fn split(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(ProtobufError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(ProtobufError::Truncated)?;
        self.rest = rest;
        Ok(*taken)
    }
}

/// Takes a varint off the front.
///
/// # Errors
/// It is cut short, or longer than 64 bits.
pub fn take_varint(bytes: &mut &[u8]) -> Result<u64> {
    let mut out = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().ok_or(ProtobufError::Truncated)?;
        *bytes = rest;
        out |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(out);
        }
    }
    Err(ProtobufError::Malformed)
}

/// Puts a varint without a tag.
pub fn put_raw_varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn put_tag(out: &mut Vec<u8>, field: u64, wire: u64) {
    put_raw_varint(out, field << 3 | wire);
}

/// Puts an integer or a boolean, zero too.
pub fn put_varint(out: &mut Vec<u8>, field: u64, n: u64) {
    put_tag(out, field, 0);
    put_raw_varint(out, n);
}

/// Puts a double, zero too.
pub fn put_double(out: &mut Vec<u8>, field: u64, n: f64) {
    put_tag(out, field, 1);
    out.extend_from_slice(&n.to_le_bytes());
}

/// Puts a string or bytes, empty too.
pub fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_tag(out, field, 2);
    put_raw_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Puts a message that `write` writes. Its length comes before it and is known after it: most fit in the one byte that
/// is kept free, and the others are moved.
pub fn put_message(out: &mut Vec<u8>, field: u64, write: impl FnOnce(&mut Vec<u8>)) {
    put_tag(out, field, 2);
    let at = out.len();
    out.push(0);
    write(out);
    let length = (out.len() - at - 1) as u64;
    if length < 0x80 {
        out[at] = length as u8;
    } else {
        let mut prefix = Vec::with_capacity(5);
        put_raw_varint(&mut prefix, length);
        out.splice(at..=at, prefix);
    }
}
