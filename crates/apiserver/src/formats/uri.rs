//! URIs, as Go's `url.ParseRequestURI` takes them, which is what upstream asks: with a scheme, or a path from the root. A
//! fragment is none here.

use std::borrow::Cow;
use std::fmt::Write as _;

/// A URI in its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uri<'a> {
    /// In small letters; empty where there is none.
    pub scheme: String,
    /// With its port, without the user before it.
    pub host: &'a str,
    pub path: &'a str,
    /// What follows the first question mark.
    pub query: &'a str,
}

/// Takes a URI apart.
///
/// # Errors
/// It is none; why, in Go's words.
pub fn parse(text: &str) -> Result<Uri<'_>, String> {
    parts(text).map_err(|why| format!("parse {text:?}: {why}"))
}

fn parts(text: &str) -> Result<Uri<'_>, Cow<'static, str>> {
    if text.bytes().any(|b| b.is_ascii_control()) {
        return Err("net/url: invalid control character in URL".into());
    }
    if text.is_empty() {
        return Err("empty url".into());
    }
    if text == "*" {
        return Ok(Uri { scheme: String::new(), host: "", path: text, query: "" });
    }
    let (scheme, rest) = scheme(text)?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    if !rest.starts_with('/') {
        if scheme.is_empty() {
            return Err("invalid URI for request".into());
        }
        // Such as `mailto:`, of which nothing more is asked.
        return Ok(Uri { scheme: scheme.to_ascii_lowercase(), host: "", path: "", query });
    }
    let (host, path) = match rest.strip_prefix("//").filter(|_| !scheme.is_empty()) {
        None => ("", rest),
        Some(rest) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            (self::host(authority)?, path)
        }
    };
    check_escapes(path)?;
    Ok(Uri { scheme: scheme.to_ascii_lowercase(), host, path, query })
}

/// The scheme, and what follows it; what does not look like one is none.
fn scheme(text: &str) -> Result<(&str, &str), Cow<'static, str>> {
    for (i, b) in text.bytes().enumerate() {
        match b {
            b'a'..=b'z' | b'A'..=b'Z' => {}
            b'0'..=b'9' | b'+' | b'-' | b'.' if i > 0 => {}
            b':' if i == 0 => return Err("missing protocol scheme".into()),
            b':' => return Ok((&text[..i], &text[i + 1..])),
            _ => break,
        }
    }
    Ok(("", text))
}

/// The host of an authority, whose user is checked and left out.
fn host(authority: &str) -> Result<&str, Cow<'static, str>> {
    let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(u, h)| (Some(u), h));
    let port = match host.rfind('[') {
        Some(_) => {
            let end = host.rfind(']').ok_or("missing ']' in host")?;
            &host[end + 1..]
        }
        None => host.rfind(':').map_or("", |at| &host[at..]),
    };
    let is_port = port.strip_prefix(':').map_or(port.is_empty(), |n| n.bytes().all(|b| b.is_ascii_digit()));
    if !is_port {
        return Err(format!("invalid port {port:?} after host").into());
    }
    // Escaped bytes are for names of other scripts, and the percent sign before a zone.
    let is_foreign =
        |escape: &str| escape.starts_with(['8', '9', 'a', 'b', 'c', 'd', 'e', 'f']) || escape == "25";
    for (at, _) in host.match_indices('%') {
        let escape = escape_at(host, at)?;
        if !is_foreign(&escape.to_ascii_lowercase()) {
            return Err(format!("invalid URL escape \"%{escape}\"").into());
        }
    }
    if let Some(wrong) = host.chars().find(|c| c.is_ascii() && *c != '%' && !is_of_host(*c)) {
        let wrong = wrong.to_string();
        return Err(format!("invalid character {wrong:?} in host name").into());
    }
    let Some(user) = user else { return Ok(host) };
    if !user.chars().all(|c| c.is_ascii_alphanumeric() || "-._:~!$&'()*+,;=%@".contains(c)) {
        return Err("net/url: invalid userinfo".into());
    }
    check_escapes(user)?;
    Ok(host)
}

fn is_of_host(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-_.~!$&'()*+,;=:[]<>\"".contains(c)
}

/// The two digits after a percent sign.
fn escape_at(text: &str, at: usize) -> Result<&str, Cow<'static, str>> {
    let digits = text.get(at + 1..at + 3).filter(|two| two.bytes().all(|b| b.is_ascii_hexdigit()));
    digits.ok_or_else(|| {
        let seen: String = text[at..].chars().take(3).collect();
        format!("invalid URL escape {seen:?}").into()
    })
}

fn check_escapes(text: &str) -> Result<(), Cow<'static, str>> {
    text.match_indices('%').try_for_each(|(at, _)| escape_at(text, at).map(drop))
}

impl Uri<'_> {
    /// The path with all escaped that has to be.
    pub fn escaped_path(&self) -> String {
        let mut out = String::with_capacity(self.path.len());
        for b in self.path.bytes() {
            let stays = b.is_ascii_alphanumeric() || b"-_.~!$&'()*+,;=:@/[]%".contains(&b);
            if stays {
                out.push(char::from(b));
            } else {
                let _ = write!(out, "%{b:02X}");
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_is_taken_apart() {
        let uri = parse("HTTPS://me:x@Example.com:80/a b/%41?q=%zz&r#s").expect("a URI");
        assert_eq!((&*uri.scheme, uri.host, uri.query), ("https", "Example.com:80", "q=%zz&r#s"));
        assert_eq!(uri.escaped_path(), "/a%20b/%41");
        let uri = parse("https://[::1]:80").expect("a URI");
        assert_eq!((uri.host, uri.path, uri.query), ("[::1]:80", "", ""));
        let uri = parse("//a/b").expect("a path");
        assert_eq!((&*uri.scheme, uri.host, uri.path), ("", "", "//a/b"));
        assert_eq!(parse("mailto:x@y?z").map(|uri| uri.query), Ok("z"));
        assert!(parse("*").is_ok() && parse("http://%C3%A4.example/").is_ok());
    }

    #[test]
    fn what_is_no_uri_is_told_why_in_gos_words() {
        for (text, why) in [
            ("", "empty url"),
            ("a/b", "invalid URI for request"),
            ("../a", "invalid URI for request"),
            (":a", "missing protocol scheme"),
            ("/a\nb", "net/url: invalid control character in URL"),
            ("http://a b/", "invalid character \" \" in host name"),
            ("http://a:x/", "invalid port \":x\" after host"),
            ("http://[::1/", "missing ']' in host"),
            ("http://a%41/", "invalid URL escape \"%41\""),
            ("http://a@b c@d/", "net/url: invalid userinfo"),
            ("/%2", "invalid URL escape \"%2\""),
            ("/%zz/", "invalid URL escape \"%zz\""),
        ] {
            assert_eq!(parse(text), Err(format!("parse {text:?}: {why}")));
        }
    }
}
