//! JSON as ownership looks at it: a [`Value`], or a [`Tree`], which borrows its texts from what it was read from and so
//! costs a fraction. The way of every write makes two of them.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::json::Name;

/// A JSON value, whatever it is kept in.
pub trait View: Sized {
    fn is_null(&self) -> bool;
    fn is_object(&self) -> bool;
    /// The items of a list; nothing for what is none.
    fn items(&self) -> &[Self];
    /// The fields of an object, in their order; nothing for what is none.
    fn fields(&self) -> impl Iterator<Item = (&str, &Self)>;
    /// A field of an object.
    fn field(&self, name: &str) -> Option<&Self>;
    /// Equality, in which numbers are compared as numbers.
    fn equals(&self, other: &Self) -> bool;
    fn to_value(&self) -> Value;

    /// Whether it is a list or an object without anything in it, or nothing at all.
    fn is_hollow(&self) -> bool;
}

fn same_number(a: &Number, b: &Number) -> bool {
    a == b || a.as_f64() == b.as_f64()
}

impl View for Value {
    fn is_null(&self) -> bool {
        Value::is_null(self)
    }

    fn is_object(&self) -> bool {
        Value::is_object(self)
    }

    fn items(&self) -> &[Self] {
        self.as_array().map_or(&[], Vec::as_slice)
    }

    fn fields(&self) -> impl Iterator<Item = (&str, &Self)> {
        self.as_object().into_iter().flatten().map(|(name, value)| (name.as_str(), value))
    }

    fn field(&self, name: &str) -> Option<&Self> {
        self.get(name)
    }

    fn equals(&self, other: &Self) -> bool {
        match (self, other) {
            (Value::Number(x), Value::Number(y)) => same_number(x, y),
            (Value::Array(x), Value::Array(y)) => {
                x.len() == y.len() && x.iter().zip(y).all(|(a, b)| a.equals(b))
            }
            (Value::Object(x), Value::Object(y)) => {
                x.len() == y.len() && x.iter().all(|(k, a)| y.get(k).is_some_and(|b| a.equals(b)))
            }
            (a, b) => a == b,
        }
    }

    fn to_value(&self) -> Value {
        self.clone()
    }

    fn is_hollow(&self) -> bool {
        match self {
            Value::Null => true,
            Value::Object(fields) => fields.is_empty(),
            Value::Array(items) => items.is_empty(),
            _ => false,
        }
    }
}

/// A JSON value with texts that are borrowed where they can be. Fields are in the order of the text.
#[derive(Clone, Debug, PartialEq)]
pub enum Tree<'a> {
    Null,
    Bool(bool),
    Number(Number),
    Text(Cow<'a, str>),
    List(Vec<Tree<'a>>),
    Object(Vec<(Cow<'a, str>, Tree<'a>)>),
}

impl<'a> Tree<'a> {
    /// Reads a JSON text.
    ///
    /// # Errors
    /// It is none.
    pub fn read(json: &'a [u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(json)
    }

    /// Takes a field out of an object.
    pub fn take(&mut self, name: &str) -> Option<Tree<'a>> {
        let Tree::Object(fields) = self else { return None };
        let at = fields.iter().position(|(field, _)| field == name)?;
        Some(fields.remove(at).1)
    }

    pub fn field_mut(&mut self, name: &str) -> Option<&mut Tree<'a>> {
        let Tree::Object(fields) = self else { return None };
        fields.iter_mut().find(|(field, _)| field == name).map(|(_, value)| value)
    }
}

impl From<Value> for Tree<'_> {
    fn from(value: Value) -> Self {
        match value {
            Value::Null => Tree::Null,
            Value::Bool(b) => Tree::Bool(b),
            Value::Number(n) => Tree::Number(n),
            Value::String(text) => Tree::Text(text.into()),
            Value::Array(items) => Tree::List(items.into_iter().map(Tree::from).collect()),
            Value::Object(fields) => {
                Tree::Object(fields.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
            }
        }
    }
}

impl View for Tree<'_> {
    fn is_null(&self) -> bool {
        matches!(self, Tree::Null)
    }

    fn is_object(&self) -> bool {
        matches!(self, Tree::Object(_))
    }

    fn items(&self) -> &[Self] {
        match self {
            Tree::List(items) => items,
            _ => &[],
        }
    }

    fn fields(&self) -> impl Iterator<Item = (&str, &Self)> {
        let fields = match self {
            Tree::Object(fields) => fields.as_slice(),
            _ => &[],
        };
        fields.iter().map(|(name, value)| (name.as_ref(), value))
    }

    fn field(&self, name: &str) -> Option<&Self> {
        match self {
            Tree::Object(fields) => fields.iter().find(|(field, _)| field == name).map(|(_, value)| value),
            _ => None,
        }
    }

    fn equals(&self, other: &Self) -> bool {
        match (self, other) {
            (Tree::Number(x), Tree::Number(y)) => same_number(x, y),
            (Tree::List(x), Tree::List(y)) => x.len() == y.len() && x.iter().zip(y).all(|(a, b)| a.equals(b)),
            (Tree::Object(x), Tree::Object(y)) => {
                x.len() == y.len() && x.iter().all(|(k, a)| other.field(k).is_some_and(|b| a.equals(b)))
            }
            (a, b) => a == b,
        }
    }

    fn to_value(&self) -> Value {
        match self {
            Tree::Null => Value::Null,
            Tree::Bool(b) => Value::Bool(*b),
            Tree::Number(n) => Value::Number(n.clone()),
            Tree::Text(text) => Value::String(text.clone().into_owned()),
            Tree::List(items) => items.iter().map(View::to_value).collect(),
            Tree::Object(fields) => {
                let fields = fields.iter().map(|(name, value)| (name.clone().into_owned(), value.to_value()));
                Value::Object(fields.collect::<Map<_, _>>())
            }
        }
    }

    fn is_hollow(&self) -> bool {
        match self {
            Tree::Null => true,
            Tree::Object(fields) => fields.is_empty(),
            Tree::List(items) => items.is_empty(),
            _ => false,
        }
    }
}

impl<'de> Deserialize<'de> for Tree<'de> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Tree<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Tree<'de>, E> {
        Ok(Tree::Null)
    }

    fn visit_bool<E>(self, b: bool) -> Result<Tree<'de>, E> {
        Ok(Tree::Bool(b))
    }

    fn visit_i64<E>(self, n: i64) -> Result<Tree<'de>, E> {
        Ok(Tree::Number(n.into()))
    }

    fn visit_u64<E>(self, n: u64) -> Result<Tree<'de>, E> {
        Ok(Tree::Number(n.into()))
    }

    fn visit_f64<E>(self, n: f64) -> Result<Tree<'de>, E> {
        Ok(Number::from_f64(n).map_or(Tree::Null, Tree::Number))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Tree<'de>, E> {
        Ok(Tree::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Tree<'de>, E> {
        Ok(Tree::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tree<'de>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Tree::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree<'de>, A::Error> {
        let mut fields = Vec::new();
        while let Some((Name(name), value)) = map.next_entry()? {
            fields.push((name, value));
        }
        Ok(Tree::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_tree_is_the_value_that_it_was_read_from(value in crate::patch::tests::any_value()) {
            let text = value.to_string();
            let tree = Tree::read(text.as_bytes()).expect("JSON");
            prop_assert_eq!(tree.to_value(), value.clone());
            prop_assert!(tree.equals(&Tree::from(value)));
        }
    }
}
