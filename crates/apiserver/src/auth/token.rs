//! ServiceAccount tokens: JWTs of this cluster's key (KEP-1205), bound to the account and, if asked, to a pod, a secret or
//! a node.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::User;

/// Who issues tokens, and the audience of those that name none.
pub const ISSUER: &str = "https://kubernetes.default.svc";

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

impl Claims {
    /// Whom the token speaks for.
    pub fn user(&self) -> User {
        let Binding { namespace, serviceaccount, pod, node, .. } = &self.kubernetes;
        let mut extra = BTreeMap::from([(
            "authentication.kubernetes.io/credential-id".to_owned(),
            vec![format!("JTI={}", self.jti)],
        )]);
        for (what, bound) in [("pod", pod), ("node", node)] {
            if let Some(bound) = bound {
                extra.insert(format!("authentication.kubernetes.io/{what}-name"), vec![bound.name.clone()]);
                extra.insert(format!("authentication.kubernetes.io/{what}-uid"), vec![bound.uid.clone()]);
            }
        }
        User {
            name: self.sub.clone(),
            uid: serviceaccount.uid.clone(),
            groups: vec![
                "system:serviceaccounts".to_owned(),
                format!("system:serviceaccounts:{namespace}"),
                super::AUTHENTICATED.to_owned(),
            ],
            extra,
        }
    }
}

/// Signs and reads tokens.
pub struct Signer {
    signing: EncodingKey,
    verifying: DecodingKey,
}

impl Signer {
    /// From a P-256 key and its public half, both PEM.
    ///
    /// # Errors
    /// They are no such keys.
    pub fn new(private_pem: &str, public_pem: &str) -> Result<Self, jsonwebtoken::errors::Error> {
        Ok(Signer {
            signing: EncodingKey::from_ec_pem(private_pem.as_bytes())?,
            verifying: DecodingKey::from_ec_pem(public_pem.as_bytes())?,
        })
    }

    /// A token for these audiences that lives for `seconds`.
    ///
    /// # Errors
    /// The key cannot sign.
    pub fn sign(
        &self,
        audiences: &[String],
        seconds: i64,
        binding: Binding,
    ) -> Result<(String, Claims), jsonwebtoken::errors::Error> {
        let now = Timestamp::now().as_second();
        let sub = format!("system:serviceaccount:{}:{}", binding.namespace, binding.serviceaccount.name);
        let aud = if audiences.is_empty() { vec![ISSUER.to_owned()] } else { audiences.to_vec() };
        let claims = Claims {
            aud,
            exp: now + seconds,
            iat: now,
            iss: ISSUER.to_owned(),
            jti: Uuid::new_v4().to_string(),
            kubernetes: binding,
            nbf: now,
            sub,
        };
        Ok((jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &self.signing)?, claims))
    }

    /// The claims of a token of ours that is valid now for one of `audiences`. What it is bound to is for others to
    /// check.
    pub fn verify(&self, token: &str, audiences: &[String]) -> Option<Claims> {
        let mut rules = Validation::new(Algorithm::ES256);
        rules.set_issuer(&[ISSUER]);
        rules.set_audience(audiences);
        rules.validate_nbf = true;
        jsonwebtoken::decode::<Claims>(token, &self.verifying, &rules).ok().map(|data| data.claims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signer() -> Signer {
        let key = rcgen::KeyPair::generate().expect("a key");
        Signer::new(&key.serialize_pem(), &key.public_key_pem()).expect("a signer")
    }

    #[test]
    fn a_token_speaks_for_its_account_to_its_audience_alone() {
        let (signer, other) = (signer(), signer());
        let binding = Binding {
            namespace: "a".into(),
            serviceaccount: Bound { name: "b".into(), uid: "u".into() },
            ..Binding::default()
        };
        let (token, _) = signer.sign(&["x".to_owned()], 600, binding.clone()).expect("signed");
        assert_eq!(signer.verify(&token, &[ISSUER.to_owned()]), None);
        let user = signer.verify(&token, &["x".to_owned()]).expect("valid").user();
        assert_eq!(user.name, "system:serviceaccount:a:b");
        assert!(user.groups.contains(&"system:serviceaccounts:a".to_owned()));
        assert_eq!(other.verify(&token, &["x".to_owned()]), None, "another key's");
        let (old, _) = signer.sign(&[], -600, binding).expect("signed");
        assert_eq!(signer.verify(&old, &[ISSUER.to_owned()]), None, "expired");
    }
}
