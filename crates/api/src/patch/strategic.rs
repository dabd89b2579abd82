//! Strategic merge patches: merge patches that know by a type's schema which lists are merged, and by what key.
//!
//! What a patch may say beside values: `$patch: replace` or `delete` in an object or in an item of a list,
//! `$retainKeys: […]`, `$setElementOrder/FIELD: […]`, `$deleteFromPrimitiveList/FIELD: […]`.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::mem;

use serde_json::{Map, Value};

use super::PatchError;
use crate::schema::{Field, TypeRef};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const ORDER: &str = "$setElementOrder";
const DELETE_FROM: &str = "$deleteFromPrimitiveList";

type Fields = Map<String, Value>;
type Result<T> = std::result::Result<T, PatchError>;

/// Applies a strategic merge patch to an object of type `t`. Where it fails the document may be half changed.
pub fn strategic(document: &mut Value, patch: Value, t: TypeRef<'_>) -> Result<()> {
    let Value::Object(patch) = patch else {
        return Err(bad("strategic merge patch format is not supported"));
    };
    let original = match mem::take(document) {
        Value::Object(fields) => fields,
        _ => Fields::new(),
    };
    *document = Value::Object(merge_object(original, patch, Some(t))?);
    Ok(())
}

fn bad(text: &str) -> PatchError {
    PatchError::Malformed(text.to_owned())
}

fn bad_directive(found: &Value, patch: &Fields) -> PatchError {
    let found = found.as_str().map_or_else(|| found.to_string(), str::to_owned);
    PatchError::Internal(format!("unknown patch type: {found} in map: {}", go_map(patch)))
}

fn no_merge_key(item: &Fields, key: &str) -> PatchError {
    PatchError::Internal(format!("map: {} does not contain declared merge key: {key}", go_map(item)))
}

/// An object as Go prints a map.
fn go_map(fields: &Fields) -> String {
    fn shown(value: &Value) -> String {
        match value {
            Value::Null => "<nil>".to_owned(),
            Value::String(s) => s.clone(),
            Value::Array(items) => format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(" ")),
            Value::Object(fields) => go_map(fields),
            other => other.to_string(),
        }
    }
    let pairs: Vec<String> = fields.iter().map(|(k, v)| format!("{k}:{}", shown(v))).collect();
    format!("map[{}]", pairs.join(" "))
}

/// How a field is patched: its type, and what the schema says of it where it is a named field.
struct How<'s> {
    field: Option<&'s Field>,
    t: Option<TypeRef<'s>>,
}

impl<'s> How<'s> {
    fn of(t: Option<TypeRef<'s>>, name: &str) -> Self {
        How { field: t.and_then(|t| t.field(name)), t: t.and_then(|t| t.member(name)) }
    }

    fn merges_list(&self) -> bool {
        self.field.is_some_and(|f| f.patch.merge)
    }

    fn replaces(&self) -> bool {
        self.field.is_some_and(|f| f.patch.replace)
    }

    fn merge_key(&self) -> Option<&'s str> {
        self.field.and_then(|f| f.merge_key.as_deref())
    }
}

fn merge_object(mut original: Fields, mut patch: Fields, t: Option<TypeRef<'_>>) -> Result<Fields> {
    if let Some(directive) = patch.remove(PATCH) {
        return match directive.as_str() {
            Some("replace") => Ok(patch),
            Some("delete") => Ok(Fields::new()),
            _ => {
                patch.insert(PATCH.to_owned(), directive.clone());
                Err(bad_directive(&directive, &patch))
            }
        };
    }
    retain_keys(&mut original, &mut patch)?;
    merge_ordered_lists(&mut original, &mut patch, t)?;
    for (key, value) in patch {
        let deletes = key.starts_with(DELETE_FROM);
        let name = if deletes {
            directive_field(&key).ok_or_else(|| bad("invalid patch format of primitive list"))?
        } else {
            key.as_str()
        };
        if value.is_null() {
            original.remove(name);
            continue;
        }
        let how = How::of(t, name);
        let merged = match (original.remove(name), value) {
            (Some(Value::Object(old)), Value::Object(new)) => {
                Value::Object(if how.replaces() { new } else { merge_object(old, new, how.t)? })
            }
            (Some(Value::Array(old)), Value::Array(new)) => {
                Value::Array(merge_list_field(old, new, &how, deletes)?)
            }
            (Some(old), _) if deletes => old,
            (None, _) if deletes => continue,
            (_, mut new) => {
                discard_nulls(&mut new);
                drop_directives(new)
            }
        };
        original.insert(name.to_owned(), merged);
    }
    Ok(original)
}

/// The field that a directive is about: what follows the slash.
fn directive_field(key: &str) -> Option<&str> {
    key.split('/').nth(1)
}

/// `$retainKeys` says which keys the object may keep.
fn retain_keys(original: &mut Fields, patch: &mut Fields) -> Result<()> {
    const BAD: &str = "invalid patch format of retainKeys";
    let Some(keys) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let Value::Array(keys) = keys else { return Err(bad(BAD)) };
    let keys: HashSet<&str> = keys.iter().filter_map(Value::as_str).collect();
    let kept = |name: &str| keys.contains(name);
    let stray = |(key, value): (&String, &Value)| {
        !value.is_null() && !key.starts_with(DELETE_FROM) && !key.starts_with(ORDER) && !kept(key)
    };
    if patch.iter().any(stray) {
        return Err(bad(BAD));
    }
    original.retain(|key, _| kept(key));
    Ok(())
}

/// Lists for which the patch gives the order of the items.
fn merge_ordered_lists(original: &mut Fields, patch: &mut Fields, t: Option<TypeRef<'_>>) -> Result<()> {
    const BAD: &str = "invalid patch format of setElementOrder list";
    let keys: Vec<String> = patch.keys().filter(|k| k.starts_with(ORDER)).cloned().collect();
    for key in keys {
        let Some(Value::Array(order)) = patch.remove(&key) else { return Err(bad(BAD)) };
        let name = directive_field(&key).ok_or_else(|| bad(BAD))?;
        let how = How::of(t, name);
        let merge_key = how.merge_key();
        let list = |fields: &mut Fields| match fields.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(_) => Err(bad(BAD)),
        };
        // A null in the patch deletes the list, whatever its order.
        if patch.get(name).is_some_and(Value::is_null) {
            continue;
        }
        let (old, new) = (list(original)?, list(patch)?);
        if let Some(new) = &new {
            in_order(new, &order, merge_key)?;
        }
        let before = old.clone().unwrap_or_default();
        let merged = match (old, new) {
            (None, None) => continue,
            (Some(old), None) => old,
            (None, Some(new)) => match drop_directives(Value::Array(new)) {
                Value::Array(items) => items,
                _ => Vec::new(),
            },
            (Some(old), Some(new)) => merge_list_field(old, new, &how, false)?,
        };
        let merged = arrange(merged, &order, &before, merge_key);
        original.insert(name.to_owned(), Value::Array(merged));
    }
    Ok(())
}

/// The items of a patch must come in the order that it gives itself.
fn in_order(items: &[Value], order: &[Value], merge_key: Option<&str>) -> Result<()> {
    let mut rest = order.iter();
    for item in items.iter().filter(|i| i.get(PATCH).is_none()) {
        if !rest.any(|o| same(o, item, merge_key)) {
            let shown = |list: &[Value]| Value::Array(list.to_vec()).to_string();
            return Err(PatchError::Internal(format!(
                "The order in patch list:\n{}\n doesn't match {ORDER} list:\n{}\n",
                shown(items),
                shown(order)
            )));
        }
    }
    Ok(())
}

/// What an item is known by: the merge key, or its value.
fn identity<'v>(item: &'v Value, merge_key: Option<&str>) -> Option<&'v Value> {
    match merge_key {
        Some(key) => item.get(key),
        None => Some(item),
    }
}

/// Whether two items are one.
fn same(a: &Value, b: &Value, merge_key: Option<&str>) -> bool {
    identity(a, merge_key).is_some_and(|a| identity(b, merge_key) == Some(a))
}

/// Where in a list each item is, or the first of those that are one. Lists come from whoever may write, and are long
/// where he wants them to be: nothing is looked for item by item.
fn places<'v>(list: &'v [Value], merge_key: Option<&str>) -> HashMap<&'v Value, usize> {
    let mut places = HashMap::with_capacity(list.len());
    for (at, item) in list.iter().enumerate() {
        if let Some(identity) = identity(item, merge_key) {
            places.entry(identity).or_insert(at);
        }
    }
    places
}

fn merge_list_field(old: Vec<Value>, new: Vec<Value>, how: &How<'_>, deletes: bool) -> Result<Vec<Value>> {
    if !how.merges_list() && !deletes {
        return Ok(new);
    }
    merge_list(old, new, how, deletes)
}

fn merge_list(old: Vec<Value>, new: Vec<Value>, how: &How<'_>, deletes: bool) -> Result<Vec<Value>> {
    if old.is_empty() && new.is_empty() {
        return Ok(old);
    }
    let objects = old.iter().chain(&new).next().is_some_and(Value::is_object);
    if old.iter().chain(&new).any(|v| v.is_object() != objects) {
        return Err(bad("invalid patch format of primitive list"));
    }
    if !objects {
        if deletes {
            let gone: HashSet<&Value> = new.iter().collect();
            return Ok(old.into_iter().filter(|v| !gone.contains(v)).collect());
        }
        let mut seen = HashSet::with_capacity(old.len() + new.len());
        let both = old.iter().chain(&new).filter(|value| seen.insert(*value)).cloned().collect();
        return Ok(arrange(both, &new, &old, None));
    }
    let item = how.t.and_then(TypeRef::item);
    let Some(key) = how.merge_key() else {
        let name = item.map_or("", TypeRef::name).rsplit('.').next().unwrap_or_default();
        return Err(PatchError::Internal(format!("cannot merge lists without merge key for {name}")));
    };
    let (old, new) = special_items(old, new, key)?;
    let before = old.clone();
    let mut known = places(&before, Some(key));
    let mut merged = old;
    for value in &new {
        let Value::Object(fields) = value else { continue };
        let wanted = fields.get(key).ok_or_else(|| no_merge_key(fields, key))?;
        match known.entry(wanted) {
            Entry::Occupied(place) => {
                let Some(found) = merged.get_mut(*place.get()) else { continue };
                let Value::Object(old) = mem::take(found) else { continue };
                *found = Value::Object(merge_object(old, fields.clone(), item)?);
            }
            Entry::Vacant(place) => {
                let mut value = value.clone();
                discard_nulls(&mut value);
                // What is known by nothing is not found again.
                if !wanted.is_null() {
                    place.insert(merged.len());
                }
                merged.push(drop_directives(value));
            }
        }
    }
    Ok(arrange(merged, &new, &before, Some(key)))
}

/// Carries out the items of a patch that delete or replace; what is left is merged.
fn special_items(mut old: Vec<Value>, new: Vec<Value>, key: &str) -> Result<(Vec<Value>, Vec<Value>)> {
    let mut plain = Vec::with_capacity(new.len());
    let mut replace = false;
    let mut gone = HashSet::new();
    for value in new {
        let Value::Object(fields) = &value else { continue };
        match fields.get(PATCH) {
            None => plain.push(value),
            Some(directive) => match directive.as_str() {
                Some("delete") => {
                    gone.insert(fields.get(key).ok_or_else(|| no_merge_key(fields, key))?.clone());
                }
                Some("replace") => replace = true,
                Some("merge") => {
                    let text = "merging lists cannot yet be specified in the patch";
                    return Err(PatchError::Internal(text.to_owned()));
                }
                _ => return Err(bad_directive(directive, fields)),
            },
        }
    }
    old.retain(|item| item.get(key).is_none_or(|identity| !gone.contains(identity)));
    Ok(if replace { (plain, Vec::new()) } else { (old, plain) })
}

/// Puts merged items in order: those of the patch as the patch has them, the others as they were, and each of these
/// before the first of the patch's items that it stood before.
fn arrange(merged: Vec<Value>, patch: &[Value], before: &[Value], merge_key: Option<&str>) -> Vec<Value> {
    let (in_patch, in_before) = (places(patch, merge_key), places(before, merge_key));
    let (mut ours, mut others) = (Vec::new(), Vec::new());
    for item in merged {
        let identity = identity(&item, merge_key);
        let place =
            |places: &HashMap<&Value, usize>| identity.and_then(|identity| places.get(identity)).copied();
        match (place(&in_patch), place(&in_before)) {
            (Some(at), stood) => ours.push((at, stood, item)),
            (None, stood) => others.push((stood, item)),
        }
    }
    ours.sort_by_key(|(at, ..)| *at);
    others.sort_by_key(|(stood, _)| stood.unwrap_or(usize::MAX));
    let mut out = Vec::with_capacity(ours.len() + others.len());
    let (mut ours, mut others) = (ours.into_iter().peekable(), others.into_iter().peekable());
    loop {
        let stood_before = match (others.peek(), ours.peek()) {
            (None, None) => return out,
            (Some((other, _)), Some((_, our, _))) => matches!((other, our), (Some(a), Some(b)) if a < b),
            (other, _) => other.is_some(),
        };
        out.extend(if stood_before {
            others.next().map(|(_, item)| item)
        } else {
            ours.next().map(|(.., item)| item)
        });
    }
}

/// Where nothing is there to be deleted, a null means nothing.
fn discard_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, v| !v.is_null());
            fields.values_mut().for_each(discard_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(discard_nulls),
        _ => {}
    }
}

/// What a patch adds, without what it says to the merge.
fn drop_directives(value: Value) -> Value {
    let directive =
        |k: &str| k == PATCH || k == RETAIN_KEYS || k.starts_with(ORDER) || k.starts_with(DELETE_FROM);
    match value {
        Value::Object(fields) => Value::Object(
            fields.into_iter().filter(|(k, _)| !directive(k)).map(|(k, v)| (k, drop_directives(v))).collect(),
        ),
        Value::Array(items) => {
            Value::Array(items.into_iter().filter(|i| i.get(PATCH).is_none()).map(drop_directives).collect())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests;
