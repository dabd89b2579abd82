//! A key that a plugin has.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use krate_encryption::kms::Timing;
use krate_encryption::{Encryption, Sealed};
use krate_store::{Backend, CompareAndSet, KeyRange, Limit};
use serde_json::{Value, json};

use crate::plugin::Plugin;
use crate::support::{Store, config};

const SECRET: &str = "/registry/secrets/a/s";

fn by(socket: &Path) -> Value {
    let endpoint = format!("unix://{}", socket.display());
    let kms = json!({"apiVersion": "v2", "name": "vault", "endpoint": endpoint, "timeout": "2s"});
    json!([{"resources": ["secrets"], "providers": [{ "kms": kms }]}])
}

#[tokio::test]
async fn the_seed_lies_beside_the_value_and_only_the_plugin_opens_it() {
    let run = tempfile::tempdir().expect("a directory");
    let socket = run.path().join("kms.sock");
    let plugin = Plugin::new();
    let _serving = plugin.listen(&socket);
    let store = Store::open(by(&socket)).await;
    store.encryption.check().await.expect("it is well");
    for name in ["a", "b", "c"] {
        store.create(&format!("/registry/secrets/a/{name}"), "{\"password\":\"hunter2\"}").await;
    }
    store.create(SECRET, "{\"password\":\"hunter2\"}").await;
    assert!(store.kept(SECRET).await.starts_with(b"k8s:enc:kms:v2:vault:"));
    assert!(!store.leaks("hunter2"));
    assert_eq!(store.read(SECRET).await.expect("read"), "{\"password\":\"hunter2\"}");
    assert_eq!(plugin.decrypted(), 0, "what this server sealed it opens itself");

    // Another server, which has never seen the seed, asks once for all values.
    let other = Encryption::new(config(by(&socket)), "sha256:1", "other", false, Timing::default())
        .await
        .expect("valid");
    let other = Sealed::new(Arc::clone(&store.raw), other);
    let page = other.range(KeyRange::prefix("/registry/secrets/"), None, Limit::NONE).await.expect("read");
    assert!(page.items.len() == 4 && page.items.iter().all(|kv| kv.value == "{\"password\":\"hunter2\"}"));
    assert_eq!(plugin.decrypted(), 1);
    assert!(!other.is_stale(SECRET.as_bytes()).await.expect("known"), "the key is the same");
}

#[tokio::test]
async fn the_plugins_key_is_followed_and_its_absence_borne_for_a_while() {
    let run = tempfile::tempdir().expect("a directory");
    let socket = run.path().join("kms.sock");
    let plugin = Plugin::new();
    let _serving = plugin.listen(&socket);
    let mut rules = by(&socket);
    rules[0]["providers"][0]["kms"]["timeout"] = json!("100ms");
    let timing = Timing {
        every: Duration::from_millis(20),
        every_while_ill: Duration::from_millis(20),
        written_with: Duration::from_millis(1500),
        good_for: Duration::ZERO,
        good_for_while_ill: Duration::ZERO,
    };
    let store = Store::timed(rules, timing).await;
    store.create(SECRET, "{}").await;

    plugin.set_key("key-2");
    until(async || store.sealed.is_stale(SECRET.as_bytes()).await.expect("known")).await;
    assert_eq!(store.read(SECRET).await.expect("read"), "{}");
    store.create("/registry/secrets/a/t", "{}").await;
    assert!(!store.sealed.is_stale(b"/registry/secrets/a/t").await.expect("known"));

    plugin.set_health("sealed shut");
    assert_eq!(
        store.encryption.check().await.expect_err("ill").to_string(),
        "kms-provider-0: kmsv2 Provider vault is not healthy, error: got unexpected healthz status: sealed shut"
    );
    plugin.set_health("ok");
    store.encryption.check().await.expect("well again");

    plugin.set_away(true);
    until(async || store.encryption.check().await.is_err()).await;
    store.create("/registry/secrets/a/u", "{}").await;
    let writes = async || store.sealed.commit(CompareAndSet::put("/registry/secrets/a/u", "{}")).await;
    until(async || writes().await.is_err()).await;
    let refused = writes().await.expect_err("the seed is too old").to_string();
    assert!(refused.starts_with("encryptedDEKSource with keyID hash \"sha256:"), "{refused}");
    assert!(refused.contains(" expired at "), "{refused}");
    assert_eq!(store.read(SECRET).await.expect("reading goes on"), "{}");
    assert_eq!(
        store.encryption.check().await.expect_err("away").to_string(),
        "kms-provider-0: failed to perform status section of the healthz check for KMS Provider vault, error: \
         rpc error: code = Unavailable desc = away"
    );

    plugin.set_away(false);
    until(async || writes().await.is_ok()).await;
}

/// Waits until it is so.
async fn until(so: impl AsyncFn() -> bool) {
    let end = tokio::time::Instant::now() + Duration::from_mins(1);
    while !so().await {
        assert!(tokio::time::Instant::now() < end, "it did not come to be");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_plugin_that_is_not_there_is_waited_for_and_no_longer() {
    let run = tempfile::tempdir().expect("a directory");
    let socket = run.path().join("kms.sock");
    let plugin = Plugin::new();
    let (late, at) = (plugin.clone(), socket.clone());
    let listening = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let _ = late.listen(&at).await;
    });
    let store = Store::open(by(&socket)).await;
    store.create(SECRET, "{}").await;
    listening.abort();

    let mut rules = by(&run.path().join("nobody.sock"));
    rules[0]["providers"][0]["kms"]["timeout"] = json!("100ms");
    let without = Store::open(rules).await;
    let write = CompareAndSet::create(SECRET, "{}");
    let refused = without.sealed.commit(write).await.expect_err("no key").to_string();
    assert_eq!(refused, "got unexpected nil transformer");
    let ill = without.encryption.check().await.expect_err("ill").to_string();
    assert!(ill.ends_with("rpc error: code = DeadlineExceeded desc = context deadline exceeded"), "{ill}");
}
