//! Who makes a volume, and what it is told: the same for classes of storage and of volumes' attributes.

use std::collections::BTreeMap;

use krate_api::{FieldErrors, FieldPath};

use crate::registry::rules::{each, qualified_name};

const MOST: usize = 512;
/// How much all keys and values may be together, in bytes.
const LARGEST: usize = 256 * 1024;

pub fn provisioner(name: &str, at: &FieldPath, errors: &mut FieldErrors) {
    if name.is_empty() {
        errors.required(at, "");
        return;
    }
    let name = name.to_lowercase();
    each(qualified_name(&name), &name, at, errors);
}

pub fn parameters(all: Option<&BTreeMap<String, String>>, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(all) = all else { return };
    if all.len() > MOST {
        errors.too_long(at, MOST);
        return;
    }
    if all.contains_key("") {
        errors.invalid(at, "", "field can not be empty.");
    }
    if all.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() > LARGEST {
        errors.too_long(at, LARGEST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(all: impl IntoIterator<Item = (String, String)>) -> Vec<String> {
        let mut errors = FieldErrors::new();
        parameters(Some(&all.into_iter().collect()), &FieldPath::new("parameters"), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn parameters_are_named_and_not_too_much() {
        let one = |key: &str, value: &str| [(key.to_owned(), value.to_owned())];
        assert_eq!(told(one("a", "")), [""; 0]);
        assert_eq!(told(one("", "a")), ["parameters: Invalid value: \"\": field can not be empty."]);
        let long = "x".repeat(LARGEST);
        assert_eq!(told(one("a", &long)), ["parameters: Too long: may not be more than 262144 bytes"]);
        let many = (0..=MOST).map(|i| (i.to_string(), String::new()));
        assert_eq!(told(many), ["parameters: Too long: may not be more than 512 bytes"]);
    }

    #[test]
    fn a_provisioner_is_shown_in_lower_case() {
        let mut errors = FieldErrors::new();
        provisioner("Example.com/A B", &FieldPath::new("provisioner"), &mut errors);
        assert!(errors.aggregate().starts_with("provisioner: Invalid value: \"example.com/a b\": name part"));
    }
}
