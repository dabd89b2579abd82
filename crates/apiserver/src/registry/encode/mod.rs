//! Objects as JSON, with upstream's eye for what is empty: `status: {}` is there though nothing was set, an empty
//! list of labels is not, `replicas: 0` is, `hostNetwork: false` is not.
//!
//! The typed structs know only set and unset, so [`to_vec`] asks a table of the few facts beyond that
//! (`empty.txt`). It is a serializer of its own: a field is written in place, and cut off again when it turns out
//! to be empty.

use std::collections::HashMap;
use std::fmt;
use std::sync::OnceLock;

use krate_api::schema::NEVER;
use serde::ser::{self, Serialize};
use serde_json::Value;

/// A time that Go holds by value, and prints as null where it was never set; the typed structs must have one.
const WHEN: &str = "lastTransitionTime";

/// Versions whose types the table has apart from those of their group's newest.
const OLDER: [&str; 1] = ["autoscaling/v1"];

/// The object as JSON. `T::GROUP` tells apart the few types of one name.
pub fn to_vec<T: Serialize + k8s_openapi::Resource>(object: &T) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    let group = if OLDER.contains(&T::API_VERSION) { T::API_VERSION } else { T::GROUP };
    write(object, group, &mut out);
    out
}

/// Any typed value as JSON, by the same rules; for parts of objects.
pub fn part_to_vec<T: Serialize>(part: &T, group: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    write(part, group, &mut out);
    out
}

/// As [`part_to_vec`], to be looked into.
pub fn part_to_value<T: Serialize>(part: &T, group: &str) -> Value {
    serde_json::from_slice(&part_to_vec(part, group)).unwrap_or_default()
}

fn write<T: Serialize + ?Sized>(value: &T, group: &str, out: &mut Vec<u8>) {
    let begin = out.len();
    if value.serialize(Writer { out, group }).is_err() {
        // Typed objects always serialize: their maps have string keys.
        out.truncate(begin);
        out.extend_from_slice(b"null");
    }
}

/// What a field's value turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Null,
    /// `false`, `0`, `""`, `[]`, or a map without entries.
    Zero,
    Other,
}

/// What is known of a field of a type.
struct Fact {
    field: &'static str,
    /// Printed when unset; empty for a pointer, which is then left out.
    unset: &'static str,
}

fn facts() -> &'static HashMap<&'static str, Vec<Fact>> {
    static FACTS: OnceLock<HashMap<&'static str, Vec<Fact>>> = OnceLock::new();
    FACTS.get_or_init(|| {
        let mut all = HashMap::new();
        for line in include_str!("empty.txt").lines().filter(|l| !l.starts_with('#')) {
            let mut words = line.split(' ');
            let Some(name) = words.next() else { continue };
            let mut facts: Vec<Fact> = words
                .map(|word| match word.split_once('=') {
                    Some((field, unset)) => Fact { field, unset: in_order(unset) },
                    None => Fact { field: word, unset: "" },
                })
                .collect();
            facts.sort_by_key(|fact| fact.field);
            all.insert(name, facts);
        }
        all
    })
}

/// JSON in the order in which the typed structs have their fields, so that an object is the same text once it was read.
fn in_order(json: &'static str) -> &'static str {
    let read: Result<Value, _> = serde_json::from_str(json);
    read.map_or(json, |value| Box::leak(value.to_string().into_boxed_str()))
}

fn facts_of(group: &str, name: &str) -> &'static [Fact] {
    let own = (!group.is_empty())
        .then_some([
            "HorizontalPodAutoscaler",
            "HorizontalPodAutoscalerSpec",
            "HorizontalPodAutoscalerStatus",
            "Event",
            "EventSeries",
            "EndpointPort",
            "Subject",
            "ResourceClaim",
            "TokenRequest",
            "ServiceReference",
        ])
        .filter(|shared| shared.contains(&name))
        .and_then(|_| facts().get(format!("{group}/{name}").as_str()));
    own.or_else(|| facts().get(name)).map_or(&[], Vec::as_slice)
}

/// Lists and bytes that upstream shows as null when empty, and that the typed structs cannot tell from unset.
const NULL_WHEN_EMPTY: [(&str, &str); 4] = [
    ("LimitRangeSpec", "limits"),
    ("CSINodeSpec", "drivers"),
    ("DeviceClaim", "requests"),
    ("PodCertificateRequestSpec", "stubPKCS10Request"),
];

#[derive(Debug)]
pub struct Never(String);

impl fmt::Display for Never {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Never {}

impl ser::Error for Never {
    fn custom<T: fmt::Display>(text: T) -> Self {
        Never(text.to_string())
    }
}

struct Writer<'a> {
    out: &'a mut Vec<u8>,
    group: &'a str,
}

impl Writer<'_> {
    fn plain(self, value: impl Serialize, zero: bool) -> Result<Shape, Never> {
        serde_json::to_writer(&mut *self.out, &value).map_err(|e| Never(e.to_string()))?;
        Ok(if zero { Shape::Zero } else { Shape::Other })
    }
}

/// An amount is kept in its canonical form, however it was written: `0.5` as `500m`.
fn canonical_quantity(out: &mut Vec<u8>, at: usize) {
    let Ok(text) = serde_json::from_slice::<std::borrow::Cow<'_, str>>(&out[at..]) else { return };
    let Ok(canonical) = krate_api::quantity::canonical(&text) else { return };
    if canonical != text {
        out.truncate(at);
        out.push(b'"');
        // No character of a quantity needs an escape.
        out.extend_from_slice(canonical.as_bytes());
        out.push(b'"');
    }
}

macro_rules! numbers {
    ($($method:ident $type:ty;)*) => {
        $(fn $method(self, v: $type) -> Result<Shape, Never> { self.plain(v, v == <$type>::default()) })*
    };
}

impl<'a> ser::Serializer for Writer<'a> {
    type Ok = Shape;
    type Error = Never;
    type SerializeSeq = List<'a>;
    type SerializeTuple = List<'a>;
    type SerializeTupleStruct = List<'a>;
    type SerializeTupleVariant = ser::Impossible<Shape, Never>;
    type SerializeMap = Map<'a>;
    type SerializeStruct = Struct<'a>;
    type SerializeStructVariant = ser::Impossible<Shape, Never>;

    numbers! {
        serialize_bool bool;
        serialize_i8 i8; serialize_i16 i16; serialize_i32 i32; serialize_i64 i64;
        serialize_u8 u8; serialize_u16 u16; serialize_u32 u32; serialize_u64 u64;
    }

    fn serialize_f32(self, v: f32) -> Result<Shape, Never> {
        self.plain(v, v == 0.0)
    }
    /// A whole number is shown without a fraction, as upstream shows it.
    fn serialize_f64(self, v: f64) -> Result<Shape, Never> {
        self.out.extend_from_slice(v.to_string().as_bytes());
        Ok(if v == 0.0 { Shape::Zero } else { Shape::Other })
    }
    fn serialize_char(self, v: char) -> Result<Shape, Never> {
        self.plain(v, false)
    }
    fn serialize_str(self, v: &str) -> Result<Shape, Never> {
        self.plain(v, v.is_empty())
    }
    fn serialize_bytes(self, v: &[u8]) -> Result<Shape, Never> {
        self.plain(v, v.is_empty())
    }
    fn serialize_none(self) -> Result<Shape, Never> {
        self.serialize_unit()
    }
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<Shape, Never> {
        value.serialize(self)
    }
    fn serialize_unit(self) -> Result<Shape, Never> {
        self.out.extend_from_slice(b"null");
        Ok(Shape::Null)
    }
    fn serialize_unit_struct(self, _: &'static str) -> Result<Shape, Never> {
        self.serialize_unit()
    }
    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Result<Shape, Never> {
        self.plain(variant, false)
    }
    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        value: &T,
    ) -> Result<Shape, Never> {
        match name {
            // Free JSON says what it is even when it looks empty.
            "RawExtension" | "JSON" | "FieldsV1" => value.serialize(self).map(|_| Shape::Other),
            "Quantity" => {
                let Writer { out, group } = self;
                let at = out.len();
                let shape = value.serialize(Writer { out: &mut *out, group })?;
                canonical_quantity(out, at);
                Ok(shape)
            }
            _ => value.serialize(self),
        }
    }
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<Shape, Never> {
        self.out.push(b'{');
        Writer { out: &mut *self.out, group: self.group }.serialize_str(variant)?;
        self.out.push(b':');
        value.serialize(Writer { out: &mut *self.out, group: self.group })?;
        self.out.push(b'}');
        Ok(Shape::Other)
    }
    fn serialize_seq(self, _: Option<usize>) -> Result<List<'a>, Never> {
        self.out.push(b'[');
        Ok(List { out: self.out, group: self.group, empty: true })
    }
    fn serialize_tuple(self, len: usize) -> Result<List<'a>, Never> {
        self.serialize_seq(Some(len))
    }
    fn serialize_tuple_struct(self, _: &'static str, len: usize) -> Result<List<'a>, Never> {
        self.serialize_seq(Some(len))
    }
    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleVariant, Never> {
        Err(Never("tuple variants have no JSON here".to_owned()))
    }
    fn serialize_map(self, _: Option<usize>) -> Result<Map<'a>, Never> {
        self.out.push(b'{');
        Ok(Map { out: self.out, group: self.group, empty: true })
    }
    fn serialize_struct(self, name: &'static str, _: usize) -> Result<Struct<'a>, Never> {
        self.out.push(b'{');
        let facts = facts_of(self.group, name);
        Ok(Struct {
            out: self.out,
            group: self.group,
            name,
            facts,
            written: 0,
            empty: true,
            is_object: false,
        })
    }
    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeStructVariant, Never> {
        Err(Never("struct variants have no JSON here".to_owned()))
    }
}

struct List<'a> {
    out: &'a mut Vec<u8>,
    group: &'a str,
    empty: bool,
}

impl List<'_> {
    fn item<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Never> {
        if !std::mem::replace(&mut self.empty, false) {
            self.out.push(b',');
        }
        value.serialize(Writer { out: self.out, group: self.group }).map(drop)
    }

    fn close(self) -> Shape {
        self.out.push(b']');
        if self.empty { Shape::Zero } else { Shape::Other }
    }
}

impl ser::SerializeSeq for List<'_> {
    type Ok = Shape;
    type Error = Never;
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Never> {
        self.item(value)
    }
    fn end(self) -> Result<Shape, Never> {
        Ok(self.close())
    }
}

impl ser::SerializeTuple for List<'_> {
    type Ok = Shape;
    type Error = Never;
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Never> {
        self.item(value)
    }
    fn end(self) -> Result<Shape, Never> {
        Ok(self.close())
    }
}

impl ser::SerializeTupleStruct for List<'_> {
    type Ok = Shape;
    type Error = Never;
    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Never> {
        self.item(value)
    }
    fn end(self) -> Result<Shape, Never> {
        Ok(self.close())
    }
}

struct Map<'a> {
    out: &'a mut Vec<u8>,
    group: &'a str,
    empty: bool,
}

impl ser::SerializeMap for Map<'_> {
    type Ok = Shape;
    type Error = Never;
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Never> {
        if !std::mem::replace(&mut self.empty, false) {
            self.out.push(b',');
        }
        key.serialize(Writer { out: self.out, group: self.group })?;
        self.out.push(b':');
        Ok(())
    }
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Never> {
        value.serialize(Writer { out: self.out, group: self.group }).map(drop)
    }
    fn end(self) -> Result<Shape, Never> {
        self.out.push(b'}');
        Ok(if self.empty { Shape::Zero } else { Shape::Other })
    }
}

struct Struct<'a> {
    out: &'a mut Vec<u8>,
    group: &'a str,
    name: &'static str,
    facts: &'static [Fact],
    /// Which of the facts' fields were written, by their place in the list.
    written: u64,
    empty: bool,
    /// Whether it says of which kind it is.
    is_object: bool,
}

impl Struct<'_> {
    fn open_field(&mut self, key: &str) {
        if !std::mem::replace(&mut self.empty, false) {
            self.out.push(b',');
        }
        self.out.push(b'"');
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    /// Prints the unset fields that come before a field, or all that are left.
    fn unset_before(&mut self, key: Option<&str>) {
        // What says of which kind an object is comes before all else.
        let first = key == Some("apiVersion") && self.empty;
        if first || (self.is_object && key == Some("kind")) {
            self.is_object = true;
            return;
        }
        for (i, fact) in self.facts.iter().enumerate() {
            if key.is_some_and(|key| fact.field >= key) {
                break;
            }
            if !fact.unset.is_empty() && self.written & (1 << i) == 0 {
                self.written |= 1 << i;
                self.open_field(fact.field);
                self.out.extend_from_slice(fact.unset.as_bytes());
            }
        }
    }
}

impl ser::SerializeStruct for Struct<'_> {
    type Ok = Shape;
    type Error = Never;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), Never> {
        self.unset_before(Some(key));
        let (begin, was_empty) = (self.out.len(), self.empty);
        self.open_field(key);
        let at = self.out.len();
        let shape = value.serialize(Writer { out: &mut *self.out, group: self.group })?;
        let fact = self.facts.iter().position(|f| f.field == key);
        let text = self.out[at..].strip_prefix(b"\"");
        let is_never = || text.is_some_and(|text| text.starts_with(NEVER.as_bytes()));
        let hollow = shape == Shape::Zero && NULL_WHEN_EMPTY.contains(&(self.name, key));
        if hollow || (key == WHEN && is_never()) {
            self.out.truncate(at);
            self.out.extend_from_slice(b"null");
        } else if shape != Shape::Other && fact.is_none() {
            self.out.truncate(begin);
            self.empty = was_empty;
        }
        if let Some(i) = fact {
            self.written |= 1 << i;
        }
        Ok(())
    }

    fn end(mut self) -> Result<Shape, Never> {
        self.unset_before(None);
        self.out.push(b'}');
        Ok(Shape::Other)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec};
    use k8s_openapi::api::core::v1::{Event, Pod};
    use k8s_openapi::api::rbac::v1::ClusterRole;
    use serde_json::json;

    use super::*;

    fn encoded<T: Serialize + k8s_openapi::Resource>(object: &T) -> Value {
        serde_json::from_slice(&to_vec(object)).expect("JSON")
    }

    #[test]
    fn an_object_is_the_same_text_once_it_was_read() {
        let mut same = 0;
        for registry in crate::registry::erased::all() {
            let kind = registry.kind();
            let hollow = json!({"metadata": {"name": "a"}, "spec": {"template": {"spec": {}}}}).to_string();
            for text in [r#"{"metadata":{"name":"a"}}"#, hollow.as_str()] {
                let Ok(object) = registry.decode(text.as_bytes()) else { continue };
                let once = String::from_utf8(object.to_json()).expect("text");
                let again = registry.decode(once.as_bytes()).unwrap_or_else(|e| panic!("{}: {e}", kind.kind));
                let again = String::from_utf8(again.to_json()).expect("text");
                // What is required and nobody gave is empty once it was read; validation lets none through.
                let hollow = |text: &str| text.replace("[]", "null").replace("{}", "null");
                assert_eq!(hollow(&again), hollow(&once), "{}", kind.kind);
                same += 1;
            }
        }
        assert!(same > 60, "only {same} objects could be read");
    }

    #[test]
    fn what_is_empty_is_left_out_unless_upstream_prints_it() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "a\"b", "labels": {}, "generateName": ""},
            "spec": {
                "hostNetwork": false, "automountServiceAccountToken": false, "nodeSelector": {}, "tolerations": [],
                "securityContext": {}, "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "c", "tty": false, "ports": [{"containerPort": 80, "hostPort": 0}],
                                "env": [{"name": "E", "value": ""}],
                                "resources": {"requests": {"cpu": "0.5"}}}],
                "volumes": [{"name": "v", "emptyDir": {}}],
            },
        }))
        .expect("pod");
        assert_eq!(
            encoded(&pod),
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": "a\"b"},
                "spec": {
                    "automountServiceAccountToken": false, "securityContext": {}, "terminationGracePeriodSeconds": 0,
                    "containers": [{"name": "c", "resources": {"requests": {"cpu": "500m"}}, "ports": [{"containerPort": 80}],
                                    "env": [{"name": "E"}]}],
                    "volumes": [{"name": "v", "emptyDir": {}}],
                },
                "status": {},
            })
        );
    }

    #[test]
    fn parts_that_were_never_set_are_whole() {
        let deployment = Deployment { spec: Some(DeploymentSpec::default()), ..Deployment::default() };
        let json = encoded(&deployment);
        assert_eq!(json["spec"]["strategy"], json!({}));
        assert_eq!(json["status"], json!({}));
        assert_eq!(encoded(&ClusterRole::default())["rules"], Value::Null);
        assert!(encoded(&ClusterRole::default()).as_object().expect("object").contains_key("rules"));
        let event = encoded(&Event::default());
        assert!(event.as_object().expect("object").contains_key("firstTimestamp"));
        assert_eq!(event["reportingComponent"], "");
        let event = encoded(&k8s_openapi::api::events::v1::Event::default());
        assert_eq!(event["regarding"], json!({}));
        assert!(!event.as_object().expect("object").contains_key("firstTimestamp"));
    }
}
