//! The grammar of selectors in queries.

use std::collections::BTreeSet;

use super::{FieldTerm, Operator, Requirement, SelectorError};
use crate::names;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    Operator(Operator, &'a str),
    Not,
    Comma,
    Open,
    Close,
    Word(&'a str),
    End,
}

impl<'a> Token<'a> {
    /// As errors show it.
    fn text(self) -> &'a str {
        match self {
            Token::Operator(_, text) | Token::Word(text) => text,
            Token::Not => "!",
            Token::Comma => ",",
            Token::Open => "(",
            Token::Close => ")",
            Token::End => "",
        }
    }

    /// `in` and `notin` are words where a key or a value stands.
    fn as_word(self) -> Option<&'a str> {
        match self {
            Token::Word(text) | Token::Operator(Operator::In | Operator::NotIn, text) => Some(text),
            _ => None,
        }
    }
}

/// Cuts one token off the front; the rest is what follows it.
fn next(s: &str) -> (Token<'_>, &str) {
    const SYMBOLS: [(&str, Token<'_>); 9] = [
        ("==", Token::Operator(Operator::DoubleEquals, "==")),
        ("!=", Token::Operator(Operator::NotEquals, "!=")),
        ("=", Token::Operator(Operator::Equals, "=")),
        (">", Token::Operator(Operator::GreaterThan, ">")),
        ("<", Token::Operator(Operator::LessThan, "<")),
        ("!", Token::Not),
        (",", Token::Comma),
        ("(", Token::Open),
        (")", Token::Close),
    ];
    let s = s.trim_start_matches([' ', '\t', '\r', '\n']);
    if s.is_empty() {
        return (Token::End, s);
    }
    if let Some((symbol, token)) = SYMBOLS.iter().find(|(symbol, _)| s.starts_with(symbol)) {
        return (*token, &s[symbol.len()..]);
    }
    let end = s.find([' ', '\t', '\r', '\n', '=', '!', '(', ')', ',', '>', '<']).unwrap_or(s.len());
    let (word, rest) = s.split_at(end);
    let token = match word {
        "in" => Token::Operator(Operator::In, word),
        "notin" => Token::Operator(Operator::NotIn, word),
        _ => Token::Word(word),
    };
    (token, rest)
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Token<'a> {
        next(self.rest).0
    }

    fn take(&mut self) -> Token<'a> {
        let (token, rest) = next(self.rest);
        self.rest = rest;
        token
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let mut token = self.take();
        let negated = token == Token::Not;
        if negated {
            token = self.take();
        }
        let Some(key) = token.as_word() else {
            return Err(found(token, "identifier"));
        };
        let wrong = names::is_qualified_name(key);
        if !wrong.is_empty() {
            let shown = serde_json::Value::from(key);
            return Err(SelectorError(format!("<nil>: Invalid value: {shown}: {}", wrong.join("; "))));
        }
        if negated {
            return Requirement::new(key, Operator::DoesNotExist, Vec::new());
        }
        if matches!(self.peek(), Token::End | Token::Comma) {
            return Requirement::new(key, Operator::Exists, Vec::new());
        }
        let operator = match self.take() {
            Token::Operator(operator, _) => operator,
            other => return Err(found(other, "in, notin, =, ==, !=, gt, lt")),
        };
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?.into_iter().map(str::to_owned).collect(),
            _ => vec![self.exact_value()?.to_owned()],
        };
        Requirement::new(key, operator, values)
    }

    fn exact_value(&mut self) -> Result<&'a str, SelectorError> {
        if matches!(self.peek(), Token::End | Token::Comma) {
            return Ok("");
        }
        let token = self.take();
        token.as_word().ok_or_else(|| found(token, "identifier"))
    }

    /// `(a,b,c)`: a place between commas that is left empty is the empty value.
    fn values(&mut self) -> Result<BTreeSet<&'a str>, SelectorError> {
        let open = self.take();
        if open != Token::Open {
            return Err(SelectorError(format!("found '{}' expected: '('", open.text())));
        }
        let mut values = BTreeSet::new();
        let first = self.peek();
        if first == Token::Close {
            self.take();
            return Ok(BTreeSet::from([""]));
        }
        if first.as_word().is_none() && first != Token::Comma {
            return Err(found(first, "',', ')' or identifier"));
        }
        loop {
            let token = self.take();
            if let Some(word) = token.as_word() {
                values.insert(word);
                match self.peek() {
                    Token::Comma => {}
                    Token::Close => break,
                    other => return Err(found(other, "',' or ')'")),
                }
            } else if token == Token::Comma {
                if values.is_empty() {
                    values.insert("");
                }
                match self.peek() {
                    Token::Close => {
                        values.insert("");
                        break;
                    }
                    Token::Comma => {
                        values.insert("");
                    }
                    _ => {}
                }
            } else {
                return Err(found(token, "',', or identifier"));
            }
        }
        self.take();
        Ok(values)
    }
}

fn found(token: Token<'_>, expected: &str) -> SelectorError {
    SelectorError(format!("found '{}', expected: {expected}", token.text()))
}

/// The requirements of a label selector, in the order of the text.
pub(super) fn labels(s: &str) -> Result<Vec<Requirement>, SelectorError> {
    let mut parser = Parser { rest: s };
    let mut out = Vec::new();
    loop {
        match parser.peek() {
            Token::End => return Ok(out),
            token if token.as_word().is_some() || token == Token::Not => {}
            token => return Err(found(token, "!, identifier, or 'end of string'")),
        }
        out.push(
            parser
                .requirement()
                .map_err(|e| SelectorError(format!("unable to parse requirement: {}", e.0)))?,
        );
        match parser.take() {
            Token::End => return Ok(out),
            Token::Comma => {
                let after = parser.peek();
                if after.as_word().is_none() && after != Token::Not {
                    return Err(found(after, "identifier after ','"));
                }
            }
            other => return Err(found(other, "',' or 'end of string'")),
        }
    }
}

/// Cuts at commas that no backslash precedes.
fn split_terms(s: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (i, c) in s.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                out.push(&s[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    out.push(&s[start..]);
    out
}

fn unescape(s: &str) -> Result<String, SelectorError> {
    let mut out = String::with_capacity(s.len());
    let mut chars = s.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                other => {
                    let sequence: String = other.into_iter().collect();
                    return Err(SelectorError(format!(
                        "invalid field selector: invalid escape sequence: \\{sequence}"
                    )));
                }
            },
            ',' | '=' => {
                return Err(SelectorError(format!(
                    "invalid field selector: unescaped character in value: {}",
                    u32::from(c)
                )));
            }
            _ => out.push(c),
        }
    }
    Ok(out)
}

/// A value as it stands in a field selector.
pub(super) fn escape(s: &str) -> String {
    s.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=")
}

/// The terms of a field selector, in the order of their texts.
pub(super) fn fields(s: &str) -> Result<Vec<FieldTerm>, SelectorError> {
    let mut parts = split_terms(s);
    parts.sort_unstable();
    let mut out = Vec::new();
    for part in parts.into_iter().filter(|p| !p.is_empty()) {
        let term = part.char_indices().find_map(|(i, _)| {
            let rest = &part[i..];
            let operator = ["!=", "==", "="].into_iter().find(|o| rest.starts_with(o))?;
            Some((&part[..i], operator, &rest[operator.len()..]))
        });
        let Some((field, operator, value)) = term else {
            return Err(SelectorError(format!("invalid selector: '{s}'; can't understand '{part}'")));
        };
        out.push(FieldTerm { field: field.to_owned(), value: unescape(value)?, equal: operator != "!=" });
    }
    Ok(out)
}
