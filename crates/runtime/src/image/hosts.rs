//! Where a registry's content is asked for: mirrors, private authorities, client certificates and headers, by the
//! directories `certs.d/<host>/hosts.toml` as containerd reads them.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::config::Registries;

/// One place that serves a registry's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Scheme, authority and path, up to and with `/v2`; without a slash at its end.
    pub base: String,
    /// `host[:port]`, by which secrets are given out.
    pub authority: String,
    /// Whether it may say what a tag stands for.
    pub resolves: bool,
    /// Whether content is fetched from it.
    pub pulls: bool,
    /// Certificates of authorities beside the system's, PEM.
    pub authorities: Vec<PathBuf>,
    /// Certificate and key to show, PEM; the key may be in the certificate's file.
    pub client: Option<(PathBuf, Option<PathBuf>)>,
    /// Takes whatever certificate it shows.
    pub skip_verify: bool,
    pub headers: Vec<(String, String)>,
}

#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    #[error("failed to load {path}: {why}")]
    File { path: PathBuf, why: String },
}

/// Where the content of `registry` (as image names have it) is asked for, in order: mirrors first, then itself.
///
/// # Errors
/// A file that says so cannot be read or makes no sense.
pub fn of(registry: &str, registries: &Registries) -> Result<Vec<Host>, HostsError> {
    let default = default_host(registry, registries);
    let Some(directory) = registries.directories.iter().find_map(|root| directory(root, registry)) else {
        return Ok(vec![default]);
    };
    let path = directory.join("hosts.toml");
    let wrong = |why: String| HostsError::File { path: path.clone(), why };
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(vec![docker_style(&directory, default).map_err(|e| wrong(e.to_string()))?]);
        }
        Err(error) => return Err(wrong(error.to_string())),
    };
    parse(&text, &directory, default).map_err(wrong)
}

fn directory(root: &Path, registry: &str) -> Option<PathBuf> {
    let with_port = registry.split_once(':').map(|(host, port)| format!("{host}_{port}_"));
    let names = with_port.as_deref().into_iter().chain([registry, "_default"]);
    names.map(|name| root.join(name)).find(|directory| directory.is_dir())
}

fn default_host(registry: &str, registries: &Registries) -> Host {
    let authority = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
    let scheme = if is_plain(registry, registries) { "http" } else { "https" };
    Host {
        base: format!("{scheme}://{authority}/v2"),
        authority: authority.to_owned(),
        resolves: true,
        pulls: true,
        authorities: Vec::new(),
        client: None,
        skip_verify: false,
        headers: Vec::new(),
    }
}

/// Whether a registry is spoken to without encryption when nothing else is said.
fn is_plain(registry: &str, registries: &Registries) -> bool {
    is_loopback(registry) || registries.insecure.iter().any(|insecure| insecure == registry)
}

/// Whether `host[:port]` is this machine by its name.
pub fn is_loopback(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => authority.split(':').next().unwrap_or(authority),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// What is said of one host.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Section {
    capabilities: Option<Vec<String>>,
    ca: OneOrMore<PathBuf>,
    client: Option<Client>,
    skip_verify: bool,
    header: toml::Table,
    override_path: bool,
}

#[derive(Debug, Deserialize)]
struct File {
    server: Option<String>,
    #[serde(flatten)]
    own: Section,
    /// In the order of the file.
    #[serde(default)]
    host: toml::Table,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMore<T> {
    One(T),
    More(Vec<T>),
}

impl<T> Default for OneOrMore<T> {
    fn default() -> Self {
        Self::More(Vec::new())
    }
}

impl<T> OneOrMore<T> {
    fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::More(all) => all,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Client {
    One(PathBuf),
    Files(Vec<PathBuf>),
    Pairs(Vec<Vec<PathBuf>>),
}

fn parse(text: &str, directory: &Path, default: Host) -> Result<Vec<Host>, String> {
    let file: File = toml::from_str(text).map_err(|e| e.to_string())?;
    let mut hosts = Vec::new();
    for (name, section) in file.host {
        let section = section.try_into::<Section>().map_err(|e| format!("host {name:?}: {e}"))?;
        hosts.push(host(&name, section, directory)?);
    }
    let own = match file.server.filter(|server| !server.is_empty()) {
        Some(server) => host(&server, file.own, directory)?,
        None => Host { base: default.base.clone(), ..host(&default.base, file.own, directory)? },
    };
    hosts.push(own);
    Ok(hosts)
}

fn host(name: &str, section: Section, directory: &Path) -> Result<Host, String> {
    let url = if name.contains("://") { name.to_owned() } else { format!("https://{name}") };
    let uri: http::Uri = url.parse().map_err(|e| format!("{name:?} is not an address: {e}"))?;
    let authority =
        uri.authority().ok_or_else(|| format!("{name:?} is not an address: it names no host"))?.to_string();
    let mut path = uri.path().trim_end_matches('/').to_owned();
    if !section.override_path && !path.ends_with("/v2") {
        path.push_str("/v2");
    }
    let known = ["pull", "resolve", "push"];
    let capabilities = section.capabilities.unwrap_or_else(|| known.map(str::to_owned).to_vec());
    if let Some(odd) = capabilities.iter().find(|c| !known.contains(&c.as_str())) {
        return Err(format!("unknown capability {odd}"));
    }
    let has = |wanted: &str| capabilities.iter().any(|capability| capability == wanted);
    let at = |path: &PathBuf| directory.join(path);
    let client = match &section.client {
        None => None,
        Some(Client::One(file)) => Some((at(file), None)),
        Some(Client::Files(files)) => files.first().map(|file| (at(file), None)),
        Some(Client::Pairs(pairs)) => match pairs.first().map(Vec::as_slice) {
            Some([certificate]) => Some((at(certificate), None)),
            Some([certificate, key]) => Some((at(certificate), Some(at(key)))),
            Some(_) => return Err("client: a pair is a certificate and its key".into()),
            None => None,
        },
    };
    let mut headers = Vec::new();
    for (name, value) in section.header {
        let values = value.try_into::<OneOrMore<String>>().map_err(|e| format!("header {name:?}: {e}"))?;
        headers.extend(values.into_vec().into_iter().map(|value| (name.clone(), value)));
    }
    Ok(Host {
        base: format!("{}://{authority}{path}", uri.scheme_str().unwrap_or("https")),
        authority,
        resolves: has("resolve"),
        pulls: has("pull"),
        authorities: section.ca.into_vec().iter().map(at).collect(),
        client,
        skip_verify: section.skip_verify,
        headers,
    })
}

/// A directory without `hosts.toml`, as docker has it: `*.crt` are authorities, `*.cert` and `*.key` are to be shown.
fn docker_style(directory: &Path, mut host: Host) -> std::io::Result<Host> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(directory)?.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    files.sort();
    let ends = |path: &Path, extension: &str| path.extension().is_some_and(|e| e == extension);
    host.authorities = files.iter().filter(|path| ends(path, "crt")).cloned().collect();
    host.client = files
        .iter()
        .find(|path| ends(path, "cert"))
        .map(|path| (path.clone(), Some(path.with_extension("key")).filter(|key| key.exists())));
    if !host.authorities.is_empty() || host.client.is_some() {
        // Whoever has certificates for it means to speak to it with encryption.
        host.base = host.base.replacen("http://", "https://", 1);
    }
    Ok(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registries(root: &Path) -> Registries {
        Registries { directories: vec![root.to_owned()], insecure: vec!["reg.lan:5000".into()] }
    }

    fn write(root: &Path, host: &str, name: &str, text: &str) {
        std::fs::create_dir_all(root.join(host)).unwrap();
        std::fs::write(root.join(host).join(name), text).unwrap();
    }

    #[test]
    fn without_a_file_a_registry_speaks_for_itself() {
        let root = tempfile::tempdir().unwrap();
        for (registry, base) in [
            ("docker.io", "https://registry-1.docker.io/v2"),
            ("reg.lan", "https://reg.lan/v2"),
            ("reg.lan:5000", "http://reg.lan:5000/v2"),
            ("localhost:5000", "http://localhost:5000/v2"),
            ("127.0.0.1", "http://127.0.0.1/v2"),
            ("[::1]:5000", "http://[::1]:5000/v2"),
        ] {
            let hosts = of(registry, &registries(root.path())).unwrap();
            assert_eq!((hosts.len(), hosts[0].base.as_str()), (1, base), "{registry}");
        }
    }

    #[test]
    fn mirrors_come_in_the_order_of_the_file() {
        let root = tempfile::tempdir().unwrap();
        let text = r#"
            server = "https://reg.example/private"
            ca = "/etc/ca.pem"
            [host."https://z.example:5000"]
              capabilities = ["pull"]
              ca = ["one.pem", "two.pem"]
              client = [["a.cert", "a.key"]]
              [host."https://z.example:5000".header]
                x-one = "1"
                x-more = ["2", "3"]
            [host."http://a.example/mirror/path"]
              override_path = true
              skip_verify = true
        "#;
        write(root.path(), "reg.example_444_", "hosts.toml", text);
        let hosts = of("reg.example:444", &registries(root.path())).unwrap();
        let bases: Vec<&str> = hosts.iter().map(|host| host.base.as_str()).collect();
        assert_eq!(
            bases,
            ["https://z.example:5000/v2", "http://a.example/mirror/path", "https://reg.example/private/v2"]
        );
        assert!(hosts[0].pulls && !hosts[0].resolves && hosts[1].resolves);
        let directory = root.path().join("reg.example_444_");
        assert_eq!(hosts[0].authorities, [directory.join("one.pem"), directory.join("two.pem")]);
        assert_eq!(hosts[0].client, Some((directory.join("a.cert"), Some(directory.join("a.key")))));
        assert_eq!(hosts[0].headers.len(), 3);
        assert!(hosts[1].skip_verify && !hosts[0].skip_verify);
        assert_eq!(hosts[2].authorities, [PathBuf::from("/etc/ca.pem")]);
    }

    #[test]
    fn a_default_directory_is_for_all_the_others() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "_default", "hosts.toml", "[host.\"https://cache.example\"]\n");
        let hosts = of("quay.io", &registries(root.path())).unwrap();
        let bases: Vec<&str> = hosts.iter().map(|host| host.base.as_str()).collect();
        assert_eq!(bases, ["https://cache.example/v2", "https://quay.io/v2"]);
    }

    #[test]
    fn certificates_alone_mean_encryption() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "127.0.0.1:5000", "own.crt", "");
        let hosts = of("127.0.0.1:5000", &registries(root.path())).unwrap();
        assert_eq!(hosts[0].base, "https://127.0.0.1:5000/v2");
        assert_eq!(hosts[0].authorities, [root.path().join("127.0.0.1:5000/own.crt")]);
    }

    #[test]
    fn nonsense_is_told() {
        let root = tempfile::tempdir().unwrap();
        for text in ["server = ", "[host.\"https://a\"]\ncapabilities = [\"fly\"]", "[host.\"https:// a\"]"] {
            write(root.path(), "a.b", "hosts.toml", text);
            let error = of("a.b", &registries(root.path())).unwrap_err().to_string();
            assert!(error.contains("hosts.toml"), "{text}: {error}");
        }
    }
}
