//! YAML bodies as JSON, read by YAML 1.1 as upstream reads them: a bare `y` or `off` is a boolean, `0644` is octal.
//! Aliases are followed, and no value is kept but JSON's.

mod bounds;
mod text;

use std::cell::{Cell, RefCell};
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use bounds::Bounds;
pub use text::to_text;

/// One YAML document.
pub struct Document {
    pub value: Value,
    /// The error of its keys that come twice, as upstream words it.
    pub repeated: Option<String>,
}

/// Reads one YAML document, of which JSON is a part. The error is as upstream words it.
///
/// # Errors
/// The text is no YAML, or has what JSON has not.
pub fn to_json(text: &[u8]) -> Result<Value, String> {
    parse(text).map(|(value, _)| value)
}

/// The same, with what is odd in it.
///
/// # Errors
/// As those of [`to_json`].
pub fn read(text: &[u8]) -> Result<Document, String> {
    let (value, repeated) = parse(text)?;
    Ok(Document { value, repeated: told(text, repeated) })
}

fn told(text: &[u8], repeated: Vec<Repeated>) -> Option<String> {
    let lines = lines(text, &repeated);
    let told: Vec<String> = std::iter::zip(repeated, lines)
        .map(|(key, line)| format!("\n  line {line}: key {:?} already set in map", key.name))
        .collect();
    (!told.is_empty()).then(|| wrong(&format!("unmarshal errors:{}", told.concat())))
}

/// A key that its map had already.
struct Repeated {
    name: String,
    /// Where it stands in the text, in bytes, where that is known.
    at: Option<usize>,
}

/// The line of each key, from one; nought where it is not known. The text is gone through once, however many they are.
fn lines(text: &[u8], keys: &[Repeated]) -> Vec<usize> {
    let mut lines = vec![0; keys.len()];
    let mut known: Vec<(usize, usize)> =
        keys.iter().enumerate().filter_map(|(i, key)| Some((key.at?, i))).collect();
    known.sort_unstable();
    let (mut line, mut from) = (1, 0);
    for (at, i) in known {
        line += memchr::memchr_iter(b'\n', text.get(from..at).unwrap_or_default()).count();
        from = at;
        lines[i] = line;
    }
    lines
}

fn parse(text: &[u8]) -> Result<(Value, Vec<Repeated>), String> {
    if bounds::is_too_deep(text) {
        return Err(wrong("exceeded max depth of 10000"));
    }
    let deserializer = serde_yaml_ng::Deserializer::from_slice(text);
    let repeated = RefCell::default();
    let bounds = Bounds::of(text);
    let value = Scalars { text, repeated: &repeated, bounds: &bounds }.deserialize(deserializer).map_err(
        |error| {
            if bounds.is_exceeded() { wrong(ALIASING) } else { wrong(&worded(&error)) }
        },
    )?;
    Ok((value, repeated.into_inner()))
}

const ALIASING: &str = "document contains excessive aliasing";

fn wrong(what: &str) -> String {
    format!("error converting YAML to JSON: yaml: {what}")
}

/// What is wrong and where. Upstream counts the lines of grammar from nought and those of words from one.
fn worded(error: &serde_yaml_ng::Error) -> String {
    let text = error.to_string();
    if text.starts_with("repetition limit exceeded") {
        return ALIASING.to_owned();
    }
    let Some(location) = error.location() else { return text };
    let problem = text.split(" at line ").next().unwrap_or(&text);
    let line = if text.contains("while scanning") { location.line() } else { location.line() - 1 };
    if line == 0 { problem.to_owned() } else { format!("line {line}: {problem}") }
}

/// Builds a value, telling bare scalars from quoted ones by where they stand in the text.
#[derive(Clone, Copy)]
struct Scalars<'de, 'r> {
    text: &'de [u8],
    repeated: &'r RefCell<Vec<Repeated>>,
    bounds: &'r Bounds,
}

impl Scalars<'_, '_> {
    /// Where in the text a piece of it begins, in bytes.
    fn offset(&self, scalar: &str) -> usize {
        (scalar.as_ptr() as usize).wrapping_sub(self.text.as_ptr() as usize)
    }

    /// Counts a value, before it is read.
    fn count<E: serde::de::Error>(&self) -> Result<(), E> {
        if self.bounds.count() { Ok(()) } else { Err(E::custom(ALIASING)) }
    }

    fn is_quoted(&self, scalar: &str) -> bool {
        let at = self.offset(scalar);
        at > 0 && self.text.get(at - 1).is_some_and(|before| matches!(before, b'"' | b'\''))
    }
}

/// What YAML 1.1 takes a bare word for, where YAML 1.2 takes it for itself.
fn bare(word: &str) -> Option<Value> {
    match word {
        "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => return Some(true.into()),
        "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => return Some(false.into()),
        _ => {}
    }
    let octal = word.strip_prefix('0').filter(|digits| !digits.is_empty())?;
    i64::from_str_radix(octal, 8).ok().filter(|_| octal.bytes().all(|b| b.is_ascii_digit())).map(Value::from)
}

impl<'de> DeserializeSeed<'de> for Scalars<'de, '_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.count()?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Scalars<'de, '_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value that JSON has")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom(format!("{value} is no JSON number")))
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Value, E> {
        if !self.is_quoted(value)
            && let Some(known) = bare(value)
        {
            return Ok(known);
        }
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(self)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        let at = Cell::new(None);
        while let Some(key) = access.next_key_seed(Key { scalars: self, at: &at })? {
            let key = match key {
                Value::String(key) => key,
                other => other.to_string(),
            };
            if fields.contains_key(&key) {
                self.repeated.borrow_mut().push(Repeated { name: key.clone(), at: at.get() });
            }
            fields.insert(key, access.next_value_seed(self)?);
        }
        Ok(Value::Object(fields))
    }
}

/// Reads a key, and where it stands.
struct Key<'de, 'r> {
    scalars: Scalars<'de, 'r>,
    at: &'r Cell<Option<usize>>,
}

impl<'de> DeserializeSeed<'de> for Key<'de, '_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.at.set(None);
        self.scalars.count()?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Key<'de, '_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        self.scalars.visit_f64(value)
    }

    fn visit_borrowed_str<E: serde::de::Error>(self, value: &'de str) -> Result<Value, E> {
        self.at.set(Some(self.scalars.offset(value)));
        self.scalars.visit_borrowed_str(value)
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bare_words_are_read_by_the_older_yaml() {
        let text = "a: y\nb: 'y'\nc: \"off\"\nd: off\ne: [n, yes]\nmode: 0644\nbig: '0644'\non: 1\ns: |\n  y\nz: ~\nf: 1.5\n";
        let expected = json!({
            "a": true, "b": "y", "c": "off", "d": false, "e": [false, true], "mode": 420, "big": "0644", "true": 1,
            "s": "y\n", "z": null, "f": 1.5,
        });
        assert_eq!(to_json(text.as_bytes()).expect("YAML"), expected);
    }

    #[test]
    fn a_key_that_comes_twice_is_told_with_its_line() {
        let text = b"\na: 1\nspec:\n  foo: one\n  'foo': two\n  bar: {x: 1, x: 2}\n";
        let document = read(text).expect("YAML");
        let told = document.repeated.expect("two come twice");
        assert_eq!(
            told,
            "error converting YAML to JSON: yaml: unmarshal errors:\n  line 5: key \"foo\" already set in map\n  line \
             6: key \"x\" already set in map"
        );
        assert_eq!(document.value["spec"]["foo"], "two");
        assert_eq!(read(b"a: 1\nb: {a: 1}\n").expect("YAML").repeated, None);
    }

    #[test]
    fn aliases_are_followed() {
        let value = to_json(b"a: &x {k: no}\nb: *x\n").expect("YAML");
        assert_eq!(value, json!({"a": {"k": false}, "b": {"k": false}}));
    }

    #[test]
    fn a_few_lines_do_not_become_millions_of_values() {
        let lines = std::iter::zip('b'..='g', 'a'..='f').map(|(name, of)| {
            let all = vec![format!("*{of}"); 9].join(",");
            format!("{name}: &{name} [{all}]\n")
        });
        let text = format!("a: &a [x,x,x,x,x,x,x,x,x]\n{}", lines.collect::<String>());
        let told = "error converting YAML to JSON: yaml: document contains excessive aliasing";
        assert_eq!(to_json(text.as_bytes()), Err(told.to_owned()));
        let long = format!("{text}h: {}", "x".repeat(20_000));
        assert_eq!(to_json(long.as_bytes()), Err(told.to_owned()));
        let deep = "[".repeat(200_000);
        let told = "error converting YAML to JSON: yaml: exceeded max depth of 10000";
        assert_eq!(to_json(deep.as_bytes()), Err(told.to_owned()));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        let error = to_json(b"{a: [").expect_err("no YAML");
        assert_eq!(error, "error converting YAML to JSON: yaml: line 1: did not find expected node content");
        assert!(to_json(b"a: .nan\n").is_err());
    }
}
