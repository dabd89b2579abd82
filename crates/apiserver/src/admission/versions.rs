//! Requests as those are told of them who know their kind by another version (`matchPolicy: Equivalent`): HPAs of both
//! versions, Events of both groups, and custom resources are the same objects, whoever asks for them by which name.

use std::sync::Arc;

use krate_api::{Kind, StatusError};
use serde_json::Value;

use super::matching::Rule;
use super::{Attributes, review};
use crate::kinds::Kinds;
use crate::registry::erased::Object;
use crate::storage::Storage;

/// The kind as which rules mean a request: its own, or, if they say so, another of the same objects.
pub fn meant<'r>(
    kinds: &Kinds,
    attributes: &Attributes,
    mut rules: impl Iterator<Item = Rule<'r>> + Clone,
    equivalent: bool,
) -> Option<&'static Kind> {
    if rules.clone().any(|rule| rule.matches(attributes)) {
        return Some(attributes.kind);
    }
    if !equivalent {
        return None;
    }
    let shared = kinds.sharing(&*storage(kinds, attributes.kind)?);
    let others =
        || shared.iter().map(|other| other.kind()).filter(|kind| kind.gvk() != attributes.kind.gvk());
    // What comes first in the rules counts.
    rules.find_map(|rule| others().find(|kind| rule.means(attributes, kind)))
}

fn storage(kinds: &Kinds, kind: &Kind) -> Option<Arc<Storage>> {
    kinds.at(kind.group, kind.version, kind.plural)
}

fn served(kinds: &Kinds, kind: &Kind) -> Result<Arc<Storage>, StatusError> {
    storage(kinds, kind).ok_or_else(|| StatusError::internal(format!("{} is not served", kind.plural)))
}

/// An object of the request as one of `kind`; null if there is none.
///
/// # Errors
/// It cannot be converted.
pub async fn told(
    kinds: &Kinds,
    attributes: &Attributes,
    kind: &Kind,
    object: Option<&dyn Object>,
) -> Result<Value, StatusError> {
    // What is not stored is the same, by whichever version its parent is known.
    let differs = attributes.body.is_none() && kind.gvk() != attributes.kind.gvk();
    let Some(object) = object.filter(|_| differs) else {
        return Ok(review::object_json(object));
    };
    convert(kinds, attributes.kind, kind, &object.to_json()).await
}

/// Puts what was made of an object, as one of `kind`, in its place.
///
/// # Errors
/// It is no such object, or cannot be converted.
pub async fn put(
    kinds: &Kinds,
    attributes: &Attributes,
    kind: &Kind,
    object: &mut dyn Object,
    json: &Value,
) -> Result<(), StatusError> {
    let mut bytes = serde_json::to_vec(json).map_err(StatusError::internal)?;
    if let Some(body) = attributes.body {
        object.assign(&*(body.decode)(&bytes).map_err(StatusError::internal)?);
        return Ok(());
    }
    if kind.gvk() != attributes.kind.gvk() {
        let own = convert(kinds, kind, attributes.kind, &bytes).await?;
        bytes = serde_json::to_vec(&own).map_err(StatusError::internal)?;
    }
    let storage = served(kinds, attributes.kind)?;
    let mut new = storage.registry.decode(&bytes).map_err(StatusError::internal)?;
    storage.registry.default(&mut *new);
    object.assign(&*new);
    Ok(())
}

async fn convert(kinds: &Kinds, from: &Kind, to: &Kind, json: &[u8]) -> Result<Value, StatusError> {
    let (from, to) = (served(kinds, from)?, served(kinds, to)?);
    if to.converts_by_webhook() {
        let object = serde_json::from_slice(json).map_err(StatusError::internal)?;
        return to.convert(object).await;
    }
    let object = from.registry.decode(json).map_err(StatusError::internal)?;
    let stored = from.registry.to_stored(&*object);
    let made = to.registry.decode(&stored).map_err(StatusError::internal)?;
    serde_json::from_slice(&made.to_json()).map_err(StatusError::internal)
}
