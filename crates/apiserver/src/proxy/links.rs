//! What a server behind the proxy says of its own places, told as places behind the proxy: the links of its pages, and
//! where it sends people to. It knows nothing of the path that it is reached by.

use std::io::{self, Write as _};
use std::mem::take;
use std::sync::Arc;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::{DeflateDecoder, DeflateEncoder, GzEncoder, MultiGzDecoder};
use futures::stream;
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, LOCATION};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt as _, StreamBody};
use lol_html::errors::RewritingError;
use lol_html::html_content::Element;
use lol_html::send::{HtmlRewriter, Settings};
use lol_html::{HandlerTypes, element};
use parking_lot::Mutex;

use crate::http::{Body, BoxError, Reply};

/// The attributes of elements that hold a link.
const LINKS: [(&str, &[&str]); 25] = [
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];
/// Who may use an answer is for the API server to say, not for whom it asks.
const CROSS_ORIGIN: [&str; 4] = [
    "access-control-allow-credentials",
    "access-control-allow-headers",
    "access-control-allow-methods",
    "access-control-allow-origin",
];

/// Where a server is, seen from both sides of the proxy.
#[derive(Clone, Debug)]
pub struct Place {
    /// The path under which its root is seen, without a slash at its end.
    pub prefix: String,
    /// Its own host and port.
    pub host: String,
    /// The host that the request was sent to, if it said one.
    pub asked_host: Option<String>,
}

impl Place {
    /// A link as it has to be for whoever comes by the proxy; `None` where it is right already: it leads elsewhere, or
    /// starts from the page that it is on.
    fn rewritten(&self, link: &str) -> Option<String> {
        let (scheme, after) = match link.split_once("//") {
            Some(("", after)) => ("", Some(after)),
            Some((scheme, after)) if is_scheme(scheme) => (scheme, Some(after)),
            _ => ("", None),
        };
        let (host, path) = match after {
            None => ("", link),
            Some(after) => after.split_at(after.find(['/', '?', '#']).unwrap_or(after.len())),
        };
        let is_asked = !host.is_empty() && self.asked_host.as_deref() == Some(host);
        if !path.starts_with('/') || !host.is_empty() && host != self.host && !is_asked {
            return None;
        }
        let origin = if is_asked { format!("{scheme}//{host}") } else { String::new() };
        let prefix = if path.starts_with(&self.prefix) { "" } else { self.prefix.as_str() };
        Some(format!("{origin}{prefix}{path}")).filter(|new| new != link)
    }
}

fn is_scheme(text: &str) -> bool {
    let Some(name) = text.strip_suffix(':') else { return false };
    name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
}

/// An answer with its links set right.
pub fn set_right(mut reply: Reply, place: Place) -> Reply {
    for name in CROSS_ORIGIN {
        reply.headers_mut().remove(name);
    }
    if let Some(to) = reply.headers().get(LOCATION).and_then(|to| to.to_str().ok()) {
        if let Some(to) = place.rewritten(to).and_then(|to| HeaderValue::try_from(to).ok()) {
            reply.headers_mut().insert(LOCATION, to);
        }
        return reply;
    }
    let Some(coding) = page(reply.headers()) else { return reply };
    reply.headers_mut().remove(CONTENT_LENGTH);
    if reply.body().is_end_stream() {
        // The answer to a HEAD, or nothing at all.
        return reply;
    }
    reply.map(|body| pages(body, Page::new(place, coding)))
}

/// How a page is packed; `None` for what is no page, or is packed so that it cannot be read.
fn page(headers: &HeaderMap) -> Option<Coding> {
    let kind = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    if kind.split(';').next()?.trim() != "text/html" {
        return None;
    }
    match headers.get(CONTENT_ENCODING).map(HeaderValue::as_bytes) {
        None | Some(b"") => Some(Coding::Plain),
        Some(b"gzip") => Some(Coding::Gzip {
            unpack: MultiGzDecoder::new(Vec::new()),
            pack: GzEncoder::new(Vec::new(), Compression::fast()),
        }),
        Some(b"deflate") => Some(Coding::Deflate {
            unpack: DeflateDecoder::new(Vec::new()),
            pack: DeflateEncoder::new(Vec::new(), Compression::fast()),
        }),
        Some(_) => None,
    }
}

/// The body of a page, rewritten as it comes.
fn pages(body: Body, page: Page) -> Body {
    let rewritten = stream::try_unfold(Some((body, page)), async |state| {
        let Some((mut body, mut page)) = state else { return Ok(None) };
        loop {
            let chunk = match body.frame().await {
                None => return Ok(Some((Frame::data(page.end()?), None))),
                // What may come behind a body is of no use after a change of it.
                Some(frame) => frame?.into_data().unwrap_or_default(),
            };
            let chunk = page.feed(&chunk)?;
            if !chunk.is_empty() {
                return Ok(Some((Frame::data(chunk), Some((body, page)))));
            }
        }
    });
    StreamBody::new(rewritten).boxed_unsync()
}

enum Coding {
    Plain,
    Gzip { unpack: MultiGzDecoder<Vec<u8>>, pack: GzEncoder<Vec<u8>> },
    Deflate { unpack: DeflateDecoder<Vec<u8>>, pack: DeflateEncoder<Vec<u8>> },
}

impl Coding {
    fn unpack(&mut self, packed: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Coding::Plain => Ok(packed.to_vec()),
            Coding::Gzip { unpack, .. } => unpack.write_all(packed).map(|()| take(unpack.get_mut())),
            Coding::Deflate { unpack, .. } => unpack.write_all(packed).map(|()| take(unpack.get_mut())),
        }
    }

    fn pack(&mut self, plain: Vec<u8>) -> io::Result<Vec<u8>> {
        match self {
            Coding::Plain => Ok(plain),
            Coding::Gzip { pack, .. } => pack.write_all(&plain).map(|()| take(pack.get_mut())),
            Coding::Deflate { pack, .. } => pack.write_all(&plain).map(|()| take(pack.get_mut())),
        }
    }

    /// What is left to be unpacked.
    fn rest(&mut self) -> io::Result<Vec<u8>> {
        match self {
            Coding::Plain => Ok(Vec::new()),
            Coding::Gzip { unpack, .. } => unpack.try_finish().map(|()| take(unpack.get_mut())),
            Coding::Deflate { unpack, .. } => unpack.try_finish().map(|()| take(unpack.get_mut())),
        }
    }

    fn end(self) -> io::Result<Vec<u8>> {
        match self {
            Coding::Plain => Ok(Vec::new()),
            Coding::Gzip { pack, .. } => pack.finish(),
            Coding::Deflate { pack, .. } => pack.finish(),
        }
    }
}

type Out = Arc<Mutex<Vec<u8>>>;
type Sink = Box<dyn FnMut(&[u8]) + Send>;

/// A page on its way.
struct Page {
    coding: Coding,
    rewriter: HtmlRewriter<'static, Sink>,
    out: Out,
}

impl Page {
    fn new(place: Place, coding: Coding) -> Self {
        let out = Out::default();
        let sink = Arc::clone(&out);
        let place = Arc::new(place);
        let mut settings = Settings::new_send();
        for (name, attributes) in LINKS {
            let place = Arc::clone(&place);
            let handler = element!(name, move |element| rewrite(element, attributes, &place));
            settings = settings.append_element_content_handler(handler);
        }
        let rewriter = HtmlRewriter::new(
            settings,
            Box::new(move |chunk: &[u8]| sink.lock().extend_from_slice(chunk)) as Sink,
        );
        Page { coding, rewriter, out }
    }

    fn feed(&mut self, chunk: &[u8]) -> Result<Bytes, BoxError> {
        let plain = self.coding.unpack(chunk)?;
        self.rewriter.write(&plain).map_err(Box::new)?;
        Ok(self.coding.pack(take(&mut *self.out.lock()))?.into())
    }

    fn end(mut self) -> Result<Bytes, BoxError> {
        let rest = self.coding.rest()?;
        self.rewriter.write(&rest).map_err(Box::new)?;
        self.rewriter.end().map_err(Box::<RewritingError>::new)?;
        let mut last = self.coding.pack(take(&mut *self.out.lock()))?;
        last.extend(self.coding.end()?);
        Ok(last.into())
    }
}

fn rewrite<H: HandlerTypes>(
    element: &mut Element<'_, '_, H>,
    attributes: &[&str],
    place: &Place,
) -> lol_html::HandlerResult {
    for name in attributes {
        if let Some(link) = element.get_attribute(name).and_then(|link| place.rewritten(&link)) {
            element.set_attribute(name, &link)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Response;
    use http_body_util::Full;

    fn place() -> Place {
        Place {
            prefix: "/api/v1/namespaces/n/pods/p/proxy".to_owned(),
            host: "10.0.0.7:80".to_owned(),
            asked_host: Some("localhost:8001".to_owned()),
        }
    }

    #[test]
    fn links_to_the_server_itself_lead_through_the_proxy() {
        for (link, wanted) in [
            ("/a/b?c=d#e", Some("/api/v1/namespaces/n/pods/p/proxy/a/b?c=d#e")),
            ("/", Some("/api/v1/namespaces/n/pods/p/proxy/")),
            ("http://10.0.0.7:80/a", Some("/api/v1/namespaces/n/pods/p/proxy/a")),
            ("//10.0.0.7:80/a", Some("/api/v1/namespaces/n/pods/p/proxy/a")),
            ("http://localhost:8001/a", Some("http://localhost:8001/api/v1/namespaces/n/pods/p/proxy/a")),
            ("/api/v1/namespaces/n/pods/p/proxy/a", None),
            ("http://example.com/a", None),
            ("a/b", None),
            ("?c=d", None),
            ("#e", None),
            ("mailto:a@example.com", None),
            ("javascript:void(0)//", None),
        ] {
            assert_eq!(place().rewritten(link).as_deref(), wanted, "{link}");
        }
    }

    async fn sent(headers: &[(&str, &str)], body: &[u8]) -> (HeaderMap, Vec<u8>) {
        // In pieces that end within a tag.
        let pieces: Vec<Result<Frame<Bytes>, BoxError>> =
            body.chunks(7).map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece)))).collect();
        let mut reply = Response::new(StreamBody::new(stream::iter(pieces)).boxed_unsync());
        for (name, value) in headers {
            let name: http::HeaderName = name.parse().expect("a name");
            reply.headers_mut().insert(name, value.parse().expect("a value"));
        }
        let (head, body) = set_right(reply, place()).into_parts();
        (head.headers, body.collect().await.expect("a body").to_bytes().to_vec())
    }

    const PAGE: &str = "<!doctype html><P>a &amp; b<a class=x href=\"/rewriteme\">test</a><img src='/i?a=1&amp;b=2'>\
                        <script>var a = '<a href=\"/no\">';</script><a href=\"b\">";
    const RIGHT: &str = "<!doctype html><P>a &amp; b<a class=x \
                         href=\"/api/v1/namespaces/n/pods/p/proxy/rewriteme\">test</a><img \
                         src=\"/api/v1/namespaces/n/pods/p/proxy/i?a=1&amp;b=2\">\
                         <script>var a = '<a href=\"/no\">';</script><a href=\"b\">";

    #[tokio::test]
    async fn pages_are_rewritten_and_all_else_is_left() {
        let html = ("content-type", "text/html; charset=utf-8");
        let (headers, body) = sent(&[html, ("content-length", "9")], PAGE.as_bytes()).await;
        assert_eq!(String::from_utf8_lossy(&body), RIGHT);
        assert!(headers.get("content-length").is_none());
        let (_, body) = sent(&[("content-type", "text/plain")], PAGE.as_bytes()).await;
        assert_eq!(String::from_utf8_lossy(&body), PAGE);
        let (_, body) = sent(&[html, ("content-encoding", "br")], PAGE.as_bytes()).await;
        assert_eq!(String::from_utf8_lossy(&body), PAGE, "nobody here can read it");
    }

    #[tokio::test]
    async fn a_packed_page_is_packed_again() {
        let html = ("content-type", "text/html");
        let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
        packer.write_all(PAGE.as_bytes()).expect("written");
        let (_, body) = sent(&[html, ("content-encoding", "gzip")], &packer.finish().expect("packed")).await;
        let mut unpacker = MultiGzDecoder::new(Vec::new());
        unpacker.write_all(&body).expect("read");
        assert_eq!(String::from_utf8_lossy(&unpacker.finish().expect("unpacked")), RIGHT);
        let mut packer = DeflateEncoder::new(Vec::new(), Compression::fast());
        packer.write_all(PAGE.as_bytes()).expect("written");
        let (_, body) =
            sent(&[html, ("content-encoding", "deflate")], &packer.finish().expect("packed")).await;
        let mut unpacker = DeflateDecoder::new(Vec::new());
        unpacker.write_all(&body).expect("read");
        assert_eq!(String::from_utf8_lossy(&unpacker.finish().expect("unpacked")), RIGHT);
    }

    #[tokio::test]
    async fn who_is_sent_elsewhere_stays_behind_the_proxy() {
        let mut reply = Response::new(Full::from("").map_err(|never| match never {}).boxed_unsync());
        reply.headers_mut().insert(LOCATION, HeaderValue::from_static("/login"));
        reply.headers_mut().insert("access-control-allow-origin", HeaderValue::from_static("*"));
        let reply = set_right(reply, place());
        assert_eq!(reply.headers()[LOCATION], "/api/v1/namespaces/n/pods/p/proxy/login");
        assert!(reply.headers().get("access-control-allow-origin").is_none());
    }
}
