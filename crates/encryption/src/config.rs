//! `EncryptionConfiguration` of `apiserver.config.k8s.io/v1`, as it is written in its file.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

pub const API_VERSION: &str = "apiserver.config.k8s.io/v1";
pub const KIND: &str = "EncryptionConfiguration";

/// How long a plugin is waited for that says nothing of it.
const TIMEOUT: &str = "3s";
/// How many keys a plugin of the first version has remembered that says nothing of it.
const CACHE_SIZE: i32 = 1000;

/// Which resources are encrypted, and by what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Configuration {
    pub resources: Vec<Resource>,
}

/// Providers for some resources: the first writes, all read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Resource {
    /// `secrets`, `deployments.apps`, `*.apps`, `*.` for the core group, `*.*`.
    pub resources: Vec<String>,
    pub providers: Vec<Provider>,
}

/// One of these. Serialized as upstream shows it in its errors, without the secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Provider {
    #[serde(rename(serialize = "AESGCM"))]
    pub aesgcm: Option<Keys>,
    #[serde(rename(serialize = "AESCBC"))]
    pub aescbc: Option<Keys>,
    #[serde(rename(serialize = "Secretbox"))]
    pub secretbox: Option<Keys>,
    #[serde(rename(serialize = "Identity"))]
    pub identity: Option<Nothing>,
    #[serde(rename(serialize = "KMS"))]
    pub kms: Option<Kms>,
}

/// An object without fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Nothing {}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Keys {
    #[serde(rename(serialize = "Keys"))]
    pub keys: Vec<Key>,
}

#[derive(Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Key {
    #[serde(rename(serialize = "Name"))]
    pub name: String,
    /// In base64.
    #[serde(rename(serialize = "Secret"), serialize_with = "redacted")]
    pub secret: String,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn redacted<S: Serializer>(_: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str("REDACTED")
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Name: {}, Secret: [REDACTED]", self.name)
    }
}

/// A plugin behind a socket that holds the key of keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all(deserialize = "camelCase", serialize = "PascalCase"), default)]
pub struct Kms {
    #[serde(rename(serialize = "APIVersion"))]
    pub api_version: String,
    pub name: String,
    #[serde(rename(deserialize = "cachesize"))]
    pub cache_size: Option<i32>,
    pub endpoint: String,
    /// A duration as Go writes it.
    pub timeout: Option<String>,
}

impl Configuration {
    /// Fills in what is said by saying nothing.
    #[must_use]
    pub fn defaulted(mut self) -> Self {
        for kms in self.resources.iter_mut().flat_map(|r| &mut r.providers).filter_map(|p| p.kms.as_mut()) {
            if kms.api_version.is_empty() {
                "v1".clone_into(&mut kms.api_version);
            }
            kms.timeout.get_or_insert_with(|| TIMEOUT.to_owned());
            if kms.api_version == "v1" {
                kms.cache_size.get_or_insert(CACHE_SIZE);
            }
        }
        self
    }
}
