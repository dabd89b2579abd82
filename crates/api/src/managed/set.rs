//! Sets of fields: tries of path elements, in the form that `FieldsV1` has in JSON.
//!
//! An element is `f:NAME` for a field or a key of a map, `k:{…}` for an item of a list by its keys, `v:VALUE` for an
//! item by itself, `i:N` for an item by its place. A node is a member, or leads to members, or both.

use std::cmp::Ordering;
use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::sorted::Sorted;

/// A set of fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet(pub(super) Sorted<String, Node>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) member: bool,
    pub(super) below: FieldSet,
}

impl Node {
    fn is_empty(&self) -> bool {
        !self.member && self.below.is_empty()
    }
}

impl FieldSet {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads `fieldsV1`. What is no object is an empty set; keys are brought into one form.
    pub fn from_json(value: &Value) -> Self {
        let mut out = FieldSet::new();
        for (element, below) in value.as_object().into_iter().flatten() {
            if element == "." {
                continue;
            }
            let fields = below.as_object();
            let member = fields.is_none_or(|f| f.is_empty() || f.contains_key("."));
            out.0.insert(one_form(element), Node { member, below: FieldSet::from_json(below) });
        }
        out
    }

    pub fn to_json(&self) -> Value {
        let node = |n: &Node| {
            let mut value = n.below.to_json();
            if let (true, false, Some(fields)) = (n.member, n.below.is_empty(), value.as_object_mut()) {
                fields.insert(".".to_owned(), Value::Object(Map::new()));
            }
            value
        };
        Value::Object(self.0.iter().map(|(k, n)| (k.clone(), node(n))).collect())
    }

    /// Adds the field that a path leads to.
    pub fn insert(&mut self, path: &[String]) {
        let Some((last, before)) = path.split_last() else { return };
        let mut at = self;
        for element in before {
            at = &mut at.0.entry(element.as_str()).below;
        }
        at.0.entry(last.as_str()).member = true;
    }

    #[must_use]
    pub fn union(&self, other: &FieldSet) -> FieldSet {
        let mut out = self.clone();
        out.extend(other);
        out
    }

    pub fn extend(&mut self, other: &FieldSet) {
        for (element, node) in other.0.iter() {
            let mine = self.0.entry(element.as_str());
            mine.member |= node.member;
            mine.below.extend(&node.below);
        }
    }

    #[must_use]
    pub fn intersection(&self, other: &FieldSet) -> FieldSet {
        self.with_each(|element, node| {
            let theirs = other.0.get(element)?;
            Some(Node { member: node.member && theirs.member, below: node.below.intersection(&theirs.below) })
        })
    }

    /// The members that the other has not.
    #[must_use]
    pub fn difference(&self, other: &FieldSet) -> FieldSet {
        self.with_each(|element, node| {
            Some(match other.0.get(element) {
                None => node.clone(),
                Some(theirs) => Node {
                    member: node.member && !theirs.member,
                    below: node.below.difference(&theirs.below),
                },
            })
        })
    }

    fn with_each(&self, each: impl Fn(&str, &Node) -> Option<Node>) -> FieldSet {
        let kept = self.0.iter().filter_map(|(element, node)| {
            each(element, node).filter(|n| !n.is_empty()).map(|n| (element.clone(), n))
        });
        FieldSet(kept.collect())
    }

    /// Takes away the members of the other. Whether there were any.
    pub fn subtract(&mut self, other: &FieldSet) -> bool {
        let mut any = false;
        for (element, theirs) in other.0.iter() {
            let Some(mine) = self.0.get_mut(element) else { continue };
            any |= mine.member && theirs.member;
            mine.member &= !theirs.member;
            any |= mine.below.subtract(&theirs.below);
            if mine.is_empty() {
                self.0.remove(element);
            }
        }
        any
    }

    /// Takes away what is at or below these named fields.
    pub fn cut(&mut self, paths: &[&[&str]]) {
        for path in paths {
            self.at(path, &|node| *node = Node::default());
        }
    }

    /// Takes away these named fields, and nothing that is below them.
    pub fn forget(&mut self, paths: &[&[&str]]) {
        for path in paths {
            self.at(path, &|node| node.member = false);
        }
    }

    /// Changes the node of a named field, if it has one, and drops what is empty then.
    fn at(&mut self, path: &[&str], change: &dyn Fn(&mut Node)) {
        let Some((name, rest)) = path.split_first() else { return };
        self.0.change_by(
            |element| field_order(element, name),
            |node| {
                if rest.is_empty() {
                    change(node);
                } else {
                    node.below.at(rest, change);
                }
                !node.is_empty()
            },
        );
    }

    /// The paths of the members, as messages show them.
    pub fn paths(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.paths_below("", &mut out);
        out
    }

    fn paths_below(&self, before: &str, out: &mut Vec<String>) {
        // Upstream tells the members of a level before what is below them.
        for (element, _) in self.0.iter().filter(|(_, n)| n.member) {
            out.push(format!("{before}{}", shown(element)));
        }
        for (element, node) in self.0.iter() {
            node.below.paths_below(&format!("{before}{}", shown(element)), out);
        }
    }
}

/// How an element stands to that of a named field. A write looks for a dozen of them, and makes the text of none.
fn field_order(element: &str, name: &str) -> Ordering {
    match element.strip_prefix("f:") {
        Some(field) => field.cmp(name),
        None => element.cmp("f:"),
    }
}

/// The one form of an element: keys in order, no spaces.
fn one_form(element: &str) -> String {
    match element.split_at_checked(2) {
        Some((tag @ ("k:" | "v:"), json)) => match serde_json::from_str::<Value>(json) {
            Ok(value) => format!("{tag}{value}"),
            Err(_) => element.to_owned(),
        },
        _ => element.to_owned(),
    }
}

/// An element as messages show it.
fn shown(element: &str) -> String {
    match element.split_at_checked(2) {
        Some(("f:", name)) => format!(".{name}"),
        Some(("k:", json)) => {
            let keys: Map<String, Value> = serde_json::from_str(json).unwrap_or_default();
            let mut out = String::from("[");
            for (i, (name, value)) in keys.iter().enumerate() {
                let comma = if i > 0 { "," } else { "" };
                let _ = write!(out, "{comma}{name}={value}");
            }
            out.push(']');
            out
        }
        Some(("v:", json)) => format!("[={json}]"),
        Some(("i:", n)) => format!("[{n}]"),
        _ => element.to_owned(),
    }
}
