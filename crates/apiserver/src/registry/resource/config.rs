//! What is told to a driver in words of its own.

use k8s_openapi::api::resource::v1::OpaqueDeviceConfiguration;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use krate_api::{FieldErrors, FieldPath};
use serde_json::Value;

use super::names::driver;

/// The most that is told, in bytes.
const LONGEST: usize = 10 * 1024;
/// What stands for a value that is not to be shown.
const OMITTED: &str = "<value omitted>";

/// `stored`: it was so before, when it may have been longer.
pub fn configuration(
    opaque: Option<&OpaqueDeviceConfiguration>,
    stored: bool,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    let at = at.child("opaque");
    let Some(opaque) = opaque else {
        errors.required(&at, "");
        return;
    };
    driver(&opaque.driver, &at.child("driver"), errors);
    raw(&opaque.parameters, stored, &at.child("parameters"), errors);
}

/// Any object.
pub fn raw(raw: &RawExtension, stored: bool, at: &FieldPath, errors: &mut FieldErrors) {
    match &raw.0 {
        Value::Null => errors.required(at, ""),
        value if !stored && value.to_string().len() > LONGEST => errors.too_long(at, LONGEST),
        Value::Object(_) => {}
        _ => errors.invalid(at, OMITTED, "must be a valid JSON object"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn parameters_are_an_object_of_some_size() {
        let told = |parameters: Value, stored: bool| {
            let opaque =
                OpaqueDeviceConfiguration { driver: "a".to_owned(), parameters: RawExtension(parameters) };
            let mut errors = FieldErrors::new();
            configuration(Some(&opaque), stored, &FieldPath::new("x"), &mut errors);
            errors.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let long = json!({"a": "x".repeat(LONGEST)});
        assert_eq!(told(json!({}), false), [""; 0]);
        assert_eq!(told(long.clone(), true), [""; 0]);
        let at = "x.opaque.parameters";
        assert_eq!(told(long, false), [format!("{at}: Too long: may not be more than 10240 bytes")]);
        assert_eq!(told(Value::Null, false), [format!("{at}: Required value")]);
        assert_eq!(
            told(json!([1]), false),
            [format!("{at}: Invalid value: \"<value omitted>\": must be a valid JSON object")]
        );
        let mut errors = FieldErrors::new();
        configuration(None, false, &FieldPath::new("x"), &mut errors);
        assert_eq!(errors.aggregate(), "x.opaque: Required value");
    }
}
