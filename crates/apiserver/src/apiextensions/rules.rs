//! The rules of a schema in CEL (`x-kubernetes-validations`, KEP-2876): read once when a definition is taken in, and
//! evaluated for every write of an object, within one budget.

use std::collections::{BTreeMap, HashMap};

use krate_api::field::{Fault, FieldError};
use krate_api::{FieldErrors, FieldPath};
use serde_json::Value as Json;

use crate::cel::{Budget, Declared, Error, List, PER_POLICY, Program, Value};
use crate::formats;

/// Where rules are in a schema.
pub const RULES: &str = "x-kubernetes-validations";
const OUT_OF_BUDGET: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";
const MESSAGE_OUT_OF_BUDGET: &str = "messageExpression evaluation failed due to running out of cost budget, no further \
                                     validation rules will be run";

/// The longest message that an expression may make, in bytes.
const LONGEST_MESSAGE: usize = 5 * 1024;

/// The rules of a schema and of all that is in it.
#[derive(Default)]
pub struct Rules {
    own: Vec<Rule>,
    fields: BTreeMap<String, Rules>,
    /// Of what an object has beside its fields.
    values: Option<Box<Rules>>,
    items: Option<Box<Rules>>,
    also: Vec<Rules>,
}

struct Rule {
    program: Program,
    /// Is only asked where there is an older value, unless it says that it can do without.
    is_transition: bool,
    optional_old: bool,
    message: String,
    /// The message that the definition gives it.
    said: Option<String>,
    message_expression: Option<Program>,
    reason: Fault,
    path: Option<String>,
}

fn text<'a>(rule: &'a Json, name: &str) -> &'a str {
    rule.get(name).and_then(Json::as_str).unwrap_or_default()
}

fn compile(source: &str) -> Result<Program, String> {
    Program::compile(source, &Declared::new(&["self", "oldSelf"])).map_err(|error| error.to_string())
}

impl Rule {
    fn new(said: &Json) -> Option<Self> {
        let source = text(said, "rule");
        let program = compile(source).ok()?;
        let message = text(said, "message").trim();
        Some(Rule {
            is_transition: program.names("oldSelf"),
            optional_old: said.get("optionalOldSelf") == Some(&Json::Bool(true)),
            message: if message.is_empty() {
                format!("failed rule: {}", source.trim())
            } else {
                message.to_owned()
            },
            said: Some(message.to_owned()).filter(|message| !message.is_empty()),
            message_expression: Some(text(said, "messageExpression"))
                .filter(|source| !source.is_empty())
                .and_then(|source| compile(source).ok()),
            reason: match text(said, "reason") {
                "FieldValueForbidden" => Fault::Forbidden,
                "FieldValueRequired" => Fault::Required,
                "FieldValueDuplicate" => Fault::Duplicate,
                _ => Fault::Invalid,
            },
            path: Some(text(said, "fieldPath").trim_start_matches('.').to_owned())
                .filter(|path| !path.is_empty()),
            program,
        })
    }

    /// The rule as errors name it: by its message, if it has one.
    fn told_as(&self) -> &str {
        self.said.as_deref().unwrap_or_else(|| self.program.source().trim())
    }

    /// What is said of a value that the rule does not hold for. Here an older value is never optional, as upstream has it.
    ///
    /// # Errors
    /// It costs too much to say it, and no other rule is asked.
    fn told(&self, this: &Value, was: Option<&Value>, budget: &mut Budget) -> Result<String, String> {
        let Some(program) = &self.message_expression else { return Ok(self.message.clone()) };
        let mut variables = vec![("self", this.clone())];
        variables.extend(was.map(|was| ("oldSelf", was.clone())));
        let made = match program.evaluate(&variables[..], budget) {
            Err(Error::OutOfBudget) if budget.left() == 0 => return Err(MESSAGE_OUT_OF_BUDGET.to_owned()),
            Err(Error::OutOfBudget) => {
                return Err(format!(
                    "no further validation rules will be run due to call cost exceeds limit for messageExpression: {:?}",
                    program.source()
                ));
            }
            made => made.ok(),
        };
        let made = made.as_ref().and_then(Value::as_str).map(str::trim);
        let fits = |told: &&str| !told.is_empty() && told.len() <= LONGEST_MESSAGE && !told.contains('\n');
        Ok(made.filter(fits).unwrap_or(&self.message).to_owned())
    }
}

impl Rules {
    /// The rules of a schema. Those that do not compile are refused with the definition, and are not here.
    pub fn new(schema: &Json) -> Self {
        let boxed =
            |inner: Option<&Json>| inner.map(Rules::new).filter(|rules| !rules.is_empty()).map(Box::new);
        let fields = schema.get("properties").and_then(Json::as_object).into_iter().flatten();
        let list = |name: &str| schema.get(name).and_then(Json::as_array).into_iter().flatten();
        Rules {
            own: list(RULES).filter_map(Rule::new).collect(),
            fields: fields
                .map(|(name, inner)| (name.clone(), Rules::new(inner)))
                .filter(|(_, rules)| !rules.is_empty())
                .collect(),
            values: boxed(super::prune::additional(schema)),
            items: boxed(schema.get("items")),
            also: list("allOf").map(Rules::new).filter(|rules| !rules.is_empty()).collect(),
        }
    }

    /// Whether there are none at all.
    pub fn is_empty(&self) -> bool {
        self.own.is_empty()
            && self.fields.is_empty()
            && self.values.is_none()
            && self.items.is_none()
            && self.also.is_empty()
    }

    /// Checks an object, and against what it was where it was already there.
    pub fn check(&self, object: &Json, old: Option<&Json>, schema: &Json, errors: &mut FieldErrors) {
        if self.is_empty() {
            return;
        }
        let mut check = Check { budget: Budget::new(PER_POLICY), errors, over: false };
        let before = Before { value: old, kept: false, fixed: false };
        check.part(self, object, before, schema, &FieldPath::new(""));
    }
}

struct Check<'a> {
    budget: Budget,
    errors: &'a mut FieldErrors,
    /// Nothing more is evaluated.
    over: bool,
}

/// What a value was before.
#[derive(Clone, Copy)]
struct Before<'v> {
    value: Option<&'v Json>,
    /// It, or what it is a part of, is as it was, so a fault of it is not this write's.
    kept: bool,
    /// What holds for the whole of it holds for its parts: upstream does not look closer inside of alternatives.
    fixed: bool,
}

impl<'v> Before<'v> {
    /// What a part of it was.
    fn part(self, value: Option<&'v Json>) -> Self {
        Before { value, ..self }
    }
}

/// What a fault is shown with: a plain value itself, and nothing of what has parts.
fn plain<'v>(value: &'v Json, schema: &Json) -> Option<&'v Json> {
    (!matches!(text(schema, "type"), "object" | "array")).then_some(value)
}

impl Check<'_> {
    fn add(&mut self, fault: Fault, at: &FieldPath, value: Option<&Json>, detail: String) {
        add(self.errors, fault, at, value, detail);
    }

    fn part(&mut self, rules: &Rules, value: &Json, before: Before<'_>, schema: &Json, at: &FieldPath) {
        if self.over || value.is_null() {
            return;
        }
        let old = before.value.filter(|old| !old.is_null());
        let around = before.kept;
        let kept = around || (!before.fixed && old == Some(value));
        let before = Before { value: old, kept, ..before };
        self.own(rules, value, before, schema, at);
        let nothing = Json::Null;
        for also in &rules.also {
            self.part(also, value, Before { value: old, kept: around, fixed: true }, schema, at);
        }
        match value {
            Json::Object(fields) => {
                for (name, inner) in fields {
                    let was = before.part(old.and_then(|old| old.get(name)));
                    if let Some(rules) = rules.fields.get(name) {
                        let schema =
                            schema.get("properties").and_then(|all| all.get(name)).unwrap_or(&nothing);
                        self.part(rules, inner, was, schema, &at.child(name));
                    } else if let Some(rules) = &rules.values
                        && schema.get("properties").and_then(|all| all.get(name)).is_none()
                    {
                        let schema = super::prune::additional(schema).unwrap_or(&nothing);
                        self.part(rules, inner, was, schema, &at.key(name));
                    }
                }
            }
            Json::Array(items) => {
                let Some(rules) = &rules.items else { return };
                let inner = schema.get("items").unwrap_or(&nothing);
                let were = Counterparts::of(old, schema);
                for (i, item) in items.iter().enumerate() {
                    let was = before.part(were.get(item));
                    self.part(rules, item, was, inner, &at.index(i));
                }
            }
            _ => {}
        }
    }

    fn own(&mut self, rules: &Rules, value: &Json, before: Before<'_>, schema: &Json, at: &FieldPath) {
        if rules.own.is_empty() {
            return;
        }
        let kind = Json::from(text(schema, "type"));
        if self.budget.left() == 0 {
            self.over = true;
            return self.add(Fault::Invalid, at, Some(&kind), OUT_OF_BUDGET.to_owned());
        }
        let this = typed(value, schema);
        let was = before.value.map(|old| typed(old, schema));
        for rule in &rules.own {
            let old = match (&was, rule.optional_old) {
                (was, true) => was.clone().map_or(Value::NONE, Value::some),
                (Some(was), false) => was.clone(),
                (None, false) if rule.is_transition => continue,
                (None, false) => Value::Null,
            };
            let variables = [("self", this.clone()), ("oldSelf", old)];
            match rule.program.evaluate(&variables[..], &mut self.budget) {
                Ok(Value::Bool(true)) => {}
                Ok(_) => {
                    let told = rule.told(&this, was.as_ref(), &mut self.budget);
                    self.over = told.is_err();
                    let at = rule.path.iter().fold(at.clone(), |at, path| at.child(path));
                    let mut error = FieldErrors::new();
                    match told {
                        Ok(told) => add(&mut error, rule.reason, &at, plain(value, schema), told),
                        Err(told) => add(&mut error, Fault::Invalid, &at, Some(&kind), told),
                    }
                    if before.kept && !rule.is_transition {
                        self.errors.forgive(error);
                    } else {
                        self.errors.extend(error);
                    }
                    if self.over {
                        return;
                    }
                }
                Err(Error::OutOfBudget) => {
                    self.over = true;
                    let told = if self.budget.left() == 0 {
                        OUT_OF_BUDGET.to_owned()
                    } else {
                        format!(
                            "'{}': no further validation rules will be run due to call cost exceeds limit for rule: {}",
                            Error::OutOfBudget,
                            rule.told_as()
                        )
                    };
                    return self.add(Fault::Invalid, at, Some(&kind), told);
                }
                Err(Error::Failed(why)) if why.starts_with("no such overload") => {
                    let told = format!(
                        "'{why}': call arguments did not match a supported operator, function or macro signature for \
                         rule: {}",
                        rule.told_as()
                    );
                    self.add(Fault::Invalid, at, Some(&kind), told);
                }
                Err(Error::Failed(why)) => {
                    let told = format!("{why} evaluating rule: {}", rule.told_as());
                    self.add(Fault::Invalid, at, Some(&kind), told);
                }
            }
        }
    }
}

fn add(errors: &mut FieldErrors, fault: Fault, at: &FieldPath, value: Option<&Json>, detail: String) {
    let field = if at.as_str().is_empty() { FieldPath::new("<nil>") } else { at.clone() };
    match (fault, value) {
        (Fault::Invalid, Some(value)) => errors.invalid(&field, value, detail),
        (Fault::Duplicate, Some(value)) => errors.duplicate(&field, value),
        (Fault::Duplicate, None) => {
            errors.push(FieldError { fault, field, value: None, detail: String::new() });
        }
        _ => errors.push(FieldError { fault, field, value: None, detail }),
    }
}

/// The items of an older list by their keys, where items have keys: there is found what an item was.
pub struct Counterparts<'o, 's> {
    keys: Vec<&'s str>,
    items: HashMap<String, &'o Json>,
}

impl<'o, 's> Counterparts<'o, 's> {
    pub fn of(old: Option<&'o Json>, schema: &'s Json) -> Self {
        let is_map = text(schema, "x-kubernetes-list-type") == "map";
        let keys = schema.get("x-kubernetes-list-map-keys").filter(|_| is_map).and_then(Json::as_array);
        let keys: Vec<&str> = keys.into_iter().flatten().filter_map(Json::as_str).collect();
        let old = old.filter(|_| !keys.is_empty()).and_then(Json::as_array);
        let mut items = HashMap::new();
        for item in old.into_iter().flatten() {
            items.entry(key(item, &keys)).or_insert(item);
        }
        Counterparts { keys, items }
    }

    pub fn get(&self, item: &Json) -> Option<&'o Json> {
        if self.items.is_empty() {
            return None;
        }
        self.items.get(&key(item, &self.keys)).copied()
    }
}

fn key(item: &Json, keys: &[&str]) -> String {
    let parts: Vec<Option<&Json>> = keys.iter().map(|key| item.get(*key)).collect();
    serde_json::to_string(&parts).unwrap_or_default()
}

/// A value as rules see it: what its schema says of it tells whole fractions from numbers, times from texts, and what
/// makes two lists the same.
fn typed(value: &Json, schema: &Json) -> Value {
    match (value, text(schema, "type")) {
        (Json::Number(n), "number") => Value::Double(n.as_f64().unwrap_or(f64::NAN)),
        (Json::String(s), "string") => {
            formatted(s, text(schema, "format")).unwrap_or_else(|| Value::string(s.as_str()))
        }
        (Json::Array(items), _) => {
            let nothing = Json::Null;
            let inner = schema.get("items").unwrap_or(&nothing);
            let items = items.iter().map(|item| typed(item, inner)).collect();
            match text(schema, "x-kubernetes-list-type") {
                "set" => Value::List(List::set(items).into()),
                "map" => {
                    let keys = schema.get("x-kubernetes-list-map-keys").and_then(Json::as_array);
                    let keys = keys.into_iter().flatten().filter_map(Json::as_str).map(str::to_owned);
                    Value::List(List::map(items, keys).into())
                }
                _ => Value::list(items),
            }
        }
        (Json::Object(fields), _) => {
            let nothing = Json::Null;
            let properties = schema.get("properties").and_then(Json::as_object);
            let of = |name: &str| {
                let named = properties.and_then(|all| all.get(name));
                named.or_else(|| super::prune::additional(schema)).unwrap_or(&nothing)
            };
            // A field that is null is as good as none to who asks whether it is there; a map's entry is not.
            let set = fields.iter().filter(|(_, value)| properties.is_none() || !value.is_null());
            Value::map(set.map(|(name, value)| (name.clone(), typed(value, of(name)))))
        }
        _ => Value::from_json(value),
    }
}

/// What a text of a format stands for; `None` where it is a text to rules as well.
fn formatted(said: &str, format: &str) -> Option<Value> {
    match format {
        "date-time" => said.parse().ok().map(Value::Timestamp),
        "date" => {
            let midnight = said.parse::<jiff::civil::Date>().ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
            Some(Value::Timestamp(midnight.timestamp()))
        }
        "duration" => formats::read_duration(said).map(Value::Duration),
        "byte" => {
            use base64::Engine as _;
            let bytes = base64::engine::general_purpose::STANDARD.decode(said).ok()?;
            Some(Value::Bytes(bytes.into()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn faults(schema: &Json, value: &Json, old: Option<&Json>) -> Vec<String> {
        let mut errors = FieldErrors::new();
        Rules::new(schema).check(value, old, schema, &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rules_see_their_own_part_and_what_it_was() {
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object",
        "properties": {"size": {"type": "integer"}, "ratio": {"type": "number"},
            "at": {"type": "string", "format": "date-time"}},
        RULES: [
            {"rule": "self.size > 2", "message": "too small", "reason": "FieldValueForbidden", "fieldPath": ".size"},
            {"rule": "self.size >= oldSelf.size", "messageExpression": "'was ' + string(oldSelf.size)"},
            {"rule": "!has(self.ratio) || self.ratio < 1.5"},
            {"rule": "!has(self.at) || self.at.getFullYear() > 2000"},
        ]}}});
        let of = |size: i64| json!({"spec": {"size": size}});
        assert_eq!(faults(&schema, &of(3), None), [""; 0]);
        assert_eq!(faults(&schema, &of(1), None), ["spec.size: Forbidden: too small"]);
        assert_eq!(faults(&schema, &of(3), Some(&of(4))), ["spec: Invalid value: was 4"]);
        let odd = json!({"spec": {"size": 3, "ratio": 2, "at": "1999-01-01T00:00:00Z"}});
        assert_eq!(
            faults(&schema, &odd, None),
            [
                "spec: Invalid value: failed rule: !has(self.ratio) || self.ratio < 1.5",
                "spec: Invalid value: failed rule: !has(self.at) || self.at.getFullYear() > 2000",
            ]
        );
        // What was wrong before and has not changed is not this write's fault, and is told nevertheless.
        assert_eq!(faults(&schema, &of(1), Some(&of(1))), [""; 0]);
        let mut errors = FieldErrors::new();
        Rules::new(&schema).check(&of(1), Some(&of(1)), &schema, &mut errors);
        let forgiven: Vec<String> = errors.forgiven().map(ToString::to_string).collect();
        assert_eq!(forgiven, ["spec.size: Forbidden: too small"]);
    }

    #[test]
    fn values_are_what_their_schema_says() {
        let of = |format: &str| json!({"type": "string", "format": format});
        let list = |kind: &str, items: Json| {
            let mut list = json!({"type": "array", "x-kubernetes-list-type": kind, "items": items});
            list["x-kubernetes-list-map-keys"] = json!(["n"]);
            list
        };
        let port =
            json!({"type": "object", "properties": {"n": {"type": "string"}, "p": {"type": "integer"}}});
        let schema = json!({"type": "object", "properties": {
            "day": of("date"), "wait": of("duration"), "long": of("duration"),
            "tags": list("set", json!({"type": "string"})), "ports": list("map", port),
            "map": {"type": "object", "additionalProperties": {"type": "string", "nullable": true}},
        }, RULES: [
            {"rule": "self.day == timestamp('2024-02-29T00:00:00Z')"},
            {"rule": "self.wait == duration('90m') && self.long == duration('48h')"},
            {"rule": "self.tags == ['b', 'a'] && self.tags + ['a', 'c'] == ['a', 'b', 'c']"},
            {"rule": "self.ports == oldSelf.ports"},
            {"rule": "size(self.map) == 1"},
        ]});
        let ports = [json!({"n": "a", "p": 1}), json!({"n": "b", "p": 2})];
        let value = json!({"day": "2024-02-29", "wait": "1h30m", "long": "2 days", "tags": ["a", "b"],
            "ports": ports, "map": {"k": null}});
        let mut old = value.clone();
        old["ports"] = json!([ports[1], ports[0]]);
        assert_eq!(faults(&schema, &value, Some(&old)), [""; 0]);
    }

    #[test]
    fn items_are_told_by_their_keys() {
        let schema = json!({"type": "object", "properties": {"ports": {"type": "array", "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["n"], "items": {"type": "object",
                "properties": {"n": {"type": "string"}, "p": {"type": "integer"}},
                RULES: [{"rule": "self.p == oldSelf.p", "message": "fixed"}]}}}});
        let of = |ports: &[(&str, i64)]| -> Json {
            let ports: Vec<Json> = ports.iter().map(|(n, p)| json!({"n": n, "p": p})).collect();
            json!({"ports": ports})
        };
        let old = of(&[("a", 1), ("b", 2)]);
        assert_eq!(faults(&schema, &of(&[("b", 2), ("new", 7), ("a", 1)]), Some(&old)), [""; 0]);
        assert_eq!(faults(&schema, &of(&[("b", 3)]), Some(&old)), ["ports[0]: Invalid value: fixed"]);
    }

    #[test]
    fn a_message_that_costs_too_much_is_the_last_that_is_said() {
        let dear = "self.all(a, self.all(b, self.all(c, a + b + c > 0))) ? 'all' : 'some'";
        let schema = json!({"type": "object", "properties": {"l": {"type": "array", "items": {"type": "integer"}, RULES: [
            {"rule": "size(self) == 0", "messageExpression": dear},
            {"rule": "size(self) == 1", "message": "not one"},
        ]}}});
        let few = faults(&schema, &json!({"l": [1, 1]}), None);
        assert_eq!(few, ["l: Invalid value: all", "l: Invalid value: not one"]);
        let told = "l: Invalid value: \"array\": no further validation rules will be run due to call cost exceeds limit for \
                    messageExpression: ";
        let many = faults(&schema, &json!({"l": vec![1; 500]}), None);
        assert_eq!(many, [format!("{told}{dear:?}")]);
    }

    #[test]
    fn to_a_message_an_older_value_is_not_optional() {
        let schema = json!({"type": "object", "properties": {"n": {"type": "integer", RULES: [{
            "rule": "oldSelf.hasValue() && self == oldSelf.value()", "optionalOldSelf": true, "message": "odd",
            "messageExpression": "oldSelf.hasValue() ? 'it was' : 'it is new'",
        }]}}});
        let of = |n: i64| json!({"n": n});
        for old in [None, Some(of(1))] {
            assert_eq!(faults(&schema, &of(2), old.as_ref()), ["n: Invalid value: 2: odd"]);
        }
    }

    #[test]
    fn a_rule_that_costs_too_much_is_stopped() {
        let schema = json!({"type": "object", "properties": {"l": {"type": "array", "items": {"type": "integer"},
            RULES: [{"rule": "self.all(a, self.all(b, self.all(c, a + b + c > 0)))"}]}}});
        let value = json!({"l": vec![1; 500]});
        let faults = faults(&schema, &value, None);
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].contains("call cost exceeds limit"), "{faults:?}");
    }
}
