//! Requests below `/openapi`.

use http::header::{
    ACCEPT, ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, ETAG, IF_NONE_MATCH, LOCATION, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::{Document, Documents, Served, place};
use crate::http::{Reply, reply};

const JSON: &str = "application/json";

/// Answers a request for a document; `parts` is the path after `/openapi`, `hash` what the query gave as such.
pub(crate) fn answer(
    documents: &Documents,
    served: &Served,
    parts: &[&str],
    hash: Option<&str>,
    headers: &HeaderMap,
) -> Option<Reply> {
    let (document, at) = match parts {
        ["v2"] => (documents.v2(served)?, None),
        ["v3"] => (documents.v3_index(served)?, None),
        ["v3", "api", version] => (documents.v3(served, "", version)?, Some(place("", version))),
        ["v3", "apis", group, version] => {
            (documents.v3(served, group, version)?, Some(place(group, version)))
        }
        _ => return None,
    };
    if !takes_json(headers) {
        let text = format!("406: Not Acceptable\n\nAvailable representations: {JSON}");
        return Some(reply(StatusCode::NOT_ACCEPTABLE, "text/plain; charset=utf-8", text));
    }
    if let (Some(at), Some(hash)) = (at, hash.filter(|h| *h != document.hash)) {
        // The document is another since the client read the index.
        tracing::debug!(hash, "an old OpenAPI document was asked for");
        let mut moved = reply(StatusCode::MOVED_PERMANENTLY, JSON, "");
        set(&mut moved, LOCATION, &format!("/openapi/v3/{at}?hash={}", document.hash));
        return Some(moved);
    }
    Some(send(&document, hash.is_some(), headers))
}

fn send(document: &Document, immutable: bool, headers: &HeaderMap) -> Reply {
    let tag = format!("\"{}\"", document.hash);
    let known = has(headers, &IF_NONE_MATCH, |part| part == tag || part == "*");
    let mut out = if known {
        reply(StatusCode::NOT_MODIFIED, JSON, "")
    } else if has(headers, &ACCEPT_ENCODING, |part| part.split(';').next() == Some("gzip")) {
        let mut out = reply(StatusCode::OK, JSON, document.gzip());
        set(&mut out, CONTENT_ENCODING, "gzip");
        out
    } else {
        reply(StatusCode::OK, JSON, document.json())
    };
    set(&mut out, ETAG, &tag);
    set(&mut out, VARY, "Accept-Encoding, Accept");
    // A document that is asked for by its hash never changes.
    set(
        &mut out,
        CACHE_CONTROL,
        if immutable { "public, immutable, max-age=31536000" } else { "no-cache, private" },
    );
    out
}

fn set(reply: &mut Reply, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        reply.headers_mut().insert(name, value);
    }
}

fn has(headers: &HeaderMap, name: &HeaderName, test: impl Fn(&str) -> bool) -> bool {
    let values = headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).any(|part| test(part.trim()))
}

/// The protobuf form of the documents is not made; who takes nothing else is told so.
fn takes_json(headers: &HeaderMap) -> bool {
    let json = |part: &str| {
        let media = part.split(';').next().unwrap_or_default().trim();
        matches!(media, "application/json" | "application/*" | "*/*")
    };
    !headers.contains_key(ACCEPT) || has(headers, &ACCEPT, json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use krate_api::kinds;

    fn ask(parts: &[&str], hash: Option<&str>, headers: &[(HeaderName, &str)]) -> Option<Reply> {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.clone(), HeaderValue::from_str(value).expect("a value")))
            .collect();
        let served = Served {
            generation: 0,
            rows: kinds::ALL.to_vec(),
            custom: Vec::new(),
            others: Vec::new(),
            elsewhere: Vec::new(),
        };
        answer(&Documents::new(), &served, parts, hash, &headers)
    }

    #[test]
    fn documents_are_sent_as_the_client_takes_them() {
        let plain = ask(&["v3", "api", "v1"], None, &[]).expect("a document");
        assert_eq!(plain.status(), StatusCode::OK);
        let tag = plain.headers()[ETAG].to_str().expect("a tag").to_owned();
        let hash = tag.trim_matches('"');
        let packed = ask(&["v3", "api", "v1"], Some(hash), &[(ACCEPT_ENCODING, "br, gzip;q=1")]);
        let packed = packed.expect("a document");
        assert_eq!(packed.headers()[CONTENT_ENCODING], "gzip");
        assert!(packed.headers()[CACHE_CONTROL].to_str().is_ok_and(|v| v.contains("immutable")));
        let known = ask(&["v3", "api", "v1"], None, &[(IF_NONE_MATCH, &tag)]).expect("an answer");
        assert_eq!(known.status(), StatusCode::NOT_MODIFIED);
        let moved = ask(&["v3", "api", "v1"], Some("OLD"), &[]).expect("an answer");
        assert_eq!(moved.headers()[LOCATION], format!("/openapi/v3/api/v1?hash={hash}"));
        let proto = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
        let refused = ask(&["v2"], None, &[(ACCEPT, proto)]).expect("an answer");
        assert_eq!(refused.status(), StatusCode::NOT_ACCEPTABLE);
        assert!(ask(&["v3", "apis", "odd", "v1"], None, &[]).is_none());
        assert!(ask(&["v4"], None, &[]).is_none());
    }
}
