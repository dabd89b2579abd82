//! The authenticating proxy: it proves by its certificate that it is one, and tells in headers who asks.

use http::{HeaderMap, HeaderName};

use super::User;
use super::certificate::Peer;

/// Which headers tell what, and which proxies are believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestHeader {
    /// The authority of the proxies' certificates, PEM.
    pub ca: String,
    /// The common names of the proxies; any, where there are none.
    pub allowed_names: Vec<String>,
    /// The first of these that is there tells the name.
    pub user: Vec<String>,
    pub uid: Vec<String>,
    /// All of these tell groups.
    pub groups: Vec<String>,
    /// What follows these prefixes is the key of what else is told.
    pub extra_prefixes: Vec<String>,
}

impl RequestHeader {
    /// What a cluster's own front proxy, whose authority this is, tells by (upstream's names).
    pub fn of_front_proxy(ca: &str) -> Self {
        let one = |name: &str| vec![name.to_owned()];
        RequestHeader {
            ca: ca.to_owned(),
            allowed_names: one("front-proxy-client"),
            user: one("X-Remote-User"),
            uid: one("X-Remote-Uid"),
            groups: one("X-Remote-Group"),
            extra_prefixes: one("X-Remote-Extra-"),
        }
    }

    /// Who asks, as a proxy tells it.
    ///
    /// # Errors
    /// There is a certificate that is no proxy's.
    #[allow(clippy::result_unit_err, reason = "why is told to nobody")]
    pub fn who(&self, peer: &Peer, headers: &HeaderMap) -> Result<Option<User>, ()> {
        let Some(proxy) = peer.proxy()? else { return Ok(None) };
        if !self.allowed_names.is_empty() && !self.allowed_names.iter().any(|name| name == proxy) {
            return Err(());
        }
        let Some(name) = first(headers, &self.user) else { return Ok(None) };
        let mut user = User { name, uid: first(headers, &self.uid).unwrap_or_default(), ..User::default() };
        let groups = self.groups.iter().flat_map(|name| headers.get_all(name.as_str()));
        user.groups.extend(groups.filter_map(|value| value.to_str().ok()).map(str::to_owned));
        for (name, value) in headers {
            let key = self.extra_prefixes.iter().find_map(|prefix| after(name, prefix));
            if let (Some(key), Ok(value)) = (key, value.to_str()) {
                let key = crate::request::percent_decode(key);
                user.extra.entry(key).or_default().push(value.to_owned());
            }
        }
        Ok(Some(user.told_by_others()))
    }

    /// Takes the headers away, so that nobody further on believes them.
    pub fn strip(&self, headers: &mut HeaderMap) {
        for name in self.user.iter().chain(&self.uid).chain(&self.groups) {
            headers.remove(name.as_str());
        }
        let extra: Vec<HeaderName> = headers
            .keys()
            .filter(|name| self.extra_prefixes.iter().any(|prefix| after(name, prefix).is_some()))
            .cloned()
            .collect();
        for name in extra {
            headers.remove(name);
        }
    }
}

/// What follows a prefix, in whatever case it is written.
fn after<'a>(name: &'a HeaderName, prefix: &str) -> Option<&'a str> {
    name.as_str().strip_prefix(prefix.to_ascii_lowercase().as_str())
}

fn first(headers: &HeaderMap, names: &[String]) -> Option<String> {
    let values = names.iter().filter_map(|name| headers.get(name.as_str())?.to_str().ok());
    values.map(str::to_owned).find(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::auth::AUTHENTICATED;
    use crate::auth::certificate::Authorities;
    use crate::auth::certificate::tests::Ca;

    #[test]
    fn a_proxy_is_believed_and_nobody_else() {
        let (clients, proxies) = (Ca::new("clients"), Ca::new("proxies"));
        let authorities = Authorities::new(&clients.pem, &proxies.pem).expect("authorities");
        let list = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let proxy = RequestHeader {
            ca: proxies.pem.clone(),
            allowed_names: list(&["front"]),
            user: list(&["X-Remote-User"]),
            uid: list(&["X-Remote-Uid"]),
            groups: list(&["X-Remote-Group"]),
            extra_prefixes: list(&["X-Remote-Extra-"]),
        };
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-remote-user", "amy"),
            ("x-remote-uid", "42"),
            ("x-remote-group", "dev"),
            ("x-remote-group", "ops"),
            ("x-remote-extra-example.org%2fscope", "s"),
        ] {
            headers.append(name, value.parse().expect("a value"));
        }
        let told = |certificate| proxy.who(&authorities.peer(&[certificate]), &headers);
        let amy = told(proxies.client("front", &[])).expect("proved").expect("told");
        assert_eq!((amy.name.as_str(), amy.uid.as_str()), ("amy", "42"));
        assert_eq!(amy.groups, ["dev", "ops", AUTHENTICATED]);
        assert_eq!(amy.extra["example.org/scope"], ["s"]);
        let nobody = [("x-remote-user", "system:anonymous"), ("x-remote-group", "system:unauthenticated")];
        let value = |(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value));
        let nobody = HeaderMap::from_iter(nobody.map(value));
        let front = authorities.peer(&[proxies.client("front", &[])]);
        assert_eq!(proxy.who(&front, &nobody), Ok(Some(User::anonymous())));
        assert_eq!(told(proxies.client("other", &[])), Err(()), "a name that is not allowed");
        assert_eq!(told(clients.client("front", &[])), Err(()), "another authority's");
        assert_eq!(proxy.who(&Peer::default(), &headers), Ok(None), "no certificate");
        assert_eq!(proxy.who(&front, &HeaderMap::new()), Ok(None), "nobody is told");
        headers.insert("x-other", "stays".parse().expect("a value"));
        proxy.strip(&mut headers);
        assert_eq!(headers.len(), 1);
    }
}
