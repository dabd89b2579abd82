//! The two ways by which managers come to own fields: changing them, and applying them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use serde_json::{Value, json};

use super::entries::{self, Entry, Key, ManagedFields, Operation};
use super::set::FieldSet;
use super::typed;
use super::versions::{Across, Changes, Versions};
use super::view::{Tree, View};
use super::{BEFORE_FIRST_APPLY, Conflict, ManagedError, whole_seconds};
use crate::schema::{self, TypeRef};

/// What is the same for both ways: who writes what, when.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The field manager; empty for a caller that gave none.
    pub manager: &'a str,
    /// The version of the object, as `apps/v1`.
    pub api_version: &'a str,
    /// Empty for the object itself.
    pub subresource: &'a str,
    pub now: Timestamp,
    pub schema: TypeRef<'a>,
    /// Fields that this endpoint resets, so that nobody comes to own them through it: `status` for an object with a
    /// status subresource, `spec` for the subresource.
    pub reset: &'a [&'a [&'a str]],
    /// What makes one version of the kind of another, where they differ in more than their names.
    pub versions: Option<&'a dyn Versions>,
}

/// Fields that no one owns.
const STRIPPED: &[&[&str]] = &[
    &["apiVersion"],
    &["kind"],
    &["metadata"],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "creationTimestamp"],
    &["metadata", "selfLink"],
    &["metadata", "uid"],
    &["metadata", "clusterName"],
    &["metadata", "generation"],
    &["metadata", "managedFields"],
    &["metadata", "resourceVersion"],
];

/// Tracks what a create (`live` is none), update or patch changed: `new` gets the managed fields that it is to be
/// stored with. What the caller wrote into its managed fields is heeded, as upstream does.
///
/// # Errors
/// Another version is not known ([`ManagedError::Unconverted`]), or cannot be.
pub fn on_update(live: Option<&Value>, new: &mut Value, request: Request<'_>) -> Result<(), ManagedError> {
    let given = entries::entries(new).unwrap_or_default();
    let there = || live.and_then(entries::entries);
    let managed = ManagedFields::of_write(there, given, request.subresource);
    super::take(new);
    let live = live.map(without_managed_fields);
    if let Some(managed) = changed(live.as_ref(), new, managed, &request)? {
        managed.write(new);
    }
    Ok(())
}

/// The same of objects as texts, of which no other version is made: the managed fields that the new one is to be stored with. `there` are those that are
/// stored and `given` those that the new one brings; what the texts have of them does not matter.
///
/// # Errors
/// A text is no JSON.
pub fn on_write(
    live: Option<&[u8]>,
    there: Option<&Vec<ManagedFieldsEntry>>,
    new: &[u8],
    given: Option<Vec<ManagedFieldsEntry>>,
    request: Request<'_>,
) -> Result<Option<Vec<ManagedFieldsEntry>>, serde_json::Error> {
    let managed = ManagedFields::of_write(|| there.cloned(), given.unwrap_or_default(), request.subresource);
    let live = live.map(read).transpose()?;
    let request = Request { versions: None, ..request };
    // Without other versions there is nothing that could go wrong.
    let managed = changed(live.as_ref(), &read(new)?, managed, &request).ok().flatten();
    Ok(managed.filter(|managed| !managed.0.is_empty()).map(ManagedFields::into_entries))
}

/// An object's text without its managed fields.
fn read(text: &[u8]) -> Result<Tree<'_>, serde_json::Error> {
    let mut tree = Tree::read(text)?;
    if let Some(meta) = tree.field_mut("metadata") {
        meta.take("managedFields");
    }
    Ok(tree)
}

fn changed<V: View + From<Value>>(
    live: Option<&V>,
    new: &V,
    managed: ManagedFields,
    request: &Request<'_>,
) -> Result<Option<ManagedFields>, ManagedError> {
    // An object that was stored without managed fields is not tracked until it is applied.
    if live.is_some() && managed.0.is_empty() {
        return Ok(None);
    }
    track(live, new, managed, request).map(Some)
}

/// An object before it was created, as upstream sees it: what Go holds by value is there.
fn nothing(t: TypeRef<'_>) -> Value {
    let mut value = json!({});
    schema::canonicalize(&mut value, t);
    value
}

fn without_managed_fields(object: &Value) -> Value {
    let mut out = object.clone();
    super::take(&mut out);
    out
}

fn track<V: View + From<Value>>(
    live: Option<&V>,
    new: &V,
    mut managed: ManagedFields,
    request: &Request<'_>,
) -> Result<ManagedFields, ManagedError> {
    let compared = match live {
        Some(live) => typed::compare(live, new, request.schema),
        None => typed::compare(&V::from(nothing(request.schema)), new, request.schema),
    };
    let compared = compared.without(request.reset);
    let changes = Changes::new(compared, &managed, (live, new), request)?;
    take_away(&mut managed, None, &changes);
    let mut changed = changes.into_own().changed();
    changed.forget(STRIPPED);
    if !changed.is_empty() {
        let key = Key::new(request.manager, Operation::Update, request.subresource, request.api_version);
        let entry =
            managed.0.entry(key).or_insert_with(|| Entry::new(FieldSet::new(), request.api_version, None));
        entry.gain(&changed, whole_seconds(request.now));
    }
    managed.cap();
    Ok(managed)
}

/// Takes what changed from those who owned it, and what is gone from everybody.
fn take_away(managed: &mut ManagedFields, except: Option<&Key>, changes: &Changes<'_>) {
    managed.0.retain(|key, entry| {
        if except == Some(key) {
            return true;
        }
        let version = entry.api_version.clone();
        let lost = changes.with(&version, |compared| {
            for fields in [&compared.modified, &compared.added, &compared.removed] {
                entry.lose(fields);
            }
        });
        lost.is_some()
    });
    managed.drop_empty();
}

/// Applies what a manager wants: the object that results, with its managed fields, or who is in the way.
///
/// `live` is none for an object that is to be created. The result is `live` itself, managed fields and all, where
/// nothing changes but times.
///
/// # Errors
/// Conflicts (unless `force`), an applied object that is not of its type or brings managed fields of its own.
pub fn apply(
    live: Option<&Value>,
    applied: &Value,
    request: Request<'_>,
    force: bool,
) -> Result<Value, ManagedError> {
    let given = applied["apiVersion"].as_str().unwrap_or_default();
    if given != request.api_version {
        return Err(ManagedError::Version {
            given: given.to_owned(),
            expected: request.api_version.to_owned(),
        });
    }
    if !applied["metadata"]["managedFields"].is_null() {
        return Err(ManagedError::ManagedFieldsGiven);
    }
    typed::validate(applied, request.schema).map_err(|e| ManagedError::Typed {
        what: "failed to create typed patch object",
        object: described(applied),
        fault: e.0,
    })?;
    let mut managed = live.and_then(ManagedFields::read).unwrap_or_default();
    if let (Some(live), true) = (live, managed.0.is_empty()) {
        // What was there before anybody was tracked belongs to somebody of its own.
        let before = Request { manager: BEFORE_FIRST_APPLY, subresource: "", ..request };
        managed = track(None, &without_managed_fields(live), managed, &before)?;
    }
    match apply_once(live, applied, &request, managed.clone(), force) {
        Err(ManagedError::Conflicts(conflicts)) if request.manager == "kubectl" => {
            // Fields that kubectl set by client-side apply are its own already.
            let own = live.map(|l| last_applied(l, request.schema)).unwrap_or_default().paths();
            let left: Vec<Conflict> = conflicts.into_iter().filter(|c| !own.contains(&c.path)).collect();
            if left.is_empty() {
                apply_once(live, applied, &request, managed, true)
            } else {
                Err(ManagedError::Conflicts(left))
            }
        }
        other => other,
    }
}

/// `namespace/name; group/version, Kind=KIND`.
fn described(object: &Value) -> String {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let meta = &object["metadata"];
    let (namespace, name) = (text(&meta["namespace"]), text(&meta["name"]));
    let api_version = text(&object["apiVersion"]);
    let slash = if api_version.contains('/') { "" } else { "/" };
    format!("{namespace}/{name}; {slash}{api_version}, Kind={}", text(&object["kind"]))
}

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

fn last_applied(live: &Value, t: TypeRef<'_>) -> FieldSet {
    let text = live["metadata"]["annotations"][LAST_APPLIED].as_str().unwrap_or_default();
    serde_json::from_str(text).map(|v: Value| typed::field_set(&v, t)).unwrap_or_default()
}

fn apply_once(
    live: Option<&Value>,
    applied: &Value,
    request: &Request<'_>,
    mut managed: ManagedFields,
    force: bool,
) -> Result<Value, ManagedError> {
    let t = request.schema;
    let old = live.map_or_else(|| nothing(t), without_managed_fields);
    let merged = typed::merge(&old, applied, t);
    let key = Key::new(request.manager, Operation::Apply, request.subresource, request.api_version);
    let before = managed.0.remove(&key);
    let mut wanted = typed::field_set(applied, t);
    wanted.cut(request.reset);
    wanted.forget(STRIPPED);
    let entry = Entry::new(wanted, request.api_version, Some(whole_seconds(request.now)));
    managed.0.insert(key.clone(), entry);
    let pruned = match &before {
        Some(last) if !last.set.is_empty() => prune(&merged, &managed, last, request)?,
        _ => merged,
    };
    let compared = typed::compare(&old, &pruned, t).without(request.reset);
    let both = (live.map(|_| &old), &pruned);
    let changes = Changes::new(compared, &managed, both, request)?;
    if !force {
        let conflicts = conflicts(&managed, &key, &changes);
        if !conflicts.is_empty() {
            return Err(ManagedError::Conflicts(conflicts));
        }
    }
    take_away(&mut managed, Some(&key), &changes);
    managed.drop_empty();
    // Where neither the object nor anybody's fields change, what is there stays as it is.
    if let (Some(live), true) = (live, changes.own().is_same()) {
        let there = ManagedFields::read(live).unwrap_or_default();
        if same_sets(&there, &managed) {
            return Ok(live.clone());
        }
    }
    let mut out = pruned;
    if request.manager == "kubectl" {
        renew_last_applied(&mut out, applied);
    }
    managed.write(&mut out);
    Ok(out)
}

fn same_sets(a: &ManagedFields, b: &ManagedFields) -> bool {
    let sets = |m: &ManagedFields| -> BTreeMap<Key, (FieldSet, String)> {
        m.0.iter().map(|(k, e)| (k.clone(), (e.set.clone(), e.api_version.clone()))).collect()
    };
    sets(a) == sets(b)
}

/// kubectl keeps the annotation of its client-side apply where it was.
fn renew_last_applied(object: &mut Value, applied: &Value) {
    if let Some(annotation) =
        object.pointer_mut("/metadata/annotations").and_then(|a| a.get_mut(LAST_APPLIED))
    {
        *annotation = Value::from(format!("{applied}\n"));
    }
}

fn conflicts(managed: &ManagedFields, own: &Key, changes: &Changes<'_>) -> Vec<Conflict> {
    let of = |(key, entry): (&Key, &Entry)| -> Vec<Conflict> {
        let manager = key.shown(&entry.api_version);
        let paths = changes.with(&entry.api_version, |compared| {
            entry.set.intersection(&compared.modified.union(&compared.added)).paths()
        });
        let paths = paths.unwrap_or_default();
        paths.into_iter().map(|path| Conflict { manager: manager.clone(), path }).collect()
    };
    managed.0.iter().filter(|(key, _)| *key != own).flat_map(of).collect()
}

/// Takes away what the manager applied before and does not want any more, unless another manager does.
fn prune(
    merged: &Value,
    managed: &ManagedFields,
    last: &Entry,
    request: &Request<'_>,
) -> Result<Value, ManagedError> {
    let across = Across::new(request);
    let version = across.version(&last.api_version);
    let Some((whole, t)) = across.object(merged, version)? else { return Ok(merged.clone()) };
    let last = typed::with_named_fields(&last.set, t);
    let mut pruned = typed::remove(&whole, &last, t);
    // What others own comes back: first what they own by the same version, without which it may not be convertible.
    let mut owned: BTreeMap<(bool, &str), FieldSet> = BTreeMap::new();
    for entry in managed.0.values() {
        let known_by = across.version(&entry.api_version);
        owned.entry((known_by != version, known_by)).or_default().extend(&entry.set);
    }
    for ((_, known_by), owned) in &owned {
        let (all, left) = (across.object(&whole, known_by)?, across.object(&pruned, known_by)?);
        let (Some((all, t)), Some((left, _))) = (all, left) else { continue };
        let named = |set: &FieldSet| typed::with_named_fields(set, t);
        let kept = named(&typed::field_set(&left, t)).union(&named(owned));
        let lost = named(&typed::field_set(&all, t)).difference(&kept);
        pruned = typed::remove(&all, &lost, t);
    }
    // What was never this manager's comes back.
    let Some((left, _)) = across.object(&pruned, version)? else { return Ok(merged.clone()) };
    let named = |value: &Value| typed::with_named_fields(&typed::field_set(value, t), t);
    let lost = named(&whole).difference(&named(&left)).intersection(&last);
    let pruned = typed::remove(&whole, &lost, t);
    let made = across.object(&pruned, across.version(request.api_version))?;
    Ok(made.map_or_else(|| merged.clone(), |(made, _)| made.into_owned()))
}
