//! Names of drivers, pools, requests and of what a device is said to be.

use krate_api::names::is_c_identifier;
use krate_api::{FieldErrors, FieldPath};

pub use crate::registry::core::pod_spec::driver_name as driver;
use crate::registry::rules::{dns_label, dns_subdomain, each};

/// The longest names, in bytes.
const POOL: usize = 253;
const IDENTIFIER: usize = 32;
/// A domain, a slash and an identifier.
pub const QUALIFIED: usize = 63 + 1 + IDENTIFIER;
pub const COUNTER: usize = 63;

pub fn pool(name: &str, at: &FieldPath, errors: &mut FieldErrors) {
    if name.is_empty() {
        errors.required(at, "");
        return;
    }
    if name.len() > POOL {
        errors.too_long(at, POOL);
    }
    for part in name.split('/') {
        dns_subdomain(part, at, errors);
    }
}

/// A label that has to be there.
pub fn counter(name: &str, at: &FieldPath, errors: &mut FieldErrors) {
    if name.is_empty() {
        errors.required(at, "");
    } else {
        dns_label(name, at, errors);
    }
}

/// The name of an attribute or of a capacity: an identifier, perhaps in a domain. More than one slash is let through
/// upstream, too.
pub fn qualified(name: &str, at: &FieldPath, errors: &mut FieldErrors) {
    let parts: Vec<&str> = name.split('/').collect();
    match parts.as_slice() {
        [id] => identifier(id, at, errors),
        [domain, id] => {
            if domain.is_empty() {
                errors.invalid(at, "", "the domain must not be empty");
            } else {
                driver(domain, at, errors);
            }
            if id.is_empty() {
                errors.invalid(at, "", "the name must not be empty");
            } else {
                identifier(id, at, errors);
            }
        }
        _ => {}
    }
}

/// A [`qualified`] name that has a domain.
pub fn fully_qualified(name: &str, at: &FieldPath, errors: &mut FieldErrors) {
    qualified(name, at, errors);
    if !name.contains('/') {
        errors.invalid(at, name, "a fully qualified name must be a domain and a name separated by a slash");
    }
}

fn identifier(id: &str, at: &FieldPath, errors: &mut FieldErrors) {
    if id.len() > IDENTIFIER {
        errors.too_long(at, IDENTIFIER);
    }
    each(is_c_identifier(id), id, at, errors);
}

/// What tells apart the shares of one device.
pub fn share_id(id: &str, at: &FieldPath, errors: &mut FieldErrors) {
    if let Some(why) = no_uuid(id) {
        errors.invalid(at, id, format!("error validating uid: {why}"));
    } else if id.len() != 36 || id.bytes().any(|c| c.is_ascii_uppercase()) {
        errors.invalid(
            at,
            id,
            "uid must be in RFC 4122 normalized form, `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx` with lowercase \
             hexadecimal characters",
        );
    }
}

/// Why a text is no UUID in any of the forms that there are, in the words of upstream's `google/uuid`.
fn no_uuid(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let plain = match bytes {
        [b'{', plain @ .., b'}'] if bytes.len() == 38 => plain,
        _ if bytes.len() == 38 => return Some("invalid bracketed UUID format".to_owned()),
        _ if bytes.len() == 45 => {
            let (prefix, plain) = bytes.split_at(9);
            if !prefix.eq_ignore_ascii_case(b"urn:uuid:") {
                return Some(format!("invalid urn prefix: {:?}", String::from_utf8_lossy(prefix)));
            }
            plain
        }
        _ if matches!(bytes.len(), 32 | 36) => bytes,
        _ => return Some(format!("invalid UUID length: {}", bytes.len())),
    };
    let hyphenated = plain.len() == 36;
    let fits = |(i, c): (usize, &u8)| match i {
        8 | 13 | 18 | 23 if hyphenated => *c == b'-',
        _ => c.is_ascii_hexdigit(),
    };
    (!plain.iter().enumerate().all(fits)).then(|| "invalid UUID format".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(check: fn(&str, &FieldPath, &mut FieldErrors), name: &str) -> Vec<String> {
        let mut errors = FieldErrors::new();
        check(name, &FieldPath::new("x"), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn attributes_are_identifiers_in_domains() {
        for good in ["a", "_A1", "example.com/model", "a/b/c"] {
            assert_eq!(told(qualified, good), [""; 0], "{good}");
        }
        assert_eq!(told(qualified, "/a"), ["x: Invalid value: \"\": the domain must not be empty"]);
        assert_eq!(told(qualified, "a/"), ["x: Invalid value: \"\": the name must not be empty"]);
        assert_eq!(told(qualified, &"a".repeat(33)), ["x: Too long: may not be more than 32 bytes"]);
        assert!(told(qualified, "1a")[0].starts_with("x: Invalid value: \"1a\": a valid C identifier must"));
        assert_eq!(
            told(fully_qualified, "a"),
            [
                "x: Invalid value: \"a\": a fully qualified name must be a domain and a name separated by a slash"
            ]
        );
    }

    #[test]
    fn a_driver_is_shown_as_it_was_written() {
        assert_eq!(told(driver, "Example.COM"), [""; 0]);
        assert_eq!(told(driver, ""), ["x: Required value"]);
        assert!(
            told(driver, "A_b")[0].starts_with("x: Invalid value: \"A_b\": a lowercase RFC 1123 subdomain")
        );
        assert_eq!(told(pool, "node/gpus"), [""; 0]);
        assert!(told(pool, "node/")[0].starts_with("x: Invalid value: \"\": a lowercase RFC 1123 subdomain"));
    }

    #[test]
    fn shares_have_uuids_in_their_usual_form() {
        assert_eq!(told(share_id, "00000000-0000-4000-8000-00000000000a"), [""; 0]);
        for (id, why) in [
            ("a", "error validating uid: invalid UUID length: 1"),
            ("00000000-0000-4000-8000-00000000000g", "error validating uid: invalid UUID format"),
            ("00000000-0000-4000-8000-00000000000A", "uid must be in RFC 4122 normalized form"),
            ("{00000000-0000-4000-8000-00000000000a}", "uid must be in RFC 4122 normalized form"),
            ("0000000000004000800000000000000a", "uid must be in RFC 4122 normalized form"),
            (
                "urn:uuix:00000000-0000-4000-8000-00000000000a",
                "error validating uid: invalid urn prefix: \"urn:uuix:\"",
            ),
        ] {
            assert!(told(share_id, id)[0].contains(why), "{id}: {:?}", told(share_id, id));
        }
    }
}
