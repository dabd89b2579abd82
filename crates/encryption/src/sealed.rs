//! A store whose values are encrypted on their way in and decrypted on their way out, so that whoever uses it sees none
//! of it.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use krate_store::{
    Backend, Committed, CompareAndSet, Error, KeyRange, KeyValue, Limit, Op, Page, Result, Revision,
    WatchBatch, WatchEvent, WatchStream,
};

use crate::encryption::Encryption;

/// A backend that keeps values as an [`Encryption`] says.
pub struct Sealed {
    inner: Arc<dyn Backend>,
    encryption: Arc<Encryption>,
}

impl Sealed {
    pub fn new(inner: Arc<dyn Backend>, encryption: Arc<Encryption>) -> Self {
        Sealed { inner, encryption }
    }
}

impl Encryption {
    async fn read(&self, mut kv: KeyValue) -> Result<KeyValue> {
        let opened = self.open(&kv.key, &kv.value).await;
        let opened = opened.map_err(|error| {
            let key = String::from_utf8_lossy(&kv.key);
            Error::Unreadable(format!("unable to transform key \"{key}\": {error}"))
        })?;
        kv.value = opened.plain;
        Ok(kv)
    }

    /// As [`Encryption::read`], for what nobody may depend on: stays as it is stored if nothing opens it.
    async fn try_read(&self, kv: KeyValue) -> KeyValue {
        match self.read(kv.clone()).await {
            Ok(read) => read,
            Err(_) => kv,
        }
    }

    async fn read_batch(&self, batch: WatchBatch) -> Result<WatchBatch> {
        let mut events = Vec::with_capacity(batch.events.len());
        for event in batch.events {
            events.push(match event {
                WatchEvent::Put { kv, prev } => {
                    let prev = match prev {
                        Some(prev) => Some(self.try_read(prev).await),
                        None => None,
                    };
                    WatchEvent::Put { kv: self.read(kv).await?, prev }
                }
                WatchEvent::Delete { key, prev, revision } => {
                    WatchEvent::Delete { key, prev: self.try_read(prev).await, revision }
                }
            });
        }
        Ok(WatchBatch { events, ..batch })
    }
}

#[async_trait]
impl Backend for Sealed {
    async fn range(&self, range: KeyRange, at: Option<Revision>, limit: Limit) -> Result<Page> {
        let mut page = self.inner.range(range, at, limit).await?;
        for kv in &mut page.items {
            *kv = self.encryption.read(kv.clone()).await?;
        }
        Ok(page)
    }

    async fn commit(&self, op: CompareAndSet) -> Result<Committed> {
        let CompareAndSet { key, expect, op } = op;
        let mut plain: Option<Bytes> = None;
        let op = match op {
            Op::Put(value) => {
                let sealed = self.encryption.seal(&key, value.clone());
                plain = Some(value);
                Op::Put(sealed.map_err(|error| Error::Unreadable(error.to_string()))?)
            }
            Op::Delete => Op::Delete,
        };
        match self.inner.commit(CompareAndSet { key, expect, op }).await {
            Ok(mut committed) => {
                if let (Some(current), Some(plain)) = (&mut committed.current, plain) {
                    current.value = plain;
                }
                if let Some(previous) = committed.previous.take() {
                    // It is done: that the past cannot be read does not make it undone.
                    committed.previous = Some(self.encryption.try_read(previous).await);
                }
                Ok(committed)
            }
            Err(Error::Conflict { current: Some(current) }) => {
                Err(Error::Conflict { current: Some(self.encryption.read(current).await?) })
            }
            Err(error) => Err(error),
        }
    }

    fn watch(&self, range: KeyRange, after: Revision) -> WatchStream {
        let inner = self.inner.watch(range, after);
        let progress = inner.progress();
        let encryption = Arc::clone(&self.encryption);
        let opened = inner.then(move |batch| {
            let encryption = Arc::clone(&encryption);
            async move { encryption.read_batch(batch?).await }
        });
        WatchStream::new(opened, progress)
    }

    async fn compact(&self, to: Revision) -> Result<()> {
        self.inner.compact(to).await
    }

    async fn revision(&self) -> Result<Revision> {
        self.inner.revision().await
    }

    fn size(&self) -> Option<u64> {
        self.inner.size()
    }

    async fn is_stale(&self, key: &[u8]) -> Result<bool> {
        let page = self.inner.range(KeyRange::single(key.to_vec()), None, Limit::NONE).await?;
        let Some(kv) = page.items.first() else { return Ok(false) };
        let opened = self.encryption.open(&kv.key, &kv.value).await;
        Ok(opened.is_ok_and(|opened| opened.stale))
    }
}
