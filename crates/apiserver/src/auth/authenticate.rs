//! Who asks: an authenticating proxy's word, a client certificate, a bearer token, or nobody; asked in this order, as
//! upstream. HTTP basic authentication is none of them.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use rustls::pki_types::CertificateDer;

use super::bootstrap_token::BootstrapTokens;
use super::certificate::{Authorities, AuthorityError, Peer};
use super::jwt::{self, Issuers, KeySets};
use super::reload::Followed;
use super::request_header::RequestHeader;
use super::service_accounts::ServiceAccounts;
use super::token_file::TokenFile;
use super::token_webhook::{self, TokenWebhook};
use super::tokens::{Tokens, Union};
use super::{Signer, User, aggregate, token};
use crate::kinds::Kinds;
use crate::logs;

/// The credentials are wrong. (Who brings none is anonymous.)
#[derive(Debug, PartialEq, Eq)]
pub struct Unauthorized;

/// Why callers cannot be known as they are to be.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the authority of client certificates: {0}")]
    Authority(#[from] AuthorityError),
    #[error("the issuer of tokens: {0}")]
    Issuer(String),
    #[error("the token webhook: {0}")]
    Webhook(String),
}

/// Whether requests without credentials are served, and at which paths (all, where there are none).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anonymous {
    pub enabled: bool,
    pub paths: Vec<String>,
}

impl Default for Anonymous {
    fn default() -> Self {
        Anonymous { enabled: true, paths: Vec::new() }
    }
}

impl Anonymous {
    fn is_allowed(&self, path: &str) -> bool {
        self.enabled && (self.paths.is_empty() || self.paths.iter().any(|allowed| allowed == path))
    }
}

/// How callers prove who they are.
#[derive(Clone, Default)]
pub struct Settings {
    pub request_header: Option<RequestHeader>,
    pub token_file: TokenFile,
    pub service_accounts: token::Settings,
    pub bootstrap_tokens: bool,
    pub anonymous: Anonymous,
    pub token_webhook: Option<token_webhook::Settings>,
    /// Others whose tokens are taken.
    pub jwt: Vec<jwt::Settings>,
    /// The file that names them, if there is one.
    pub file: Option<Followed>,
}

impl Settings {
    /// Those of a server that signs ServiceAccount tokens with this key, PEM.
    pub fn signing_with(key: String) -> Self {
        Settings {
            service_accounts: token::Settings { key, extend: true, ..token::Settings::default() },
            ..Settings::default()
        }
    }
}

/// What is known of a caller before his request is read.
#[derive(Clone)]
pub enum Caller {
    /// A component of this process.
    Component(Arc<User>),
    /// The other side of a connection.
    Peer(Arc<Peer>),
}

impl Caller {
    /// How long the certificate still lasts that has proved who this user is, if one has.
    pub fn certificate_lasts(&self, user: &User) -> Option<Duration> {
        match self {
            Caller::Peer(peer) => peer.lasts_for(user),
            Caller::Component(_) => None,
        }
    }
}

/// Knows users by their credentials.
pub struct Authenticator {
    authorities: Authorities,
    request_header: Option<RequestHeader>,
    tokens: Union,
    issuers: Arc<Issuers>,
    anonymous: Anonymous,
    /// The audiences that this server is one of.
    audiences: Vec<String>,
}

impl Authenticator {
    /// `client_ca` is the authority of client certificates, PEM; `key_sets` is told what keys issuers have.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(
        settings: &Settings,
        client_ca: &str,
        signer: &Arc<Signer>,
        kinds: &Arc<Kinds>,
        key_sets: Arc<KeySets>,
    ) -> Result<Self, OpenError> {
        let proxies = settings.request_header.as_ref().map(|proxy| proxy.ca.as_str()).unwrap_or_default();
        let mut sources: Vec<Box<dyn Tokens>> = vec![
            Box::new(settings.token_file.clone()),
            Box::new(ServiceAccounts::new(Arc::clone(signer), Arc::clone(kinds))),
        ];
        if settings.bootstrap_tokens {
            sources.push(Box::new(BootstrapTokens::new(Arc::clone(kinds))));
        }
        // After those of this cluster: these may have their issuers asked.
        let issuers = Arc::new(Issuers::new(&settings.jwt, key_sets).map_err(OpenError::Issuer)?);
        sources.push(Box::new(Arc::clone(&issuers)));
        if let Some(webhook) = &settings.token_webhook {
            let opened = TokenWebhook::open(webhook.clone()).await;
            sources.push(Box::new(opened.map_err(OpenError::Webhook)?));
        }
        Ok(Authenticator {
            authorities: Authorities::new(client_ca, proxies)?,
            request_header: settings.request_header.clone(),
            tokens: Union::new(sources, signer.audiences.clone()),
            issuers,
            anonymous: settings.anonymous.clone(),
            audiences: signer.audiences.clone(),
        })
    }

    /// The issuers whose tokens are taken.
    pub fn issuers(&self) -> Arc<Issuers> {
        Arc::clone(&self.issuers)
    }

    /// What a connection's certificates prove.
    pub fn peer(&self, chain: &[CertificateDer<'_>]) -> Peer {
        self.authorities.peer(chain)
    }

    /// Who sent a request to `path` with these headers.
    ///
    /// # Errors
    /// He proves nothing by what he brings, or brings nothing where that is not enough.
    pub async fn who(
        &self,
        headers: &HeaderMap,
        caller: &Caller,
        path: &str,
    ) -> Result<Arc<User>, Unauthorized> {
        let peer = match caller {
            Caller::Component(user) => return Ok(Arc::clone(user)),
            Caller::Peer(peer) => peer,
        };
        let mut failed = false;
        let told = self.request_header.as_ref().map(|proxy| proxy.who(peer, headers));
        let told = told.map(|told| told.map(|user| user.map(Arc::new)));
        for found in [told, Some(peer.user())].into_iter().flatten() {
            match found {
                Ok(Some(user)) => return Ok(user),
                Ok(None) => {}
                Err(()) => failed = true,
            }
        }
        let offered = of_websocket(headers).unwrap_or_else(|why| {
            tracing::debug!(why, "a WebSocket's token is none");
            failed = true;
            None
        });
        if let Some(token) = bearer(headers).or(offered) {
            return match self.tokens.whose(&token, &self.audiences).await {
                Ok((user, _)) => Ok(Arc::new(user)),
                Err(why) => {
                    tracing::debug!(?why, "a token is nobody's");
                    Err(Unauthorized)
                }
            };
        }
        // Who fails is not nobody.
        if failed || !self.anonymous.is_allowed(path) {
            Err(Unauthorized)
        } else {
            Ok(Arc::new(User::anonymous()))
        }
    }

    /// Takes away by what the caller has proved who he is: it is nobody's business further on.
    pub fn strip(&self, headers: &mut HeaderMap) {
        headers.remove(AUTHORIZATION);
        if let Some(proxy) = &self.request_header {
            proxy.strip(headers);
        }
    }

    /// Whose a token is that somebody shows us, and for which of the audiences it is good; this server's where none are
    /// asked for.
    ///
    /// # Errors
    /// It is nobody's, or what it is bound to is gone: why, in upstream's words.
    pub async fn by_token(&self, token: &str, audiences: &[String]) -> Result<(User, Vec<String>), String> {
        let audiences = if audiences.is_empty() { &self.audiences } else { audiences };
        self.tokens.whose(token, audiences).await.map_err(nobodys)
    }
}

/// What is said of a token that nobody knows. Upstream asks for its own token first, which this is not either.
fn nobodys(why: Vec<String>) -> String {
    aggregate(std::iter::once("invalid bearer token".to_owned()).chain(why))
}

/// The token of a request. Only one blank stands before it, as upstream has it, and what follows it is no part of it.
fn bearer(headers: &HeaderMap) -> Option<String> {
    let mut words = headers.get(AUTHORIZATION)?.to_str().ok()?.trim().split(' ');
    let (scheme, token) = (words.next()?, words.next()?);
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then(|| token.to_owned())
}

/// The token of a page's WebSocket, which cannot set headers: it is among the subprotocols.
///
/// # Errors
/// There is no other subprotocol that could be agreed on, or it is no one token.
fn of_websocket(headers: &HeaderMap) -> Result<Option<String>, &'static str> {
    if !logs::is_websocket(headers) {
        return Ok(None);
    }
    let (mut token, mut others) = (None, 0);
    for protocol in logs::offered(headers) {
        let Some(encoded) = protocol.strip_prefix(logs::TOKEN) else {
            others += 1;
            continue;
        };
        if token.is_some() {
            return Err("more than one token");
        }
        let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| "not base64")?;
        token = Some(String::from_utf8(bytes).map_err(|_| "not text")?);
    }
    match token.filter(|token| !token.is_empty()) {
        Some(_) if others == 0 => Err("no other subprotocol"),
        token => Ok(token),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anonymous_requests_are_served_where_they_are_let() {
        let with = |enabled, paths: &[&str]| Anonymous {
            enabled,
            paths: paths.iter().map(|&path| path.to_owned()).collect(),
        };
        for (anonymous, path, allowed) in [
            (Anonymous::default(), "/api", true),
            (with(false, &[]), "/healthz", false),
            (with(true, &["/healthz", "/readyz"]), "/readyz", true),
            (with(true, &["/healthz"]), "/healthz/ping", false),
        ] {
            assert_eq!(anonymous.is_allowed(path), allowed, "{anonymous:?} {path}");
        }
    }

    #[test]
    fn what_is_known_of_nobodys_token_is_told() {
        assert_eq!(nobodys(Vec::new()), "invalid bearer token");
        let expired = "service account token has expired".to_owned();
        assert_eq!(nobodys(vec![expired]), "[invalid bearer token, service account token has expired]");
    }

    #[test]
    fn only_bearer_tokens_are_read() {
        let of = |name: &'static str, value: &str| {
            bearer(&HeaderMap::from_iter([(
                http::HeaderName::from_static(name),
                value.parse().expect("a value"),
            )]))
        };
        assert_eq!(of("authorization", "Bearer t ").as_deref(), Some("t"));
        assert_eq!(of("authorization", "Bearer t u").as_deref(), Some("t"));
        assert_eq!(of("authorization", "Bearer  t"), None);
        assert_eq!(of("authorization", "bearer t").as_deref(), Some("t"));
        assert_eq!(of("authorization", "Basic dTpw"), None);
        assert_eq!(of("authorization", "Bearer "), None);
    }

    #[test]
    fn a_websocket_offers_one_token_beside_its_protocol() {
        let of = |protocols: &str| {
            let headers =
                [("upgrade", "websocket"), ("connection", "Upgrade"), ("sec-websocket-protocol", protocols)];
            let header = |(name, value): (&'static str, &str)| {
                (http::HeaderName::from_static(name), value.parse().expect("a value"))
            };
            of_websocket(&headers.into_iter().map(header).collect())
        };
        let token = format!("{}dA", logs::TOKEN);
        assert_eq!(of(&format!("v5.channel.k8s.io, {token}")), Ok(Some("t".to_owned())));
        assert_eq!(of("v5.channel.k8s.io"), Ok(None));
        assert_eq!(of(&token), Err("no other subprotocol"));
        assert_eq!(of(&format!("{token}, v5.channel.k8s.io, {token}")), Err("more than one token"));
        assert_eq!(of(&format!("{}?, v5.channel.k8s.io", logs::TOKEN)), Err("not base64"));
    }
}
