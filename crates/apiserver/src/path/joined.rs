//! A list as a body that is made while it is sent: the objects are copied once, a piece at a time, so that a list of many
//! megabytes takes the room of one piece and its bytes are still at hand when they are encrypted.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body::{Frame, SizeHint};

use crate::http::BoxError;

/// Bytes of a piece, about.
const PIECE: usize = 64 * 1024;
const END: &[u8] = b"]}";

/// The body of a list.
pub struct Joined {
    /// What comes before the objects.
    head: Bytes,
    items: std::vec::IntoIter<Bytes>,
    /// What is left out at the beginning of each object that begins with it: in a list of a built-in kind, what kind it is.
    type_meta: Option<String>,
    first: bool,
    done: bool,
    left: usize,
}

impl Joined {
    pub fn new(head: Bytes, items: Vec<Bytes>, type_meta: Option<String>) -> Self {
        let commas = items.len().saturating_sub(1);
        let mut body =
            Joined { head, items: Vec::new().into_iter(), type_meta, first: true, done: false, left: 0 };
        let objects: usize =
            items.iter().map(|item| body.parts(item).map(<[u8]>::len).iter().sum::<usize>()).sum();
        body.left = body.head.len() + objects + commas + END.len();
        body.items = items.into_iter();
        body
    }

    /// An object as it stands in the list.
    fn parts<'a>(&self, item: &'a [u8]) -> [&'a [u8]; 2] {
        match self.type_meta.as_ref().and_then(|known| item.strip_prefix(known.as_bytes())) {
            Some(rest) => [b"{", rest],
            None => [b"", item],
        }
    }

    /// The next piece; none at the end.
    fn next(&mut self) -> Option<Bytes> {
        if self.done {
            return None;
        }
        let mut piece = BytesMut::with_capacity(self.left.min(PIECE + 8 * 1024));
        piece.put_slice(&std::mem::take(&mut self.head));
        while piece.len() < PIECE {
            let Some(item) = self.items.next() else {
                piece.put_slice(END);
                self.done = true;
                break;
            };
            if !std::mem::take(&mut self.first) {
                piece.put_u8(b',');
            }
            for part in self.parts(&item) {
                piece.put_slice(part);
            }
        }
        self.left = self.left.saturating_sub(piece.len());
        Some(piece.freeze())
    }

    /// All of it at once.
    pub fn whole(mut self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.left);
        while let Some(piece) = self.next() {
            out.put_slice(&piece);
        }
        out.freeze()
    }
}

impl http_body::Body for Joined {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Poll::Ready(self.get_mut().next().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.done
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body::Body as _;

    fn list(items: &[&str], type_meta: Option<&str>) -> Joined {
        let items = items.iter().map(|item| Bytes::copy_from_slice(item.as_bytes())).collect();
        Joined::new(Bytes::from_static(b"{\"items\":["), items, type_meta.map(str::to_owned))
    }

    #[test]
    fn objects_stand_in_a_list_without_their_kind() {
        let known = Some("{\"kind\":\"X\",");
        let cases: [(&[&str], Option<&str>, &str); 3] = [
            (&[], known, "{\"items\":[]}"),
            (&["{\"kind\":\"X\",\"a\":1}", "{\"b\":2}"], known, "{\"items\":[{\"a\":1},{\"b\":2}]}"),
            (&["{\"kind\":\"X\",\"a\":1}"], None, "{\"items\":[{\"kind\":\"X\",\"a\":1}]}"),
        ];
        for (items, type_meta, text) in cases {
            let body = list(items, type_meta);
            assert_eq!(body.size_hint().exact(), Some(text.len() as u64), "{text}");
            assert_eq!(body.whole(), text);
        }
    }

    #[test]
    fn a_long_list_comes_in_pieces_of_the_length_that_was_told() {
        let item = format!("{{\"text\":\"{}\"}}", "x".repeat(1000));
        let mut body = list(&vec![item.as_str(); 300], None);
        let told = body.size_hint().exact().expect("known");
        let pieces: Vec<Bytes> = std::iter::from_fn(|| body.next()).collect();
        assert!(pieces.len() > 3, "{} pieces", pieces.len());
        assert_eq!(pieces.iter().map(|piece| piece.len() as u64).sum::<u64>(), told);
        let all: serde_json::Value = serde_json::from_slice(&pieces.concat()).expect("JSON");
        assert_eq!(all["items"].as_array().map(Vec::len), Some(300));
        assert!(body.is_end_stream());
    }
}
