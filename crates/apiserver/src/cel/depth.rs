//! How deep an expression is nested, before anything that recurses looks at it: a text of a few hundred bytes must not use
//! up a thread's stack. Upstream's parser stops at the same depth, rule by rule.

/// How deep brackets, and how long chains of one sort may be.
pub const DEEPEST: usize = 250;
/// How deep an expression may be in all.
const DEEPEST_OF_ALL: usize = 500;

/// What is between two brackets, as far as it has been read.
#[derive(Clone, Copy, Default)]
struct Level {
    /// Operators since the operands began to be one another's, and selections, calls and indices since the last of them.
    operators: usize,
    members: usize,
    longest_members: usize,
    /// Each nests what is behind it.
    conditions: usize,
    /// The deepest of what stands in brackets since the operands began, and the deepest part of the level so far.
    inner: usize,
    deepest: usize,
    /// What ends it.
    close: u8,
}

impl Level {
    /// The operands that come now are not nested with those before.
    fn cut(&mut self) {
        self.longest_members = self.longest_members.max(self.members);
        self.deepest = self.deepest.max(self.operators + self.longest_members + self.inner);
        (self.operators, self.members, self.longest_members, self.inner) = (0, 0, 0, 0);
    }

    fn operator(&mut self) {
        self.operators += 1;
        self.longest_members = self.longest_members.max(self.members);
        self.members = 0;
    }

    fn is_too_long(&self) -> bool {
        self.operators > DEEPEST || self.members > DEEPEST || self.conditions > DEEPEST
    }
}

/// At most how deep an expression is; None if that is too deep. Of a text that is none, a parser that goes on behind its
/// faults may see brackets that do not match, and those in literals that do not end: they count all of them.
pub fn of(source: &str) -> Option<usize> {
    let bytes = source.as_bytes();
    let mut levels = vec![Level::default()];
    let (mut at, mut sound) = (0, true);
    while at < bytes.len() {
        let rest = &bytes[at..];
        let nested = levels.len() > 1;
        let Some(level) = levels.last_mut() else { break };
        let mut taken = 1;
        match rest {
            [b'/', b'/', ..] => taken = rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len()),
            [b'"' | b'\'', ..] => {
                let raw = at > 0 && matches!(bytes[at - 1], b'r' | b'R');
                let length = literal(rest, raw);
                sound &= length.is_some();
                taken = length.unwrap_or(1);
            }
            [b'(' | b'[' | b'{', ..] => {
                // Calls, indices and objects' fields are of what stands before them.
                level.members += 1;
                let close = if rest[0] == b'(' { b')' } else { rest[0] + 2 };
                levels.push(Level { close, ..Level::default() });
                if levels.len() > DEEPEST {
                    return None;
                }
            }
            [close @ (b')' | b']' | b'}'), ..] if *close != level.close => sound = false,
            [b')' | b']' | b'}', ..] if nested => {
                let mut ended = levels.pop().unwrap_or_default();
                ended.cut();
                let depth = ended.deepest + ended.conditions + 1;
                if let Some(level) = levels.last_mut() {
                    level.inner = level.inner.max(depth);
                }
            }
            [b'&', b'&', ..] | [b'|', b'|', ..] => {
                level.cut();
                taken = 2;
            }
            [b',' | b':', ..] => level.cut(),
            // An optional selection or index is one of its sort.
            [b'.', b'?', ..] => {
                level.members += 1;
                taken = 2;
            }
            [b'.', ..] => level.members += 1,
            [b'?', ..] => {
                level.cut();
                level.conditions += 1;
            }
            [b'=' | b'!' | b'<' | b'>', b'=', ..] => {
                level.operator();
                taken = 2;
            }
            [b'<' | b'>' | b'+' | b'-' | b'*' | b'/' | b'%', ..] => level.operator(),
            [first, ..] if first.is_ascii_alphanumeric() || *first == b'_' => {
                taken =
                    rest.iter().position(|b| !b.is_ascii_alphanumeric() && *b != b'_').unwrap_or(rest.len());
                if &rest[..taken] == b"in" {
                    level.operator();
                }
            }
            _ => {}
        }
        if levels.last().is_some_and(Level::is_too_long) {
            return None;
        }
        at += taken;
    }
    if !sound || levels.len() > 1 {
        let open = bytes.iter().filter(|b| matches!(b, b'(' | b'[' | b'{')).count();
        let chains = bytes.iter().filter(|b| b".?+-*/%<>=!".contains(b)).count();
        let depth = 2 * open + chains + 1;
        return (open <= DEEPEST && depth <= DEEPEST_OF_ALL).then_some(depth);
    }
    let mut whole = levels.pop().unwrap_or_default();
    whole.cut();
    let depth = whole.deepest + whole.conditions + 1;
    (depth <= DEEPEST_OF_ALL).then_some(depth)
}

/// How long a text literal is that begins here; None if it is none.
fn literal(rest: &[u8], raw: bool) -> Option<usize> {
    let quote = rest[0];
    let three = rest.starts_with(&[quote; 3]);
    let mut at = if three { 3 } else { 1 };
    while at < rest.len() {
        match rest[at] {
            b'\\' if !raw => {
                // What is escaped by a number goes on behind it, as text does.
                if !rest.get(at + 1).is_some_and(|b| b"abfnrtv\\?\"'`".contains(b))
                    && !is_number(&rest[at + 1..])
                {
                    return None;
                }
                at += 2;
            }
            b if b == quote && !three => return Some(at + 1),
            b if b == quote && rest[at..].starts_with(&[quote; 3]) => return Some(at + 3),
            b'\n' | b'\r' if !three => return None,
            _ => at += 1,
        }
    }
    None
}

/// Whether an escape is one of a character by its number.
fn is_number(escape: &[u8]) -> bool {
    let (digits, is_digit): (usize, fn(&u8) -> bool) = match escape.first() {
        Some(b'x' | b'X') => (2, u8::is_ascii_hexdigit),
        Some(b'u') => (4, u8::is_ascii_hexdigit),
        Some(b'U') => (8, u8::is_ascii_hexdigit),
        Some(b'0'..=b'3') => (2, |b| matches!(b, b'0'..=b'7')),
        _ => return false,
    };
    escape.get(1..=digits).is_some_and(|digits| digits.iter().all(is_digit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_is_told_of_what_nests() {
        for (source, depth) in [
            ("1", Some(1)),
            ("a.b.c", Some(3)),
            ("a + b + c", Some(3)),
            ("a && b && c && d", Some(1)),
            ("f(g(1), 2)", Some(5)),
            ("'((((((' + \"[[[[\"", Some(2)),
            ("r'\\' + '('", Some(2)),
            ("'''(''(''' + 1 // ((((", Some(2)),
            ("a ? b : c ? d : e", Some(3)),
            ("a in b", Some(2)),
            ("'\\x28\\n\\u0028\\'' + '[[['", Some(2)),
        ] {
            assert_eq!(of(source), depth, "{source}");
        }
        let nested = |open: &str, inner: &str, close: &str, n: usize| {
            format!("{}{inner}{}", open.repeat(n), close.repeat(n))
        };
        assert!(of(&nested("(", "1", ")", 200)).is_some());
        for deep in [
            nested("(", "1", ")", 300),
            nested("[", "", "]", 100_000),
            nested("(", "1", "", 300),
            // A parser that goes on behind a fault is still within the brackets before it.
            nested("[(]", "1", "", 300),
            format!("'{}", "[".repeat(300)),
            format!("'\\q{}'", "[".repeat(300)),
            nested("f(a+b+", "1", ")", 240),
            vec!["1"; 300].join("+"),
            format!("a{}", ".b".repeat(300)),
            "true ? 1 : ".repeat(300),
        ] {
            assert_eq!(of(&deep), None, "{}", &deep[..40]);
        }
        assert!(of(&vec!["a.b.c == 1"; 5000].join(" && ")).is_some(), "these are not nested");
    }
}
