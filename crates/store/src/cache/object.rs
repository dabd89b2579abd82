//! What the cache keeps of an object, and of a change of it.

use super::text::Text;
use crate::types::Revision;
use bytes::{BufMut, Bytes, BytesMut};
use std::{
    borrow::Cow,
    fmt,
    sync::{Arc, OnceLock},
};

/// The owner of a resource tells the cache what its values mean.
pub trait Decode: Send + Sync + 'static {
    /// Makes of a stored value what is served, and the head that is filtered by. `None` for a value that cannot be
    /// read: the object is then left out, and logged.
    fn decode(&self, key: &[u8], value: &Bytes) -> Option<(Text, Head)>;
}

impl<F> Decode for F
where
    F: Fn(&[u8], &Bytes) -> Option<(Text, Head)> + Send + Sync + 'static,
{
    fn decode(&self, key: &[u8], value: &Bytes) -> Option<(Text, Head)> {
        self(key, value)
    }
}

/// The part of an object that lists and watches are filtered by, and garbage collection looks at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Empty for an object of cluster scope.
    pub namespace: Box<str>,
    pub name: Box<str>,
    pub uid: Box<str>,
    pub labels: Box<[(Box<str>, Box<str>)]>,
    pub owners: Box<[Owner]>,
    /// The selectable fields beyond `metadata.name` and `metadata.namespace`.
    pub fields: Box<[(Cow<'static, str>, String)]>,
}

/// An owner reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub uid: Box<str>,
    pub controller: bool,
    pub block_owner_deletion: bool,
}

impl Head {
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(k, _)| &**k == name).map(|(_, v)| &**v)
    }

    /// A field's value, those of the metadata included; `None` for one that the kind does not have.
    pub fn field(&self, name: &str) -> Option<&str> {
        match name {
            "metadata.name" => Some(&self.name),
            "metadata.namespace" => Some(&self.namespace),
            _ => self.fields.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str()),
        }
    }
}

/// One object at one revision.
pub struct Object {
    pub key: Bytes,
    /// Canonical JSON, the same bytes as `value` wherever nothing had to be changed in them.
    pub text: Text,
    /// The stored value.
    pub value: Bytes,
    pub head: Head,
    pub revision: Revision,
}

impl Object {
    /// The object as it is sent: canonical JSON with `metadata.resourceVersion` inside.
    pub fn sent(&self) -> Bytes {
        self.text.sent(self.revision)
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Object({} at {})", self.key.escape_ascii(), self.revision)
    }
}

/// What happened to an object as a watcher sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Added,
    Modified,
    Deleted,
}

impl Kind {
    /// As watch events name it.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Added => "ADDED",
            Kind::Modified => "MODIFIED",
            Kind::Deleted => "DELETED",
        }
    }
}

/// `{"type":"ADDED","object":…}` and a newline: one event of a watch response.
pub fn frame(kind: Kind, object: &Text, revision: Revision) -> Bytes {
    let name = kind.name();
    let mut line = BytesMut::with_capacity(object.len(revision) + name.len() + 24);
    line.put_slice(b"{\"type\":\"");
    line.put_slice(name.as_bytes());
    line.put_slice(b"\",\"object\":");
    object.put(revision, 0, &mut line);
    line.put_slice(b"}\n");
    line.freeze()
}

/// One change of one object, shared by all who are told of it. What is sent is made once, when first needed.
pub struct Event {
    pub revision: Revision,
    /// The object after the change; `None` when it was deleted.
    pub current: Option<Arc<Object>>,
    /// The object before the change; `None` when it was created.
    pub prev: Option<Arc<Object>>,
    lines: [OnceLock<Bytes>; 3],
}

impl Event {
    pub(super) fn new(revision: Revision, current: Option<Arc<Object>>, prev: Option<Arc<Object>>) -> Self {
        Event { revision, current, prev, lines: Default::default() }
    }

    pub fn key(&self) -> &Bytes {
        match (&self.current, &self.prev) {
            (Some(object), _) | (None, Some(object)) => &object.key,
            (None, None) => unreachable!("an event is about an object"),
        }
    }

    /// What an event of this kind sends, and the resourceVersion in it. To a watcher for whom the object departs it is
    /// the last state, at the revision of the departure.
    fn told(&self, kind: Kind) -> Option<(&Text, Revision)> {
        match (kind, &self.current, &self.prev) {
            (Kind::Added | Kind::Modified, Some(current), _) | (_, Some(current), None) => {
                Some((&current.text, current.revision))
            }
            (_, _, Some(prev)) => Some((&prev.text, self.revision)),
            (_, None, None) => None,
        }
    }

    /// The object as it is sent in an event of this kind.
    pub fn object(&self, kind: Kind) -> Bytes {
        self.told(kind).map(|(text, revision)| text.sent(revision)).unwrap_or_default()
    }

    /// The event as a line of a JSON watch response, framed once for all watchers.
    pub fn line(&self, kind: Kind) -> Bytes {
        let framed =
            || self.told(kind).map(|(text, revision)| frame(kind, text, revision)).unwrap_or_default();
        self.lines[kind as usize].get_or_init(framed).clone()
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Event({} at {})", self.key().escape_ascii(), self.revision)
    }
}
