//! Passing requests on: as they are, with the caller's name in headers that only a front proxy may set.

use std::fmt::Write as _;
use std::sync::Arc;

use http::header::{HOST, HeaderName, HeaderValue};
use http::{HeaderMap, Request, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::remote::{Remote, Unreached};
use crate::auth::User;
use crate::http::{self as wire, Body, Reply};
use crate::proxy;
use crate::server::Server;

/// Asks the server behind an APIService, and answers what it answers. A connection that changes its protocol is carried
/// on until one of its ends closes it.
pub async fn pass_on(
    server: &Arc<Server>,
    remote: &Remote,
    parts: http::request::Parts,
    body: Body,
    upgrade: Option<OnUpgrade>,
    user: &User,
) -> Reply {
    if !remote.is_available() {
        return plainly(StatusCode::SERVICE_UNAVAILABLE, "service unavailable");
    }
    let (stream, address) = match remote.connect(&server.kinds, false).await {
        Ok(connected) => connected,
        Err(Unreached::Nowhere(why)) => {
            tracing::warn!(service = remote.name, why, "an APIService has nobody behind it");
            return plainly(StatusCode::SERVICE_UNAVAILABLE, "service unavailable");
        }
        Err(Unreached::Setup(why)) => return plainly(StatusCode::INTERNAL_SERVER_ERROR, &why),
        Err(Unreached::Network(why)) => return unreachable(&why),
    };
    let mut request = Request::builder()
        .method(parts.method)
        .uri(parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str));
    if let Some(headers) = request.headers_mut() {
        *headers = proxy::passed(&parts.headers, upgrade.is_some());
        identify(headers, user);
        // To whom a page belongs, seen from behind: its server's own place.
        if upgrade.is_none() {
            set(headers, "x-forwarded-proto", "https");
            set(headers, "x-forwarded-uri", parts.uri.path());
            set(headers, "x-forwarded-host", &address);
        }
        if let Ok(host) = HeaderValue::from_str(&address) {
            headers.insert(HOST, host);
        }
    }
    let request = match request.body(body) {
        Ok(request) => request,
        Err(error) => return unreachable(&error),
    };
    let answered = proxy::exchange(TokioIo::new(stream), request, upgrade, &server.shutdown).await;
    answered.unwrap_or_else(|error| unreachable(&error))
}

fn unreachable(why: &dyn std::fmt::Display) -> Reply {
    plainly(StatusCode::SERVICE_UNAVAILABLE, &format!("error trying to reach service: {why}"))
}

/// What upstream's aggregator says for itself is plain text.
fn plainly(code: StatusCode, why: &str) -> Reply {
    wire::plain(code, format!("{why}\n"))
}

fn set(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(HeaderName::from_static(name), value);
    }
}

/// Says for whom a request is, and forgets who else the caller said that he was.
pub fn identify(headers: &mut HeaderMap, user: &User) {
    let said = headers.keys().filter(|name| name.as_str().starts_with("x-remote-"));
    for name in said.cloned().collect::<Vec<HeaderName>>() {
        headers.remove(name);
    }
    set(headers, "x-remote-user", &user.name);
    if !user.uid.is_empty() {
        set(headers, "x-remote-uid", &user.uid);
    }
    for group in &user.groups {
        if let Ok(group) = HeaderValue::from_str(group) {
            headers.append(HeaderName::from_static("x-remote-group"), group);
        }
    }
    for (key, values) in &user.extra {
        let Ok(name) = HeaderName::try_from(format!("x-remote-extra-{}", escaped(key))) else { continue };
        for value in values {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.append(name.clone(), value);
            }
        }
    }
}

/// A key as a header's name can have it: what cannot stand there is percent-encoded.
fn escaped(key: &str) -> String {
    let mut out = String::with_capacity(key.len());
    for byte in key.bytes() {
        match byte {
            b'!' | b'#' | b'$' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|'
            | b'~' => {
                out.push(byte as char);
            }
            _ if byte.is_ascii_alphanumeric() => out.push(byte as char),
            _ => drop(write!(out, "%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_cannot_say_who_he_is() {
        let mut headers = HeaderMap::new();
        for name in ["x-remote-user", "x-remote-group", "x-remote-extra-a", "x-remote-uid", "accept"] {
            set(&mut headers, name, "mine");
        }
        let mut user = User::authenticated("jane", &["a", "b"]);
        user.extra.insert("example.com/x%".to_owned(), vec!["1".to_owned(), "2".to_owned()]);
        identify(&mut headers, &user);
        let all =
            |name: &str| headers.get_all(name).iter().map(|v| v.to_str().unwrap_or("")).collect::<Vec<_>>();
        assert_eq!(all("x-remote-user"), ["jane"]);
        assert_eq!(all("x-remote-group"), ["a", "b", "system:authenticated"]);
        assert_eq!(all("x-remote-extra-example.com%2Fx%25"), ["1", "2"]);
        assert_eq!(all("accept"), ["mine"]);
        assert!(all("x-remote-uid").is_empty() && all("x-remote-extra-a").is_empty());
    }
}
