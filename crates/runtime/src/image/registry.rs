//! Speaking with one host of a registry: the distribution protocol, its challenges, and asking again where that helps.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use parking_lot::Mutex;
use reqwest::Response;
use serde::Deserialize;

use super::hosts::{Host, is_loopback};

/// How often a request is made at most while the registry is out of order.
const TRIES: u32 = 5;
/// The first pause between tries; each further one is twice as long.
const PAUSE: Duration = Duration::from_millis(100);
/// The longest pause that a registry may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How long a registry may keep silent.
const SILENCE: Duration = Duration::from_secs(30);
/// Bytes of the largest manifest that is taken.
const MAX_MANIFEST: usize = 8 << 20;

const MANIFESTS: &str = "application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.oci.image.index.v1+json, */*";

/// Who we say we are to a registry.
#[derive(Clone, Debug)]
pub enum Credentials {
    Anonymous,
    Basic {
        user: String,
        password: String,
    },
    /// A refresh token, for which the registry's authority gives out others.
    Identity(String),
    /// Shown as it is.
    Token(String),
}

#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("not found")]
    NotFound,
    #[error(
        "pull access denied, repository does not exist or may require authorization: server message: {0}"
    )]
    Denied(String),
    #[error("unexpected status from {method} request to {url}: {status}{said}")]
    Status { method: Method, url: String, status: StatusCode, said: String },
    #[error("failed to do request: {method} {url:?}: {why}")]
    Transport { method: Method, url: String, why: String },
    #[error("failed to authorize: {0}")]
    Challenge(String),
    #[error("{0}")]
    Setup(String),
}

impl RegistryError {
    /// Whether another try may go better.
    fn is_passing(&self) -> bool {
        match self {
            Self::Transport { .. } => true,
            Self::Status { status, .. } => {
                status.is_server_error()
                    || matches!(*status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
            }
            _ => false,
        }
    }
}

/// One host, as it is spoken to for one image.
pub struct Registry {
    host: Host,
    repository: String,
    /// The registry's name, told to a mirror that may stand for several.
    stands_for: Option<String>,
    client: reqwest::Client,
    credentials: Credentials,
    /// What is shown since the last challenge.
    shown: Mutex<Option<HeaderValue>>,
}

/// The beginning of a blob's content.
pub struct Content {
    /// The byte that it begins with.
    pub offset: u64,
    pub response: Response,
}

impl Registry {
    /// Speaks to `host` about `repository` of the registry called `registry`.
    ///
    /// # Errors
    /// A certificate that the host's configuration names cannot be used.
    pub fn new(
        host: Host,
        registry: &str,
        repository: &str,
        credentials: Credentials,
    ) -> Result<Self, RegistryError> {
        // The client takes the process's cryptography, and has none of its own.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = client(&host).map_err(RegistryError::Setup)?;
        let itself = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
        let stands_for = (host.authority != itself).then(|| registry.to_owned());
        Ok(Self {
            host,
            repository: repository.to_owned(),
            stands_for,
            client,
            credentials,
            shown: Mutex::new(None),
        })
    }

    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The digest that a tag stands for; none when the host does not tell without being asked for the content.
    pub async fn digest(&self, reference: &str) -> Result<Option<String>, RegistryError> {
        match self.ask(&Method::HEAD, &format!("manifests/{reference}"), Some(MANIFESTS), 0).await {
            Ok(answer) => Ok(told_digest(&answer)),
            Err(RegistryError::Status { status: StatusCode::METHOD_NOT_ALLOWED, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A manifest or an index by its tag or digest, as the bytes that were sent.
    pub async fn manifest(&self, reference: &str) -> Result<Bytes, RegistryError> {
        let path = format!("manifests/{reference}");
        let mut answer = self.ask(&Method::GET, &path, Some(MANIFESTS), 0).await?;
        let mut bytes = Vec::new();
        loop {
            match answer.chunk().await {
                Ok(Some(chunk)) if bytes.len() + chunk.len() <= MAX_MANIFEST => {
                    bytes.extend_from_slice(&chunk);
                }
                Ok(Some(_)) => {
                    return Err(RegistryError::Setup(format!("{path} is too large to be a manifest")));
                }
                Ok(None) => return Ok(bytes.into()),
                Err(error) => return Err(self.broken(&Method::GET, &path, &error)),
            }
        }
    }

    /// A blob's content from the byte `from` on, or from its beginning when the host cannot do that.
    pub async fn blob(&self, digest: &str, from: u64) -> Result<Content, RegistryError> {
        let response = self.ask(&Method::GET, &format!("blobs/{digest}"), None, from).await?;
        let offset = if response.status() == StatusCode::PARTIAL_CONTENT { from } else { 0 };
        Ok(Content { offset, response })
    }

    /// Asks until there is an answer that more asking would not change.
    async fn ask(
        &self,
        method: &Method,
        path: &str,
        accept: Option<&str>,
        from: u64,
    ) -> Result<Response, RegistryError> {
        let mut pause = PAUSE;
        let mut tries = 1;
        let mut challenged = false;
        loop {
            let outcome = self.ask_once(method, path, accept, from).await;
            let (error, wanted) = match outcome {
                Ok(answer) if answer.status().is_success() => return Ok(answer),
                Ok(answer) if answer.status() == StatusCode::UNAUTHORIZED && !challenged => {
                    challenged = true;
                    let shown = self.meet(answer.headers()).await?;
                    *self.shown.lock() = Some(shown);
                    continue;
                }
                Ok(answer) => {
                    let wanted = retry_after(answer.headers());
                    (self.refusal(method, answer).await, wanted)
                }
                Err(error) => (self.broken(method, path, &error), None),
            };
            if !error.is_passing() || tries == TRIES {
                return Err(error);
            }
            tracing::debug!(%error, tries, "asking the registry again");
            tokio::time::sleep(wanted.unwrap_or(pause).min(LONGEST_PAUSE)).await;
            pause *= 2;
            tries += 1;
        }
    }

    async fn ask_once(
        &self,
        method: &Method,
        path: &str,
        accept: Option<&str>,
        from: u64,
    ) -> Result<Response, reqwest::Error> {
        let mut request = self.client.request(method.clone(), self.url(path));
        for (name, value) in &self.host.headers {
            request = request.header(name, value);
        }
        if let Some(accept) = accept {
            request = request.header(ACCEPT, accept);
        }
        if let Some(registry) = &self.stands_for {
            request = request.query(&[("ns", registry)]);
        }
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        let shown = self.shown.lock().clone();
        if let Some(shown) = shown {
            request = request.header(AUTHORIZATION, shown);
        }
        request.send().await
    }

    fn url(&self, path: &str) -> String {
        format!("{}/{}/{path}", self.host.base, self.repository)
    }

    fn broken(&self, method: &Method, path: &str, error: &reqwest::Error) -> RegistryError {
        RegistryError::Transport { method: method.clone(), url: self.url(path), why: causes(error) }
    }

    async fn refusal(&self, method: &Method, answer: Response) -> RegistryError {
        let (status, url) = (answer.status(), answer.url().to_string());
        let long = answer.content_length().is_some_and(|length| length > 64 << 10);
        let body = if long { Bytes::new() } else { answer.bytes().await.unwrap_or_default() };
        let said = Errors::parse(&body);
        match status {
            StatusCode::NOT_FOUND => RegistryError::NotFound,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                RegistryError::Denied(said.unwrap_or_else(|| "authorization failed".into()))
            }
            _ => {
                let said = said.map(|said| format!(", {said}")).unwrap_or_default();
                RegistryError::Status { method: method.clone(), url, status, said }
            }
        }
    }

    /// Does what a challenge asks for; what is to be shown from now on.
    async fn meet(&self, headers: &HeaderMap) -> Result<HeaderValue, RegistryError> {
        if let Credentials::Token(token) = &self.credentials {
            return secret(format!("Bearer {token}"));
        }
        let mut offered = Vec::new();
        for header in headers.get_all(WWW_AUTHENTICATE) {
            let text = header.to_str().map_err(|e| RegistryError::Challenge(e.to_string()))?;
            let challenges = http_auth::parse_challenges(text)
                .map_err(|e| RegistryError::Challenge(format!("odd challenge {text:?}: {e}")))?;
            offered.extend(challenges);
        }
        let find = |scheme: &str| offered.iter().find(|c| c.scheme.eq_ignore_ascii_case(scheme));
        if let Some(bearer) = find("bearer") {
            let parameter = |name: &str| {
                let found = bearer.params.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.to_unescaped())
            };
            let realm = parameter("realm")
                .ok_or_else(|| RegistryError::Challenge("no realm to get a token from".into()))?;
            let scope = parameter("scope").unwrap_or_else(|| format!("repository:{}:pull", self.repository));
            let token = self.token(&realm, &parameter("service").unwrap_or_default(), &scope).await?;
            return secret(format!("Bearer {token}"));
        }
        if find("basic").is_some()
            && let Credentials::Basic { user, password } = &self.credentials
        {
            use base64::Engine;
            let pair = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
            return secret(format!("Basic {pair}"));
        }
        Err(RegistryError::Denied("authorization failed: no basic auth credentials".into()))
    }

    async fn token(&self, realm: &str, service: &str, scope: &str) -> Result<String, RegistryError> {
        let asked = |method: Method| {
            move |error: reqwest::Error| {
                RegistryError::Challenge(format!(
                    "failed to fetch token: {method} {realm:?}: {}",
                    causes(&error)
                ))
            }
        };
        let answer = match &self.credentials {
            Credentials::Identity(token) => {
                let form = [
                    ("grant_type", "refresh_token"),
                    ("service", service),
                    ("scope", scope),
                    ("client_id", "krate"),
                    ("refresh_token", token),
                ];
                let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
                let request = self
                    .client
                    .post(realm)
                    .header(http::header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                    .body(body);
                request.send().await.map_err(asked(Method::POST))?
            }
            credentials => {
                let mut request = self.client.get(realm).query(&[("service", service), ("scope", scope)]);
                if let Credentials::Basic { user, password } = credentials {
                    request = request.query(&[("account", user)]).basic_auth(user, Some(password));
                }
                request.send().await.map_err(asked(Method::GET))?
            }
        };
        let status = answer.status();
        let body = answer.bytes().await.map_err(asked(Method::GET))?;
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            let said = Errors::parse(&body).unwrap_or_else(|| "authorization failed".into());
            return Err(RegistryError::Denied(said));
        }
        if !status.is_success() {
            return Err(RegistryError::Challenge(format!(
                "failed to fetch token: unexpected status from {realm}: {status}"
            )));
        }
        let token: Token = serde_json::from_slice(&body)
            .map_err(|e| RegistryError::Challenge(format!("unable to decode token response: {e}")))?;
        [token.token, token.access_token]
            .into_iter()
            .flatten()
            .find(|token| !token.is_empty())
            .ok_or_else(|| RegistryError::Challenge("token response did not include a token".into()))
    }
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// A header whose value is not to be seen in logs.
fn secret(text: String) -> Result<HeaderValue, RegistryError> {
    let mut value =
        HeaderValue::try_from(text).map_err(|_| RegistryError::Setup("invalid credentials".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// What a registry answers when it refuses.
#[derive(Deserialize)]
struct Errors {
    errors: Vec<ErrorEntry>,
}

#[derive(Deserialize)]
struct ErrorEntry {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

impl Errors {
    fn parse(body: &[u8]) -> Option<String> {
        let errors = serde_json::from_slice::<Self>(body).ok()?.errors;
        let texts: Vec<String> =
            errors.iter().map(|e| format!("{}: {}", e.code.to_lowercase(), e.message)).collect();
        (!texts.is_empty()).then(|| texts.join(", "))
    }
}

fn told_digest(answer: &Response) -> Option<String> {
    let told = answer.headers().get("docker-content-digest")?.to_str().ok()?;
    super::reference::is_digest(told).then(|| told.to_owned())
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// An error with all that led to it.
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn client(host: &Host) -> Result<reqwest::Client, String> {
    let read = |path: &std::path::Path| {
        std::fs::read(path).map_err(|e| format!("failed to read {}: {e}", path.display()))
    };
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("krate/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(SILENCE)
        .read_timeout(SILENCE)
        .tls_danger_accept_invalid_certs(host.skip_verify);
    if is_loopback(&host.authority) {
        builder = builder.no_proxy();
    }
    for path in &host.authorities {
        let certificates = reqwest::Certificate::from_pem_bundle(&read(path)?)
            .map_err(|e| format!("failed to load CA {}: {}", path.display(), causes(&e)))?;
        builder = builder.tls_certs_merge(certificates);
    }
    if let Some((certificate, key)) = &host.client {
        let mut pem = read(certificate)?;
        if let Some(key) = key {
            pem.push(b'\n');
            pem.extend(read(key)?);
        }
        let identity = reqwest::Identity::from_pem(&pem)
            .map_err(|e| format!("failed to load {}: {}", certificate.display(), causes(&e)))?;
        builder = builder.identity(identity);
    }
    for (name, value) in &host.headers {
        if HeaderName::try_from(name).is_err() || HeaderValue::try_from(value).is_err() {
            return Err(format!("invalid header {name:?} for {}", host.base));
        }
    }
    builder.build().map_err(|e| causes(&e))
}
