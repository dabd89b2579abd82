//! Objects read without their managed fields. No component asks who owns a field, and for a small object they are half
//! of it, in the form that is dearest to hold: nested maps.

use std::borrow::Cow;
use std::fmt;

use krate_api::json::Name;
use kube::Resource;
use serde::de::value::CowStrDeserializer;
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, IgnoredAny, IntoDeserializer, MapAccess, Visitor,
};

/// An object of which the managed fields are passed over while it is read.
#[derive(Clone, Debug)]
pub struct Slim<K>(pub K);

impl<K: Resource> Resource for Slim<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::kind(dt)
    }

    fn group(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::group(dt)
    }

    fn version(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::version(dt)
    }

    fn plural(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::plural(dt)
    }

    fn api_version(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::api_version(dt)
    }

    fn meta(&self) -> &kube::core::ObjectMeta {
        self.0.meta()
    }

    fn meta_mut(&mut self) -> &mut kube::core::ObjectMeta {
        self.0.meta_mut()
    }
}

impl<'de, K: Deserialize<'de>> Deserialize<'de> for Slim<K> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        K::deserialize(Slimming { inner: d, part: Part::Object }).map(Slim)
    }
}

/// What is being read.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    Object,
    Metadata,
}

/// Wraps what reads, visits or holds a part of an object. Beyond its maps nothing is changed.
struct Slimming<T> {
    inner: T,
    part: Part,
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Slimming<D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_any(Slimming { inner: visitor, part: self.part })
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_map(Slimming { inner: visitor, part: self.part })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.inner.deserialize_struct(name, fields, Slimming { inner: visitor, part: self.part })
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_option(Slimming { inner: visitor, part: self.part })
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.inner.deserialize_newtype_struct(name, Slimming { inner: visitor, part: self.part })
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct enum identifier ignored_any
    }
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Slimming<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        self.inner.visit_map(Fields { map, part: self.part, metadata_is_next: false })
    }

    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<V::Value, D::Error> {
        self.inner.visit_some(Slimming { inner: d, part: self.part })
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, d: D) -> Result<V::Value, D::Error> {
        self.inner.visit_newtype_struct(Slimming { inner: d, part: self.part })
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<V::Value, E> {
        self.inner.visit_none()
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<V::Value, E> {
        self.inner.visit_unit()
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Slimming<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<S::Value, D::Error> {
        self.inner.deserialize(Slimming { inner: d, part: self.part })
    }
}

/// The fields of a part, but for those that are passed over.
struct Fields<A> {
    map: A,
    part: Part,
    metadata_is_next: bool,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Fields<A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        loop {
            let Some(Name(name)) = self.map.next_key()? else { return Ok(None) };
            if self.part == Part::Metadata && name == "managedFields" {
                self.map.next_value::<IgnoredAny>()?;
                continue;
            }
            self.metadata_is_next = self.part == Part::Object && name == "metadata";
            let name: CowStrDeserializer<'_, A::Error> = name.into_deserializer();
            return seed.deserialize(name).map(Some);
        }
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        if self.metadata_is_next {
            self.map.next_value_seed(Slimming { inner: seed, part: Part::Metadata })
        } else {
            self.map.next_value_seed(seed)
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ConfigMap, Pod};
    use kube::core::{DynamicObject, PartialObjectMeta, WatchEvent};
    use serde_json::json;

    use super::*;

    #[test]
    fn all_but_the_managed_fields_is_read() {
        let meta = json!({
            "name": "a", "managedFields": [{"manager": "m", "fieldsV1": {"f:data": {}}}], "labels": {"managedFields": "no"},
        });
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"metadata": "x", "managedFields": "y"},
        });
        let mut wanted: ConfigMap = serde_json::from_value(object.clone()).expect("a ConfigMap");
        wanted.metadata.managed_fields = None;
        let Slim(read) = serde_json::from_str::<Slim<ConfigMap>>(&object.to_string()).expect("the same");
        assert_eq!(read, wanted);
        let line = json!({"type": "ADDED", "object": object}).to_string();
        let event: WatchEvent<Slim<ConfigMap>> = serde_json::from_str(&line).expect("an event");
        assert!(matches!(event, WatchEvent::Added(Slim(read)) if read == wanted));

        let Slim(read) =
            serde_json::from_value::<Slim<PartialObjectMeta<ConfigMap>>>(object.clone()).expect("metadata");
        assert_eq!(read.metadata, wanted.metadata);
        let Slim(read) = serde_json::from_value::<Slim<DynamicObject>>(object).expect("any object");
        assert_eq!((read.metadata, read.data), (wanted.metadata, json!({"data": wanted.data})));
    }

    #[test]
    fn metadata_of_what_an_object_holds_is_its_own() {
        let template = json!({"metadata": {"name": "inner", "managedFields": [{"manager": "m"}]}, "spec": {"containers": []}});
        let set = json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "outer", "managedFields": []},
            "spec": {"selector": {}, "template": template},
        });
        let Slim(read) = serde_json::from_value::<Slim<k8s_openapi::api::apps::v1::ReplicaSet>>(set)
            .expect("a ReplicaSet");
        assert_eq!(read.metadata.managed_fields, None);
        let inner = read.spec.and_then(|spec| spec.template).and_then(|template| template.metadata);
        assert!(inner.expect("metadata").managed_fields.is_some());
    }

    #[test]
    fn what_is_wrong_is_told() {
        let wrong = [
            "[]",
            "null",
            "{\"metadata\":[]}",
            "{\"metadata\":{\"managedFields\":[}}",
            "{\"kind\":\"Node\"}",
        ];
        for text in wrong {
            assert!(serde_json::from_str::<Slim<Pod>>(text).is_err(), "{text}");
        }
        let none = serde_json::from_str::<Slim<Pod>>("{\"metadata\":null}").expect("a pod of nothing");
        assert_eq!(none.0, Pod::default());
    }
}
