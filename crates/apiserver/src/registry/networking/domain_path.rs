//! Names such as `acme.io/foo`, which say whose they are.

use krate_api::names::{is_dns1123_subdomain, regex_error};
use krate_api::{FieldErrors, FieldPath};

use crate::registry::rules::each;

const FORMAT: &str = "[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+";

/// A domain and a path below it (upstream's `IsDomainPrefixedPath`).
pub fn domain_prefixed_path(value: &str, at: &FieldPath, errors: &mut FieldErrors) {
    if value.is_empty() {
        errors.required(at, "");
        return;
    }
    let Some((domain, path)) = value.split_once('/').filter(|(d, p)| !d.is_empty() && !p.is_empty()) else {
        errors.invalid(at, value, "must be a domain-prefixed path (such as \"acme.io/foo\")");
        return;
    };
    each(is_dns1123_subdomain(domain), domain, at, errors);
    if !path.bytes().all(|c| c.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&c)) {
        errors.invalid(at, path, regex_error("Invalid path", FORMAT, &[]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_stands_below_a_domain() {
        for (value, wanted) in [
            ("acme.io/foo/bar:1", "[]"),
            ("", "a: Required value"),
            (
                "acme.io",
                "a: Invalid value: \"acme.io\": must be a domain-prefixed path (such as \"acme.io/foo\")",
            ),
            ("/foo", "a: Invalid value: \"/foo\": must be a domain-prefixed path (such as \"acme.io/foo\")"),
            (
                "acme.io/f o",
                "a: Invalid value: \"f o\": Invalid path (regex used for validation is \
                 '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')",
            ),
        ] {
            let mut errors = FieldErrors::new();
            domain_prefixed_path(value, &FieldPath::new("a"), &mut errors);
            assert_eq!(errors.aggregate(), wanted);
        }
    }
}
