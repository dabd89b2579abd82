//! URLs, as Go's `url.ParseRequestURI` takes them: absolute, or a path from the root.

use std::collections::BTreeMap;

use http::Uri;

use crate::cel::value::{Opaque, Value};
use crate::cel::{Error, Result};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    scheme: String,
    host: String,
    path: String,
    query: String,
}

impl Url {
    pub fn parse(text: &str) -> Option<Url> {
        let text = text.split('#').next().unwrap_or_default();
        let uri: Uri = text.parse().ok()?;
        let absolute = uri.scheme().is_some();
        if !absolute && !text.starts_with('/') {
            return None;
        }
        let authority = uri.authority().map(http::uri::Authority::as_str).unwrap_or_default();
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        // The path of a URI without one is not written in it.
        let path = if absolute && !text.split("://").nth(1).is_some_and(|rest| rest.contains('/')) {
            ""
        } else {
            uri.path()
        };
        Some(Url {
            scheme: uri.scheme_str().unwrap_or_default().to_owned(),
            host: host.to_owned(),
            path: path.to_owned(),
            query: uri.query().unwrap_or_default().to_owned(),
        })
    }

    fn split_host(&self) -> (&str, &str) {
        if let Some(rest) = self.host.strip_prefix('[') {
            let (name, port) = rest.split_once(']').unwrap_or((rest, ""));
            return (name, port.trim_start_matches(':'));
        }
        self.host.rsplit_once(':').unwrap_or((&self.host, ""))
    }

    fn query(&self) -> Value {
        let mut all: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        let query = crate::request::Query::parse(Some(&self.query));
        for (key, value) in query.pairs() {
            all.entry(key.to_owned()).or_default().push(Value::string(value));
        }
        Value::map(all.into_iter().map(|(key, values)| (key, Value::list(values))))
    }
}

pub fn call(name: &str, args: &[Value]) -> Option<Result<Value>> {
    let [first] = args else { return None };
    if let Value::String(text) = first {
        return Some(match (name, Url::parse(text)) {
            ("isURL", url) => Ok(Value::Bool(url.is_some())),
            ("url", Some(url)) => Ok(Value::opaque(Opaque::Url(url))),
            ("url", None) => Err(Error::new(format!(
                "URL parse error during conversion from string: parse {text:?}: invalid URI for request"
            ))),
            _ => return None,
        });
    }
    let Value::Opaque(opaque) = first else { return None };
    let Opaque::Url(url) = &**opaque else { return None };
    Some(Ok(match name {
        "getScheme" => Value::string(url.scheme.as_str()),
        "getHost" => Value::string(url.host.as_str()),
        "getHostname" => Value::string(url.split_host().0),
        "getPort" => Value::string(url.split_host().1),
        "getEscapedPath" => Value::string(url.path.as_str()),
        "getQuery" => url.query(),
        _ => return None,
    }))
}
