//! Paths into an object, and what validation finds wrong there. The wording is upstream's
//! (`k8s.io/apimachinery/pkg/util/validation/field`), since clients show it.

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::StatusCause;

/// Where in an object: `spec.containers[0].name`, `metadata.labels[a/b]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct FieldPath(String);

impl FieldPath {
    /// The path of a top field. An empty name is the object itself.
    pub fn new(root: &str) -> Self {
        FieldPath(root.to_owned())
    }

    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        // Validation names every field that it looks at, and most are as they should be.
        FieldPath(if self.0.is_empty() { name.to_owned() } else { [&self.0, ".", name].concat() })
    }

    #[must_use]
    pub fn index(&self, i: usize) -> Self {
        FieldPath(format!("{}[{i}]", self.0))
    }

    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        FieldPath([&self.0, "[", key, "]"].concat())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What kind of fault a field has: upstream's `field.ErrorType`, by the reason that a cause carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    NotSupported,
    Forbidden,
    TooLong,
    TooMany,
    Internal,
    TypeInvalid,
}

impl Fault {
    /// The `reason` of the cause.
    pub const fn reason(self) -> &'static str {
        match self {
            Fault::NotFound => "FieldValueNotFound",
            Fault::Required => "FieldValueRequired",
            Fault::Duplicate => "FieldValueDuplicate",
            Fault::Invalid => "FieldValueInvalid",
            Fault::NotSupported => "FieldValueNotSupported",
            Fault::Forbidden => "FieldValueForbidden",
            Fault::TooLong => "FieldValueTooLong",
            Fault::TooMany => "FieldValueTooMany",
            Fault::Internal => "InternalError",
            Fault::TypeInvalid => "FieldValueTypeInvalid",
        }
    }

    const fn words(self) -> &'static str {
        match self {
            Fault::NotFound => "Not found",
            Fault::Required => "Required value",
            Fault::Duplicate => "Duplicate value",
            Fault::Invalid | Fault::TypeInvalid => "Invalid value",
            Fault::NotSupported => "Unsupported value",
            Fault::Forbidden => "Forbidden",
            Fault::TooLong => "Too long",
            Fault::TooMany => "Too many",
            Fault::Internal => "Internal error",
        }
    }
}

/// One thing that is wrong with one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    pub fault: Fault,
    pub field: FieldPath,
    /// The value as it is shown: JSON for strings and numbers. None where upstream shows none.
    pub value: Option<String>,
    pub detail: String,
}

impl FieldError {
    /// The message of the cause: all but the field's name.
    pub fn body(&self) -> String {
        let mut out = String::from(self.fault.words());
        if let Some(value) = &self.value {
            out.push_str(": ");
            out.push_str(value);
        }
        if !self.detail.is_empty() {
            out.push_str(": ");
            out.push_str(&self.detail);
        }
        out
    }

    pub fn cause(&self) -> StatusCause {
        StatusCause {
            reason: Some(self.fault.reason().to_owned()),
            message: Some(self.body()),
            field: Some(self.field.as_str().to_owned()),
        }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

/// What validation found, in the order in which it was found.
#[derive(Clone, Debug, Default)]
pub struct FieldErrors {
    found: Vec<FieldError>,
    forgiven: Vec<FieldError>,
}

/// A value as a field error shows it: in JSON, whose texts upstream makes safe for HTML where they are inside of others.
fn shown(value: impl serde::Serialize) -> Option<String> {
    let text = serde_json::to_string(&value).ok()?;
    if text.starts_with('"') || !text.contains(['<', '>', '&']) {
        return Some(text);
    }
    Some(text.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026"))
}

impl FieldErrors {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn push(&mut self, error: FieldError) {
        self.found.push(error);
    }

    /// Notes what is wrong and refuses nothing: it was so before, and is not this write's fault.
    pub fn forgive(&mut self, errors: FieldErrors) {
        self.forgiven.extend(errors.found);
    }

    /// What was forgiven, which the client is warned of.
    pub fn forgiven(&self) -> impl Iterator<Item = &FieldError> {
        self.forgiven.iter()
    }

    fn add(&mut self, fault: Fault, field: &FieldPath, value: Option<String>, detail: impl Into<String>) {
        self.found.push(FieldError { fault, field: field.clone(), value, detail: detail.into() });
    }

    pub fn required(&mut self, field: &FieldPath, detail: impl Into<String>) {
        self.add(Fault::Required, field, None, detail);
    }

    pub fn invalid(&mut self, field: &FieldPath, value: impl serde::Serialize, detail: impl Into<String>) {
        self.add(Fault::Invalid, field, shown(value), detail);
    }

    pub fn forbidden(&mut self, field: &FieldPath, detail: impl Into<String>) {
        self.add(Fault::Forbidden, field, None, detail);
    }

    pub fn duplicate(&mut self, field: &FieldPath, value: impl serde::Serialize) {
        self.add(Fault::Duplicate, field, shown(value), "");
    }

    pub fn not_found(&mut self, field: &FieldPath, value: impl serde::Serialize) {
        self.add(Fault::NotFound, field, shown(value), "");
    }

    /// `supported` is shown in the order given; upstream sorts it first.
    pub fn not_supported(&mut self, field: &FieldPath, value: impl serde::Serialize, supported: &[&str]) {
        let list = supported.iter().map(|s| format!("\"{s}\"")).collect::<Vec<_>>().join(", ");
        let detail = if list.is_empty() { String::new() } else { format!("supported values: {list}") };
        self.add(Fault::NotSupported, field, shown(value), detail);
    }

    pub fn too_long(&mut self, field: &FieldPath, max_bytes: usize) {
        self.add(Fault::TooLong, field, None, format!("may not be more than {max_bytes} bytes"));
    }

    pub fn too_many(&mut self, field: &FieldPath, actual: usize, max: usize) {
        self.add(Fault::TooMany, field, Some(actual.to_string()), format!("must have at most {max} items"));
    }

    /// All faults in one text, as [`aggregate`] has it.
    pub fn aggregate(&self) -> String {
        aggregate(self.found.iter().map(ToString::to_string))
    }

    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    pub fn len(&self) -> usize {
        self.found.len()
    }

    pub fn iter(&self) -> std::slice::Iter<'_, FieldError> {
        self.found.iter()
    }

    pub fn extend(&mut self, other: FieldErrors) {
        self.found.extend(other.found);
        self.forgiven.extend(other.forgiven);
    }
}

impl<'a> IntoIterator for &'a FieldErrors {
    type Item = &'a FieldError;
    type IntoIter = std::slice::Iter<'a, FieldError>;
    fn into_iter(self) -> Self::IntoIter {
        self.found.iter()
    }
}

/// Several errors in one text, each once: one is shown as it is, several are joined in brackets.
pub fn aggregate(errors: impl IntoIterator<Item = String>) -> String {
    let mut texts: Vec<String> = Vec::new();
    for text in errors {
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    if let [one] = texts.as_mut_slice() { std::mem::take(one) } else { format!("[{}]", texts.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_messages_read_as_upstreams() {
        let at = FieldPath::new("spec").child("containers").index(0).child("name");
        let mut errors = FieldErrors::new();
        errors.invalid(&at, "A", "must be lower case");
        errors.not_supported(&FieldPath::new("spec").child("restartPolicy"), "x", &["Always", "Never"]);
        let text: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            text,
            [
                "spec.containers[0].name: Invalid value: \"A\": must be lower case",
                "spec.restartPolicy: Unsupported value: \"x\": supported values: \"Always\", \"Never\"",
            ]
        );
    }
}
