//! Formats that a schema, or an expression, may ask of a text: those that upstream knows, by upstream's rules. Of other
//! formats nothing is asked.

pub mod pattern;
pub mod uri;

use std::sync::LazyLock;

use jiff::SignedDuration;
use krate_api::{duration, names};
use regex::Regex;

/// Whether a text is of a format.
type Check = fn(&str) -> bool;

/// By their names without hyphens, which do not count.
const FORMATS: [(&str, Check); 26] = [
    ("bsonobjectid", |text| text.len() == 24 && is_hex(text)),
    ("byte", is_base64),
    ("cidr", is_cidr),
    ("creditcard", is_credit_card),
    ("date", is_date),
    ("datetime", is_date_time),
    ("duration", is_duration),
    ("email", is_email),
    ("hexcolor", is_hex_color),
    ("hostname", is_hostname),
    ("ipv4", |text| text.contains('.') && is_address(text)),
    ("ipv6", |text| text.contains(':') && is_address(text)),
    ("isbn", |text| is_isbn10(text) || is_isbn13(text)),
    ("isbn10", is_isbn10),
    ("isbn13", is_isbn13),
    ("k8slongname", |text| names::is_dns1123_subdomain(text).is_empty()),
    ("k8sshortname", |text| names::is_dns1123_label(text).is_empty()),
    ("mac", is_mac),
    ("password", |_| true),
    ("rgbcolor", is_rgb_color),
    ("ssn", |text| text.len() == 11 && matches(&SSN, text)),
    ("uri", |text| uri::parse(text).is_ok()),
    ("uuid", |text| uuid(text).is_some()),
    ("uuid3", |text| is_uuid_of(text, '3', |_| true)),
    ("uuid4", |text| is_uuid_of(text, '4', is_variant)),
    ("uuid5", |text| is_uuid_of(text, '5', is_variant)),
];

static SSN: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new("^[0-9]{3}[- ]?[0-9]{2}[- ]?[0-9]{4}$").ok());
/// What a label of a host's name is made of besides hyphens, one of it.
static LETTER: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"^[\p{S}\p{L}]$").ok());
static CARD: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let kinds = [
        "4[0-9]{12}([0-9]{3})?",
        "5[1-5][0-9]{14}",
        "6(011|5[0-9]{2})[0-9]{12}",
        "3[47][0-9]{13}",
        "3(0[0-5]|[68][0-9])[0-9]{11}",
        "(2131|1800|35[0-9]{3})[0-9]{11}",
    ];
    Regex::new(&format!("^({})$", kinds.join("|"))).ok()
});
static DURATION: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"([0-9]+)\s*([A-Za-zµ]+)").ok());

fn matches(pattern: &LazyLock<Option<Regex>>, text: &str) -> bool {
    pattern.as_ref().is_some_and(|pattern| pattern.is_match(text))
}

fn found(format: &str) -> Option<Check> {
    let name = format.replace('-', "");
    FORMATS.iter().find(|(known, _)| *known == name).map(|(_, check)| *check)
}

/// Whether a format is known for values of this type; of any type where it is empty.
pub fn is_known(kind: &str, format: &str) -> bool {
    match kind {
        "" | "string" => found(format).is_some(),
        "integer" => matches!(format, "int32" | "int64"),
        "number" => matches!(format, "float" | "double"),
        _ => false,
    }
}

/// Whether a text is of a format, as far as that is known.
pub fn is_of(text: &str, format: &str) -> bool {
    found(format).is_none_or(|check| check(text))
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn is_digits(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit())
}

/// With its padding, and of something.
fn is_base64(text: &str) -> bool {
    let body = text.trim_end_matches('=');
    let is_one = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/');
    !body.is_empty()
        && text.len().is_multiple_of(4)
        && text.len() - body.len() <= 2
        && body.bytes().all(is_one)
}

fn is_address(text: &str) -> bool {
    text.parse::<std::net::IpAddr>().is_ok()
}

fn is_cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let most = match address.parse() {
        Ok(std::net::IpAddr::V4(_)) => 32,
        Ok(std::net::IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    !bits.is_empty() && is_digits(bits) && bits.parse::<u8>().is_ok_and(|bits| bits <= most)
}

/// Six, eight or twenty bytes, each of its own or two together.
fn is_mac(text: &str) -> bool {
    let of = |separator: char, width: usize, counts: [usize; 3]| {
        let parts: Vec<&str> = text.split(separator).collect();
        counts.contains(&parts.len()) && parts.iter().all(|part| part.len() == width && is_hex(part))
    };
    of(':', 2, [6, 8, 20]) || of('-', 2, [6, 8, 20]) || of('.', 4, [3, 4, 10])
}

/// The digits of a UUID, whether it has its hyphens or not.
fn uuid(text: &str) -> Option<String> {
    let (mut rest, mut digits) = (text, String::new());
    for (i, length) in [8, 4, 4, 4, 12].into_iter().enumerate() {
        if i > 0 {
            rest = rest.strip_prefix('-').unwrap_or(rest);
        }
        let part = rest.get(..length).filter(|part| is_hex(part))?;
        digits.push_str(part);
        rest = &rest[length..];
    }
    rest.is_empty().then_some(digits)
}

fn is_variant(digit: char) -> bool {
    matches!(digit.to_ascii_lowercase(), '8' | '9' | 'a' | 'b')
}

fn is_uuid_of(text: &str, version: char, variant: fn(char) -> bool) -> bool {
    let Some(digits) = uuid(text) else { return false };
    let at = |n: usize| digits.as_bytes().get(n).map(|&b| char::from(b));
    at(12) == Some(version) && at(16).is_some_and(variant)
}

/// What is not told of a number of digits.
fn without(text: &str, goes: impl Fn(char) -> bool) -> String {
    text.chars().filter(|&c| !goes(c)).collect()
}

fn is_isbn10(text: &str) -> bool {
    let text = without(text, |c| c.is_whitespace() || c == '-');
    let Some((body, last)) = text.split_at_checked(9) else { return false };
    let check = match last {
        "X" => 10,
        digit if digit.len() == 1 && is_digits(digit) => u32::from(digit.as_bytes()[0] - b'0'),
        _ => return false,
    };
    let sum: u32 = body.bytes().zip(1..).map(|(b, n)| n * u32::from(b.wrapping_sub(b'0'))).sum();
    is_digits(body) && (sum + 10 * check).is_multiple_of(11)
}

fn is_isbn13(text: &str) -> bool {
    let text = without(text, |c| c.is_whitespace() || c == '-');
    if text.len() != 13 || !is_digits(&text) {
        return false;
    }
    let weighed = text.bytes().zip([1, 3].into_iter().cycle());
    let sum: u32 = weighed.map(|(b, weight)| weight * u32::from(b - b'0')).sum();
    sum.is_multiple_of(10)
}

/// Of a known sort, and with the right check digit (Luhn).
fn is_credit_card(text: &str) -> bool {
    let digits = without(text, |c| !c.is_ascii_digit());
    let doubled = |n: u32| if n > 4 { 2 * n - 9 } else { 2 * n };
    let each = digits.bytes().rev().map(|b| u32::from(b - b'0')).enumerate();
    let sum: u32 = each.map(|(i, n)| if i % 2 == 1 { doubled(n) } else { n }).sum();
    matches(&CARD, &digits) && sum.is_multiple_of(10)
}

fn is_hex_color(text: &str) -> bool {
    let digits = text.strip_prefix('#').unwrap_or(text);
    matches!(digits.len(), 3 | 6) && is_hex(digits)
}

fn is_rgb_color(text: &str) -> bool {
    let Some(parts) = text.strip_prefix("rgb(").and_then(|rest| rest.strip_suffix(')')) else { return false };
    let is_part = |part: &str| {
        let part = part.trim_matches(|c: char| c.is_ascii_whitespace());
        let canonical = part == "0" || !part.starts_with('0');
        !part.is_empty() && is_digits(part) && canonical && part.parse::<u8>().is_ok()
    };
    parts.split(',').count() == 3 && parts.split(',').all(is_part)
}

fn is_date(text: &str) -> bool {
    text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok()
}

fn is_date_time(text: &str) -> bool {
    let Some((date, time)) = text.split_once(['T', 't']) else { return false };
    let at_most = |part: &str, most: u8| {
        part.len() == 2 && is_digits(part) && part.parse().is_ok_and(|n: u8| n <= most)
    };
    let Some((clock, rest)) = time.split_at_checked(8) else { return false };
    let parts: Vec<&str> = clock.split(':').collect();
    let [hours, minutes, seconds] = parts.as_slice() else { return false };
    let rest = match rest.strip_prefix('.') {
        None => rest,
        Some(fraction) => {
            let zone = fraction.trim_start_matches(|c: char| c.is_ascii_digit());
            if zone.len() == fraction.len() {
                return false;
            }
            zone
        }
    };
    let is_zone = match rest.strip_prefix(['+', '-']) {
        None => matches!(rest, "Z" | "z"),
        Some(offset) => offset.split_once(':').is_some_and(|(h, m)| at_most(h, 99) && at_most(m, 99)),
    };
    is_date(date) && at_most(hours, 23) && at_most(minutes, 59) && at_most(seconds, 59) && is_zone
}

fn is_duration(text: &str) -> bool {
    read_duration(text).is_some()
}

/// Of an amount of time how it is written and how many nanoseconds it has; what comes last of each may be followed by
/// more: `seconds`.
const UNITS: [(&[&str], i64); 8] = [
    (&["ns", "nano"], 1),
    (&["us", "µs", "micro"], 1_000),
    (&["ms", "milli"], 1_000_000),
    (&["s", "sec"], 1_000_000_000),
    (&["m", "min"], 60_000_000_000),
    (&["h", "hr", "hour"], 3_600_000_000_000),
    (&["d", "day"], 86_400_000_000_000),
    (&["w", "wk", "week"], 604_800_000_000_000),
];

/// A duration as Go writes them, or in words: `3 days`.
pub fn read_duration(text: &str) -> Option<SignedDuration> {
    if let Some(plain) = duration::parse(text) {
        return Some(plain);
    }
    let mut sum: Option<i64> = None;
    for captures in DURATION.as_ref()?.captures_iter(text) {
        let count: i64 = captures.get(1)?.as_str().parse().ok()?;
        let unit = captures.get(2)?.as_str().to_lowercase();
        let is_it = |names: &[&str]| {
            names.contains(&unit.as_str()) || names.last().is_some_and(|last| unit.starts_with(last))
        };
        if let Some((_, nanos)) = UNITS.iter().find(|(names, _)| is_it(names)) {
            sum = Some(sum.unwrap_or(0).wrapping_add(count.wrapping_mul(*nanos)));
        }
    }
    sum.map(SignedDuration::from_nanos)
}

fn is_letter(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches(&LETTER, c.encode_utf8(&mut [0; 4]))
}

/// Symbols of all scripts are taken, and the last of several labels is stricter than the others.
fn is_hostname(text: &str) -> bool {
    let labels: Vec<&str> = text.split('.').collect();
    let Some((last, others)) = labels.split_last() else { return false };
    if text.len() > 255 || labels.iter().any(|label| label.len() > 63) {
        return false;
    }
    let mut end = last.chars();
    if !end.next().is_some_and(is_letter) {
        return false;
    }
    let end = end.as_str();
    if others.is_empty() {
        return end.strip_prefix('-').unwrap_or(end).chars().all(is_letter);
    }
    let is_label = |label: &&str| {
        label.starts_with(is_letter)
            && label.ends_with(is_letter)
            && label.chars().all(|c| c == '-' || is_letter(c))
    };
    let is_end =
        end.ends_with(is_letter) && !end.contains("--") && end.chars().all(|c| c == '-' || is_letter(c));
    others.iter().all(is_label) && is_end
}

/// An address, or a name with an address in angle brackets.
pub fn is_email(text: &str) -> bool {
    let text = text.trim();
    let address = match text.strip_suffix('>') {
        Some(before) => before.rsplit_once('<').map(|(_, address)| address),
        None => Some(text),
    };
    let Some((local, domain)) = address.and_then(|address| address.rsplit_once('@')) else { return false };
    let is_atom = |part: &str| {
        let is_one = |c: char| c.is_alphanumeric() || !c.is_ascii() || "!#$%&'*+-/=?^_`{|}~".contains(c);
        !part.is_empty() && part.chars().all(is_one)
    };
    let is_dotted = |part: &str| part.split('.').all(is_atom);
    let is_quoted = |part: &str| {
        let inner = part.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
        inner.is_some_and(|inner| !inner.is_empty() && !inner.contains('"') && !inner.contains('\n'))
    };
    let literal = domain.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    (is_dotted(local) || is_quoted(local)) && (is_dotted(domain) || literal.is_some_and(is_address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_of_their_formats() {
        for (format, good, bad) in [
            ("bsonobjectid", &["507f1f77bcf86cd799439011"][..], &["507f1f77bcf86cd79943901", "x"][..]),
            ("byte", &["aGk=", "aGVsbG8h"], &["", "aGk", "a===", "a-b="]),
            ("cidr", &["10.0.0.0/8", "fd00::/64"], &["10.0.0.0", "10.0.0.0/33", "10.0.0.0/+8"]),
            ("creditcard", &["4111-1111-1111-1111", "378282246310005"], &["4111111111111112", "1234"]),
            ("date", &["2026-01-31"], &["2026-02-31", "2026-1-1"]),
            (
                "date-time",
                &["2026-01-01T00:00:00Z", "2026-01-01t23:59:59.5+01:00"],
                &["2026-01-01", "2026-01-01T24:00:00Z", "2026-01-01T00:00:00", "2026-01-01 00:00:00Z"],
            ),
            ("datetime", &["2026-01-01T00:00:00Z"], &["x"]),
            ("duration", &["1h30m", "3 days", "22 ns", "2 weeks"], &["", "3", "3 parsecs"]),
            (
                "email",
                &["a.b@example.com", "Amy <amy@example.com>", "\"a b\"@example.com"],
                &["a", "@example.com", "a@", "a b@example.com", "a..b@example.com"],
            ),
            ("hexcolor", &["#FFF", "c0ffee"], &["#FF", "#ggg"]),
            (
                "hostname",
                &["a", "a-b", "1.example.com", "xn--a.example.co", "💩.la"],
                &["", "-a", "a.b", "a..bc", "a_b.com", "example.com-", "a-b-c"],
            ),
            ("ipv4", &["10.0.0.1"], &["::1", "10.0.0", "010.0.0.1"]),
            ("ipv6", &["::1", "fd00::a"], &["10.0.0.1", "::g"]),
            (
                "isbn",
                &["0321751043", "978-0321751041", "3-401-01319-X"],
                &["0321751044", "9780321751042", "1"],
            ),
            ("isbn10", &["0321751043"], &["9780321751041"]),
            ("isbn13", &["9780321751041"], &["0321751043"]),
            ("k8s-short-name", &["a-1"], &["a.b", "A", "-a"]),
            ("k8s-long-name", &["a.b-1"], &["A.b", "a..b"]),
            (
                "mac",
                &["01:02:03:04:ab:cd", "01-02-03-04-AB-CD", "0102.0304.abcd"],
                &["01:02", "01:02:03:04:ab:cg"],
            ),
            ("password", &["", "x"], &[]),
            ("rgbcolor", &["rgb(0, 1,255)"], &["rgb(0,1)", "rgb(256,0,0)", "rgb(00,0,0)"]),
            ("ssn", &["111-22-3333", "111 22 3333"], &["111223333", "11-222-3333"]),
            (
                "uri",
                &["https://a:1/b?c", "/a", "mailto:x", "/a?%"],
                &["", "a/b", "https://a b/", "https://a:x/", "/%2"],
            ),
            (
                "uuid",
                &["f47ac10b-58cc-4372-A567-0e02b2c3d479", "f47ac10b58cc4372a5670e02b2c3d479"],
                &["f47ac10b-58cc-4372-a567", "f47ac10b-58cc-4372-a567-0e02b2c3d4791", "x"],
            ),
            ("uuid3", &["6fa459ea-ee8a-3ca4-894e-db77e160355e"], &["6fa459ea-ee8a-4ca4-894e-db77e160355e"]),
            ("uuid4", &["f47ac10b-58cc-4372-a567-0e02b2c3d479"], &["f47ac10b-58cc-4372-c567-0e02b2c3d479"]),
            ("uuid5", &["886313e1-3b8a-5372-9b90-0c9aee199e5d"], &["886313e1-3b8a-4372-9b90-0c9aee199e5d"]),
            ("odd", &["", "whatever"], &[]),
        ] {
            for text in good {
                assert!(is_of(text, format), "{format}: {text}");
            }
            for text in bad {
                assert!(!is_of(text, format), "{format}: {text}");
            }
        }
    }

    #[test]
    fn a_format_is_known_for_its_type() {
        for (kind, format, known) in [
            ("string", "date-time", true),
            ("", "uuid4", true),
            ("string", "int32", false),
            ("integer", "int64", true),
            ("integer", "uint32", false),
            ("number", "double", true),
            ("object", "date", false),
        ] {
            assert_eq!(is_known(kind, format), known, "{kind} {format}");
        }
        assert!(FORMATS.is_sorted_by(|a, b| a.0 < b.0));
    }
}
