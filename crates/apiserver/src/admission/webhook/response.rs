//! What a webhook's server says instead of an answer, in the words of upstream's clients.

use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderMap};

/// The most of a body that is told, in bytes.
const SHOWN: usize = 2048;

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    pub why: String,
    /// What the server said, if it said anything.
    pub code: Option<u16>,
}

impl Failure {
    pub fn new(why: impl Into<String>) -> Self {
        Failure { why: why.into(), code: None }
    }
}

/// Whether a status comes with an answer.
pub fn answers(status: StatusCode) -> bool {
    (200..=206).contains(&status.as_u16())
}

/// Of a status that comes with none.
pub fn failure(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Failure {
    let said = said(headers, body);
    let code = status.as_u16();
    let why = match code {
        400 => "the server rejected our request for an unknown reason".to_owned(),
        401 => "the server has asked for the client to provide credentials".to_owned(),
        403 | 415 => said,
        404 => "the server could not find the requested resource".to_owned(),
        405 => "the server does not allow this method on the requested resource".to_owned(),
        406 if said.is_empty() || said == UNKNOWN => {
            "the server was unable to respond with a content type that the client supports".to_owned()
        }
        406 => said,
        409 => "the server reported a conflict".to_owned(),
        422 => "the server rejected our request due to an error in our request".to_owned(),
        429 => "the server has received too many requests and has asked us to try again later".to_owned(),
        503 => "the server is currently unable to handle the request".to_owned(),
        504 => "the server was unable to return a response in the time allotted, but may still be processing the \
                request"
            .to_owned(),
        500.. => format!("an error on the server ({said:?}) has prevented the request from succeeding"),
        _ => format!("the server responded with the status code {code} but did not return more information"),
    };
    Failure { why, code: Some(code) }
}

const UNKNOWN: &str = "unknown";

/// What a body says to people.
fn said(headers: &HeaderMap, body: &[u8]) -> String {
    let kind = headers.get(CONTENT_TYPE).map(|kind| kind.to_str().unwrap_or("?").trim_start());
    if kind.is_some_and(|kind| !kind.is_empty() && !kind.to_ascii_lowercase().starts_with("text/")) {
        return UNKNOWN.to_owned();
    }
    String::from_utf8_lossy(&body[..body.len().min(SHOWN)]).trim().to_owned()
}

/// What became of a connection that was tried.
pub fn refused(error: &std::io::Error) -> String {
    use std::io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable, TimedOut};
    match error.kind() {
        ConnectionRefused => "connect: connection refused".to_owned(),
        HostUnreachable => "connect: no route to host".to_owned(),
        NetworkUnreachable => "connect: network is unreachable".to_owned(),
        TimedOut => "connect: connection timed out".to_owned(),
        _ => error.to_string(),
    }
}

/// What is wrong with a server that does not prove who it is.
pub fn distrusted(error: &std::io::Error) -> String {
    use rustls::{CertificateError::UnknownIssuer, Error::InvalidCertificate};
    match error.get_ref().and_then(|error| error.downcast_ref()) {
        Some(InvalidCertificate(UnknownIssuer)) => {
            "tls: failed to verify certificate: x509: certificate signed by unknown authority".to_owned()
        }
        _ => format!("tls: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_server_that_does_not_answer_is_told_as_upstream_does() {
        let of = |kind: &'static str| -> HeaderMap {
            [(CONTENT_TYPE, HeaderValue::from_static(kind))].into_iter().collect()
        };
        let (html, json, none) = (of("text/html; charset=utf-8"), of("application/json"), HeaderMap::new());
        for (code, headers, told) in [
            (404, &none, "the server could not find the requested resource"),
            (500, &none, "an error on the server (\"oh no\") has prevented the request from succeeding"),
            (502, &html, "an error on the server (\"oh no\") has prevented the request from succeeding"),
            (500, &json, "an error on the server (\"unknown\") has prevented the request from succeeding"),
            (403, &html, "oh no"),
            (503, &none, "the server is currently unable to handle the request"),
            (302, &none, "the server responded with the status code 302 but did not return more information"),
        ] {
            let status = StatusCode::from_u16(code).expect("a status");
            assert!(!answers(status));
            let failure = failure(status, headers, b"oh no\n");
            assert_eq!(failure, Failure { why: told.to_owned(), code: Some(code) });
        }
        assert!(answers(StatusCode::OK));
    }

    #[test]
    fn a_connection_that_is_refused_is_told_without_the_systems_number() {
        let error = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        assert_eq!(refused(&error), "connect: connection refused");
        let unknown = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let error = std::io::Error::new(std::io::ErrorKind::InvalidData, unknown);
        assert!(distrusted(&error).ends_with("certificate signed by unknown authority"));
    }
}
