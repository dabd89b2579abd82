//! Encryption at rest: what lies on the disk of a server, and what it answers meanwhile.

use std::path::Path;
use std::time::Duration;

use krate_apiserver::EncryptionFile;
use serde_json::json;

use crate::support::Api;

const PATH: &str = "/api/v1/namespaces/default/secrets";

fn configuration(keys: &[(&str, &str)]) -> String {
    let keys: Vec<_> = keys.iter().map(|(name, secret)| json!({"name": name, "secret": secret})).collect();
    json!({
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "EncryptionConfiguration",
        "resources": [{
            "resources": ["secrets", "widgets.example.com"],
            "providers": [{"aesgcm": {"keys": keys}}, {"identity": {}}],
        }],
    })
    .to_string()
}

const ONE: (&str, &str) = ("one", "c2VjcmV0IGlzIHNlY3VyZQ==");
const TWO: (&str, &str) = ("two", "c2VjcmV0IGlzIHNlY3VyZSwgb3IgaXMgaXQ/ICAgICA=");

/// How often a text stands in the files below a directory.
fn count(dir: &Path, text: &str) -> usize {
    let entries = std::fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").path());
    entries
        .map(|path| {
            if path.is_dir() {
                return count(&path, text);
            }
            let bytes = std::fs::read(&path).expect("a file");
            bytes.windows(text.len()).filter(|window| *window == text.as_bytes()).count()
        })
        .sum()
}

#[tokio::test]
async fn a_secret_is_unreadable_on_disk_and_its_key_is_exchanged_while_the_server_runs() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("encryption.yaml");
    std::fs::write(&path, configuration(&[ONE])).expect("written");
    let file = EncryptionFile { path: path.clone(), reload: true, look_every: Duration::from_millis(10) };
    let api = Api::start_with(|config| config.encryption = Some(file)).await;

    let secret = json!({"metadata": {"name": "s"}, "stringData": {"password": "correct-horse"}});
    let (code, created) = api.post(PATH, &secret).await;
    assert_eq!(code, 201, "{created}");
    let encoded = created["data"]["password"].as_str().expect("it is encoded");
    let open = json!({"metadata": {"name": "c"}, "data": {"open": "battery-staple"}});
    assert_eq!(api.post("/api/v1/namespaces/default/configmaps", &open).await.0, 201);
    assert_eq!(count(api.dir(), encoded), 0);
    assert!(count(api.dir(), "battery-staple") > 0);
    assert!(count(api.dir(), "k8s:enc:aesgcm:v1:one:") > 0);
    let (_, read) = api.get(&format!("{PATH}/s")).await;
    assert_eq!(read["data"]["password"], encoded);

    // Nothing changes, so nothing is written: the resourceVersion stays.
    let none = json!({"metadata": {"labels": null}});
    let (_, same) = api.patch(&format!("{PATH}/s"), &none).await;
    assert_eq!(same["metadata"]["resourceVersion"], created["metadata"]["resourceVersion"]);

    // With another key the same write is one, which brings the secret under it.
    std::fs::write(&path, configuration(&[TWO, ONE])).expect("written");
    let reloads = "apiserver_encryption_config_controller_automatic_reloads_total{";
    api.until("/metrics", |_, text| text.as_str().is_some_and(|text| text.contains(reloads))).await;
    let (_, moved) = api.patch(&format!("{PATH}/s"), &none).await;
    assert_ne!(moved["metadata"]["resourceVersion"], created["metadata"]["resourceVersion"]);
    assert!(count(api.dir(), "k8s:enc:aesgcm:v1:two:") > 0);
    let (code, well) = api.get("/readyz/kms-providers").await;
    assert_eq!((code, well), (200, json!("ok")));

    // A file that is wrong changes nothing.
    std::fs::write(&path, configuration(&[("three", "c2hvcnQ=")])).expect("written");
    let failed = "automatic_reloads_total{apiserver_id_hash=";
    api.until("/metrics", |_, text| {
        let mut lines = text.as_str().unwrap_or_default().lines();
        lines.any(|line| line.contains(failed) && line.contains("status=\"failure\""))
    })
    .await;
    assert_eq!(api.get(&format!("{PATH}/s")).await.1["data"]["password"], encoded);

    // What the key sealed is lost without it, and a server that cannot read its objects does not begin.
    std::fs::write(&path, configuration(&[ONE])).expect("written");
    let refused = api.again(|config| config.encryption = Some(EncryptionFile::new(&path, false))).await;
    let refused = refused.err().expect("it does not begin");
    assert!(
        refused.starts_with(
            "the store cannot be read: unable to transform key \"/registry/secrets/default/s\": "
        ),
        "{refused}"
    );
}
