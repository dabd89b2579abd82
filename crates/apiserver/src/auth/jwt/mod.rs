//! Tokens of others: JSON Web Tokens that an issuer outside of the cluster signs (OpenID Connect, KEP-3331). The issuer
//! tells its keys; what a token claims is mapped to a user.

mod claims;
pub mod config;
mod issuer;
mod key_sets;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use serde_json::Value;

use super::User;
use super::metrics::METRICS;
use super::tokens::{Found, Tokens};
use crate::cel::Program;
use issuer::Issuer;

pub use key_sets::KeySets;

/// The algorithms that tokens may be signed by.
pub const ALGORITHMS: [(&str, Algorithm); 8] = [
    ("ES256", Algorithm::ES256),
    ("ES384", Algorithm::ES384),
    ("PS256", Algorithm::PS256),
    ("PS384", Algorithm::PS384),
    ("PS512", Algorithm::PS512),
    ("RS256", Algorithm::RS256),
    ("RS384", Algorithm::RS384),
    ("RS512", Algorithm::RS512),
];

/// Where a part of a user comes from.
#[derive(Clone, Debug)]
pub enum Mapping {
    Claim { name: String, prefix: String },
    Expression(Program),
}

/// A condition of claims or of a user, and what is said where it does not hold.
#[derive(Clone, Debug)]
pub struct Rule {
    pub expression: Program,
    pub message: String,
}

/// Whose tokens are taken, and what is made of them.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The issuer, as its tokens name it.
    pub url: String,
    /// Where its keys are told of; its well-known path where it is empty.
    pub discovery_url: String,
    /// The authority of its certificate, PEM; the system's authorities where it is empty.
    pub ca: String,
    /// The audiences of which a token has to have one.
    pub audiences: Vec<String>,
    pub algorithms: Vec<Algorithm>,
    pub username: Mapping,
    pub groups: Option<Mapping>,
    pub uid: Option<Mapping>,
    pub extra: Vec<(String, Program)>,
    /// Claims that have to have these values.
    pub required: BTreeMap<String, String>,
    pub claim_rules: Vec<Rule>,
    pub user_rules: Vec<Rule>,
}

/// Knows users by the tokens of one issuer.
pub struct Jwt {
    settings: Settings,
    issuer: Issuer,
}

impl Jwt {
    /// # Errors
    /// The issuer's authority is none.
    pub fn new(settings: Settings, told: Arc<KeySets>) -> Result<Self, String> {
        let issuer = Issuer::new(&settings, told)?;
        Ok(Jwt { settings, issuer })
    }
}

/// The issuers of a configuration; others may take their place while the server runs.
pub struct Issuers {
    all: ArcSwap<Vec<Jwt>>,
    told: Arc<KeySets>,
}

impl Issuers {
    /// # Errors
    /// An issuer's authority is none.
    pub fn new(all: &[Settings], told: Arc<KeySets>) -> Result<Self, String> {
        Ok(Issuers { all: ArcSwap::from_pointee(opened(all, &told)?), told })
    }

    /// # Errors
    /// An issuer's authority is none; then all stays as it is.
    pub fn replace(&self, all: &[Settings]) -> Result<(), String> {
        let before = self.all.swap(Arc::new(opened(all, &self.told)?));
        for gone in before.iter().map(|jwt| &jwt.settings.url) {
            if !all.iter().any(|issuer| issuer.url == *gone) {
                self.told.forget(gone);
            }
        }
        Ok(())
    }
}

fn opened(all: &[Settings], told: &Arc<KeySets>) -> Result<Vec<Jwt>, String> {
    all.iter().map(|issuer| Jwt::new(issuer.clone(), Arc::clone(told))).collect()
}

#[async_trait]
impl Tokens for Arc<Issuers> {
    async fn whose(&self, token: &str, audiences: &[String]) -> Found {
        let mut failed = None;
        for issuer in self.all.load_full().iter() {
            match issuer.whose(token, audiences).await {
                Ok(None) => {}
                Ok(found) => return Ok(found),
                Err(why) => failed = Some(why),
            }
        }
        failed.map_or(Ok(None), Err)
    }
}

#[async_trait]
impl Tokens for Jwt {
    async fn whose(&self, token: &str, _: &[String]) -> Found {
        // Whose it says to be is not yet proved, and is no reason to ask the issuer about others' tokens.
        if issuer_of(token).as_deref() != Some(self.settings.url.as_str()) {
            return Ok(None);
        }
        let began = Instant::now();
        let user = self.user(token).await;
        METRICS.by_issuer(&self.settings.url, user.is_ok(), began.elapsed());
        Ok(Some((user?, None)))
    }
}

impl Jwt {
    /// Whose a token of this issuer is.
    async fn user(&self, token: &str) -> Result<User, String> {
        let claims = self.issuer.verify(token).await.map_err(|why| format!("oidc: verify token: {why}"))?;
        claims::user(&self.settings, &claims).map_err(|why| format!("oidc: {why}"))
    }
}

/// The issuer that a token names, whoever has signed it.
pub fn issuer_of(token: &str) -> Option<String> {
    let mut parts = token.split('.');
    let (_, payload, _) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
    claims["iss"].as_str().map(str::to_owned)
}
