//! Structural schemas: one type for each place, said outside of alternatives, which only narrow down what it is
//! (upstream's `schema.ValidateStructural`).

use krate_api::{FieldErrors, FieldPath};
use serde_json::{Value, json};

use super::super::prune::{EMBEDDED, PRESERVE, says};
use crate::formats::pattern;

const INT_OR_STRING: &str = "x-kubernetes-int-or-string";
/// What an alternative may not say, and how that is told.
const FORBIDDEN_INSIDE: [(&str, &str); 12] = [
    ("type", "must be empty to be structural"),
    ("additionalProperties", "must be undefined to be structural"),
    ("default", "must be undefined to be structural"),
    ("title", "must be empty to be structural"),
    ("description", "must be empty to be structural"),
    ("nullable", "must be false to be structural"),
    (PRESERVE, "must be false to be structural"),
    (EMBEDDED, "must be false to be structural"),
    (INT_OR_STRING, "must be false to be structural"),
    ("x-kubernetes-list-map-keys", "must be empty to be structural"),
    ("x-kubernetes-list-type", "must be undefined to be structural"),
    ("x-kubernetes-map-type", "must be undefined to be structural"),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

/// The faults of a schema, sorted as upstream sorts them.
pub fn check(schema: &Value, at: &FieldPath) -> FieldErrors {
    let mut errors = FieldErrors::new();
    part(schema, Level::Root, at, &mut errors);
    complete(schema, Some(schema), at, at, &mut errors);
    let mut all: Vec<_> = errors.iter().cloned().collect();
    all.sort_by_key(ToString::to_string);
    let mut sorted = FieldErrors::new();
    for error in all {
        sorted.push(error);
    }
    sorted
}

fn text<'a>(schema: &'a Value, name: &str) -> &'a str {
    schema.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn inner<'a>(schema: &'a Value, name: &str) -> Option<&'a Value> {
    schema.get(name).filter(|inner| inner.is_object())
}

fn fields(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema.get("properties").and_then(Value::as_object).into_iter().flatten()
}

fn alternatives<'a>(schema: &'a Value, name: &str) -> &'a [Value] {
    schema.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// Whether alternatives say no more than that a value is a number or a text.
fn is_int_or_string(schema: &Value) -> bool {
    schema.get("anyOf") == Some(&json!([{"type": "integer"}, {"type": "string"}]))
}

fn part(schema: &Value, level: Level, at: &FieldPath, errors: &mut FieldErrors) {
    let (kind, items) = (text(schema, "type"), inner(schema, "items"));
    if kind == "array" && items.is_none() {
        errors.required(&at.child("items"), "must be specified");
    }
    if let Some(items) = items {
        part(items, Level::Item, &at.child("items"), errors);
    }
    for (name, field) in fields(schema) {
        part(field, Level::Field, &at.child("properties").key(name), errors);
    }
    let (embedded, preserves) = (says(schema, EMBEDDED), says(schema, PRESERVE));
    if schema.get("additionalProperties").is_some_and(|a| !a.is_null()) {
        let at = at.child("additionalProperties");
        if level == Level::Root {
            errors.forbidden(&at, "must not be used at the root");
        }
        if let Some(additional) = inner(schema, "additionalProperties") {
            part(additional, Level::Field, &at, errors);
        }
        if embedded {
            errors.forbidden(&at, "must not be used if x-kubernetes-embedded-resource is set");
        }
    }
    if says(schema, INT_OR_STRING) {
        for (name, said) in [(PRESERVE, preserves), (EMBEDDED, embedded)] {
            if said {
                errors.invalid(&at.child(name), true, "must be false if x-kubernetes-int-or-string is true");
            }
        }
    }
    let first = alternatives(schema, "allOf").first();
    values(schema, is_int_or_string(schema), first.is_some_and(is_int_or_string), at, errors);
    own_type(schema, kind, level, at, errors);
    let whole = level == Level::Root || embedded;
    for name in ["kind", "apiVersion"] {
        if let Some(field) = schema.get("properties").and_then(|fields| fields.get(name)).filter(|_| whole)
            && text(field, "type") != "string"
        {
            let at = at.child("properties").key(name).child("type");
            errors.invalid(&at, text(field, "type"), "must be string");
        }
    }
    if let Some(field) = schema.get("properties").and_then(|fields| fields.get("metadata")) {
        metadata(field, whole, level, &at.child("properties").key("metadata"), errors);
    }
    if embedded && !preserves && fields(schema).next().is_none() {
        let detail = "must not be empty if x-kubernetes-embedded-resource is true without \
                      x-kubernetes-preserve-unknown-fields";
        errors.required(&at.child("properties"), detail);
    }
}

fn own_type(schema: &Value, kind: &str, level: Level, at: &FieldPath, errors: &mut FieldErrors) {
    let at = at.child("type");
    if says(schema, EMBEDDED) && kind != "object" {
        let detail = "must be object if x-kubernetes-embedded-resource is true";
        if kind.is_empty() {
            errors.required(&at, detail);
        } else {
            errors.invalid(&at, kind, detail);
        }
    } else if kind.is_empty() && !says(schema, INT_OR_STRING) && !says(schema, PRESERVE) {
        errors.required(
            &at,
            match level {
                Level::Root => "must not be empty at the root",
                Level::Item => "must not be empty for specified array items",
                Level::Field => "must not be empty for specified object fields",
            },
        );
    }
    if level == Level::Root && !kind.is_empty() && kind != "object" {
        errors.invalid(&at, kind, "must be object at the root");
    }
}

/// Metadata is what every object's is; a definition may only say more of names.
fn metadata(schema: &Value, whole: bool, level: Level, at: &FieldPath, errors: &mut FieldErrors) {
    if whole && text(schema, "type") != "object" {
        errors.invalid(&at.child("type"), text(schema, "type"), "must be object");
    }
    let other = schema.as_object().into_iter().flatten().any(|(name, said)| match name.as_str() {
        "type" | "default" => false,
        "properties" => said.as_object().is_some_and(|fields| {
            fields.keys().any(|name| !matches!(name.as_str(), "name" | "generateName"))
        }),
        _ => !said.is_null() && *said != Value::Bool(false),
    });
    if level == Level::Root && other {
        let detail = "must not specify anything other than name and generateName, but metadata is implicitly specified";
        errors.forbidden(at, detail);
    }
}

/// What a schema says of values beside their type. The first alternatives of the kinds that are skipped may name types.
fn values(schema: &Value, skip_any: bool, skip_first: bool, at: &FieldPath, errors: &mut FieldErrors) {
    if !skip_any {
        for (i, one) in alternatives(schema, "anyOf").iter().enumerate() {
            nested(one, false, &at.child("anyOf").index(i), errors);
        }
    }
    for (i, one) in alternatives(schema, "allOf").iter().enumerate() {
        nested(one, skip_first && i == 0, &at.child("allOf").index(i), errors);
    }
    for (i, one) in alternatives(schema, "oneOf").iter().enumerate() {
        nested(one, false, &at.child("oneOf").index(i), errors);
    }
    if let Some(not) = inner(schema, "not") {
        nested(not, false, &at.child("not"), errors);
    }
    let pattern = text(schema, "pattern");
    if let Some(why) = pattern::wrong(pattern) {
        let detail = format!("must be a valid regular expression, but isn't: {why}");
        errors.invalid(&at.child("pattern"), pattern, detail);
    }
}

fn nested(schema: &Value, skip_any: bool, at: &FieldPath, errors: &mut FieldErrors) {
    values(schema, skip_any, false, at, errors);
    if let Some(items) = inner(schema, "items") {
        nested(items, false, &at.child("items"), errors);
    }
    for (name, field) in fields(schema) {
        nested(field, false, &at.child("properties").key(name), errors);
    }
    for (name, detail) in FORBIDDEN_INSIDE {
        let said = schema.get(name).is_some_and(|said| match said {
            Value::Null | Value::Bool(false) => false,
            Value::String(text) => !text.is_empty(),
            Value::Array(items) => !items.is_empty(),
            _ => true,
        });
        if said {
            errors.forbidden(&at.child(name), detail);
        }
    }
    if !alternatives(schema, "x-kubernetes-validations").is_empty() {
        errors.forbidden(&at.child("x-kubernetes-validations"), "must be empty to be structural");
    }
    if schema.get("properties").is_some_and(|fields| fields.get("metadata").is_some()) {
        let at = at.child("properties").key("metadata");
        errors.forbidden(&at, "must not be specified in a nested context");
    }
}

/// What alternatives speak of must be there outside of them. `there`: the structure itself.
fn complete(
    schema: &Value,
    there: Option<&Value>,
    there_at: &FieldPath,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    if let Some(not) = inner(schema, "not") {
        complete_nested(not, there, there_at, &at.child("not"), errors);
    }
    for name in ["allOf", "anyOf", "oneOf"] {
        for (i, one) in alternatives(schema, name).iter().enumerate() {
            complete_nested(one, there, there_at, &at.child(name).index(i), errors);
        }
    }
}

fn complete_nested(
    schema: &Value,
    there: Option<&Value>,
    there_at: &FieldPath,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    let Some(structure) = there else {
        return errors.required(there_at, format!("because it is defined in {at}"));
    };
    complete(schema, there, there_at, at, errors);
    if let Some(items) = inner(schema, "items") {
        let (there_at, at) = (there_at.child("items"), at.child("items"));
        complete_nested(items, inner(structure, "items"), &there_at, &at, errors);
    }
    for (name, field) in fields(schema) {
        let (there_at, at) = (there_at.child("properties").key(name), at.child("properties").key(name));
        let found = structure.get("properties").and_then(|fields| fields.get(name));
        complete_nested(field, found, &there_at, &at, errors);
    }
}
