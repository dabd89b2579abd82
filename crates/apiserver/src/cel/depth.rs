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

/// At least how deep an expression is; None if that is too deep.
pub fn of(source: &str) -> Option<usize> {
    let bytes = source.as_bytes();
    let mut levels = vec![Level::default()];
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let nested = levels.len() > 1;
        let Some(level) = levels.last_mut() else { break };
        let mut taken = 1;
        match rest {
            [b'/', b'/', ..] => taken = rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len()),
            [b'"' | b'\'', ..] => {
                let raw = at > 0 && matches!(bytes[at - 1], b'r' | b'R');
                taken = literal(rest, raw);
            }
            [b'(' | b'[' | b'{', ..] => {
                // Calls, indices and objects' fields are of what stands before them.
                level.members += 1;
                levels.push(Level::default());
                if levels.len() > DEEPEST {
                    return None;
                }
            }
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
    // Brackets that are left open are no expression, and are read as deep as they are.
    let mut depth = 0;
    while let Some(mut level) = levels.pop() {
        level.inner = level.inner.max(depth);
        level.cut();
        depth = level.deepest + level.conditions + 1;
    }
    (depth <= DEEPEST_OF_ALL).then_some(depth)
}

/// How long a text literal is that begins here.
fn literal(rest: &[u8], raw: bool) -> usize {
    let quote = rest[0];
    let three = rest.starts_with(&[quote; 3]);
    let mut at = if three { 3 } else { 1 };
    while at < rest.len() {
        match rest[at] {
            b'\\' if !raw => at += 2,
            b if b == quote && !three => return at + 1,
            b if b == quote && rest[at..].starts_with(&[quote; 3]) => return at + 3,
            b'\n' if !three => return at,
            _ => at += 1,
        }
    }
    rest.len()
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
