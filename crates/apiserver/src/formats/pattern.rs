//! Regular expressions as Go reads them (RE2's syntax), for schemas and for CEL. What Go takes is said anew for the
//! `regex` crate, which differs in classes, braces and what a digit is; what Go refuses is refused in its words.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;
use regex::{Regex, RegexBuilder};

/// How often a part may be repeated, and how deep parts may be nested.
const MOST: i64 = 1000;
/// The largest automaton that a schema's pattern may make, in bytes.
const LARGEST: usize = 64 << 20;
/// How many patterns of schemas are kept; a definition has few, and each value of its objects asks for them.
const KEPT: usize = 1024;
const CLASSES: [&str; 14] = [
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space",
    "upper", "word", "xdigit",
];

static KNOWN: LazyLock<Mutex<HashMap<String, Option<Arc<Regex>>>>> = LazyLock::new(Mutex::default);

/// Reads a pattern that may make an automaton of so many bytes.
///
/// # Errors
/// It is none; why, as Go tells it.
pub fn compile(pattern: &str, largest: usize) -> Result<Regex, String> {
    let said = Reader::new(pattern).read()?;
    let built = RegexBuilder::new(&said).size_limit(largest).nest_limit(MOST as u32 * 2).build();
    built.map_err(|_| fault("expression too large", pattern))
}

/// What is wrong with a pattern of a schema.
pub fn wrong(pattern: &str) -> Option<String> {
    compile(pattern, LARGEST).err()
}

/// Whether a text matches a pattern of a schema; every text does one that is none.
pub fn is_match(pattern: &str, text: &str) -> bool {
    let known = KNOWN.lock().get(pattern).cloned();
    let read = known.unwrap_or_else(|| {
        let read = compile(pattern, LARGEST).ok().map(Arc::new);
        let mut known = KNOWN.lock();
        if known.len() >= KEPT {
            known.clear();
        }
        known.insert(pattern.to_owned(), read.clone());
        read
    });
    read.is_none_or(|read| read.is_match(text))
}

fn fault(what: &str, part: &str) -> String {
    format!("error parsing regexp: {what}: `{part}`")
}

/// A pattern on its way from one syntax to the other.
struct Reader<'p> {
    whole: &'p str,
    rest: &'p str,
    out: String,
    /// How often what is in the groups around is repeated at the most.
    around: Vec<i64>,
    /// The same of this group, without its last part.
    before: i64,
    /// The same of the last part; there may be none.
    last: Option<i64>,
    /// From the repetition on that was just read.
    repeated: Option<&'p str>,
}

impl<'p> Reader<'p> {
    fn new(pattern: &'p str) -> Self {
        let (out, around) = (String::with_capacity(pattern.len() + 8), Vec::new());
        Reader { whole: pattern, rest: pattern, out, around, before: 1, last: None, repeated: None }
    }

    fn read(mut self) -> Result<String, String> {
        while let Some(c) = self.rest.chars().next() {
            let at = self.rest;
            let mut repeated = None;
            match c {
                '(' => self.open()?,
                ')' => self.close()?,
                '|' => {
                    self.settle();
                    self.out.push('|');
                    self.rest = &at[1..];
                }
                '^' | '$' | '.' => self.part(&at[..1], &at[1..]),
                '[' => self.class()?,
                '*' | '+' | '?' => {
                    self.repeat(&at[1..], 1)?;
                    repeated = Some(at);
                }
                '{' => match counts(at) {
                    None => self.part(&literal('{'), &at[1..]),
                    Some((least, most, after)) => {
                        if least > MOST || most.is_some_and(|most| most > MOST || most < least) {
                            return Err(fault("invalid repeat count", consumed(at, after)));
                        }
                        self.repeat(after, most.unwrap_or(least))?;
                        repeated = Some(at);
                    }
                },
                '\\' => self.escaped()?,
                c => self.part(&literal(c), &at[c.len_utf8()..]),
            }
            self.repeated = repeated;
        }
        if self.around.is_empty() { Ok(self.out) } else { Err(fault("missing closing )", self.whole)) }
    }

    fn settle(&mut self) {
        self.before = self.before.max(self.last.take().unwrap_or(1));
    }

    fn part(&mut self, said: &str, rest: &'p str) {
        self.settle();
        self.last = Some(1);
        self.out.push_str(said);
        self.rest = rest;
    }

    fn repeat(&mut self, after: &'p str, times: i64) -> Result<(), String> {
        let at = self.rest;
        let after = after.strip_prefix('?').unwrap_or(after);
        if let Some(earlier) = self.repeated {
            return Err(fault("invalid nested repetition operator", consumed(earlier, after)));
        }
        let said = consumed(at, after);
        let last = self.last.ok_or_else(|| fault("missing argument to repetition operator", said))?;
        let together = last.saturating_mul(times.max(1));
        if times > 1 && together > MOST {
            return Err(fault("invalid repeat count", said));
        }
        self.last = Some(together);
        self.out.push_str(said);
        self.rest = after;
        Ok(())
    }

    fn group(&mut self, said: &str, rest: &'p str) -> Result<(), String> {
        self.settle();
        self.around.push(std::mem::replace(&mut self.before, 1));
        if self.around.len() as i64 >= MOST {
            return Err(fault("expression nests too deeply", self.whole));
        }
        self.out.push_str(said);
        self.rest = rest;
        Ok(())
    }

    fn open(&mut self) -> Result<(), String> {
        let at = self.rest;
        let Some(flags) = at.strip_prefix("(?") else { return self.group("(", &at[1..]) };
        let named = (at.len() > 4).then(|| flags.strip_prefix("P<")).flatten();
        if let Some(name) = named.or_else(|| flags.strip_prefix('<').filter(|_| at.len() > 3)) {
            let (name, rest) = name.split_once('>').ok_or_else(|| fault("invalid named capture", at))?;
            if name.is_empty() || !name.chars().all(|c| c == '_' || c.is_ascii_alphanumeric()) {
                return Err(fault("invalid named capture", consumed(at, rest)));
            }
            return self.group("(", rest);
        }
        let (mut negative, mut any) = (false, false);
        let mut chars = flags.chars();
        while let Some(c) = chars.next() {
            match c {
                'i' | 'm' | 's' | 'U' => any = true,
                '-' if !negative => (negative, any) = (true, false),
                ':' if any || !negative => return self.group(consumed(at, chars.as_str()), chars.as_str()),
                ')' if any || !negative => {
                    let said = consumed(at, chars.as_str());
                    self.out.push_str(if said == "(?)" { "" } else { said });
                    self.rest = chars.as_str();
                    return Ok(());
                }
                _ => break,
            }
        }
        Err(fault("invalid or unsupported Perl syntax", consumed(at, chars.as_str())))
    }

    fn close(&mut self) -> Result<(), String> {
        self.settle();
        let group = std::mem::replace(&mut self.before, 1);
        self.before = self.around.pop().ok_or_else(|| fault("unexpected )", self.whole))?;
        self.last = Some(group);
        self.out.push(')');
        self.rest = &self.rest[1..];
        Ok(())
    }

    fn escaped(&mut self) -> Result<(), String> {
        let at = self.rest;
        match at.as_bytes().get(1) {
            Some(b'A' | b'z') => self.part(&at[..2], &at[2..]),
            Some(b'b') => self.part(r"(?-u:\b)", &at[2..]),
            Some(b'B') => self.part(r"(?-u:\B)", &at[2..]),
            Some(b'Q') => {
                let (text, rest) = at[2..].split_once(r"\E").unwrap_or((&at[2..], ""));
                for c in text.chars() {
                    self.part(&literal(c), rest);
                }
                self.rest = rest;
            }
            Some(b'p' | b'P') => {
                let (said, rest) = unicode(at)?;
                self.part(&said, rest);
            }
            _ => match perl(at) {
                Some((set, true)) => self.part(&format!("[^{set}]"), &at[2..]),
                Some((set, false)) => self.part(&format!("[{set}]"), &at[2..]),
                None => {
                    let (c, rest) = escape(at)?;
                    self.part(&literal(c), rest);
                }
            },
        }
        Ok(())
    }

    fn class(&mut self) -> Result<(), String> {
        let whole = self.rest;
        let mut rest = &whole[1..];
        let mut said = String::from("[");
        if let Some(after) = rest.strip_prefix('^') {
            said.push('^');
            rest = after;
        }
        let begin = rest.len();
        while rest.len() == begin || !rest.starts_with(']') {
            if let Some(named) = rest.strip_prefix("[:")
                && let Some((name, after)) = named.split_once(":]")
            {
                let part = consumed(rest, after);
                if !CLASSES.contains(&name.strip_prefix('^').unwrap_or(name)) {
                    return Err(fault("invalid character class range", part));
                }
                said.push_str(part);
                rest = after;
            } else if rest.starts_with(r"\p") || rest.starts_with(r"\P") {
                let (part, after) = unicode(rest)?;
                said.push_str(&part);
                rest = after;
            } else if let Some((set, negative)) = perl(rest) {
                let parts = if negative { ["[^", set, "]"] } else { ["", set, ""] };
                said.extend(parts);
                rest = &rest[2..];
            } else {
                let (range, after) = range(rest, whole)?;
                said.push_str(&range);
                rest = after;
            }
        }
        said.push(']');
        self.part(&said, &rest[1..]);
        Ok(())
    }
}

/// What of a text was read when that is left of it.
fn consumed<'p>(text: &'p str, rest: &str) -> &'p str {
    &text[..text.len() - rest.len()]
}

/// A character as itself, in a class or outside.
fn literal(c: char) -> String {
    if c.is_ascii_alphanumeric() { c.to_string() } else { format!("\\x{{{:X}}}", u32::from(c)) }
}

/// `{2}`, `{2,}` or `{2,5}`.
fn counts(text: &str) -> Option<(i64, Option<i64>, &str)> {
    let (least, rest) = number(text.strip_prefix('{')?)?;
    let (most, rest) = match rest.strip_prefix(',') {
        None => (Some(least), rest),
        Some(rest) if rest.starts_with('}') => (None, rest),
        Some(rest) => number(rest).map(|(most, rest)| (Some(most), rest))?,
    };
    Some((least, most, rest.strip_prefix('}')?))
}

fn number(text: &str) -> Option<(i64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    let canonical = !digits.is_empty() && (digits == "0" || !digits.starts_with('0'));
    canonical.then(|| (digits.parse().unwrap_or(i64::MAX), rest))
}

/// The set that `\d` and its kin stand for, and whether it is all but that.
fn perl(text: &str) -> Option<(&'static str, bool)> {
    let letter = *text.strip_prefix('\\')?.as_bytes().first()?;
    let set = match letter.to_ascii_lowercase() {
        b'd' => "0-9",
        b's' => r"\t\n\x0C\r\x20",
        b'w' => "0-9A-Za-z_",
        _ => return None,
    };
    Some((set, letter.is_ascii_uppercase()))
}

/// `\pL`, `\p{Greek}` or `\P{^Greek}`.
fn unicode(text: &str) -> Result<(String, &str), String> {
    let unknown = |part: &str| fault("invalid character class range", part);
    let (name, rest) = if let Some(braced) = text[2..].strip_prefix('{') {
        braced.split_once('}').ok_or_else(|| unknown(text))?
    } else {
        let width = text[2..].chars().next().map_or(0, char::len_utf8);
        text[2..].split_at(width)
    };
    let (bare, turned) = name.strip_prefix('^').map_or((name, false), |bare| (bare, true));
    let letter = if text.starts_with(r"\P") == turned { 'p' } else { 'P' };
    let said = format!("\\{letter}{{{bare}}}");
    if bare.is_empty() || Regex::new(&said).is_err() {
        return Err(unknown(consumed(text, rest)));
    }
    Ok((said, rest))
}

/// A character of a class, or a range of them.
fn range<'p>(text: &'p str, whole: &str) -> Result<(String, &'p str), String> {
    let one = |text: &'p str| match text.chars().next() {
        None => Err(fault("missing closing ]", whole)),
        Some('\\') => escape(text),
        Some(c) => Ok((c, &text[c.len_utf8()..])),
    };
    let (low, rest) = one(text)?;
    let Some(after) = rest.strip_prefix('-').filter(|after| !after.is_empty() && !after.starts_with(']'))
    else {
        return Ok((literal(low), rest));
    };
    let (high, rest) = one(after)?;
    if high < low {
        return Err(fault("invalid character class range", consumed(text, rest)));
    }
    Ok((format!("{}-{}", literal(low), literal(high)), rest))
}

/// The character that is escaped.
fn escape(text: &str) -> Result<(char, &str), String> {
    let mut chars = text[1..].chars();
    let c = chars.next().ok_or_else(|| fault("trailing backslash at end of expression", ""))?;
    let is_octal = |rest: &str| rest.starts_with(|c: char| ('0'..='7').contains(&c));
    let made = match c {
        'a' => Some('\u{7}'),
        'f' => Some('\u{c}'),
        'n' => Some('\n'),
        'r' => Some('\r'),
        't' => Some('\t'),
        'v' => Some('\u{b}'),
        '0'..='7' if c == '0' || is_octal(chars.as_str()) => {
            let mut code = u32::from(c) - u32::from('0');
            for _ in 0..2 {
                if !is_octal(chars.as_str()) {
                    break;
                }
                code = code * 8 + chars.next().and_then(|c| c.to_digit(8)).unwrap_or(0);
            }
            char::from_u32(code)
        }
        'x' => hexadecimal(&mut chars),
        c if c.is_ascii() && !c.is_ascii_alphanumeric() => Some(c),
        _ => None,
    };
    let rest = chars.as_str();
    made.map(|made| (made, rest)).ok_or_else(|| fault("invalid escape sequence", consumed(text, rest)))
}

/// `41` or `{1F600}`.
fn hexadecimal(chars: &mut std::str::Chars<'_>) -> Option<char> {
    let first = chars.next()?;
    if first != '{' {
        let second = chars.next()?.to_digit(16)?;
        return char::from_u32(first.to_digit(16)? * 16 + second);
    }
    let mut code: Option<u32> = None;
    loop {
        let c = chars.next()?;
        if c == '}' {
            return char::from_u32(code?);
        }
        let next = code.unwrap_or(0) * 16 + c.to_digit(16)?;
        code = Some(next).filter(|code| *code <= u32::from(char::MAX));
        code?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_go_takes_is_taken_and_means_the_same() {
        for (pattern, text, wanted) in [
            (r"^\d+$", "12", true),
            (r"^\d+$", "\u{661}\u{662}", false),
            (r"^\w$", "\u{e9}", false),
            (r"^\W$", "\u{e9}", true),
            ("^[a[b]+$", "a[b", true),
            ("^[^[]$", "x", true),
            ("^[a&&b]+$", "&a", true),
            ("^[+--]$", ",", true),
            ("^[]a]+$", "]a", true),
            ("^[a-]+$", "a-", true),
            (r"^[\d\-_.]+$", "1-_.", true),
            (r"^[^\s]+$", "a b", false),
            ("^{a}$", "{a}", true),
            ("^a{,2}$", "a{,2}", true),
            ("^a{2,3}?$", "aaa", true),
            (r"^\Qa.b\E$", "a.b", true),
            (r"^\Qa.b\E$", "axb", false),
            (r"^\<a\>$", "<a>", true),
            (r"^\/[[:alpha:]]+\_$", "/ab_", true),
            (r"^(?i:a)(?P<n>b)(?<m>c)()$", "Abc", true),
            (r"^\x41\x{42}\101$", "ABA", true),
            (r"^\p{Lu}\PL\p{^L}$", "A11", true),
            (r"\bfoo\b", "a foo b", true),
            ("^(a|b|)*$", "ab", true),
        ] {
            let read = compile(pattern, LARGEST).unwrap_or_else(|why| panic!("{pattern}: {why}"));
            assert_eq!(read.is_match(text), wanted, "{pattern} {text}");
        }
    }

    #[test]
    fn what_go_refuses_is_refused_in_its_words() {
        for (pattern, wanted) in [
            ("*", "missing argument to repetition operator: `*`"),
            ("a|*", "missing argument to repetition operator: `*`"),
            ("(abc", "missing closing ): `(abc`"),
            ("abc)", "unexpected ): `abc)`"),
            ("x[a-z", "missing closing ]: `[a-z`"),
            ("[z-a]", "invalid character class range: `z-a`"),
            ("[[:none:]]", "invalid character class range: `[:none:]`"),
            (r"\pX", r"invalid character class range: `\pX`"),
            (r"abc\", "trailing backslash at end of expression: ``"),
            ("a**", "invalid nested repetition operator: `**`"),
            ("a*+", "invalid nested repetition operator: `*+`"),
            ("a{2}{3}", "invalid nested repetition operator: `{2}{3}`"),
            (r"\x", r"invalid escape sequence: `\x`"),
            (r"\u0041", r"invalid escape sequence: `\u`"),
            (r"(a)\1", r"invalid escape sequence: `\1`"),
            ("^(?!x).*$", "invalid or unsupported Perl syntax: `(?!`"),
            ("(?<=x)y", "invalid named capture: `(?<=x)y`"),
            ("a{1001}", "invalid repeat count: `{1001}`"),
            ("(a{100}){11}", "invalid repeat count: `{11}`"),
            ("a{2,1}", "invalid repeat count: `{2,1}`"),
        ] {
            assert_eq!(wrong(pattern), Some(format!("error parsing regexp: {wanted}")), "{pattern}");
        }
    }

    #[test]
    fn a_pattern_is_read_once() {
        assert!(is_match("^only-once$", "only-once") && !is_match("^only-once$", "twice"));
        assert!(KNOWN.lock().contains_key("^only-once$"));
    }
}
