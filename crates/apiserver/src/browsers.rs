//! What browsers are told besides the answer: whose pages may read it (CORS), and that the server is to be asked over TLS
//! alone (HSTS). Nothing of it, unless the server is told to.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ORIGIN, STRICT_TRANSPORT_SECURITY,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use regex::Regex;

use crate::formats::pattern;
use crate::http::Reply;

/// The largest automaton in bytes that an origin's expression may make.
const LARGEST: usize = 1 << 20;
const METHODS: &str = "POST, GET, OPTIONS, PUT, DELETE, PATCH";
const HEADERS: &str = "Content-Type, Content-Length, Accept-Encoding, X-CSRF-Token, Authorization, X-Requested-With, \
                       If-Modified-Since";
const HELP: &str = "List of allowed origins for CORS, comma separated. An allowed origin can be a regular expression to \
                    support subdomain matching. If this list is empty CORS will not be enabled. Please ensure each \
                    expression matches the entire hostname by anchoring to the start with '^' or including the '//' \
                    prefix, and by anchoring to the end with '$' or including the ':' port separator suffix. Examples of \
                    valid expressions are '//example\\.com(:|$)' and '^https://example\\.com(:|$)'";

pub struct Browsers {
    origins: Vec<Regex>,
    security: Option<HeaderValue>,
}

impl Browsers {
    /// `origins` are regular expressions; those that are none let nobody in.
    pub fn new(origins: &[String], security: &[String]) -> Self {
        let security = Some(security.join("; ")).filter(|said| !said.is_empty());
        Browsers {
            origins: origins.iter().filter_map(|origin| pattern::compile(origin, LARGEST).ok()).collect(),
            security: security.and_then(|said| HeaderValue::try_from(said).ok()),
        }
    }

    /// Where the page is from that asks, if it may.
    pub fn origin(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        if self.origins.is_empty() {
            return None;
        }
        let origin = headers.get(ORIGIN)?;
        let text = origin.to_str().ok().filter(|text| !text.is_empty())?;
        self.origins.iter().any(|one| one.is_match(text)).then(|| origin.clone())
    }

    /// Adds what there is to tell to a page from there.
    pub fn tell(&self, reply: &mut Reply, origin: Option<HeaderValue>) {
        if reply.status() == StatusCode::SWITCHING_PROTOCOLS {
            return;
        }
        let headers = reply.headers_mut();
        if let Some(security) = &self.security {
            headers.entry(STRICT_TRANSPORT_SECURITY).or_insert(security.clone());
        }
        let Some(origin) = origin else { return };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        for (name, said) in [
            (ACCESS_CONTROL_ALLOW_METHODS, METHODS),
            (ACCESS_CONTROL_ALLOW_HEADERS, HEADERS),
            (ACCESS_CONTROL_EXPOSE_HEADERS, "Date"),
            (ACCESS_CONTROL_ALLOW_CREDENTIALS, "true"),
        ] {
            headers.insert(name, HeaderValue::from_static(said));
        }
    }
}

/// The answer to a page that may ask, where it asks whether it may, and for nothing else.
pub fn preflight(method: &Method, origin: Option<&HeaderValue>) -> Option<Reply> {
    (*method == Method::OPTIONS && origin.is_some()).then(|| {
        let mut reply = Reply::default();
        *reply.status_mut() = StatusCode::NO_CONTENT;
        reply
    })
}

/// What is wrong with the expression of an origin, in upstream's words behind the flag's name.
pub fn wrong_origin(origin: &str) -> Option<String> {
    if origin.is_empty() {
        return Some(format!("empty value, help: {HELP}"));
    }
    let pins = |marks: [&str; 2]| marks.iter().any(|mark| origin.contains(mark));
    let why = match pattern::compile(origin, LARGEST) {
        Err(why) => why,
        Ok(_) if pins(["^", "//"]) && pins(["$", ":"]) => return None,
        Ok(_) => "regular expression does not pin to start/end of host in the origin header".to_owned(),
    };
    Some(format!("has an invalid regular expression: {why}, help: {HELP}"))
}

/// The same of a directive of `Strict-Transport-Security`.
pub fn wrong_security(directive: &str) -> Option<String> {
    if directive.trim().is_empty() {
        return Some("empty value".to_owned());
    }
    let is_age = || directive.strip_prefix("max-age=").is_some_and(|age| !age.contains('='));
    let is_known = matches!(directive, "includeSubDomains" | "preload") || is_age();
    (!is_known).then(|| {
        "invalid, allowed values: max-age=expireTime, includeSubDomains, preload. see \
         https://tools.ietf.org/html/rfc6797#section-6.1 for more information"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn browsers() -> Browsers {
        let owned = |all: &[&str]| -> Vec<String> { all.iter().map(|&one| one.to_owned()).collect() };
        Browsers::new(&owned(&["//a\\.example(:|$)"]), &owned(&["max-age=31536000", "preload"]))
    }

    #[test]
    fn pages_of_allowed_origins_may_read_answers() {
        for (origin, allowed) in [
            ("https://a.example", true),
            ("https://a.example:8443", true),
            ("https://a.example.org", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(ORIGIN, HeaderValue::from_static(origin))]);
            let found = browsers().origin(&headers);
            assert_eq!(found.is_some(), allowed, "{origin}");
            assert_eq!(preflight(&Method::OPTIONS, found.as_ref()).is_some(), allowed, "{origin}");
            assert!(preflight(&Method::GET, found.as_ref()).is_none());
            let mut reply = Reply::default();
            browsers().tell(&mut reply, found);
            assert_eq!(reply.headers()[STRICT_TRANSPORT_SECURITY], "max-age=31536000; preload");
            let told = reply.headers().get(ACCESS_CONTROL_ALLOW_ORIGIN);
            assert_eq!(told.is_some_and(|told| told == origin), allowed, "{origin}");
        }
    }

    #[test]
    fn browsers_are_told_nothing_of_themselves() {
        let mut reply = Reply::default();
        let headers = HeaderMap::from_iter([(ORIGIN, HeaderValue::from_static("https://a.example"))]);
        let none = Browsers::new(&[], &[]);
        none.tell(&mut reply, none.origin(&headers));
        assert!(reply.headers().is_empty());
    }

    #[test]
    fn what_would_let_others_in_is_refused() {
        let pins = "regular expression does not pin to start/end of host in the origin header";
        for (origin, why) in [
            ("", Some("empty value")),
            ("a.example", Some(pins)),
            ("//a(", Some("error parsing regexp: missing closing )")),
            ("^https://a\\.example$", None),
        ] {
            let told = wrong_origin(origin);
            assert_eq!(told.is_some(), why.is_some(), "{origin}");
            assert!(why.is_none_or(|why| told.is_some_and(|told| told.contains(why))), "{origin}");
        }
        for (directive, sound) in
            [("max-age=1", true), ("preload", true), ("max-age", false), ("max-age=1=2", false), (" ", false)]
        {
            assert_eq!(wrong_security(directive).is_none(), sound, "{directive}");
        }
    }
}
