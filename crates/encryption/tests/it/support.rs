//! A store on disk, as its owner sees it and as a thief does.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use krate_encryption::kms::Timing;
use krate_encryption::{Configuration, Encryption, Sealed};
use krate_store::{Backend, CompareAndSet, Embedded, KeyRange, Limit, Revision};
use serde_json::{Value, json};

pub struct Store {
    pub raw: Arc<dyn Backend>,
    pub sealed: Arc<dyn Backend>,
    pub encryption: Arc<Encryption>,
    dir: tempfile::TempDir,
}

pub fn config(resources: Value) -> Configuration {
    serde_json::from_value(json!({ "resources": resources })).expect("it is of the form")
}

impl Store {
    pub async fn open(resources: Value) -> Self {
        Self::timed(resources, Timing::default()).await
    }

    pub async fn timed(resources: Value, timing: Timing) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let raw: Arc<dyn Backend> = Arc::new(Embedded::open(dir.path().join("state")).expect("a store"));
        let encryption = Encryption::new(config(resources), "sha256:1", "server", true, timing).await;
        let encryption = encryption.expect("it is valid");
        let sealed = Arc::new(Sealed::new(Arc::clone(&raw), Arc::clone(&encryption)));
        Store { raw, sealed, encryption, dir }
    }

    pub async fn create(&self, key: &str, value: &str) -> Revision {
        let write = CompareAndSet::create(key.to_owned(), value.to_owned());
        self.sealed.commit(write).await.expect("written").revision
    }

    pub async fn update(&self, key: &str, at: Revision, value: &str) -> Revision {
        let write = CompareAndSet::update(key.to_owned(), at, value.to_owned());
        self.sealed.commit(write).await.expect("written").revision
    }

    /// What the owner reads, or why he does not.
    pub async fn read(&self, key: &str) -> Result<String, String> {
        let page = self.sealed.range(KeyRange::single(key.to_owned()), None, Limit::NONE).await;
        let page = page.map_err(|error| error.to_string())?;
        Ok(String::from_utf8_lossy(&page.items[0].value).into_owned())
    }

    /// What is kept.
    pub async fn kept(&self, key: &str) -> Bytes {
        let page = self.raw.range(KeyRange::single(key.to_owned()), None, Limit::NONE).await.expect("read");
        page.items[0].value.clone()
    }

    /// Whether any file of the store has this text in it.
    pub fn leaks(&self, text: &str) -> bool {
        fn any(dir: &Path, text: &[u8]) -> bool {
            std::fs::read_dir(dir).expect("a directory").any(|entry| {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    return any(&path, text);
                }
                let bytes = std::fs::read(&path).expect("a file");
                bytes.windows(text.len()).any(|window| window == text)
            })
        }
        any(self.dir.path(), text.as_bytes())
    }
}
