//! Lists and maps whose entries are judged one by one, unless they are too many to be looked at.

use std::collections::{BTreeMap, BTreeSet};

use krate_api::{FieldErrors, FieldPath};
use serde::Serialize;

/// Judges each item; tells no more than that they are too many if there are more than `most`, and returns false then.
pub fn all<'a, T>(
    items: Option<&'a [T]>,
    most: usize,
    at: &FieldPath,
    errors: &mut FieldErrors,
    check: impl Fn(&'a T, &FieldPath, &mut FieldErrors),
) -> bool {
    let items = items.unwrap_or_default();
    if items.len() > most {
        errors.too_many(at, items.len(), most);
        return false;
    }
    for (i, item) in items.iter().enumerate() {
        check(item, &at.index(i), errors);
    }
    true
}

/// As [`all`], of items no two of which may have one key.
pub fn distinct<'a, T, K: Ord + Serialize>(
    items: Option<&'a [T]>,
    most: usize,
    at: &FieldPath,
    errors: &mut FieldErrors,
    key: impl Fn(&'a T) -> K,
    check: impl Fn(&'a T, &FieldPath, &mut FieldErrors),
) {
    if !all(items, most, at, errors, check) {
        return;
    }
    let mut known = BTreeSet::new();
    for (i, item) in items.unwrap_or_default().iter().enumerate() {
        let key = key(item);
        if known.contains(&key) {
            errors.duplicate(&at.index(i), &key);
        } else {
            known.insert(key);
        }
    }
}

/// Judges each key, at the map itself, and each value. A key is shown with no more than `longest` bytes of it.
pub fn entries<T>(
    map: Option<&BTreeMap<String, T>>,
    longest: usize,
    at: &FieldPath,
    errors: &mut FieldErrors,
    check_key: impl Fn(&str, &FieldPath, &mut FieldErrors),
    check: impl Fn(&T, &FieldPath, &mut FieldErrors),
) {
    for (key, value) in map.into_iter().flatten() {
        check_key(key, at, errors);
        check(value, &at.key(&shortened(key, longest)), errors);
    }
}

fn shortened(text: &str, longest: usize) -> String {
    if text.len() <= longest {
        return text.to_owned();
    }
    let (bytes, rest) = (text.as_bytes(), longest.saturating_sub(3));
    let (head, tail) = (&bytes[..rest.div_ceil(2)], &bytes[bytes.len() - rest / 2..]);
    format!("{}...{}", String::from_utf8_lossy(head), String::from_utf8_lossy(tail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_is_too_long_is_not_looked_into() {
        let mut errors = FieldErrors::new();
        let refuse =
            |item: &&str, at: &FieldPath, errors: &mut FieldErrors| errors.invalid(at, item, "is wrong");
        distinct(Some(["a", "a"].as_slice()), 1, &FieldPath::new("x"), &mut errors, |item| *item, refuse);
        assert_eq!(errors.aggregate(), "x: Too many: 2: must have at most 1 items");

        let mut errors = FieldErrors::new();
        let items = ["a", "b", "a"];
        distinct(Some(items.as_slice()), 3, &FieldPath::new("x"), &mut errors, |item| *item, |_, _, _| ());
        assert_eq!(errors.aggregate(), "x[2]: Duplicate value: \"a\"");
    }

    #[test]
    fn a_long_key_is_shown_by_its_ends() {
        assert_eq!(shortened("short", 16), "short");
        assert_eq!(shortened("0123456789abcdefghij", 16), "0123456...efghij");
    }
}
