//! What a schema says of a single value: its type and format, its limits, and which values there are. The words are those
//! of upstream's `kube-openapi`.

use std::cmp::Ordering;

use krate_api::field::{Fault, FieldError};
use krate_api::{FieldErrors, FieldPath};
use serde::Serialize;
use serde_json::Value;

use super::prune::says;
use crate::formats::{self, pattern};

/// The largest fraction that is a whole number all the same.
const LARGEST: f64 = 9_007_199_254_740_991.0;

/// Where a value stands: faults are told of all of its path, and name the part behind the place that is checked.
#[derive(Clone, Copy)]
pub struct Spot<'a> {
    pub place: &'a FieldPath,
    pub at: &'a FieldPath,
}

impl Spot<'_> {
    pub fn field(self) -> FieldPath {
        match (self.place.as_str(), self.at.as_str()) {
            ("", "") => FieldPath::new("<nil>"),
            ("", _) => self.at.clone(),
            (_, "") => self.place.clone(),
            (_, at) => self.place.child(at),
        }
    }

    pub fn invalid(self, value: impl Serialize, said: &str, errors: &mut FieldErrors) {
        errors.invalid(&self.field(), value, format!("{} in body {said}", self.at));
    }

    /// What is told of the place as a whole, whose part it names.
    pub fn whole(self, said: String, errors: &mut FieldErrors) {
        let nothing = FieldPath::new("");
        errors.invalid(&Spot { place: self.place, at: &nothing }.field(), "", said);
    }

    fn of_other_type(self, wanted: &str, found: &str, errors: &mut FieldErrors) {
        let shown = format!("{found:?}");
        errors.push(FieldError {
            fault: Fault::TypeInvalid,
            field: self.field(),
            detail: format!("{} in body must be of type {wanted}: {shown}", self.at),
            value: Some(shown),
        });
    }
}

fn text<'s>(schema: &'s Value, name: &str) -> &'s str {
    schema.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// The types that a schema takes, with commas between them.
fn wanted(schema: &Value) -> &str {
    if says(schema, "x-kubernetes-int-or-string") { "integer,string" } else { text(schema, "type") }
}

/// The format that a schema asks for, if there is such a one of its type.
fn format_of(schema: &Value) -> &str {
    let kind = if says(schema, "x-kubernetes-int-or-string") { "" } else { text(schema, "type") };
    let format = text(schema, "format");
    if !format.is_empty() && formats::is_known(kind, format) { format } else { "" }
}

/// Whether a schema says of what type a value is.
pub fn has_type(schema: &Value) -> bool {
    !wanted(schema).is_empty() || !format_of(schema).is_empty()
}

/// The type of a value, and the format of numbers of that type.
fn type_of(value: &Value) -> (&'static str, &'static str) {
    match value {
        Value::Null => ("null", ""),
        Value::Bool(_) => ("boolean", ""),
        Value::Number(n) if n.is_i64() => ("integer", "int64"),
        Value::Number(_) => ("number", "float64"),
        Value::String(_) => ("string", ""),
        Value::Array(_) => ("array", ""),
        Value::Object(_) => ("object", ""),
    }
}

/// Checks a value's type; whether it is right.
pub fn is_of_type(value: &Value, schema: &Value, spot: Spot<'_>, errors: &mut FieldErrors) -> bool {
    let (wanted, (kind, own)) = (wanted(schema), type_of(value));
    let takes = |kind: &str| wanted.split(',').any(|one| one == kind);
    if value.is_null() {
        let fits = wanted.is_empty() || says(schema, "nullable");
        if !fits {
            spot.of_other_type(wanted, kind, errors);
        }
        return fits;
    }
    let is_whole = || value.as_f64().is_some_and(|n| n.fract() == 0.0 && n.abs() <= LARGEST);
    let fits = takes(kind)
        || (kind == "integer" && takes("number"))
        || (kind == "number" && takes("integer") && is_whole());
    if fits {
        return true;
    }
    let format = format_of(schema);
    let is_text = matches!(value, Value::String(_) | Value::Array(_));
    if is_text && !format.is_empty() && !takes("number") && !takes("integer") {
        return true;
    }
    if is_text || format.is_empty() {
        spot.of_other_type(wanted, kind, errors);
    } else {
        spot.of_other_type(format, own, errors);
    }
    false
}

/// Whether a text is looked at by its format.
pub fn has_format(schema: &Value) -> bool {
    formats::is_known("", format_of(schema))
}

pub fn format(value: &str, schema: &Value, spot: Spot<'_>, errors: &mut FieldErrors) {
    let format = format_of(schema);
    if !formats::is_of(value, format) {
        spot.of_other_type(format, value, errors);
    }
}

/// How many there may be, or must be.
pub fn count(schema: &Value, name: &str) -> Option<usize> {
    schema.get(name).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok())
}

/// The length and the pattern of a text; the first fault is told.
pub fn string(value: &str, schema: &Value, spot: Spot<'_>, errors: &mut FieldErrors) {
    let length = value.chars().count();
    if let Some(max) = count(schema, "maxLength").filter(|max| length > *max) {
        return errors.too_long(&spot.field(), max);
    }
    if let Some(min) = count(schema, "minLength").filter(|min| length < *min) {
        return spot.invalid(value, &format!("should be at least {min} chars long"), errors);
    }
    let pattern = text(schema, "pattern");
    if !pattern.is_empty() && !pattern::is_match(pattern, value) {
        spot.invalid(value, &format!("should match '{pattern}'"), errors);
    }
}

/// A number as Go prints it: with an exponent where it is large or small.
fn told(n: f64) -> String {
    if n == 0.0 || (1e-4..1e6).contains(&n.abs()) {
        return n.to_string();
    }
    let text = format!("{n:e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
    format!("{mantissa}e{sign}{digits:0>2}")
}

/// What numbers are to be, by type and format.
struct Range<'s> {
    kind: &'s str,
    format: &'s str,
}

impl Range<'_> {
    /// Whether a number can be one of these. `whole`: the same number, if it is said without a fraction.
    fn holds(&self, whole: Option<i64>, n: f64) -> bool {
        match (self.kind, self.format) {
            ("integer", format) => {
                let in_range =
                    n.fract() == 0.0 && (-9.223_372_036_854_776e18..9.223_372_036_854_776e18).contains(&n);
                let whole = whole.or_else(|| in_range.then_some(n as i64));
                whole.is_some_and(|whole| format != "int32" || i32::try_from(whole).is_ok())
            }
            ("number", "float") => (n as f32).is_finite(),
            _ => true,
        }
    }

    /// The same, told where it is not so.
    fn check(
        &self,
        whole: Option<i64>,
        n: f64,
        what: &str,
        spot: Spot<'_>,
        errors: &mut FieldErrors,
    ) -> bool {
        let holds = self.holds(whole, n);
        if !holds {
            let format = match self.format {
                "" => "(default format)".to_owned(),
                format => format!("with format {format}"),
            };
            let told = format!("{what} value must be of type {} {format} in {}", self.kind, spot.at);
            spot.whole(told, errors);
        }
        holds
    }
}

/// The limits of a number. Whole numbers are held against whole limits, as far as those can be.
pub fn number(value: &Value, schema: &Value, spot: Spot<'_>, errors: &mut FieldErrors) {
    let Some(n) = value.as_f64() else { return };
    let whole = value.as_i64();
    let kind = Some(wanted(schema)).filter(|kind| ["integer", "number"].contains(kind)).unwrap_or_default();
    let range = Range { kind, format: if kind.is_empty() { "" } else { format_of(schema) } };
    range.check(whole, n, "Checked", spot, errors);
    let limit = |name: &str| schema.get(name).and_then(Value::as_f64);
    if let Some(step) = limit("multipleOf") {
        let whole = whole.filter(|_| range.check(None, step, "MultipleOf", spot, errors));
        let (fits, told) = if let Some(whole) = whole {
            (whole.checked_rem(step as i64).is_none_or(|rest| rest == 0), (step as i64).to_string())
        } else {
            let times = if step < 1.0 { 1.0 / step * n } else { n / step };
            ((times - times.round()).abs() <= 1e-9, told(step))
        };
        if !fits {
            spot.invalid(value, &format!("should be a multiple of {told}"), errors);
        }
    }
    for (name, exclusive, what, than) in [
        ("minimum", "exclusiveMinimum", "Minimum boundary", "greater than"),
        ("maximum", "exclusiveMaximum", "Maximum boundary", "less than"),
    ] {
        let Some(limit) = limit(name) else { continue };
        let whole = whole.filter(|_| range.check(None, limit, what, spot, errors));
        let (order, told) = match whole {
            Some(whole) => (Some(whole.cmp(&(limit as i64))), (limit as i64).to_string()),
            None => (n.partial_cmp(&limit), told(limit)),
        };
        let exclusive = says(schema, exclusive);
        let inside = order.is_some_and(|order| match name {
            "minimum" => order.is_gt() || (order.is_eq() && !exclusive),
            _ => order.is_lt() || (order.is_eq() && !exclusive),
        });
        if !inside {
            let or_equal = if exclusive { "" } else { " or equal to" };
            spot.invalid(value, &format!("should be {than}{or_equal} {told}"), errors);
        }
    }
}

/// The values that there are. Null is never one of them.
pub fn listed(value: &Value, schema: &Value, spot: Spot<'_>, errors: &mut FieldErrors) {
    let allowed = schema.get("enum").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let same = |one: &Value| {
        let numbers = one.as_f64().zip(value.as_f64());
        !one.is_null()
            && (one == value
                || numbers.is_some_and(|(one, other)| one.partial_cmp(&other).is_some_and(Ordering::is_eq)))
    };
    if allowed.is_empty() || allowed.iter().any(same) {
        return;
    }
    let words: Vec<String> = allowed.iter().map(super::jsonpath::shown).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    errors.not_supported(&spot.field(), value, &words);
}
