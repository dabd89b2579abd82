//! Providers with keys of their own.

use futures::StreamExt as _;
use krate_store::{CompareAndSet, Error, KeyRange, Revision, WatchEvent};
use serde_json::{Value, json};

use crate::support::{Store, config};

const SECRET: &str = "/registry/secrets/a/s";
const ONE: &str = "c2VjcmV0IGlzIHNlY3VyZSwgb3IgaXMgaXQ/ICAgICA=";
const TWO: &str = "dGhpcyBpcyBwYXNzd29yZCB0d28gb2YgMzIgYnl0ZXM=";

fn by(provider: &str, keys: &[(&str, &str)]) -> Value {
    let keys: Vec<Value> =
        keys.iter().map(|(name, secret)| json!({"name": name, "secret": secret})).collect();
    json!({ provider: { "keys": keys } })
}

#[tokio::test]
async fn what_is_kept_is_unreadable_and_what_is_read_is_as_written() {
    for provider in ["aescbc", "aesgcm", "secretbox"] {
        let store =
            Store::open(json!([{"resources": ["secrets"], "providers": [by(provider, &[("k1", ONE)])]}]))
                .await;
        let mut watch = store.sealed.watch(KeyRange::prefix("/registry/"), Revision(1));
        let first = store.create(SECRET, "{\"password\":\"hunter2\"}").await;
        store.create("/registry/configmaps/a/c", "{\"open\":\"to all\"}").await;
        let kept = store.kept(SECRET).await;
        assert!(kept.starts_with(format!("k8s:enc:{provider}:v1:k1:").as_bytes()), "{kept:?}");
        assert!(!store.leaks("hunter2") && store.leaks("to all"), "{provider}");
        assert_eq!(store.read(SECRET).await.expect("read"), "{\"password\":\"hunter2\"}");

        let event = watch.next().await.expect("a batch").expect("events").events.remove(0);
        let WatchEvent::Put { kv, .. } = event else { panic!("it was written") };
        assert_eq!(kv.value, "{\"password\":\"hunter2\"}");

        let conflict = store.sealed.commit(CompareAndSet::update(SECRET, Revision(1), "x")).await;
        let Err(Error::Conflict { current: Some(current) }) = conflict else { panic!("{conflict:?}") };
        assert_eq!(current.value, "{\"password\":\"hunter2\"}");
        let deleted = store.sealed.commit(CompareAndSet::delete(SECRET, first)).await.expect("deleted");
        assert_eq!(deleted.previous.expect("it was there").value, "{\"password\":\"hunter2\"}");
    }
}

#[tokio::test]
async fn keys_are_exchanged_while_the_store_is_used() {
    let with = |providers: Value| config(json!([{"resources": ["*."], "providers": providers}]));
    let store = Store::open(json!([{"resources": ["*."], "providers": [{"identity": {}}]}])).await;
    let replace = async |providers: Value| {
        store.encryption.replace(with(providers), "sha256:2").await.expect("it is valid");
    };
    let mut at = store.create(SECRET, "{\"p\":1}").await;
    assert_eq!(store.kept(SECRET).await, "{\"p\":1}");

    // From plain to encrypted: what was written before is read, and known to be behind.
    replace(json!([by("aescbc", &[("k1", ONE)]), {"identity": {}}])).await;
    assert!(store.sealed.is_stale(SECRET.as_bytes()).await.expect("known"));
    assert_eq!(store.read(SECRET).await.expect("read"), "{\"p\":1}");
    at = store.update(SECRET, at, "{\"p\":1}").await;
    assert!(!store.sealed.is_stale(SECRET.as_bytes()).await.expect("known"));
    assert!(store.kept(SECRET).await.starts_with(b"k8s:enc:aescbc:v1:k1:"));

    // Another key, then another provider.
    replace(json!([by("aescbc", &[("k2", TWO), ("k1", ONE)])])).await;
    assert!(store.sealed.is_stale(SECRET.as_bytes()).await.expect("known"));
    at = store.update(SECRET, at, "{\"p\":1}").await;
    assert!(store.kept(SECRET).await.starts_with(b"k8s:enc:aescbc:v1:k2:"));
    replace(json!([
        by("secretbox", &[("k3", ONE)]),
        by("aescbc", &[("k2", ONE)]),
        by("aescbc", &[("k2", TWO)])
    ]))
    .await;
    assert_eq!(store.read(SECRET).await.expect("the second of that name has it"), "{\"p\":1}");
    store.update(SECRET, at, "{\"p\":1}").await;

    // Whoever loses the key loses what it sealed, and is told so.
    replace(json!([by("aesgcm", &[("k1", ONE)])])).await;
    assert_eq!(
        store.read(SECRET).await.expect_err("lost"),
        "unable to transform key \"/registry/secrets/a/s\": no matching prefix found"
    );
    replace(json!([by("secretbox", &[("k9", ONE)])])).await;
    assert_eq!(
        store.read(SECRET).await.expect_err("lost"),
        "unable to transform key \"/registry/secrets/a/s\": no matching key was found for the provided Secretbox transformer"
    );
    let refused = store.encryption.replace(with(json!([by("aesgcm", &[("k", "!")])])), "sha256:3").await;
    assert!(refused.expect_err("it is no key").contains("secrets must be base64 encoded"));
}

#[tokio::test]
async fn what_is_encrypted_is_never_taken_for_plain() {
    let store =
        Store::open(json!([{"resources": ["secrets"], "providers": [by("aesgcm", &[("k1", ONE)])]}])).await;
    store.create(SECRET, "{}").await;
    let rules = json!([{"resources": ["configmaps"], "providers": [{"identity": {}}]}]);
    store.encryption.replace(config(rules), "sha256:2").await.expect("it is valid");
    assert_eq!(
        store.read(SECRET).await.expect_err("encrypted"),
        "unable to transform key \"/registry/secrets/a/s\": identity transformer tried to read encrypted data"
    );
}

/// A value moved to another key by whoever has the disk is refused there.
#[tokio::test]
async fn a_sealed_value_does_not_open_elsewhere() {
    let store =
        Store::open(json!([{"resources": ["secrets"], "providers": [by("aesgcm", &[("k1", ONE)])]}])).await;
    store.create(SECRET, "{}").await;
    let kept = store.kept(SECRET).await;
    store.raw.commit(CompareAndSet::create("/registry/secrets/b/s", kept)).await.expect("moved");
    assert_eq!(
        store.read("/registry/secrets/b/s").await.expect_err("moved"),
        "unable to transform key \"/registry/secrets/b/s\": cipher: message authentication failed"
    );
}
