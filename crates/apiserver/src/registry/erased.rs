//! Strategies without their types, so that the path that every request takes is compiled once.

use std::any::Any;
use std::marker::PhantomData;
use std::sync::OnceLock;

use bytes::Bytes;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use krate_api::docs::Docs;
use krate_api::schema::{self, TypeRef};
use krate_api::{FieldErrors, FieldPath, Kind};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::column::definition;
use super::core::pod_spec;
use super::encode;
use super::strategy::{Context, Selectable, Strategy};

/// An object of some kind.
pub trait Object: Any + Send + Sync {
    fn meta(&self) -> &ObjectMeta;
    fn meta_mut(&mut self) -> &mut ObjectMeta;
    /// The object as it is stored and, its resourceVersion added, sent.
    fn to_json(&self) -> Vec<u8>;
    fn boxed_clone(&self) -> Box<dyn Object>;
    /// Becomes the same as another object of its kind.
    fn assign(&mut self, other: &dyn Object);
    fn as_any(&self) -> &(dyn Any + Send + Sync);
    fn as_any_mut(&mut self) -> &mut (dyn Any + Send + Sync);
}

impl<S: Strategy + k8s_openapi::Resource> Object for S {
    fn meta(&self) -> &ObjectMeta {
        self.metadata()
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.metadata_mut()
    }

    fn to_json(&self) -> Vec<u8> {
        encode::to_vec(self)
    }

    fn boxed_clone(&self) -> Box<dyn Object> {
        Box::new(self.clone())
    }

    fn assign(&mut self, other: &dyn Object) {
        if let Some(other) = other.is::<S>() {
            self.clone_from(other);
        }
    }

    fn as_any(&self) -> &(dyn Any + Send + Sync) {
        self
    }

    fn as_any_mut(&mut self) -> &mut (dyn Any + Send + Sync) {
        self
    }
}

/// What is asked for and never stored, such as an Eviction, as those see it that are asked about objects.
#[derive(Clone, Debug)]
pub struct Unstored<T>(pub T);

impl<T> Unstored<T>
where
    T: k8s_openapi::Metadata<Ty = ObjectMeta> + Clone + Serialize + DeserializeOwned + Send + Sync + 'static,
{
    /// # Errors
    /// The bytes are none of its kind.
    pub fn decode(json: &[u8]) -> Result<Box<dyn Object>, DecodeError> {
        Ok(Box::new(Unstored(serde_json::from_slice::<T>(json)?)))
    }
}

impl<T> Object for Unstored<T>
where
    T: k8s_openapi::Metadata<Ty = ObjectMeta> + Clone + Serialize + Send + Sync + 'static,
{
    fn meta(&self) -> &ObjectMeta {
        self.0.metadata()
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.metadata_mut()
    }

    fn to_json(&self) -> Vec<u8> {
        encode::to_vec(&self.0)
    }

    fn boxed_clone(&self) -> Box<dyn Object> {
        Box::new(self.clone())
    }

    fn assign(&mut self, other: &dyn Object) {
        if let Some(other) = other.is::<Self>() {
            self.clone_from(other);
        }
    }

    fn as_any(&self) -> &(dyn Any + Send + Sync) {
        self
    }

    fn as_any_mut(&mut self) -> &mut (dyn Any + Send + Sync) {
        self
    }
}

impl dyn Object {
    /// The typed object, if it is of this kind.
    pub fn is<T: 'static>(&self) -> Option<&T> {
        self.as_any().downcast_ref()
    }

    pub fn is_mut<T: 'static>(&mut self) -> Option<&mut T> {
        self.as_any_mut().downcast_mut()
    }
}

/// Why bytes are no object of a kind.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DecodeError(#[from] serde_json::Error);

/// A strategy, whatever its kind. A custom resource implements it from its schema.
pub trait Registry: Send + Sync + 'static {
    fn kind(&self) -> &'static Kind;
    /// Reads an object. Fields that the kind does not have are passed over.
    fn decode(&self, json: &[u8]) -> Result<Box<dyn Object>, DecodeError>;
    fn default(&self, object: &mut dyn Object);
    fn prepare_for_create(&self, object: &mut dyn Object, context: &Context);
    fn prepare_for_update(&self, object: &mut dyn Object, old: &dyn Object, context: &Context);
    fn prepare_for_status_update(&self, object: &mut dyn Object, old: &dyn Object, context: &Context);
    fn validate_name(&self, name: &str) -> Vec<String>;
    fn validate(&self, object: &dyn Object, errors: &mut FieldErrors);
    /// What is checked of a new object beyond that.
    fn validate_new(&self, _object: &dyn Object, _errors: &mut FieldErrors) {}
    /// `subresource` is that through which the object is updated; empty for the object itself.
    fn validate_update(
        &self,
        object: &dyn Object,
        old: &dyn Object,
        subresource: &str,
        errors: &mut FieldErrors,
    );
    /// Counts what is to be counted of an update that is committed.
    fn updated(&self, _object: &dyn Object, _old: &dyn Object) {}
    fn validate_status_update(&self, object: &dyn Object, old: &dyn Object, errors: &mut FieldErrors);
    fn warnings(&self, object: &dyn Object, old: Option<&dyn Object>) -> Vec<String>;
    fn selectable(&self, object: &dyn Object) -> Selectable;
    /// The same out of an object's JSON, for a kind of which little need be read for it.
    fn selectable_in(&self, _json: &[u8]) -> Option<Selectable> {
        None
    }
    /// The fields that a field selector may name.
    fn selectable_names(&self) -> Vec<&'static str>;
    /// The column definitions of its table.
    fn columns(&self) -> Value;
    /// The cells of its row.
    fn cells(&self, object: &dyn Object) -> Vec<Value>;
    /// Seconds of grace of a deletion; `None` for a kind that is deleted at once.
    fn grace_period(&self, object: &dyn Object, asked: Option<i64>) -> Option<i64>;
    fn allows_create_on_update(&self) -> bool;
    fn allows_unconditional_update(&self) -> bool;
    /// The type of its objects.
    fn schema(&self) -> Option<TypeRef<'_>> {
        schema::of(self.kind().gvk())
    }
    /// The OpenAPI v3 schema that its definition gives it; None for what the vocabulary describes.
    fn open_api(&self) -> Option<&Value> {
        None
    }
    /// Where its scale is; None for what has it where Deployments have theirs.
    fn scale_paths(&self) -> Option<&ScalePaths> {
        None
    }
    /// The finalizer that a deletion puts on an object, for the server itself to clear up behind it.
    fn cleanup_finalizer(&self) -> Option<&'static str> {
        None
    }
    /// What is stored of an object: it may be in another version.
    fn to_stored(&self, object: &dyn Object) -> Vec<u8> {
        object.to_json()
    }
    /// An object from the store in this version; None where it is stored as it is sent.
    fn as_sent(&self, _json: &Bytes) -> Option<Bytes> {
        None
    }
}

/// Where the objects of a kind have what a Scale shows, as paths of plain names: `.spec.replicas`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScalePaths {
    pub spec: String,
    pub status: String,
    /// A selector as text.
    pub selector: Option<String>,
}

/// Whether an object says to be of a kind.
fn is_of(json: &[u8], kind: &Kind) -> bool {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Said<'a> {
        #[serde(borrow, default)]
        api_version: std::borrow::Cow<'a, str>,
    }
    serde_json::from_slice::<Said<'_>>(json).is_ok_and(|said| said.api_version == kind.api_version())
}

/// The registry of a strategy.
pub struct Typed<S> {
    strategy: PhantomData<fn() -> S>,
    /// The column definitions of its table, made when they are first asked for.
    columns: OnceLock<Value>,
    /// The type of its objects, once it was looked up.
    schema: OnceLock<Option<TypeRef<'static>>>,
}

impl<S> Default for Typed<S> {
    fn default() -> Self {
        Typed { strategy: PhantomData, columns: OnceLock::new(), schema: OnceLock::new() }
    }
}

fn typed<S: 'static>(object: &dyn Object) -> &S {
    object.is().expect("a registry is given objects of its own kind")
}

fn typed_mut<S: 'static>(object: &mut dyn Object) -> &mut S {
    object.is_mut().expect("a registry is given objects of its own kind")
}

impl<S: Strategy + k8s_openapi::Resource> Typed<S> {
    /// What upstream reads where the typed struct insists on a field: it has its type's zero. Bodies rarely need it, and
    /// so they are read without it first.
    fn lenient(&self, json: &[u8]) -> Option<S> {
        let mut value: Value = serde_json::from_slice(json).ok()?;
        schema::complete(&mut value, self.schema()?);
        serde_json::from_value(value).ok()
    }
}

impl<S: Strategy + k8s_openapi::Resource> Registry for Typed<S> {
    fn kind(&self) -> &'static Kind {
        <S as Strategy>::KIND
    }

    fn decode(&self, json: &[u8]) -> Result<Box<dyn Object>, DecodeError> {
        let object = match S::STORED_AS {
            Some(stored) if is_of(json, stored) => S::of_stored(json)?,
            _ => serde_json::from_slice(json).or_else(|error| self.lenient(json).ok_or(error))?,
        };
        Ok(Box::new(object))
    }

    fn default(&self, object: &mut dyn Object) {
        typed_mut::<S>(object).default();
    }

    fn prepare_for_create(&self, object: &mut dyn Object, context: &Context) {
        let object = typed_mut::<S>(object);
        pod_spec::drop_disabled(object.pod_spec_mut(), None, &context.features);
        object.prepare_for_create(context);
    }

    fn prepare_for_update(&self, object: &mut dyn Object, old: &dyn Object, context: &Context) {
        let (object, old) = (typed_mut::<S>(object), typed::<S>(old));
        pod_spec::drop_disabled(object.pod_spec_mut(), old.pod_spec(), &context.features);
        object.prepare_for_update(old, context);
    }

    fn prepare_for_status_update(&self, object: &mut dyn Object, old: &dyn Object, context: &Context) {
        typed_mut::<S>(object).prepare_for_status_update(typed(old), context);
    }

    fn validate_name(&self, name: &str) -> Vec<String> {
        S::validate_name(name)
    }

    fn validate(&self, object: &dyn Object, errors: &mut FieldErrors) {
        typed::<S>(object).validate(&FieldPath::new(""), errors);
    }

    fn validate_new(&self, object: &dyn Object, errors: &mut FieldErrors) {
        let object = typed::<S>(object);
        pod_spec::refuse_disabled(object.pod_spec(), None, S::pod_spec_place, errors);
        object.validate_new(&FieldPath::new(""), errors);
    }

    fn validate_update(
        &self,
        object: &dyn Object,
        old: &dyn Object,
        subresource: &str,
        errors: &mut FieldErrors,
    ) {
        let (object, old, at) = (typed::<S>(object), typed::<S>(old), FieldPath::new(""));
        pod_spec::refuse_disabled(object.pod_spec(), old.pod_spec(), S::pod_spec_place, errors);
        match subresource {
            "" => object.validate_update(old, &at, errors),
            through => object.validate_through(through, old, &at, errors),
        }
    }

    fn updated(&self, object: &dyn Object, old: &dyn Object) {
        typed::<S>(object).updated(typed(old));
    }

    fn validate_status_update(&self, object: &dyn Object, old: &dyn Object, errors: &mut FieldErrors) {
        typed::<S>(object).validate_status_update(typed(old), &FieldPath::new(""), errors);
    }

    fn warnings(&self, object: &dyn Object, old: Option<&dyn Object>) -> Vec<String> {
        typed::<S>(object).warnings(old.map(typed))
    }

    fn selectable(&self, object: &dyn Object) -> Selectable {
        typed::<S>(object).selectable()
    }

    fn selectable_in(&self, json: &[u8]) -> Option<Selectable> {
        S::slim(json)?.ok().map(|slim| slim.selectable())
    }

    fn selectable_names(&self) -> Vec<&'static str> {
        // An object without anything has the fields nevertheless.
        let empty = serde_json::from_slice::<S>(b"{\"metadata\":{}}");
        let names = empty.map(|object| object.selectable()).unwrap_or_default();
        names.into_iter().map(|(name, _)| name).chain(["metadata.name", "metadata.namespace"]).collect()
    }

    fn columns(&self) -> Value {
        let columns = || {
            let docs = Docs::shared();
            S::COLUMNS.iter().map(|column| definition(column, &docs)).collect()
        };
        self.columns.get_or_init(columns).clone()
    }

    fn cells(&self, object: &dyn Object) -> Vec<Value> {
        let object = typed::<S>(object);
        S::COLUMNS.iter().map(|column| (column.cell)(object)).collect()
    }

    fn schema(&self) -> Option<TypeRef<'_>> {
        *self.schema.get_or_init(|| schema::of(self.kind().gvk()))
    }

    fn grace_period(&self, object: &dyn Object, asked: Option<i64>) -> Option<i64> {
        if S::GRACEFUL { typed::<S>(object).grace_period(asked) } else { None }
    }

    fn allows_create_on_update(&self) -> bool {
        S::ALLOW_CREATE_ON_UPDATE
    }

    fn allows_unconditional_update(&self) -> bool {
        S::ALLOW_UNCONDITIONAL_UPDATE
    }

    fn cleanup_finalizer(&self) -> Option<&'static str> {
        S::CLEANUP_FINALIZER
    }

    fn to_stored(&self, object: &dyn Object) -> Vec<u8> {
        typed::<S>(object).to_stored()
    }

    fn as_sent(&self, json: &Bytes) -> Option<Bytes> {
        S::STORED_AS?;
        // What does not convert was never stored.
        Some(S::of_stored(json).map_or_else(|_| json.clone(), |object| object.to_json().into()))
    }
}

macro_rules! erase {
    ($($kind:ty),* $(,)?) => {
        /// The registry of every kind that is stored.
        pub fn all() -> Vec<Box<dyn Registry>> {
            vec![$(Box::new(<Typed<$kind> as Default>::default())),*]
        }
    };
}
crate::every_kind!(erase);
