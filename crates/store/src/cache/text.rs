//! An object's JSON without its resourceVersion, which is put in when it is sent: the bytes that are stored are kept once.

use crate::types::Revision;
use bytes::{BufMut, Bytes, BytesMut};

const NAME: &[u8] = b"\"resourceVersion\":\"";

/// An object as it is stored, and the place in it where its resourceVersion is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    json: Bytes,
    /// Just behind the brace that opens the metadata; `None` for what has none, and is sent as it is.
    at: Option<u32>,
    /// How much of its beginning says what kind it is.
    opening: u32,
}

impl Text {
    /// JSON whose metadata begins, behind its brace, at `at`.
    pub fn new(json: Bytes, at: Option<usize>) -> Self {
        let at = at.filter(|at| *at <= json.len()).and_then(|at| u32::try_from(at).ok());
        Text { json, at, opening: 0 }
    }

    /// The same, of which `length` bytes at the beginning, before the metadata, say what kind it is, and nothing else.
    pub fn opened_by(self, length: usize) -> Self {
        let opening = self.place().filter(|at| length <= *at).and_then(|_| u32::try_from(length).ok());
        Text { opening: opening.unwrap_or(0), ..self }
    }

    /// How many bytes at its beginning say what kind it is, and nothing else: 0 where that is not known.
    pub fn opening(&self) -> usize {
        self.opening as usize
    }

    /// The JSON as it is stored.
    pub fn stored(&self) -> &Bytes {
        &self.json
    }

    /// Where the resourceVersion is put.
    fn place(&self) -> Option<usize> {
        self.at.map(|at| at as usize)
    }

    /// Its length in bytes as it is sent.
    pub fn len(&self, revision: Revision) -> usize {
        let Some((_, rest)) = self.halves() else { return self.json.len() };
        let digits = revision.0.checked_ilog10().map_or(1, |tens| tens as usize + 1);
        self.json.len() + NAME.len() + digits + 1 + usize::from(is_followed(rest))
    }

    /// Appends it as it is sent, `skipped` bytes at its beginning left out: no more than what comes before the metadata.
    pub fn put(&self, revision: Revision, skipped: usize, out: &mut BytesMut) {
        let Some((head, rest)) = self.halves() else {
            return out.put_slice(self.json.get(skipped..).unwrap_or_default());
        };
        out.put_slice(head.get(skipped..).unwrap_or_default());
        out.put_slice(NAME);
        let mut digits = [0; 20];
        out.put_slice(decimal(revision.0, &mut digits));
        out.put_u8(b'"');
        if is_followed(rest) {
            out.put_u8(b',');
        }
        out.put_slice(rest);
    }

    /// It as it is sent.
    pub fn sent(&self, revision: Revision) -> Bytes {
        if self.at.is_none() {
            return self.json.clone();
        }
        let mut out = BytesMut::with_capacity(self.len(revision));
        self.put(revision, 0, &mut out);
        out.freeze()
    }

    fn halves(&self) -> Option<(&[u8], &[u8])> {
        self.json.split_at_checked(self.place()?)
    }
}

/// Whether the metadata says more than the resourceVersion.
fn is_followed(rest: &[u8]) -> bool {
    rest.first() != Some(&b'}')
}

fn decimal(mut n: u64, digits: &mut [u8; 20]) -> &[u8] {
    let mut from = digits.len();
    loop {
        from -= 1;
        digits[from] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            return &digits[from..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_revision_is_put_where_the_metadata_begins() {
        let cases = [
            ("{\"metadata\":{}}", Some(13), 0, "{\"metadata\":{\"resourceVersion\":\"0\"}}"),
            (
                "{\"metadata\":{\"name\":\"a\"}}",
                Some(13),
                10,
                "{\"metadata\":{\"resourceVersion\":\"10\",\"name\":\"a\"}}",
            ),
            ("{}", None, 7, "{}"),
            ("{}", Some(3), 7, "{}"),
        ];
        for (json, at, revision, sent) in cases {
            let (text, revision) = (Text::new(Bytes::from_static(json.as_bytes()), at), Revision(revision));
            assert_eq!(text.sent(revision), sent);
            assert_eq!(text.len(revision), sent.len(), "{sent}");
            let mut rest = BytesMut::new();
            text.put(revision, 1, &mut rest);
            assert_eq!(rest, sent[1..]);
        }
    }

    #[test]
    fn every_revision_has_the_length_that_is_told() {
        let text = Text::new(Bytes::from_static(b"x"), Some(0));
        for revision in [0, 1, 9, 10, 99, 100, 12345, u64::MAX - 1, u64::MAX].map(Revision) {
            assert_eq!(text.sent(revision), format!("\"resourceVersion\":\"{revision}\",x"));
            assert_eq!(text.len(revision), text.sent(revision).len());
        }
    }
}
