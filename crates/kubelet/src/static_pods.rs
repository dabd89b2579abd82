//! Pods that are described to the kubelet itself: by files, and by a URL. What is read is told whole each time it
//! changes.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Toleration};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde::Deserialize as _;
use serde_json::Value;
use sha2::Digest as _;
use tokio::sync::mpsc;

use crate::names;
use crate::shared::SharedRef;

/// Upstream's annotations of static pods and of their mirrors.
pub const HASH: &str = "kubernetes.io/config.hash";
pub const MIRROR: &str = "kubernetes.io/config.mirror";
const SEEN: &str = "kubernetes.io/config.seen";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    File,
    Http,
}

impl Source {
    fn name(self) -> &'static str {
        match self {
            Source::File => "file",
            Source::Http => "http",
        }
    }
}

/// All pods of one source.
pub type Told = (Source, Vec<Pod>);

/// Whether a pod is one of these.
pub fn is_static(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    annotations.and_then(|a| a.get(names::CONFIG_SOURCE)).is_some_and(|source| source != "api")
        && annotations.is_some_and(|a| !a.contains_key(MIRROR))
}

/// The pod that an object of the API is the image of, by its hash.
pub fn mirrored(pod: &Pod) -> Option<&String> {
    pod.metadata.annotations.as_ref()?.get(MIRROR)
}

/// How many sources there are.
pub fn count(shared: &SharedRef) -> usize {
    let config = &shared.config.static_pods;
    usize::from(config.path.is_some()) + usize::from(config.url.is_some())
}

/// Tells of static pods until the kubelet ends.
pub async fn run(shared: SharedRef, told: mpsc::UnboundedSender<Told>) {
    let config = shared.config.static_pods.clone();
    let files = async {
        if let Some(path) = &config.path {
            files(&shared, path, config.look, &told).await;
        }
    };
    let url = async {
        if let Some(url) = &config.url {
            ask_again(&shared, url, &config.headers, config.ask, &told).await;
        }
    };
    tokio::select! {
        () = shared.shutdown.cancelled() => {}
        _ = async { tokio::join!(files, url) } => {}
    }
}

/// Reads files when the kernel says that something has changed, and now and then.
async fn files(shared: &SharedRef, path: &Path, look: Duration, told: &mpsc::UnboundedSender<Told>) {
    let look = look.max(Duration::from_secs(1));
    let (send, mut changed) = mpsc::channel(1);
    if let Err(error) = watch(path, look, send) {
        tracing::warn!(path = %path.display(), %error, "the files of static pods cannot be watched");
    }
    let mut known = None;
    loop {
        let read = read(path, &shared.config.node_name);
        if known.as_ref() != Some(&read) {
            known = Some(read.clone());
            if told.send((Source::File, read)).is_err() {
                return;
            }
        }
        tokio::select! {
            Some(()) = changed.recv() => {}
            () = tokio::time::sleep(look) => {}
        }
    }
}

/// Says when something changes below a path, for as long as somebody listens. The kernel is waited for on a thread that
/// nobody else waits for.
fn watch(path: &Path, look: Duration, changed: mpsc::Sender<()>) -> nix::Result<()> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    let flags = AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_DELETE;
    let directory = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
    inotify.add_watch(directory, flags)?;
    let patience = PollTimeout::try_from(look).unwrap_or(PollTimeout::MAX);
    std::thread::spawn(move || {
        while !changed.is_closed() {
            let mut waiting = [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)];
            let is_told = poll(&mut waiting, patience).is_ok_and(|ready| ready > 0);
            if is_told && inotify.read_events().is_ok() {
                // A wish that is there already is enough.
                let _ = changed.try_send(());
            }
        }
    });
    Ok(())
}

/// The pods of a file, or of the files of a directory. One that cannot be read is told in the log, and passed over.
fn read(path: &Path, node: &str) -> Vec<Pod> {
    let mut files: Vec<PathBuf> = match std::fs::read_dir(path) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(_) if path.exists() => vec![path.to_owned()],
        Err(_) => Vec::new(),
    };
    files.retain(|file| {
        let is_hidden = file.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        !is_hidden && file.is_file()
    });
    files.sort();
    let mut found: BTreeMap<(String, String), Pod> = BTreeMap::new();
    for file in files {
        let text = std::fs::read_to_string(&file).map_err(|e| e.to_string());
        match text.and_then(|text| parse(&text, node, Source::File, &file.display().to_string())) {
            Ok(pods) => {
                for pod in pods {
                    let name = pod.metadata.name.clone().unwrap_or_default();
                    found.entry((names::namespace(&pod), name)).or_insert(pod);
                }
            }
            Err(error) => {
                tracing::error!(file = %file.display(), error, "a file of static pods cannot be used");
            }
        }
    }
    found.into_values().collect()
}

async fn ask_again(
    shared: &SharedRef,
    url: &str,
    headers: &BTreeMap<String, Vec<String>>,
    often: Duration,
    told: &mpsc::UnboundedSender<Told>,
) {
    let mut known = None;
    loop {
        match ask(url, headers)
            .await
            .and_then(|text| parse(&text, &shared.config.node_name, Source::Http, url))
        {
            Ok(pods) if known.as_ref() == Some(&pods) => {}
            Ok(pods) => {
                known = Some(pods.clone());
                if told.send((Source::Http, pods)).is_err() {
                    return;
                }
            }
            // What was known holds as long as nothing else is.
            Err(error) => tracing::warn!(url, error, "the URL of static pods tells nothing"),
        }
        tokio::time::sleep(often.max(Duration::from_secs(1))).await;
    }
}

async fn ask(url: &str, headers: &BTreeMap<String, Vec<String>>) -> Result<String, String> {
    let uri: http::Uri = url.parse().map_err(|e: http::uri::InvalidUri| e.to_string())?;
    let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).to_owned();
    let mut base = uri.into_parts();
    base.path_and_query = Some(http::uri::PathAndQuery::from_static("/"));
    let base = http::Uri::from_parts(base).map_err(|e| e.to_string())?;
    let mut request = http::Request::get(path);
    for (name, value) in headers.iter().flat_map(|(name, all)| all.iter().map(move |v| (name, v))) {
        request = request.header(name, value);
    }
    let request = request.body(Vec::new()).map_err(|e| e.to_string())?;
    let client = krate_client::Client::try_from(kube::Config::new(base)).map_err(|e| e.to_string())?;
    client.request_text(request).await.map_err(|e| e.to_string())
}

/// The pods of a text: one, several documents, or a list; in YAML or JSON.
fn parse(text: &str, node: &str, source: Source, place: &str) -> Result<Vec<Pod>, String> {
    let mut found = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        let value = Value::deserialize(document).map_err(|e| e.to_string())?;
        let items = match (value["kind"].as_str(), &value) {
            (Some("Pod"), _) => vec![value],
            (Some("PodList" | "List"), Value::Object(list)) => {
                list.get("items").and_then(Value::as_array).cloned().unwrap_or_default()
            }
            (None, Value::Null) => continue,
            (kind, _) => return Err(format!("invalid pod: {}", kind.unwrap_or("it has no kind"))),
        };
        for item in items {
            found.push(made(&item, node, source, place)?);
        }
    }
    Ok(found)
}

/// A pod as it runs: named after its node, and known by the hash of what describes it.
fn made(described: &Value, node: &str, source: Source, place: &str) -> Result<Pod, String> {
    let mut pod: Pod = serde_json::from_value(described.clone()).map_err(|e| e.to_string())?;
    let name = pod.metadata.name.as_deref().filter(|n| !n.is_empty()).ok_or("name is required")?;
    let name = format!("{name}-{}", node.to_lowercase());
    pod.metadata.name = Some(name);
    pod.metadata.namespace.get_or_insert_with(|| "default".to_owned());
    if pod.metadata.uid.as_deref().is_none_or(str::is_empty) {
        pod.metadata.uid = Some(hash(&format!("{described}{node}{}{place}", source.name())));
    }
    let uid = names::uid(&pod);
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(HASH.to_owned(), uid);
    annotations.insert(names::CONFIG_SOURCE.to_owned(), source.name().to_owned());
    let spec = pod.spec.as_mut().filter(|s| !s.containers.is_empty()).ok_or("spec.containers is required")?;
    spec.node_name = Some(node.to_owned());
    if source == Source::File {
        // Trouble of the node is no reason to go.
        let all = Toleration {
            operator: Some("Exists".to_owned()),
            effect: Some("NoExecute".to_owned()),
            ..Toleration::default()
        };
        spec.tolerations.get_or_insert_default().push(all);
    }
    Ok(pod)
}

/// When a pod was first seen is told, and is no part of what it is.
pub fn seen(mut pod: Pod) -> Pod {
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(SEEN.to_owned(), Timestamp::now().to_string());
    pod
}

/// 32 hexadecimal digits.
fn hash(text: &str) -> String {
    hex::encode(&sha2::Sha256::digest(text.as_bytes())[..16])
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: c, image: i}]}\n";

    #[test]
    fn a_file_describes_pods() {
        let pods = parse(POD, "Node", Source::File, "/x").unwrap();
        let pod = &pods[0];
        assert_eq!(pod.metadata.name.as_deref(), Some("web-node"));
        assert_eq!(pod.metadata.namespace.as_deref(), Some("default"));
        let annotations = pod.metadata.annotations.as_ref().unwrap();
        assert_eq!(
            (annotations[HASH].as_str(), annotations[names::CONFIG_SOURCE].as_str()),
            (names::uid(pod).as_str(), "file")
        );
        assert!(is_static(pod) && mirrored(pod).is_none());
        let spec = pod.spec.as_ref().unwrap();
        assert_eq!(spec.node_name.as_deref(), Some("Node"));
        assert_eq!(spec.tolerations.as_ref().unwrap()[0].effect.as_deref(), Some("NoExecute"));
        assert_eq!(parse(POD, "Node", Source::File, "/x").unwrap(), pods, "the same is the same");
        let changed = parse(&POD.replace("image: i", "image: j"), "Node", Source::File, "/x").unwrap();
        assert_ne!(changed[0].metadata.uid, pod.metadata.uid);
        let two = format!("{POD}---\n{}", POD.replace("web", "db"));
        assert_eq!(parse(&two, "n", Source::File, "/x").unwrap().len(), 2);
        let list = serde_json::json!({"kind": "PodList", "apiVersion": "v1", "items": [
            {"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c"}]}}]});
        assert_eq!(parse(&list.to_string(), "n", Source::Http, "/x").unwrap().len(), 1);
        for (text, said) in [
            ("kind: Service\n", "invalid pod: Service"),
            ("kind: Pod\nmetadata: {}\n", "name is required"),
            ("kind: Pod\nmetadata: {name: a}\nspec: {containers: []}\n", "spec.containers is required"),
        ] {
            assert_eq!(parse(text, "n", Source::File, "/x"), Err(said.to_owned()));
        }
    }

    #[test]
    fn hidden_and_broken_files_are_passed_over() {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in [("a.yaml", POD), (".b.yaml", POD), ("c.yaml", "kind: [")] {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        assert_eq!(read(directory.path(), "n").len(), 1);
        assert_eq!(read(&directory.path().join("a.yaml"), "n").len(), 1);
        assert_eq!(read(&directory.path().join("nowhere"), "n").len(), 0);
    }
}
