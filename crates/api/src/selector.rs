//! Which objects are meant: by labels, in the form of a query (`a=b,c in (d,e),!f`) or of a `metav1.LabelSelector`,
//! and by fields (`metadata.name=x,status.phase!=Running`).
//!
//! The grammar and the words of its errors are upstream's (`k8s.io/apimachinery/pkg/labels` and `pkg/fields`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1 as metav1;

use crate::field::{FieldErrors, FieldPath};
use crate::names;

pub mod node;
mod parse;

/// Why a text or an object is no selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub(crate) String);

/// How a requirement relates its key to its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operator {
    In,
    NotIn,
    Equals,
    DoubleEquals,
    NotEquals,
    GreaterThan,
    LessThan,
    Exists,
    DoesNotExist,
}

/// One condition on a label.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

impl Requirement {
    /// A requirement, if key and values are such as labels may have and as many as the operator takes.
    pub fn new(key: &str, operator: Operator, values: Vec<String>) -> Result<Self, SelectorError> {
        let mut errors = FieldErrors::new();
        let wrong = names::is_qualified_name(key);
        if !wrong.is_empty() {
            errors.invalid(&FieldPath::new("key"), key, wrong.join("; "));
        }
        let at = FieldPath::new("values");
        match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                errors.invalid(&at, &values, "for 'in', 'notin' operators, values set can't be empty");
            }
            Operator::Equals | Operator::DoubleEquals | Operator::NotEquals if values.len() != 1 => {
                errors.invalid(&at, &values, "exact-match compatibility requires one single value");
            }
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                errors.invalid(&at, &values, "values set must be empty for exists and does not exist");
            }
            Operator::GreaterThan | Operator::LessThan => {
                if values.len() != 1 {
                    errors.invalid(&at, &values, "for 'Gt', 'Lt' operators, exactly one value is required");
                }
                for (i, value) in values.iter().enumerate().filter(|(_, v)| v.parse::<i64>().is_err()) {
                    errors.invalid(
                        &at.index(i),
                        value,
                        "for 'Gt', 'Lt' operators, the value must be an integer",
                    );
                }
            }
            _ => {}
        }
        for (i, value) in values.iter().enumerate() {
            let wrong = names::is_label_value(value);
            if !wrong.is_empty() {
                errors.invalid(&at.index(i).key(key), value, wrong.join("; "));
            }
        }
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        match texts.len() {
            0 => Ok(Requirement { key: key.to_owned(), operator, values }),
            1 => Err(SelectorError(texts.into_iter().collect())),
            _ => Err(SelectorError(format!("[{}]", texts.join(", ")))),
        }
    }

    pub fn key(&self) -> &str {
        &self.key
    }

    pub fn operator(&self) -> Operator {
        self.operator
    }

    pub fn values(&self) -> &[String] {
        &self.values
    }

    /// Whether an object whose label of this key has this value, or has none, is meant.
    pub fn matches(&self, label: Option<&str>) -> bool {
        let among = |v: &str| self.values.iter().any(|x| x == v);
        match (self.operator, label) {
            (Operator::In | Operator::Equals | Operator::DoubleEquals, Some(v)) => among(v),
            (Operator::NotIn | Operator::NotEquals, Some(v)) => !among(v),
            (Operator::NotIn | Operator::NotEquals | Operator::DoesNotExist, None) => true,
            (Operator::Exists, v) => v.is_some(),
            (Operator::GreaterThan, Some(v)) => self.compares(v, |a, b| a > b),
            (Operator::LessThan, Some(v)) => self.compares(v, |a, b| a < b),
            _ => false,
        }
    }

    fn compares(&self, label: &str, by: fn(i64, i64) -> bool) -> bool {
        match (label.parse(), self.values.first().map(|v| v.parse())) {
            (Ok(a), Some(Ok(b))) => by(a, b),
            _ => false,
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut values: Vec<&str> = self.values.iter().map(String::as_str).collect();
        values.sort_unstable();
        let (key, values) = (&self.key, values.join(","));
        match self.operator {
            Operator::Exists => f.write_str(key),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::Equals => write!(f, "{key}={values}"),
            Operator::DoubleEquals => write!(f, "{key}=={values}"),
            Operator::NotEquals => write!(f, "{key}!={values}"),
            Operator::GreaterThan => write!(f, "{key}>{values}"),
            Operator::LessThan => write!(f, "{key}<{values}"),
            Operator::In => write!(f, "{key} in ({values})"),
            Operator::NotIn => write!(f, "{key} notin ({values})"),
        }
    }
}

/// Which labels an object must have. The default is no condition: everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LabelSelector {
    /// Nothing at all: what an absent `metav1.LabelSelector` means.
    Nothing,
    /// All that fulfil each of these, which are sorted by key.
    All(Vec<Requirement>),
}

impl Default for LabelSelector {
    fn default() -> Self {
        Self::everything()
    }
}

impl LabelSelector {
    pub const fn everything() -> Self {
        LabelSelector::All(Vec::new())
    }

    /// Reads a query's `labelSelector`.
    pub fn parse(s: &str) -> Result<Self, SelectorError> {
        let mut requirements = parse::labels(s)?;
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(LabelSelector::All(requirements))
    }

    /// Exactly these labels, which are taken as they are. An empty set selects everything.
    pub fn from_set<'a>(labels: impl IntoIterator<Item = (&'a String, &'a String)>) -> Self {
        let mut all: Vec<Requirement> = labels
            .into_iter()
            .map(|(k, v)| Requirement { key: k.clone(), operator: Operator::Equals, values: vec![v.clone()] })
            .collect();
        all.sort_by(|a, b| a.key.cmp(&b.key));
        LabelSelector::All(all)
    }

    /// What a `metav1.LabelSelector` selects: nothing if it is absent, everything if it is empty.
    pub fn from_meta(selector: Option<&metav1::LabelSelector>) -> Result<Self, SelectorError> {
        let Some(selector) = selector else { return Ok(LabelSelector::Nothing) };
        let mut all = Vec::new();
        for (key, value) in selector.match_labels.iter().flatten() {
            all.push(Requirement::new(key, Operator::Equals, vec![value.clone()])?);
        }
        for e in selector.match_expressions.iter().flatten() {
            let operator = match e.operator.as_str() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    return Err(SelectorError(format!("{other:?} is not a valid label selector operator")));
                }
            };
            all.push(Requirement::new(&e.key, operator, e.values.clone().unwrap_or_default())?);
        }
        all.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(LabelSelector::All(all))
    }

    /// Whether it puts no condition.
    pub fn is_everything(&self) -> bool {
        matches!(self, LabelSelector::All(r) if r.is_empty())
    }

    pub fn requirements(&self) -> &[Requirement] {
        match self {
            LabelSelector::Nothing => &[],
            LabelSelector::All(r) => r,
        }
    }

    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches_with(|key| labels.get(key).map(String::as_str))
    }

    /// As `matches`, for an object's optional labels.
    pub fn matches_opt(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        self.matches_with(|key| labels?.get(key).map(String::as_str))
    }

    /// Whether labels are meant of which `get` tells the values.
    pub fn matches_with<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        match self {
            LabelSelector::Nothing => false,
            LabelSelector::All(all) => all.iter().all(|r| r.matches(get(&r.key))),
        }
    }

    /// The one value that a label must have, if there is only one.
    pub fn exact(&self, key: &str) -> Option<&str> {
        let r = self.requirements().iter().find(|r| r.key == key)?;
        match (r.operator, r.values.as_slice()) {
            (Operator::Equals | Operator::DoubleEquals | Operator::In, [one]) => Some(one),
            _ => None,
        }
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        join(f, self.requirements())
    }
}

impl FromStr for LabelSelector {
    type Err = SelectorError;
    fn from_str(s: &str) -> Result<Self, SelectorError> {
        Self::parse(s)
    }
}

fn join<T: fmt::Display>(f: &mut fmt::Formatter<'_>, items: &[T]) -> fmt::Result {
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            f.write_str(",")?;
        }
        item.fmt(f)?;
    }
    Ok(())
}

/// What validation says of a `metav1.LabelSelector`.
pub fn validate_label_selector(selector: &metav1::LabelSelector, at: &FieldPath, errors: &mut FieldErrors) {
    if let Some(labels) = &selector.match_labels {
        crate::meta::validate_labels(labels, &at.child("matchLabels"), errors);
    }
    for (i, e) in selector.match_expressions.iter().flatten().enumerate() {
        let at = at.child("matchExpressions").index(i);
        let values = e.values.as_deref().unwrap_or_default();
        match e.operator.as_str() {
            "In" | "NotIn" => {
                if values.is_empty() {
                    let detail = "must be specified when `operator` is 'In' or 'NotIn'";
                    errors.required(&at.child("values"), detail);
                }
            }
            "Exists" | "DoesNotExist" => {
                if !values.is_empty() {
                    let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                    errors.forbidden(&at.child("values"), detail);
                }
            }
            other => errors.invalid(&at.child("operator"), other, "not a valid selector operator"),
        }
        for wrong in names::is_qualified_name(&e.key) {
            errors.invalid(&at.child("key"), &e.key, wrong);
        }
        for (i, value) in values.iter().enumerate() {
            for wrong in names::is_label_value(value) {
                errors.invalid(&at.child("values").index(i), value, wrong);
            }
        }
    }
}

/// One condition on a field.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FieldTerm {
    pub field: String,
    pub value: String,
    /// Whether the field must have the value, or must not.
    pub equal: bool,
}

/// Which fields an object must have. The default is no condition.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct FieldSelector(Vec<FieldTerm>);

impl FieldSelector {
    /// Reads a query's `fieldSelector`. Which fields a kind knows is for its registry to say.
    pub fn parse(s: &str) -> Result<Self, SelectorError> {
        parse::fields(s).map(FieldSelector)
    }

    /// One field that must have one value.
    pub fn one(field: &str, value: &str) -> Self {
        FieldSelector(vec![FieldTerm { field: field.to_owned(), value: value.to_owned(), equal: true }])
    }

    /// The same selector with other names for its fields.
    ///
    /// # Errors
    /// The first field that has none.
    pub fn try_rename(mut self, name: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        for term in &mut self.0 {
            let Some(name) = name(&term.field) else { return Err(std::mem::take(&mut term.field)) };
            term.field = name;
        }
        Ok(self)
    }

    pub fn is_everything(&self) -> bool {
        self.0.is_empty()
    }

    pub fn terms(&self) -> &[FieldTerm] {
        &self.0
    }

    /// The fields that it asks for.
    pub fn fields(&self) -> BTreeSet<&str> {
        self.0.iter().map(|t| t.field.as_str()).collect()
    }

    /// Whether fields are meant of which `get` tells the values; an absent field is an empty one.
    pub fn matches_with<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.0.iter().all(|t| (get(&t.field).unwrap_or_default() == t.value) == t.equal)
    }

    /// The value that a field must have, if it must have one.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.0.iter().find(|t| t.equal && t.field == field).map(|t| t.value.as_str())
    }
}

impl fmt::Display for FieldTerm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operator = if self.equal { "=" } else { "!=" };
        write!(f, "{}{operator}{}", self.field, parse::escape(&self.value))
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        join(f, &self.0)
    }
}

impl FromStr for FieldSelector {
    type Err = SelectorError;
    fn from_str(s: &str) -> Result<Self, SelectorError> {
        Self::parse(s)
    }
}

#[cfg(test)]
mod tests;
