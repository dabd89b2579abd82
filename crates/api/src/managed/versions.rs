//! Owners who know an object by another version of its kind: what changed, and what is theirs, is told in the fields of
//! their own version, as far as something makes one version of the other.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use super::ManagedError;
use super::entries::ManagedFields;
use super::typed::{self, Comparison};
use super::update::Request;
use super::view::View;
use crate::schema::TypeRef;

/// Makes one version of a kind of another.
pub trait Versions: fmt::Debug + Sync {
    /// An object in a version (`group/version`).
    ///
    /// # Errors
    /// There is none: see [`Missing`].
    fn convert(&self, object: &Value, version: &str) -> Result<Value, Missing>;

    /// What objects of a version are; `None` if it is not served.
    fn schema(&self, version: &str) -> Option<TypeRef<'_>>;
}

/// Why there is no object in a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The version is not served: who knows the object by it owns nothing any more.
    Gone,
    /// It has to be asked for first: the same is to be tried again then.
    Unknown,
    /// It cannot be converted.
    Failed(String),
}

/// What is converted by, if anything is.
#[derive(Clone, Copy)]
pub struct Across<'a> {
    own: &'a str,
    schema: TypeRef<'a>,
    versions: Option<&'a dyn Versions>,
}

impl<'a> Across<'a> {
    pub fn new(request: &Request<'a>) -> Self {
        Across { own: request.api_version, schema: request.schema, versions: request.versions }
    }

    /// The version that an owner is held against: where nothing converts, all are as the request's.
    pub fn version<'v>(&self, version: &'v str) -> &'v str
    where
        'a: 'v,
    {
        if self.versions.is_some() { version } else { self.own }
    }

    /// An object in a version, with the type of its objects; `None` if there is no such version.
    pub fn object<'v>(
        &self,
        object: &'v Value,
        version: &str,
    ) -> Result<Option<(Cow<'v, Value>, TypeRef<'a>)>, ManagedError> {
        let is_in = object.get("apiVersion").and_then(Value::as_str).unwrap_or(self.own);
        let Some(versions) = self.versions.filter(|_| is_in != version) else {
            let schema = self.versions.filter(|_| version != self.own).and_then(|v| v.schema(version));
            return Ok(Some((Cow::Borrowed(object), schema.unwrap_or(self.schema))));
        };
        let converted = match versions.convert(object, version) {
            Ok(converted) => converted,
            Err(Missing::Gone) => return Ok(None),
            Err(Missing::Unknown) => return Err(ManagedError::Unconverted),
            Err(Missing::Failed(why)) => return Err(ManagedError::Conversion(why)),
        };
        let schema = if version == self.own { Some(self.schema) } else { versions.schema(version) };
        Ok(schema.map(|schema| (Cow::Owned(converted), schema)))
    }
}

/// How an object changed, in every version that an owner knows it by; nothing of a version that is gone.
pub struct Changes<'a> {
    own: Comparison,
    across: Across<'a>,
    others: BTreeMap<String, Option<Comparison>>,
}

impl<'a> Changes<'a> {
    /// Finds out all of it. `own`: how it changed in the request's version.
    pub fn new<V: View>(
        own: Comparison,
        managed: &ManagedFields,
        (old, new): (Option<&V>, &V),
        request: &Request<'a>,
    ) -> Result<Self, ManagedError> {
        let across = Across::new(request);
        let mut others = BTreeMap::new();
        if let (Some(old), Some(_)) = (old, request.versions) {
            for entry in managed.0.values().filter(|entry| entry.api_version != request.api_version) {
                if others.contains_key(&entry.api_version) {
                    continue;
                }
                let (old, new) = (old.to_value(), new.to_value());
                let version = &entry.api_version;
                let both = (across.object(&old, version)?, across.object(&new, version)?);
                let compared = match &both {
                    (Some((old, schema)), Some((new, _))) => {
                        Some(typed::compare(&**old, &**new, *schema).without(request.reset))
                    }
                    _ => None,
                };
                others.insert(version.clone(), compared);
            }
        }
        Ok(Changes { own, across, others })
    }

    pub fn own(&self) -> &Comparison {
        &self.own
    }

    pub fn into_own(self) -> Comparison {
        self.own
    }

    /// Does something with how it changed for who knows it by a version; `None` if the version is gone.
    pub fn with<T>(&self, version: &str, then: impl FnOnce(&Comparison) -> T) -> Option<T> {
        if self.across.version(version) == self.across.own {
            return Some(then(&self.own));
        }
        match self.others.get(version) {
            Some(Some(compared)) => Some(then(compared)),
            Some(None) => None,
            // Of an object that is made nobody knows anything by another version.
            None => Some(then(&self.own)),
        }
    }
}
