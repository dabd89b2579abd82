//! URLs, as Go's `url.ParseRequestURI` takes them: absolute, or a path from the root.

use std::collections::BTreeMap;

use crate::cel::value::{Opaque, Value};
use crate::cel::{Error, Result};
use crate::formats::uri;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    scheme: String,
    host: String,
    path: String,
    query: String,
}

impl Url {
    /// # Errors
    /// It is none; why, in Go's words.
    pub fn parse(text: &str) -> std::result::Result<Url, String> {
        let uri = uri::parse(text)?;
        let (path, host, query) = (uri.escaped_path(), uri.host.to_owned(), uri.query.to_owned());
        Ok(Url { scheme: uri.scheme, host, path, query })
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
            ("isURL", url) => Ok(Value::Bool(url.is_ok())),
            ("url", Ok(url)) => Ok(Value::opaque(Opaque::Url(url))),
            ("url", Err(why)) => {
                Err(Error::new(format!("URL parse error during conversion from string: {why}")))
            }
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
