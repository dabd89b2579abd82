//! An issuer of tokens: where its keys are, and whether a token was signed by one of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use jiff::Timestamp;
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::sync::Mutex;

use super::Settings;
use super::key_sets::KeySets;

/// How long the issuer may take to answer one request, as upstream.
const TIMEOUT: Duration = Duration::from_secs(30);
/// A token that names an unknown key has the keys fetched anew, but no sooner than this after the last time.
const PAUSE: Duration = Duration::from_secs(1);
/// By how many seconds an issuer's clock may be ahead, as upstream. Its tokens' end is not put off.
const LEEWAY: f64 = 60.0;
/// The largest document that is read, in bytes.
const LARGEST: usize = 1 << 20;
/// Where systems keep the authorities that they trust.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

pub struct Issuer {
    url: String,
    discovery_url: String,
    audiences: Vec<String>,
    algorithms: Vec<Algorithm>,
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    keys: ArcSwapOption<JwkSet>,
    /// Where it is told that they were asked for.
    told: Arc<KeySets>,
    /// When the keys were last asked for. Held while they are, so that they are asked for once.
    asked: Mutex<Option<Instant>>,
}

impl Issuer {
    pub fn new(settings: &Settings, told: Arc<KeySets>) -> Result<Self, String> {
        let system;
        let pem = if settings.ca.is_empty() {
            system = SYSTEM_ROOTS.iter().find_map(|path| std::fs::read(path).ok()).unwrap_or_default();
            system.as_slice()
        } else {
            settings.ca.as_bytes()
        };
        let mut roots = RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(pem).flatten() {
            // One that cannot be read is nobody's authority.
            drop(roots.add(authority));
        }
        let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1().build();
        let well_known = format!("{}/.well-known/openid-configuration", settings.url.trim_end_matches('/'));
        Ok(Issuer {
            url: settings.url.clone(),
            discovery_url: match settings.discovery_url.as_str() {
                "" => well_known,
                url => url.to_owned(),
            },
            audiences: settings.audiences.clone(),
            algorithms: settings.algorithms.clone(),
            client: Client::builder(TokioExecutor::new()).build(connector),
            keys: ArcSwapOption::empty(),
            told,
            asked: Mutex::new(None),
        })
    }

    /// The claims of a token that this issuer has signed and that is valid now, for one of the audiences.
    ///
    /// # Errors
    /// It is none, or the keys are not known.
    pub async fn verify(&self, token: &str) -> Result<Value, String> {
        let head = jsonwebtoken::decode_header(token).map_err(|error| error.to_string())?;
        if !self.algorithms.contains(&head.alg) {
            return Err(format!("id token signed with unsupported algorithm {:?}", head.alg));
        }
        let known = self.keys.load_full();
        if let Some(known) = &known
            && let Some(verified) = self.by(known, &head, token)
        {
            return verified;
        }
        let fresh = self.refresh(known.as_ref()).await?;
        self.by(&fresh, &head, token).unwrap_or_else(|| {
            Err("failed to verify signature: failed to verify id token signature".to_owned())
        })
    }

    /// The claims of a token by these keys; `None` if none of them signed it.
    fn by(&self, keys: &JwkSet, head: &Header, token: &str) -> Option<Result<Value, String>> {
        let named = |id: Option<&String>| head.kid.is_none() || id == head.kid.as_ref();
        keys.keys.iter().filter(|key| named(key.common.key_id.as_ref())).find_map(|key| {
            let decoding = DecodingKey::from_jwk(key).ok()?;
            let mut rules = Validation::new(head.alg);
            rules.leeway = 0;
            rules.set_issuer(&[&self.url]);
            rules.set_audience(&self.audiences);
            match jsonwebtoken::decode::<Value>(token, &decoding, &rules) {
                Ok(read) => Some(has_begun(read.claims, Timestamp::now().as_second())),
                Err(error) => match error.kind() {
                    jsonwebtoken::errors::ErrorKind::InvalidSignature
                    | jsonwebtoken::errors::ErrorKind::InvalidAlgorithm => None,
                    _ => Some(Err(error.to_string())),
                },
            }
        })
    }

    /// The keys as the issuer tells them now; those that another has just asked for are as good.
    async fn refresh(&self, known: Option<&Arc<JwkSet>>) -> Result<Arc<JwkSet>, String> {
        let mut asked = self.asked.lock().await;
        let now = self.keys.load_full();
        let changed = match (&now, known) {
            (Some(now), Some(known)) => !Arc::ptr_eq(now, known),
            (now, _) => now.is_some(),
        };
        let recent = asked.is_some_and(|at| at.elapsed() < PAUSE);
        match now {
            Some(now) if changed || recent => return Ok(now),
            None if recent => return Err("authenticator not initialized".to_owned()),
            _ => {}
        }
        let fetched = self.fetch().await;
        *asked = Some(Instant::now());
        let keys = Arc::new(fetched?);
        self.keys.store(Some(Arc::clone(&keys)));
        Ok(keys)
    }

    async fn fetch(&self) -> Result<JwkSet, String> {
        let (document, _) = self.get(&self.discovery_url).await?;
        let issuer = document["issuer"].as_str().unwrap_or_default();
        if issuer != self.url {
            return Err(format!(
                "oidc: issuer did not match the issuer returned by provider, expected {:?} got {issuer:?}",
                self.url
            ));
        }
        let got = self.get(document["jwks_uri"].as_str().unwrap_or_default()).await;
        self.told.asked(&self.url, got.as_ref().ok().map(|(_, sent)| &sent[..]));
        let (keys, _) = got?;
        // A key of a sort that is not known is nobody's fault, and no reason to know none.
        let readable = keys["keys"].as_array().into_iter().flatten();
        let keys = readable.filter_map(|key| serde_json::from_value(key.clone()).ok()).collect();
        Ok(JwkSet { keys })
    }

    /// A document, and its text.
    async fn get(&self, url: &str) -> Result<(Value, Bytes), String> {
        let got = tokio::time::timeout(TIMEOUT, self.get_patiently(url)).await;
        got.unwrap_or_else(|_| Err(format!("Get {url:?}: context deadline exceeded")))
    }

    async fn get_patiently(&self, url: &str) -> Result<(Value, Bytes), String> {
        let told = |error: &dyn std::fmt::Display| format!("Get {url:?}: {error}");
        let uri = url.parse().map_err(|error| told(&error))?;
        let answer = self.client.get(uri).await.map_err(|error| told(&error))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), LARGEST).collect().await.map_err(|e| told(&e))?;
        if !status.is_success() {
            return Err(told(&status));
        }
        let text = body.to_bytes();
        let document = serde_json::from_slice(&text).map_err(|error| told(&error))?;
        Ok((document, text))
    }
}

/// The claims of a token that says since when it is valid, if at all, and is by now, in seconds since 1970.
fn has_begun(claims: Value, now: i64) -> Result<Value, String> {
    match claims["nbf"].as_f64() {
        Some(since) if now as f64 + LEEWAY < since => {
            Err(format!("oidc: current time {now} before the nbf (not before) time: {since}"))
        }
        _ => Ok(claims),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_issuers_clock_may_be_a_little_ahead() {
        for (claims, begun) in [
            (json!({}), true),
            (json!({"nbf": 1000}), true),
            (json!({"nbf": 1060}), true),
            (json!({"nbf": 1060.5}), false),
            (json!({"nbf": 1061}), false),
        ] {
            assert_eq!(has_begun(claims.clone(), 1000).is_ok(), begun, "{claims}");
        }
    }
}
