//! Large answers are sent compressed to who takes gzip. Small ones are not worth the time, and streams are sent as they
//! come.

use std::io::Write as _;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::HeaderMap;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderValue, VARY};
use http_body::Body as _;
use http_body_util::BodyExt as _;

use crate::http::{Body, Reply, full};

/// The smallest answer that is compressed, in bytes, as upstream.
const WORTH_IT: u64 = 128 * 1024;

/// Whether a client takes gzip.
pub fn accepts_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|form| {
        let mut parts = form.split(';').map(str::trim);
        parts.next() == Some("gzip") && !parts.any(|part| matches!(part, "q=0" | "q=0.0"))
    })
}

/// An answer, compressed if it is whole and large.
pub async fn gzip(reply: Reply) -> Reply {
    // Only of what is whole is the size known.
    let size = reply.body().size_hint().exact();
    if size.is_none_or(|size| size < WORTH_IT) || reply.headers().contains_key(CONTENT_ENCODING) {
        return reply;
    }
    let (mut parts, body) = reply.into_parts();
    let whole = match body.collect().await {
        Ok(whole) => whole.to_bytes(),
        Err(error) => {
            tracing::error!(%error, "an answer broke off");
            return Reply::from_parts(parts, Body::default());
        }
    };
    // A list of many thousands takes its time, which other requests need not wait for.
    let packed = tokio::task::spawn_blocking({
        let whole = whole.clone();
        move || pack(&whole)
    });
    let Ok(Ok(packed)) = packed.await else { return Reply::from_parts(parts, full(whole)) };
    parts.headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    parts.headers.append(VARY, HeaderValue::from_static("Accept-Encoding"));
    Reply::from_parts(parts, full(packed))
}

fn pack(whole: &[u8]) -> std::io::Result<Bytes> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(whole.len() / 4), Compression::fast());
    encoder.write_all(whole)?;
    encoder.finish().map(Bytes::from)
}
