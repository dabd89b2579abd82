//! What may be a name: the formats of `k8s.io/apimachinery/pkg/util/validation`. Each function returns what is wrong,
//! in upstream's words, and nothing if the name is right.

use std::borrow::Cow;

/// The most bytes that a DNS subdomain may have.
pub const SUBDOMAIN_MAX: usize = 253;
/// The most bytes that a DNS label, a label's value and the name part of a label's key may have.
pub const LABEL_MAX: usize = 63;

const LABEL_FORMAT: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN_FORMAT: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const KEY_FORMAT: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";

fn lower_alnum(c: u8) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit()
}

/// Whether `s` starts with `first`, ends with `last`, and has only `inner` between. Empty is no.
fn shaped(s: &str, first: fn(u8) -> bool, inner: fn(u8) -> bool, last: fn(u8) -> bool) -> bool {
    let b = s.as_bytes();
    matches!((b.first(), b.last()), (Some(&f), Some(&l)) if first(f) && last(l))
        && b.iter().all(|&c| inner(c))
}

fn is_label(s: &str) -> bool {
    shaped(s, lower_alnum, |c| lower_alnum(c) || c == b'-', lower_alnum)
}

fn is_subdomain(s: &str) -> bool {
    s.split('.').all(is_label)
}

fn is_key_name(s: &str) -> bool {
    shaped(
        s,
        |c| c.is_ascii_alphanumeric(),
        |c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'),
        |c| c.is_ascii_alphanumeric(),
    )
}

fn too_long(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

/// A format's fault as upstream words it, with examples and the regular expression.
pub fn regex_error(what: &str, format: &str, examples: &[&str]) -> String {
    if examples.is_empty() {
        return format!("{what} (regex used for validation is '{format}')");
    }
    let examples: Vec<String> = examples.iter().map(|e| format!("'{e}', ")).collect();
    format!("{what} (e.g. {}regex used for validation is '{format}')", examples.join(" or "))
}

/// `must be between 1 and 65535, inclusive`.
pub fn inclusive_range_error(low: i64, high: i64) -> String {
    format!("must be between {low} and {high}, inclusive")
}

/// A lower-case RFC 1123 subdomain: most names.
pub fn is_dns1123_subdomain(s: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if s.len() > SUBDOMAIN_MAX {
        wrong.push(too_long(SUBDOMAIN_MAX));
    }
    if !is_subdomain(s) {
        wrong.push(regex_error(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must \
             start and end with an alphanumeric character",
            SUBDOMAIN_FORMAT,
            &["example.com"],
        ));
    }
    wrong
}

/// A lower-case RFC 1123 label: namespaces and what becomes a part of a host name.
pub fn is_dns1123_label(s: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if s.len() > LABEL_MAX {
        wrong.push(too_long(LABEL_MAX));
    }
    if !is_label(s) {
        wrong.push(if is_subdomain(s) {
            "must not contain dots".to_owned()
        } else {
            regex_error(
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
                 start and end with an alphanumeric character",
                LABEL_FORMAT,
                &["my-name", "123-abc"],
            )
        });
    }
    wrong
}

/// An RFC 1035 label, which starts with a letter: Services.
pub fn is_dns1035_label(s: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if s.len() > LABEL_MAX {
        wrong.push(too_long(LABEL_MAX));
    }
    if !shaped(s, |c| c.is_ascii_lowercase(), |c| lower_alnum(c) || c == b'-', lower_alnum) {
        wrong.push(regex_error(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
             character, and end with an alphanumeric character",
            "[a-z]([-a-z0-9]*[a-z0-9])?",
            &["my-name", "abc-123"],
        ));
    }
    wrong
}

/// `*.example.com`: a subdomain of which the first label is a star.
pub fn is_wildcard_dns1123_subdomain(s: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if s.len() > SUBDOMAIN_MAX {
        wrong.push(too_long(SUBDOMAIN_MAX));
    }
    if !s.strip_prefix("*.").is_some_and(is_subdomain) {
        wrong.push(regex_error(
            "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must \
             consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character",
            &format!("\\*\\.{SUBDOMAIN_FORMAT}"),
            &["*.example.com"],
        ));
    }
    wrong
}

/// A qualified name: an optional subdomain and `/`, then a name. Label keys, finalizers, condition types.
pub fn is_qualified_name(s: &str) -> Vec<String> {
    const WHAT: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
                        alphanumeric character";
    const EXAMPLES: &[&str] = &["MyName", "my.name", "123-abc"];
    let mut wrong = Vec::new();
    let name = match s.split_once('/') {
        None => s,
        Some((_, rest)) if rest.contains('/') => {
            wrong.push(format!(
                "a valid label key {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                regex_error(WHAT, KEY_FORMAT, EXAMPLES)
            ));
            return wrong;
        }
        Some(("", name)) => {
            wrong.push("prefix part must be non-empty".to_owned());
            name
        }
        Some((prefix, name)) => {
            wrong.extend(is_dns1123_subdomain(prefix).into_iter().map(|m| format!("prefix part {m}")));
            name
        }
    };
    if name.is_empty() {
        wrong.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL_MAX {
        wrong.push(format!("name part {}", too_long(LABEL_MAX)));
    }
    if !is_key_name(name) {
        wrong.push(format!("name part {}", regex_error(WHAT, KEY_FORMAT, EXAMPLES)));
    }
    wrong
}

/// A label's value. Empty is right.
pub fn is_label_value(s: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if s.len() > LABEL_MAX {
        wrong.push(too_long(LABEL_MAX));
    }
    if !s.is_empty() && !is_key_name(s) {
        wrong.push(regex_error(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must \
             start and end with an alphanumeric character",
            &format!("({KEY_FORMAT})?"),
            &["MyValue", "my_value", "12345"],
        ));
    }
    wrong
}

/// Faults of a key that would lead out of a folder once it became a file's name.
fn leaves_folder(s: &str) -> Option<String> {
    match s {
        "." => Some("must not be '.'".to_owned()),
        ".." => Some("must not be '..'".to_owned()),
        _ if s.starts_with("..") => Some("must not start with '..'".to_owned()),
        _ => None,
    }
}

/// A key of a ConfigMap or a Secret.
pub fn is_config_map_key(s: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if s.len() > SUBDOMAIN_MAX {
        wrong.push(too_long(SUBDOMAIN_MAX));
    }
    if s.is_empty() || !s.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_')) {
        wrong.push(regex_error(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    wrong.extend(leaves_folder(s));
    wrong
}

/// The strict form of an environment variable's name.
pub fn is_env_var_name(s: &str) -> Vec<String> {
    let first = |c: u8| c.is_ascii_alphabetic() || matches!(c, b'-' | b'.' | b'_');
    let inner = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_');
    let mut wrong = Vec::new();
    if !shaped(s, first, inner, inner) {
        wrong.push(regex_error(
            "a valid environment variable name must consist of alphabetic characters, digits, '_', '-', or '.', and \
             must not start with a digit",
            "[-._a-zA-Z][-._a-zA-Z0-9]*",
            &["my.env-name", "MY_ENV.NAME", "MyEnvName1"],
        ));
    }
    wrong.extend(leaves_folder(s));
    wrong
}

/// What a Pod's environment variable may be called: any printable ASCII but `=`.
pub fn is_relaxed_env_var_name(s: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if s.is_empty() {
        wrong.push("environment variable name must be non-empty".to_owned());
    }
    if s.bytes().any(|c| !(b' '..=b'~').contains(&c) || c == b'=') {
        wrong.push(
            "a valid environment variable name must consist only of printable ASCII characters other than '='"
                .to_owned(),
        );
    }
    wrong
}

/// An identifier of C.
pub fn is_c_identifier(s: &str) -> Vec<String> {
    let first = |c: u8| c.is_ascii_alphabetic() || c == b'_';
    let inner = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
    if shaped(s, first, inner, inner) {
        return Vec::new();
    }
    vec![regex_error(
        "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric \
         characters or '_'",
        "[A-Za-z_][A-Za-z0-9_]*",
        &["my_name", "MY_NAME", "MyName"],
    )]
}

/// The name of a container's port: an IANA service name (RFC 6335), lower case only.
pub fn is_port_name(s: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if s.len() > 15 {
        wrong.push(too_long(15));
    }
    if s.is_empty() || !s.bytes().all(|c| lower_alnum(c) || c == b'-') {
        wrong.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !s.bytes().any(|c| c.is_ascii_lowercase()) {
        wrong.push("must contain at least one letter (a-z)".to_owned());
    }
    if s.contains("--") {
        wrong.push("must not contain consecutive hyphens".to_owned());
    }
    if s.starts_with('-') || s.ends_with('-') {
        wrong.push("must not begin or end with a hyphen".to_owned());
    }
    wrong
}

/// A port's number: 1 to 65535.
pub fn is_port_number(port: i64) -> Vec<String> {
    is_in_range(port, 1, 65535)
}

/// A number between two others, both inclusive.
pub fn is_in_range(value: i64, low: i64, high: i64) -> Vec<String> {
    if (low..=high).contains(&value) { Vec::new() } else { vec![inclusive_range_error(low, high)] }
}

/// A user's or group's number.
pub fn is_user_id(id: i64) -> Vec<String> {
    is_in_range(id, 0, 2_147_483_647)
}

/// `25%`.
pub fn is_percent(s: &str) -> Vec<String> {
    match s.strip_suffix('%') {
        Some(n) if !n.is_empty() && n.bytes().all(|c| c.is_ascii_digit()) => Vec::new(),
        _ => vec![regex_error(
            "a valid percent string must be a numeric string followed by an ending '%'",
            "[0-9]+%",
            &["1%", "93%"],
        )],
    }
}

/// The name of an HTTP header.
pub fn is_http_header_name(s: &str) -> Vec<String> {
    if !s.is_empty() && s.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-') {
        return Vec::new();
    }
    vec![regex_error(
        "a valid HTTP header must consist of alphanumeric characters or '-'",
        "[-A-Za-z0-9]+",
        &["X-Header-Name"],
    )]
}

/// A name that may stand as one segment of a path: roles, role bindings, priority classes' like. `prefix` is true for
/// a `generateName`.
pub fn is_path_segment_name(s: &str, prefix: bool) -> Vec<String> {
    if !prefix && (s == "." || s == "..") {
        return vec![format!("may not be '{s}'")];
    }
    ["/", "%"].iter().filter(|bad| s.contains(**bad)).map(|bad| format!("may not contain '{bad}'")).collect()
}

/// A `generateName` may end in a hyphen, since letters will follow it: the name that is judged in its place.
pub fn mask_trailing_dash(s: &str) -> Cow<'_, str> {
    match s.char_indices().rev().nth(1) {
        Some((cut, _)) if s.ends_with('-') => Cow::Owned(format!("{}a", &s[..cut])),
        _ => Cow::Borrowed(s),
    }
}

/// How a kind's names are judged, the `generateName` too: upstream's `ValidateNameFunc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    Subdomain,
    Label,
    Label1035,
    PathSegment,
    /// Nothing is asked of the name.
    Any,
}

impl NameRule {
    /// What is wrong with a name, or with a prefix of one.
    pub fn check(self, name: &str, prefix: bool) -> Vec<String> {
        let masked = if prefix { mask_trailing_dash(name) } else { Cow::Borrowed(name) };
        match self {
            NameRule::Subdomain => is_dns1123_subdomain(&masked),
            NameRule::Label => is_dns1123_label(&masked),
            NameRule::Label1035 => is_dns1035_label(&masked),
            NameRule::PathSegment => is_path_segment_name(name, prefix),
            NameRule::Any => Vec::new(),
        }
    }
}

const SUFFIX_ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX_LENGTH: usize = 5;

/// A name from a `generateName`: the prefix, cut so that the whole fits in 63 bytes, and five random characters. The
/// alphabet has no vowels and none of 0, 1 and 3, so that no word comes out.
pub fn generate_name(prefix: &str, mut random: impl FnMut() -> u64) -> String {
    let mut cut = prefix.len().min(LABEL_MAX - SUFFIX_LENGTH);
    while !prefix.is_char_boundary(cut) {
        cut -= 1;
    }
    let mut out = String::with_capacity(cut + SUFFIX_LENGTH);
    out.push_str(&prefix[..cut]);
    for _ in 0..SUFFIX_LENGTH {
        let i = random() % SUFFIX_ALPHABET.len() as u64;
        out.push(char::from(SUFFIX_ALPHABET[i as usize]));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A check, then what it lets pass, then what it refuses.
    type Case = (fn(&str) -> Vec<String>, &'static [&'static str], &'static [&'static str]);

    #[test]
    fn formats_take_what_upstream_takes() {
        let cases: &[Case] = &[
            (is_dns1123_subdomain, &["a", "a.b-c.1"], &["", "A", "a..b", "-a", "a-", "a_b"]),
            (is_dns1123_label, &["a", "1-a"], &["", "a.b", "A", "-"]),
            (is_dns1035_label, &["a", "a1"], &["", "1a", "a.b", "a-"]),
            (is_wildcard_dns1123_subdomain, &["*.a", "*.a.b"], &["*", "a.b", "*.*.a", "**.a"]),
            (is_qualified_name, &["A", "a.b/C_d.e", "1"], &["", "/a", "a/", "a/b/c", "A.b/c", "-a", "a b"]),
            (is_label_value, &["", "a", "A_b.c-1"], &["-", "a ", "_a"]),
            (is_config_map_key, &["a", ".a", "A-b_c"], &["", ".", "..", "..a", "a b"]),
            (is_env_var_name, &["A", "_a.b-c"], &["", "1a", "a b", "..a"]),
            (is_relaxed_env_var_name, &["A", "1 a#"], &["", "a=b", "\u{e9}"]),
            (is_c_identifier, &["_a1"], &["", "1a", "a-b"]),
            (is_port_name, &["a", "http-2", "1a"], &["", "1", "a--b", "-a", "A", "abcdefghijklmnop"]),
            (is_percent, &["1%"], &["%", "1", "-1%"]),
            (is_http_header_name, &["X-A"], &["", "a b"]),
        ];
        for (i, (check, right, wrong)) in cases.iter().enumerate() {
            for s in *right {
                assert_eq!(check(s), Vec::<String>::new(), "case {i}: {s:?}");
            }
            for s in *wrong {
                assert!(!check(s).is_empty(), "case {i}: {s:?} was let pass");
            }
        }
    }

    #[test]
    fn faults_read_as_upstreams() {
        assert_eq!(
            is_qualified_name("a b"),
            [
                "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
              alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
              '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
            ]
        );
        assert_eq!(is_dns1123_label(&"a".repeat(64)), ["must be no more than 63 bytes"]);
        assert_eq!(is_dns1123_label("a.b"), ["must not contain dots"]);
        assert_eq!(is_path_segment_name("a/%", false), ["may not contain '/'", "may not contain '%'"]);
        assert_eq!(is_port_number(0), ["must be between 1 and 65535, inclusive"]);
    }

    #[test]
    fn a_generated_name_keeps_its_prefix_and_fits_in_a_label() {
        let mut n = 0;
        let mut count = || {
            n += 1;
            n
        };
        assert_eq!(generate_name("web-", &mut count), "web-cdfgh");
        assert_eq!(generate_name(&"é".repeat(40), &mut count).len(), 63);
        assert!(NameRule::Label.check("web-", true).is_empty());
        assert!(!NameRule::Label.check("web-", false).is_empty());
    }
}
