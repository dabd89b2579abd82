//! The protobuf encoding of Kubernetes, driven by the schema's table: no type is generated.
//!
//! An object is four magic bytes, then a `runtime.Unknown` that holds its kind and the message. Unknown fields are
//! passed over, as protobuf has it. Decoding gives the canonical JSON form ([`crate::schema::canonicalize`]). Input is
//! not trusted: it is never read beyond its end, never deeper than [`DEPTH_MAX`], and what is built of it is bounded by
//! its size.

use serde_json::Value;

use crate::kind::Gvk;
use crate::schema::{self, TypeRef};

mod read;
pub mod wire;
mod write;

/// What clients ask for, and name what they send.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// What every encoded object starts with.
pub const MAGIC: [u8; 4] = *b"k8s\0";
/// How deep messages may be nested.
pub const DEPTH_MAX: usize = 100;

/// Why bytes are no object, or an object has no encoding.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    #[error("provided data does not appear to be a protobuf message, expected prefix {MAGIC:?}")]
    NoMagic,
    #[error("unexpected EOF")]
    Truncated,
    #[error("proto: wrong wireType = {wire} for field {field}")]
    WireType { field: u64, wire: u8 },
    #[error("proto: illegal tag or length")]
    Malformed,
    #[error("proto: messages are nested too deep")]
    TooDeep,
    #[error("a part that should be JSON is not: {0}")]
    Json(String),
    #[error("no kind \"{kind}\" is registered for version \"{api_version}\"")]
    UnknownKind { api_version: String, kind: String },
}

type Result<T> = std::result::Result<T, ProtobufError>;

/// An encoded object, of which only the kind is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    pub api_version: &'a str,
    pub kind: &'a str,
    /// The message.
    pub raw: &'a [u8],
}

impl<'a> Envelope<'a> {
    /// Reads the envelope alone.
    pub fn read(bytes: &'a [u8]) -> Result<Self> {
        let unknown = bytes.strip_prefix(&MAGIC).ok_or(ProtobufError::NoMagic)?;
        let mut out = Envelope { api_version: "", kind: "", raw: &[] };
        let text = |bytes: &'a [u8]| std::str::from_utf8(bytes).map_err(|_| ProtobufError::Malformed);
        for field in wire::fields(unknown) {
            let (number, value) = field?;
            match number {
                1 => {
                    for field in wire::fields(value.bytes(number)?) {
                        match field? {
                            (1, value) => out.api_version = text(value.bytes(1)?)?,
                            (2, value) => out.kind = text(value.bytes(2)?)?,
                            _ => {}
                        }
                    }
                }
                2 => out.raw = value.bytes(number)?,
                _ => {}
            }
        }
        Ok(out)
    }

    /// The type of the message.
    pub fn schema(&self) -> Result<TypeRef<'static>> {
        type_of(self.api_version, self.kind)
    }

    /// The object as JSON.
    pub fn decode(&self) -> Result<Value> {
        let t = self.schema()?;
        let mut object = read::message(self.raw, t, 0)?;
        schema::canonicalize(&mut object, t);
        if let Some(fields) = object.as_object_mut() {
            fields.insert("apiVersion".to_owned(), Value::from(self.api_version));
            fields.insert("kind".to_owned(), Value::from(self.kind));
        }
        Ok(object)
    }

    /// The encoded object.
    pub fn write(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.raw.len() + self.api_version.len() + self.kind.len() + 24);
        out.extend_from_slice(&MAGIC);
        wire::put_message(&mut out, 1, |out| {
            wire::put_bytes(out, 1, self.api_version.as_bytes());
            wire::put_bytes(out, 2, self.kind.as_bytes());
        });
        wire::put_bytes(&mut out, 2, self.raw);
        // Upstream writes the encoding and the media type of the message, which are empty.
        wire::put_bytes(&mut out, 3, &[]);
        wire::put_bytes(&mut out, 4, &[]);
        out
    }
}

fn type_of(api_version: &str, kind: &str) -> Result<TypeRef<'static>> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    schema::of(Gvk { group, version, kind }).ok_or_else(|| ProtobufError::UnknownKind {
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
    })
}

/// Decodes an object of a built-in kind into its canonical JSON form.
pub fn decode(bytes: &[u8]) -> Result<Value> {
    Envelope::read(bytes)?.decode()
}

/// Encodes an object of a built-in kind, which says its `apiVersion` and `kind`.
pub fn encode(object: &Value) -> Result<Vec<u8>> {
    let text = |field: &str| object[field].as_str().unwrap_or_default();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let raw = encode_message(object, type_of(api_version, kind)?);
    Ok(Envelope { api_version, kind, raw: &raw }.write())
}

/// The message of an object, without an envelope. Values that are not of their type are left out.
pub fn encode_message(object: &Value, t: TypeRef<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    write::message(object, t, &mut out);
    out
}

/// One event of a watch, framed as a stream of them is: its length as four bytes, then a `WatchEvent` without an
/// envelope. `object` is an encoded object with its own.
pub fn watch_frame(event: &str, object: &[u8]) -> Vec<u8> {
    let mut out = vec![0; 4];
    wire::put_bytes(&mut out, 1, event.as_bytes());
    wire::put_message(&mut out, 2, |out| wire::put_bytes(out, 1, object));
    let length = (out.len() - 4) as u32;
    out[..4].copy_from_slice(&length.to_be_bytes());
    out
}

#[cfg(test)]
mod tests;
