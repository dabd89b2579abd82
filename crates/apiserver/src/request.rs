//! What a request is about, read from its method and path once (`k8s.io/apiserver/pkg/endpoints/request`).

use std::borrow::Cow;
use std::fmt::Write as _;

use http::Method;

/// A request taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// As RBAC names it: `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; for a path that
    /// is no resource's, the method in lower case.
    pub verb: &'static str,
    pub path: String,
    pub is_resource: bool,
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub resource: String,
    pub subresource: String,
    pub name: String,
    /// The field selector of a list, a watch or the deletion of a collection.
    pub field_selector: String,
    /// The label selector of one.
    pub label_selector: String,
    /// What follows the subresource: the path that a proxy is to ask.
    pub rest: String,
}

impl RequestInfo {
    /// Whether it is answered for as long as it lasts, as upstream's `longRunningRequestCheck` has it.
    pub fn is_long_running(&self) -> bool {
        self.verb == "watch"
            || matches!(self.subresource.as_str(), "attach" | "exec" | "log" | "portforward" | "proxy")
    }

    pub fn parse(method: &Method, path: &str, query: &Query) -> Self {
        let decoded;
        let path = if path.contains('%') {
            decoded = percent_decode(path);
            &decoded
        } else {
            path
        };
        let mut info =
            RequestInfo { verb: method_verb(method), path: path.to_owned(), ..RequestInfo::default() };
        let mut parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        match parts.first() {
            Some(&"api") if parts.len() >= 3 => {
                parts[1].clone_into(&mut info.version);
                parts.drain(..2);
            }
            Some(&"apis") if parts.len() >= 4 => {
                parts[1].clone_into(&mut info.group);
                parts[2].clone_into(&mut info.version);
                parts.drain(..3);
            }
            _ => return info,
        }
        info.is_resource = true;
        info.verb = resource_verb(method);
        // The old way to watch: /api/v1/watch/… Nothing is selected by it, as far as authorization goes.
        let is_old = parts[0] == "watch" && parts.len() > 1;
        if is_old {
            info.verb = "watch";
            parts.remove(0);
        }
        if parts[0] == "namespaces" && parts.len() > 1 {
            parts[1].clone_into(&mut info.namespace);
            // What follows is in the namespace, unless it is the namespace's own subresource.
            if parts.len() > 2 && !matches!(parts[2], "status" | "finalize") {
                parts.drain(..2);
            }
        }
        parts[0].clone_into(&mut info.resource);
        if let Some(name) = parts.get(1) {
            (*name).clone_into(&mut info.name);
        }
        if let Some(subresource) = parts.get(2) {
            (*subresource).clone_into(&mut info.subresource);
        }
        if parts.len() > 3 {
            let rest = parts[3..].join("/");
            rest.strip_prefix('/').unwrap_or(&rest).clone_into(&mut info.rest);
            if path.ends_with('/') {
                info.rest.push('/');
            }
        }
        if info.name.is_empty() {
            match info.verb {
                "get" if query.flag("watch") => info.verb = "watch",
                "get" => info.verb = "list",
                "delete" => info.verb = "deletecollection",
                _ => {}
            }
            if let Some(selector) = query.get("labelSelector").filter(|_| !is_old) {
                selector.clone_into(&mut info.label_selector);
            }
            if let Some(selector) = query.get("fieldSelector").filter(|_| !is_old) {
                selector.clone_into(&mut info.field_selector);
                // A selector of one name is, to authorization, about that object.
                if matches!(info.verb, "list" | "watch")
                    && let Some(name) = named(selector)
                {
                    info.name = name;
                }
            }
        }
        info
    }

    /// The same request as one that creates what it is about; none for what is one.
    pub fn as_create(&self) -> Option<Self> {
        (self.verb != "create").then(|| RequestInfo { verb: "create", ..self.clone() })
    }

    /// Whether the path names an object; a field selector of one name does not.
    pub fn has_name_in_path(&self) -> bool {
        !self.name.is_empty() && !matches!(self.verb, "list" | "deletecollection")
    }
}

fn named(selector: &str) -> Option<String> {
    selector.split(',').find_map(|term| {
        let (field, value) = term.split_once('=')?;
        (field == "metadata.name").then(|| value.trim_start_matches('=').to_owned()).filter(|v| is_segment(v))
    })
}

/// Whether a text can be the part of a path that names an object.
fn is_segment(text: &str) -> bool {
    !matches!(text, "" | "." | "..") && !text.contains(['/', '%'])
}

fn method_verb(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::HEAD => "head",
        Method::OPTIONS => "options",
        _ => "",
    }
}

fn resource_verb(method: &Method) -> &'static str {
    match *method {
        Method::GET | Method::HEAD => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    }
}

/// A query string's parameters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(query: Option<&str>) -> Self {
        let pairs = query.unwrap_or_default().split('&').filter(|p| !p.is_empty()).map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(value))
        });
        Query(pairs.collect())
    }

    /// The first value of a parameter; an empty one is as good as none.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str()).filter(|v| !v.is_empty())
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Whether a boolean parameter is set, by what is said of it first: `?watch`, `?watch=1`, `?watch=true`.
    pub fn flag(&self, name: &str) -> bool {
        let said = self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        said.is_some_and(|said| said != "0" && !said.eq_ignore_ascii_case("false"))
    }
}

/// What a text says in which bytes may stand as `%` and two digits.
pub fn percent_decode(text: &str) -> String {
    decode(&text.replace('+', "%2B"))
}

/// A path as it stands in a request: of its bytes some may only stand as `%` and two digits.
pub fn escape_path(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

fn decode(text: &str) -> String {
    if !text.contains(['%', '+']) {
        return text.to_owned();
    }
    let spaced: Cow<'_, str> = if text.contains('+') { text.replace('+', " ").into() } else { text.into() };
    let bytes = spaced.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = |at: usize| bytes.get(at).and_then(|b| (*b as char).to_digit(16));
        match (bytes[i], hex(i + 1), hex(i + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                i += 3;
            }
            (byte, ..) => {
                out.push(byte);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_as_upstream_reads_them() {
        let cases = [
            ("GET /api/v1/namespaces", "list  namespaces  "),
            ("GET /api/v1/namespaces/a", "get a namespaces a "),
            ("PUT /api/v1/namespaces/a/finalize", "update a namespaces a finalize"),
            ("GET /api/v1/namespaces/a/pods", "list a pods  "),
            ("GET /api/v1/namespaces/a/pods?watch=1", "watch a pods  "),
            ("GET /api/v1/namespaces/a/pods/p?watch=1", "get a pods p "),
            ("GET /api/v1/watch/namespaces/a/pods", "watch a pods  "),
            ("GET /api/v1/pods?fieldSelector=metadata.name%3Dx", "list  pods x "),
            ("DELETE /apis/apps/v1/namespaces/a/deployments", "deletecollection a deployments  "),
            ("PATCH /apis/apps/v1/namespaces/a/deployments/d/status", "patch a deployments d status"),
            ("POST /api/v1/namespaces/a/pods/p/exec?command=ls", "create a pods p exec"),
            ("GET /apis/apps/v1", "get    "),
            ("GET /healthz", "get    "),
            ("GET /api/v1/namespaces//pods", "list  pods  "),
            ("GET //api/v1/pods/", "list  pods  "),
            ("GET /api/v1/pods?fieldSelector=metadata.name%3D..", "list  pods  "),
            ("GET /api/v1/watch/pods?fieldSelector=metadata.name%3Dx", "watch  pods  "),
            ("GET /api/v1/pods?watch=fAlse&watch=1", "list  pods  "),
            (
                "GET /apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode",
                "get  clusterroles system:node ",
            ),
        ];
        for (request, expected) in cases {
            let (method, uri) = request.split_once(' ').expect("a method");
            let (path, query) = uri.split_once('?').map_or((uri, None), |(p, q)| (p, Some(q)));
            let method = method.parse().expect("a method");
            let info = RequestInfo::parse(&method, path, &Query::parse(query));
            let got = format!(
                "{} {} {} {} {}",
                info.verb, info.namespace, info.resource, info.name, info.subresource
            );
            assert_eq!(got, expected, "{request}");
        }
    }

    #[test]
    fn what_is_read_or_changed_may_have_to_be_created() {
        let info =
            |method| RequestInfo::parse(&method, "/api/v1/namespaces/a/pods/p/exec", &Query::default());
        let creating = info(Method::GET).as_create().expect("it only reads");
        assert_eq!(creating, info(Method::POST));
        assert_eq!(creating.as_create(), None);
    }

    #[test]
    fn a_path_is_written_as_it_was_read() {
        let path = "/a+b/%C3%A9%20%25x/~c;d=e";
        assert_eq!(percent_decode(path), "/a+b/\u{e9} %x/~c;d=e");
        assert_eq!(escape_path(&percent_decode(path)), path);
    }

    #[test]
    fn proxied_paths_keep_their_form() {
        for (path, rest) in [("/x/y/", "x/y/"), ("/x//y", "x//y"), ("//x", "x"), ("", ""), ("/", "")] {
            let path = format!("/api/v1/namespaces/a/services/s:80/proxy{path}");
            let info = RequestInfo::parse(&Method::GET, &path, &Query::default());
            assert_eq!(
                (info.name.as_str(), info.subresource.as_str(), info.rest.as_str()),
                ("s:80", "proxy", rest),
                "{path}"
            );
        }
    }
}
