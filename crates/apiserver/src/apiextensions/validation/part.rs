//! The parts of a schema: what upstream allows of OpenAPI, and Kubernetes' own extensions of it.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use krate_api::field::Fault;
use krate_api::{FieldErrors, FieldPath};
use serde_json::Value;

use super::super::declared::declared;
use super::super::embedded;
use super::super::prune::{self, EMBEDDED, says};
use super::super::rules::Rules;
use super::super::values;
use super::said::{self, Costs};
use super::{schema_of, structural};

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
const LIST_TYPE: &str = "x-kubernetes-list-type";
const MAP_TYPE: &str = "x-kubernetes-map-type";
const LIST_KEYS: &str = "x-kubernetes-list-map-keys";
/// What an object with a status of its own may say at its root, as upstream names it and as JSON does.
const AT_ROOT: [(&str, &str); 22] = [
    ("Description", "description"),
    ("Type", "type"),
    ("Format", "format"),
    ("Title", "title"),
    ("Maximum", "maximum"),
    ("ExclusiveMaximum", "exclusiveMaximum"),
    ("Minimum", "minimum"),
    ("ExclusiveMinimum", "exclusiveMinimum"),
    ("MaxLength", "maxLength"),
    ("MinLength", "minLength"),
    ("Pattern", "pattern"),
    ("MaxItems", "maxItems"),
    ("MinItems", "minItems"),
    ("UniqueItems", "uniqueItems"),
    ("MultipleOf", "multipleOf"),
    ("Required", "required"),
    ("Items", "items"),
    ("Properties", "properties"),
    ("ExternalDocs", "externalDocs"),
    ("Example", "example"),
    ("XPreserveUnknownFields", "x-kubernetes-preserve-unknown-fields"),
    ("XValidations", "x-kubernetes-validations"),
];

/// Faults that were let in once, before there was a rule against them, stay allowed in a definition that has them.
#[derive(Default)]
pub struct Ratchet {
    odd_types: bool,
    odd_sets: bool,
    odd_keys: bool,
    unpruned: bool,
}

impl Ratchet {
    pub fn of(old: Option<&CustomResourceDefinition>) -> Self {
        let schemas: Vec<Value> =
            old.into_iter().flat_map(|old| old.spec.versions.iter().filter_map(schema_of)).collect();
        let some = |faulty: &dyn Fn(&Value) -> bool| schemas.iter().any(|schema| any(schema, faulty));
        let found = |check: &dyn Fn(&Value, &mut FieldErrors), schema: &Value| {
            let mut errors = FieldErrors::new();
            check(schema, &mut errors);
            !errors.is_empty()
        };
        let at = FieldPath::new("");
        Ratchet {
            odd_types: some(&|s| text(s, "type").is_some_and(|kind| !TYPES.contains(&kind))),
            odd_sets: some(&|s| found(&|s, errors| atomic_set(s, &at, errors), s)),
            odd_keys: some(&|s| found(&|s, errors| keys_and_items(s, &at, errors), s)),
            unpruned: some(&|s| s.get("default").is_some_and(|default| pruned(default, s) != *default)),
        }
    }
}

fn text<'a>(schema: &'a Value, name: &str) -> Option<&'a str> {
    schema.get(name).and_then(Value::as_str).filter(|text| !text.is_empty())
}

/// The schemas that a schema consists of, itself first, in no particular order.
pub fn each(schema: &Value, seen: &mut dyn FnMut(&Value)) {
    if !schema.is_object() {
        return;
    }
    seen(schema);
    for name in ["properties", "patternProperties", "definitions", "dependencies"] {
        schema
            .get(name)
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .for_each(|(_, inner)| each(inner, seen));
    }
    for name in ["allOf", "anyOf", "oneOf", "items"] {
        schema.get(name).and_then(Value::as_array).into_iter().flatten().for_each(|inner| each(inner, seen));
    }
    for name in ["items", "additionalProperties", "additionalItems", "not"] {
        if let Some(inner) = schema.get(name) {
            each(inner, seen);
        }
    }
}

/// Whether any part of a schema is so.
pub fn any(schema: &Value, is_so: &dyn Fn(&Value) -> bool) -> bool {
    let mut found = false;
    each(schema, &mut |part| found |= is_so(part));
    found
}

/// How many values there may be of a part; `None` without a limit.
#[derive(Clone, Copy)]
struct Times(Option<u64>);

/// What holds for a part by where it is.
#[derive(Clone)]
struct Place {
    root: bool,
    /// Why there may be no default.
    no_defaults: Option<String>,
    inside_meta: bool,
    /// The outermost part whose items cannot be told from what they were.
    uncorrelated: Option<FieldPath>,
    /// How many values rules are asked about; none where rules are not read.
    rules: Option<Times>,
}

/// One schema on its way through the rules.
struct Check<'a> {
    ratchet: &'a Ratchet,
    /// Whether the schema is what it was: then no single rule is too expensive.
    unchanged: bool,
    costs: Costs,
    schema_errors: FieldErrors,
    rule_errors: FieldErrors,
}

/// Checks a schema as a whole. `at`: where the schema is said (`spec.versions[0].schema`).
pub fn check(
    schema: &Value,
    has_status: bool,
    unchanged: bool,
    ratchet: &Ratchet,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    if has_status {
        root(schema, at, errors);
    }
    if says(schema, "nullable") {
        errors.forbidden(&at.child("openAPIV3Schema.nullable"), "nullable cannot be true at the root");
    }
    let at = at.child("openAPIV3Schema");
    let mut own = structural::check(schema, &at);
    if own.is_empty() {
        defaults(schema, true, ratchet, &at, &mut own);
    }
    let rules = own.is_empty().then_some(Times(Some(1)));
    errors.extend(own);
    let mut check = Check {
        ratchet,
        unchanged,
        costs: Costs::default(),
        schema_errors: FieldErrors::new(),
        rule_errors: FieldErrors::new(),
    };
    let place = Place { root: true, no_defaults: None, inside_meta: false, uncorrelated: None, rules };
    check.part(schema, &at, &place);
    errors.extend(check.schema_errors);
    errors.extend(check.rule_errors);
    check.costs.tell(&at, errors);
}

/// The status of an object is checked by what its schema says of `status`: all else at the root must not matter to it.
fn root(schema: &Value, at: &FieldPath, errors: &mut FieldErrors) {
    if text(schema, "type").is_some_and(|kind| kind != "object") {
        let detail = "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
        return errors.invalid(&at.child("openAPIV3Schema.type"), text(schema, "type"), detail);
    }
    let is_set = |value: &Value| match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => true,
    };
    let odd = schema
        .as_object()
        .into_iter()
        .flatten()
        .any(|(name, value)| is_set(value) && !AT_ROOT.iter().any(|(_, allowed)| allowed == name));
    if odd {
        let allowed: Vec<&str> = AT_ROOT.iter().map(|(name, _)| *name).collect();
        let detail = format!(
            "only [{}] fields are allowed at the root of the schema if the status subresource is enabled",
            allowed.join(" ")
        );
        errors.invalid(&at.child("openAPIV3Schema"), schema, detail);
    }
}

fn pruned(default: &Value, schema: &Value) -> Value {
    let mut all = serde_json::Map::from_iter([("d".to_owned(), default.clone())]);
    let around = serde_json::json!({"properties": {"d": schema}});
    prune::prune(&mut all, &around, false);
    all.remove("d").unwrap_or_default()
}

/// Defaults must be what the schema allows. Faults are told where the default stands.
fn defaults(schema: &Value, root: bool, ratchet: &Ratchet, at: &FieldPath, errors: &mut FieldErrors) {
    if let Some(default) = schema.get("default") {
        let at = at.child("default");
        if !ratchet.unpruned && pruned(default, schema) != *default {
            errors.invalid(&at, default, "must not have unknown fields");
        }
        let (mut found, nowhere) = (FieldErrors::new(), FieldPath::new(""));
        embedded::check(default, schema, &nowhere, &mut found);
        if found.is_empty() {
            values::check_at(default, None, schema, &nowhere, &mut found);
        }
        if found.is_empty() {
            let rules = Rules::new(schema);
            rules.check(default, Some(default), schema, &mut found);
            if found.is_empty() {
                rules.check(default, None, schema, &mut found);
            }
        }
        for mut error in found.iter().cloned() {
            let inside = error.field.as_str().to_owned();
            error.field = match inside.as_str() {
                "" | "<nil>" => at.clone(),
                _ if inside.starts_with('[') => FieldPath::new(&format!("{at}{inside}")),
                _ => at.child(&inside),
            };
            errors.push(error);
        }
    }
    if let Some(items) = schema.get("items").filter(|i| i.is_object()) {
        defaults(items, false, ratchet, &at.child("items"), errors);
    }
    for (name, inner) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        // What is said of the metadata is no part of the object's own schema.
        let meta = (root || says(schema, EMBEDDED)) && name == "metadata";
        if !meta {
            defaults(inner, false, ratchet, &at.child("properties").key(name), errors);
        }
    }
}

impl Check<'_> {
    fn part(&mut self, schema: &Value, at: &FieldPath, place: &Place) {
        let before = self.schema_errors.len();
        self.plain(schema, at, place);
        self.inner(schema, at, place);
        let errors = &mut self.schema_errors;
        if schema.get(prune::PRESERVE) == Some(&Value::Bool(false)) {
            errors.invalid(&at.child(prune::PRESERVE), false, "must be true or undefined");
        }
        extensions(schema, self.ratchet, at, errors);
        let Some(said) = schema.get(said::RULES).and_then(Value::as_array).filter(|s| !s.is_empty()) else {
            return;
        };
        said::form(said, schema, at, errors);
        let Some(Times(times)) = place.rules else { return };
        if self.schema_errors.len() > before {
            return;
        }
        let Some(decl) = declared(schema, place.root || says(schema, EMBEDDED)) else {
            let detail = "internal error: failed to construct type information for x-kubernetes-validations rules: \
                          unable to convert structural schema to CEL declarations";
            let field = at.child(said::RULES);
            let error = krate_api::field::FieldError {
                fault: Fault::Internal,
                field,
                value: None,
                detail: detail.to_owned(),
            };
            return self.rule_errors.push(error);
        };
        let limit =
            said::Limit { times, unchanged: self.unchanged, uncorrelated: place.uncorrelated.as_ref() };
        let (costs, errors) = (&mut self.costs, &mut self.rule_errors);
        said::Reader { decl: &decl, limit, costs, errors }.read(said, at);
    }

    /// What OpenAPI knows and Kubernetes does not.
    fn plain(&mut self, schema: &Value, at: &FieldPath, place: &Place) {
        let errors = &mut self.schema_errors;
        let kind = text(schema, "type");
        if let Some(kind) = kind.filter(|kind| !self.ratchet.odd_types && !TYPES.contains(kind)) {
            errors.not_supported(&at.child("type"), kind, &TYPES);
        }
        if let Some(why) = place.no_defaults.as_ref().filter(|_| schema.get("default").is_some()) {
            errors.forbidden(&at.child("default"), format!("must not be set {why}"));
        }
        for name in ["id", "additionalItems", "patternProperties", "definitions", "dependencies", "$ref"] {
            if schema.get(name).is_some_and(|said| !said.is_null() && said != "") {
                errors.forbidden(&at.child(name), format!("{name} is not supported"));
            }
        }
        if kind == Some("null") {
            errors.forbidden(&at.child("type"), "type cannot be set to null, use nullable as an alternative");
        }
        if schema.get("items").is_some_and(|items| items.as_array().is_some_and(|items| !items.is_empty())) {
            errors.forbidden(&at.child("items"), "items must be a schema object and not an array");
        }
        if place.inside_meta && says(schema, EMBEDDED) {
            errors.forbidden(&at.child(EMBEDDED), "must not be used inside of resource meta");
        }
        if says(schema, "uniqueItems") {
            let detail = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
            errors.forbidden(&at.child("uniqueItems"), detail);
        }
    }

    fn inner(&mut self, schema: &Value, at: &FieldPath, place: &Place) {
        let more = elements(schema);
        let times = place.rules.map(|Times(n)| Times(n.zip(more).map(|(n, more)| n.saturating_mul(more))));
        let child = Place { root: false, rules: times, ..place.clone() };
        let place_is_whole = place.root;
        let fields = schema.get("properties").and_then(Value::as_object).filter(|fields| !fields.is_empty());
        if let Some(additional) = schema.get("additionalProperties").filter(|a| !a.is_null()) {
            let at = at.child("additionalProperties");
            if fields.is_some() && *additional != Value::Bool(true) {
                let detail = "additionalProperties and properties are mutual exclusive";
                self.schema_errors.forbidden(&at, detail);
            }
            let mut place = child.clone();
            if place.inside_meta {
                // Without a value it is not known what would be kept.
                place.no_defaults =
                    Some("inside additionalProperties applying to object metadata".to_owned());
            }
            if additional.is_object() {
                self.part(additional, &at, &place);
            }
        }
        for (name, inner) in fields.into_iter().flatten() {
            let mut place = child.clone();
            if text(schema, MAP_TYPE) == Some("atomic") {
                place.uncorrelated.get_or_insert_with(|| at.clone());
            }
            if (place_is_whole || says(schema, EMBEDDED))
                && matches!(name.as_str(), "metadata" | "kind" | "apiVersion")
            {
                place.inside_meta = true;
                if place_is_whole {
                    place.no_defaults = Some(format!("in top-level {name}"));
                }
            }
            self.part(inner, &at.child("properties").key(name), &place);
        }
        let apart = Place { rules: None, ..child.clone() };
        if let Some(not) = schema.get("not").filter(|not| not.is_object()) {
            self.part(not, &at.child("not"), &apart);
        }
        for name in ["allOf", "oneOf", "anyOf"] {
            for (i, inner) in schema.get(name).and_then(Value::as_array).into_iter().flatten().enumerate() {
                self.part(inner, &at.child(name).index(i), &apart);
            }
        }
        if let Some(items) = schema.get("items").filter(|items| items.is_object()) {
            let mut place = child.clone();
            if text(schema, LIST_TYPE) != Some("map") {
                place.uncorrelated.get_or_insert_with(|| at.clone());
            }
            self.part(items, &at.child("items"), &place);
        }
    }
}

/// How many values there may be below one of a schema; `None` without a limit.
fn elements(schema: &Value) -> Option<u64> {
    let limit = |name: &str| schema.get(name).and_then(Value::as_i64).map(|n| u64::try_from(n).unwrap_or(0));
    match text(schema, "type") {
        Some("object") if schema.get("additionalProperties").is_some() => limit("maxProperties"),
        Some("array") => limit("maxItems"),
        _ => Some(1),
    }
}

/// Kubernetes' own words of lists and maps.
fn extensions(schema: &Value, ratchet: &Ratchet, at: &FieldPath, errors: &mut FieldErrors) {
    let kind = text(schema, "type").unwrap_or_default();
    let of_type = |name: &str, wanted: &str, errors: &mut FieldErrors| {
        let detail = format!("must be {wanted} if {name} is specified");
        if kind.is_empty() {
            errors.required(&at.child("type"), detail);
        } else {
            errors.invalid(&at.child("type"), kind, detail);
        }
    };
    let (map, list) = (text(schema, MAP_TYPE), text(schema, LIST_TYPE));
    if map.is_some() && kind != "object" {
        of_type(MAP_TYPE, "object", errors);
    }
    if let Some(map) = map.filter(|map| !matches!(*map, "atomic" | "granular")) {
        errors.not_supported(&at.child(MAP_TYPE), map, &["atomic", "granular"]);
    }
    if list.is_some() && kind != "array" {
        of_type(LIST_TYPE, "array", errors);
    } else if !ratchet.odd_sets {
        atomic_set(schema, at, errors);
    }
    if let Some(list) = list.filter(|list| !matches!(*list, "atomic" | "set" | "map")) {
        errors.not_supported(&at.child(LIST_TYPE), list, &["atomic", "set", "map"]);
    }
    let keys = schema.get(LIST_KEYS).and_then(Value::as_array).filter(|keys| !keys.is_empty());
    if keys.is_some() && list != Some("map") {
        let detail = "must be map if x-kubernetes-list-map-keys is non-empty";
        match list {
            None => errors.required(&at.child(LIST_TYPE), detail),
            Some(list) => errors.invalid(&at.child(LIST_TYPE), list, detail),
        }
    }
    if list == Some("map") {
        map_list(schema, keys, at, errors);
    }
    if !ratchet.odd_keys {
        keys_and_items(schema, at, errors);
    }
}

fn map_list(schema: &Value, keys: Option<&Vec<Value>>, at: &FieldPath, errors: &mut FieldErrors) {
    if keys.is_none() {
        errors.required(&at.child(LIST_KEYS), "must not be empty if x-kubernetes-list-type is map");
    }
    let Some(items) = schema.get("items") else {
        return errors.required(&at.child("items"), "must have a schema if x-kubernetes-list-type is map");
    };
    let kind = text(items, "type").unwrap_or_default();
    if kind != "object" {
        let detail = "must be object if parent array's x-kubernetes-list-type is map";
        return errors.invalid(&at.child("items").child("type"), kind, detail);
    }
    for (i, key) in keys.into_iter().flatten().enumerate() {
        let name = key.as_str().unwrap_or_default();
        match items.get("properties").and_then(|fields| fields.get(name)) {
            None => {
                errors.invalid(&at.child(LIST_KEYS), keys, "entries must all be names of item properties");
            }
            Some(field) if matches!(text(field, "type"), Some("array" | "object")) => {
                let at = at.child("items").child("properties").key(name).child("type");
                let detail = "must be a scalar type if parent array's x-kubernetes-list-type is map";
                errors.invalid(&at, kind, detail);
            }
            Some(_) => {}
        }
        if keys.is_some_and(|keys| keys[..i].contains(key)) {
            errors.invalid(&at.child(LIST_KEYS), keys, "must not contain duplicate entries");
        }
    }
}

/// The items of a set are compared as wholes.
fn atomic_set(schema: &Value, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(items) = schema.get("items").filter(|_| text(schema, LIST_TYPE) == Some("set")) else { return };
    let detail = "must be atomic as item of a list with x-kubernetes-list-type=set";
    let (list, map) = (text(items, LIST_TYPE), text(items, MAP_TYPE));
    match text(items, "type") {
        Some("array") if list.is_some_and(|list| list != "atomic") => {
            errors.invalid(&at.child("items").child(LIST_TYPE), list, detail);
        }
        Some("object") if map != Some("atomic") => {
            errors.invalid(&at.child("items").child(MAP_TYPE), list, detail);
        }
        _ => {}
    }
}

/// The keys of a list that is a map are always there, and no item of a set or a map is null.
fn keys_and_items(schema: &Value, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(list @ ("set" | "map")) = text(schema, LIST_TYPE) else { return };
    let Some(items) = schema.get("items").filter(|items| items.is_object()) else { return };
    let at = at.child("items");
    if says(items, "nullable") {
        let detail = format!("cannot be nullable when x-kubernetes-list-type is {list}");
        errors.forbidden(&at.child("nullable"), detail);
    }
    if list == "set" {
        return;
    }
    let required = items.get("required").and_then(Value::as_array);
    for key in schema.get(LIST_KEYS).and_then(Value::as_array).into_iter().flatten() {
        let name = key.as_str().unwrap_or_default();
        let Some(field) = items.get("properties").and_then(|fields| fields.get(name)) else { continue };
        let at = at.child("properties").key(name);
        if !required.is_some_and(|all| all.contains(key)) && field.get("default").is_none() {
            let detail = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required \
                          property";
            errors.required(&at.child("default"), detail);
        }
        if says(field, "nullable") {
            let detail = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
            errors.forbidden(&at.child("nullable"), detail);
        }
    }
}
