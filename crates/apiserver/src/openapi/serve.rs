//! Requests below `/openapi`.

use http::header::{
    ACCEPT, ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, ETAG, IF_NONE_MATCH, LOCATION, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::protobuf::{MEDIA as PROTOBUF, OLD_MEDIA};
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
    let form = accepted(headers, parts == ["v2"]);
    let (document, at) = match parts {
        ["v2"] if form == Some(PROTOBUF) => (documents.v2_protobuf(served)?, None),
        ["v2"] => (documents.v2(served)?, None),
        ["v3"] => (documents.v3_index(served)?, None),
        ["v3", "api", version] => (documents.v3(served, "", version)?, Some(place("", version))),
        ["v3", "apis", group, version] => {
            (documents.v3(served, group, version)?, Some(place(group, version)))
        }
        _ => return None,
    };
    let Some(form) = form else {
        let mut refused = reply(StatusCode::NOT_ACCEPTABLE, "text/plain; charset=utf-8", "");
        set(&mut refused, VARY, "Accept-Encoding, Accept");
        return Some(refused);
    };
    if let (Some(at), Some(hash)) = (at, hash.filter(|h| *h != document.hash)) {
        // The document is another since the client read the index.
        tracing::debug!(hash, "an old OpenAPI document was asked for");
        let mut moved = reply(StatusCode::MOVED_PERMANENTLY, JSON, "");
        set(&mut moved, LOCATION, &format!("/openapi/v3/{at}?hash={}", document.hash));
        return Some(moved);
    }
    Some(send(&document, form, hash.is_some(), headers))
}

fn send(document: &Document, form: &'static str, immutable: bool, headers: &HeaderMap) -> Reply {
    let tag = format!("\"{}\"", document.hash);
    let known = has(headers, &IF_NONE_MATCH, |part| part == tag || part == "*");
    let mut out = if known {
        reply(StatusCode::NOT_MODIFIED, form, "")
    } else if has(headers, &ACCEPT_ENCODING, |part| part.split(';').next() == Some("gzip")) {
        let mut out = reply(StatusCode::OK, form, document.gzip());
        set(&mut out, CONTENT_ENCODING, "gzip");
        out
    } else {
        reply(StatusCode::OK, form, document.plain())
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

/// The form of the document that the client likes best of those that there are: None if it takes none of them.
fn accepted(headers: &HeaderMap, has_protobuf: bool) -> Option<&'static str> {
    if !headers.contains_key(ACCEPT) {
        return Some(JSON);
    }
    let values = headers.get_all(ACCEPT).iter().filter_map(|v| v.to_str().ok());
    let mut clauses: Vec<(&str, f32)> = values.flat_map(|v| v.split(',')).map(clause).collect();
    clauses.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    clauses.into_iter().find_map(|(media, _)| match media {
        JSON | "application/*" | "*/*" => Some(JSON),
        PROTOBUF | OLD_MEDIA if has_protobuf => Some(PROTOBUF),
        _ => None,
    })
}

/// What a part of `Accept` names, and how well it is liked.
fn clause(part: &str) -> (&str, f32) {
    let mut parts = part.split(';').map(str::trim);
    let media = parts.next().unwrap_or_default();
    let liked = parts.find_map(|parameter| parameter.strip_prefix("q=")?.parse().ok());
    (media, liked.unwrap_or(1.0))
}

#[cfg(test)]
mod tests {
    use http::header::CONTENT_TYPE;
    use krate_api::kinds;

    use super::*;

    fn ask(parts: &[&str], hash: Option<&str>, headers: &[(HeaderName, &str)]) -> Option<Reply> {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.clone(), HeaderValue::from_str(value).expect("a value")))
            .collect();
        let served = Served {
            generation: 0,
            rows: kinds::ALL.to_vec(),
            off: kinds::OPTIONAL.to_vec(),
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
        let refused = ask(&["v3", "api", "v1"], None, &[(ACCEPT, PROTOBUF)]).expect("an answer");
        assert_eq!(refused.status(), StatusCode::NOT_ACCEPTABLE);
        assert!(ask(&["v3", "apis", "odd", "v1"], None, &[]).is_none());
        assert!(ask(&["v4"], None, &[]).is_none());
    }

    #[test]
    fn the_form_is_the_one_that_the_client_likes_best() {
        let json = ask(&["v2"], None, &[]).expect("a document");
        for (accept, form) in [
            ("*/*", JSON),
            (PROTOBUF, PROTOBUF),
            (OLD_MEDIA, PROTOBUF),
            (&format!("{JSON};q=0.5, {OLD_MEDIA}"), PROTOBUF),
            (&format!("text/html, {JSON}, {PROTOBUF}"), JSON),
        ] {
            let told = ask(&["v2"], None, &[(ACCEPT, accept)]).expect("a document");
            assert_eq!(told.status(), StatusCode::OK, "{accept}");
            assert_eq!(told.headers()[CONTENT_TYPE], form, "{accept}");
            assert_eq!(told.headers()[ETAG], json.headers()[ETAG], "{accept}");
        }
        let refused = ask(&["v2"], None, &[(ACCEPT, "text/html")]).expect("an answer");
        assert_eq!(refused.status(), StatusCode::NOT_ACCEPTABLE);
    }
}
