//! Checks values against an OpenAPI v3 schema, with upstream's messages: what an object of a custom kind may be.

use std::collections::HashSet;

use krate_api::field::Fault;
use krate_api::{FieldErrors, FieldPath};
use serde_json::Value;

use super::rules::Counterparts;
use super::scalars::{self, Spot, count};

/// What upstream says of rules that it did not come to, beside other faults.
pub const UNCHECKED: &str = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";

/// Whether faults leave rules in CEL nothing to go by: the object may not be what its schema says.
pub fn blocks_rules(errors: &FieldErrors) -> bool {
    let blocking = [Fault::NotSupported, Fault::Required, Fault::TooLong, Fault::TooMany, Fault::TypeInvalid];
    errors.iter().any(|error| blocking.contains(&error.fault))
}

/// Checks an object. What was wrong in `old` already, and is the same, is let through (KEP-4008).
pub fn check(value: &Value, old: Option<&Value>, schema: &Value, errors: &mut FieldErrors) {
    check_at(value, old, schema, &FieldPath::new(""), errors);
}

/// Checks the value of a place, unless it is what it was.
pub fn check_at(
    value: &Value,
    old: Option<&Value>,
    schema: &Value,
    place: &FieldPath,
    errors: &mut FieldErrors,
) {
    let found = Check { place }.value(value, old, schema, &FieldPath::new("")).errors;
    let mut told = HashSet::new();
    for error in found.iter().filter(|error| told.insert(error.to_string())) {
        errors.push(error.clone());
    }
}

/// What came of a value.
#[derive(Default)]
struct Found {
    errors: FieldErrors,
    /// How much of it was right: of alternatives that all fail, the faults of the one that comes closest are told. It is
    /// counted as upstream does.
    right: usize,
}

impl Found {
    fn merge(&mut self, other: Found) {
        self.errors.extend(other.errors);
        self.right += other.right;
    }

    fn is_closer(&self, than: Option<&Found>) -> bool {
        than.is_none_or(|than| self.right > than.right)
    }
}

struct Check<'a> {
    place: &'a FieldPath,
}

fn schemas<'s>(schema: &'s Value, name: &str) -> &'s [Value] {
    schema.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

impl Check<'_> {
    fn spot<'a>(&'a self, at: &'a FieldPath) -> Spot<'a> {
        Spot { place: self.place, at }
    }

    fn value(&self, value: &Value, old: Option<&Value>, schema: &Value, at: &FieldPath) -> Found {
        let (spot, mut found) = (self.spot(at), Found::default());
        if old == Some(value) {
            return found;
        }
        let typed = value.is_null() || scalars::has_type(schema);
        if typed && scalars::is_of_type(value, schema, spot, &mut found.errors) {
            found.right += 1;
        }
        if value.is_null() {
            scalars::listed(value, schema, spot, &mut found.errors);
            return found;
        }
        found.right += usize::from(typed) + 1;
        found.merge(self.alternatives(value, schema, at));
        found.right += 2;
        match value {
            Value::String(text) => {
                scalars::string(text, schema, spot, &mut found.errors);
                if scalars::has_format(schema) {
                    scalars::format(text, schema, spot, &mut found.errors);
                    found.right += 1;
                }
                found.right += 1;
            }
            Value::Number(_) => {
                scalars::number(value, schema, spot, &mut found.errors);
                found.right += 2;
            }
            Value::Array(items) => {
                found.merge(self.array(items, old, schema, at));
                found.right += 2;
            }
            _ => {}
        }
        scalars::listed(value, schema, spot, &mut found.errors);
        found.right += 1;
        if value.is_object() {
            found.merge(self.object(value, old, schema, at));
            found.right += 1;
        }
        found
    }

    fn alternatives(&self, value: &Value, schema: &Value, at: &FieldPath) -> Found {
        let (spot, mut found) = (self.spot(at), Found::default());
        let named = at.as_str();
        let any = schemas(schema, "anyOf");
        if !any.is_empty() {
            let (mut passed, mut closest) = (None, None);
            for one in any.iter().map(|inner| self.value(value, None, inner, at)) {
                if one.errors.is_empty() {
                    passed = Some(one);
                    break;
                }
                if one.is_closer(closest.as_ref()) {
                    closest = Some(one);
                }
            }
            if passed.is_none() {
                let told = format!("{named:?} must validate at least one schema (anyOf)");
                spot.whole(told, &mut found.errors);
            }
            found.merge(passed.or(closest).unwrap_or_default());
        }
        found.merge(self.only_one(value, schemas(schema, "oneOf"), at));
        let all = schemas(schema, "allOf");
        let mut passed = 0;
        for one in all.iter().map(|inner| self.value(value, None, inner, at)) {
            passed += usize::from(one.errors.is_empty());
            found.merge(one);
        }
        if passed != all.len() {
            let none = if passed == 0 { ". None validated" } else { "" };
            let told = format!("{named:?} must validate all the schemas (allOf){none}");
            spot.whole(told, &mut found.errors);
        }
        if let Some(inner) = schema.get("not").filter(|inner| inner.is_object())
            && self.value(value, None, inner, at).errors.is_empty()
        {
            spot.whole(format!("{named:?} must not validate the schema (not)"), &mut found.errors);
        }
        found
    }

    fn only_one(&self, value: &Value, schemas: &[Value], at: &FieldPath) -> Found {
        let (mut passed, mut first, mut closest) = (0, None, None);
        for one in schemas.iter().map(|inner| self.value(value, None, inner, at)) {
            if one.errors.is_empty() {
                passed += 1;
                closest = None;
                first.get_or_insert(one);
            } else if passed == 0 && one.is_closer(closest.as_ref()) {
                closest = Some(one);
            }
        }
        if passed == 1 || schemas.is_empty() {
            return first.unwrap_or_default();
        }
        let count = match passed {
            0 => "Found none valid".to_owned(),
            n => format!("Found {n} valid alternatives"),
        };
        let mut found = Found::default();
        let told = format!("{:?} must validate one and only one schema (oneOf). {count}", at.as_str());
        self.spot(at).whole(told, &mut found.errors);
        found.merge(closest.unwrap_or_default());
        found
    }

    fn array(&self, items: &[Value], old: Option<&Value>, schema: &Value, at: &FieldPath) -> Found {
        let (spot, mut found) = (self.spot(at), Found::default());
        if let Some(inner) = schema.get("items").filter(|inner| inner.is_object()) {
            let before = Counterparts::of(old, schema);
            for (i, item) in items.iter().enumerate() {
                found.merge(self.value(item, before.get(item), inner, &at.index(i)));
            }
        }
        if let Some(min) = count(schema, "minItems").filter(|min| items.len() < *min) {
            let told = format!("should have at least {min} items");
            spot.invalid(items.len(), &told, &mut found.errors);
        }
        if let Some(max) = count(schema, "maxItems").filter(|max| items.len() > *max) {
            found.errors.too_many(&spot.field(), items.len(), max);
        }
        found
    }

    fn object(&self, value: &Value, old: Option<&Value>, schema: &Value, at: &FieldPath) -> Found {
        let (spot, mut found) = (self.spot(at), Found::default());
        let Some(fields) = value.as_object() else { return found };
        if let Some(min) = count(schema, "minProperties").filter(|min| fields.len() < *min) {
            let told = format!("should have at least {min} properties");
            spot.invalid(fields.len(), &told, &mut found.errors);
        }
        if let Some(max) = count(schema, "maxProperties").filter(|max| fields.len() > *max) {
            found.errors.too_many(&spot.field(), fields.len(), max);
        }
        let properties = schema.get("properties").and_then(Value::as_object);
        let additional = super::prune::additional(schema).filter(|inner| inner.is_object());
        for (name, value) in fields {
            if let Some(inner) = properties.and_then(|p| p.get(name)).or(additional) {
                let before = old.and_then(|old| old.get(name));
                found.merge(self.value(value, before, inner, &at.child(name)));
            }
        }
        for name in schemas(schema, "required").iter().filter_map(Value::as_str) {
            if !fields.contains_key(name) {
                found.errors.required(&self.spot(&at.child(name)).field(), "");
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn faults(value: Value, schema: Value) -> Vec<String> {
        let mut errors = FieldErrors::new();
        check(&value, None, &schema, &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn values_are_refused_in_upstreams_words() {
        let schema = json!({"properties": {"spec": {"type": "object", "required": ["size"], "properties": {
            "size": {"type": "integer", "minimum": 1, "maximum": 10},
            "color": {"type": "string", "enum": ["red", "blue"]},
            "at": {"type": "string", "format": "date-time"},
            "name": {"type": "string", "pattern": "^a", "minLength": 2, "maxLength": 3},
            "tags": {"type": "array", "x-kubernetes-list-type": "set", "maxItems": 2, "items": {"type": "string"}},
            "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["n"],
                "items": {"type": "object", "properties": {"n": {"type": "integer"}}}},
            "ios": {"x-kubernetes-int-or-string": true},
            "one": {"oneOf": [{"type": "string"}, {"type": "integer"}]},
        }}}});
        let cases = [
            (json!({}), vec!["spec.size: Required value"]),
            (
                json!({"size": 0}),
                vec!["spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1"],
            ),
            (
                json!({"size": "2"}),
                vec![
                    r#"spec.size: Invalid value: "string": spec.size in body must be of type integer: "string""#,
                ],
            ),
            (
                json!({"size": 1, "color": "green"}),
                vec![r#"spec.color: Unsupported value: "green": supported values: "red", "blue""#],
            ),
            (
                json!({"size": 1, "at": "x"}),
                vec![r#"spec.at: Invalid value: "x": spec.at in body must be of type date-time: "x""#],
            ),
            (json!({"size": 1, "name": "bbbb"}), vec!["spec.name: Too long: may not be more than 3 bytes"]),
            (
                json!({"size": 1, "name": "bbb"}),
                vec![r#"spec.name: Invalid value: "bbb": spec.name in body should match '^a'"#],
            ),
            (json!({"size": 1, "ios": "5%", "one": "x"}), vec![]),
            (
                json!({"size": 1, "one": true}),
                vec![
                    r#"<nil>: Invalid value: "": "spec.one" must validate one and only one schema (oneOf). Found none valid"#,
                    r#"spec.one: Invalid value: "boolean": spec.one in body must be of type string: "boolean""#,
                ],
            ),
            (
                json!({"size": 1, "color": 3}),
                vec![
                    r#"spec.color: Invalid value: "integer": spec.color in body must be of type string: "integer""#,
                    r#"spec.color: Unsupported value: 3: supported values: "red", "blue""#,
                ],
            ),
        ];
        for (spec, wanted) in cases {
            assert_eq!(faults(json!({"spec": spec}), schema.clone()), wanted, "{spec}");
        }
    }

    #[test]
    fn what_was_wrong_before_and_is_the_same_is_let_through() {
        let schema = json!({"type": "object", "properties": {
            "n": {"type": "integer", "maximum": 5}, "s": {"type": "string"},
            "list": {"type": "array", "items": {"type": "integer", "maximum": 5}},
            "map": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                "items": {"type": "object", "properties": {"k": {"type": "string"}, "n": {"type": "integer", "maximum": 5}}}},
        }});
        let told = |new: Value, old: Value| -> Vec<String> {
            let mut errors = FieldErrors::new();
            check(&new, Some(&old), &schema, &mut errors);
            errors.iter().map(|e| e.field.as_str().to_owned()).collect()
        };
        let none = [""; 0];
        assert_eq!(told(json!({"n": 9, "s": "b"}), json!({"n": 9, "s": "a"})), none);
        assert_eq!(told(json!({"n": 8}), json!({"n": 9})), ["n"]);
        // Items of a plain list are told apart by nothing.
        assert_eq!(told(json!({"list": [9], "s": "b"}), json!({"list": [9]})), none);
        assert_eq!(told(json!({"list": [9, 1]}), json!({"list": [9]})), ["list[0]"]);
        let item = |k: &str, n: i64| json!({"k": k, "n": n});
        let old = json!({"map": [item("a", 9), item("b", 1)]});
        assert_eq!(told(json!({"map": [item("b", 2), item("a", 9)]}), old.clone()), none);
        assert_eq!(told(json!({"map": [item("a", 8)]}), old), ["map[0].n"]);
    }

    #[test]
    fn numbers_are_held_against_their_format() {
        let schema = json!({"properties": {
            "i": {"type": "integer", "format": "int32"}, "n": {"type": "integer"},
            "f": {"type": "number", "format": "float", "maximum": 2e6}, "odd": {"type": "integer", "minimum": 1.5},
        }});
        let cases = [
            (json!({"i": 2_147_483_647, "n": 9_007_199_254_740_993_i64, "f": 1.5}), vec![]),
            (
                json!({"i": 2_147_483_648_i64}),
                vec![
                    r#"<nil>: Invalid value: "": Checked value must be of type integer with format int32 in i"#,
                ],
            ),
            (json!({"i": true}), vec![r#"i: Invalid value: "": i in body must be of type int32: """#]),
            (
                json!({"n": 1.5}),
                vec![
                    r#"n: Invalid value: "number": n in body must be of type integer: "number""#,
                    r#"<nil>: Invalid value: "": Checked value must be of type integer (default format) in n"#,
                ],
            ),
            (
                json!({"f": 3_000_000.5}),
                vec!["f: Invalid value: 3000000.5: f in body should be less than or equal to 2e+06"],
            ),
            (
                json!({"odd": 2}),
                vec![
                    r#"<nil>: Invalid value: "": Minimum boundary value must be of type integer (default format) in odd"#,
                ],
            ),
        ];
        for (value, wanted) in cases {
            assert_eq!(faults(value.clone(), schema.clone()), wanted, "{value}");
        }
    }

    #[test]
    fn the_alternative_that_comes_closest_is_told() {
        let schema = json!({"type": "object", "properties": {"by": {"type": "object",
            "oneOf": [{"required": ["name"]}, {"required": ["uid"], "properties": {"uid": {"minLength": 3}}}],
            "properties": {"name": {"type": "string"}, "uid": {"type": "string"}}}},
            "allOf": [{"required": ["by"]}, {"required": ["other"]}]});
        assert_eq!(
            faults(json!({"by": {"uid": "u"}}), schema.clone()),
            [
                "other: Required value",
                r#"<nil>: Invalid value: "": "" must validate all the schemas (allOf)"#,
                r#"<nil>: Invalid value: "": "by" must validate one and only one schema (oneOf). Found none valid"#,
                r#"by.uid: Invalid value: "u": by.uid in body should be at least 3 chars long"#,
            ]
        );
        let both = json!({"by": {"uid": "long", "name": "n"}, "other": 1});
        assert_eq!(
            faults(both, schema),
            [
                r#"<nil>: Invalid value: "": "by" must validate one and only one schema (oneOf). Found 2 valid alternatives"#
            ]
        );
    }

    #[test]
    fn a_part_is_named_from_its_place_on() {
        let schema = json!({"type": "object", "properties": {"n": {"type": "integer", "maximum": 5}},
            "anyOf": [{"required": ["x"]}]});
        let mut errors = FieldErrors::new();
        check_at(&json!({"n": 6}), None, &schema, &FieldPath::new("status"), &mut errors);
        let told: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                r#"status: Invalid value: "": "" must validate at least one schema (anyOf)"#,
                "status.x: Required value",
                "status.n: Invalid value: 6: n in body should be less than or equal to 5",
            ]
        );
    }

    #[test]
    fn null_is_none_of_the_values_that_there_are() {
        let schema = json!({"properties": {"e": {"type": "string", "nullable": true, "enum": ["a", null]}}});
        assert_eq!(
            faults(json!({"e": null}), schema),
            [r#"e: Unsupported value: null: supported values: "a", "null""#]
        );
    }
}
