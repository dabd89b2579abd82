//! `CredentialProviderConfig` of `kubelet.config.k8s.io`: which plugins there are, and for which images.

use std::path::{Path, PathBuf};

use jiff::SignedDuration;
use serde::Deserialize;
use serde_json::Value;

const VERSIONS: [&str; 3] =
    ["kubelet.config.k8s.io/v1", "kubelet.config.k8s.io/v1beta1", "kubelet.config.k8s.io/v1alpha1"];
const ASKED: [&str; 3] = [
    "credentialprovider.kubelet.k8s.io/v1",
    "credentialprovider.kubelet.k8s.io/v1beta1",
    "credentialprovider.kubelet.k8s.io/v1alpha1",
];
const KIND: &str = "CredentialProviderConfig";
/// How a file's name ends that is read from a directory.
const ENDINGS: [&str; 3] = ["json", "yaml", "yml"];

/// What is wrong with the plugins.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    #[error("failed to read credential provider config {:?}: {error}", path.display().to_string())]
    File { path: PathBuf, error: std::io::Error },
    #[error("failed to decode credential provider config {:?}: {why}", path.display().to_string())]
    Format { path: PathBuf, why: String },
    #[error("failed to validate credential provider config: {}", .0.join(", "))]
    Values(Vec<String>),
    #[error("plugin binary executable {} did not exist", program.display())]
    NoProgram { name: String, program: PathBuf },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Config {
    #[allow(dead_code, reason = "looked at before")]
    api_version: String,
    #[allow(dead_code, reason = "looked at before")]
    kind: String,
    #[serde(default)]
    providers: Vec<Provider>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variable {
    pub name: String,
    pub value: String,
}

/// One plugin.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Provider {
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub match_images: Vec<String>,
    /// How long an answer is kept that says nothing of it.
    #[serde(deserialize_with = "from_text")]
    pub default_cache_duration: SignedDuration,
    #[serde(default)]
    pub api_version: String,
    #[serde(default)]
    pub args: Vec<String>,
    #[serde(default)]
    pub env: Vec<Variable>,
    pub token_attributes: Option<TokenAttributes>,
}

/// What a plugin is told of the pod's service account.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct TokenAttributes {
    #[serde(default)]
    pub service_account_token_audience: String,
    pub cache_type: CacheType,
    #[serde(default)]
    pub require_service_account: bool,
    #[serde(default)]
    pub required_service_account_annotation_keys: Vec<String>,
    #[serde(default)]
    pub optional_service_account_annotation_keys: Vec<String>,
}

/// Whether an answer is good for all that the account's pods show, or for this token alone.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub enum CacheType {
    ServiceAccount,
    Token,
}

/// A duration as Go writes it.
pub fn span(text: &str) -> Result<SignedDuration, String> {
    krate_api::duration::parse(text).ok_or_else(|| format!("time: invalid duration {text:?}"))
}

fn from_text<'de, D: serde::Deserializer<'de>>(from: D) -> Result<SignedDuration, D::Error> {
    span(&String::deserialize(from)?).map_err(serde::de::Error::custom)
}

/// The plugins of a file, or of all files of a directory in the order of their names.
///
/// # Errors
/// A file cannot be read or is no such configuration, or what it says cannot be.
pub fn read(path: &Path) -> Result<Vec<Provider>, ProviderError> {
    let failed = |error| ProviderError::File { path: path.to_owned(), error };
    let mut files = vec![path.to_owned()];
    if std::fs::metadata(path).map_err(failed)?.is_dir() {
        files = std::fs::read_dir(path).map_err(failed)?.flatten().map(|entry| entry.path()).collect();
        files.retain(|file| {
            file.is_file() && file.extension().is_some_and(|e| ENDINGS.iter().any(|known| e == *known))
        });
        files.sort();
    }
    let mut all = Vec::new();
    for file in files {
        all.extend(of_file(&file)?);
    }
    let wrong = problems(&all);
    if wrong.is_empty() { Ok(all) } else { Err(ProviderError::Values(wrong)) }
}

fn of_file(path: &Path) -> Result<Vec<Provider>, ProviderError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| ProviderError::File { path: path.to_owned(), error })?;
    let failed = |why: String| ProviderError::Format { path: path.to_owned(), why };
    let value: Value = serde_yaml_ng::from_str(&text).map_err(|e| failed(e.to_string()))?;
    let version = value["apiVersion"].as_str().unwrap_or_default();
    if value["kind"] != KIND || !VERSIONS.contains(&version) {
        let kind = value["kind"].as_str().unwrap_or_default();
        return Err(failed(format!("no kind {kind:?} is registered for version {version:?}")));
    }
    let config: Config = serde_json::from_value(value).map_err(|e| failed(e.to_string()))?;
    Ok(config.providers)
}

fn problems(all: &[Provider]) -> Vec<String> {
    let mut found = Vec::new();
    if all.is_empty() {
        found.push("providers: Required value: at least 1 item in plugins is required".to_owned());
    }
    for (place, provider) in all.iter().enumerate() {
        let name = &provider.name;
        let mut wrong = |field: &str, said: String| found.push(format!("providers.{field}: {said}"));
        if name.is_empty() {
            wrong("name", "Required value: name is required".to_owned());
        }
        if name.contains(['/', ' ']) || name == "." || name == ".." {
            let said = "name must not be a path or have spaces in it";
            wrong("name", format!("Invalid value: {name:?}: {said}"));
        }
        if all[..place].iter().any(|other| other.name == *name) {
            wrong("name", format!("Duplicate value: {name:?}"));
        }
        if provider.match_images.is_empty() {
            wrong("matchImages", "Required value: at least 1 item in matchImages is required".to_owned());
        }
        if !ASKED.contains(&provider.api_version.as_str()) {
            let versions = ASKED.map(|version| format!("{version:?}")).join(", ");
            let version = &provider.api_version;
            wrong("apiVersion", format!("Unsupported value: {version:?}: supported values: {versions}"));
        }
        if provider.default_cache_duration.is_negative() {
            wrong("defaultCacheDuration", "Invalid value: must be greater than or equal to 0".to_owned());
        }
        if let Some(attributes) = &provider.token_attributes {
            if attributes.service_account_token_audience.is_empty() {
                wrong(
                    "tokenAttributes.serviceAccountTokenAudience",
                    "Required value: serviceAccountTokenAudience is required".to_owned(),
                );
            }
            if provider.api_version != ASKED[0] {
                let said = format!("tokenAttributes is only supported for {} API version", ASKED[0]);
                wrong("tokenAttributes", format!("Forbidden: {said}"));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.yaml");
        let head = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\n";
        let one = |fields: &str| {
            format!(
                "{head}providers: [{{name: a, matchImages: [x.io], defaultCacheDuration: 1m, {fields}}}]\n"
            )
        };
        for (text, said) in [
            ("kind: Pod\napiVersion: v1\n".to_owned(), "no kind \"Pod\" is registered"),
            (head.to_owned(), "at least 1 item in plugins"),
            (one("apiVersion: v2"), "Unsupported value: \"v2\""),
            (one("apiVersion: credentialprovider.kubelet.k8s.io/v1, color: blue"), "unknown field `color`"),
            (
                one("apiVersion: credentialprovider.kubelet.k8s.io/v1, tokenAttributes: {cacheType: Token}"),
                "serviceAccountTokenAudience is required",
            ),
            (
                format!("{head}providers: [{{name: a/b, defaultCacheDuration: 1x}}]"),
                "invalid duration \"1x\"",
            ),
        ] {
            std::fs::write(&file, text).unwrap();
            let error = read(&file).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        std::fs::write(&file, one("apiVersion: credentialprovider.kubelet.k8s.io/v1")).unwrap();
        std::fs::write(directory.path().join("note.txt"), "no configuration").unwrap();
        assert_eq!(read(directory.path()).unwrap().len(), 1);
    }
}
