//! The rules that a schema says in CEL (`x-kubernetes-validations`): whether they are well said, and what they may cost
//! (KEP-2876).

use krate_api::{FieldErrors, FieldPath};
use serde::Serialize;
use serde_json::Value;

use super::super::declared::LARGEST_REQUEST;
use super::path::within;
use crate::cel::estimate::Decl;
use crate::cel::{Declared, Program, Type};

/// Where rules are in a schema.
pub const RULES: &str = "x-kubernetes-validations";
const REASONS: [&str; 4] =
    ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
/// What one rule may be estimated to cost, and all of a schema together.
const RULE_MOST: u64 = 10_000_000;
const SCHEMA_MOST: u64 = 100_000_000;
/// The name of the type of what a rule is about, where faults tell it.
const SELF: &str = "selfType";
/// How many of the most expensive rules are named when all together cost too much.
const NAMED: usize = 4;

fn text<'a>(said: &'a Value, name: &str) -> &'a str {
    said.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn has_newlines(text: &str) -> bool {
    text.contains(['\n', '\r'])
}

/// Checks how rules are said, whatever they mean.
pub fn form(said: &[Value], schema: &Value, at: &FieldPath, errors: &mut FieldErrors) {
    for (i, said) in said.iter().enumerate() {
        let at = at.child(RULES).index(i);
        let (rule, message, expression) =
            (text(said, "rule").trim(), text(said, "message"), text(said, "messageExpression"));
        if rule.is_empty() {
            errors.required(&at.child("rule"), "rule is not specified");
        } else if !message.is_empty() && message.trim().is_empty() {
            errors.invalid(&at.child("message"), message, "must be non-empty if specified");
        } else if has_newlines(message.trim()) {
            errors.invalid(&at.child("message"), message, "must not contain line breaks");
        } else if has_newlines(rule) && message.trim().is_empty() {
            let detail = "message must be specified if rule contains line breaks";
            errors.required(&at.child("message"), detail);
        }
        if !expression.is_empty() && expression.trim().is_empty() {
            let detail = "messageExpression must be non-empty if specified";
            errors.required(&at.child("messageExpression"), detail);
        }
        if let Some(reason) = said.get("reason").and_then(Value::as_str).filter(|r| !REASONS.contains(r)) {
            errors.not_supported(&at.child("reason"), reason, &REASONS);
        }
        let path = text(said, "fieldPath");
        if !path.is_empty() {
            let at = at.child("fieldPath");
            if path.trim().is_empty() {
                errors.invalid(&at, path, "must be non-empty if specified");
            }
            if has_newlines(path) {
                errors.invalid(&at, path, "must not contain line breaks");
            }
            if within(path, schema, true).is_err() {
                errors.invalid(&at, path, "must be a valid path");
            }
        }
    }
}

/// A rule as upstream shows it.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Shown<'a> {
    rule: &'a str,
    message: &'a str,
    message_expression: &'a str,
    reason: Option<&'a Value>,
    field_path: &'a str,
    optional_old_self: Option<&'a Value>,
}

fn shown(said: &Value) -> Shown<'_> {
    Shown {
        rule: text(said, "rule"),
        message: text(said, "message"),
        message_expression: text(said, "messageExpression"),
        reason: said.get("reason"),
        field_path: text(said, "fieldPath"),
        optional_old_self: said.get("optionalOldSelf"),
    }
}

/// What rules of a place are held against.
pub struct Limit<'a> {
    /// How many values they are asked about; `None` without a limit.
    pub times: Option<u64>,
    /// The schema is as it was: no single rule is too expensive now.
    pub unchanged: bool,
    /// Where it cannot be told what a value was.
    pub uncorrelated: Option<&'a FieldPath>,
}

/// What all rules of a schema may cost.
#[derive(Default)]
pub struct Costs {
    total: u64,
    most: Vec<(FieldPath, u64)>,
}

impl Costs {
    fn add(&mut self, at: &FieldPath, cost: u64) {
        self.total = self.total.saturating_add(cost);
        if cost >= SCHEMA_MOST / 100 {
            self.most.push((at.clone(), cost));
            self.most.sort_by_key(|(_, cost)| std::cmp::Reverse(*cost));
            self.most.truncate(NAMED);
        }
    }

    /// Tells that it is too much, if it is.
    pub fn tell(&self, at: &FieldPath, errors: &mut FieldErrors) {
        if self.total <= SCHEMA_MOST {
            return;
        }
        for (at, _) in &self.most {
            let detail =
                "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
            errors.forbidden(at, detail);
        }
        let what = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        errors.forbidden(at, too_much(what, self.total, SCHEMA_MOST));
    }
}

fn too_much(what: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let factor = if factor > 100.0 {
        "more than 100x".to_owned()
    } else if factor < 1.5 {
        format!("{factor:.6}x")
    } else {
        format!("{factor:.1}x")
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and \
         maxLength where arrays, maps, and strings are declared)"
    )
}

/// Reads and estimates rules over what is declared.
pub struct Reader<'a> {
    pub decl: &'a Decl,
    pub limit: Limit<'a>,
    pub costs: &'a mut Costs,
    pub errors: &'a mut FieldErrors,
}

impl Reader<'_> {
    pub fn read(&mut self, said: &[Value], at: &FieldPath) {
        if said.is_empty() {
            return;
        }
        let kind = Type::of(self.decl, SELF);
        for (i, said) in said.iter().enumerate() {
            self.one(said, &kind, &at.child(RULES).index(i));
        }
    }

    fn one(&mut self, said: &Value, kind: &Type, at: &FieldPath) {
        // At least a comma stands between two values.
        let times = self.limit.times.unwrap_or(LARGEST_REQUEST / (self.decl.least + 1));
        let optional = said.get("optionalOldSelf") == Some(&Value::Bool(true));
        let old = if optional { Type::optional(kind.clone()) } else { kind.clone() };
        let declared = Declared::default().with("self", kind.clone()).with("oldSelf", old);
        let variables = [("self", false), ("oldSelf", optional)];
        let rule_at = at.child("rule");
        let program = match Program::compile(text(said, "rule"), &declared) {
            Ok(read) => read,
            Err(why) => {
                return self.errors.invalid(&rule_at, shown(said), format!("compilation failed: {why}"));
            }
        };
        if *program.kind() != Type::Bool {
            return self.errors.invalid(&rule_at, shown(said), "cel expression must evaluate to a bool");
        }
        let cost = program.estimate(&variables, self.decl).saturating_mul(times);
        if cost > RULE_MOST && !self.limit.unchanged {
            self.errors.forbidden(&rule_at, too_much("estimated rule cost", cost, RULE_MOST));
        }
        self.costs.add(&rule_at, cost);
        self.message(said, &declared, &variables, &at.child("messageExpression"));
        if program.names("oldSelf") {
            if let Some(uncorrelated) = self.limit.uncorrelated {
                let detail = format!(
                    "oldSelf cannot be used on the uncorrelatable portion of the schema within {uncorrelated}"
                );
                self.errors.invalid(&rule_at, text(said, "rule"), detail);
            }
        } else if let Some(said) = said.get("optionalOldSelf").filter(|said| !said.is_null()) {
            let detail = "may not be set if oldSelf is not used in rule";
            self.errors.invalid(&at.child("optionalOldSelf"), said, detail);
        }
    }

    fn message(&mut self, said: &Value, declared: &Declared, variables: &[(&str, bool)], at: &FieldPath) {
        let expression = text(said, "messageExpression");
        if expression.is_empty() {
            return;
        }
        match Program::compile(expression, declared) {
            Err(why) => {
                let detail = format!("messageExpression compilation failed: {why}");
                self.errors.invalid(at, shown(said), detail);
            }
            Ok(program) if *program.kind() != Type::String => {
                self.errors.invalid(at, shown(said), "messageExpression must evaluate to a string");
            }
            Ok(program) => {
                let cost = program.estimate(variables, self.decl);
                if cost > RULE_MOST && !self.limit.unchanged {
                    let detail = too_much("estimated messageExpression cost", cost, RULE_MOST);
                    self.errors.forbidden(at, detail);
                }
                self.costs.add(at, cost);
            }
        }
    }
}
