//! JSON as text: the names of its fields without copies of them, and what is wrong with what is none, in the words of
//! Go's decoder: clients are shown them.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Visitor};

/// A field's name, borrowed where the text has it as it is.
pub struct Name<'a>(pub Cow<'a, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Name<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a field's name")
            }

            fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Borrowed(name)))
            }

            fn visit_str<E>(self, name: &str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Owned(name.to_owned())))
            }
        }
        d.deserialize_str(Reader)
    }
}

/// The fault of a text that should be one JSON value; None if it is one.
pub fn syntax_error(text: &[u8]) -> Option<String> {
    let mut scanner = Scanner { text, at: 0 };
    scanner.document().err().map(|fault| match fault {
        Fault::End => "unexpected end of JSON input".to_owned(),
        Fault::Unexpected(c, context) => format!("invalid character {} {context}", quoted(c)),
    })
}

/// Reads a body or a patch. The error is Go's text.
pub fn parse(text: &[u8]) -> Result<serde_json::Value, String> {
    serde_json::from_slice(text).map_err(|e| syntax_error(text).unwrap_or_else(|| e.to_string()))
}

enum Fault {
    End,
    Unexpected(u8, String),
}

struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
}

const VALUE: &str = "looking for beginning of value";

impl Scanner<'_> {
    fn peek(&self) -> Result<u8, Fault> {
        self.text.get(self.at).copied().ok_or(Fault::End)
    }

    fn space(&mut self) {
        while matches!(self.text.get(self.at), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    /// The next byte that is no space.
    fn next(&mut self) -> Result<u8, Fault> {
        self.space();
        self.peek()
    }

    fn fault<T>(&self, context: &str) -> Result<T, Fault> {
        Err(Fault::Unexpected(self.peek()?, context.to_owned()))
    }

    fn document(&mut self) -> Result<(), Fault> {
        // The brackets that are open; a text may nest deeper than a stack would bear.
        let mut open: Vec<u8> = Vec::new();
        loop {
            match self.next()? {
                b'{' => {
                    self.at += 1;
                    if self.next()? != b'}' {
                        open.push(b'{');
                        self.key()?;
                        continue;
                    }
                    self.at += 1;
                }
                b'[' => {
                    self.at += 1;
                    if self.next()? != b']' {
                        open.push(b'[');
                        continue;
                    }
                    self.at += 1;
                }
                b'"' => self.string()?,
                b'-' | b'0'..=b'9' => self.number()?,
                b't' => self.literal("true")?,
                b'f' => self.literal("false")?,
                b'n' => self.literal("null")?,
                _ => return self.fault(VALUE),
            }
            // A value ended: so may what holds it.
            loop {
                match open.last() {
                    None => {
                        self.space();
                        return match self.text.get(self.at) {
                            None => Ok(()),
                            Some(_) => self.fault("after top-level value"),
                        };
                    }
                    Some(b'{') => match self.next()? {
                        b',' => {
                            self.at += 1;
                            self.key()?;
                            break;
                        }
                        b'}' => self.at += 1,
                        _ => return self.fault("after object key:value pair"),
                    },
                    Some(_) => match self.next()? {
                        b',' => {
                            self.at += 1;
                            break;
                        }
                        b']' => self.at += 1,
                        _ => return self.fault("after array element"),
                    },
                }
                open.pop();
            }
        }
    }

    fn key(&mut self) -> Result<(), Fault> {
        if self.next()? != b'"' {
            return self.fault("looking for beginning of object key string");
        }
        self.string()?;
        if self.next()? != b':' {
            return self.fault("after object key");
        }
        self.at += 1;
        Ok(())
    }

    fn string(&mut self) -> Result<(), Fault> {
        self.at += 1;
        loop {
            match self.peek()? {
                b'"' => break,
                b'\\' => {
                    self.at += 1;
                    match self.peek()? {
                        b'b' | b'f' | b'n' | b'r' | b't' | b'\\' | b'/' | b'"' => {}
                        b'u' => {
                            for _ in 0..4 {
                                self.at += 1;
                                if !self.peek()?.is_ascii_hexdigit() {
                                    return self.fault("in \\u hexadecimal character escape");
                                }
                            }
                        }
                        _ => return self.fault("in string escape code"),
                    }
                }
                0..=0x1f => return self.fault("in string literal"),
                _ => {}
            }
            self.at += 1;
        }
        self.at += 1;
        Ok(())
    }

    fn digits(&mut self) {
        while self.text.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
    }

    fn number(&mut self) -> Result<(), Fault> {
        if self.peek()? == b'-' {
            self.at += 1;
        }
        match self.peek()? {
            b'0' => self.at += 1,
            b'1'..=b'9' => self.digits(),
            _ => return self.fault("in numeric literal"),
        }
        if self.text.get(self.at) == Some(&b'.') {
            self.at += 1;
            if !self.peek()?.is_ascii_digit() {
                return self.fault("after decimal point in numeric literal");
            }
            self.digits();
        }
        if matches!(self.text.get(self.at), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek()?, b'+' | b'-') {
                self.at += 1;
            }
            if !self.peek()?.is_ascii_digit() {
                return self.fault("in exponent of numeric literal");
            }
            self.digits();
        }
        Ok(())
    }

    fn literal(&mut self, word: &str) -> Result<(), Fault> {
        for expected in word.bytes() {
            if self.peek()? != expected {
                return self.fault(&format!("in literal {word} (expecting '{}')", char::from(expected)));
            }
            self.at += 1;
        }
        Ok(())
    }
}

/// A byte as Go quotes it.
fn quoted(c: u8) -> String {
    match c {
        b'\'' => "'\\''".to_owned(),
        b'\\' => "'\\\\'".to_owned(),
        b'\n' => "'\\n'".to_owned(),
        b'\r' => "'\\r'".to_owned(),
        b'\t' => "'\\t'".to_owned(),
        0x07 => "'\\a'".to_owned(),
        0x08 => "'\\b'".to_owned(),
        0x0c => "'\\f'".to_owned(),
        0x0b => "'\\v'".to_owned(),
        0..=0x1f | 0x7f => format!("'\\x{c:02x}'"),
        0x80..=0xa0 | 0xad => format!("'\\u{:04x}'", u32::from(c)),
        _ => format!("'{}'", char::from(c)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn faults_read_as_gos() {
        let cases = [
            ("", "unexpected end of JSON input"),
            ("{", "unexpected end of JSON input"),
            ("not json", "invalid character 'o' in literal null (expecting 'u')"),
            ("x", "invalid character 'x' looking for beginning of value"),
            ("{a", "invalid character 'a' looking for beginning of object key string"),
            ("{\"a\" 1", "invalid character '1' after object key"),
            ("{\"a\":1 2", "invalid character '2' after object key:value pair"),
            ("{\"a\":1,}", "invalid character '}' looking for beginning of object key string"),
            ("[1 2]", "invalid character '2' after array element"),
            ("[1,]", "invalid character ']' looking for beginning of value"),
            ("1 2", "invalid character '2' after top-level value"),
            ("\"\n\"", "invalid character '\\n' in string literal"),
            ("\"\\x\"", "invalid character 'x' in string escape code"),
            ("\"\\u00g0\"", "invalid character 'g' in \\u hexadecimal character escape"),
            ("-a", "invalid character 'a' in numeric literal"),
            ("1.a", "invalid character 'a' after decimal point in numeric literal"),
            ("1ea", "invalid character 'a' in exponent of numeric literal"),
        ];
        for (text, fault) in cases {
            assert_eq!(syntax_error(text.as_bytes()).as_deref(), Some(fault), "{text}");
        }
        assert_eq!(syntax_error(b" {\"a\": [1, {}, [], -0.5e+3, true, null, \"\\u00e9\"]} "), None);
    }

    proptest! {
        #[test]
        fn it_finds_a_fault_where_the_parser_does(s in "[\\[\\]{}:,\"a1 .etrun-]{0,12}") {
            let parsed: Result<serde_json::Value, _> = serde_json::from_str(&s);
            prop_assert_eq!(syntax_error(s.as_bytes()).is_none(), parsed.is_ok());
        }
    }
}
