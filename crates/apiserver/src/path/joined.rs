//! A list as a body that is made while it is sent: the objects are copied once, a piece at a time, so that a list of many
//! megabytes takes the room of one piece and its bytes are still at hand when they are encrypted.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use krate_store::cache::Object as Cached;

use crate::http::BoxError;

/// Bytes of a piece, about.
const PIECE: usize = 64 * 1024;
/// As every compact document ends.
const END: &[u8] = b"]}\n";

/// The objects of a list.
pub struct Items {
    pub objects: Vec<Arc<Cached>>,
    /// Each of them as it is sent, where that is another version than the cache's.
    pub made: Option<Vec<Bytes>>,
}

impl Items {
    /// Each object as it is sent.
    pub fn sent(self) -> Vec<Bytes> {
        self.made.unwrap_or_else(|| self.objects.iter().map(|object| object.sent()).collect())
    }
}

/// The body of a list.
pub struct Joined {
    /// What comes before the objects.
    head: Bytes,
    objects: std::vec::IntoIter<Arc<Cached>>,
    made: Option<std::vec::IntoIter<Bytes>>,
    /// What is left out at the beginning of each object that begins with it: in a list of a built-in kind, what kind it is.
    type_meta: Option<String>,
    first: bool,
    done: bool,
    left: usize,
}

impl Joined {
    pub fn new(head: Bytes, items: Items, type_meta: Option<String>) -> Self {
        let count = items.made.as_ref().map_or(items.objects.len(), Vec::len);
        let mut body = Joined {
            left: head.len() + count.saturating_sub(1) + END.len(),
            head,
            objects: Vec::new().into_iter(),
            made: None,
            type_meta,
            first: true,
            done: false,
        };
        // The objects' own text is not looked at for this: it is read once, when it is sent.
        let shown = |length: usize, skipped: usize| length - skipped.saturating_sub(1);
        body.left += if let Some(made) = &items.made {
            made.iter().map(|item| shown(item.len(), body.skipped_of(item))).sum::<usize>()
        } else {
            let objects = items.objects.iter();
            objects.map(|o| shown(o.text.len(o.revision), body.skipped(o))).sum()
        };
        body.objects = items.objects.into_iter();
        body.made = items.made.map(Vec::into_iter);
        body
    }

    /// How much of an object of the cache is left out.
    fn skipped(&self, object: &Cached) -> usize {
        if self.type_meta.is_some() { object.text.opening() } else { 0 }
    }

    /// The same of one that was made.
    fn skipped_of(&self, item: &[u8]) -> usize {
        self.type_meta.as_ref().filter(|known| item.starts_with(known.as_bytes())).map_or(0, String::len)
    }

    /// Appends the next object; false at the end.
    fn put_next(&mut self, piece: &mut BytesMut) -> bool {
        let comma = !self.first;
        let begin = |piece: &mut BytesMut, skipped: usize| {
            if comma {
                piece.put_u8(b',');
            }
            if skipped > 0 {
                piece.put_u8(b'{');
            }
        };
        if let Some(made) = &mut self.made {
            let Some(item) = made.next() else { return false };
            let skipped = self.skipped_of(&item);
            begin(piece, skipped);
            piece.put_slice(&item[skipped..]);
        } else {
            let Some(object) = self.objects.next() else { return false };
            let skipped = self.skipped(&object);
            begin(piece, skipped);
            object.text.put(object.revision, skipped, piece);
        }
        self.first = false;
        true
    }

    /// The next piece; none at the end.
    fn next(&mut self) -> Option<Bytes> {
        if self.done {
            return None;
        }
        let mut piece = BytesMut::with_capacity(self.left.min(PIECE + 8 * 1024));
        piece.put_slice(&std::mem::take(&mut self.head));
        while piece.len() < PIECE {
            if !self.put_next(&mut piece) {
                piece.put_slice(END);
                self.done = true;
                break;
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
    use krate_store::Revision;
    use krate_store::cache::Head;

    fn list(items: &[&str], type_meta: Option<&str>) -> Joined {
        let made = items.iter().map(|item| Bytes::copy_from_slice(item.as_bytes())).collect();
        let items = Items { objects: Vec::new(), made: Some(made) };
        Joined::new(Bytes::from_static(b"{\"items\":["), items, type_meta.map(str::to_owned))
    }

    fn cached(json: &str, opening: usize) -> Arc<Cached> {
        let value = Bytes::copy_from_slice(json.as_bytes());
        let text = crate::storage::text(value.clone()).opened_by(opening);
        Arc::new(Cached { key: Bytes::new(), text, value, head: Head::default(), revision: Revision(7) })
    }

    #[test]
    fn objects_stand_in_a_list_without_their_kind() {
        let known = Some("{\"kind\":\"X\",");
        let cases: [(&[&str], Option<&str>, &str); 3] = [
            (&[], known, "{\"items\":[]}\n"),
            (&["{\"kind\":\"X\",\"a\":1}", "{\"b\":2}"], known, "{\"items\":[{\"a\":1},{\"b\":2}]}\n"),
            (&["{\"kind\":\"X\",\"a\":1}"], None, "{\"items\":[{\"kind\":\"X\",\"a\":1}]}\n"),
        ];
        for (items, type_meta, text) in cases {
            let body = list(items, type_meta);
            assert_eq!(body.size_hint().exact(), Some(text.len() as u64), "{text}");
            assert_eq!(body.whole(), text);
        }
    }

    #[test]
    fn objects_of_the_cache_stand_in_a_list_with_their_resource_version() {
        let a = "{\"kind\":\"X\",\"metadata\":{\"name\":\"a\"}}";
        let b = "{\"kind\":\"Another\",\"metadata\":{}}";
        let sent = [
            (Some("{\"kind\":\"X\","), "{\"metadata\":{\"resourceVersion\":\"7\",\"name\":\"a\"}}"),
            (None, "{\"kind\":\"X\",\"metadata\":{\"resourceVersion\":\"7\",\"name\":\"a\"}}"),
        ];
        for (type_meta, first) in sent {
            let items = Items { objects: vec![cached(a, 12), cached(b, 0)], made: None };
            let body = Joined::new(Bytes::from_static(b"["), items, type_meta.map(str::to_owned));
            let text =
                format!("[{first},{{\"kind\":\"Another\",\"metadata\":{{\"resourceVersion\":\"7\"}}}}]}}\n");
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
