//! ServiceAccount tokens: JWTs of this cluster's key (KEP-1205), bound to the account and, if asked, to a pod, a secret or
//! a node. Tokens of the old sort, that stand in secrets and do not end, are read and not given.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jsonwebtoken::{Header, Validation};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::User;
use super::jwt::issuer_of;
use super::keys::{KeyError, PublicKey, SigningKey};

/// Who issues tokens, and the audience of those that name none, unless flags say otherwise.
pub const ISSUER: &str = "https://kubernetes.default.svc";
/// Who issues the tokens that stand in secrets.
const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";
/// By how many seconds clocks may differ, as upstream: for so long a token is good before its time and after it.
const LEEWAY: i64 = 60;
/// What is said of a token that none of our keys has signed.
const NOT_SIGNED: &str = "go-jose/go-jose: error in cryptographic primitive";
/// How long a token that may be replaced lives on, in seconds: a year, as upstream.
pub const EXTENDED_LIFE: i64 = 365 * 24 * 3600;
/// The life in seconds that a kubelet asks for a token that it will replace.
pub const REPLACED_LIFE: i64 = 3607;

/// What a token is bound to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// The claims that are Kubernetes' own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    pub namespace: String,
    pub serviceaccount: Bound,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Bound>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Bound>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Bound>,
    /// When its holder should have replaced it, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    pub aud: Vec<String>,
    /// Seconds since 1970, as are `iat` and `nbf`.
    pub exp: i64,
    pub iat: i64,
    pub iss: String,
    pub jti: String,
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: Binding,
    pub nbf: i64,
    pub sub: String,
}

/// The claims of a token that stands in a secret.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Legacy {
    pub sub: String,
    #[serde(rename = "kubernetes.io/serviceaccount/namespace")]
    pub namespace: String,
    #[serde(rename = "kubernetes.io/serviceaccount/secret.name")]
    pub secret: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.name")]
    pub account: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.uid")]
    pub uid: String,
}

/// A ServiceAccount as a user.
pub fn account(namespace: &str, name: &str, uid: &str, extra: BTreeMap<String, Vec<String>>) -> User {
    User {
        name: format!("system:serviceaccount:{namespace}:{name}"),
        uid: uid.to_owned(),
        groups: vec![
            "system:serviceaccounts".to_owned(),
            format!("system:serviceaccounts:{namespace}"),
            super::AUTHENTICATED.to_owned(),
        ],
        extra,
    }
}

/// Whether a token for some audiences is good for one of those that are asked for.
fn for_one_of(own: &[String], wanted: &[String]) -> Result<(), String> {
    if own.iter().any(|audience| wanted.contains(audience)) {
        return Ok(());
    }
    let quoted = |list: &[String]| {
        let all: Vec<String> = list.iter().map(|audience| format!("{audience:?}")).collect();
        format!("[{}]", all.join(" "))
    };
    let (own, wanted) = (quoted(own), quoted(wanted));
    Err(format!("token audiences {own} is invalid for the target audiences {wanted}"))
}

impl Claims {
    /// Whether it is valid at a time, in seconds since 1970.
    fn check_time(&self, now: i64) -> Result<(), String> {
        let why = match () {
            () if now + LEEWAY < self.nbf => "is not valid yet",
            () if now - LEEWAY > self.exp => "has expired",
            () if now + LEEWAY < self.iat => "is issued in the future",
            () => return Ok(()),
        };
        Err(format!("service account token {why}"))
    }

    /// Whom the token speaks for.
    pub fn user(&self) -> User {
        let Binding { namespace, serviceaccount, pod, node, .. } = &self.kubernetes;
        let mut extra =
            BTreeMap::from([(super::CREDENTIAL_ID.to_owned(), vec![format!("JTI={}", self.jti)])]);
        for (what, bound) in [("pod", pod), ("node", node)] {
            if let Some(bound) = bound {
                extra.insert(format!("authentication.kubernetes.io/{what}-name"), vec![bound.name.clone()]);
                if !bound.uid.is_empty() {
                    extra.insert(format!("authentication.kubernetes.io/{what}-uid"), vec![bound.uid.clone()]);
                }
            }
        }
        account(namespace, &serviceaccount.name, &serviceaccount.uid, extra)
    }
}

/// How tokens are given and read.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The key that signs, PEM.
    pub key: String,
    /// The keys whose tokens are read, PEM; the signing key's own is always among them.
    pub accepted_keys: Vec<String>,
    /// Who issues tokens, first; and whose are read.
    pub issuers: Vec<String>,
    /// The audiences that this server is one of; its issuer's where there are none.
    pub audiences: Vec<String>,
    /// Where others find the keys; this server where it is empty.
    pub jwks_uri: String,
    /// Gives those who will replace their tokens a year's respite.
    pub extend: bool,
    /// The longest that a token may live, in seconds.
    pub longest: Option<i64>,
}

/// What a token of a ServiceAccount says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "it lives for one request")]
pub enum Said {
    Bound(Claims),
    Legacy(Legacy),
}

/// Signs and reads tokens.
pub struct Signer {
    signing: SigningKey,
    verifying: Vec<PublicKey>,
    issuers: Vec<String>,
    pub audiences: Vec<String>,
    jwks_uri: String,
    pub extend: bool,
    pub longest: Option<i64>,
}

impl Signer {
    /// # Errors
    /// A key of the settings is none.
    pub fn new(settings: &Settings) -> Result<Self, KeyError> {
        let signing = SigningKey::of(&settings.key)?;
        let mut verifying = vec![signing.public().clone()];
        for pem in &settings.accepted_keys {
            for key in PublicKey::all(pem)? {
                if verifying.iter().all(|known| known.id != key.id) {
                    verifying.push(key);
                }
            }
        }
        let mut issuers = settings.issuers.clone();
        if issuers.is_empty() {
            issuers.push(ISSUER.to_owned());
        }
        let audiences =
            if settings.audiences.is_empty() { vec![issuers[0].clone()] } else { settings.audiences.clone() };
        Ok(Signer {
            signing,
            verifying,
            issuers,
            audiences,
            jwks_uri: settings.jwks_uri.clone(),
            extend: settings.extend,
            longest: settings.longest,
        })
    }

    /// A token for these audiences (this server's where there are none) that lives for `seconds`.
    ///
    /// # Errors
    /// The key cannot sign.
    pub fn sign(
        &self,
        audiences: &[String],
        seconds: i64,
        binding: Binding,
    ) -> Result<(String, Claims), KeyError> {
        let now = Timestamp::now().as_second();
        let sub = format!("system:serviceaccount:{}:{}", binding.namespace, binding.serviceaccount.name);
        let aud = if audiences.is_empty() { self.audiences.clone() } else { audiences.to_vec() };
        let claims = Claims {
            aud,
            exp: now + seconds,
            iat: now,
            iss: self.issuers[0].clone(),
            jti: Uuid::new_v4().to_string(),
            kubernetes: binding,
            nbf: now,
            sub,
        };
        Ok((self.signing.sign(&claims)?, claims))
    }

    /// What a token says that was signed by one of our keys and is valid now, for one of `audiences`. What it is bound
    /// to is for others to check. `None` where it is not ours.
    pub fn verify(&self, token: &str, audiences: &[String]) -> Option<Said> {
        self.judge(token, audiences).ok().flatten()
    }

    /// The same, where `None` is a token that does not say to be ours.
    ///
    /// # Errors
    /// It says so, and is not good; why, in upstream's words.
    pub fn judge(&self, token: &str, audiences: &[String]) -> Result<Option<Said>, String> {
        let (Some(issuer), Ok(head)) = (issuer_of(token), jsonwebtoken::decode_header(token)) else {
            return Ok(None);
        };
        if issuer == LEGACY_ISSUER {
            let legacy = self.read(token, &head)?;
            // These speak to this server alone.
            for_one_of(&self.audiences, audiences)?;
            return Ok(Some(Said::Legacy(legacy)));
        }
        if !self.issuers.contains(&issuer) {
            return Ok(None);
        }
        let claims: Claims = self.read(token, &head)?;
        for_one_of(&claims.aud, audiences)?;
        claims.check_time(Timestamp::now().as_second())?;
        Ok(Some(Said::Bound(claims)))
    }

    /// What a token claims that one of our keys has signed, whether or not it is valid now.
    fn read<T: DeserializeOwned>(&self, token: &str, head: &Header) -> Result<T, String> {
        let named = |key: &&PublicKey| head.kid.as_ref().is_none_or(|id| *id == key.id);
        let keys: Vec<&PublicKey> = self.verifying.iter().filter(named).collect();
        if keys.is_empty() {
            return Err("invalid signature, no keys found".to_owned());
        }
        let read = keys.into_iter().filter(|key| key.algorithm == head.alg).find_map(|key| {
            let mut rules = Validation::new(key.algorithm);
            rules.required_spec_claims.clear();
            (rules.validate_exp, rules.validate_aud) = (false, false);
            jsonwebtoken::decode::<T>(token, &key.decoding, &rules).ok()
        });
        read.map(|read| read.claims).ok_or_else(|| NOT_SIGNED.to_owned())
    }

    /// The document by which others find the keys. `host` is where this server is reached.
    pub fn discovery(&self, host: &str) -> Value {
        let own = format!("https://{host}/openid/v1/jwks");
        let mut algorithms: Vec<&str> =
            self.verifying.iter().filter_map(|key| key.jwk["alg"].as_str()).collect();
        algorithms.sort_unstable();
        algorithms.dedup();
        json!({
            "issuer": self.issuers[0],
            "jwks_uri": if self.jwks_uri.is_empty() { &own } else { &self.jwks_uri },
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": algorithms,
        })
    }

    /// The keys, as they are published.
    pub fn jwks(&self) -> Value {
        json!({"keys": self.verifying.iter().map(|key| &key.jwk).collect::<Vec<_>>()})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> String {
        rcgen::KeyPair::generate().expect("a key").serialize_pem()
    }

    fn signer(settings: Settings) -> Signer {
        Signer::new(&settings).expect("a signer")
    }

    fn binding() -> Binding {
        Binding {
            namespace: "a".into(),
            serviceaccount: Bound { name: "b".into(), uid: "u".into() },
            ..Binding::default()
        }
    }

    fn bound(said: Option<Said>) -> Option<Claims> {
        match said {
            Some(Said::Bound(claims)) => Some(claims),
            _ => None,
        }
    }

    #[test]
    fn a_token_speaks_for_its_account_to_its_audience_alone() {
        let signer_of = |key| signer(Settings { key, ..Settings::default() });
        let (signer, other) = (signer_of(key()), signer_of(key()));
        let (token, _) = signer.sign(&["x".to_owned()], 600, binding()).expect("signed");
        assert_eq!(signer.verify(&token, &[ISSUER.to_owned()]), None);
        let user = bound(signer.verify(&token, &["x".to_owned()])).expect("valid").user();
        assert_eq!(user.name, "system:serviceaccount:a:b");
        assert!(user.groups.contains(&"system:serviceaccounts:a".to_owned()));
        assert_eq!(other.verify(&token, &["x".to_owned()]), None, "another key's");
        let (old, _) = signer.sign(&[], -600, binding()).expect("signed");
        assert_eq!(signer.verify(&old, &[ISSUER.to_owned()]), None, "expired");
    }

    #[test]
    fn keys_and_issuers_are_replaced_one_after_the_other() {
        let (old_key, new_key) = (key(), key());
        let named = |key: &str, issuers: &[&str], accepted: &[&String]| {
            signer(Settings {
                key: key.to_owned(),
                accepted_keys: accepted.iter().map(|&key| key.clone()).collect(),
                issuers: issuers.iter().map(|&issuer| issuer.to_owned()).collect(),
                audiences: vec!["api".to_owned()],
                ..Settings::default()
            })
        };
        let old = named(&old_key, &["https://old"], &[]);
        let new = named(&new_key, &["https://new", "https://old"], &[&old_key]);
        let audiences = ["api".to_owned()];
        let (token, claims) = old.sign(&[], 600, binding()).expect("signed");
        assert_eq!((claims.iss.as_str(), &claims.aud), ("https://old", &audiences.to_vec()));
        assert!(new.verify(&token, &audiences).is_some());
        let (token, _) = new.sign(&[], 600, binding()).expect("signed");
        assert!(old.verify(&token, &audiences).is_none());
        assert_eq!(new.jwks()["keys"].as_array().map(Vec::len), Some(2));
        let document = new.discovery("h:1");
        assert_eq!(document["issuer"], "https://new");
        assert_eq!(document["jwks_uri"], "https://h:1/openid/v1/jwks");
        assert_eq!(document["id_token_signing_alg_values_supported"], json!(["ES256"]));
    }

    #[test]
    fn a_token_of_a_secret_is_read() {
        let pem = key();
        let signer = signer(Settings { key: pem.clone(), ..Settings::default() });
        let token = SigningKey::of(&pem)
            .and_then(|key| {
                key.sign(&json!({
                    "iss": LEGACY_ISSUER,
                    "sub": "system:serviceaccount:a:b",
                    "kubernetes.io/serviceaccount/namespace": "a",
                    "kubernetes.io/serviceaccount/secret.name": "s",
                    "kubernetes.io/serviceaccount/service-account.name": "b",
                    "kubernetes.io/serviceaccount/service-account.uid": "u",
                }))
            })
            .expect("signed");
        let said = signer.verify(&token, &[ISSUER.to_owned()]);
        assert!(matches!(said, Some(Said::Legacy(legacy)) if legacy.secret == "s" && legacy.uid == "u"));
        assert_eq!(signer.verify(&token, &["x".to_owned()]), None, "another audience's");
    }

    #[test]
    fn why_a_token_is_not_good_is_told() {
        let (own, other) = (key(), key());
        let of = |key: &String| signer(Settings { key: key.clone(), ..Settings::default() });
        let (signer, stranger) = (of(&own), of(&other));
        let audiences = [ISSUER.to_owned()];
        let told = |audience: &str, seconds: i64| {
            let (token, _) = signer.sign(&[audience.to_owned()], seconds, binding()).expect("signed");
            signer.judge(&token, &audiences).map(|said| said.is_some())
        };
        assert_eq!(told(ISSUER, 600), Ok(true));
        assert_eq!(told(ISSUER, -30), Ok(true), "clocks differ");
        assert_eq!(told(ISSUER, -90), Err("service account token has expired".to_owned()));
        let why = "token audiences [\"x\"] is invalid for the target audiences [\"https://kubernetes.default.svc\"]";
        assert_eq!(told("x", 600), Err(why.to_owned()));
        let (token, _) = stranger.sign(&[], 600, binding()).expect("signed");
        let why = "invalid signature, no keys found".to_owned();
        assert_eq!(signer.judge(&token, &audiences), Err(why), "another's key");
        let (good, _) = signer.sign(&[], 600, binding()).expect("signed");
        let signed = &good[good.rfind('.').expect("a signature")..];
        let (longer, _) = signer.sign(&[], 700, binding()).expect("signed");
        let forged = format!("{}{signed}", &longer[..longer.rfind('.').expect("a signature")]);
        assert_eq!(signer.judge(&forged, &audiences), Err(NOT_SIGNED.to_owned()));
        assert_eq!(signer.judge("nonsense", &audiences), Ok(None));
        let early = Claims { nbf: 1000, iat: 1000, exp: 2000, ..claims_of(&signer) };
        for (now, good) in [(939, false), (940, true), (2060, true), (2061, false)] {
            assert_eq!(early.check_time(now).is_ok(), good, "{now}");
        }
    }

    fn claims_of(signer: &Signer) -> Claims {
        signer.sign(&[], 600, binding()).expect("signed").1
    }
}
