//! The headers of what is passed on: what stays behind, and what is said of those by whom it came.

use std::net::SocketAddr;

use http::header::{CONNECTION, HeaderName, TE, UPGRADE};
use http::{HeaderMap, HeaderValue};

const FORWARDED_FOR: &str = "x-forwarded-for";

/// Whether a client speaks with somebody behind this server by a subresource, and not with the server.
pub fn leads_on(subresource: &str) -> bool {
    matches!(subresource, "proxy" | "exec" | "attach" | "portforward")
}

/// Says by whom a request has come, behind those by whom it came to him.
pub fn forwarded_for(headers: &mut HeaderMap, peer: Option<SocketAddr>) {
    let Some(peer) = peer else { return };
    let before = headers.get_all(FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok());
    let all: Vec<String> = before.map(str::to_owned).chain([peer.ip().to_canonical().to_string()]).collect();
    if let Ok(all) = HeaderValue::try_from(all.join(", ")) {
        headers.insert(FORWARDED_FOR, all);
    }
}

/// The headers that go on: not those that are the caller's proof, nor those of this connection.
pub fn passed(headers: &HeaderMap, upgrades: bool) -> HeaderMap {
    const OF_CONNECTION: [&str; 9] = [
        "authorization",
        "content-length",
        "transfer-encoding",
        "keep-alive",
        "te",
        "trailer",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
    ];
    let mut out = headers.clone();
    for name in OF_CONNECTION {
        out.remove(name);
    }
    let words = |name: HeaderName| {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).map(str::trim)
    };
    if words(TE).any(|word| word.eq_ignore_ascii_case("trailers")) {
        out.insert(TE, HeaderValue::from_static("trailers"));
    }
    if !upgrades {
        for name in words(CONNECTION) {
            out.remove(name);
        }
    }
    let own: Vec<HeaderName> =
        out.keys().filter(|name| name.as_str().starts_with("impersonate-")).cloned().collect();
    for name in own {
        out.remove(name);
    }
    if !upgrades {
        out.remove(CONNECTION);
        out.remove(UPGRADE);
    }
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn headers_of_one_connection_stay_behind() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Own"),
            ("x-own", "1"),
            ("x-other", "2"),
            ("te", "gzip, trailers"),
            ("authorization", "Bearer t"),
            ("x-forwarded-for", "192.0.2.1"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        let mut out = passed(&headers, false);
        forwarded_for(&mut out, Some(SocketAddr::from(([10, 0, 0, 9], 1))));
        forwarded_for(&mut out, None);
        let told: Vec<_> = out.iter().map(|(name, v)| (name.as_str(), v.to_str().expect("text"))).collect();
        assert_eq!(
            told.into_iter().collect::<BTreeMap<_, _>>(),
            [("te", "trailers"), ("x-forwarded-for", "192.0.2.1, 10.0.0.9"), ("x-other", "2")].into()
        );
        assert!(passed(&headers, true).contains_key("connection"));
    }
}
