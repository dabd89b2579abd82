//! Who asks, and whether it may: the subject of a client certificate, or whom a TokenReview knows by a bearer token; and
//! a SubjectAccessReview, as upstream's webhook mode makes it.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

use http::{HeaderMap, Method, header};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use krate_client::Client;
use kube::Api;
use kube::api::PostParams;
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

const KEPT: usize = 1024;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// Who shows nothing, where that is allowed.
    fn anonymous() -> Self {
        User {
            name: "system:anonymous".to_owned(),
            uid: String::new(),
            groups: vec!["system:unauthenticated".to_owned()],
            extra: BTreeMap::new(),
        }
    }
}

/// Knows who asks.
pub struct Authenticator {
    client: Client,
    anonymous: bool,
    tokens: bool,
    /// How long it is remembered whose a token is.
    ttl: Duration,
    hasher: RandomState,
    /// By the hash of the token: a token itself is not kept.
    known: Mutex<HashMap<u64, (Option<User>, Instant)>>,
}

impl Authenticator {
    pub fn new(client: Client, config: &crate::config::Config) -> Self {
        Authenticator {
            client,
            anonymous: config.anonymous_auth,
            tokens: config.token_webhook,
            ttl: config.token_ttl,
            hasher: RandomState::new(),
            known: Mutex::new(HashMap::new()),
        }
    }

    /// Who a request is from: `certificate` is who the connection's certificate speaks for. `None`: nobody that is
    /// known.
    pub async fn who(&self, certificate: Option<&User>, headers: &HeaderMap) -> Option<User> {
        if let Some(user) = certificate {
            return Some(user.clone());
        }
        let shown = headers.get(header::AUTHORIZATION).and_then(|h| h.to_str().ok());
        match shown.and_then(|h| h.split_once(' ')).filter(|(kind, _)| kind.eq_ignore_ascii_case("bearer")) {
            Some((_, token)) if self.tokens && !token.trim().is_empty() => self.review(token.trim()).await,
            // What is shown and is no good is not as good as nothing.
            Some(_) => None,
            None => self.anonymous.then(User::anonymous),
        }
    }

    async fn review(&self, token: &str) -> Option<User> {
        let key = self.hasher.hash_one(token);
        if let Some((user, at)) = self.known.lock().get(&key)
            && at.elapsed() < self.ttl
        {
            return user.clone();
        }
        let spec = TokenReviewSpec { token: token.to_owned(), audiences: None };
        let review = TokenReview { spec, ..Default::default() };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let status = match api.create(&PostParams::default(), &review).await {
            Ok(answer) => answer.status.unwrap_or_default(),
            Err(error) => {
                tracing::warn!(%error, "a token could not be reviewed");
                return None;
            }
        };
        let user = status.user.filter(|_| status.authenticated == Some(true)).map(|user| User {
            name: user.username.unwrap_or_default(),
            uid: user.uid.unwrap_or_default(),
            groups: user.groups.unwrap_or_default(),
            extra: user.extra.unwrap_or_default(),
        });
        let mut known = self.known.lock();
        if known.len() >= KEPT {
            known.clear();
        }
        known.insert(key, (user.clone(), Instant::now()));
        user
    }
}

/// The user that a verified certificate speaks for: its common name, and its organizations as groups.
pub fn user(certificate: &CertificateDer<'_>) -> Option<User> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let subject = parsed.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let mut groups: Vec<String> =
        subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
    groups.push("system:authenticated".to_owned());
    Some(User { name, uid: String::new(), groups, extra: BTreeMap::new() })
}

/// The subresource of nodes that a path belongs to.
pub fn subresource(path: &str) -> &'static str {
    let is = |root: &str| path == root || path.strip_prefix(root).is_some_and(|rest| rest.starts_with('/'));
    match () {
        () if is("/stats") => "stats",
        () if is("/checkpoint") => "checkpoint",
        () if is("/statusz") => "statusz",
        () if is("/flagz") => "flagz",
        () if is("/metrics") => "metrics",
        () if is("/logs") => "log",
        () if is("/healthz") => "healthz",
        () if is("/configz") => "configz",
        () if is("/pods") || is("/runningpods") => "pods",
        () => "proxy",
    }
}

pub fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    }
}

type Question = (User, &'static str, &'static str);

/// Asks the API server, and remembers.
pub struct Authorizer {
    client: Client,
    node: String,
    always: bool,
    /// How long it is remembered what was allowed, and what was refused.
    ttls: (Duration, Duration),
    known: Mutex<HashMap<Question, (bool, Instant)>>,
}

impl Authorizer {
    pub fn new(client: Client, config: &crate::config::Config) -> Self {
        let (node, always) = (config.node_name.clone(), config.always_allow);
        Authorizer {
            client,
            node,
            always,
            ttls: (config.allowed_ttl, config.refused_ttl),
            known: Mutex::new(HashMap::new()),
        }
    }

    /// Whether the user may; where upstream falls back to `nodes/proxy`, this does too.
    ///
    /// # Errors
    /// The API server cannot be asked.
    pub async fn allows(
        &self,
        user: &User,
        verb: &'static str,
        subresource: &'static str,
    ) -> kube::Result<bool> {
        if self.always {
            return Ok(true);
        }
        let fine = matches!(subresource, "healthz" | "configz" | "pods");
        Ok(self.ask((user.clone(), verb, subresource)).await?
            || fine && self.ask((user.clone(), verb, "proxy")).await?)
    }

    async fn ask(&self, question: Question) -> kube::Result<bool> {
        if let Some((allowed, at)) = self.known.lock().get(&question)
            && at.elapsed() < if *allowed { self.ttls.0 } else { self.ttls.1 }
        {
            return Ok(*allowed);
        }
        let (user, verb, subresource) = &question;
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                uid: Some(user.uid.clone()).filter(|u| !u.is_empty()),
                groups: Some(user.groups.clone()),
                extra: Some(user.extra.clone()).filter(|e| !e.is_empty()),
                resource_attributes: Some(ResourceAttributes {
                    verb: Some((*verb).to_owned()),
                    version: Some("v1".to_owned()),
                    resource: Some("nodes".to_owned()),
                    subresource: Some((*subresource).to_owned()),
                    name: Some(self.node.clone()),
                    ..Default::default()
                }),
                ..Default::default()
            },
            ..Default::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let answer = api.create(&PostParams::default(), &review).await?;
        let allowed = answer.status.is_some_and(|s| s.allowed);
        let mut known = self.known.lock();
        if known.len() >= KEPT {
            known.clear();
        }
        known.insert(question, (allowed, Instant::now()));
        Ok(allowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_subresources_of_nodes() {
        for (path, expected) in [
            ("/stats/summary", "stats"),
            ("/metrics/cadvisor", "metrics"),
            ("/logs/x", "log"),
            ("/configz", "configz"),
            ("/metrics/probes", "metrics"),
            ("/checkpoint/n/p/c", "checkpoint"),
            ("/pods", "pods"),
            ("/podsy", "proxy"),
            ("/exec/n/p/c", "proxy"),
            ("/containerLogs/n/p/c", "proxy"),
        ] {
            assert_eq!(subresource(path), expected, "{path}");
        }
    }

    /// An API server that knows one token.
    fn api() -> Client {
        use http_body_util::BodyExt as _;
        krate_client::in_process(tower::service_fn(|request: http::Request<kube::client::Body>| async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let mut review: serde_json::Value = serde_json::from_slice(&body).unwrap();
            review["status"] = if review["spec"]["token"] == "good" {
                serde_json::json!({"authenticated": true, "user": {"username": "jane", "groups": ["dev"]}})
            } else {
                serde_json::json!({"authenticated": false})
            };
            let body = http_body_util::Full::new(bytes::Bytes::from(review.to_string()));
            Ok::<_, std::convert::Infallible>(http::Response::new(body))
        }))
    }

    #[tokio::test]
    async fn tokens_are_reviewed_and_nobody_is_let_in_unasked() {
        let mut config = crate::config::Config::new("n", "10.0.0.1".parse().unwrap(), "/tmp/x");
        let headers = |value: Option<&str>| -> HeaderMap {
            value.map(|v| (header::AUTHORIZATION, v.parse().unwrap())).into_iter().collect()
        };
        for (anonymous, shown, name) in [
            (false, Some("Bearer good"), Some("jane")),
            (false, Some("Bearer bad"), None),
            (false, None, None),
            (true, None, Some("system:anonymous")),
            (true, Some("Bearer bad"), None),
            (true, Some("Basic x"), Some("system:anonymous")),
        ] {
            config.anonymous_auth = anonymous;
            let authenticator = Authenticator::new(api(), &config);
            for _ in 0..2 {
                let who = authenticator.who(None, &headers(shown)).await;
                assert_eq!(who.map(|u| u.name).as_deref(), name, "{shown:?}");
            }
        }
        let certified = User { name: "kim".into(), ..User::anonymous() };
        let authenticator = Authenticator::new(api(), &config);
        assert_eq!(authenticator.who(Some(&certified), &headers(Some("Bearer good"))).await, Some(certified));
    }

    #[test]
    fn a_certificate_names_its_user() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "jane");
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:masters");
        let certificate = params.self_signed(&key).unwrap();
        let found = user(certificate.der()).unwrap();
        assert_eq!(found.name, "jane");
        assert_eq!(found.groups, ["system:masters", "system:authenticated"]);
    }
}
