//! What ownership needs to know of values: which fields they have, how two differ, what becomes of two that are merged
//! and of one from which fields are taken. A schema says which objects and lists are one whole.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::set::{FieldSet, Node as SetNode};
use super::view::View;
use crate::schema::{ListKey, ListKind, Node, TypeRef};

/// Why a value is not of its type, in upstream's words: `.data.a: expected string, got …`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TypedError(pub String);

/// How an object, a list or a scalar is owned.
enum Shape<'s> {
    /// One whole.
    Leaf,
    Fields(TypeRef<'s>),
    Set,
    Keyed(&'s [ListKey], TypeRef<'s>),
}

fn shape<'s>(t: TypeRef<'s>, value: &impl View) -> Shape<'s> {
    match (t.node(), value.is_object()) {
        (Node::Object(o), _) if !o.atomic => Shape::Fields(t),
        (Node::Map { atomic: false, .. }, _) => Shape::Fields(t),
        // Of what the schema does not know, objects are told apart and lists are whole.
        (Node::Any, true) => Shape::Fields(t),
        (Node::List { kind: ListKind::Set, .. }, _) => Shape::Set,
        (Node::List { kind: ListKind::Map(keys), item, .. }, _) => Shape::Keyed(keys, t.schema().get(*item)),
        _ => Shape::Leaf,
    }
}

/// The element that an item of a list is known by.
fn element(keys: Option<&[ListKey]>, item: &impl View) -> Option<String> {
    let Some(keys) = keys else { return Some(format!("v:{}", item.to_value())) };
    let mut map = Map::new();
    for key in keys {
        let found = item.field(&key.name).filter(|v| !v.is_null()).map(View::to_value);
        map.insert(key.name.to_string(), found.or_else(|| key.default.clone())?);
    }
    Some(format!("k:{}", Value::Object(map)))
}

/// The items of a list by their elements, in order. Where two have one element they stand together.
fn by_element<'v, V: View>(keys: Option<&[ListKey]>, items: &'v [V]) -> Vec<(String, Vec<&'v V>)> {
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    let mut out: Vec<(String, Vec<&V>)> = Vec::with_capacity(items.len());
    for item in items {
        let Some(element) = element(keys, item) else { continue };
        if let Some(found) = places.get(&element).and_then(|i| out.get_mut(*i)) {
            found.1.push(item);
        } else {
            places.insert(element.clone(), out.len());
            out.push((element, vec![item]));
        }
    }
    out
}

fn is_empty(value: Option<&impl View>) -> bool {
    value.is_none_or(View::is_hollow)
}

/// The fields that a value has: what a manager owns who applies it.
pub fn field_set(value: &Value, t: TypeRef<'_>) -> FieldSet {
    let mut out = FieldSet::new();
    match (shape(t, value), value) {
        (Shape::Fields(t), Value::Object(fields)) => {
            for (name, value) in fields {
                let Some(inner) = t.member(name) else { continue };
                let named = t.field(name).is_some();
                let leaf = is_leaf(inner, value);
                let hollow = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                let below = if leaf { FieldSet::new() } else { field_set(value, inner) };
                let member = leaf || hollow || !named;
                if member || !below.is_empty() {
                    out.0.insert(format!("f:{name}"), SetNode { member, below });
                }
            }
        }
        (Shape::Set, Value::Array(items)) => {
            for item in items {
                out.0.insert(format!("v:{item}"), SetNode { member: true, below: FieldSet::new() });
            }
        }
        (Shape::Keyed(keys, item_type), Value::Array(items)) => {
            for (element, items) in by_element(Some(keys), items) {
                let below = match items.as_slice() {
                    [one] => field_set(one, item_type),
                    _ => FieldSet::new(),
                };
                out.0.insert(element, SetNode { member: true, below });
            }
        }
        _ => {}
    }
    out
}

fn is_leaf(t: TypeRef<'_>, value: &Value) -> bool {
    matches!(shape(t, value), Shape::Leaf)
}

/// How a value differs from the one before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    pub removed: FieldSet,
    pub modified: FieldSet,
    pub added: FieldSet,
}

impl Comparison {
    pub fn is_same(&self) -> bool {
        self.removed.is_empty() && self.modified.is_empty() && self.added.is_empty()
    }

    /// Leaves out what is at or below these fields.
    #[must_use]
    pub fn without(mut self, ignored: &[&[&str]]) -> Self {
        for set in [&mut self.removed, &mut self.modified, &mut self.added] {
            set.cut(ignored);
        }
        self
    }

    /// What a writer comes to own.
    pub fn changed(self) -> FieldSet {
        let mut out = self.added;
        out.extend(&self.modified);
        out
    }
}

/// Tells how `new` differs from `old`.
pub fn compare<V: View>(old: &V, new: &V, t: TypeRef<'_>) -> Comparison {
    let [removed, modified, added] = difference(Some(old), Some(new), t);
    Comparison { removed: removed.below, modified: modified.below, added: added.below }
}

/// What is removed, modified and added at and below a place.
type Difference = [SetNode; 3];

const REMOVED: usize = 0;
const MODIFIED: usize = 1;
const ADDED: usize = 2;

/// The difference of which the place itself is a member.
fn whole(kind: usize) -> Difference {
    let mut out = Difference::default();
    out[kind].member = true;
    out
}

fn add_below(out: &mut Difference, element: &str, tag: &str, below: Difference) {
    for (mine, node) in out.iter_mut().zip(below) {
        if node.member || !node.below.is_empty() {
            mine.below.0.insert([tag, element].concat(), node);
        }
    }
}

fn difference<V: View>(old: Option<&V>, new: Option<&V>, t: TypeRef<'_>) -> Difference {
    let Some(seen) = new.filter(|v| !v.is_null()).or(old) else { return Difference::default() };
    let shape = shape(t, seen);
    if matches!(shape, Shape::Leaf) || (is_empty(old) && is_empty(new)) {
        // The difference between nothing and an empty value is kept, too.
        return match (old, new) {
            (None, Some(_)) => whole(ADDED),
            (Some(_), None) => whole(REMOVED),
            (Some(a), Some(b)) if !a.equals(b) => whole(MODIFIED),
            _ => Difference::default(),
        };
    }
    let mut out = Difference::default();
    match shape {
        Shape::Fields(t) => {
            for (name, a) in old.into_iter().flat_map(View::fields) {
                if let Some(t) = t.member(name) {
                    let below = difference(Some(a), new.and_then(|new| new.field(name)), t);
                    add_below(&mut out, name, "f:", below);
                }
            }
            for (name, b) in new.into_iter().flat_map(View::fields) {
                if old.is_none_or(|old| old.field(name).is_none())
                    && let Some(t) = t.member(name)
                {
                    add_below(&mut out, name, "f:", difference(None, Some(b), t));
                }
            }
        }
        Shape::Set => items(None, t, old, new, &mut out),
        Shape::Keyed(keys, item) => items(Some(keys), item, old, new, &mut out),
        Shape::Leaf => {}
    }
    match (old, new) {
        (None, Some(_)) => out[ADDED].member = true,
        (Some(_), None) => out[REMOVED].member = true,
        _ => {}
    }
    out
}

fn items<V: View>(
    keys: Option<&[ListKey]>,
    item: TypeRef<'_>,
    old: Option<&V>,
    new: Option<&V>,
    out: &mut Difference,
) {
    let (a, b) =
        (by_element(keys, old.map_or(&[], View::items)), by_element(keys, new.map_or(&[], View::items)));
    let in_a: BTreeMap<&str, &[&V]> = a.iter().map(|(e, v)| (e.as_str(), v.as_slice())).collect();
    let in_b: BTreeMap<&str, &[&V]> = b.iter().map(|(e, v)| (e.as_str(), v.as_slice())).collect();
    let added = b.iter().filter(|(e, _)| !in_a.contains_key(e.as_str()));
    let same = |x: &[&V], y: &[&V]| x.len() == y.len() && x.iter().zip(y).all(|(a, b)| a.equals(b));
    for (element, _) in a.iter().chain(added) {
        let below = match (in_a.get(element.as_str()).copied(), in_b.get(element.as_str()).copied()) {
            (None, None) => continue,
            (Some([x]), Some([y])) if keys.is_some() => difference(Some(*x), Some(*y), item),
            (None, Some([y])) if keys.is_some() => difference(None, Some(*y), item),
            (Some([x]), None) if keys.is_some() => difference(Some(*x), None, item),
            // Items that are twice there are wholes.
            (Some(x), Some(y)) if same(x, y) => continue,
            (Some(_), Some(_)) => whole(MODIFIED),
            (None, Some(_)) => whole(ADDED),
            (Some(_), None) => whole(REMOVED),
        };
        add_below(out, element, "", below);
    }
}

/// Puts what is applied into what is there: fields are merged, wholes replaced, items of lists found by their keys.
/// The applied items come in their own order, and the others keep their places between them.
pub fn merge(live: &Value, applied: &Value, t: TypeRef<'_>) -> Value {
    match (shape(t, applied), live, applied) {
        (Shape::Fields(t), Value::Object(old), Value::Object(new)) => {
            let mut out = old.clone();
            for (name, value) in new {
                let merged = match (out.get(name), t.member(name)) {
                    (Some(old), Some(t)) => merge(old, value, t),
                    _ => value.clone(),
                };
                out.insert(name.clone(), merged);
            }
            Value::Object(out)
        }
        (Shape::Set, Value::Array(old), Value::Array(new)) => {
            Value::Array(merge_items(old, new, None, |_, new| new.clone()))
        }
        (Shape::Keyed(keys, item), Value::Array(old), Value::Array(new)) => {
            Value::Array(merge_items(old, new, Some(keys), |old, new| merge(old, new, item)))
        }
        _ => applied.clone(),
    }
}

fn merge_items(
    old: &[Value],
    new: &[Value],
    keys: Option<&[ListKey]>,
    merge: impl Fn(&Value, &Value) -> Value,
) -> Vec<Value> {
    let (old, new) = (by_element(keys, old), by_element(keys, new));
    let in_old: BTreeMap<&str, &[&Value]> = old.iter().map(|(e, v)| (e.as_str(), v.as_slice())).collect();
    let in_new: BTreeMap<&str, &[&Value]> = new.iter().map(|(e, v)| (e.as_str(), v.as_slice())).collect();
    let mut shared = new.iter().map(|(e, _)| e.as_str()).filter(|e| in_old.contains_key(e)).peekable();
    let mut done: BTreeSet<&str> = BTreeSet::new();
    let mut out = Vec::with_capacity(old.len() + new.len());
    let (mut old_left, mut new_left) = (old.iter().peekable(), new.iter().peekable());
    loop {
        match (old_left.peek(), new_left.peek()) {
            (None, None) => return out,
            // An item of both lists whose turn has not come.
            (Some((o, _)), Some((n, _)))
                if o != n && in_new.contains_key(o.as_str()) && shared.peek().is_some_and(|s| s != o) =>
            {
                old_left.next();
                continue;
            }
            _ => {}
        }
        if let Some((o, values)) = old_left.peek() {
            if !in_new.contains_key(o.as_str()) {
                out.extend(values.iter().map(|v| (*v).clone()));
                old_left.next();
                continue;
            }
            if done.contains(o.as_str()) {
                old_left.next();
            }
        }
        let Some((n, values)) = new_left.next() else { continue };
        match (in_old.get(n.as_str()), values.as_slice()) {
            (Some([a]), [b]) => out.push(merge(a, b)),
            _ => out.extend(values.iter().map(|v| (*v).clone())),
        }
        done.insert(n);
        if shared.peek() == Some(&n.as_str()) {
            shared.next();
        }
        if old_left.peek().is_some_and(|(o, _)| o == n) {
            old_left.next();
        }
    }
}

/// Takes fields away: members of the set go with all that is below them.
pub fn remove(value: &Value, set: &FieldSet, t: TypeRef<'_>) -> Value {
    if set.is_empty() {
        return value.clone();
    }
    match (shape(t, value), value) {
        (Shape::Fields(t), Value::Object(fields)) => {
            let mut out = Map::new();
            for (name, value) in fields {
                match (set.0.get(&format!("f:{name}")), t.member(name)) {
                    (Some(node), _) if node.member => {}
                    (Some(node), Some(t)) => {
                        let left = remove(value, &node.below, t);
                        // An object or list that lost all that it had is gone, too.
                        if !is_empty(Some(&left)) || is_empty(Some(value)) {
                            out.insert(name.clone(), left);
                        }
                    }
                    _ => {
                        out.insert(name.clone(), value.clone());
                    }
                }
            }
            Value::Object(out)
        }
        (Shape::Set, Value::Array(items)) => {
            let gone = |v: &&Value| !set.0.get(&format!("v:{v}")).is_some_and(|n| n.member);
            Value::Array(items.iter().filter(gone).cloned().collect())
        }
        (Shape::Keyed(keys, item), Value::Array(items)) => {
            let mut out = Vec::with_capacity(items.len());
            for value in items {
                let node = element(Some(keys), value).and_then(|e| set.0.get(&e));
                match node {
                    Some(node) if node.member => {}
                    Some(node) => out.push(remove(value, &node.below, item)),
                    None => out.push(value.clone()),
                }
            }
            Value::Array(out)
        }
        _ => value.clone(),
    }
}

/// Makes members of the named fields on the way to a member, so that a difference of two sets keeps objects whole.
pub(super) fn with_named_fields(set: &FieldSet, t: TypeRef<'_>) -> FieldSet {
    let each = set.0.iter().map(|(element, node)| {
        let (member, inner) = match element.strip_prefix("f:") {
            Some(name) => (node.member || t.field(name).is_some(), t.member(name)),
            None => (node.member, t.item()),
        };
        let below = inner.map_or_else(|| node.below.clone(), |t| with_named_fields(&node.below, t));
        (element.clone(), SetNode { member, below })
    });
    FieldSet(each.collect())
}

/// Checks that a value is of its type, as an applied object must be.
pub(super) fn validate(value: &Value, t: TypeRef<'_>) -> Result<(), TypedError> {
    let mut faults = Vec::new();
    validate_below(value, t, "", &mut faults);
    match faults.len() {
        0 => Ok(()),
        1 => Err(TypedError(faults.remove(0))),
        _ => {
            let all: Vec<String> = faults.iter().map(|f| format!("  {f}")).collect();
            Err(TypedError(format!("errors:\n{}", all.join("\n"))))
        }
    }
}

fn got(value: &Value) -> String {
    let shown = match value {
        Value::Object(_) => "map[string]interface {}{}".to_owned(),
        Value::Array(_) => "[]interface {}{}".to_owned(),
        other => other.to_string(),
    };
    format!("got &value.valueUnstructured{{Value:{shown}}}")
}

fn validate_below(value: &Value, t: TypeRef<'_>, path: &str, faults: &mut Vec<String>) {
    if value.is_null() {
        return;
    }
    let mut expected = |what: &str| {
        faults.push(format!("{path}: expected {what}, {}", got(value)));
    };
    match (t.node(), value) {
        (Node::String | Node::Bytes | Node::Time | Node::MicroTime, v) if !v.is_string() => {
            expected("string");
        }
        (Node::Bool, v) if !v.is_boolean() => expected("boolean"),
        (Node::Int32 | Node::Int64, v) if !(v.is_i64() || v.is_u64()) => expected("numeric (int or float)"),
        (Node::Double, v) if !v.is_number() => expected("numeric (int or float)"),
        (Node::Quantity | Node::IntOrString, v) if !(v.is_string() || v.is_number()) => expected("scalar"),
        (Node::Object(_) | Node::Map { .. }, Value::Object(fields)) => {
            for (name, value) in fields {
                let path = format!("{path}.{name}");
                match t.member(name) {
                    Some(t) => validate_below(value, t, &path, faults),
                    None => faults.push(format!("{path}: field not declared in schema")),
                }
            }
        }
        (Node::Object(_) | Node::Map { .. }, _) => expected("map"),
        (Node::List { item, kind, .. }, Value::Array(items)) => {
            let item_type = t.schema().get(*item);
            let mut seen = std::collections::HashSet::new();
            for (i, value) in items.iter().enumerate() {
                let keys = match kind {
                    ListKind::Atomic => {
                        validate_below(value, item_type, &format!("{path}[{i}]"), faults);
                        continue;
                    }
                    ListKind::Set => None,
                    ListKind::Map(keys) => Some(&**keys),
                };
                let Some(element) = element(keys, value) else {
                    let missing = keys.into_iter().flatten().find(|k| value.get(k.name.as_ref()).is_none());
                    let name = missing.map_or("", |k| k.name.as_ref());
                    faults.push(format!(
                        "{path}: element {i}: associative list with keys has an element that omits key field \
                         {name:?} (and doesn't have default value)"
                    ));
                    continue;
                };
                let mut only = FieldSet::new();
                only.insert(std::slice::from_ref(&element));
                let at = only.paths().concat();
                if !seen.insert(element) {
                    faults.push(format!("{path}: duplicate entries for key {at}"));
                }
                validate_below(value, item_type, &format!("{path}{at}"), faults);
            }
        }
        (Node::List { .. }, _) => expected("list"),
        _ => {}
    }
}
