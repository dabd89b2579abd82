//! What a pod may show to registries: the accounts of its `imagePullSecrets`, and which of them are for an image.

use std::collections::{BTreeMap, HashMap};

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use k8s_cri::v1::AuthConfig;
use k8s_openapi::api::core::v1::Secret;
use serde::Deserialize;

/// The registry of names that bear none.
const DEFAULT: &str = "index.docker.io";

/// Base64 with its padding or without.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Accounts by the registries and paths that they are for. The more special come first.
#[derive(Clone, Debug, Default)]
pub struct Keyring {
    accounts: BTreeMap<String, Vec<AuthConfig>>,
}

#[derive(Deserialize)]
struct DockerConfigJson {
    #[serde(default)]
    auths: HashMap<String, Entry>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    username: String,
    password: String,
    auth: String,
}

impl Keyring {
    /// Takes up the accounts of a secret of type `kubernetes.io/dockerconfigjson` or `kubernetes.io/dockercfg`. What is
    /// no such secret, or cannot be read, has none.
    pub fn add(&mut self, secret: &Secret) {
        let data = |key: &str| secret.data.as_ref()?.get(key).map(|bytes| bytes.0.as_slice());
        let entries: HashMap<String, Entry> = match secret.type_.as_deref() {
            Some("kubernetes.io/dockerconfigjson") => data(".dockerconfigjson")
                .and_then(|bytes| serde_json::from_slice::<DockerConfigJson>(bytes).ok())
                .map(|config| config.auths)
                .unwrap_or_default(),
            Some("kubernetes.io/dockercfg") => {
                data(".dockercfg").and_then(|bytes| serde_json::from_slice(bytes).ok()).unwrap_or_default()
            }
            _ => HashMap::new(),
        };
        for (location, entry) in entries {
            let Some((username, password)) = entry.account() else { continue };
            let account = AuthConfig { username, password, ..Default::default() };
            self.accounts.entry(key(&location)).or_default().push(account);
        }
    }

    /// Takes up one account for a registry, or a path or pattern of it.
    pub fn insert(&mut self, location: &str, username: String, password: String) {
        let account = AuthConfig { username, password, ..Default::default() };
        self.accounts.entry(key(location)).or_default().push(account);
    }

    /// The accounts to try for an image, in order; none when it is to be asked for without.
    pub fn lookup(&self, image: &str) -> Vec<AuthConfig> {
        let repository = repository(image);
        let matching = self.accounts.iter().rev().filter(|(key, _)| matches(key, &repository));
        let found: Vec<AuthConfig> = matching.flat_map(|(_, accounts)| accounts.clone()).collect();
        if found.is_empty() && repository.starts_with("docker.io/") {
            return self.accounts.get(DEFAULT).cloned().unwrap_or_default();
        }
        found
    }
}

impl Entry {
    /// User and password; `auth` counts before the two alone.
    fn account(self) -> Option<(String, String)> {
        if self.auth.is_empty() {
            return Some((self.username, self.password));
        }
        let decoded = String::from_utf8(LENIENT.decode(self.auth.trim()).ok()?).ok()?;
        let (user, password) = decoded.split_once(':')?;
        Some((user.to_owned(), password.trim_end_matches('\0').to_owned()))
    }
}

/// What a location in a docker configuration stands for: a host, or a host and the path below it.
pub fn key(location: &str) -> String {
    let bare = location.strip_prefix("https://").or_else(|| location.strip_prefix("http://"));
    let bare = bare.unwrap_or(location);
    let (host, path) = bare.find('/').map_or((bare, ""), |at| bare.split_at(at));
    let versioned = path.starts_with("/v1/") || path.starts_with("/v2/");
    let path = if versioned { &path[3..] } else { path };
    if path == "/" { host.to_owned() } else { format!("{host}{path}") }
}

/// An image's full name without tag and digest.
pub fn repository(image: &str) -> String {
    let name = image.split('@').next().unwrap_or(image);
    let name = match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => name,
    };
    match name.split_once('/') {
        Some(("index.docker.io", rest)) => format!("docker.io/{rest}"),
        Some(("docker.io", rest)) if !rest.contains('/') => format!("docker.io/library/{rest}"),
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => name.to_owned(),
        Some(_) => format!("docker.io/{name}"),
        None => format!("docker.io/library/{name}"),
    }
}

/// Whether an account for `key` is good for `repository`: the ports are the same, each label of the host fits, in which
/// `*` and `?` stand for anything, and the path begins alike.
pub fn matches(key: &str, repository: &str) -> bool {
    let split = |name: &str| {
        let (host, path) = name.find('/').map_or((name, ""), |at| name.split_at(at));
        let (host, port) = host.rsplit_once(':').unwrap_or((host, ""));
        (host.to_owned(), port.to_owned(), path.to_owned())
    };
    let ((pattern, key_port, key_path), (host, port, path)) = (split(key), split(repository));
    let (patterns, labels): (Vec<&str>, Vec<&str>) =
        (pattern.split('.').collect(), host.split('.').collect());
    key_port == port
        && path.starts_with(&key_path)
        && patterns.len() == labels.len()
        && patterns.iter().zip(labels).all(|(pattern, label)| fits(pattern.as_bytes(), label.as_bytes()))
}

fn fits(pattern: &[u8], label: &[u8]) -> bool {
    match (pattern.first(), label.first()) {
        (None, None) => true,
        (Some(b'*'), _) => fits(&pattern[1..], label) || (!label.is_empty() && fits(pattern, &label[1..])),
        (Some(b'?'), Some(_)) => fits(&pattern[1..], &label[1..]),
        (Some(wanted), Some(given)) => wanted == given && fits(&pattern[1..], &label[1..]),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    fn secret(kind: &str, key: &str, text: &str) -> Secret {
        Secret {
            type_: Some(format!("kubernetes.io/{kind}")),
            data: Some([(key.to_owned(), ByteString(text.as_bytes().to_vec()))].into()),
            ..Default::default()
        }
    }

    #[test]
    fn accounts_are_for_hosts_paths_and_patterns() {
        for (location, image, is_for) in [
            ("reg.example", "reg.example/a:1", true),
            ("https://reg.example/v1/", "reg.example/a/b@sha256:0", true),
            ("http://reg.example/v2/", "reg.example/a", true),
            ("reg.example", "reg.example:5000/a", false),
            ("reg.example:5000", "reg.example:5000/a:1", true),
            ("reg.example/team", "reg.example/team/a", true),
            ("reg.example/team", "reg.example/other/a", false),
            ("*.example", "reg.example/a", true),
            ("*.example", "a.reg.example/a", false),
            ("r*g.exampl?", "reg.example/a", true),
            ("https://index.docker.io/v1/", "busybox", true),
            ("https://index.docker.io/v1/", "team/app:1", true),
            ("https://index.docker.io/v1/", "index.docker.io/team/app", true),
            ("docker.io", "busybox", true),
            ("docker.io", "localhost/busybox", false),
            ("docker.io", "reg.example/busybox", false),
        ] {
            let mut keyring = Keyring::default();
            let text = format!(r#"{{"auths":{{"{location}":{{"username":"u","password":"p"}}}}}}"#);
            keyring.add(&secret("dockerconfigjson", ".dockerconfigjson", &text));
            assert_eq!(!keyring.lookup(image).is_empty(), is_for, "{location} for {image}");
        }
    }

    #[test]
    fn both_sorts_of_secret_are_read_and_the_more_special_is_first() {
        let mut keyring = Keyring::default();
        // "a:b:c" with padding and without, and what is none.
        let text = r#"{"auths":{"r.io":{"auth":"YTpiOmM="},"r.io/team":{"auth":"YTpiOmM"},"r.io/team/x":{"auth":"?"}}}"#;
        keyring.add(&secret("dockerconfigjson", ".dockerconfigjson", text));
        keyring.add(&secret(
            "dockercfg",
            ".dockercfg",
            r#"{"r.io/team/app":{"username":"u","password":"p"}}"#,
        ));
        keyring.add(&secret("tls", ".dockercfg", r#"{"r.io":{"username":"not","password":"this"}}"#));
        let found: Vec<(String, String)> =
            keyring.lookup("r.io/team/app:1").into_iter().map(|a| (a.username, a.password)).collect();
        let pair = |user: &str, password: &str| (user.to_owned(), password.to_owned());
        assert_eq!(found, [pair("u", "p"), pair("a", "b:c"), pair("a", "b:c")]);
    }
}
