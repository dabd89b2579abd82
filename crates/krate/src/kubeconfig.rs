//! Kubeconfig files: the one of a cluster, and its merging into the user's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use krate_pki::Pair;
use nix::fcntl::{Flock, FlockArg};
use serde_yaml_ng::{Mapping, Value};

use crate::apiserver::Started;
use crate::datadir::DataDir;
use crate::pki::write_atomically;

/// What a kubeconfig says of one cluster and its administrator.
pub struct Entry<'a> {
    /// The name of the context, the cluster and the user.
    pub name: &'a str,
    pub server: &'a str,
    pub ca: &'a str,
    pub admin: &'a Pair,
}

/// Writes how the administrator reaches a cluster into its data directory, and into another kubeconfig if one is named; and
/// again whenever their certificate is another.
pub fn keep(dir: &DataDir, cluster: &Started, other: Option<&Path>) -> Result<()> {
    let (dir, other) = (dir.clone(), other.map(Path::to_owned));
    let (server, ca) = (cluster.url.clone(), cluster.authority.certificate().to_owned());
    let put = move |admin: &Pair, merge: fn(&Path, &Entry<'_>) -> Result<()>| {
        let entry = Entry { name: &dir.context_name(), server: &server, ca: &ca, admin };
        write(&dir.kubeconfig(), &entry)?;
        other.as_ref().map_or(Ok(()), |file| merge(file, &entry))
    };
    let mut admin = cluster.admin.clone();
    put(&*admin.newest().context("the administrator has no certificate")?, merge)?;
    let put = Arc::new(put);
    tokio::spawn(async move {
        loop {
            admin.changed().await;
            let Some(newest) = admin.newest() else { continue };
            let put = Arc::clone(&put);
            let written = tokio::task::spawn_blocking(move || put(&newest, renew)).await;
            if let Err(error) = written.map_err(anyhow::Error::from).flatten() {
                tracing::error!(
                    error = format!("{error:#}"),
                    "the administrator's new certificate cannot be written"
                );
            }
        }
    });
    Ok(())
}

/// The user's kubeconfig: the first of `$KUBECONFIG`, or `~/.kube/config`. `None` if there is no home.
pub fn users_own() -> Option<PathBuf> {
    if let Some(list) = std::env::var_os("KUBECONFIG")
        && let Some(first) = std::env::split_paths(&list).find(|p| !p.as_os_str().is_empty())
    {
        return Some(first);
    }
    std::env::home_dir().map(|home| home.join(".kube/config"))
}

/// Writes a kubeconfig that holds this entry alone.
pub fn write(file: &Path, entry: &Entry<'_>) -> Result<()> {
    let mut config = empty();
    set(&mut config, entry);
    save(file, &config)
}

/// Puts the entry into a kubeconfig that may hold others, and makes it the current one.
pub fn merge(file: &Path, entry: &Entry<'_>) -> Result<()> {
    with_lock(file, |config| {
        set(config, entry);
        true
    })
}

/// Replaces an entry that is still there, and leaves what the user has chosen since as the current one.
fn renew(file: &Path, entry: &Entry<'_>) -> Result<()> {
    if !file.exists() {
        return Ok(());
    }
    with_lock(file, |config| {
        let current = config.get("current-context").cloned();
        let users = config.get("users").and_then(Value::as_sequence);
        let named = |user: &Value| user.get("name").and_then(Value::as_str) == Some(entry.name);
        if !users.is_some_and(|users| users.iter().any(named)) {
            return false;
        }
        set(config, entry);
        config.insert("current-context".into(), current.unwrap_or_default());
        true
    })
}

/// Takes an entry out of a kubeconfig, if it is there.
pub fn remove(file: &Path, name: &str) -> Result<()> {
    if !file.exists() {
        return Ok(());
    }
    with_lock(file, |config| {
        let before = config.clone();
        for list in ["clusters", "users", "contexts"] {
            if let Some(items) = config.get_mut(list).and_then(Value::as_sequence_mut) {
                items.retain(|item| item.get("name").and_then(Value::as_str) != Some(name));
            }
        }
        if config.get("current-context").and_then(Value::as_str) == Some(name) {
            config.insert("current-context".into(), "".into());
        }
        *config != before
    })
}

/// Several clusters may start at once: each reads and writes the file under a lock of its own beside it.
fn with_lock(file: &Path, change: impl FnOnce(&mut Mapping) -> bool) -> Result<()> {
    let dir = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let handle = fs::File::open(dir).with_context(|| format!("opening {}", dir.display()))?;
    let _lock =
        Flock::lock(handle, FlockArg::LockExclusive).map_err(|(_, e)| e).context("locking the kubeconfig")?;
    let mut config = match fs::read_to_string(file) {
        Ok(text) if !text.trim().is_empty() => serde_yaml_ng::from_str(&text).with_context(|| {
            format!("{} is no kubeconfig; mend it, or use --no-kubeconfig", file.display())
        })?,
        Ok(_) => empty(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => empty(),
        Err(error) => return Err(error).with_context(|| format!("reading {}", file.display())),
    };
    if change(&mut config) { save(file, &config) } else { Ok(()) }
}

fn save(file: &Path, config: &Mapping) -> Result<()> {
    write_atomically(file, serde_yaml_ng::to_string(config)?.as_bytes(), 0o600)
}

fn empty() -> Mapping {
    map(&[("apiVersion", "v1".into()), ("kind", "Config".into()), ("preferences", Mapping::new().into())])
}

fn map(entries: &[(&str, Value)]) -> Mapping {
    entries.iter().map(|(k, v)| (Value::from(*k), v.clone())).collect()
}

fn set(config: &mut Mapping, entry: &Entry<'_>) {
    let data = |pem: &str| Value::from(STANDARD.encode(pem));
    let name = Value::from(entry.name);
    let cluster = map(&[("certificate-authority-data", data(entry.ca)), ("server", entry.server.into())]);
    let user = map(&[
        ("client-certificate-data", data(&entry.admin.certificate)),
        ("client-key-data", data(&entry.admin.key)),
    ]);
    let context = map(&[("cluster", name.clone()), ("user", name.clone())]);
    for (list, field, value) in
        [("clusters", "cluster", cluster), ("users", "user", user), ("contexts", "context", context)]
    {
        let item = Value::from(map(&[("name", name.clone()), (field, value.into())]));
        let key = Value::from(list);
        if !config.get(&key).is_some_and(Value::is_sequence) {
            config.insert(key.clone(), Value::Sequence(Vec::new()));
        }
        let Some(items) = config.get_mut(&key).and_then(Value::as_sequence_mut) else { continue };
        match items.iter_mut().find(|i| i.get("name") == Some(&name)) {
            Some(there) => *there = item,
            None => items.push(item),
        }
    }
    config.insert("current-context".into(), name);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(file: &Path, list: &str) -> Vec<String> {
        let config: Mapping =
            serde_yaml_ng::from_str(&fs::read_to_string(file).expect("there")).expect("yaml");
        let items = config.get(list).and_then(Value::as_sequence).cloned().unwrap_or_default();
        items.iter().filter_map(|i| i.get("name").and_then(Value::as_str).map(str::to_owned)).collect()
    }

    #[test]
    fn merging_keeps_what_others_wrote_and_replaces_our_own() {
        let dir = std::env::temp_dir().join(format!("krate-kubeconfig-{}", std::process::id()));
        let file = dir.join("config");
        fs::create_dir_all(&dir).expect("made");
        fs::write(&file, "apiVersion: v1\nkind: Config\nclusters:\n- name: other\n  cluster: {server: x}\n")
            .expect("written");
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = rcgen::CertificateParams::default().self_signed(&key).expect("a certificate");
        let admin = Pair::from_pem(&certificate.pem(), &key.serialize_pem()).expect("a pair");
        let entry = Entry { name: "krate", server: "https://127.0.0.1:6443", ca: "ca", admin: &admin };
        merge(&file, &entry).expect("merged");
        merge(&file, &entry).expect("merged again");
        assert_eq!(names(&file, "clusters"), ["other", "krate"]);
        assert_eq!(names(&file, "contexts"), ["krate"]);
        let current = |to: &str| {
            let text = fs::read_to_string(&file).expect("there");
            let other = text.replace("current-context: krate", &format!("current-context: {to}"));
            fs::write(&file, &other).expect("written");
            other
        };
        current("other");
        renew(&file, &entry).expect("renewed");
        assert!(current("other").contains("current-context: other"), "who has chosen another has it still");
        remove(&file, "krate").expect("removed");
        renew(&file, &entry).expect("left alone");
        assert_eq!(names(&file, "clusters"), ["other"]);
        assert!(names(&file, "users").is_empty());
        fs::remove_dir_all(&dir).expect("removed");
    }
}
